"""The same training whatever the number of ranks, the number of microbatches and the plan.

Every layout below takes ten updates (three of some games) in float64 from the same recipe, with other samples on every
rank. Only the order of sums may differ, so everything that a step leaves behind must agree to 1e-9.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from afm_scale.parallel.fsdp2 import FSDP2Plan

from .equivalence import GAMES, Layout, Outcome, differences, too_large, train_game, train_part
from .ranks import RankFailure, run_ranks

TOLERANCE = 1e-9

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # many layouts in one go, whichever test comes first

REFERENCE = Layout("ddp", 1, 1)
LAYOUTS = (
    Layout("ddp", 1, 4),
    Layout("fsdp2", 1, 1),
    Layout("ddp", 2, 1),
    Layout("ddp", 2, 2),
    Layout("fsdp2", 2, 1),
    Layout("fsdp2", 2, 2),
    Layout("fsdp2", 2, 1, "full"),
    Layout("fsdp2", 2, 2, "full"),
    Layout("fsdp2", 2, 1, "zero2"),
    Layout("fsdp2", 2, 2, "zero2"),
    Layout("fsdp2", 4, 1),
    Layout("fsdp2", 4, 1, "full", 2),
    Layout("fsdp2", 4, 2, "zero2", 2),
    Layout("ddp", 1, 1, recompute="{kind: every, k: 2}"),
    Layout("ddp", 2, 2, recompute="selective"),
    Layout("fsdp2", 2, 1, "full", recompute="full"),
    Layout("fsdp2", 2, 2, "zero2", recompute="per_repetition"),
)



def _train_all(layouts: list[Layout]) -> dict[tuple[str, Layout], Outcome]:
    return {(game, layout): train_game(game, layout) for layout in layouts for game in GAMES}


@cache
def outcomes(num_ranks: int) -> dict[tuple[str, Layout], list[Outcome]]:
    """Of every game and layout on so many ranks, from each rank: the processes are started once."""
    layouts = [layout for layout in (REFERENCE, *LAYOUTS) if layout.ranks == num_ranks]
    of_ranks = run_ranks(num_ranks, _train_all, layouts, timeout=500)
    return {key: [found[key] for found in of_ranks] for key in of_ranks[0]}


def reference_of(game: str) -> Outcome:
    return outcomes(1)[game, REFERENCE][0]


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_updates_do_not_depend_on_the_layout(game: str, layout: Layout) -> None:
    reference = reference_of(game)
    for outcome in outcomes(layout.ranks)[game, layout]:
        assert outcome.counted == reference.counted
        assert not too_large(outcome, reference, TOLERANCE)


@pytest.mark.parametrize("game", GAMES)
def test_the_updates_compared_moved_every_weight(game: str) -> None:
    """Else agreeing would say little."""
    tensors = reference_of(game).tensors
    moments = {name: tensor for name, tensor in tensors.items() if name.endswith("exp_avg_sq")}
    assert len(moments) == sum(name.endswith(".step") for name in tensors) > 20
    assert all(tensor.any() for tensor in moments.values())
    learner = "classifier" if game == "classification" else "generator"
    weights = [name for name in tensors if name.startswith(f"{learner}.") and name != f"{learner}.pos_embed"]
    behind = {name: tensors[name] - tensors[name.replace(learner, "average", 1)] for name in weights}
    assert all(difference.abs().max() > 1e-5 for difference in behind.values())


def _train_without_resharding(game: str, layout: Layout) -> Outcome:
    FSDP2Plan.reshard = lambda plan, module: None
    return train_game(game, layout)


def _train_with_norms_over_replicas(game: str, layout: Layout) -> Outcome:
    FSDP2Plan._sum_over_shards_ = lambda plan, value: plan.mean_(value) * plan.world_size
    return train_game(game, layout)


def test_a_plan_that_never_reshards_cannot_pass() -> None:
    """The gathered copies of weights that are to learn stay frozen, and cannot be given the hooks of those that do."""
    with pytest.raises(RankFailure, match="doesn't require gradient"):
        run_ranks(2, _train_without_resharding, "any step, augmented", Layout("fsdp2", 2, 1, "zero2"), timeout=100)


def test_a_norm_that_counts_replicas_twice_would_be_seen() -> None:
    game, layout = "flow matching", Layout("fsdp2", 4, 1, "zero2", 2)
    for outcome in run_ranks(4, _train_with_norms_over_replicas, game, layout, timeout=100):
        assert "generator/gradient norm" in too_large(outcome, reference_of(game), TOLERANCE)


CHAIN = (  # of ten updates: where each part is played, and up to which update
    (Layout("fsdp2", 4, 1, "zero2", 2), 4),  # hybrid, two copies of two shards
    (Layout("fsdp2", 2, 2, "full"), 7),  # one copy
    (Layout("ddp", 2, 1, recompute="full"), 10),
)


def test_a_run_that_moves_from_layout_to_layout_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    game = "deep"
    for layout, steps in CHAIN:
        last = run_ranks(layout.ranks, train_part, game, layout, tmp_path, steps, timeout=100)
    reference = reference_of(game)
    for outcome in last:
        assert outcome.counted == reference.counted
        found = differences(outcome.tensors, reference.tensors)
        assert not {name: value for name, value in found.items() if not value <= TOLERANCE}
