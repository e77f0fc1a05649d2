"""Images of one set are drawn into a folder and measured; another set is neither mixed in nor measured with it."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR, DataError, UserError
from afm_scale.evaluation.images.sets import open_images
from afm_scale.evaluation.images.stamp import STAMP_NAME, Stamp, claim_folder, read_stamp
from tests.data.small import encoded, picture
from tests.program import SMALL_AFM

Told = Callable[..., str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ("loop.steps=2", "checkpoint.every_steps=1", "parallel.device=cpu", f"run.folder={folder}")
    assert main(["train", *SMALL_AFM, *words]) == EXIT_DONE
    return folder


def draw(source: Path, out: Path, *words: object, num: int = 3) -> int:
    return main([str(word) for word in ("sample", source, "--out", out, "--num", num, *words)])


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Told:
    """What a command that is refused says, and that it changes nothing under a folder."""

    def told(folder: Path, *arguments: object, **more: int) -> str:
        capfd.readouterr()
        before = contents(folder)
        assert draw(*arguments, **more) == EXIT_USER_ERROR
        assert contents(folder) == before
        return capfd.readouterr().err

    return told


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_set_may_be_drawn_again_and_grow_and_is_measured(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "images"
    assert draw(trained, out, "--seed", 4) == EXIT_DONE
    three = contents(out)
    (out / "000001.png").unlink()  # as if killed on the way
    with pytest.raises(DataError, match="unfinished: 2 of 3 images are there, and 000001.png is not"):
        open_images(out)
    assert draw(trained, out, "--seed", 4) == EXIT_DONE
    assert contents(out) == three and open_images(out).num_images == 3

    moved = shutil.copytree(trained / "checkpoints" / "step_00000002", tmp_path / "moved")
    assert draw(moved, out, "--seed", 4, num=5) == EXIT_DONE  # the same checkpoint, wherever it lies
    stamp = read_stamp(out)
    assert stamp is not None and (stamp.num, stamp.seed, stamp.step, stamp.labels) == (5, 4, 2, "balanced")
    images = open_images(out, limit=2)
    assert images.num_images == 2 and images.describe()["stamp"]["checkpoint"] == stamp.checkpoint


@pytest.mark.parametrize(("words", "why"), [
    (["--seed", "5"], "seed 0 and not 5"), (["--labels", "1,2"], "labels balanced and not 1,2"),
    (["--labels", "random"], "labels"), (["--steps", "2"], "num_steps 1 and not 2"),
])
def test_another_set_is_not_mixed_in(trained: Path, tmp_path: Path, told: Told, words: list[str], why: str) -> None:
    out = tmp_path / "images"
    assert draw(trained, out) == EXIT_DONE
    assert why in told(out, trained, out, *words)
    assert "checkpoint" in told(out, trained / "checkpoints" / "step_00000001", out)
    assert "holds 3 images of this set" in told(out, trained, out, num=2)


def test_images_of_unknown_origin_are_not_drawn_among(trained: Path, tmp_path: Path, told: Told) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.jpg").write_bytes(encoded(picture(1), "JPEG"))
    assert "1 image(s) already" in told(tmp_path, trained, tmp_path)
    assert "among the images" in told(tmp_path, trained, tmp_path / "out", "--grid", tmp_path / "out" / "grid.png")


def test_a_mixture_is_not_measured(trained: Path, tmp_path: Path, told: Told) -> None:
    out = tmp_path / "images"
    assert draw(trained, out) == EXIT_DONE
    shutil.copy(out / "000000.png", out / "000003.png")
    with pytest.raises(DataError, match="1 image.* not of the set of 3 .*000003.png"):
        open_images(out)
    assert "images of another set, such as 000003.png" in told(out, trained, out)
    words = ("evaluate", out, "--features", "pixels", "--write-reference", tmp_path / "x.npz")
    assert main([*map(str, words)]) == EXIT_USER_ERROR


@pytest.mark.parametrize("change", [
    {"num": 10**18}, {"num": 0}, {"num": "3"}, {"seed": 1.5}, {"shape": [1, 8]}, {"more": 1}, None,
])
def test_a_stamp_that_is_wrong_is_refused(tmp_path: Path, change: dict[str, object] | None) -> None:
    (tmp_path / "000000.png").write_bytes(encoded(picture(1)))
    plain = {
        "checkpoint": "0" * 64, "step": 1, "seed": 0, "labels": "balanced", "num_steps": 1, "shape": [3, 8, 8], "num": 1
    }
    (tmp_path / STAMP_NAME).write_text(json.dumps(plain))
    assert open_images(tmp_path).num_images == 1
    (tmp_path / STAMP_NAME).write_text(json.dumps(None if change is None else {**plain, **change}))
    with pytest.raises(DataError, match=f"{STAMP_NAME} is damaged|unfinished"):
        open_images(tmp_path)
    (tmp_path / STAMP_NAME).unlink()
    os.mkfifo(tmp_path / STAMP_NAME)
    with pytest.raises(DataError, match="pipe"):
        open_images(tmp_path)


def test_an_npz_is_replaced_by_the_same_set_alone(trained: Path, tmp_path: Path, told: Told) -> None:
    npz = tmp_path / "all.npz"
    assert draw(trained, tmp_path / "a", "--npz", npz) == EXIT_DONE
    assert draw(trained, tmp_path / "b", "--npz", npz, num=4) == EXIT_DONE
    assert open_images(npz).num_images == 4
    assert "seed 0 and not 1" in told(tmp_path, trained, tmp_path / "c", "--npz", npz, "--seed", 1)
    with np.load(npz) as arrays:
        kept = dict(arrays)
    np.savez(npz, **{**kept, "arr_0": kept["arr_0"][:3], "labels": kept["labels"][:3]})
    with pytest.raises(DataError, match="3 images where its stamp says 4"):
        open_images(npz)
    np.savez(npz, arr_0=kept["arr_0"])
    assert open_images(npz).num_images == 4
    assert "does not say what it holds" in told(tmp_path, trained, tmp_path / "c", "--npz", npz)


def test_of_two_sets_that_are_drawn_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    stamps = [
        Stamp(checkpoint="0" * 64, step=1, seed=seed, labels="random", num_steps=1, shape=(1, 8, 8), num=1)
        for seed in range(6)
    ]
    gate = threading.Barrier(len(stamps))

    def claim(stamp: Stamp) -> bool:
        gate.wait()
        try:
            claim_folder(tmp_path, stamp, ())
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(len(stamps)) as pool:
        (winner,) = [stamp for stamp, won in zip(stamps, pool.map(claim, stamps), strict=True) if won]
    assert read_stamp(tmp_path) == winner
