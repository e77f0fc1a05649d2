"""Training on data that is missing, damaged or of another kind: what it says, how it ends, and what skipping does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from afm_scale.__main__ import main
from afm_scale.checkpoint.tensors import digest
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR, ConfigError, DataError, UserError
from afm_scale.core.random import Positions
from afm_scale.core.types import Batch
from afm_scale.data.description import DESCRIPTION_NAME, INDEX_NAME, ImageContent
from afm_scale.data.images import WebDatasetConfig
from afm_scale.data.index import SampleIndex
from afm_scale.data.order import EpochOrder
from afm_scale.data.source import DataSource
from afm_scale.data.table import build_source
from afm_scale.packing.writer import Packing

from .data.small import encoded, packed_images, picture
from .program import SMALL_AFM, end, train_forked

NUM_SAMPLES = 12
SHARD = "shard-000001.tar"
BROKEN = 5  # the second sample of that shard
STEPS = 2
POSITIONS = STEPS * 2 * 8  # of two players, in batches of 8
SHORT = (f"loop.steps={STEPS}", "checkpoint.every_steps=2", "hooks.metrics.every_steps=1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve images of three classes in three shards, to spoil."""
    packed_images(tmp_path / "data")
    return tmp_path / "data"


def opened(folder: Path, *, rank: int = 0, world_size: int = 1, **changes: object) -> DataSource:
    settings = {"global_batch": 12, "size": 16, "num_classes": 3, "mirror": False, "workers": 1, "prefetch": 1}
    config = WebDatasetConfig(folder=folder, **{**settings, **changes})
    return build_source(config, seed=0, rank=rank, world_size=world_size, device=torch.device("cpu"))


def batches(source: DataSource, num: int) -> list[Batch]:
    try:
        turns = iter(source)
        return [next(turns) for _ in range(num)]
    finally:
        source.close()


def refusal(folder: Path, kind: type[UserError] = DataError, **changes: object) -> str:
    with pytest.raises(kind) as caught:
        opened(folder, **changes)
    return str(caught.value)


def recipe(folder: Path, on_error: str = "stop") -> tuple[str, ...]:
    data = f"folder: {folder}, size: 16, num_classes: 3, global_batch: 8, workers: 1, on_error: {on_error}"
    return (*SMALL_AFM, f"data={{kind: webdataset, {data}}}", *SHORT)


def spoil(folder: Path, sample: int = BROKEN) -> None:
    """Changes bytes inside one image, in place."""
    index = SampleIndex.read(folder / INDEX_NAME)
    with (folder / SHARD).open("r+b") as file:
        file.seek(int(index.offset[sample, 0]) + 60)
        file.write(b"not what was packed")


def numbers(batch: Batch) -> list[int]:
    """Which of the pictures of `packed_images` a batch holds."""
    known = torch.stack([
        torch.frombuffer(bytearray(picture(number, width=16, height=16).tobytes()), dtype=torch.uint8)
        .view(16, 16, 3).permute(2, 0, 1) for number in range(NUM_SAMPLES)
    ])
    pixels = ((batch.x + 1) * 127.5).round().to(torch.uint8)
    return [int((known == image).flatten(1).all(1).nonzero()) for image in pixels]


def in_description(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / DESCRIPTION_NAME
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return change


def in_first_shard(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shards = json.loads((folder / DESCRIPTION_NAME).read_text())["shards"]
        in_description("shards", [{**shards[0], name: value}, *shards[1:]])(folder)

    return change


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-600])


def index_of_another_packing(folder: Path) -> None:
    packed_images(folder.parent / "other", num_classes=2)
    (folder.parent / "other" / INDEX_NAME).replace(folder / INDEX_NAME)


def index_of_fewer_samples(folder: Path) -> None:
    packed_images(folder.parent / "other", num_samples=9)
    (folder.parent / "other" / INDEX_NAME).replace(folder / INDEX_NAME)


