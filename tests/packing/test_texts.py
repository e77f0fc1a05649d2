"""Where prompts come from: lines, columns of parquet files, packed sets with texts."""

from __future__ import annotations

import pyarrow
import pyarrow.parquet
import pytest

from afm_scale.core.errors import DataError
from afm_scale.data.description import ImageContent
from afm_scale.data.prompts import sum_of_texts
from afm_scale.data.shards import PackedShards
from afm_scale.packing.texts import read_texts
from afm_scale.packing.verify import verify
from afm_scale.packing.writer import Packing
from tests.data.small import encoded, picture

TEXTS = ["a horse", "zwei Pferde, größer", "a horse"]


def packed(folder, texts):
    packing = Packing(folder, {}, ImageContent(size=8, encoding="png", texts=True))
    packing.begin()
    with packing.shard(0) as writer:
        for number, text in enumerate(texts):
            members = {"png": encoded(picture(number, width=8, height=8)), "txt": text}
            writer.add(number, 0, members)
    packing.finish(1, ["all"])
    return folder


def test_lines_columns_and_packed_texts_are_the_same_texts(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS))
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2, 3], "caption": TEXTS}), tmp_path / "table.parquet")
    folder = packed(tmp_path / "packed", [text.encode() for text in TEXTS])
    found = [read_texts(tmp_path / name) for name in ("lines.txt", "table.parquet", "packed")]
    assert [list(one.texts) for one in found] == [TEXTS] * 3
    assert len({one.sha256 for one in found}) == 1
    index = PackedShards(folder).index
    assert sum_of_texts(index.size[:, 1], index.crc32[:, 1]) == found[0].sha256
    different, rows = found[0].different()
    assert different == TEXTS[:2] and rows.tolist() == [0, 1, 0]
    assert list(verify(folder)) == []


def test_other_texts_and_another_order_have_another_sum(tmp_path):
    sums = set()
    for name, texts in (("a", TEXTS), ("b", [*TEXTS[1:], TEXTS[0]]), ("c", TEXTS[1:]), ("d", ["b horse", *TEXTS[1:]])):
        (tmp_path / name).write_text("\n".join(texts))
        sums.add(read_texts(tmp_path / name).sha256)
    assert len(sums) == 4


def test_a_parquet_file_without_such_a_column_or_with_an_empty_cell_is_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2], "words": ["a", None]}), tmp_path / "table.parquet")
    with pytest.raises(DataError, match="has the columns n: int64, words: string; name one of texts with --column"):
        read_texts(tmp_path / "table.parquet")
    with pytest.raises(DataError, match="name one of texts with --column"):
        read_texts(tmp_path / "table.parquet", "n")
    with pytest.raises(DataError, match="table.parquet, row 1 has no text"):
        read_texts(tmp_path / "table.parquet", "words")


def test_a_packed_text_that_is_blank_or_no_utf_8_is_refused_with_its_sample(tmp_path):
    with pytest.raises(DataError, match="shard-000000.tar, sample 000000001 has no text"):
        read_texts(packed(tmp_path / "blank", [b"a", b" \n"]))
    folder = packed(tmp_path / "latin", [b"a", b"fa\xe7ade"])
    with pytest.raises(DataError, match="sample 000000001: the text is not UTF-8"):
        read_texts(folder)
    assert [problem.what for problem in verify(folder)] == [
        "member '000000001.txt': the text is not UTF-8: 'utf-8' codec can't decode byte 0xe7 in position 2: invalid "
        "continuation byte"
    ]
