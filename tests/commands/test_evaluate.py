"""`evaluate`: known distances between sets of images, a checkpoint measured without being written, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from afm_scale.__main__ import main
from afm_scale.commands.evaluate import features_of
from afm_scale.core.errors import EXIT_DONE, EXIT_FAILURE, EXIT_USER_ERROR, ConfigError
from afm_scale.evaluation.features.extractor import InceptionConfig, PixelFeatures, PixelsConfig, TorchScriptConfig
from afm_scale.evaluation.reference import Reference, read_reference, write_reference
from afm_scale.evaluation.running import Gaussian
from tests.evaluation.rank_figures import errors_of_ranks, figures_of_ranks
from tests.models.small_autoencoder import saved_autoencoder
from tests.program import QUIET, SMALL_AFM, SMALL_FLOW_MATCHING, run
from tests.ranks import run_ranks

PIXELS = ("--features", "pixels", "--device", "cpu")
Evaluated = Callable[..., Mapping[str, Any]]


def write_npz(path: Path, count: int = 60, *, seed: int = 0, size: int = 4, channels: int = 1, shift: int = 0) -> Path:
    """Random images, all at least 50 from either end of the range but for the shift."""
    images = np.random.default_rng(seed).integers(50, 200, (count, size, size, channels), dtype=np.uint8)
    np.savez(path, arr_0=images + np.uint8(shift))
    return path


@pytest.fixture
def evaluated(capfd: pytest.CaptureFixture[str]) -> Evaluated:
    """Runs the command with pixel features and returns its JSON."""

    def evaluated(*words: object) -> Mapping[str, Any]:
        capfd.readouterr()
        code = main(["evaluate", *map(str, words), *PIXELS, "--json"])
        out, err = capfd.readouterr()
        assert code == EXIT_DONE, err
        return json.loads(out)

    return evaluated


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, which a mistake must end, and returns the one line it is told in."""

    def told(*words: object, code: int = EXIT_USER_ERROR) -> str:
        capfd.readouterr()
        found = main(["evaluate", *map(str, words)])
        stderr = capfd.readouterr().err
        assert found == code and "Traceback" not in stderr, stderr
        (line,) = [line for line in stderr.splitlines() if line.startswith("error:")]
        return line

    return told


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its samples are nearly noise: pictures with something in every pixel."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ["train", *SMALL_FLOW_MATCHING, "loop.steps=2", "sampling.num_steps=2", "parallel.device=cpu"]
    assert main([*words, "report={kind: digits}", f"run.folder={folder}"]) == EXIT_DONE
    return folder


