"""tools/encode_latents.py: what is stored, by how many ranks, after a kill, and what is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from afm_scale.commands.encode_latents import EncodeRequest, encode_command
from afm_scale.core.errors import DataError, UserError
from afm_scale.data.description import LatentContent, file_sha256, read_description
from afm_scale.data.latents import WEIGHTS_NAME, LatentsConfig
from afm_scale.data.shards import PackedShards
from tests.data.small import packed_images, picture
from tests.models.small_autoencoder import saved_autoencoder, small_autoencoder
from tests.program import ROOT

NUM = 14


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> EncodeRequest:
    """Images, an autoencoder, and their latents, encoded by one rank."""
    root = tmp_path_factory.mktemp("made")
    packed_images(root / "images", num_samples=NUM, num_shards=4)
    saved_autoencoder(root / "tiny")
    request = EncodeRequest(
        shards=root / "images", out=root / "latents", vae=str(root / "tiny"), scale=0.4, batch_size=3, device="cpu"
    )
    assert encode_command(request) == 0
    return request


def tool(request: EncodeRequest, *, ranks: int = 1) -> subprocess.Popen[str]:
    launcher = [str(ROOT / "launchers" / "torchrun.py"), "--standalone", f"--nproc-per-node={ranks}"]
    words = [
        sys.executable, *(launcher if ranks > 1 else ()), str(ROOT / "tools" / "encode_latents.py"),
        str(request.shards), str(request.out), "--vae", request.vae, "--scale", str(request.scale),
        "--batch-size", str(request.batch_size), "--device", "cpu",
    ]
    return subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_stored_are_the_networks_moments_of_the_image_and_its_mirror_image(made):
    network, latents = small_autoencoder(), PackedShards(made.out)
    assert latents.num_samples == NUM and latents.check() == []
    for number in range(NUM):
        pixels = torch.from_numpy(np.array(picture(number, width=16, height=16))).permute(2, 0, 1) / 127.5 - 1
        for member, side in enumerate((pixels, pixels.flip(-1))):
            stored = np.load(io.BytesIO(latents.read(number, member)), allow_pickle=False)
            assert stored.shape == (2, 4, 8, 8) and stored.dtype == np.float16
            with torch.no_grad():
                posterior = network.encode(side[None]).latent_dist
            expected = torch.cat([posterior.mean, posterior.std])
            assert torch.allclose(torch.from_numpy(stored).float(), expected, rtol=2**-10, atol=1e-5)


def test_the_description_says_what_encoded_them_and_keeps_labels_and_classes(made):
    images, latents = PackedShards(made.shards), PackedShards(made.out)
    assert latents.description.content == LatentContent(
        shape=(4, 8, 8), vae="tiny", vae_sha256=file_sha256(Path(made.vae) / WEIGHTS_NAME), scale=0.4
    )
    assert torch.equal(latents.index.label, images.index.label) and torch.equal(latents.index.key, images.index.key)
    assert latents.description.class_names == images.description.class_names
    assert latents.description.made["images_index_sha256"] == images.description.index_sha256


def test_batches_of_another_size_store_the_same_up_to_the_last_place(made, tmp_path):
    encode_command(replace(made, out=tmp_path / "out", batch_size=5, workers=1))
    one, other = PackedShards(made.out), PackedShards(tmp_path / "out")
    for number in range(NUM):
        a, b = (np.load(io.BytesIO(shards.read(number, 1))).astype(np.float64) for shards in (one, other))
        assert np.abs(a - b).max() <= 2**-10 * np.abs(a).max()


@pytest.mark.slow
def test_two_ranks_write_the_same_bytes_as_one(made, tmp_path):
    code, stdout, stderr = end(tool(replace(made, out=tmp_path / "out"), ranks=2))
    assert code == 0, stderr
    assert stdout == f"{NUM} samples and their mirror images encoded in {tmp_path / 'out'}\n"
    assert contents(tmp_path / "out") == contents(made.out)


@pytest.mark.slow
def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(made, tmp_path):
    out = tmp_path / "out"
    process = tool(replace(made, out=out))
    deadline = time.monotonic() + 60
    while not (out / "shard-000000.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert encode_command(replace(made, out=out)) == 0
    assert contents(out) == contents(made.out)


def test_shards_that_are_written_are_not_encoded_again(made, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    packed_images(images, num_samples=NUM, num_shards=4)
    whole = (images / "shard-000002.tar").read_bytes()
    (images / "shard-000002.tar").write_bytes(bytes(len(whole)))
    with pytest.raises(DataError, match="shard-000002.tar, sample 000000007: the bytes are not those"):
        encode_command(replace(made, shards=images, out=out))
    written = {path: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert {path.name for path in written} == {f"shard-00000{n}.{kind}" for n in (0, 1) for kind in ("idx", "tar")}
    (images / "shard-000002.tar").write_bytes(whole)
    for _ in range(2):  # goes on; finds that it is finished
        assert encode_command(replace(made, shards=images, out=out)) == 0
        assert contents(out) == contents(made.out)
        assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.parametrize("change, words", [
    ({"scale": 0.5}, "packed with scale 0.4, now it is 0.5"),
    ({"name": "other"}, "packed with vae 'tiny', now it is 'other'"),
    ({"precision": "bf16"}, "packed with precision 'fp32', now it is 'bf16'"),
])
def test_a_folder_of_other_latents_is_left_alone(made, change, words):
    before = contents(made.out)
    with pytest.raises(DataError, match=words):
        encode_command(replace(made, **change))
    assert contents(made.out) == before


@pytest.mark.parametrize(("change", "words"), [
    ({"batch_size": 0}, "--batch-size 0 must be at least 1"),
    ({"scale": 0.0}, "--scale 0.0 must be a number above 0"),
    ({"scale": float("nan")}, "--scale nan must be a number above 0"),
])
def test_settings_that_make_no_sense_are_refused(made, change, words):
    with pytest.raises(UserError, match=words):
        encode_command(replace(made, **change))


def test_without_a_scale_the_one_the_autoencoder_comes_with_is_used(made, tmp_path):
    config = saved_autoencoder(tmp_path / "other") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": 0.13025}))
    encode_command(replace(made, vae=str(tmp_path / "other"), scale=None, out=tmp_path / "out"))
    assert PackedShards(tmp_path / "out").description.content.scale == 0.13025


def test_the_shift_the_autoencoder_comes_with_is_taken_off_and_written_down(made, tmp_path):
    config = saved_autoencoder(tmp_path / "other") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "shift_factor": 0.5}))
    encode_command(replace(made, vae=str(tmp_path / "other"), out=tmp_path / "out"))
    encode_command(replace(made, vae=str(tmp_path / "other"), shift=0.0, out=tmp_path / "without"))
    with_it, without = (PackedShards(tmp_path / name) for name in ("out", "without"))
    assert (with_it.description.content.shift, without.description.content.shift) == (0.5, 0.0)
    read = [np.load(io.BytesIO(shards.read(0))).astype(np.float32) for shards in (with_it, without)]
    assert np.abs(read[1][0] - read[0][0] - 0.5).max() < 2e-3 and np.array_equal(read[0][1], read[1][1])
    config = LatentsConfig(global_batch=2, folder=tmp_path / "out").resolved()
    assert config.encoding.shift == 0.5


def test_latents_are_not_encoded_again(made, tmp_path):
    with pytest.raises(DataError, match="holds latents; wanted square images"):
        encode_command(replace(made, shards=made.out, out=tmp_path / "out"))


def test_a_latent_beyond_float16_is_refused_with_the_image(made, tmp_path):
    weights = saved_autoencoder(tmp_path / "loud") / WEIGHTS_NAME
    tensors = load_file(weights)
    save_file({name: value * (1e6 if name == "quant_conv.weight" else 1) for name, value in tensors.items()}, weights)
    with pytest.raises(DataError, match=r"shard-000000.tar, sample 000000000: its latent \(plain\) is not finite"):
        encode_command(replace(made, vae=str(tmp_path / "loud"), out=tmp_path / "out"))


@pytest.mark.slow
def test_damaged_images_end_every_rank_with_one_message(made, tmp_path):
    packed_images(tmp_path / "images", num_samples=NUM, num_shards=4)
    shards = PackedShards(tmp_path / "images")
    with (tmp_path / "images" / "shard-000001.tar").open("r+b") as file:
        file.seek(int(shards.index.offset[4, 0]) + 60)
        file.write(b"\0\0\0\0")
    code, _, stderr = end(tool(replace(made, shards=tmp_path / "images", out=tmp_path / "out"), ranks=2))
    assert code == 2
    assert stderr.count("error:") == 1 and "shard-000001.tar, sample 000000004: the bytes are not those" in stderr
    assert "Traceback" not in stderr


def test_a_missing_shard_is_named_before_anything_is_written(made, tmp_path):
    packed_images(tmp_path / "images", num_samples=NUM, num_shards=4)
    (tmp_path / "images" / "shard-000002.tar").unlink()
    with pytest.raises(DataError, match="shard-000002.tar: No such file.*restore it, or pack the images again"):
        encode_command(replace(made, shards=tmp_path / "images", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_is_written_is_read_as_json_and_names_no_path(made):
    text = (made.out / "dataset.json").read_text()
    assert read_description(made.out).num_samples == json.loads(text)["num_samples"] == NUM
    assert str(made.out.parent) not in text
