"""`python -m afm_scale doctor --data PATH`: what a packed data set is, and all that is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..core.errors import DataError
from ..core.screen import in_plain_letters, say
from ..data.description import DatasetDescription, read_description
from ..packing.about import about
from ..packing.verify import Problem, verify
from ..run.tables import show_table

_REASONS = 10


def doctor_data_command(folder: Path, *, as_json: bool) -> int:
    """Reads every byte of the data set. Raises DataError, after the report, if it is not whole."""
    description = read_description(folder)
    problems = _verified(folder, description)
    broken = [problem for problem in problems if not problem.harmless]
    facts = about(folder, description)
    if as_json:
        findings = [{"file": one.file, "what": one.what, "harmless": one.harmless} for one in problems]
        say(json.dumps({"data": facts, "whole": not broken, "problems": findings}, indent=2))
    else:
        _print(facts, problems)
    if broken:
        files = {problem.file for problem in broken}
        raise DataError(
            f"{folder} is not whole: {len(files)} of its files are missing or damaged; restore them, or pack again"
        )
    return 0


def _verified(folder: Path, description: DatasetDescription) -> list[Problem]:
    total = sum(shard.num_bytes for shard in description.shards)
    with tqdm(total=total, desc="reading", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        return list(verify(folder, bar.update))


def _print(facts: dict[str, Any], problems: list[Problem]) -> None:
    fewest, most = facts["samples of a class"].values()
    refused = facts["refused when packed"]
    values = {**facts, "samples of a class": f"{fewest} to {most}", "refused when packed": refused["files"]}
    for name in ("samples", "classes", "shards", "bytes", "refused when packed"):
        values[name] = f"{values[name]:,}"
    rows = [(name, str(value)) for name, value in values.items()]
    by_reason = list(refused["by reason"].items())
    rows += [("", f"{count:,}: {reason}") for reason, count in by_reason[:_REASONS]]
    if len(by_reason) > _REASONS:
        rows.append(("", f"and {len(by_reason) - _REASONS} more reasons: --json lists them all"))
    show_table("afm_scale doctor --data", rows)
    for problem in problems:
        say(in_plain_letters(f"{'note: ' if problem.harmless else ''}{problem.file}: {problem.what}"))
    if all(problem.harmless for problem in problems):
        say("whole: every byte is what was packed")