def idx_of_another_shard(folder: Path) -> None:
    (folder / "shard-000001.idx").write_bytes((folder / "shard-000000.idx").read_bytes())


IN_THE_SHARDS = [
    (lambda folder: (folder / SHARD).unlink(), [SHARD, "No such file"]),
    (cut(SHARD), [SHARD, "10664 bytes, wanted 11264"]),
    (lambda folder: (folder / "shard-000001.idx").unlink(), ["shard-000001.idx", "No such file"]),
    (idx_of_another_shard, ["shard-000001.idx", f"not the index of {SHARD}"]),
]
IN_THE_BOOKS = [
    (index_of_another_packing, [INDEX_NAME, DESCRIPTION_NAME]),
    (index_of_fewer_samples, [INDEX_NAME, "of 9 samples", "of 12"]),
    (cut(INDEX_NAME), [INDEX_NAME, "cannot be read as an index"]),
    (lambda folder: (folder / INDEX_NAME).unlink(), [INDEX_NAME]),
    (lambda folder: (folder / DESCRIPTION_NAME).unlink(), [DESCRIPTION_NAME, "unfinished"]),
    (cut(DESCRIPTION_NAME), [DESCRIPTION_NAME, "cannot be read"]),
    (in_description("version", 2), [DESCRIPTION_NAME, "version 1"]),
    (in_description("num_samples", 13), [DESCRIPTION_NAME, "12 samples", "13"]),
    (in_description("class_counts", [12]), [DESCRIPTION_NAME, "class_counts"]),
    (in_description("content", {"kind": "sounds"}), [DESCRIPTION_NAME, "damaged", "sounds"]),
    (in_description("content", {"kind": "images"}), [DESCRIPTION_NAME, "damaged"]),
    (in_description("shards", None), [DESCRIPTION_NAME, "damaged"]),
    (in_first_shard("name", "../x.tar"), [DESCRIPTION_NAME, "shards[0].name", "in this folder", "'../x.tar'"]),
    (in_first_shard("name", "/x.tar"), [DESCRIPTION_NAME, "in this folder"]),
    (in_first_shard("name", ".."), [DESCRIPTION_NAME, "in this folder"]),
    (in_first_shard("name", 7), [DESCRIPTION_NAME, "shards[0].name: found 7"]),
    (in_first_shard("num_samples", "4"), [DESCRIPTION_NAME, "damaged"]),
]


@pytest.mark.parametrize(("damage", "words"), IN_THE_SHARDS + IN_THE_BOOKS)
def test_a_damaged_data_set_is_refused_before_training(data: Path, damage: Callable, words: list[str]) -> None:
    damage(data)
    message = refusal(data)
    assert [word for word in words if word not in message] == [], message
    assert str(data) in message


@pytest.mark.parametrize(("damage", "words"), IN_THE_SHARDS)
def test_damaged_shards_are_tolerated_if_errors_are_skipped(data: Path, damage: Callable, words: list[str]) -> None:
    damage(data)
    opened(data, on_error="skip").close()


@pytest.mark.parametrize(("damage", "words"), IN_THE_BOOKS)
def test_without_a_sound_index_and_description_nothing_can_be_skipped(
    data: Path, damage: Callable, words: list[str]
) -> None:
    damage(data)
    assert words[0] in refusal(data, on_error="skip")


@pytest.mark.parametrize(("changes", "words"), [
    ({"num_classes": 4}, ["3 classes", "data.num_classes is 4", "data.num_classes=3"]),
    ({"size": 32}, ["16 pixels", "data.size is 32", "data.size=16"]),
    ({"folder": "absent"}, ["absent", "no such folder", "make_shards"]),
])
def test_settings_that_do_not_fit_the_data_set_are_refused(data: Path, changes: dict, words: list[str]) -> None:
    message = refusal(**{"folder": data, **changes, **({"folder": data / "absent"} if "folder" in changes else {})})
    assert [word for word in words if word not in message] == []


