"""Which files of a source are originals, and of which class."""

from __future__ import annotations

import pytest

from afm_scale.packing.originals import FolderReader, Found, listing, refuse_path


def listed(tmp_path, *names):
    return listing([Found(name=name, size=len(name)) for name in names], [], FolderReader(tmp_path))


@pytest.mark.parametrize("names, classes", [
    (["dog/0.jpg", "cat/0.jpg"], ["cat", "dog"]),
    (["top/dog/0.jpg", "top/cat/0.jpg"], ["cat", "dog"]),
    (["./top/dog/0.jpg", "./top/cat/0.jpg"], ["cat", "dog"]),
    (["a/b/dog/0.jpg"], ["dog"]),
    (["a/b/dog/0.jpg", "a/stray.jpg"], ["dog"]),
    (["a/dog/0.jpg", "a/cat/0.jpg", "a/stray.jpg", "stray.jpg"], ["cat", "dog"]),
    (["train/dog/0.jpg", "val/dog/0.jpg"], ["train/dog", "val/dog"]),
    (["dog/0.jpg", "dog/puppies/0.jpg", "cat/0.jpg"], ["cat", "dog", "dog/puppies"]),
    (["0.jpg"], []),
    ([], []),
])
def test_classes_are_the_folders_that_hold_images(tmp_path, names, classes):
    found = listed(tmp_path, *names)
    assert found.class_names == classes
    assert {one.name for one in found.refused} == {name for name in names if "stray" in name or name == "0.jpg"}
    for original in found.originals:
        assert original.name.rpartition("/")[0].endswith(classes[original.label])


@pytest.mark.parametrize("name, reason", [
    ("cat/Thumbs.db", "is not an image by its name (.db)"),
    ("cat/readme", "is not an image by its name (no extension)"),
    ("cat/._0.jpg", "is a hidden file"), (".git/cat/0.jpg", "is a hidden file"),
    ("__MACOSX/cat/0.jpg", "is a hidden file"),
])
def test_other_files_are_listed_with_the_reason(tmp_path, name, reason):
    found = listed(tmp_path, "cat/0.jpg", name)
    assert [(one.name, one.reason) for one in found.refused] == [(name, reason)]
    assert found.class_names == ["cat"]


def test_of_two_members_with_one_name_the_later_is_used(tmp_path):
    first, second = Found(name="cat/0.jpg", size=1, place=10), Found(name="./cat/0.jpg", size=2, place=20)
    found = listing([first, second], [], FolderReader(tmp_path))
    assert [one.place for one in found.originals] == [20]
    assert [one.reason for one in found.refused] == ["is named twice: the later one is used"]


def test_the_digest_follows_names_and_sizes_and_not_their_order(tmp_path):
    digest = listed(tmp_path, "cat/0.jpg", "dog/1.jpg").digest()
    assert listed(tmp_path, "dog/1.jpg", "cat/0.jpg").digest() == digest
    assert listed(tmp_path, "cat/0.jpg", "dog/2.jpg").digest() != digest
    longer = [Found(name="cat/0.jpg", size=99), Found(name="dog/1.jpg", size=9)]
    assert listing(longer, [], FolderReader(tmp_path)).digest() != digest


@pytest.mark.parametrize("name, reason", [
    ("/etc/passwd", "absolute"), ("\\\\server\\x.jpg", "absolute"), ("C:/x.jpg", "absolute"), ("a/../../x.jpg", "'..'"),
    ("..", "'..'"), ("a\\..\\x.jpg", "'..'"),
])
def test_paths_that_lead_out_are_refused(name, reason):
    assert reason in (refuse_path(name) or "")


@pytest.mark.parametrize("name", ["a/b.jpg", "./a/b..c.jpg", "a..b/c.jpg"])
def test_ordinary_paths_are_not_refused(name):
    assert refuse_path(name) is None
