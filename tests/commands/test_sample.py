"""Latents decoded by `sample`: which autoencoder, and that an image does not depend on what else is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import afm_scale
from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, ConfigError
from afm_scale.data.latents import LatentsConfig
from afm_scale.data.toys.digits import DigitsConfig
from afm_scale.data.toys.synthetic import SyntheticLatentsConfig
from afm_scale.run.autoencoders import decoder_of, encoder_of
from afm_scale.sampling.pictures import to_uint8
from tests.models.small_autoencoder import saved_autoencoder, small_autoencoder
from tests.program import SMALL_FLOW_MATCHING, run

DATA = "data={kind: synthetic, shape: [4, 8, 8], num_classes: 3, global_batch: 8}"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def latent_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents") / "run"
    words = ["train", *SMALL_FLOW_MATCHING, DATA, "loop.steps=2", "parallel.device=cpu", f"run.folder={folder}"]
    assert main(words) == EXIT_DONE
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_autoencoder(tmp_path_factory.mktemp("vae") / "tiny")


def draw(out: Path, run_folder: Path, *words: object, num: int) -> int:
    return main([str(word) for word in ("sample", run_folder, "--out", out, "--num", num, "--steps", 1, *words)])


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def test_latents_are_decoded_to_images_that_depend_on_their_number_alone(
    latent_run: Path, vae: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert draw(tmp_path / "all", latent_run, "--vae", vae, num=45) == EXIT_DONE
    assert "decoded by tiny" in capfd.readouterr().out
    images = pictures(tmp_path / "all")
    assert len(images) == 45 and {image.shape for image in images} == {(16, 16, 3)}
    for num, batch_size in ((1, 1), (37, 64)):
        assert draw(tmp_path / str(num), latent_run, "--vae", vae, "--batch-size", batch_size, num=num) == EXIT_DONE
        found = pictures(tmp_path / str(num))
        assert len(found) == num and all(np.array_equal(a, b) for a, b in zip(found, images, strict=False))


@pytest.mark.slow
def test_two_ranks_decode_the_images_of_one(latent_run: Path, vae: Path, tmp_path: Path) -> None:
    assert draw(tmp_path / "one", latent_run, "--vae", vae, num=40) == EXIT_DONE
    words = ("--num", "40", "--steps", "1", "--vae", vae, "--npz", tmp_path / "two.npz")
    code, _, stderr = run("sample", latent_run, "--out", tmp_path / "two", *words, ranks=2)
    assert code == EXIT_DONE, stderr
    one, two = pictures(tmp_path / "one"), pictures(tmp_path / "two")
    assert len(two) == 40 and all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    with np.load(tmp_path / "two.npz") as arrays:
        assert arrays["arr_0"].shape == (40, 16, 16, 3)


def test_without_an_autoencoder_latents_are_shown_only_where_that_is_asked_for(
    latent_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert draw(tmp_path / "images", latent_run, num=1) == 2
    stderr = capfd.readouterr().err
    assert "draws latents" in stderr and "--vae" in stderr and "--latents" in stderr
    assert draw(tmp_path / "images", latent_run, "--latents", "--grid", tmp_path / "grid.png", num=3) == EXIT_DONE
    assert [image.shape for image in pictures(tmp_path / "images")] == [(8, 8, 3)] * 3


def test_a_loaded_model_returns_latents_or_the_pictures_of_the_autoencoder_it_is_given(
    latent_run: Path, vae: Path, tmp_path: Path
) -> None:
    assert draw(tmp_path / "images", latent_run, "--vae", vae, "--labels", "2,0", num=3) == EXIT_DONE
    plain, decoding = afm_scale.load(latent_run), afm_scale.load(latent_run, vae=vae)
    assert (plain.draws_latents, plain.shape) == (True, (4, 8, 8))
    assert (decoding.draws_latents, decoding.shape) == (False, (3, 16, 16))
    latents, images = (model.sample([2, 0, 2], steps=1) for model in (plain, decoding))
    assert latents.shape == (3, 4, 8, 8) and images.shape == (3, 3, 16, 16)
    for picture, image in zip(pictures(tmp_path / "images"), to_uint8(images), strict=True):
        assert np.array_equal(picture, image.permute(1, 2, 0).numpy())


def test_an_autoencoder_that_is_not_there_is_told(
    latent_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert draw(tmp_path / "images", latent_run, "--vae", tmp_path / "nowhere", num=1) == 2
    assert "nowhere" in capfd.readouterr().err


def test_decoding_undoes_the_scale_of_the_data_in_float32(vae: Path) -> None:
    data = LatentsConfig(global_batch=1, folder=Path("unused"), shape=(4, 8, 8), vae=str(vae), scale=0.5)
    decoder = decoder_of(data, None, CPU, setting="--vae")  # the data name a folder that is here
    assert decoder is not None and decoder.shape == (3, 16, 16)
    latents = torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = decoder(latents)
    with torch.no_grad():
        wanted = small_autoencoder().decode((latents[8:16] / 0.5).float()).sample
    assert found.dtype == torch.float32
    assert torch.equal(to_uint8(found[8:16]), to_uint8(wanted))
    torch.testing.assert_close(found[8:16], wanted)


def test_the_scale_of_the_autoencoder_itself_counts_where_the_data_have_none(vae: Path) -> None:
    decoder = decoder_of(SyntheticLatentsConfig(global_batch=1, shape=(4, 8, 8)), str(vae), CPU, setting="--vae")
    assert decoder is not None and decoder.autoencoder.scale == 0.18215
    assert encoder_of(str(vae), CPU).autoencoder.scale == 0.18215


def test_what_does_not_fit_is_refused(vae: Path) -> None:
    latents = LatentsConfig(global_batch=1, folder=Path("unused"), shape=(16, 8, 8), vae="sd-vae-ft-mse")
    with pytest.raises(ConfigError, match="'sd-vae-ft-mse', which is no folder here"):
        decoder_of(latents, None, CPU, setting="hooks.evaluation.vae")
    with pytest.raises(ConfigError, match="4 channels"):
        decoder_of(latents, str(vae), CPU, setting="--vae")
    with pytest.raises(ConfigError, match="draws pixels"):
        decoder_of(DigitsConfig(global_batch=1), str(vae), CPU, setting="--vae")
    assert decoder_of(DigitsConfig(global_batch=1), None, CPU, setting="--vae") is None