def test_ranks_that_cannot_share_the_batch_are_refused(data: Path) -> None:
    message = refusal(data, ConfigError, global_batch=8, world_size=3)
    assert "data.global_batch 8" in message and "3 ranks" in message and "6 or 9" in message


def test_fewer_shards_than_ranks_and_workers_lose_no_sample(tmp_path: Path) -> None:
    packed_images(tmp_path, num_shards=1)
    seen = [
        number
        for rank in range(3)
        for batch in batches(opened(tmp_path, rank=rank, world_size=3, global_batch=6, workers=2), 2)
        for number in numbers(batch)
    ]
    assert sorted(seen) == list(range(NUM_SAMPLES))


def test_bytes_that_are_no_image_are_told_with_their_sample_or_skipped(tmp_path: Path) -> None:
    """They are the bytes that were packed, so that only decoding can tell."""
    packing = Packing(tmp_path, {}, ImageContent(size=16, encoding="original"))
    packing.begin()
    with packing.shard(0) as writer:
        for number in range(NUM_SAMPLES):
            good = encoded(picture(number, width=16, height=16))
            writer.add(number, 0, {"png": good[:70] if number == BROKEN else good})
    packing.finish(1, ["only"])

    with pytest.raises(DataError) as caught:
        batches(opened(tmp_path, num_classes=1), 1)
    assert "shard-000000.tar, sample 000000005: " in str(caught.value) and "on_error=skip" in str(caught.value)

    source = opened(tmp_path, num_classes=1, on_error="skip")
    seen = numbers(batches(source, 1)[0])
    (skipped,) = source.take_skipped()
    assert skipped.place.endswith("sample 000000005") and source.take_skipped() == []
    others = sorted(set(range(NUM_SAMPLES)) - {BROKEN})
    substitute = int(skipped.substitute[-9:])
    assert sorted(seen) == sorted([*others, substitute])


def test_where_nothing_can_be_read_skipping_comes_to_an_end(data: Path) -> None:
    for shard in data.glob("*.tar"):
        shard.write_bytes(b"")
    with pytest.raises(DataError, match="in a row cannot be read"):
        batches(opened(data, on_error="skip"), 1)


def test_a_shard_overwritten_in_place_under_a_running_job_ends_it(data: Path) -> None:
    source = opened(data)
    turns = iter(source)
    try:
        assert sorted(numbers(next(turns))) == list(range(NUM_SAMPLES))
        other = (data / "shard-000002.tar").read_bytes()
        with (data / SHARD).open("r+b") as file:
            file.write(other)
        with pytest.raises(DataError) as caught:
            for _ in range(10):  # what was read ahead is still good
                next(turns)
    finally:
        source.close()
    assert SHARD in str(caught.value) and "not those that were packed" in str(caught.value)


def test_a_shard_replaced_by_another_file_under_a_running_job_is_never_mixed_in(data: Path) -> None:
    """The old file stays readable to those who have it open: they go on with the data that they began with."""
    source = opened(data)
    turns = iter(source)
    try:
        assert sorted(numbers(next(turns))) == list(range(NUM_SAMPLES))
        (data / "new").write_bytes((data / "shard-000002.tar").read_bytes())
        (data / "new").replace(data / SHARD)
        for _ in range(5):
            assert sorted(numbers(next(turns))) == list(range(NUM_SAMPLES))
    finally:
        source.close()


@pytest.mark.parametrize(("damage", "words"), [IN_THE_SHARDS[0], IN_THE_BOOKS[0], IN_THE_BOOKS[12]])
def test_the_command_tells_damage_in_one_line(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: Callable, words: list[str]
) -> None:
    damage(data)
    code = main(["train", *recipe(data), f"run.folder={tmp_path / 'run'}", "parallel.device=cpu"])
    assert_told(code, capfd.readouterr().err, words)


