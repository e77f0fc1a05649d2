"""References: what is written is read again, ADM's and pytorch-fid's files are read, and other features are refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from afm_scale.core.errors import DataError, UserError
from afm_scale.evaluation.features.extractor import Features, PixelFeatures
from afm_scale.evaluation.figures import reference_from
from afm_scale.evaluation.images.sets import open_images
from afm_scale.evaluation.reference import (
    Reference,
    holds_statistics,
    read_reference,
    write_reference,
)
from afm_scale.evaluation.running import Gaussian
from afm_scale.evaluation.summary import SampleSummary
from afm_scale.sampling.order import npz_order
from tests.ranks import run_ranks

NUM, SIZE = 40, 4


class Corners:
    """The corner pixels of each channel, as features; the middle of the image as spatial ones."""

    name = "corners"
    reads = "images"

    def __call__(self, x: Tensor) -> Features:
        corners = x[:, :, ::SIZE - 1, ::SIZE - 1].flatten(1).to(torch.float64) / 255
        return Features(corners, spatial=x[:, 0, 1:3, 1:3].flatten(1).to(torch.float64) / 255)


def pictures(num_images: int = NUM, seed: int = 0) -> np.ndarray:
    """[N, H, W, C] uint8"""
    return np.random.default_rng(seed).integers(0, 256, (num_images, SIZE, SIZE, 3), dtype=np.uint8)


def gaussian(features: Tensor) -> Gaussian:
    values = features.to(torch.float64).numpy()
    return Gaussian(len(values), values.mean(axis=0), np.cov(values, rowvar=False))


def features_of(images: np.ndarray) -> Features:
    return Corners()(torch.from_numpy(images).permute(0, 3, 1, 2))


def reference(num_members: int = 10) -> Reference:
    features = features_of(pictures())
    members = features.pool[:num_members].to(torch.float32).numpy()
    about = {"images": {"source": "a folder", "num_images": NUM}, "made": "today"}
    return Reference("corners", gaussian(features.pool), gaussian(features.spatial), members, about)


def adm_arrays(num_images: int = NUM) -> dict[str, np.ndarray]:
    """As in ADM's reference batches: statistics of a whole set, and some of its images."""
    features = features_of(pictures())
    pool, spatial = gaussian(features.pool), gaussian(features.spatial)
    return {
        "arr_0": pictures()[:num_images], "mu": pool.mean, "sigma": pool.covariance, "mu_s": spatial.mean,
        "sigma_s": spatial.covariance,
    }


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def assert_same(one: Gaussian, other: Gaussian) -> None:
    assert one.count == other.count
    assert one.mean.dtype == one.covariance.dtype == np.float64
    assert np.array_equal(one.mean, other.mean) and np.array_equal(one.covariance, other.covariance)


def test_what_is_written_is_read_again_bit_for_bit(tmp_path):
    written = reference()
    write_reference(tmp_path / "made" / "reference.npz", written)
    found = read_reference(tmp_path / "made" / "reference.npz", Corners())
    assert found.features == "corners" and found.about == written.about
    assert_same(found.pool, written.pool)
    assert_same(found.spatial, written.spatial)
    assert found.members.dtype == np.float32 and np.array_equal(found.members, written.members)


def test_spatial_features_members_and_the_count_may_be_missing(tmp_path):
    pool = reference().pool
    lean = Reference("corners", Gaussian(None, pool.mean, pool.covariance), None, None, {})
    write_reference(tmp_path / "lean.npz", lean)
    found = read_reference(tmp_path / "lean.npz", Corners())
    assert (found.spatial, found.members, found.pool.count, found.about) == (None, None, None, {})


def test_an_independent_reader_finds_the_names_of_adm_and_a_description_in_json(tmp_path):
    written = reference()
    write_reference(tmp_path / "reference.npz", written)
    with zipfile.ZipFile(tmp_path / "reference.npz") as archive:
        assert sorted(archive.namelist()) == sorted(
            f"{name}.npy" for name in ("mu", "sigma", "mu_s", "sigma_s", "members", "about")
        )
        with archive.open("sigma_s.npy") as file:
            assert np.array_equal(np.lib.format.read_array(file, allow_pickle=False), written.spatial.covariance)
    about = json.loads(str(np.load(tmp_path / "reference.npz", allow_pickle=False)["about"]))
    assert (about["features"], about["count"]) == ("corners", NUM)


