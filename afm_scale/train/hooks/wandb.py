"""Rows of metrics for Weights & Biases. Imported only when the configuration asks for it."""

from __future__ import annotations

from pathlib import Path

import wandb

from .metrics import Row, WandbConfig


class Wandb:
    """One wandb run for one run: resumed, it goes on under the same id, which is born with it and not with its path.

    wandb cannot forget: rows that a resumed run writes again are dropped there, being of steps it already has.
    """

    def __init__(self, folder: Path, run_id: str, config: WandbConfig) -> None:
        self._folder = folder.resolve()
        self._id = run_id
        self._config = config
        self._run: wandb.Run | None = None

    def start(self, step: int) -> None:
        self._run = wandb.init(
            project=self._config.project,
            name=self._folder.name,
            id=self._id,
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
