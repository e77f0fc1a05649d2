"""What is chosen with and without a GPU, Triton and apex, and why."""

from __future__ import annotations

import json

import pytest
import torch

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, ConfigError
from afm_scale.ops.choice import Found, apex_problem, choose, probe, triton_problem
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.launch import launch

BARE_GPU = Found(device_type="cuda", triton="Triton is not installed", apex="NVIDIA apex is not installed")
GPU = Found(device_type="cuda", triton="", apex="NVIDIA apex is not installed")
GPU_WITH_APEX = Found(device_type="cuda", triton="", apex="")
CPU = Found(device_type="cpu", triton="Triton needs a GPU", apex="NVIDIA apex needs a GPU")
INTERPRETED = Found(device_type="cpu", triton="", apex="NVIDIA apex needs a GPU", interpreted=True)
PIECES = ("modulated_norm", "gated_residual", "adamw", "average")


def works() -> None:
    pass


def fails() -> None:
    raise ImportError("undefined symbol\nand much more")


@pytest.mark.parametrize(("setting", "found", "chosen"), [
    ("auto", CPU, ("torch", "torch", "torch", "torch")),
    ("auto", BARE_GPU, ("torch", "torch", "torch", "torch")),
    ("auto", GPU, ("triton", "triton", "torch", "torch")),
    ("auto", GPU_WITH_APEX, ("triton", "triton", "apex", "apex")),
    ("auto", INTERPRETED, ("torch", "torch", "torch", "torch")),
    ("torch", GPU_WITH_APEX, ("torch", "torch", "torch", "torch")),
    ("triton", GPU_WITH_APEX, ("triton", "triton", "torch", "torch")),
    ("triton", INTERPRETED, ("triton", "triton", "torch", "torch")),
    ("apex", GPU_WITH_APEX, ("torch", "torch", "apex", "apex")),
])
def test_each_piece_is_the_preferred_one_of_those_that_work(setting: str, found: Found, chosen: tuple) -> None:
    choice = choose(setting, found)
    assert tuple(getattr(choice, piece).implementation for piece in PIECES) == chosen
    assert tuple(choice.described()) == PIECES


def test_the_reason_is_told() -> None:
    told = choose("auto", GPU).described()
    assert told["modulated_norm"] == "triton: preferred, and works here"
    assert told["adamw"] == "torch: NVIDIA apex is not installed (of torch's the fused kernel)"
    assert choose("auto", CPU).described()["adamw"].endswith("(of torch's the foreach kernel)")
    assert "TRITON_INTERPRET" in choose("auto", INTERPRETED).described()["gated_residual"]
    assert choose("triton", GPU_WITH_APEX).described()["average"] == (
        "torch: parallel.ops is 'triton', which has no such piece"
    )


@pytest.mark.parametrize(("setting", "found", "reason"), [
    ("triton", CPU, "Triton needs a GPU"), ("triton", BARE_GPU, "not installed"), ("apex", GPU, "not installed"),
])
def test_what_does_not_work_cannot_be_asked_for(setting: str, found: Found, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"parallel.ops is '{setting}', but .*{reason}.*set parallel.ops=auto"):
        choose(setting, found)


def test_triton_works_on_a_gpu_or_interpreted_where_a_trial_does() -> None:
    assert triton_problem("cuda", installed=True, interpreted=False, trial=works) == ""
    assert triton_problem("cpu", installed=True, interpreted=True, trial=works) == ""
    assert "needs a GPU" in triton_problem("cpu", installed=True, interpreted=False, trial=works)
    assert "not installed" in triton_problem("cuda", installed=False, interpreted=False, trial=works)
    assert triton_problem("cuda", installed=True, interpreted=False, trial=fails) == (
        "Triton is installed but does not work here (ImportError: undefined symbol)"
    )


def test_apex_works_on_a_gpu_where_a_trial_does() -> None:
    assert apex_problem("cuda", installed=True, trial=works) == ""
    assert "needs a GPU" in apex_problem("cpu", installed=True, trial=works)
    assert "not installed" in apex_problem("cuda", installed=False, trial=works)
    assert "does not work here" in apex_problem("cuda", installed=True, trial=fails)


def test_nothing_but_torch_works_on_a_cpu(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = probe(torch.device("cpu"))
    assert "needs a GPU" in found.triton
    assert "needs a GPU" in found.apex


def test_a_launch_refuses_what_does_not_work(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="parallel.ops is 'triton', but Triton needs a GPU"):
        launch(ParallelConfig(plan="ddp", device="cpu", ops="triton"))
    with launch(ParallelConfig(plan="ddp", device="cpu", ops="torch")):
        pass


def test_doctor_tells_what_auto_means_here(capsys) -> None:
    assert main(["doctor", "--json"]) == EXIT_DONE
    told = json.loads(capsys.readouterr().out)["used here"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for piece, how in choose("auto", probe(device)).described().items():
        assert told[f"operation {piece}"] == how
