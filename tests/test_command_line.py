"""The program as a person meets it: what it says to bad input, what `sample` writes, how a diverging run ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afm_scale.__main__ import main
from afm_scale.checkpoint.manifest import newest_complete, read_manifest
from afm_scale.checkpoint.tensors import digest, read_tensors
from afm_scale.core.errors import EXIT_DONE, EXIT_FAILURE, EXIT_USER_ERROR
from afm_scale.sampling.order import npz_order

from .program import ROOT, SMALL_AFM, run

TRAIN_FOUR = ("loop.steps=4", "checkpoint.every_steps=2", "parallel.device=cpu")

Told = Callable[..., str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, with checkpoints of steps 2 and 4. Tests that write copy it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *SMALL_AFM, *TRAIN_FOUR, f"run.folder={folder}"]) == EXIT_DONE
    return folder


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """The same run, to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "own"))


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Told:
    """Runs a command that a user's mistake must end, and returns the one line it is told in."""

    def told(*arguments: str | Path) -> str:
        capfd.readouterr()
        code = main([*map(str, arguments)])
        return the_error(code, capfd.readouterr().err)

    return told


def the_error(code: int, stderr: str, wanted: int = EXIT_USER_ERROR) -> str:
    assert code == wanted, stderr
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error:")]
    return line


GUIDANCE = "objective.guidance={kind: flow, weight: 0.1, low: 0.0, high: 1.0}"
CLASSIFIER = "model.classifier={kind: dit, patch_size: 2, hidden_size: 16, depth: 1, num_heads: 2, weights: null}"


