"""Replays recorded training runs of the published methods through this project's networks and objectives, in float64.

Prints, per case, the largest absolute error over all losses, predictions and final weights.
Exit code 0 if every case is within --tolerance, 1 if not, 2 if a case cannot be read.
A case is NAME.json (settings and one record per half-step: even = discriminator, odd = generator) beside
NAME.safetensors (initial weights, every random draw, predictions, final weights); or, where NAME.json has 'cases',
single losses of alpha-Flow, MeanFlow and TwinFlow with their gradients (benchmarks/flow_maps.py).
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..benchmarks import flow_maps
from ..core.errors import UserError
from ..core.files import read_regular
from ..core.random import Positions
from ..core.ranges import Range
from ..core.schedules import Constant, Cosine
from ..core.screen import say
from ..core.strict_json import parse_json
from ..core.types import PUBLISHED, Batch, Loss, Role, networks_of
from ..flow.guidance import FlowGuidance, PlainGuidance
from ..flow.path import Prediction, move
from ..models.classifier import ClassifierConfig, DiTClassifier
from ..models.discriminator import DiscriminatorConfig, DiTDiscriminator
from ..models.generator import DiTGenerator, GeneratorConfig
from ..models.weights_file import read_safetensors
from ..objectives.afm import AdversarialFlow, AFMConfig, PenaltyConfig
from ..objectives.gradient_scale import GradientScaleConfig
from ..parallel.config import ParallelConfig
from ..parallel.ddp import DDPPlan
from ..parallel.launch import Ranks
from ..parallel.optim import OptimizerConfig
from ..parallel.plan import Player, Weights
from ..run.arguments import add_number
from ..train.average import Average, AverageConfig

_TERMS = {
    Role.DISCRIMINATOR: {"total": "total", "dis": "adversarial", "r1": "r1", "r2": "r2", "cp": "centring"},
    Role.GENERATOR: {"total": "total", "gen": "adversarial", "ot": "transport", "cg": "guidance"},
}
_DRAWS = {
    "source noise": "noises_src", "target noise": "noises_tgt", "r1 noise": "noises_r1", "r2 noise": "noises_r2",
    "guidance noise": "noises_cg", "guidance time": "timesteps_cg",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE.json")
    parser.add_argument("--json", action="store_true")
    add_number(parser, "--tolerance", float, Range(0, 1), default=1e-9)


SAME_ON_EVERY_CPU = {"MKL_CBWR": "COMPATIBLE"}
"""For a process that replays. The method computes the sinusoids of its times in float32, and the last bit of MKL's
float32 exp and cos is another one where it has found AVX2 or AVX-512: 1e-7 in a prediction. MKL reads this when it
computes for the first time."""


def run(options: argparse.Namespace) -> int:
    for name, value in SAME_ON_EVERY_CPU.items():
        os.environ.setdefault(name, value)
    results = {str(case): replay(case) for case in options.cases}
    largest = {case: max(errors.values()) for case, errors in results.items()}
    if options.json:
        say(json.dumps({case: {"max_error": largest[case], **errors} for case, errors in results.items()}, indent=2))
    else:
        for case, errors in results.items():
            parts = ", ".join(f"{kind} {error:.1e}" for kind, error in errors.items())
            say(f"{case}: max error {largest[case]:.2e}  ({parts})")
    return int(any(not error <= options.tolerance for error in largest.values()))


@dataclass(frozen=True)
class RecordedDraws:
    """`Draws` that returns what one half-step recorded."""

    recorded: Mapping[str, Tensor]
    positions: Positions

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        return self.recorded[_DRAWS[name]]

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0, shape: Sequence[int] = ()) -> Tensor:
        return self.recorded[_DRAWS[name]]


def recorded_times(draws: RecordedDraws) -> tuple[Tensor, Tensor]:
    """A time sampler: the recorded source and target times."""
    return draws.recorded["timesteps_src"], draws.recorded["timesteps_tgt"]


def replay(case_file: Path) -> dict[str, float]:
    """The largest absolute error by kind of quantity (losses, predictions, ...), over the whole case.

    Raises UserError if the two files are not there or not of this format.
    """
    tensors_file = case_file.with_suffix(".safetensors")
    for file in (case_file, tensors_file):
        if not file.exists():
            raise UserError(f"{file}: no such file; a case is NAME.json beside NAME.safetensors")
    try:
        content, tensors = parse_json(read_regular(case_file)), read_safetensors(tensors_file)
        found = flow_maps.errors_of(content, tensors) if "cases" in content else _Replay(content, tensors).errors()
        errors: dict[str, float] = {}
        for kind, error in found:
            # max(0.0, nan) is 0.0: what is not a number must not pass for agreement
            errors[kind] = math.inf if math.isnan(error) else max(errors.get(kind, 0.0), error)
        return errors
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, OSError, RuntimeError) as error:
        raise UserError(f"{case_file}: not a case of the golden format: {error!r} is missing or malformed") from error


class _Replay:
    def __init__(self, case: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._case, self._tensors = case, tensors
        self._records: Sequence[Mapping[str, Any]] = case["records"]
        self._plan = DDPPlan(Ranks(0, 0, 1, torch.device("cpu")), ParallelConfig(plan="ddp", precision="fp64"))
        model, extra = case["model"], case["gen_extra"]
        if model.get("learn_sigma") or model.get("class_dropout_prob"):
            raise UserError("learn_sigma and class_dropout_prob are not part of AFM: wanted false and 0")
        size = {key: model[key] for key in ("patch_size", "hidden_size", "depth", "num_heads")}
        self._shape = (model["in_channels"], model["input_size"], model["input_size"])
        told = "both" if extra.get("use_t_tgt") else "source" if extra.get("use_t_src") else "none"
        generator = GeneratorConfig(**size, times=told, repetitions=extra.get("repeat", 1))
        discriminator = DiscriminatorConfig(**size, target_time=case["dis_extra"].get("use_t", False))
        classes = model["num_classes"]
        with torch.device("meta"):
            networks = {
                Role.GENERATOR: DiTGenerator(generator, self._shape, classes),
                Role.DISCRIMINATOR: DiTDiscriminator(discriminator, self._shape, classes),
            }
            average, classifier = DiTGenerator(generator, self._shape, classes), None
            if case["classifier"]:
                classifier = DiTClassifier(ClassifierConfig(**size, weights=None), self._shape, classes)
        optimizer = OptimizerConfig(
            learning_rate=Constant(value=case["lr"]), betas=tuple(case["betas"]), eps=case["eps"],
            weight_decay=case["weight_decay"], max_grad_norm=math.inf if case["clip"] is None else case["clip"],
        )
        prefix = {Role.GENERATOR: "init.gen.", Role.DISCRIMINATOR: "init.dis."}
        self._players = {
            role: self._plan.player(role, network, self._under(prefix[role]), optimizer)
            for role, network in networks.items()
        }
        self._average = Average(
            self._plan.frozen(average, self._under("init.gen.")), AverageConfig(decay=case["ema_decay"]), self._plan
        )
        self._classifier = self._plan.frozen(classifier, self._under("init.cls.")) if classifier else None
        self._transport_weight = Cosine(start=case["ot_start"], end=case["ot_end"], steps=case["ot_decay_steps"] / 2)
        self._prediction = Prediction(case["prediction"])
        self._objective = AdversarialFlow(self._objective_config(), self._plan.mean_, self._plan.device)
        self._moved: Tensor | None = None

    def errors(self) -> Iterator[tuple[str, float]]:
        """(kind of quantity, absolute error) for everything the case records."""
        for index, record in enumerate(self._records):
            yield from self._half_step(index, record)
        for name, tensors in (("gen", self._plan.state_dict(self._player(Role.GENERATOR).module)),
                              ("dis", self._plan.state_dict(self._player(Role.DISCRIMINATOR).module)),
                              ("ema", self._plan.state_dict(self._average.network))):
            for key, expected in self._under(f"final.{name}."):
                yield "final weights", _error(tensors[key], expected)
        yield from self._forwards()

    def _half_step(self, index: int, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        role, step = Role(record["kind"]), index // 2
        recorded = dict(self._under(f"step{index}."))
        batch = Batch(recorded["latents"].double(), recorded["labels"])
        draws = RecordedDraws(recorded, Positions(0, 1, len(batch)))
        player = self._player(role)
        with self._plan.turn_of(player, last=True):
            loss = self._loss(role, batch, draws, step)
            self._plan.backward(player, loss.total)
        norm = self._plan.step(player, step)
        if role is Role.GENERATOR:
            self._average.update(player, step)
            yield "losses", abs(record["ot_scale"] - self._transport_weight(step))
        for theirs, ours in _TERMS[role].items():
            value = loss.terms.get(ours, torch.zeros(()))
            yield "losses", abs(record[f"loss/{theirs}"] - value.item())
        for side in ("real", "fake"):
            yield "losses", abs(record[f"logits/{side}"] - loss.terms[f"logit_{side}"].item())
        yield "gradient norms", abs(record[f"{role.value[:3]}_grad_norm"] - norm.item())
        yield "predictions", _error(self._moved, recorded["prediction"])
        if self._case["grad_norm"] is not None:
            square_avg = self._objective.state_dict()["gradient_scale.square_avg"]
            yield "gradient scale", abs(record["square_avg"] - square_avg.item())

    def _loss(self, role: Role, batch: Batch, draws: RecordedDraws, step: int) -> Loss:
        players = {
            Role.GENERATOR: self._watched_generator, Role.DISCRIMINATOR: self._player(Role.DISCRIMINATOR).network
        }
        frozen = {"classifier": self._classifier} if self._classifier else {}
        nets = networks_of(players, {PUBLISHED: self._average.network}, frozen)
        return self._objective.loss(role, nets, batch, draws, step)

    def _watched_generator(self, x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        output = self._player(Role.GENERATOR).network(x, s, t, y)
        self._moved = move(self._prediction, output, x, s, t).detach()
        return output

    @torch.no_grad()
    def _forwards(self) -> Iterator[tuple[str, float]]:
        given = dict(self._under("forward."))
        if not given:
            return
        x, y, t = given["x"].double(), given["y"], given["t"]
        yield "forwards", _error(self._player(Role.GENERATOR).network(x, t, t / 2, y), given["final_gen"])
        yield "forwards", _error(self._player(Role.DISCRIMINATOR).network(x, t, y), given["final_dis"])
        if self._classifier is not None:
            yield "forwards", _error(self._classifier(x, t), given["cls"])

    def _objective_config(self) -> AFMConfig:
        case, guidance = self._case, None
        if case["classifier"]:
            low, high = case["cg_range"]
            kind = FlowGuidance if case["classifier_flow"] else PlainGuidance
            guidance = kind(weight=case["cg_scale"], low=low, high=high)
        scale = case["grad_norm"]
        return AFMConfig(
            prediction=self._prediction,
            times=recorded_times,
            transport_weight=self._transport_weight,
            penalty=PenaltyConfig(weight=case["gp_scale"], share=case["gp_batch_ratio"], epsilon=case["gp_eps"]),
            centring_weight=case["cp_scale"],
            gradient_scale=scale and GradientScaleConfig(decay=scale["ema_decay"], eps=scale["eps"]),
            guidance=guidance,
        )

    def _player(self, role: Role) -> Player:
        return self._players[role]

    def _under(self, prefix: str) -> Weights:
        return [(key.removeprefix(prefix), value) for key, value in self._tensors.items() if key.startswith(prefix)]


def _error(ours: Tensor, theirs: Tensor) -> float:
    return (ours.double() - theirs.double()).abs().max().item()
