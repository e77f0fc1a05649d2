"""Bad and odd configurations, drawn from all settings there are with a fixed seed, and what `show` and `train` do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from afm_scale.run.config import RunConfig
from afm_scale.run.settings import settings_of
from tests.damage.originals import BASE
from tests.run.test_settings import ONCE, Number, wrong_values

from .outcome import Outcome, Verdict, of_an_end
from .ranks import Ranks

SEED = 18
COUNTS = {
    "numbers": 190, "wrong types": 120, "unknown keys": 50, "nulls": 50, "contradictions": 120, "paths": 50, "words": 20
}
EVERY_WITH_TWO_RANKS = 6
SHORT = "loop: {steps: 2}\ncheckpoint: {every_steps: 2}\nrun: {folder: run}\n"


@dataclass(frozen=True, kw_only=True)
class Case:
    kind: str
    name: str
    settings: tuple[str, ...] = ()  # words of the command line
    recipe: dict[str, Any] | None = None  # laid over the small one
    command: str = "train"
    ranks: int = 1

    def __str__(self) -> str:
        return f"configurations: {self.kind}: {self.command} {self.name}, ranks: {self.ranks}"

    def run(self, root: Path) -> Verdict:
        (root / "base.yaml").write_text(BASE + SHORT)
        (root / "empty").mkdir()
        (root / "recipe.yaml").write_text(yaml.safe_dump({"inherit": ["base.yaml"], **(self.recipe or {})}))
        ranks = Ranks([self.command, "recipe.yaml", *self.settings], root, self.ranks)
        code, told = ranks.end(), ranks.told()
        is_done = self.command == "show" or any(root.rglob("summary.json"))
        if code == 1 and "Traceback" not in told and "not finite" in told:
            return Verdict(outcome=Outcome.DONE, words=told[:200])  # it trained as it was told to, and says what of it
        return of_an_end(code, told, root, is_done=is_done)


def cases() -> list[Case]:
    chance = random.Random(SEED)
    found: list[Case] = []
    for kind, count in COUNTS.items():
        everything = {str(case): case for case in KINDS[kind](chance)}
        found += chance.sample(list(everything.values()), min(count, len(everything)))
    commands = ("train", "show", "train")
    found = [replace(case, command=commands[i % 3]) for i, case in enumerate(found)]
    return [
        replace(case, command="train", ranks=2) if i % EVERY_WITH_TWO_RANKS == 0 else case
        for i, case in enumerate(found)
    ]


def numbers(chance: random.Random) -> Iterator[Case]:
    """Beyond each end of every range, and at the lower end (the upper is as much work as anybody may want)."""
    for number in ONCE:
        for value in (*wrong_values(number), *at_the_end(number)):
            yield Case(kind="numbers", name=f"{number.key}={value}", recipe=number.put(value))
            if "[" not in number.key:
                yield Case(kind="numbers", name=f"alone {number.key}={value}", settings=(f"{number.key}={value}",))


def at_the_end(number: Number) -> Iterator[Any]:
    if number.allowed is not None and number.allowed.above is None and abs(number.allowed.low) < 1e9:
        yield number.allowed.low
    if number.allowed is not None and number.allowed.below is None and abs(number.allowed.high) <= 1:
        yield number.allowed.high


VALUES = ("x", "''", "[]", "[[]]", "{}", "true", "3.5", "[1, 2]", "1e5", "{kind: nosuch}", "{kind: digits}", "-1", "0",
          "2026-01-01", "[null]", "{a: {b: 1}}", "1_000", "0x10", ".nan", "\"a\\0b\"", "'é'", "x" * 300)


def wrong_types(chance: random.Random) -> Iterator[Case]:
    keys = sorted({setting.key for setting in settings_of(RunConfig)})
    for key, value in product(keys, VALUES):
        yield Case(kind="wrong types", name=f"{key}={value:.40}", settings=(f"{key}={value}",))


def unknown_keys(chance: random.Random) -> Iterator[Case]:
    for key in sorted({setting.key for setting in settings_of(RunConfig)}):
        i = chance.randrange(len(key))
        for wrong in (f"{key[:i]}{key[i + 1:]}", f"{key}.more", f"{key}s", key.upper(), f"{key}.", f".{key}"):
            yield Case(kind="unknown keys", name=wrong, settings=(f"{wrong}=1",))
    for wrong in ({"nosuch": 1}, {1: 2}, {None: None}, {"loop": {True: 1}}, {"inherit": []}, {"inherit": [1]}):
        yield Case(kind="unknown keys", name=str(wrong), recipe=wrong)


def nulls(chance: random.Random) -> Iterator[Case]:
    for key in sorted({setting.key for setting in settings_of(RunConfig)}):
        yield Case(kind="nulls", name=key, settings=(f"{key}=null",))


CHOICES = {
    "parallel.plan": ("ddp", "fsdp2", "deepspeed", "megatron"),
    "parallel.precision": ("tf32", "fp64", "bf16", "fp8"),
    "parallel.device": ("cuda",),
    "parallel.ops": ("triton", "apex", "torch"),
    "parallel.deterministic": ("true",),
    "parallel.megatron": ("{tensor: 2}", "{tensor: 3}"),
    "parallel.fsdp2": ("{policy: whole}", "{policy: blocks}"),
    "objective": ("{kind: flow_matching}", "{kind: classification}", "{kind: afm, prediction: v}"),
    "objective.times": ("{kind: grid, steps: 4}", "{kind: uniform}"),
    "objective.guidance": ("{kind: classifier, weight: 1.0, low: 0.0, high: 0.5}",
                           "{kind: velocity, weight: 1.0, low: 0.0, high: 0.5}"),
    "data": ("{kind: mixture1d, global_batch: 8}", "{kind: mixture2d, global_batch: 8}",
             "{kind: webdataset, folder: nosuch, global_batch: 8}", "{kind: latents, folder: empty, global_batch: 8}",
             "{kind: mnist, global_batch: 8}", "{kind: synthetic, global_batch: 8}",
             "{kind: synthetic, shape: [1, 7, 5], num_classes: 3, global_batch: 8}",
             "{kind: dali, folder: nosuch, global_batch: 8}"),
    "data.global_batch": ("1", "3", "7"),
    "loop.accumulation": ("3", "8", "9"),
    "model.generator": ("null", "{kind: mlp, width: 16}"),
    "model.generator.patch_size": ("3", "16"),
    "model.generator.num_heads": ("3", "16", "0"),
    "model.generator.hidden_size": ("6", "17"),
    "model.generator.times": ("both", "source"),
    "model.discriminator": ("null", "{kind: mlp, width: 16}"),
    "model.discriminator.target_time": ("true",),
    "model.classifier": ("{kind: mlp, width: 16}", "{kind: mlp, width: 16, weights: nosuch}"),
    "model.flow": ("nosuch", "empty"),
    "optimizer.generator": ("null",),
    "optimizer.discriminator": ("null",),
    "optimizer.classifier": ("{learning_rate: 1e-3}",),
    "report": ("{kind: digits}", "{kind: mixture1d}", "{kind: mixture2d}", "{kind: mnist}"),
    "hooks.samples": ("{every_steps: 1}",),
    "hooks.metrics.wandb": ("{project: x}",),
    "hooks.evaluation": ("{every_steps: 1}",),
    "sampling": ("{steps: 4}", "{steps: 1000}"),
    "run.resume_from": ("nosuch", "empty"),
    "run.initialise_from": ("nosuch", "empty"),
}
"""What can be right by itself and contradict another."""


def contradictions(chance: random.Random) -> Iterator[Case]:
    for _ in range(400):
        keys = chance.sample(sorted(CHOICES), chance.choice((1, 2, 2, 3, 4)))
        settings = tuple(f"{key}={chance.choice(CHOICES[key])}" for key in sorted(keys))
        yield Case(kind="contradictions", name=" ".join(settings), settings=settings)


PATHS = ("''", "' '", "x" * 300, "x/" * 2100, "~", "~nobody/x", "$HOME/x", "'$NOSUCH/x'", "-x", "--", ".", "..", "a b",
         "recipe.yaml", "recipe.yaml/x", "/dev/null", "/dev/null/x", "/dev/full", "/proc/self/x", "/proc/nosuch", "é",
         "empty", "empty/../x", "'a\nb'", "'[red]x'", "'x[/]'", "'a#b'", "'a #b'", "'{a}'", "http://x/y", "s3://x",
         "%s")
OF_PATHS = ("run.folder", "run.resume_from", "run.initialise_from", "model.flow", "data.file",
            "model.classifier.weights")


def paths(chance: random.Random) -> Iterator[Case]:
    for key, path in product(OF_PATHS, PATHS):
        around = {"data.file": ("data={kind: mnist, global_batch: 8}",),
                  "model.classifier.weights": ("model.classifier={kind: mlp, width: 16}",)}.get(key, ())
        yield Case(kind="paths", name=f"{key}={path:.40}".replace("\n", "\\n"), settings=(*around, f"{key}={path}"))


WORDS = ("=", "a", "a=", "a..b=1", "=1", "--nosuch", "--", "digits_afm", "loop", "loop.steps", "loop.steps=", "loop=",
         "loop.steps==1", "loop.steps=1=1", "loop.steps =1", "loop.steps= 1", "[]=1", "loop.steps=[", "loop.steps={",
         "loop.steps=1 # one", "loop.steps=&a 1", "loop.steps=*a", "loop.steps=!!int 1", "'loop.steps'=1", "*=1",
         "loop.steps=2\n", "loop.steps=\x01", "run={folder: run, folder: run}", "<<=1", "+loop.steps=1")


def words(chance: random.Random) -> Iterator[Case]:
    for word in WORDS:
        yield Case(kind="words", name=repr(word), settings=(word,))


KINDS = {
    "numbers": numbers, "wrong types": wrong_types, "unknown keys": unknown_keys, "nulls": nulls,
    "contradictions": contradictions, "paths": paths, "words": words,
}
