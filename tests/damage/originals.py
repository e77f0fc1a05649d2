"""The good files, each made once, when a case first asks for it."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from afm_scale.checkpoint.manifest import resolve_checkpoint
from afm_scale.checkpoint.names import AVERAGE, under
from afm_scale.checkpoint.tensors import read_tensors
from afm_scale.data.description import read_description
from afm_scale.packing.writer import SETTINGS_NAME, scratch_folder
from tests.data.small import image_folder, mnist_file, packed_images
from tests.evaluation.small_features import saved_script
from tests.program import SMALL_AFM, SMALL_CLASSIFICATION, SMALL_FLOW_MATCHING, end, start, train

GOLDEN = Path(__file__).parents[1] / "golden"
RECIPE = "inherit: [base.yaml]\nloop: {steps: 1}\nobjective: {transport_weight: {kind: constant, value: 0.2}}\n"
BASE = """\
inherit: [digits_afm]
data: {global_batch: 8}
model:
  generator: {hidden_size: 16, depth: 1, num_heads: 2}
  discriminator: {hidden_size: 16, depth: 1, num_heads: 2}
hooks: {samples: null, metrics: {tensorboard: false}}
parallel: {device: cpu}
report: null
"""


class Originals:
    """Files and folders by their names; none is ever written to again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks = {name: threading.Lock() for name in MAKERS}

    def path(self, name: str) -> Path:
        path = self._folder / name
        with self._locks[name]:
            if not path.exists():
                made = self._folder / f"making_{name}"
                MAKERS[name](self, made)
                made.rename(path)
        return path


class Means(nn.Module):
    """Features of an image: its first pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).flatten(1)[:, :8]


class LikeNvidias(nn.Module):
    """Called as NVIDIA's file is."""

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        features = F.adaptive_avg_pool2d(img.to(torch.float32), [2, 2]).flatten(1)
        return features if return_features else features.softmax(dim=1)


def _run(recipe: Sequence[str], *overrides: str, steps: int = 4) -> Callable[[Originals, Path], None]:
    def make(originals: Originals, path: Path) -> None:
        words = (f"loop.steps={steps}", "checkpoint.every_steps=2", *overrides)
        code, _, told = end(train(recipe, path, *words))
        assert code == 0, told

    return make


def _old_run(originals: Originals, path: Path) -> None:
    shutil.copytree(GOLDEN / "checkpoints" / "afm", path)


def _latent_run(originals: Originals, path: Path) -> None:
    latents = originals.path("latents")
    _run((*SMALL_AFM, f"data={{kind: latents, global_batch: 8, folder: {latents}}}"), steps=2)(originals, path)


def _samples(originals: Originals, path: Path) -> None:
    with np.load(originals.path("images.npz")) as images:
        np.savez(path.with_suffix(".npz"), arr_0=255 - images["arr_0"], labels=images["labels"])
    path.with_suffix(".npz").rename(path)


def _images(originals: Originals, path: Path) -> None:
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        np.savez(file, arr_0=rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8), labels=np.arange(40) % 10)


def _reference(originals: Originals, path: Path) -> None:
    code, _, told = end(start(
        "evaluate", originals.path("images.npz"), "--features", "pixels", "--members", "20",
        "--write-reference", path,
    ))
    assert code == 0, told


def _fid(originals: Originals, path: Path) -> None:
    with np.load(originals.path("reference.npz")) as arrays, path.open("wb") as file:
        np.savez(file, mu=arrays["mu"], sigma=arrays["sigma"])


def _weights(originals: Originals, path: Path) -> None:
    save_file(under(AVERAGE, read_tensors(resolve_checkpoint(originals.path("classifier")), AVERAGE)), path)


def _script(network: nn.Module) -> Callable[[Originals, Path], None]:
    return lambda originals, path: _discard(saved_script(network, path))


def _discard(value: object) -> None:
    pass


def _inception_state(originals: Originals, path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)  # of another network: the true one has 95 MB


def _latents(originals: Originals, path: Path) -> None:
    code, _, told = end(start(
        "encode_latents", originals.path("packed"), path, "--vae", originals.path("vae"), "--name", "tiny",
        "--device", "cpu", "--workers", "0",
    ))
    assert code == 0, told


def _vae(originals: Originals, path: Path) -> None:
    from tests.models.small_autoencoder import saved_autoencoder  # diffusers takes seconds to import

    saved_autoencoder(path)


def _unfinished(originals: Originals, path: Path) -> None:
    """A packing that had written all its shards, and could not write its description."""
    obstacle = path / ".dataset.json.part"
    words = ("make_shards", originals.path("source"), path, "--size", "16", "--shards", "2", "--workers", "1")
    code, _, told = end(start(*words))
    assert code == 0, told
    done = read_description(path)
    shutil.rmtree(path)
    obstacle.mkdir(parents=True)  # which a folder that holds no packing would be refused for
    settings = scratch_folder(path) / SETTINGS_NAME
    settings.parent.mkdir()
    settings.write_text(json.dumps({"content": asdict(done.content), "settings": done.made}))
    code, _, told = end(start(*words))
    assert code == 2 and "dataset.json" in told, told
    obstacle.rmdir()


def _sum(name: str) -> Callable[[Originals, Path], None]:
    return lambda originals, path: _discard(
        path.write_text(sha256(originals.path(name).read_bytes()).hexdigest())
    )


def _recipe(text: str) -> Callable[[Originals, Path], None]:
    return lambda originals, path: _discard(path.write_text(text))


def _golden(name: str) -> Callable[[Originals, Path], None]:
    return lambda originals, path: _discard(shutil.copy2(GOLDEN / name, path))


MAKERS: dict[str, Callable[[Originals, Path], None]] = {
    "run": _run(SMALL_AFM),
    "other": _run(SMALL_AFM, "loop.seed=1", steps=2),
    "old": _old_run,
    "classifier": _run(SMALL_CLASSIFICATION, steps=2),
    "flow": _run(
        SMALL_FLOW_MATCHING, "objective.class_dropout=0.1", "model.generator.null_class=true", steps=2
    ),
    "latent_run": _latent_run,
    "images.npz": _images,
    "samples.npz": _samples,
    "reference.npz": _reference,
    "fid.npz": _fid,
    "weights.safetensors": _weights,
    "features.pt": _script(Means()),
    "inception.pt": _script(LikeNvidias()),
    "features.pt.sha256": _sum("features.pt"),
    "inception.pt.sha256": _sum("inception.pt"),
    "inception.pth": _inception_state,
    "mnist.npz": lambda originals, path: _discard(mnist_file(path.with_suffix(".npz")).rename(path)),
    "packed": lambda originals, path: _discard(packed_images(path)),
    "latents": _latents,
    "vae": _vae,
    "source": lambda originals, path: _discard(image_folder(path)),
    "unfinished": _unfinished,
    "recipe.yaml": _recipe(RECIPE),
    "base.yaml": _recipe(BASE),
    "case.json": _golden("afm_1nfe.json"),
    "case.safetensors": _golden("afm_1nfe.safetensors"),
}
