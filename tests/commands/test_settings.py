"""`settings` prints what a recipe may say, by the key, the section or the last word."""

from __future__ import annotations

import pytest

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["settings", *words]) == EXIT_DONE
    return capsys.readouterr().out


def test_a_setting_is_shown_with_type_range_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "objective.penalty.share").splitlines() == [
        "objective.penalty.share",
        "  kinds    afm",
        "  type     number",
        "  range    above 0, at most 1",
        "  default  0.25",
        "  meaning  of the global batch, at least one sample",
    ]


def test_a_comment_above_a_setting_is_its_meaning_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert "  meaning  samples per turn (one update of one player)" in printed(capsys, "data.global_batch")


def test_the_last_word_finds_every_setting_that_ends_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    keys = [line for line in printed(capsys, "decay").splitlines() if line and not line.startswith(" ")]
    assert keys == ["objective.gradient_scale.decay", "objective.target.decay", "average.decay"]


def test_a_section_is_shown_with_what_is_inside(capsys: pytest.CaptureFixture[str]) -> None:
    keys = [line for line in printed(capsys, "parallel.fsdp2").splitlines() if line and not line.startswith(" ")]
    assert keys == ["parallel.fsdp2", "parallel.fsdp2.policy", "parallel.fsdp2.replicas"]


def test_inside_of_a_schedule_a_key_can_be_looked_up_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert "  range    above 0" in printed(capsys, "optimizer.generator.learning_rate.steps")


def test_without_a_key_every_setting_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys).splitlines()
    assert "loop.seed: whole number; from 0 to 2^63 - 1; default 0" in lines
    kinds = "webdataset, dali, images_to_latents"
    assert f"data.size ({kinds}): whole number or null; from 1 to 16_384; default null" in lines


def test_an_unknown_one_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "optimiser.generator.betas"]) == EXIT_USER_ERROR
    told = capsys.readouterr().err
    assert "no setting 'optimiser.generator.betas'; did you mean 'optimizer.generator.betas'?" in told
