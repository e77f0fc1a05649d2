"""Rows of metrics for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from ...core.files import explained_write
from .metrics import Row


class TensorBoard:
    """A writer of event files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def start(self, step: int) -> None:
        with explained_write(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1, flush_secs=10)

    def write(self, row: Row) -> None:
        assert self._writer is not None
        with explained_write(self._folder):
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        if self._writer is not None:
            with explained_write(self._folder):
                self._writer.close()