def numbers(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures that the features allow."""
    return {name: value for name, value in report["figures"].items() if value is not None}


def test_a_set_is_at_distance_0_from_its_own_statistics(evaluated: Evaluated, tmp_path: Path) -> None:
    images, stored = write_npz(tmp_path / "images.npz"), tmp_path / "new" / "stored.npz"
    report = evaluated(images, "--write-reference", stored)
    assert (report["figures"], report["reference"], report["written"]) == ({}, None, str(stored))
    figures = evaluated(images, "--reference", stored)["figures"]
    assert abs(figures["frechet_distance"]) < 1e-9
    assert (figures["precision"], figures["recall"]) == (1, 1)
    assert figures["inception_score"] is None
    assert evaluated(images, "--reference", images)["figures"] == figures


def test_a_shift_by_a_constant_gives_its_squared_length(evaluated: Evaluated, tmp_path: Path) -> None:
    first, second = write_npz(tmp_path / "a.npz"), write_npz(tmp_path / "b.npz", shift=20)
    report = evaluated(second, "--reference", first)
    assert report["figures"]["frechet_distance"] == pytest.approx(16 * (20 / 127.5) ** 2, rel=1e-6)
    assert (report["num_samples"], report["num_reference"]) == (60, 60)
    assert report["reference"]["path"] == str(first) and report["reference"]["images"]["num_images"] == 60
    assert report["features"] == "pixels in [-1, 1]" and report["seconds"] >= 0
    assert any("60 samples" in note for note in report["notes"])


def test_a_folder_counts_as_the_npz_of_its_images(evaluated: Evaluated, tmp_path: Path) -> None:
    first, second = write_npz(tmp_path / "a.npz"), write_npz(tmp_path / "b.npz", seed=1)
    with np.load(second) as arrays:
        for index, image in enumerate(arrays["arr_0"]):
            (tmp_path / "folder").mkdir(exist_ok=True)
            Image.fromarray(image[..., 0]).save(tmp_path / "folder" / f"{index:03d}.png")
    npz, folder = (numbers(evaluated(tmp_path / name, "--reference", first)) for name in ("b.npz", "folder"))
    assert folder == pytest.approx(npz, rel=1e-9)
    some = evaluated(tmp_path / "folder", "--reference", first, "--num", 20)
    assert some["num_samples"] == 20 and numbers(some)["frechet_distance"] != npz["frechet_distance"]


def test_a_checkpoint_measured_directly_is_its_pngs_and_its_npz_measured(
    evaluated: Evaluated, trained: Path, tmp_path: Path
) -> None:
    reference = write_npz(tmp_path / "reference.npz", size=8)
    drawing = ("--seed", 3, "--labels", "random", "--between", 0.7, "--renoise")
    words = ("sample", trained, "--out", tmp_path / "images", "--num", 70, *drawing, "--npz", tmp_path / "all.npz")
    assert main([*map(str, words)]) == EXIT_DONE
    settings = ("--reference", reference, "--members", 40)  # of 70, so that it matters which
    direct = evaluated(trained, *settings, "--num", 70, *drawing)
    ways = [(tmp_path / "images",), (tmp_path / "all.npz",), (trained, "--num", 70, *drawing, "--batch-size", 64)]
    for way in ways:
        assert numbers(evaluated(*way, *settings)) == pytest.approx(numbers(direct), rel=1e-9)
    other = evaluated(trained, *settings, "--num", 70)
    assert other["figures"]["frechet_distance"] != direct["figures"]["frechet_distance"]
    assert direct["samples"]["labels"] == "random, by (seed, number)" and direct["samples"]["seed"] == 3
    assert (direct["samples"]["between"], direct["samples"]["renoised"]) == ([0.7], True)
    assert "class-balanced (worth about 0.1 FID" in other["samples"]["labels"]
    assert (other["samples"]["num_steps"], other["samples"]["step"]) == (2, 2)


def test_a_table_says_what_was_measured(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reference = write_npz(tmp_path / "reference.npz", size=8)
    assert main(["evaluate", str(trained), "--num", "40", "--reference", str(reference), *PIXELS]) == EXIT_DONE
    out = capfd.readouterr().out
    for words in ("Frechet distance", "precision", "recall", "class-balanced (worth about 0.1 FID", "2 step(s)",
                  "pixels in [-1, 1]", "60 images", "seconds", "40 samples are too few for 64 features"):
        assert words in out, words


def test_a_report_of_a_recipe_measures_a_checkpoint_as_its_run_did(
    trained: Path, told: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def figures(*words: str) -> Mapping[str, Any]:
        code = main(["evaluate", str(trained), "--device", "cpu", "--json", "--report", "digits", *words])
        out, err = capfd.readouterr()
        assert code == EXIT_DONE, err
        return json.loads(out)

    picture = tmp_path / "new" / "digits.png"
    found = figures("--picture", str(picture))
    assert found["figures"] == json.loads((trained / "summary.json").read_text())["quality"]
    assert picture.read_bytes().startswith(b"\x89PNG") and (found["num_steps"], found["step"]) == (2, 2)
    other = figures("--picture", str(picture), "--steps", "1")
    assert other["num_steps"] == 1 and other["figures"] != found["figures"]
    images = write_npz(tmp_path / "images.npz")
    for words, wanted in [
        ((trained, "--report", "digits"), "--picture FILE.png"),
        ((trained, "--report", "digits", "--picture", picture, "--seed", 0), "--seed does not go with it"),
        ((trained, "--report", "digits", "--picture", picture, "--write-reference", "a.npz"), "--write-reference"),
        ((trained, "--report", "mnist", "--picture", picture), "--report.kind 'mnist'"),
        ((trained, "--report", "classifier", "--picture", picture), "holds a generator"),
        ((images, "--report", "digits", "--picture", picture), "name a run's folder"),
        ((images, "--reference", images, "--picture", picture), "--report draws"),
        ((trained, "--report", "digit"), "'digits'"),
    ]:
        assert wanted in told(*words), words


@pytest.mark.slow
def test_1_2_and_4_ranks_agree(tmp_path: Path) -> None:
    images, others = write_npz(tmp_path / "a.npz", 61), write_npz(tmp_path / "b.npz", seed=1)
    with np.load(others) as arrays:  # as ADM's: statistics, and the images of the members
        pixels = arrays["arr_0"].transpose(0, 3, 1, 2).reshape(60, -1) / 127.5 - 1
        np.savez(others, mu=pixels.mean(0), sigma=np.cov(pixels, rowvar=False), arr_0=arrays["arr_0"])
    one = figures_of_ranks(str(images), str(others))
    for world_size in (2, 4):
        for found in run_ranks(world_size, figures_of_ranks, str(images), str(others), timeout=120):
            assert found == pytest.approx(one, rel=1e-9)


@pytest.mark.slow
def test_what_one_rank_cannot_read_ends_all_with_its_message(tmp_path: Path) -> None:
    images, stored = write_npz(tmp_path / "images.npz"), tmp_path / "stored.npz"
    assert main(["evaluate", str(images), "--write-reference", str(stored), *PIXELS]) == EXIT_DONE
    (tmp_path / "images").mkdir()
    for index in range(8):
        Image.fromarray(np.full((4, 4), index, np.uint8)).save(tmp_path / "images" / f"{index:03d}.png")
    (tmp_path / "images" / "005.png").write_bytes(b"no image")  # that of rank 1
    for rank, num_features in ((0, 16), (1, 9)):
        statistics = {"mu": np.zeros(num_features), "sigma": np.eye(num_features)}
        np.savez(tmp_path / f"reference_{rank}.npz", arr_0=np.zeros((8, 4, 4, 1), np.uint8), **statistics)
    first, second = run_ranks(2, errors_of_ranks, tmp_path)
    assert first == second
    for error, words in zip(first, ("005.png", "no statistics", "it has 9 an image"), strict=True):
        assert words in error


@pytest.mark.slow
def test_two_ranks_of_the_command_give_the_figures_of_one(
    evaluated: Evaluated, trained: Path, tmp_path: Path
) -> None:
    reference = write_npz(tmp_path / "reference.npz", size=8)
    words = (trained, "--num", 70, "--reference", reference, "--write-reference", tmp_path / "two.npz")
    code, out, err = run("evaluate", *map(str, words), *PIXELS, "--json", ranks=2)
    assert code == EXIT_DONE, err
    two, one = json.loads(out), evaluated(*words[:-1], tmp_path / "one.npz")
    assert numbers(two) == pytest.approx(numbers(one), rel=1e-9) and two["ranks"] == 2
    stored = [read_reference(tmp_path / name, PixelFeatures()) for name in ("one.npz", "two.npz")]
    np.testing.assert_allclose(stored[1].pool.covariance, stored[0].pool.covariance, rtol=1e-9, atol=1e-15)
    assert np.array_equal(stored[0].members, stored[1].members)


def classifier_of(folder: Path, *overrides: str) -> Path:
    size = ("model.classifier.hidden_size=16", "model.classifier.num_heads=2")
    quick = (*QUIET, "hooks.evaluation=null", "loop.steps=2", "parallel.device=cpu")
    assert main(["train", "classifier_digits", *size, *quick, *overrides, f"run.folder={folder}"]) == EXIT_DONE
    return folder


def test_a_classifier_of_pixels_sees_the_same_in_samples_and_in_their_pictures(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Pictures are rounded and clipped, so not quite the same."""
    features = ("--features", "classifier", "--weights", str(classifier_of(tmp_path / "classifier")))
    stored, pictures = tmp_path / "stored.npz", tmp_path / "pictures.npz"
    words = ("sample", trained, "--out", tmp_path / "images", "--num", 60, "--npz", pictures)
    assert main([*map(str, words)]) == EXIT_DONE
    assert main(["evaluate", str(pictures), *features, "--write-reference", str(stored)]) == EXIT_DONE
    capfd.readouterr()
    found = []
    for target, reference in ((trained, stored), (trained, pictures), (pictures, stored)):
        words = ("evaluate", target, *features, "--num", 60, "--reference", reference, "--json")
        assert main([*map(str, words)]) == EXIT_DONE
        found.append(json.loads(capfd.readouterr().out))
    first, second, same = (numbers(report) for report in found)
    assert first == pytest.approx(second, rel=1e-6)
    assert abs(same["frechet_distance"]) < 1e-6 * first["frechet_distance"]
    assert first["inception_score"] >= 1 and found[0]["features"].startswith("classifier")


def test_a_classifier_of_latents_needs_no_decoder_and_images_are_encoded_for_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = "data={kind: synthetic, shape: [4, 8, 8], num_classes: 3, global_batch: 8}"
    words = ["train", *SMALL_FLOW_MATCHING, data, "loop.steps=2", f"run.folder={tmp_path / 'run'}"]
    assert main([*words, "parallel.device=cpu"]) == EXIT_DONE
    features = ("--features", "classifier", "--weights", str(classifier_of(tmp_path / "classifier", data)))
    images = write_npz(tmp_path / "images.npz", size=16, channels=3)
    vae = saved_autoencoder(tmp_path / "vae")
    command = ("evaluate", str(tmp_path / "run"), "--num", "40", *features, "--reference", str(images))
    capfd.readouterr()
    assert main([*command]) == EXIT_USER_ERROR
    assert "[3, 16, 16]" in capfd.readouterr().err
    assert main([*command, "--vae", str(vae), "--json"]) == EXIT_DONE
    report = json.loads(capfd.readouterr().out)
    assert report["figures"]["frechet_distance"] > 0 and report["samples"]["shape"] == [4, 8, 8]
    assert report["reference"]["images"]["encoded_by"] == "vae"


def test_a_stored_reference_says_where_it_comes_from(evaluated: Evaluated, trained: Path, tmp_path: Path) -> None:
    evaluated(trained, "--num", 40, "--members", 30, "--write-reference", tmp_path / "drawn.npz")
    stored = read_reference(tmp_path / "drawn.npz", PixelFeatures())
    assert stored.pool.count == 40 and stored.members is not None and stored.members.shape == (30, 64)
    images = stored.about["images"]
    assert images["kind"] == "drawn" and images["source"].endswith("step_00000002")
    assert (images["num_images"], images["shape"], images["num_steps"]) == (40, [1, 8, 8], 2)
    report = evaluated(trained, "--num", 40, "--reference", tmp_path / "drawn.npz")
    assert abs(report["figures"]["frechet_distance"]) < 1e-9
    assert report["reference"]["versions"]["torch"] == torch.__version__


def test_mistakes_are_told_in_one_line(told: Callable[..., str], trained: Path, tmp_path: Path) -> None:
    small, large = write_npz(tmp_path / "small.npz"), write_npz(tmp_path / "large.npz", size=8)
    coloured = write_npz(tmp_path / "coloured.npz", size=8, channels=3)
    floats = tmp_path / "floats.npz"
    np.savez(floats, arr_0=np.zeros((4, 8, 8, 3), np.float32))
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    to_small, to_large = ("--reference", small, *PIXELS), ("--reference", large, *PIXELS)
    for words, wanted in [
        ((small, *PIXELS), ["nothing to compare with", "--reference"]),
        ((small, *to_large), ["[1, 8, 8]", "[1, 4, 4]"]),
        ((trained, "--num", 5, "--reference", coloured, *PIXELS), ["[3, 8, 8]", "[1, 8, 8]"]),
        ((floats, *to_large), ["floats.npz", "float32", "uint8"]),
        ((nothing, *to_large), [str(nothing)]),
        ((tmp_path / "absent.npz", *to_large), ["absent.npz"]),
        ((small, "--reference", tmp_path / "absent.npz", *PIXELS), ["absent.npz"]),
        ((trained, "--labels", "3,10", *to_large), ["class 10", "0 to 9"]),
        ((small, "--steps", 3, *to_small), ["--steps", "small.npz"]),
        ((small, "--renoise", *to_small), ["--renoise", "small.npz"]),
        ((trained, "--between", 0.3, 0.7, *to_large), ["0.3 0.7", "must fall"]),
        ((trained, "--between", 0.7, "--steps", 3, *to_large), ["2 steps", "--steps 3"]),
        ((small, "--neighbours", 0, *to_small), ["--neighbours: found 0"]),
        ((small, "--num", 3, *to_small), ["at least 4", "found 3"]),
        ((small, "--num", 0, *to_small), ["--num: found 0"]),
        ((small, "--reference", small, "--device", "cpu", "--weights", tmp_path / "w.pth"), ["w.pth", "SHA-256"]),
        ((small, "--reference", small, "--features", "torchscript"), ["torchscript", "--weights"]),
        ((small, "--reference", small, "--features", "pixel"), ["pixel", "'pixels'"]),
    ]:
        line = told(*words)
        assert [word for word in wanted if word not in line] == [], line


def test_a_stored_reference_that_does_not_fit_is_refused_before_anything_is_drawn(
    told: Callable[..., str], trained: Path, tmp_path: Path
) -> None:
    def stored(name: str, num_features: int, num_members: int, about: dict[str, Any]) -> Path:
        pool = Gaussian(9, np.zeros(num_features), np.eye(num_features))
        members = np.zeros((num_members, num_features), np.float32)
        write_reference(tmp_path / name, Reference("pixels in [-1, 1]", pool, None, members, about))
        return tmp_path / name

    for path, wanted in [
        (stored("a.npz", 64, 9, {"images": {"shape": [1, 4, 16]}}), "[1, 4, 16]"),
        (stored("b.npz", 63, 9, {}), "gives 64"),
        (stored("c.npz", 64, 3, {}), "at least 4"),
    ]:
        # Drawing so many would take days.
        assert wanted in told(trained, "--num", 1_000_000_000, "--reference", path, *PIXELS)


def test_samples_that_are_not_finite_end_with_a_message(told: Callable[..., str], tmp_path: Path) -> None:
    rates = "optimizer.generator.learning_rate=1e30"
    words = ["train", *SMALL_AFM, "loop.steps=1", "average.decay=0", rates, f"run.folder={tmp_path / 'run'}"]
    assert main([*words, "parallel.device=cpu"]) == EXIT_DONE
    reference = write_npz(tmp_path / "reference.npz", size=8)
    line = told(tmp_path / "run", "--num", 40, "--reference", reference, *PIXELS, code=EXIT_FAILURE)
    assert "sample 0 is not of finite numbers" in line


def test_features_are_a_kind_with_its_file_or_a_mapping() -> None:
    assert features_of("pixels", None) == PixelsConfig()
    assert features_of("inception", Path("a.pt")) == InceptionConfig(weights=Path("a.pt"))
    assert features_of("{kind: torchscript, size: 224}", Path("b.pt")) == TorchScriptConfig(file=Path("b.pt"), size=224)
    for text, weights, words in [
        ("pixels", Path("a"), "no weights"), ("classifier", None, "checkpoint"), ("{kind: [}", None, "not YAML"),
        ("{kind: torchscript, file: a, sise: 3}", None, "'size'"), ("{}", None, "kind"),
        ("{a: &a [*a]}", None, "aliases"), ("{" * 5000, None, "nested too deeply"),
    ]:
        with pytest.raises(ConfigError, match=words):
            features_of(text, weights)
