"""Names of tensors: what is put together comes apart again."""

from __future__ import annotations

import pytest

from afm_scale.checkpoint.names import (
    AVERAGE,
    OBJECTIVE,
    group_of,
    of_average,
    of_optimizer,
    of_role,
    under,
    with_prefix,
)
from afm_scale.core.types import Role

PREFIXES = {
    of_average(): "average", of_average("target"): "averages.target", OBJECTIVE: "objective",
    **{of_role(role): role.value for role in Role}, **{of_optimizer(role): f"optimizer.{role.value}" for role in Role},
}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_is_under_a_prefix_is_what_was_put_there(prefix: str) -> None:
    tensors = {"blocks.0.weight": 1, "bias": 2}
    named = {name: value for other in PREFIXES for name, value in with_prefix(other, tensors).items()}
    assert len(named) == 2 * len(PREFIXES)  # no two of them meet
    assert under(prefix, named) == tensors


def test_every_name_tells_whose_it_is() -> None:
    assert {prefix: group_of(f"{prefix}blocks.0.weight") for prefix in PREFIXES} == PREFIXES


def test_the_published_average_keeps_its_name() -> None:
    assert AVERAGE == of_average() == "average."