@pytest.mark.parametrize(("arguments", "words"), [
    (["digits_afm", "loop.step=3"], ["loop.step", "unknown key", "'steps'"]),
    (["digits_afm", "loop.steps=many"], ["loop.steps", "'many'", "whole number"]),
    (["digits_afm", "loop.steps"], ["'loop.steps'", "section.key=value"]),
    (["digits_afm", "parallel.plan=fsdp"], ["parallel.plan", "'fsdp'", "'fsdp2'"]),
    (["digits_afm", "data.global_batch=7", "loop.accumulation=2"], ["global_batch 7", "accumulation 2", "6 or 8"]),
    (["digits_afm", "data.global_batch=0"], ["data.global_batch: found 0", "from 1 to"]),
    (["digits_affm"], ["digits_affm", "digits_afm"]),
    (["digits_afm", GUIDANCE], ["objective.guidance", "model.classifier"]),
    (["digits_afm", GUIDANCE, CLASSIFIER], ["set model.classifier.weights to a safetensors file"]),
    (["digits_afm", GUIDANCE, CLASSIFIER, "model.classifier.weights=absent.safetensors"], ["absent.safetensors"]),
    (["digits_afm", "model.discriminator=null"], ["model.discriminator", "optimizer.discriminator"]),
    (["digits_afm", "model.generator.num_heads=7"], ["hidden_size", "num_heads 7"]),
    (["digits_afm", "objective.times={kind: any}"], ["model.generator.times"]),
    (["digits_flow_matching", "model.generator.times=none"], ["model.generator.times"]),
    (["digits_afm", "run.resume_from=absent"], ["absent"]),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_a_mistake_in_a_recipe_is_told_in_one_line(
    told: Told, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    line = told("train", *arguments, f"run.folder={tmp_path / 'run'}", "parallel.device=cpu")
    assert [word for word in words if word not in line] == []


def test_a_folder_that_cannot_be_made_is_told(told: Told, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    line = told("train", *SMALL_AFM, f"run.folder={tmp_path / 'file' / 'run'}", "parallel.device=cpu")
    assert str(tmp_path / "file" / "run") in line and "choose another folder" in line


def test_a_checkpoint_of_another_model_is_told_and_left_alone(told: Told, own: Path) -> None:
    before = digest(own / "checkpoints" / "step_00000004")
    wider = "model.generator.hidden_size=32"
    line = told("train", *SMALL_AFM, *TRAIN_FOUR, wider, "run.accept_changes=[model]", f"run.folder={own}")
    assert "step_00000004" in line and "[16]" in line and "[32]" in line and "run.folder" in line
    assert digest(own / "checkpoints" / "step_00000004") == before

    line = told("train", *SMALL_AFM, *TRAIN_FOUR, wider, f"run.folder={own}-2", f"run.initialise_from={own}")
    assert "another model" in line and "run.initialise_from" in line


def test_a_torn_checkpoint_is_told_when_it_is_named_and_passed_over_when_it_is_not(
    told: Told, own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = own / "checkpoints" / "step_00000004"
    data = newest / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-1])
    line = told("sample", newest, "--out", tmp_path / "images", "--num", "1")
    assert "torn" in line and "__0_0.distcp" in line

    assert main(["train", *SMALL_AFM, *TRAIN_FOUR, f"run.folder={own}"]) == EXIT_DONE
    stderr = capfd.readouterr().err
    assert "resumed at step 2" in stderr and "step_00000004" in stderr and "torn" in stderr
    assert read_manifest(newest).step == 4


@pytest.mark.parametrize(("arguments", "words"), [
    (["--num", "0"], ["--num: found 0, wanted"]),
    (["--num", "1", "--labels", "3,10"], ["--labels", "class 10", "0 to 9"]),
    (["--num", "1", "--grid", "{file}/x/grid.png"], ["{file}"]),
    (["--num", "1", "--vae", "vae"], ["--vae vae", "pixels"]),
    (["--num", "1", "--latents", "--npz", "all.npz"], ["--latents", "--npz"]),
])
def test_a_mistake_in_a_sample_command_is_told(
    told: Told, trained: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    line = told("sample", trained, "--out", tmp_path / "images", *(text.format(file=file) for text in arguments))
    assert all(word.format(file=file) in line for word in words)


def test_what_is_no_checkpoint_cannot_be_sampled(told: Told, tmp_path: Path) -> None:
    assert str(tmp_path) in told("sample", tmp_path, "--out", tmp_path / "images", "--num", "1")


@pytest.mark.parametrize(("words", "near"), [
    (["trian", "digits_afm"], "'train'"), (["make_shard"], "'make_shards'"), (["benchmark", "steps"], "'step'"),
    (["xyzzy", "digits_afm"], "train, sample"),
])
def test_an_unknown_command_is_told_with_the_nearest_known(told: Told, words: list[str], near: str) -> None:
    line = told(*words)
    assert "no such command" in line and near in line


WITH_SMALL_FILES_ONLY = """
import resource, sys
from afm_scale.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
sys.exit(main(sys.argv[1:]))
"""

WITH_A_SEED_OF_ITS_OWN = """
import os, sys
from afm_scale.__main__ import main
sys.exit(main([*sys.argv[1:], "loop.seed=" + os.environ["RANK"]]))
"""


def test_a_full_disk_while_saving_is_told_and_loses_nothing(own: Path) -> None:
    before = digest(own / "checkpoints" / "step_00000004")
    words = ["train", *SMALL_AFM, *TRAIN_FOUR, "loop.steps=9", f"run.folder={own}"]
    done = subprocess.run(
        [sys.executable, "-c", WITH_SMALL_FILES_ONLY, *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    line = the_error(done.returncode, done.stderr)
    assert "could not be written" in line and "step_00000004" in line and "the same command goes on" in line
    assert newest_complete(own / "checkpoints") == own / "checkpoints" / "step_00000004"
    assert digest(own / "checkpoints" / "step_00000004") == before
    assert not list((own / "checkpoints").glob(".step_*.partial-*"))


@pytest.mark.slow
def test_ranks_that_disagree_on_the_recipe_are_told_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WITH_A_SEED_OF_ITS_OWN)
    words = [
        sys.executable, str(ROOT / "launchers" / "torchrun.py"), "--standalone", "--nproc-per-node=2", str(script),
        "train", *SMALL_AFM, f"run.folder={tmp_path / 'run'}", "parallel.device=cpu",
    ]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    line = the_error(done.returncode, done.stderr)
    assert "seed: 0" in line and "seed: 1" in line
    assert not (tmp_path / "run").exists()


def test_training_that_diverges_ends_with_the_step_and_the_term_and_keeps_the_last_good_checkpoint(
    own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Update 5 (from 0) has a learning rate of 1e30, so the weights of step 6 give the first bad values, in step 7."""
    rates = "optimizer.generator.learning_rate={kind: piecewise, points: [[5, 1e-3], [5, 1e30], [6, 1e30]]}"
    capfd.readouterr()
    code = main([
        "train", *SMALL_AFM, *TRAIN_FOUR, "loop.steps=20", "checkpoint.every_steps=4", rates, f"run.folder={own}"
    ])
    line = the_error(code, capfd.readouterr().err, wanted=EXIT_FAILURE)
    assert "not finite at step 7" in line and "the discriminator's total" in line
    newest = newest_complete(own / "checkpoints")
    assert newest == own / "checkpoints" / "step_00000004"
    assert all(tensor.isfinite().all() for tensor in read_tensors(newest).values())
    events = [json.loads(text) for text in (own / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "divergence"] == [7]
    (failed,) = [event for event in events if event["kind"] == "failed"]
    assert failed["step"] in (7, 8) and failed["why"] in line  # found a step later where nobody waits for the device


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


@pytest.fixture(scope="module")
def seventy(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 images, three tiles, with a grid and an npz."""
    folder = tmp_path_factory.mktemp("seventy")
    sheets = ("--grid", folder / "sheets" / "grid.png", "--npz", folder / "sheets" / "all.npz")
    arguments = ("sample", trained, "--out", folder / "images", "--num", "70", "--seed", "5", *sheets)
    assert main([*map(str, arguments)]) == EXIT_DONE
    return folder


def test_an_image_depends_on_checkpoint_seed_and_index_alone(trained: Path, seventy: Path, tmp_path: Path) -> None:
    images = pictures(seventy / "images")
    assert list(images) == [f"{index:06d}.png" for index in range(70)]
    assert len(set(images.values())) == 70

    for num, batch_size in ((5, 256), (70, 1), (33, 64)):
        out = tmp_path / f"{num}_{batch_size}"
        arguments = ("sample", trained, "--out", out, "--num", num, "--seed", "5", "--batch-size", batch_size)
        assert main([*map(str, arguments)]) == EXIT_DONE
        assert pictures(out) == dict(list(images.items())[:num])

    main([*map(str, ("sample", trained, "--out", tmp_path / "other", "--num", 5, "--seed", 6))])
    assert not set(pictures(tmp_path / "other").values()) & set(images.values())


@pytest.mark.slow
def test_two_ranks_draw_the_images_of_one(trained: Path, seventy: Path, tmp_path: Path) -> None:
    sheets = ("--grid", tmp_path / "grid.png", "--npz", tmp_path / "all.npz")
    code, _, stderr = run(
        "sample", trained, "--out", tmp_path / "images", "--num", "70", "--seed", "5", *sheets, ranks=2
    )
    assert code == EXIT_DONE, stderr
    assert pictures(tmp_path / "images") == pictures(seventy / "images")
    assert (tmp_path / "grid.png").read_bytes() == (seventy / "sheets" / "grid.png").read_bytes()
    with np.load(tmp_path / "all.npz") as found, np.load(seventy / "sheets" / "all.npz") as wanted:
        assert all(np.array_equal(found[name], wanted[name]) for name in ("arr_0", "labels"))


def test_an_npz_holds_the_images_and_labels_shuffled(seventy: Path) -> None:
    files = sorted((seventy / "images").glob("*.png"))
    images = np.stack([np.asarray(Image.open(file)) for file in files])  # [70, 8, 8]
    with np.load(seventy / "sheets" / "all.npz") as arrays:
        found, labels = arrays["arr_0"], arrays["labels"]
    assert found.dtype == np.uint8 and labels.dtype == np.int64
    order = npz_order(70).numpy()
    assert np.array_equal(found, images[order][..., None])
    assert np.array_equal(labels, order % 10)
    assert not np.array_equal(order, np.arange(70))


def test_a_grid_has_a_row_for_each_class(seventy: Path) -> None:
    files = sorted((seventy / "images").glob("*.png"))
    grid = np.asarray(Image.open(seventy / "sheets" / "grid.png").convert("L"))
    assert grid.shape == (2 + 10 * 66, 2 + 7 * 66 + 11)  # ten rows of seven, numbers at the left
    for index, file in enumerate(files):
        column, row = divmod(index, 10)  # classes come in turn
        enlarged = np.kron(np.asarray(Image.open(file)), np.ones((8, 8), dtype=np.uint8))
        left = grid.shape[1] - 7 * 66 + column * 66
        assert np.array_equal(grid[2 + row * 66 : 66 + row * 66, left : left + 64], enlarged), f"image {index}"


def test_random_labels_depend_on_seed_and_number_alone(trained: Path, tmp_path: Path) -> None:
    """The second run asks for fewer images, with another batch size."""
    for name, num in (("a", 70), ("b", 40)):
        sheets = ("--npz", tmp_path / f"{name}.npz", "--grid", tmp_path / f"{name}.png")
        words = ("sample", trained, "--out", tmp_path / name, "--num", num, "--labels", "random", "--batch-size", num)
        assert main([*map(str, (*words, *sheets))]) == EXIT_DONE
    long, short = pictures(tmp_path / "a"), pictures(tmp_path / "b")
    assert short == dict(list(long.items())[:40])
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        labels, first = (arrays["labels"][npz_order(num).argsort().numpy()] for arrays, num in ((a, 70), (b, 40)))
    assert np.array_equal(labels[:40], first)
    assert set(labels) <= set(range(10)) and labels.tolist() != [index % 10 for index in range(70)]


def test_the_output_says_how_labels_were_chosen(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, (labels, told) in enumerate([
        ([], "class-balanced (worth about 0.1 FID against random labels)"), (["--labels", "random"], "random"),
        (["--labels", "3,1"], "3, 1 in turn"),
    ]):
        capfd.readouterr()
        words = ("sample", trained, "--out", tmp_path / str(number), "--num", 1, *labels)
        assert main([*map(str, words)]) == EXIT_DONE
        assert f"labels: {told}" in capfd.readouterr().out


def test_samples_that_are_not_finite_are_no_pictures(
    own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The weights of a run whose learning rate was absurd: finite, but not what they give."""
    rates = "optimizer.generator.learning_rate=1e30"
    words = ["train", *SMALL_AFM, "loop.steps=1", "average.decay=0", rates, f"run.folder={tmp_path / 'run'}"]
    assert main([*words, "parallel.device=cpu"]) == EXIT_DONE
    capfd.readouterr()
    code = main([*map(str, ("sample", tmp_path / "run", "--out", tmp_path / "images", "--num", 40))])
    assert "sample 0 is not of finite numbers" in the_error(code, capfd.readouterr().err, wanted=EXIT_FAILURE)
    assert pictures(tmp_path / "images") == {}


LONG = "x" * 5_000


@pytest.mark.parametrize("arguments", [
    ["show", LONG], ["show", f"a/{LONG}.yaml"], ["show", "digits_afm", f"run.folder={LONG}"],
    ["show", "digits_afm", 'run.folder="a\\0b"'], ["show", "digits_afm", f"loop.steps={LONG}"],
    ["show", "digits_afm", f"{LONG}=1"], ["sample", LONG, "--out", "images", "--num", "1"],
    ["sample", "absent", "--out", LONG, "--num", "1"], ["evaluate", LONG, "--reference", "r.npz"],
    ["inspect_checkpoint", LONG], ["doctor", "--data", LONG], ["settings", LONG],
    ["make_shards", LONG, "out"], ["encode_latents", "in", LONG, "--vae", "v"], ["show", "inherits.yaml"],
], ids=lambda arguments: " ".join(word if len(word) < 50 else "LONG" for word in arguments))
def test_a_name_that_no_file_can_have_is_one_short_message(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inherits.yaml").write_text('inherit: "a\\0b"\n')
    assert main(arguments) == EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and len(line) < 700
    assert list(tmp_path.iterdir()) == [tmp_path / "inherits.yaml"]
