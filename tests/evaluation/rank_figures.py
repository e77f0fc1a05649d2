"""What the ranks of test_evaluate.py do, in a module that is quickly imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from afm_scale.core.errors import DataError
from afm_scale.core.place import Place
from afm_scale.evaluation.features.extractor import PixelFeatures
from afm_scale.evaluation.figures import compare
from afm_scale.evaluation.images.sets import open_images
from afm_scale.evaluation.measure import measure, read_reference_on_all

CPU = torch.device("cpu")


def figures_of_ranks(folder: str, reference: str) -> dict[str, Any]:
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = Place(rank, world_size)
    extractor = PixelFeatures()
    theirs = read_reference_on_all(Path(reference), extractor, place, batch_size=7)
    images = open_images(Path(folder))
    summary = measure(images, extractor, place, num_members=50, batch_size=8 * world_size, progress=None)
    figures = compare(summary, theirs, k=3, device=CPU)
    return {name: getattr(figures, name) for name in ("frechet_distance", "precision", "recall")}


def errors_of_ranks(folder: Path) -> list[str]:
    """Of an image and of a reference that cannot be read, and of a reference whose images only rank 1 cannot use."""
    place = Place(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    ways = [
        lambda: figures_of_ranks(str(folder / "images"), str(folder / "stored.npz")),
        lambda: figures_of_ranks(str(folder / "images.npz"), str(folder / "images.npz")),
        lambda: read_reference_on_all(
            folder / f"reference_{place.rank}.npz", PixelFeatures(), place, batch_size=8
        ),
    ]
    errors = []
    for way in ways:
        with pytest.raises(DataError) as caught:
            way()
        errors.append(str(caught.value))
    return errors
