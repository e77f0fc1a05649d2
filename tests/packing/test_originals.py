"""Which files of a source are originals, and of which class: nothing moves a number in silence."""

from __future__ import annotations

import pytest

from afm_scale.core.errors import DataError
from afm_scale.data.description import Refused
from afm_scale.packing.classes import Layout, read_classes
from afm_scale.packing.naming import refuse_path, split_of, split_of_file
from afm_scale.packing.originals import FolderReader, Found, listing
from tests.data.small import packed_images


def listed(tmp_path, *names, folders=(), links=(), **layout):
    found = [Found(name=name, size=len(name)) for name in names]
    refused = [Refused(name=name, reason="is a link") for name in links]
    listing_ = listing(found, refused, FolderReader(tmp_path), folders=folders, layout=Layout(**layout))
    assert len(listing_.originals) + len(listing_.refused) == len(names) + len(links)  # every one is accounted for
    return listing_


@pytest.mark.parametrize("names, classes", [
    (["dog/0.jpg", "cat/0.jpg"], ["cat", "dog"]),
    (["top/dog/0.jpg", "top/cat/0.jpg"], ["cat", "dog"]),
    (["./top/dog/0.jpg", "./top/cat/0.jpg"], ["cat", "dog"]),
    (["a/b/dog/0.jpg"], ["dog"]),
    (["a/b/dog/0.jpg", "a/stray.jpg"], ["dog"]),
    (["a/dog/0.jpg", "a/cat/0.jpg", "a/stray.jpg", "stray.jpg"], ["cat", "dog"]),
    (["train/dog/0.jpg", "train/cat/0.jpg"], ["cat", "dog"]),
    (["truck/0.jpg", "train/0.jpg", "car/0.jpg"], ["car", "train", "truck"]),
    (["0.jpg"], []),
    ([], []),
])
def test_classes_are_the_folders_beside_each_other_that_hold_images(tmp_path, names, classes):
    found = listed(tmp_path, *names)
    assert list(found.class_names) == classes
    assert {one.name for one in found.refused} == {name for name in names if "stray" in name or name == "0.jpg"}
    for original in found.originals:
        assert original.name.rpartition("/")[0].endswith(classes[original.label])


JUNK = [
    "@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "cat/@eaDir/0.jpg/THUMB.jpg", "cat/.thumbnails/0.jpg", "__MACOSX/cat/._0.jpg",
    ".ipynb_checkpoints/0.jpg", "#recycle/bear/0.jpg", "$RECYCLE.BIN/bear/0.jpg", "lost+found/0.jpg", "cat/._0.jpg",
    "ant/@eaDir/0.png/THUMB.jpg", "cat/Thumbs.db", "cat/.DS_Store", ".DS_Store", "desktop.ini", "cat/_vti_cnf/0.jpg",
    "System Volume Information/bear/0.jpg", "__pycache__/bear/0.jpg", "cat/AlbumArtSmall.jpg", ".git/cat/0.jpg",
]


@pytest.mark.parametrize("name", JUNK)
def test_what_a_system_or_a_program_keeps_moves_no_number(tmp_path, name):
    found = listed(tmp_path, "cat/0.jpg", "dog/0.jpg", name)
    assert list(found.class_names) == ["cat", "dog"]
    assert [one.name for one in found.refused] == [name]


