from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from afm_scale.core.strict_json import parse_json, read_mapping


def test_plain_values_are_read() -> None:
    assert parse_json(b'{"a": [1, -2.5e3, null, true, "\\u00e9"]}') == {"a": [1, -2500.0, None, True, "\u00e9"]}


@pytest.mark.parametrize("content, told", [
    (b"", "Expecting value"), (b"{", "Expecting property name"), (b"\xff\xfe\x00", "no text"), (b'"\xc3"', "no text"),
    (b"[NaN]", "NaN is no finite number"), (b"-Infinity", "-Infinity is no"), (b"1e999", "1e999 is no finite"),
    (b"9" * 5000, "digit"), (b"[" * 100_000, "nested too deeply"), (b'{"a":' * 100_000, "nested too deeply"),
    (b"[" * 102 + b"]" * 102, "nested too deeply"), (b'{"a": "\\ud800"}', "a text in it is none"),
    (b'{"a": 1, "b": 2, "a": 3}', "key 'a' twice"),
    (b'{"a": ' * 200 + b"1" + b"}" * 200, "nested too deeply"), (b'["\\ud800"]', "a text in it is none"),
    (b'["\\udcff"]', "a text in it is none"),
])
def test_whatever_is_wrong_is_one_kind_of_error(content: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_json(content)


def test_names_of_files_may_hold_bytes_that_are_no_text() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    assert parse_json(json.dumps([name]), file_names=True) == [name]
    with pytest.raises(ValueError, match="a text in it is none"):
        parse_json(b'["\\ud800"]', file_names=True)


def test_a_file_of_another_value_than_a_mapping_is_as_wrong_as_one_of_no_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert read_mapping(path) == {"a": 1}
    for content, told in (("[1]", "it is no mapping"), ("null", "it is no mapping"), ("{", "Expecting property")):
        path.write_text(content)
        with pytest.raises(ValueError, match=told):
            read_mapping(path)
    with pytest.raises(OSError, match="more than 0 bytes"):
        read_mapping(path, 0)
