"""Rows of metrics for Weights & Biases. Imported only when the configuration asks for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import wandb

from .metrics import Row, WandbConfig


class Wandb:
    """One wandb run for one folder: a resumed run goes on under the same id.

    wandb cannot forget: rows that a resumed run writes again are dropped there, being of steps it already has.
    """

    def __init__(self, folder: Path, config: WandbConfig) -> None:
        self._folder = folder.resolve()
        self._config = config
        self._run: wandb.Run | None = None

    def start(self, step: int) -> None:
        self._run = wandb.init(
            project=self._config.project,
            name=self._folder.name,
            id=hashlib.sha256(str(self._folder).encode()).hexdigest()[:16],
            resume="allow" if self._config.mode == "online" else None,
            dir=str(self._folder),
            mode=self._config.mode,
            settings=wandb.Settings(silent=True),
        )

    def write(self, row: Row) -> None:
        assert self._run is not None
        self._run.log(dict(row), step=int(row["step"]))

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