DOUBTS = {
    "splits": (["train/dog/0.jpg", "val/dog/0.jpg"], {}, "named as a split is.*--within"),
    "splits without classes": (["train/0.jpg", "test/1.jpg"], {}, "named as a split is"),
    "a split beside classes": (["cat/0.jpg", "dog/0.jpg", "test/cat/0.jpg"], {}, "named as a split is"),
    "images at two depths": (["dog/0.jpg", "dog/puppies/0.jpg", "cat/0.jpg"], {}, "different depths"),
    "classes at two depths": (["a/dog/0.jpg", "a/cat/0.jpg", "b/rose/0.jpg"], {}, "different depths"),
    "unknown thumbnails": (["cat/0.jpg", "cat/thumbs/0.jpg", "dog/1.jpg"], {}, "different depths"),
    "a folder in one class": (["dog/0.jpg", "dog/puppies/0.jpg"], {}, "1 images lie beside the class folders"),
    "most images beside": (["cat/0.jpg", "dog/0.jpg", "0.jpg", "1.jpg"], {}, "2 images lie beside"),
    "an empty folder": (["cat/0.jpg", "dog/0.jpg"], {"folders": ["bear"]}, "'bear' .*holds no image"),
    "a folder of texts": (["cat/0.jpg", "dog/0.jpg", "annotations/0.xml"], {}, "'annotations' .*holds no image"),
    "a link to a class": (["cat/0.jpg", "dog/0.jpg"], {"links": ["bear"]}, "'bear' is a link among the class folders"),
    "a number twice": (["1/0.jpg", "01/0.jpg"], {}, "named 1, with and without zeros"),
    "accents in two ways": (["caf\u00e9/0.jpg", "cafe\u0301/0.jpg"], {}, "accents written in two ways"),
    "an archive": (["cat/0.jpg", "dog/0.jpg", "bear.tar"], {}, "'bear.tar' .*may hold images"),
    "archives alone": (["n01.tar", "n02.tar"], {}, "'n01.tar' and 1 more .*may hold images"),
    "within nothing": (["cat/0.jpg"], {"within": "train"}, "--within train is no folder"),
    "a class misspelt": (["cat/0.jpg", "dog/0.jpg"], {"classes": ("cat", "dgo")}, "'dgo'.* does not name 'dog'"),
    "classes of others": (["cat/0.jpg"], {"classes": ("a", "b")}, "no such folder is in the source"),
}


@pytest.mark.parametrize("names, options, told", DOUBTS.values(), ids=DOUBTS)
def test_whatever_would_move_a_number_or_lose_a_class_is_asked_about(tmp_path, names, options, told):
    with pytest.raises(DataError, match=told):
        listed(tmp_path, *names, **options)


def test_folders_that_are_numbers_are_ordered_as_numbers_and_others_as_texts_and_it_is_said(tmp_path):
    numbers = listed(tmp_path, *(f"{number}/0.jpg" for number in (0, 1, 2, 10)))
    assert list(numbers.class_names) == ["0", "1", "2", "10"]
    assert any("ordered as numbers" in note for note in numbers.notes)
    assert any("'10' has number 3" in note for note in numbers.notes)
    texts = listed(tmp_path, *(f"class_{number}/0.jpg" for number in (0, 2, 10)))
    assert list(texts.class_names) == ["class_0", "class_10", "class_2"]
    assert any("ordered as texts: number 1 is 'class_10', and not 'class_2'" in note for note in texts.notes)
    assert not listed(tmp_path, "cat/0.jpg", "dog/0.jpg").notes


def test_accents_are_ordered_alike_however_a_system_writes_them(tmp_path):
    for accent in ("\u00e9", "e\u0301"):
        found = listed(tmp_path, f"{accent}a/0.jpg", "f/0.jpg", "z/0.jpg")
        assert list(found.class_names) == ["f", "z", "\u00e9a"]


def test_a_class_whose_images_are_all_left_out_keeps_its_number(tmp_path):
    found = listed(tmp_path, "ant/0.jpg", "cat/0.jpg", links=["bee/0.jpg"])
    assert list(found.class_names) == ["ant", "bee", "cat"]


def test_one_inner_folder_of_every_class_is_no_part_of_its_name(tmp_path):
    found = listed(tmp_path, "n01/images/0.jpg", "n02/images/0.jpg", "n01/boxes.txt")
    assert list(found.class_names) == ["n01", "n02"] and [one.label for one in found.originals] == [0, 1]
    assert "the images of a class lie in its folder 'images'" in found.notes[0]


