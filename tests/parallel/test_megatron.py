"""Tensor parallelism: how tensors are sliced, what a step sends, what draws and measures, and what is refused.

That it trains as other plans do is in tests/test_megatron_equivalence.py.
"""

from __future__ import annotations

import json
import os
import socket
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from afm_scale.__main__ import main
from afm_scale.benchmarks.traffic import TrafficBenchmark, count_first_step
from afm_scale.core.errors import EXIT_DONE, ConfigError
from afm_scale.data.source import Skipped
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from afm_scale.parallel import compile as module_under_test
from afm_scale.run.build import build_plan, build_state
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.train.failures import Failures
from afm_scale.train.hooks.metrics import MetricsConfig, MetricsHook, Row
from tests.equivalence import Layout, Outcome, config_of, differences, play, this_rank, too_large, train_game
from tests.program import SMALL_AFM, SMALL_CLASSIFICATION
from tests.ranks import run_ranks
from tests.train.hooks.small import report

# While it is imported, of its parts that are not used; the program imports it in `build_plan`, which is silent.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Transformer Engine and Apex are not installed:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following imports from `dynamic_context.py`:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed"),
]

MEGATRON = ("parallel.plan=megatron", "parallel.device=cpu")
TWO = Layout("megatron", 2, 1, settings=("loop.steps=2", "parallel.megatron.tensor=2"))


@pytest.mark.parametrize(("axis", "stacked"), [(0, 1), (0, 3), (1, 1)])
def test_parts_of_a_tensor_are_disjoint_and_join_to_it(axis: int, stacked: int) -> None:
    from afm_scale.parallel.megatron import Slice

    where, whole = Slice(axis, stacked), torch.arange(12 * 8).view(12, 8)
    parts = [where.part(whole, rank, 2) for rank in range(2)]
    assert all(part.numel() == whole.numel() // 2 for part in parts)
    assert torch.equal(where.join(parts), whole)


def test_a_rank_has_query_key_and_value_of_its_own_heads() -> None:
    """Rows are stacked [query, key, value; head; number in the head]."""
    from afm_scale.parallel.megatron import Slice

    rows = torch.arange(3 * 4 * 2).view(3, 4, 2)
    assert torch.equal(Slice(0, 3).part(rows.flatten(), 1, 2), rows[:, 2:].flatten())


# What two ranks do, in one go.


def _count_all(overrides: list[tuple[str, ...]]) -> list[tuple[dict[tuple[str, str, str], int], int]]:
    """Of each game how many collectives there are, and the bytes of those in the forwards of the generator's turn."""
    found = []
    for settings in overrides:
        request = TrafficBenchmark(
            recipe="digits_afm", overrides=(*SMALL_AFM[1:], *MEGATRON, *settings), ranks=2, timeout_seconds=100
        )
        rows = count_first_step(request, int(os.environ["RANK"]))
        (size,) = (row.bytes for row in rows if (row.turn, row.phase) == ("generator", "forward"))
        found.append(({(row.turn, row.phase, row.kind): row.count for row in rows}, size))
    return found


def _skipped_in_a_row() -> float:
    """One sample could not be read: on both ranks, which read the same ones."""
    config = config_of("flow matching", TWO)
    plan = build_plan(config, this_rank(TWO))
    state, rows = build_state(config, this_rank(TWO), plan), _Rows()
    hook = MetricsHook(plan, MetricsConfig(every_steps=1), [rows], Failures())
    hook.on_start(state)
    skipped = Skipped(place="shard 0, sample 1", reason="truncated", substitute="the one before")
    hook.after_step(state, report(1, skipped=[skipped]))
    (row,) = rows.rows
    return row["data_skipped"]


class _Rows:
    def __init__(self) -> None:
        self.rows: list[Row] = []

    def start(self, step: int) -> None:
        pass

    def write(self, row: Row) -> None:
        self.rows.append(row)

    def close(self) -> None:
        pass


def _in_bfloat16(layout: Layout) -> Outcome:
    config = config_of("deep", layout._replace(settings=(*layout.settings, "parallel.precision=bf16")))
    plan = build_plan(config, this_rank(layout))
    return play(config, plan, build_state(config, this_rank(layout), plan))


def _compiled() -> Outcome:
    """Each block in one piece: torch.compile is told to refuse anything else."""
    module_under_test.BACKEND = "aot_eager"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compiler meets what torch itself warns of
        return train_game("deep", TWO._replace(settings=(*TWO.settings, "parallel.compile=true")))


def _refusal() -> str:
    plan = build_plan(config_of("flow matching", TWO), this_rank(TWO))
    described = GeneratorConfig(patch_size=2, hidden_size=12, depth=1, num_heads=3, times="none")
    with torch.device("meta"):
        flow = DiTGenerator(described, (1, 4, 4), 3)
    with pytest.raises(ConfigError) as caught:
        plan.frozen(flow, [])
    return str(caught.value)


def _commands(port: int, commands: list[list[str]]) -> list[int]:
    """Each command as a launcher would start it on these ranks."""
    dist.destroy_process_group()
    codes = []
    for number, words in enumerate(commands):
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port + number))
        codes.append(main(words))
    return codes


