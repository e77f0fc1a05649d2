"""What a configuration comes to on so many ranks: asked without a process group, told by a plan and by a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE
from afm_scale.parallel.describe import describe, in_one_line
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.run.networks import build_networks

GIB = 2**30
CPU = torch.device("cpu")


def described(*overrides: str, ranks: int = 8, memory: int = 80 * GIB, recipe: str = "afm_deep112") -> dict[str, Any]:
    config = load(RunConfig, recipe, overrides)
    networks = {role.value: network for role, network in build_networks(config).items()}
    return describe(config.parallel, networks, ranks, device=CPU, memory=memory)


def test_auto_is_decided_for_each_network_and_what_it_sends_follows() -> None:
    found = described("parallel.fsdp2.policy=auto", memory=4 * GIB)
    generator, discriminator = found["networks"]["generator"], found["networks"]["discriminator"]
    assert (generator["policy"], discriminator["policy"]) == ("zero2", "full")  # of repeated blocks; of 28, used once
    assert (generator["repetitions"], generator["gathers_forward"], generator["gathers_backward"]) == (4, 29, 0)
    assert (discriminator["gathers_forward"], discriminator["gathers_backward"]) == (29, 28)
    assert generator["reduce_scatters"] == discriminator["reduce_scatters"] == 29
    assert described("parallel.fsdp2.policy=auto")["networks"]["discriminator"]["policy"] == "zero2"


def test_arithmetic_and_compilation_are_those_that_training_would_take() -> None:
    found = described("parallel.precision=bf16", "parallel.compile=true", "parallel.recompute=full")
    assert (found["dtype"], found["block_dtype"], found["compile"]) == ("float32", "bfloat16", True)
    assert found["recompute"] == "full" and set(found["operations"].values()) == {"torch"}
    assert not described()["compile"]  # not on a CPU


def test_ranks_that_share_samples_are_counted_once() -> None:
    found = described("parallel.plan=megatron", "parallel.megatron.tensor=4")
    assert (found["ranks"], found["data_ranks"]) == (8, 2)
    assert found["networks"]["generator"]["sums_forward"] == 2 * 28 * 4


@pytest.mark.parametrize("plan", ["ddp", "fsdp2", "deepspeed", "megatron"])
def test_every_plan_is_described_in_plain_values_and_in_one_line(plan: str) -> None:
    found = described(f"parallel.plan={plan}")
    assert json.loads(json.dumps(found)) == found
    assert f"plan {plan} on 8 cpu rank(s)" in in_one_line(found) and "\n" not in in_one_line(found)


def test_operations_that_this_machine_does_not_have_are_named_as_such() -> None:
    assert described("parallel.ops=apex")["operations"] == {"all": "apex (not here)"}


def test_a_run_says_what_auto_became(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = (
        "mixture1d_afm", "loop.steps=1", "parallel.device=cpu", "parallel.plan=fsdp2", "parallel.fsdp2.policy=auto",
        "data.global_batch=8", "report=null", "hooks.samples=null", "hooks.metrics.tensorboard=false",
        "run.folder=here",
    )
    assert main(["train", *settings]) == EXIT_DONE
    assert "plan fsdp2 on 1 cpu rank(s) (generator zero2, discriminator zero2)" in capsys.readouterr().err
    start = json.loads((tmp_path / "here" / "events.jsonl").read_text().splitlines()[0])
    assert start["plan"]["networks"]["generator"]["policy"] == "zero2"
