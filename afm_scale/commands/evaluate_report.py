"""What the report of a recipe finds of a checkpoint, in any number of steps: the part of `evaluate --report`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ConfigError, UserError
from ..core.files import make_folder, refuse_to_replace
from ..core.screen import say
from ..core.typed import build
from ..data.table import AnySource, build_source
from ..evaluation.measurement import Findings, Report
from ..evaluation.table import AnyReport
from ..parallel.agreement import agreed
from ..parallel.config import ParallelConfig
from ..parallel.launch import launch
from ..run.checkpoints import Checkpoint
from ..run.load import parse_yaml
from ..run.tables import rows_of, show_table

OPTION = "--report"
_OF_OTHER_MEASURES = (
    "reference", "write_reference", "num", "labels", "between", "renoise", "seed", "vae", "members",
)


def given_beside(request: object) -> list[str]:
    """Which of the command's arguments were given that say how other measures are taken."""
    values = {name: getattr(request, name) for name in _OF_OTHER_MEASURES}
    return [name for name, value in values.items() if value is not None and value is not False]


def report_of(text: str) -> Report:
    """A kind of report, or a mapping of one kind in YAML as a recipe has it. Raises ConfigError."""
    mapping = parse_yaml(text, f"{OPTION} {text}") if text.lstrip().startswith("{") else {"kind": text}
    return build(AnyReport, mapping, (OPTION,))


@dataclass(frozen=True, kw_only=True)
class ByReport:
    """A checkpoint that a report is to measure."""

    target: Path
    checkpoint: Checkpoint | None  # None: the target is images
    report: Report
    picture: Path | None  # a PNG that the report draws
    num_steps: int | None  # None: the recipe's
    others: Sequence[str]  # `given_beside`
    as_json: bool

    def show(self, parallel: ParallelConfig) -> None:
        """Prints what the report finds on stdout. Raises UserError for what it cannot measure."""
        checkpoint, picture = self._checked()
        data = build(AnySource, checkpoint.card.data, ("data",)).resolved()
        self.report.check(data, OPTION)
        with launch(parallel) as ranks:
            with agreed():
                make_folder(picture.parent)
                refuse_to_replace(picture)
                subject = checkpoint.subject(ranks, parallel)
                # Nothing is drawn of the data: a report asks them for their file, or what their classes are in words.
                source = build_source(data, seed=0, rank=0, world_size=1, device=torch.device("cpu"))
            with closing(source):
                subject = replace(subject, source=source, num_steps=self.num_steps or subject.num_steps)
                found = self.report.resolved()(subject, picture)
            if ranks.rank == 0:
                self._print(checkpoint, found, subject.num_steps, picture)

    def _checked(self) -> tuple[Checkpoint, Path]:
        if self.checkpoint is None:
            raise UserError(
                f"{OPTION} measures what a checkpoint draws, but {self.target} is none; name a run's folder"
            )
        if self.others:
            raise UserError(
                f"{OPTION} says itself what is drawn and what it is compared with, so that "
                f"--{self.others[0].replace('_', '-')} does not go with it; leave it out, or give all settings of the "
                f"report, as {OPTION} '{{kind: ..., seed: 1}}'"
            )
        if self.picture is None:
            raise UserError(f"{OPTION} draws a picture too; say where by --picture FILE.png")
        learner = self.checkpoint.card.learner
        if self.report.measures is not learner:
            raise ConfigError(
                f"{OPTION} is of a {self.report.measures.value}, {self.checkpoint.path} holds a {learner.value}; "
                "choose the report that its recipe has"
            )
        return self.checkpoint, self.picture

    def _print(self, checkpoint: Checkpoint, found: Findings, num_steps: int, picture: Path) -> None:
        about: Mapping[str, Any] = {
            "source": str(checkpoint.path), "step": checkpoint.step, "num_steps": num_steps, "picture": str(picture),
        }
        if self.as_json:
            say(json.dumps({"figures": dict(found), **about}, indent=2))
            return
        drawn = f"{checkpoint.path}, {num_steps} step(s)"
        show_table(str(self.target), rows_of(found), [("drawn from", drawn), ("picture", str(picture))])
