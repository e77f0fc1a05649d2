"""`show` prints what training would use, refuses what training would refuse, and says what was left open."""

from __future__ import annotations

import pytest
import torch
import yaml

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR
from afm_scale.run.config import RunConfig
from afm_scale.run.left_open import left_open
from afm_scale.run.load import load

NO_GPU = "parallel.device=cpu"


def lines_of(name: str, *overrides: str, ranks: int = 1) -> dict[str, str]:
    return left_open(load(RunConfig, name, [NO_GPU, *overrides]), ranks)


def test_the_last_lines_say_what_was_left_open_and_yaml_passes_over_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "parallel.fsdp2.policy=auto", "digits_afm", "--ranks", "4", NO_GPU]) == EXIT_DONE
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["parallel"]["fsdp2"]["policy"] == "auto"
    comments = [line for line in shown.splitlines() if line.startswith("#")]
    assert comments[0] == "# On 4 rank(s), on this machine:" and shown.splitlines()[-len(comments):] == comments
    assert "#   microbatch: 32 samples (128 over 4 x 1)" in comments
    assert any(line.startswith("#   parallel.plan fsdp2, generator: policy zero2, ") for line in comments)


@pytest.mark.parametrize(("words", "message"), [
    (["--ranks", "3"], "data.global_batch 128 is not divisible by ranks 3"),
    (["parallel.fsdp2.replicas=2"], "parallel.fsdp2.replicas 2 does not divide the 1 rank(s)"),
    (["--ranks", "0"], "--ranks: found 0, wanted a whole number from 1"),
    (["model.discriminator=null"], "model.discriminator"),
])
def test_what_training_would_refuse_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "digits_afm", *words]) == EXIT_USER_ERROR
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and message in output.err and output.out == ""


def test_the_precise_call_follows_the_precision_unless_it_is_said() -> None:
    name = "objective.penalty.precise"
    assert lines_of("afm_1step_xl2")[name] == "false"
    assert lines_of("afm_1step_xl2", "parallel.precision=bf16")[name] == "true"
    assert name not in lines_of("afm_1step_xl2", "objective.penalty.precise=true")


def test_a_network_is_gathered_by_its_size_and_its_repetitions() -> None:
    name, asks = "parallel.plan fsdp2, generator", ("parallel.fsdp2.policy=auto",)
    assert lines_of("digits_afm", *asks)[name].startswith("policy zero2, ")
    crowded = lines_of("afm_1step_xl2", *asks, "data.global_batch=4096", ranks=4096)  # that share this host's memory
    assert crowded[name].startswith("policy full, ")
    deep = lines_of("afm_deep112", *asks, "data.global_batch=4096", ranks=4096)
    assert deep[name].startswith("policy zero2, ")
    assert lines_of("digits_afm", "parallel.fsdp2.policy=full")[name].startswith("policy full, ")
    assert not any("policy" in value for value in lines_of("digits_afm", "parallel.plan=ddp").values())


def test_a_recipe_for_a_gpu_can_be_shown_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = lines_of("afm_1step_xl2", "parallel.device=cuda", "parallel.ops=triton")
    assert (found["parallel.device"], found["parallel.compile"]) == ("cuda", "true")
    assert "GPU" in found["parallel.ops"]
    without = lines_of("afm_1step_xl2", "parallel.ops=apex")
    assert without["parallel.compile"] == "false" and without["parallel.ops"].startswith("not on this machine: ")
    gathered_by_layers = ("parallel.device=cuda", "parallel.plan=deepspeed", "parallel.deepspeed.stage=3")
    assert lines_of("afm_1step_xl2", *gathered_by_layers)["parallel.compile"] == "false"
