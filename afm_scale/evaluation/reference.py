"""What samples are compared with: statistics of a reference set's features, kept in an npz with where they come from.

Three kinds of npz are read. Ours names its features. ADM's (mu, sigma, mu_s, sigma_s and 10,000 images) and that of
pytorch-fid (mu, sigma) do not: they are Inception's by convention, which only ADM's images allow to check.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..core.errors import ConfigError, DataError
from ..core.files import write_atomically
from ..core.ranges import Range
from ..core.strict_json import parse_json
from ..core.typed import build
from ..data.npz import Npz
from .features.extractor import Extractor
from .images.sets import IMAGES, NpzImages
from .running import Gaussian

FORMAT = "afm_scale reference"
FORMAT_VERSION = 1
_MEAN, _COVARIANCE = "mu", "sigma"  # ADM's and pytorch-fid's names
_SPATIAL_MEAN, _SPATIAL_COVARIANCE = "mu_s", "sigma_s"  # ADM's
_MEMBERS, _ABOUT = "members", "about"
_LONGEST_ABOUT = 2**22  # bytes: a million characters
_LARGEST = {_MEAN: 1e15, _SPATIAL_MEAN: 1e15, _COVARIANCE: 1e30, _SPATIAL_COVARIANCE: 1e30, _MEMBERS: 1e15}
"""No feature is larger, and no figure of smaller ones overflows."""
_ROUNDING = 1e-6  # of the trace, by which eigenvalues of a covariance stored in float32 may be off


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What a file of ours says of itself."""

    format: Literal["afm_scale reference"]
    version: Literal[1]
    features: str
    count: Annotated[int | None, Range(2)]
    about: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of the features of a reference set."""

    features: str | None  # `Extractor.name`; None: the file does not say
    pool: Gaussian
    spatial: Gaussian | None
    members: NDArray[np.float32] | None  # [M, D] features of single images, for precision and recall
    about: Mapping[str, Any]  # JSON values: the images (`ImageSet.describe`), the time, the versions


def write_reference(path: Path, reference: Reference) -> None:
    """Writes one npz that is complete or absent; ADM's evaluator reads its statistics too, if it has spatial ones.

    Raises UserError if the file system refuses, ValueError if the reference does not say what its features are.
    """
    if reference.features is None:
        raise ValueError("a reference of unknown features would be taken for known ones once it is written")
    about = {
        "format": FORMAT, "version": FORMAT_VERSION, "features": reference.features, "count": reference.pool.count,
        "about": dict(reference.about),
    }
    arrays = {_MEAN: reference.pool.mean, _COVARIANCE: reference.pool.covariance, _ABOUT: np.array(json.dumps(about))}
    if reference.spatial is not None:
        arrays |= {_SPATIAL_MEAN: reference.spatial.mean, _SPATIAL_COVARIANCE: reference.spatial.covariance}
    if reference.members is not None:
        arrays[_MEMBERS] = np.asarray(reference.members, dtype=np.float32)
    write_atomically(path, lambda file: np.savez(file, **arrays))


def holds_statistics(path: Path) -> bool:
    """Whether an npz is a reference; otherwise it may hold images. Raises DataError if it is no npz."""
    return _MEAN in Npz(path).members


def read_reference(
    path: Path, extractor: Extractor, *, device: torch.device | str = "cpu", batch_size: int = 64,
    rank: int = 0, world_size: int = 1, sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> Reference:
    """Reads a reference for features of `extractor`; what can be seen not to be of these features is refused.

    If the file holds images and no members (ADM's), the members are the images' features: the ranks share the images
    and `sum_over_ranks` puts the results together, so with several ranks the call is collective.

    Args:
        device: the extractor's.
        batch_size: images that the extractor is given at a time.
        sum_over_ranks: returns the sum of every rank's tensor on every rank; needed if world_size > 1.

    Raises DataError if the file is damaged or of another kind, or its features are not the extractor's.
    """
    npz = Npz(path)
    if _MEAN not in npz.members:
        held = ", ".join(f"{name} ({member})" for name, member in npz.members.items())
        raise DataError(f"{path} holds no statistics {_MEAN!r}, but {held}; build a reference of its images first")
    if _ABOUT in npz.members:
        return _read_ours(npz, extractor)
    if extractor.reads != "images":
        raise DataError(
            f"{path} does not say what its features are, so they are of finished images; {extractor.name!r} reads the "
            "generator's own space: build a reference with it"
        )
    pool, spatial = _statistics(npz, count=None)
    members = None
    if IMAGES in npz.members:
        found = _members_of(npz, extractor, pool, spatial, torch.device(device), batch_size, rank, world_size)
        # A row is zero on all ranks but one, so the sum is exact.
        members = (sum_over_ranks(found) if sum_over_ranks else found).cpu().numpy()
        _refuse_unlikely(npz, extractor, members, pool)
    about = {"source": str(path), "arrays": {name: f"{member.crc32:08x}" for name, member in npz.members.items()}}
    return Reference(None, pool, spatial, members, about)


def _read_ours(npz: Npz, extractor: Extractor) -> Reference:
    header = _header(npz)
    if header.features != extractor.name:
        raise DataError(
            f"{npz.path} is a reference of other features: it has {header.features[:300]!r}, wanted "
            f"{extractor.name!r}; build a reference of the same images with these features"
        )
    pool, spatial = _statistics(npz, header.count)
    members = _floats(npz, _MEMBERS, (None, len(pool.mean))) if _MEMBERS in npz.members else None
    members = None if members is None else members.astype(np.float32)
    return Reference(header.features, pool, spatial, members, header.about)


def _header(npz: Npz) -> _Header:
    member = npz.member(_ABOUT)
    try:
        if member.dtype.kind != "U" or member.shape != () or member.dtype.itemsize > _LONGEST_ABOUT:
            raise ValueError(f"it is {member}")
        return build(_Header, parse_json(_text(npz.read(_ABOUT))))
    except (ValueError, ConfigError) as error:  # no Unicode, no JSON, or of another kind
        raise DataError(
            f"{npz.path}, array {_ABOUT!r} is not a description of format {FORMAT!r}, version {FORMAT_VERSION}: "
            f"{error}; build the reference again"
        ) from None


def _text(array: NDArray[np.str_]) -> str:
    """The text of an array that is one. Raises ValueError if it is no Unicode, where numpy has an error of its own."""
    order = "utf-32-be" if array.dtype.str.startswith(">") else "utf-32-le"
    return array.tobytes().decode(order).rstrip("\0")


def _statistics(npz: Npz, count: int | None) -> tuple[Gaussian, Gaussian | None]:
    pool = _gaussian(npz, _MEAN, _COVARIANCE, count)
    if _SPATIAL_MEAN not in npz.members and _SPATIAL_COVARIANCE not in npz.members:
        return pool, None
    return pool, _gaussian(npz, _SPATIAL_MEAN, _SPATIAL_COVARIANCE, count)


def _gaussian(npz: Npz, mean_name: str, covariance_name: str, count: int | None) -> Gaussian:
    mean = _floats(npz, mean_name, (None,)).astype(np.float64)
    covariance = _floats(npz, covariance_name, (len(mean), len(mean))).astype(np.float64)
    if not _is_covariance(covariance):
        raise DataError(
            f"{npz.path}, array {covariance_name!r} is not the covariance of anything: it is not symmetric, or has "
            "negative variances; build the reference again"
        )
    return Gaussian(count, mean, covariance)


def _is_covariance(values: NDArray[np.float64]) -> bool:
    """Whether a matrix is symmetric and no direction has a negative variance, but for rounding."""
    largest, trace = np.abs(values).max(), float(values.trace())
    if np.abs(values - values.T).max() > 1e-6 * largest or values.diagonal().min() < -1e-6 * largest:
        return False
    if trace == 0:  # of images that are all the same
        return bool(largest == 0)
    try:
        np.linalg.cholesky(values / trace + _ROUNDING * np.eye(len(values)))  # much quicker than eigenvalues
    except np.linalg.LinAlgError:
        return False
    return True


def _floats(npz: Npz, name: str, shape: tuple[int | None, ...]) -> NDArray[np.floating[Any]]:
    """A finite array; None in the shape: any length but 0."""
    member = npz.member(name)
    fits = len(member.shape) == len(shape) and all(
        length == wanted or (wanted is None and length > 0) for length, wanted in zip(member.shape, shape, strict=True)
    )
    if member.dtype.kind != "f" or member.dtype.itemsize not in (4, 8) or not fits:
        wanted_shape = ", ".join("any" if length is None else str(length) for length in shape)
        raise DataError(
            f"{npz.path}, array {name!r} is {member}; wanted float32 or float64 [{wanted_shape}]: "
            "it is no reference, or a damaged one"
        )
    values = npz.read(name)
    if not (np.abs(values) <= _LARGEST[name]).all():
        raise DataError(
            f"{npz.path}, array {name!r} holds values that are not finite, or above {_LARGEST[name]:g}; build the "
            "reference again"
        )
    return values


@torch.no_grad()
def _members_of(
    npz: Npz, extractor: Extractor, pool: Gaussian, spatial: Gaussian | None, device: torch.device, batch_size: int,
    rank: int, world_size: int,
) -> Tensor:
    """[M, D] float32 on the device: the features of this rank's images, zero in the rows of the others."""
    images = NpzImages(npz.path, None)
    members = torch.zeros(images.num_images, len(pool.mean), dtype=torch.float32, device=device)
    with tqdm(total=images.num_images, unit="image", desc="reference", disable=True if rank else None) as progress:
        for indices, batch in images.batches(rank, world_size, batch_size):
            features = extractor(batch.to(device))
            for found, wanted in ((features.pool, pool), (features.spatial, spatial)):
                if found is not None and wanted is not None and found.shape[1] != len(wanted.mean):
                    raise DataError(
                        f"{npz.path} is a reference of other features: it has {len(wanted.mean)} an image, "
                        f"{extractor.name!r} gives {found.shape[1]}; build a reference with these"
                    )
            members[indices.to(device)] = features.pool.to(torch.float32)
            progress.update(min(len(batch) * world_size, images.num_images - progress.n))
    return members


def _refuse_unlikely(npz: Npz, extractor: Extractor, members: NDArray[np.float32], pool: Gaussian) -> None:
    """Compares the mean of the images' features with the file's, which was taken over the same or more images.

    The squared distance of the mean of M fair draws from the true mean is trace / M on average. Ten times that is
    allowed, and a tenth of the trace, for another version of the same network or an uneven choice of images.
    """
    trace = float(pool.covariance.trace())
    distance = float(((members.mean(axis=0, dtype=np.float64) - pool.mean) ** 2).sum())
    if distance > (0.1 + 10 / len(members)) * trace:
        raise DataError(
            f"{npz.path} is a reference of other features than {extractor.name!r}, or its images are not those its "
            f"statistics are of: the means of the two are {distance:.4g} apart (squared), where the total variance is "
            f"{trace:.4g}; build a reference with these features"
        )
