"""What a summary of samples comes to: the figures against a reference, or a reference for others."""

from __future__ import annotations

import platform
from dataclasses import dataclass, fields
from datetime import datetime, timezone

import numpy as np
import PIL
import torch

from .. import __version__
from ..core.errors import DataError
from .features.extractor import Extractor
from .images.sets import ImageSet
from .reference import Reference
from .running import Gaussian
from .statistics import frechet_distance, precision_recall
from .summary import SPLIT_SIZE, SampleSummary

PUBLISHED_SAMPLES = 50_000  # what published figures are of


def reference_from(summary: SampleSummary, extractor: Extractor, images: ImageSet) -> Reference:
    """The reference that a gathered summary of all features of a set makes."""
    members = summary.members.to("cpu", torch.float32).numpy()
    about = {
        "images": dict(images.describe()),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "afm_scale": __version__, "torch": torch.__version__, "numpy": np.__version__, "Pillow": PIL.__version__,
            "python": platform.python_version(),
        },
    }
    return Reference(extractor.name, summary.pool, summary.spatial, members if len(members) else None, about)


@dataclass(frozen=True)
class Figures:
    """How good samples are. None: the features, or the reference, do not have what the figure needs."""

    frechet_distance: float  # FID, with Inception's features
    spatial_frechet_distance: float | None  # sFID
    inception_score: float | None
    inception_score_std: float | None  # over the splits; None: there is one
    precision: float | None
    recall: float | None
    num_samples: int
    num_reference: int | None  # None: the reference does not say
    notes: tuple[str, ...]  # what a reader of the figures has to know, in sentences

    def values(self) -> dict[str, float | None]:
        """The figures themselves, by name."""
        about = ("num_samples", "num_reference", "notes")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in about}


def compare(summary: SampleSummary, reference: Reference, *, k: int = 3, device: torch.device | str) -> Figures:
    """The figures of a gathered summary. Not collective: any rank may do it alone.

    Args:
        k: of precision and recall, whose distances are computed on `device`.

    Raises DataError if the two have features of different lengths, or either has too few samples.
    """
    pool, spatial, members = summary.pool, summary.spatial, summary.members
    distance = _distance(pool, reference.pool, "features")
    spatial_distance = None
    if spatial is not None and reference.spatial is not None:
        spatial_distance = _distance(spatial, reference.spatial, "spatial features")
    precision = recall = None
    if reference.members is not None and len(members) > 0:
        if min(len(members), len(reference.members)) <= k:
            raise DataError(
                f"precision and recall with k = {k} neighbours need at least {k + 1} samples on either side, found "
                f"{len(members)} samples and {len(reference.members)} of the reference; draw more"
            )
        precision, recall = precision_recall(reference.members, members, k, device=device)
    score = summary.inception_score
    return Figures(
        frechet_distance=distance,
        spatial_frechet_distance=spatial_distance,
        inception_score=None if score is None else score[0],
        inception_score_std=None if score is None or summary.num_samples <= SPLIT_SIZE else score[1],
        precision=precision, recall=recall,
        num_samples=summary.num_samples, num_reference=reference.pool.count,
        notes=(
            *_distance_notes(summary, reference, distance), *_score_notes(summary),
            *([] if recall is None else _recall_notes(len(members))),
        ),
    )


def _distance(ours: Gaussian, theirs: Gaussian, what: str) -> float:
    if len(ours.mean) != len(theirs.mean):
        raise DataError(
            f"the reference has {len(theirs.mean)} {what} for an image, the samples have {len(ours.mean)}: it is a "
            "reference of other features; build one with the features that the samples are judged by"
        )
    return frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)


def _distance_notes(summary: SampleSummary, reference: Reference, distance: float) -> list[str]:
    """Too few samples, and the bias.

    The distance of N samples is too large by b / N to leading order (Chong and Forsyth, arXiv 1911.07023), so halves
    of the samples lie b / N further away than all of them. That assumes nothing about the features, while the b of
    Gaussian ones is too small for those of a network, and much too small where N is not several times D.
    """
    num_samples, dim = summary.num_samples, len(reference.pool.mean)
    if num_samples >= PUBLISHED_SAMPLES:
        return []
    notes = []
    if num_samples <= dim:
        notes.append(
            f"{num_samples:,} samples are too few for {dim:,} features: their covariance is singular (at least "
            f"{dim + 1:,} are needed), and the Frechet distance tells mostly of that"
        )
    if num_samples < 4:
        return notes
    further = [_distance(half, reference.pool, "features") for half in summary.halves]
    bias = max(0.0, sum(further) / len(further) - distance)
    rest = bias * num_samples / PUBLISHED_SAMPLES
    notes.append(
        f"of the Frechet distance, about {bias:.3g} is there because there are only {num_samples:,} samples (from "
        f"halves of them: it falls as 1 / samples); of {PUBLISHED_SAMPLES:,}, as published figures are, about "
        f"{rest:.3g} would be"
    )
    return notes


def _score_notes(summary: SampleSummary) -> list[str]:
    shortfall = summary.inception_score_shortfall
    if shortfall is None or summary.num_samples >= SPLIT_SIZE:
        return []
    lost = -torch.expm1(torch.tensor(-shortfall * (1 - summary.num_samples / SPLIT_SIZE))).item()
    return [
        f"the inception score is of one split of {summary.num_samples:,} images, about {lost:.1%} lower than of splits "
        f"of {SPLIT_SIZE:,}, as published figures are"
    ]


def _recall_notes(num_members: int) -> list[str]:
    if num_members >= PUBLISHED_SAMPLES:
        return []
    return [
        f"precision and recall are of {num_members:,} samples; recall grows with their number, and published figures "
        f"(ADM's evaluator) take {PUBLISHED_SAMPLES:,}"
    ]