def _everything(port: int, commands: list[list[str]]) -> dict[str, Any]:
    found = {
        "traffic": _count_all([
            ("model.generator.repetitions=2", "model.discriminator.depth=3"), ("model.generator.depth=3",),
            ("model.generator.depth=3", "parallel.precision=bf16"),
        ]),
        "skipped": _skipped_in_a_row(),
        "bf16": _in_bfloat16(TWO),
        "refusal": _refusal(),
        "compiled": _compiled(),
    }
    return {**found, "codes": _commands(port, commands)}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _training(folder: Path, plan: str, reference: Path) -> list[list[str]]:
    """A generator with sample sheets, evaluation and report; and a classifier with evaluation and report."""
    common = [f"parallel.plan={plan}", "parallel.device=cpu", "parallel.precision=fp64", "loop.steps=4",
              "hooks.metrics.every_steps=2", "checkpoint.every_steps=4", "data.global_batch=8"]
    evaluation = (f"hooks.evaluation={{kind: samples, every_steps: 2, num_samples: 150, members: 40, "
                  f"features: {{kind: pixels}}, reference: {reference}}}")
    generator = [
        "train", *SMALL_AFM, *common, f"run.folder={folder}/generator", evaluation,
        "hooks.samples={every_steps: 2, images_per_class: 9}", "report={kind: digits, num_samples: 150}",
        "optimizer.generator.learning_rate=1e-2",
    ]
    classifier = [
        "train", *SMALL_CLASSIFICATION, *common, f"run.folder={folder}/classifier",
        "hooks.evaluation={kind: classifier, every_steps: 2, num_samples: 300}",
        "report={kind: classifier, num_samples: 300}",
    ]
    return [generator, classifier]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> list[dict[str, Any]]:
    """What both ranks found; and in the folder the same training by one rank and by two that share the networks."""
    images = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 1), dtype=np.uint8)
    np.savez(folder / "images.npz", arr_0=images)
    reference = folder / "reference.npz"
    words = ["evaluate", folder / "images.npz", "--write-reference", reference, "--features", "pixels"]
    assert main([*map(str, words), "--device", "cpu"]) == EXIT_DONE
    for command in _training(folder / "one", "ddp", reference):
        assert main(command) == EXIT_DONE
    return run_ranks(2, _everything, _free_port(), _training(folder / "two", "megatron", reference), timeout=300)


@pytest.mark.slow
def test_a_use_of_a_block_sums_over_the_ranks_twice_in_each_direction(two_ranks: list[dict[str, Any]]) -> None:
    for found in two_ranks:
        (first, _), (second, _), _ = found["traffic"]
        for counts, uses_of_generator, depth_of_discriminator in ((first, 4, 3), (second, 3, 2)):
            forward_g, forward_d = 2 * uses_of_generator, 2 * depth_of_discriminator
            assert counts["discriminator", "forward", "all-reduce"] == forward_g + forward_d
            assert counts["discriminator", "backward", "all-reduce"] == forward_d
            # Real samples and generated ones apart; and a number, for the gradient normaliser.
            assert counts["generator", "forward", "all-reduce"] == forward_g + 2 * forward_d + 1
            assert counts["generator", "backward", "all-reduce"] == forward_g + forward_d
            assert {kind for _, _, kind in counts} == {"all-reduce"}
            assert {turn for turn, _, _ in counts} == {"discriminator", "generator"}  # the average sends nothing


@pytest.mark.slow
def test_a_sample_that_two_ranks_could_not_read_is_one(two_ranks: list[dict[str, Any]]) -> None:
    assert [found["skipped"] for found in two_ranks] == [1, 1]


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def _rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["generator", "classifier"])
def test_reports_and_evaluations_are_those_of_one_rank(two_ranks: list[dict], folder: Path, part: str) -> None:
    assert [found["codes"] for found in two_ranks] == [[EXIT_DONE] * 2] * 2
    one, two = folder / "one" / part, folder / "two" / part
    assert _summary(two)["images_seen"] == _summary(one)["images_seen"] == 32
    found, wanted = _summary(two)["quality"], _summary(one)["quality"]
    for words in ("samples", "compared_with"):
        assert found.pop(words, None) == wanted.pop(words, None)
    assert found == pytest.approx(wanted, rel=1e-6)
    same = [name for name in _rows(one)[0] if name.startswith(("evaluation/", f"{part}/")) and "seconds" not in name]
    assert len([name for name in same if name.startswith("evaluation/")]) >= 3
    for row, other in zip(_rows(two), _rows(one), strict=True):
        assert {name: row[name] for name in same} == pytest.approx({name: other[name] for name in same}, rel=1e-6)