def test_the_classes_of_a_file_have_the_numbers_of_its_lines(tmp_path):
    names = ["top/cat/0.jpg", "top/dog/0.jpg", "top/dog/puppies/0.jpg", "top/bear/0.jpg"]
    with pytest.raises(DataError, match="'wolf'.* does not name 'top/bear'"):
        listed(tmp_path, *names, classes=("dog", "wolf", "cat"))
    found = listed(tmp_path, *names, classes=("dog", "cat"))
    assert {one.name: one.label for one in found.originals} == {names[0]: 1, names[1]: 0, names[2]: 0}
    assert [(one.name, one.reason) for one in found.refused] == [(names[3], "lies in no folder that --classes names")]
    puppies = listed(tmp_path, *names, classes=("dog", "cat", "dog/puppies", "bear"))
    assert {one.name: one.label for one in puppies.originals} == dict(zip(names, (1, 0, 2, 3), strict=True))
    fewer = listed(tmp_path, "cat/0.jpg", classes=("ant", "bee", "cat"))
    assert [one.label for one in fewer.originals] == [2] and len(fewer.notes) == 2


def test_a_part_of_the_source_is_packed_and_the_rest_is_counted(tmp_path):
    names = ["d/train/cat/0.jpg", "d/train/dog/0.jpg", "d/val/cat/0.jpg", "d/list.txt"]
    found = listed(tmp_path, *names, within="d/train/")
    assert list(found.class_names) == ["cat", "dog"]
    assert {one.reason for one in found.refused} == {"lies outside of --within"}


@pytest.mark.parametrize("text, told", [
    ("cat\n\ndog\n", "its line 2 is blank"), ("cat\ndog\ncat\n", "names 'cat' twice"), ("", "it holds no name"),
    ("caf\u00e9\ncafe\u0301", "twice"),
])
def test_a_file_of_classes_that_would_move_a_number_is_refused(tmp_path, text, told):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=told):
        read_classes(tmp_path / "classes.txt")


def test_classes_are_read_from_a_text_of_windows_too_and_from_a_packed_set(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog/\r\n\r\n")
    assert read_classes(tmp_path / "classes.txt") == ("cat", "dog")
    done = packed_images(tmp_path / "packed")
    assert read_classes(tmp_path / "packed") == done.class_names
    assert read_classes(tmp_path / "packed" / "dataset.json") == done.class_names


@pytest.mark.parametrize("name, split", [
    ("train", "train"), ("Train2017", "train"), ("val_images", "val"), ("a/test-set", "test"), ("trains", None),
    ("testing", "testing"), ("tests", None), ("valley", None), ("development", None),
])
def test_splits_are_known_by_their_names(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize("name, split", [
    ("train-00000-of-00002.parquet", "train"), ("test.parquet", "test"), ("validation-0.parquet", "validation"),
    ("0000.parquet", None), ("trainers.parquet", None),
])
def test_splits_of_parquet_files_are_known_by_their_names(name, split):
    assert split_of_file(name) == split


@pytest.mark.parametrize("name, reason", [
    ("cat/Thumbs.db", "is not an image by its name (.db)"),
    ("cat/readme", "is not an image by its name (no extension)"),
    ("cat/._0.jpg", "is a hidden file"), (".git/cat/0.jpg", "is a hidden file"),
    ("__MACOSX/cat/0.jpg", "is a hidden file"), ("@eaDir/0.jpg", "is kept by a system or a program (@eaDir)"),
    ("metadata.csv", "is not an image by its name (.csv)"), ("cat.zip", "is not an image by its name (.zip)"),
])
def test_other_files_are_listed_with_the_reason(tmp_path, name, reason):
    found = listed(tmp_path, "cat/0.jpg", name)
    assert [(one.name, one.reason) for one in found.refused] == [(name, reason)]
    assert list(found.class_names) == ["cat"]
    assert any("metadata.csv is not read" in note for note in found.notes) == (name == "metadata.csv")


def test_images_that_differ_in_the_extension_alone_are_told_of(tmp_path):
    assert "such as 'cat/0'" in listed(tmp_path, "cat/0.jpg", "cat/0.png", "dog/0.jpg").notes[0]


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
