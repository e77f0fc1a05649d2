from __future__ import annotations

from afm_scale.core.errors import CheckpointError, UserError
from afm_scale.train.failures import Failures


def test_the_first_failure_is_the_one_that_is_kept() -> None:
    failures, first = Failures(), CheckpointError("disk full")
    assert failures.first is None
    for error in (first, UserError("no folder")):
        with failures.kept():
            raise error
    assert failures.first is first
