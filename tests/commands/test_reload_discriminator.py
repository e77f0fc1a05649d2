"""An earlier discriminator of a stopped run comes back by hand, and the next train goes on from it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from afm_scale.checkpoint.manifest import folder_name, read_manifest, resolve_checkpoint
from afm_scale.checkpoint.tensors import digest
from afm_scale.commands.ending import run
from afm_scale.core.errors import EXIT_USER_ERROR
from afm_scale.core.holding import hold
from afm_scale.core.run_folder import RunFolder
from tests.program import SMALL_AFM, end, start

SETTINGS = (
    *SMALL_AFM, "data.part=train", "parallel.device=cpu", "checkpoint.every_steps=4",
    "hooks.evaluation={kind: digits, every_steps: 100, num_samples: 100}", "pilot.ring={every_steps: 2, keep: 4}",
)


def train(folder: Path, steps: int, *settings: str) -> int:
    return run(["train", *SETTINGS, f"run.folder={folder}", f"loop.steps={steps}", *settings])


def tool(*words: str | Path) -> int:
    return run(["reload_discriminator", *map(str, words)])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train(folder, 8) == 0
    return folder


@pytest.fixture
def trained(original: Path, tmp_path: Path) -> Path:
    """A run that stopped at step 8, and has been moved since."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def discriminator(folder: Path) -> tuple[str, str]:
    newest = resolve_checkpoint(folder)
    return digest(newest, "discriminator."), digest(newest, "optimizer.discriminator.")


def kept(folder: Path, step: int) -> tuple[str, str]:
    path = RunFolder(folder).discriminators / folder_name(step)
    return digest(path, "discriminator."), digest(path, "optimizer.discriminator.")


def events(folder: Path) -> list[tuple]:
    return [
        (event["kind"], event["step"], event.get("to"), event.get("why"))
        for event in RunFolder(folder).read_events() if event["kind"] in ("act", "trial")
    ]


def test_the_list_says_steps_ages_and_bytes(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert tool(trained, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("step_00000008")
    assert [line.split()[:2] for line in lines[2:]] == [["2", "6"], ["4", "4"], ["6", "2"]]
    assert all(int(line.split()[2].replace(",", "")) > 10_000 for line in lines[2:])


def test_a_step_comes_back_nothing_else_changes_and_train_goes_on_from_it(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = digest(resolve_checkpoint(trained), "generator.")
    before = read_manifest(resolve_checkpoint(trained)).scalars
    assert tool(trained, "--to", "4") == 0
    assert "the discriminator is that of step 4; train goes on from" in capsys.readouterr().out
    assert discriminator(trained) == kept(trained, 4) != kept(trained, 6)
    assert digest(resolve_checkpoint(trained), "generator.") == generator
    after = read_manifest(resolve_checkpoint(trained)).scalars
    assert after["pilot"].pop("reloads") == [{"step": 8, "to": 4}]
    assert before["pilot"].pop("reloads") == [] and after == before
    assert events(trained) == [("act", 8, 4, "by hand")]
    assert not (trained / ".held").exists()
    assert train(trained, 12) == 0
    assert f"resumed at step 8 from {trained}" in capsys.readouterr().err
    memory = read_manifest(resolve_checkpoint(trained)).scalars["pilot"]
    assert 8 not in memory["ring"] and memory["ring"][-1] == 10  # at step 8 it was not of step 8


def test_a_trial_by_hand_writes_what_it_found(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest(resolve_checkpoint(trained))
    assert tool(trained, "--trial", "--candidates", "2", "--updates", "1") == 0
    told = capsys.readouterr().out
    assert len(re.findall(r"^ +(present|2|6)  .* per update$", told, re.MULTILINE)) == 3
    (trial, *act) = events(trained)
    assert trial == ("trial", 8, None, "by hand")
    if act:
        assert discriminator(trained) == kept(trained, act[0][2])
    else:
        assert "the present discriminator stays; nothing was changed" in told
        assert digest(resolve_checkpoint(trained)) == before


def test_what_cannot_be_is_one_message_and_exit_code_2(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (digest(resolve_checkpoint(trained)), events(trained))
    damaged = RunFolder(trained).discriminators / folder_name(4)
    for file in damaged.glob("*.distcp"):
        file.write_bytes(bytes(file.stat().st_size))
    cases = [
        ((trained, "--to", "3"), "--to 3: the discriminator of that step is not kept; these are: 2, 4, 6"),
        ((trained, "--to", "4"), "step_00000004"),
        ((trained, "--to", "2", "--updates", "3"), "are of a trial: say --trial"),
        ((trained, "--to", "-1"), "--to: found -1, wanted a whole number"),
        ((trained, "--trial", "--candidates", "5"), "candidates=5 are more than pilot.ring.keep=4"),
        ((trained / "samples", "--list"), "it is not the folder of a run"),
    ]
    for words, message in cases:
        capsys.readouterr()
        assert tool(*words) == EXIT_USER_ERROR
        told = capsys.readouterr().err
        assert message in told and len(told.splitlines()) == 1, told
    assert (digest(resolve_checkpoint(trained)), events(trained)) == before
    with pytest.raises(SystemExit) as ended:
        tool(trained)
    assert ended.value.code == EXIT_USER_ERROR


def test_a_run_without_a_ring_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, 1, "pilot=null") == 0
    capsys.readouterr()
    assert tool(tmp_path, "--to", "1") == EXIT_USER_ERROR
    assert "keeps no discriminators: its recipe has no pilot.ring" in capsys.readouterr().err


@pytest.mark.processes
@pytest.mark.slow
def test_a_run_that_goes_on_is_left_alone(trained: Path) -> None:
    with hold(trained, ranks=1):
        code, _, told = end(start("reload_discriminator", trained, "--to", "4"))
    assert code == EXIT_USER_ERROR and f"is held by process {os.getpid()}" in told
    assert events(trained) == []


@pytest.mark.processes
@pytest.mark.slow
def test_two_ranks_do_it_together(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = (*SETTINGS, f"run.folder={folder}", "loop.steps=8", "parallel.plan=fsdp2")
    assert end(start("train", *words, ranks=2))[0] == 0
    code, _, told = end(start("reload_discriminator", folder, "--to", "2", ranks=2))
    assert code == 0, told
    assert discriminator(folder) == kept(folder, 2)
    short = ("--trial", "--candidates", "2", "--updates", "1")
    code, told, _ = end(start("reload_discriminator", folder, *short, ranks=2))
    # The present one and that of step 2: a reload has turned away from the later ones.
    assert code == 0 and told.count("per update") == 2
    assert [event[:2] for event in events(folder)][:2] == [("act", 8), ("trial", 8)]
    assert end(start("train", *words, "loop.steps=10", ranks=2))[0] == 0