def assert_told(code: int, stderr: str, words: list[str]) -> None:
    assert code == EXIT_USER_ERROR, stderr
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert [word for word in words if word not in line] == [], line


def test_a_sample_that_breaks_in_the_middle_of_an_epoch_ends_the_run_with_its_name(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(data)
    code = main(["train", *recipe(data), f"run.folder={tmp_path / 'run'}", "parallel.device=cpu"])
    assert_told(code, capfd.readouterr().err, [SHARD, "sample 000000005", "CRC-32", "doctor --data"])


def skipped_lines(run: Path) -> list[dict]:
    lines = [json.loads(line) for path in run.glob("skipped/rank_*.jsonl") for line in path.read_text().splitlines()]
    return sorted(lines, key=lambda line: (line["step"], line["rank"]))


def counted(run: Path) -> int:
    return sum(json.loads(line)["data_skipped"] for line in (run / "metrics.jsonl").read_text().splitlines())


def test_skipped_samples_are_counted_and_listed_and_are_the_same_on_every_run(data: Path, tmp_path: Path) -> None:
    spoil(data)
    runs = [tmp_path / "first", tmp_path / "second"]
    for run in runs:
        code = main(["train", *recipe(data, "skip"), f"run.folder={run}", "parallel.device=cpu"])
        assert code == EXIT_DONE
    stream = EpochOrder(NUM_SAMPLES, seed=0).indices(Positions(0, 1, POSITIONS)).tolist()
    wanted = [1 + position // 16 for position, sample in enumerate(stream) if sample == BROKEN]
    lines = skipped_lines(runs[0])
    assert len(wanted) >= 2 and [line["step"] for line in lines] == wanted
    assert {line["place"] for line in lines} == {f"{data / SHARD}, sample 000000005"}
    assert len({line["substitute"] for line in lines}) == 1 and "CRC-32" in lines[0]["reason"]
    assert [path.name for path in runs[0].glob("skipped/*")] == ["rank_00000.jsonl"]
    assert counted(runs[0]) == counted(runs[1]) == len(wanted)
    assert skipped_lines(runs[1]) == lines
    first, second = (digest(run / "checkpoints" / f"step_{STEPS:08d}") for run in runs)
    assert first == second


@pytest.mark.slow
def test_two_ranks_skip_the_same_samples_and_stay_in_step(data: Path, tmp_path: Path) -> None:
    spoil(data)
    code, _, stderr = end(train_forked(recipe(data, "skip"), tmp_path / "run", ranks=2))
    assert code == EXIT_DONE, stderr
    stream = EpochOrder(NUM_SAMPLES, seed=0).indices(Positions(0, 1, POSITIONS)).tolist()
    wanted = sorted((1 + at // 16, at % 2) for at, sample in enumerate(stream) if sample == BROKEN)
    assert [(line["step"], line["rank"]) for line in skipped_lines(tmp_path / "run")] == wanted
    assert counted(tmp_path / "run") == len(wanted)


@pytest.mark.slow
def test_a_broken_sample_that_only_one_rank_meets_ends_all_with_its_name(data: Path, tmp_path: Path) -> None:
    """By rank 1: rank 0, which speaks for all in other matters, never sees it."""
    spoil(data, sample=4)
    stream = EpochOrder(NUM_SAMPLES, seed=0).indices(Positions(0, 1, 8)).tolist()
    assert stream.index(4) % 2 == 1
    code, _, stderr = end(train_forked(recipe(data), tmp_path / "run", ranks=2))
    assert_told(code, stderr, [SHARD, "sample 000000004"])


@pytest.mark.slow
def test_damage_found_by_rank_0_alone_ends_all_ranks(data: Path, tmp_path: Path) -> None:
    (data / SHARD).unlink()
    code, _, stderr = end(train_forked(recipe(data), tmp_path / "run", ranks=2))
    assert_told(code, stderr, [SHARD, "No such file"])
