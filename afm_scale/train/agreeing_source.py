"""A data source whose errors end all ranks at the same turn: none is left waiting for one that could not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist

from ..core.errors import UserError
from ..core.types import Batch
from ..data.source import DataSource, Skipped
from ..parallel.agreement import agree


class AgreeingSource:
    """The `DataSource` inside, with one number per turn agreed over gloo before anybody uses the batch.

    That costs a turn well under a millisecond on one host, and it travels beside the device's own work.
    """

    def __init__(self, source: DataSource) -> None:
        self.shape, self.num_classes = source.shape, source.num_classes
        self._source = source

    def __iter__(self) -> Iterator[Batch]:
        """Raises, on every rank, the UserError of the lowest rank that met one."""
        group = dist.new_group(backend="gloo")  # only now: a rank whose source failed to open would not come here
        batches = iter(self._source)
        while True:
            batch, error = None, None
            try:
                batch = next(batches)
            except UserError as caught:
                error = caught
            failed = torch.tensor(int(error is not None))
            dist.all_reduce(failed, dist.ReduceOp.MAX, group=group)
            if failed:
                agree(error)
            assert batch is not None
            yield batch

    def state_dict(self) -> Mapping[str, int]:
        return self._source.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._source.load_state_dict(state)

    def take_skipped(self) -> Sequence[Skipped]:
        return self._source.take_skipped()

    def close(self) -> None:
        self._source.close()
