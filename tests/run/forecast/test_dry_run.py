"""The dry run beside real steps: what they send, and what they hold."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard._fsdp_common import _chunk_with_empty

from afm_scale.benchmarks.memory import MEMORY, measured_memory
from afm_scale.benchmarks.traffic import TrafficBenchmark, count_first_step
from afm_scale.core.errors import ConfigError
from afm_scale.run.config import RunConfig
from afm_scale.run.forecast.dry_run import Parts, dry_run
from afm_scale.run.forecast.tape import Traffic
from afm_scale.run.load import load
from tests.program import SMALL_AFM
from tests.ranks import run_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:Transformer Engine and Apex are not installed:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following imports from `dynamic_context.py`:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]

LAYOUTS = {
    "ddp": ("parallel.plan=ddp", "parallel.precision=fp32"),
    "full": ("parallel.plan=fsdp2", "parallel.fsdp2.policy=full", "model.generator.repetitions=2"),
    "zero2": ("parallel.plan=fsdp2", "parallel.fsdp2.policy=zero2", "loop.accumulation=2"),
    "replicas": ("parallel.plan=fsdp2", "parallel.fsdp2={policy: full, replicas: 2}"),
    "megatron": ("parallel.plan=megatron", "parallel.megatron.tensor=2"),
}
# Of some 30 MB, most of it activations: the allocator's own small blocks do not show.
MIDDLING = (
    "afm_1step_tiny", "data.shape=[4,16,16]", "data.global_batch=16", "hooks.samples=null", "parallel.precision=fp32",
    *(f"model.{name}.{size}" for name in ("generator", "discriminator")
      for size in ("hidden_size=96", "num_heads=3", "depth=2")),
)


def config_of(words: tuple[str, ...]) -> RunConfig:
    return load(RunConfig, words[0], words[1:]).resolved()


def first_steps(requests: list[TrafficBenchmark]) -> list[list[Traffic]]:
    return [count_first_step(request, dist.get_rank()) for request in requests]


def holds(layouts: list[tuple[str, ...]]) -> list[dict[str, int]]:
    return [measured_memory(words[0], words[1:], dist.get_world_size(), dist.get_rank()) for words in layouts]


def test_collectives_and_bytes_are_those_of_a_real_first_step() -> None:
    layouts = LAYOUTS | {
        f"zero{stage}": ("parallel.plan=deepspeed", f"parallel.deepspeed.stage={stage}") for stage in (2, 3)
    }
    names = [
        name for name, (plan, *_) in layouts.items() for package in [plan.partition("=")[2]]
        if package not in ("megatron", "deepspeed") or find_spec(package) is not None
    ]
    requests = [
        TrafficBenchmark(recipe=SMALL_AFM[0], overrides=(*SMALL_AFM[1:], *layouts[name]), ranks=2, timeout_seconds=100)
        for name in names
    ]
    real = run_ranks(2, first_steps, requests, timeout=500)[0]
    for name, request, rows in zip(names, requests, real, strict=True):
        config = config_of((request.recipe, *request.overrides))
        found = dry_run(config, 2, warm_up=0).traffic
        assert sorted(map(repr, rows)) == sorted(repr(row) for row, _ in found), name
        assert {len(ranks) for _, ranks in found} <= {1, 2}


def test_memory_is_that_of_real_steps_within_three_percent() -> None:
    layouts = [(*MIDDLING, *LAYOUTS["ddp"]), (*MIDDLING, *LAYOUTS["full"])]
    real = run_ranks(2, holds, layouts, timeout=500)[0]
    for words, measured in zip(layouts, real, strict=True):
        memory = dry_run(config_of(words), 2, memory=MEMORY).memory
        assert memory.peak.total == pytest.approx(measured["peak"], rel=0.03), words
        assert memory.rest.total == pytest.approx(measured["rest"], rel=0.01), words


def test_parts_of_a_tensor_are_those_that_torch_cuts() -> None:
    whole = torch.arange(21.0).view(7, 3)
    for count in (1, 2, 3, 7, 10):
        for rank, part in enumerate(_chunk_with_empty(whole, count, dim=0)):
            assert torch.equal(Parts(whole, count, dim=0)[rank], part)


def test_repetitions_recompute_and_ranks_change_what_they_should() -> None:
    def parts(*settings: str, ranks: int = 2) -> dict[str, int]:
        found = dry_run(config_of((*MIDDLING, *settings)), ranks, memory=MEMORY).memory.peak.parts
        return {kind: sum(size for (_, other), size in found.items() if other == kind) for _, kind in found}

    plain, deep = parts(), parts("model.generator.repetitions=4")
    assert deep["activations"] > 1.5 * plain["activations"]
    again = parts("model.generator.repetitions=4", "parallel.recompute=full")
    assert again["activations"] < deep["activations"] / 2
    assert parts(ranks=4)["optimizer"] < 0.6 * plain["optimizer"]


def test_a_process_group_is_there_only_while_it_runs_and_bad_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match="not divisible"):
        dry_run(config_of(SMALL_AFM), 7)
    assert not dist.is_initialized()


def test_the_command_prints_a_table_and_json_and_refuses_what_it_does_not_know(capsys: Any) -> None:
    from afm_scale.__main__ import main

    words = ["plan", *MIDDLING, "--ranks", "2"]
    assert main([*words, "--price-per-hour", "2"]) == 0
    table = capsys.readouterr().out
    assert table.startswith("ESTIMATE") and "fits:" in table and "GPU hours" in table and "cost" in table
    assert main([*words, "--json", "--gpu", "{memory: 0.001, tflops: 1, bandwidth: 1}"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["fits"] is False and answer["phases"][0]["seconds_per_step"][0] > 0
    for wrong in (["--gpu", "h99"], ["--gpu", "{memory: 80}"], ["--nodes", "3"], ["--gpu", "{memory: -1, tflops: 1}"]):
        assert main([*words, *wrong]) == 2
        assert "--" in capsys.readouterr().err