@pytest.mark.parametrize("num_members", [0, 10])
def test_a_reference_is_made_of_a_set_and_says_where_it_comes_from(num_members, tmp_path):
    images = open_images(saved(tmp_path / "set.npz", arr_0=pictures()))
    summary = SampleSummary(images.num_images, num_members, "cpu")
    for indices, batch in images.batches(0, 1, 7):
        summary.add(Corners()(batch), indices)
    summary.gather(SimpleNamespace(rank=0, world_size=1))
    made = reference_from(summary, Corners(), images)
    write_reference(tmp_path / "reference.npz", made)
    found, wanted = read_reference(tmp_path / "reference.npz", Corners()), reference()
    assert found.pool.count == NUM and found.about == made.about
    assert np.allclose(found.pool.covariance, wanted.pool.covariance, rtol=0, atol=1e-14)
    assert np.allclose(found.spatial.mean, wanted.spatial.mean, rtol=0, atol=1e-14)
    chosen = npz_order(NUM)[:num_members].sort().values  # by chance, so that a set in order of class gives all classes
    members = features_of(pictures()).pool[chosen].to(torch.float32).numpy()
    assert found.members is None if num_members == 0 else np.array_equal(found.members, members)
    assert found.about["images"] == images.describe() and found.about["images"]["num_images"] == NUM
    assert found.about["made"].endswith("+00:00") and "torch" in found.about["versions"]


def test_a_reference_of_unknown_features_is_not_written_as_known(tmp_path):
    written = reference()
    with pytest.raises(ValueError, match="unknown features"):
        write_reference(tmp_path / "x.npz", Reference(None, written.pool, None, None, {}))


def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not write"):
        write_reference(tmp_path / "file" / "reference.npz", reference())


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_file_of_adm_gives_its_statistics_and_the_features_of_its_images(batch_size, tmp_path):
    path = saved(tmp_path / "adm.npz", **adm_arrays(30), arr_1=np.zeros(30, np.int64))
    found = read_reference(path, Corners(), batch_size=batch_size)
    whole = reference(30)
    assert found.features is None and found.pool.count is None
    assert np.array_equal(found.pool.mean, whole.pool.mean)
    assert np.array_equal(found.spatial.covariance, whole.spatial.covariance)
    assert found.members.dtype == np.float32 and np.array_equal(found.members, whole.members)
    assert found.about["source"] == str(path) and holds_statistics(path)


def test_the_file_of_pytorch_fid_gives_two_arrays_in_any_precision(tmp_path):
    pool = reference().pool
    path = saved(tmp_path / "fid.npz", mu=pool.mean.astype(np.float32), sigma=pool.covariance.astype(">f8"))
    found = read_reference(path, Corners())
    assert (found.features, found.spatial, found.members) == (None, None, None)
    assert found.pool.mean.dtype == np.float64 and np.allclose(found.pool.mean, pool.mean, atol=1e-6)
    assert np.array_equal(found.pool.covariance, pool.covariance)


def test_an_npz_of_images_alone_holds_no_statistics(tmp_path):
    path = saved(tmp_path / "set.npz", arr_0=pictures())
    assert not holds_statistics(path)
    with pytest.raises(DataError, match=r"no statistics 'mu', but arr_0 \(uint8 \[40, 4, 4, 3\]\); build a reference"):
        read_reference(path, Corners())


def _summed(tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor)
    return tensor


def _members_of(path: Path) -> np.ndarray:
    found = read_reference(
        path, Corners(), batch_size=3, rank=dist.get_rank(), world_size=dist.get_world_size(), sum_over_ranks=_summed
    )
    return found.members


def test_ranks_share_the_images_of_adm_and_all_have_the_same_members(tmp_path):
    path = saved(tmp_path / "adm.npz", **adm_arrays(19))
    for members in run_ranks(2, _members_of, path):
        assert np.array_equal(members, reference(19).members)


# What is refused.

def refuse(path: Path, match: str, extractor=None) -> None:
    with pytest.raises(DataError, match=match):
        read_reference(path, extractor or Corners())


def test_our_reference_of_other_features_is_refused_with_both_names(tmp_path):
    write_reference(tmp_path / "reference.npz", reference())
    refuse(tmp_path / "reference.npz", "other features: it has 'corners', wanted 'pixels in", PixelFeatures())


def test_a_nameless_reference_of_other_features_is_seen_by_their_number(tmp_path):
    refuse(saved(tmp_path / "adm.npz", **adm_arrays()), "it has 12 an image, 'pixels in .*' gives 48", PixelFeatures())
    other = adm_arrays() | {"mu_s": np.zeros(5), "sigma_s": np.eye(5)}
    refuse(saved(tmp_path / "adm.npz", **other), "it has 5 an image, 'corners' gives 4")


def test_a_nameless_reference_of_as_many_other_features_is_seen_by_the_images_mean(tmp_path):
    arrays = adm_arrays()
    read_reference(saved(tmp_path / "adm.npz", **arrays), Corners())
    refuse(saved(tmp_path / "adm.npz", **arrays | {"mu": arrays["mu"] + 0.3}), "of other features than 'corners'")


