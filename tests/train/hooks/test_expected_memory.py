"""The line about expected memory, by a real run that has its estimate made beside it."""

from __future__ import annotations

from pathlib import Path

from tests.program import SMALL_FLOW_MATCHING, end, train


def test_a_run_says_once_what_memory_it_expects_and_is_quiet_on_a_cpu_by_itself(tmp_path: Path) -> None:
    wanted = train(SMALL_FLOW_MATCHING, tmp_path / "wanted", "loop.steps=3", "hooks.expected_memory={where: anywhere}")
    plain = train(SMALL_FLOW_MATCHING, tmp_path / "plain", "loop.steps=3")
    code, _, told = end(wanted)
    assert code == 0, told
    assert told.count("expected memory (estimate): ") == 1 and "in the generator's" in told
    code, _, told = end(plain)
    assert code == 0 and "expected memory" not in told