@pytest.mark.slow
def test_sheets_of_samples_are_those_of_one_rank(two_ranks: list[dict[str, Any]], folder: Path) -> None:
    for name in ("step_00000002.png", "step_00000004.png", "final.png"):
        one, two = (
            np.asarray(Image.open(folder / ranks / "generator" / "samples" / name)) for ranks in ("one", "two")
        )
        assert np.array_equal(one, two) and one.std() > 10


@pytest.mark.slow
def test_one_process_draws_from_what_two_trained_together(two_ranks: list[dict[str, Any]], folder: Path) -> None:
    for ranks in ("one", "two"):
        words = ["sample", folder / ranks / "generator", "--out", folder / ranks / "drawn", "--num", 5]
        assert main([*map(str, words), "--device", "cpu"]) == EXIT_DONE
    for number in range(5):
        one, two = (
            np.asarray(Image.open(folder / ranks / "drawn" / f"{number:06d}.png")) for ranks in ("one", "two")
        )
        assert np.array_equal(one, two)


@pytest.mark.slow
def test_blocks_compute_in_bfloat16_and_weights_stay_in_float32(
    two_ranks: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as rounding lets them, which sums of parts do otherwise. What is sent takes half of the bytes."""
    monkeypatch.setenv("RANK", "0")
    alone = _in_bfloat16(Layout("ddp", 1, 1, settings=("loop.steps=2",)))
    for found in two_ranks:
        _, (_, in_float32), (_, in_bfloat16) = found["traffic"]
        number = 8  # bytes: what the gradient normaliser sends
        assert 2 * (in_bfloat16 - number) == in_float32 - number > 1000
        outcome: Outcome = found["bf16"]
        weights = {name: value for name, value in outcome.tensors.items() if ".blocks." in name}
        assert {value.dtype for value in weights.values()} == {torch.float32}
        for name, difference in differences(outcome.reported, alone.reported).items():
            assert difference < 0.02 * float(alone.reported[name].abs().max()), name


@pytest.mark.slow
def test_compiled_blocks_train_as_plain_ones(
    two_ranks: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    alone = train_game("deep", Layout("ddp", 1, 1, settings=("loop.steps=2",)))
    for found in two_ranks:
        assert not too_large(found["compiled"], alone, 1e-9)


def _config(*overrides: str, recipe: str = "digits_afm") -> RunConfig:
    return load(RunConfig, recipe, (*SMALL_AFM[1:], "run.folder=unused", *MEGATRON, *overrides))


@pytest.mark.parametrize(("overrides", "ranks", "words"), [
    ((), 1, ["parallel.megatron.tensor 2", "1 rank(s)", "use 1,"]),
    ((), 3, ["parallel.megatron.tensor 2", "3 rank(s)", "use 1 or 3,"]),
    (("parallel.megatron.tensor=4",), 4, ["parallel.megatron.tensor 4", "model.generator.num_heads 2"]),
    (("model.discriminator.num_heads=1",), 2, ["parallel.megatron.tensor 2", "model.discriminator.num_heads 1"]),
    (("data.global_batch=9",), 4, ["data.global_batch 9", "ranks 2"]),
    (("parallel.precision=fp8", "model.generator.hidden_size=16"), 2, ["fp8", "parallel.precision=bf16"]),
], ids=str)
def test_what_cannot_be_shared_is_refused_with_the_way_out(
    overrides: tuple[str, ...], ranks: int, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(_config(*overrides), ranks)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_networks_without_blocks_are_refused() -> None:
    config = load(RunConfig, "mixture1d_afm", ("run.folder=unused", *MEGATRON))
    with pytest.raises(ConfigError, match="model.generator of kind 'mlp' has none; set parallel.plan=ddp"):
        check(config, 2)


def test_zero_ranks_sharing_is_refused() -> None:
    with pytest.raises(ConfigError, match="parallel.megatron.tensor: found 0"):
        _config("parallel.megatron.tensor=0")


@pytest.mark.slow
def test_guides_whose_heads_cannot_be_shared_are_refused(two_ranks: list[dict[str, Any]]) -> None:
    """A flow model's heads are known only from its checkpoint."""
    for found in two_ranks:
        assert "parallel.megatron.tensor 2 does not suit a DiTGenerator: 3 attention heads" in found["refusal"]