@pytest.mark.parametrize("num_images", [1, 2, 5, 20])
def test_a_fair_choice_of_images_however_small_is_never_taken_for_other_features(num_images, tmp_path):
    arrays = adm_arrays()
    for seed in range(20):
        arrays["arr_0"] = pictures(num_images, seed=100 + seed)
        read_reference(saved(tmp_path / "adm.npz", **arrays), Corners())


def test_features_of_samples_are_not_compared_with_a_nameless_reference(tmp_path):
    extractor = Corners()
    extractor.reads = "samples"
    refuse(saved(tmp_path / "fid.npz", mu=np.zeros(12), sigma=np.eye(12)), "reads the generator's own space", extractor)


NAN = np.full(12, np.nan)


@pytest.mark.parametrize("change, match", [
    ({"sigma": None}, "has no array 'sigma'; it holds"),
    ({"sigma_s": None}, "has no array 'sigma_s'; it holds"),
    ({"mu_s": None}, "has no array 'mu_s'; it holds"),
    ({"mu": np.zeros((3, 4))}, r"'mu' is float64 \[3, 4\]; wanted float32 or float64 \[any\]"),
    ({"mu": np.zeros(0)}, r"'mu' is float64 \[0\]"),
    ({"mu": np.zeros(12, np.int64)}, r"'mu' is int64 \[12\]"),
    ({"mu": np.zeros(12, np.float16)}, r"'mu' is float16 \[12\]"),
    ({"mu": NAN}, "'mu' holds values that are not finite"),
    ({"mu": np.array([{}] * 12)}, "'mu' holds pickled Python objects"),
    ({"sigma": np.eye(11)}, r"'sigma' is float64 \[11, 11\]; wanted float32 or float64 \[12, 12\]"),
    ({"sigma": np.triu(np.ones((12, 12)))}, "'sigma' is not the covariance of anything"),
    ({"sigma": np.diag(np.arange(12.0) - 1)}, "'sigma' is not the covariance of anything"),
    ({"arr_0": pictures().astype(np.float32)}, r"'arr_0' is float32 \[40, 4, 4, 3\]; wanted finished images"),
])
def test_arrays_of_the_wrong_type_shape_or_content_are_refused(change, match, tmp_path):
    arrays = {name: value for name, value in (adm_arrays() | change).items() if value is not None}
    refuse(saved(tmp_path / "adm.npz", **arrays), match)


@pytest.mark.parametrize("about", [
    np.zeros(3), np.array("no JSON"), np.array("[1]"), np.array(json.dumps({"format": "other", "version": 1})),
    np.array(json.dumps({"format": "afm_scale reference", "version": 2})),
    np.frombuffer(b"\xff\xff\xff\x7f", "<U1").reshape(()),  # no letter
    np.array(json.dumps({"format": "afm_scale reference", "version": 1, "features": 3, "count": 4, "about": {}})),
    np.array(json.dumps({"format": "afm_scale reference", "version": 1, "features": "corners", "about": []})),
])
def test_descriptions_that_are_not_ours_are_refused(about, tmp_path):
    refuse(saved(tmp_path / "x.npz", mu=np.zeros(12), sigma=np.eye(12), about=about), "'about' is not a description")


def test_members_of_another_width_or_type_are_refused(tmp_path):
    write_reference(tmp_path / "reference.npz", reference())
    arrays = dict(np.load(tmp_path / "reference.npz"))
    for members in (np.zeros((10, 11), np.float32), np.zeros((0, 12), np.float32), np.zeros((10, 12), np.int32)):
        refuse(saved(tmp_path / "other.npz", **arrays | {"members": members}), r"'members' is .*\[any, 12\]")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_references_are_refused(share, tmp_path):
    write_reference(tmp_path / "reference.npz", reference())
    data = (tmp_path / "reference.npz").read_bytes()
    (tmp_path / "reference.npz").write_bytes(data[:int(share * len(data))])
    refuse(tmp_path / "reference.npz", "cannot be read as an npz")


def test_a_flipped_bit_and_a_missing_file_are_refused(tmp_path):
    write_reference(tmp_path / "reference.npz", reference())
    data = bytearray((tmp_path / "reference.npz").read_bytes())
    data[data.index(b"sigma.npy") + 400] ^= 1
    (tmp_path / "reference.npz").write_bytes(data)
    refuse(tmp_path / "reference.npz", "cannot be read as an npz .*Bad CRC-32")
    refuse(tmp_path / "nowhere.npz", "No such file or directory")
