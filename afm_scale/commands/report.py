"""The course of a run: one picture of it, and a table of its phases.

Reads events.jsonl and metrics.jsonl, also while the run goes on. The picture has the quality, the logits' gap, gradient
norms, the transport cost and learning rates over the steps, as far as they were noted, with phases and acts.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import read_regular
from ..core.history import curves, history
from ..core.run_folder import RunFolder
from ..core.screen import say
from ..evaluation.course import Course, course, quality_of
from ..evaluation.course_panels import gap_of, panels_of
from ..evaluation.course_picture import draw_course
from ..run.arguments import request_of
from ..run.load import parse_yaml
from ..run.tables import show_table

_GAP = ("discriminator/logit_real", "discriminator/logit_fake")
_TERMS = ("total", "grad_norm", "adversarial_gradient", "transport_cost", "transport", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """The command's arguments. None: not given."""

    run: Path
    out: Path | None
    as_json: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="the picture (default: RUN/report.png)")
    parser.add_argument("--json", action="store_true", dest="as_json")


def run(options: argparse.Namespace) -> int:
    return report_command(request_of(ReportRequest, options))


def report_command(request: ReportRequest) -> int:
    """Draws the picture, if there is anything to draw, and prints the table.

    Raises DataError for logs and settings that are damaged, and for a folder that has neither log.
    """
    folder = RunFolder(request.run)
    if not folder.events.exists() and not folder.metrics.exists():
        raise DataError(f"{folder.path} has no {folder.events.name} and no {folder.metrics.name}; name a run's folder")
    settings = _settings(folder)
    events = history(folder.read_events()) if folder.events.exists() else []
    found = curves(folder.read_metrics()) if folder.metrics.exists() else {}
    of_pilot = _at(settings, "pilot", "quality")
    told = course(events, found, of_pilot if isinstance(of_pilot, str) else None)
    steps = _at(settings, "loop", "steps")
    reached = f"step {told.last:,}" + (f" of {steps:,}" if type(steps) is int else "")
    picture = None
    if panels_of(told):
        picture = folder.report if request.out is None else request.out
        draw_course(picture, told, title=f"{folder.path}: {reached}")
    if request.as_json:
        say(json.dumps(_as_json(folder, told, picture), indent=1))
    else:
        _print(folder, told, reached)
        say("nothing to draw yet: no numbers were written" if picture is None else f"picture: {picture}")
    return 0


def _settings(folder: RunFolder) -> Any:
    """Of the newest start; nothing if they are lost."""
    try:
        return parse_yaml(read_regular(folder.config), str(folder.config))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{folder.config} cannot be read: {error.strerror}; restore or remove it") from error


def _at(mapping: Any, *keys: str) -> Any:
    for key in keys:
        mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
    return mapping


def _phases(told: Course) -> Iterable[dict[str, Any]]:
    for span in told.spans:
        yield {
            "phase": span.name, "first": span.first, "last": span.last, "updates": span.updates, "why": span.why,
            "quality": asdict(quality_of(told, span)), "acts": dict(span.acts), "rules": dict(span.rules),
        }


def _last_values(told: Course) -> dict[str, float]:
    """The newest number of each curve that is drawn, if it is finite."""
    newest = {name: told.figures[name] for name in told.figures}
    if all(name in told.curves for name in _GAP):
        newest["logit_gap"] = gap_of(*(told.curves[name] for name in _GAP))
    newest |= {name: told.curves[name] for name in told.curves if name.endswith(tuple(f"/{term}" for term in _TERMS))}
    newest |= {name: told.curves[name] for name in ("images_seen", "images_per_second") if name in told.curves}
    return {name: curve.values[-1] for name, curve in newest.items() if curve.steps and math.isfinite(curve.values[-1])}


def _as_json(folder: RunFolder, told: Course, picture: Path | None) -> dict[str, Any]:
    return {
        "run": str(folder.path), "step": told.last, "quality": told.quality, "phases": list(_phases(told)),
        "marks": [asdict(mark) for mark in told.marks], "last": _last_values(told),
        "picture": None if picture is None else str(picture),
    }


def _print(folder: RunFolder, told: Course, reached: str) -> None:
    rows = []
    for number, phase in enumerate(_phases(told), start=1):
        quality = phase["quality"]
        best = _number(quality["best"])
        rows.append((
            f"{number} {phase['phase']}" if phase["phase"] else "-", f"{phase['first']:,} to {phase['last']:,}",
            f"{phase['updates']:,}", _number(quality["begin"]),
            best if quality["best"] is None else f"{best} at {quality['best_step']:,}", _number(quality["end"]),
            _counted(phase["acts"]), _counted(phase["rules"]),
        ))
    measure = told.quality or "quality"
    show_table(f"{folder.path}: {reached}", rows, columns=(
        "phase", "steps", "updates", f"{measure} at its begin", "best", "at its end", "acts", "rules"
    ))
    if last := _last_values(told):
        show_table("last values", [(name, f"{value:,.0f}" if name == "images_seen" else _number(value))
                                   for name, value in last.items()])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(name if count == 1 else f"{name} x {count}" for name, count in Counter(counts).most_common())
