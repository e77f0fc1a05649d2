"""Reading packed samples: any order, from any process, and never bytes other than those that were packed."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from afm_scale.core.errors import DataError
from afm_scale.data.description import DESCRIPTION_NAME, INDEX_NAME, file_sha256
from afm_scale.data.shards import PackedShards, SampleError
from tests.data.small import encoded, packed_images, picture


@pytest.fixture
def folder(tmp_path):
    packed_images(tmp_path / "packed")
    return tmp_path / "packed"


def with_index(folder, **tensors):
    """Replaces columns of the index, and its sum in dataset.json, as a careless tool might."""
    path, description = folder / INDEX_NAME, folder / DESCRIPTION_NAME
    old = file_sha256(path)
    save_file(load_file(path) | tensors, path)
    description.write_text(description.read_text().replace(old, file_sha256(path)))


def test_every_sample_is_read_in_any_order(folder):
    shards = PackedShards(folder)
    for sample in (11, 0, 5, 4, 0, 7, 3):
        assert shards.read(sample) == encoded(picture(sample, width=16, height=16))
        assert int(shards.index.label[sample]) == sample % 3
    shards.close()
    assert shards.read(1) == encoded(picture(1, width=16, height=16))
    shards.close()


def test_a_copy_made_by_pickle_reads_the_same(folder):
    shards = PackedShards(folder)
    shards.read(0)
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.read(9) == shards.read(9)
    shards.close(), copy.close()


def test_a_whole_data_set_has_no_problems(folder):
    assert PackedShards(folder).check() == []


def test_damaged_bytes_are_refused_with_shard_and_key(folder):
    shards = PackedShards(folder)
    path = folder / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[int(shards.index.offset[6, 0]) + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(SampleError, match="shard-000001.tar, sample 000000006: the bytes are not .*on_error=skip"):
        shards.read(6)
    assert shards.read(7) == encoded(picture(7, width=16, height=16))
    shards.close()


def test_a_shard_cut_short_is_refused_with_its_name(folder):
    path = folder / "shard-000002.tar"
    whole = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(2048)
    shards = PackedShards(folder)
    assert shards.check() == [f"{path} has 2048 bytes, wanted {whole}"]
    with pytest.raises(SampleError, match="shard-000002.tar, sample 000000011: the shard is truncated: 0 of"):
        shards.read(11)
    shards.close()


def test_a_missing_shard_is_found_by_the_check_and_by_reading(folder):
    (folder / "shard-000000.tar").unlink()
    shards = PackedShards(folder)
    assert shards.check() == [f"{folder / 'shard-000000.tar'}: No such file or directory"]
    with pytest.raises(SampleError, match="shard-000000.tar, sample 000000002: No such file or directory"):
        shards.read(2)


def test_an_idx_of_another_shard_is_found(folder):
    (folder / "shard-000001.idx").write_bytes((folder / "shard-000000.idx").read_bytes())
    assert PackedShards(folder).check() == [f"{folder / 'shard-000001.idx'} is not the index of shard-000001.tar"]


def test_a_missing_idx_is_found(folder):
    (folder / "shard-000001.idx").unlink()
    assert PackedShards(folder).check() == [f"{folder / 'shard-000001.idx'}: No such file or directory"]


def test_an_index_of_another_packing_is_refused(folder, tmp_path):
    packed_images(tmp_path / "other", size=8)
    (folder / INDEX_NAME).write_bytes((tmp_path / "other" / INDEX_NAME).read_bytes())
    with pytest.raises(DataError, match="is not the index that dataset.json describes"):
        PackedShards(folder).check()


def test_an_index_of_another_length_is_refused_at_once(folder, tmp_path):
    packed_images(tmp_path / "other", num_samples=9)
    (folder / INDEX_NAME).write_bytes((tmp_path / "other" / INDEX_NAME).read_bytes())
    with pytest.raises(DataError, match="is of 9 samples .* dataset.json of 12"):
        PackedShards(folder)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_of_no_class_are_refused(folder, label):
    labels = torch.arange(12) % 3
    labels[4] = label
    with_index(folder, label=labels)
    with pytest.raises(DataError, match="wanted 0 to 2"):
        PackedShards(folder).check()


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"\xff" * 8])
def test_what_is_no_index_is_refused(folder, data):
    (folder / INDEX_NAME).write_bytes(data)
    with pytest.raises(DataError, match="cannot be read as an index"):
        PackedShards(folder)
