"""The same training whether ranks share every block's work, the batch, or both (parallel.plan megatron).

Four updates in float64, with other samples on every rank that sees others. Only the order of sums may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from .equivalence import Layout, Outcome, too_large, train_game, train_part
from .ranks import run_ranks

TOLERANCE = 1e-9

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # many layouts in one go, whichever test comes first
    pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed"),
]

# Blocks start as the identity: only large steps make what flows through them count in so few.
_FAST = "optimizer.generator.learning_rate=1e-2"
# QK-norm's weights are whole on every rank, and see only that rank's heads.
_QK_NORM = ("model.generator.qk_norm=true", "model.discriminator.qk_norm=true")
OF_GAME = {
    "any step, augmented": (_FAST, *_QK_NORM), "one pass": (_FAST, *_QK_NORM), "deep": (_FAST,),
    "deeper": (_FAST,), "flow matching": (_FAST,), "classification": (), "mean flow by differences": (_FAST,),
    "twin flow": (_FAST,),
    "alpha flow": (_FAST, "objective.alpha.ends_in=floor"),  # nothing shared has a derivative in forward mode
}
GAMES = tuple(OF_GAME)

SHORT = "loop.steps=4"
REFERENCE = Layout("ddp", 1, 1, settings=(SHORT,))


def shared(ranks: int, tensor: int, accumulation: int = 1, recompute: str = "none") -> Layout:
    settings = (SHORT, f"parallel.megatron.tensor={tensor}")
    return Layout("megatron", ranks, accumulation, recompute=recompute, settings=settings)


LAYOUTS = (
    shared(2, 1), shared(2, 2), shared(2, 2, 2, "full"), shared(4, 2, 2), shared(4, 2, recompute="per_repetition"),
)
SELECTIVE = shared(2, 2, recompute="selective")
PLAYED = [
    *((game, layout) for layout in (REFERENCE, *LAYOUTS) for game in GAMES if layout.ranks < 4),
    *((game, layout) for layout in LAYOUTS for game in ("any step, augmented", "deeper") if layout.ranks == 4),
    ("deep", SELECTIVE), ("flow matching", shared(4, 2)),
]

Key = tuple[str, Layout, str]  # the last: a bug, or what else is special
RESUMED: Key = ("any step, augmented", shared(2, 2), "resumed")


def _played(game: str, layout: Layout) -> Outcome:
    return train_game(game, layout._replace(settings=(*layout.settings, *OF_GAME[game])))


class Bug(NamedTuple):
    """One thing that the plan must do, not done: `wrong` makes another method of the right one."""

    method: str
    wrong: Callable[[Callable[..., Any]], Callable[..., Any]]
    game: str
    layout: Layout


def _norm_counted_twice(right: Callable[..., Any]) -> Callable[..., Any]:
    def of_everything(plan: Any, player: Any, squares: Tensor) -> Tensor:
        value = squares.sum()
        dist.all_reduce(value, group=plan._tensor_group)
        return value

    return of_everything


def _products_overwritten(right: Callable[..., Any]) -> Callable[..., Any]:
    def replace_as_without_recomputation(plan: Any, shared: Any) -> Any:
        plan._keeps_products = False
        return right(plan, shared)

    return replace_as_without_recomputation


BUGS = {
    "gradients of the shares of the batch are not averaged": Bug(
        "_network", lambda right: lambda plan, module: module, "flow matching", shared(4, 2)
    ),
    "norms count what is whole on every rank": Bug("_whole_square", _norm_counted_twice, "flow matching", shared(2, 2)),
    "norms are of one rank's part": Bug(
        "_whole_square", lambda right: lambda plan, player, squares: squares.sum(), "flow matching", shared(2, 2)
    ),
    "gradients of QK-norm are not summed": Bug(
        "_complete_gradients", lambda right: lambda plan, player: None, "any step, augmented", shared(2, 2)
    ),
    "gradients that enter by the first token's query are not summed": Bug(
        "_shared_of", lambda right: lambda plan, block, module: block.share(plan._parts, lambda x: x), "deep",
        shared(2, 2),
    ),
    "what selective recomputation keeps is overwritten": Bug("_replace", _products_overwritten, "deep", SELECTIVE),
}


@contextmanager
def _with(bug: Bug) -> Iterator[None]:
    from afm_scale.parallel.megatron import MegatronPlan

    right = getattr(MegatronPlan, bug.method)
    setattr(MegatronPlan, bug.method, bug.wrong(right))
    try:
        yield
    finally:
        setattr(MegatronPlan, bug.method, right)


def _play_in_turns(game: str, folder: Path) -> Outcome:
    """Under this plan, under another one, and under this one again, each from a checkpoint of the one before."""
    for layout, steps in ((shared(2, 2), 1), (Layout("ddp", 2, 2), 2), (shared(2, 2, 2), 4)):
        settings = (*layout.settings, *OF_GAME[game])
        outcome = train_part(game, layout._replace(settings=settings), folder, steps)
    return outcome


def _play_all(num_ranks: int, folder: Path) -> dict[Key, Outcome]:
    found = {(game, layout, ""): _played(game, layout) for game, layout in PLAYED if layout.ranks == num_ranks}
    if num_ranks == 2:
        found[RESUMED] = _play_in_turns(RESUMED[0], folder)
    for name, bug in BUGS.items():
        if bug.layout.ranks == num_ranks:
            with _with(bug):
                found[bug.game, bug.layout, name] = _played(bug.game, bug.layout)
    return found


@cache
def outcomes(num_ranks: int) -> dict[Key, list[Outcome]]:
    """From each rank: the processes are started once."""
    with TemporaryDirectory() as folder:
        of_ranks = run_ranks(num_ranks, _play_all, num_ranks, Path(folder), timeout=500)
    return {key: [found[key] for found in of_ranks] for key in of_ranks[0]}


def reference_of(game: str) -> Outcome:
    return outcomes(1)[game, REFERENCE, ""][0]


def _too_large(outcome: Outcome, reference: Outcome) -> dict[str, float]:
    """With the roots of the second moments: gradients, whose squares may be below any tolerance."""
    return too_large(_with_roots(outcome), _with_roots(reference), TOLERANCE)


def _with_roots(outcome: Outcome) -> Outcome:
    roots = {name: value.sqrt() for name, value in outcome.tensors.items() if name.endswith("exp_avg_sq")}
    return replace(outcome, tensors=outcome.tensors | roots)


def test_the_updates_compared_went_through_the_blocks() -> None:
    """Else agreeing would say little."""
    for game in GAMES:
        moments = {
            name: value for name, value in reference_of(game).tensors.items()
            if name.endswith(".weight.exp_avg_sq") and ".blocks." in name
        }
        assert len(moments) >= 10 and all(value.sqrt().max() > 1e3 * TOLERANCE for value in moments.values())


@pytest.mark.parametrize(("game", "layout"), [played for played in PLAYED if played[1] != REFERENCE], ids=str)
def test_four_updates_do_not_depend_on_the_layout(game: str, layout: Layout) -> None:
    for outcome in outcomes(layout.ranks)[game, layout, ""]:
        assert outcome.counted == reference_of(game).counted
        assert not _too_large(outcome, reference_of(game))


def test_ranks_that_share_a_network_agree_on_it_in_every_bit() -> None:
    """What is whole on every rank is computed by each of them, update by update."""
    first, *others = outcomes(4)["any step, augmented", shared(4, 2, 2), ""]
    for other in others:
        assert all(torch.equal(other.tensors[name], tensor) for name, tensor in first.tensors.items())


@pytest.mark.parametrize("name", BUGS)
def test_a_plan_that_does_it_wrong_is_seen(name: str) -> None:
    bug = BUGS[name]
    for outcome in outcomes(bug.layout.ranks)[bug.game, bug.layout, name]:
        assert _too_large(outcome, reference_of(bug.game))


def test_a_run_goes_on_under_another_plan_and_back() -> None:
    reference = reference_of(RESUMED[0])
    last = {name: values[2:] for name, values in reference.reported.items()}  # of the third part
    for outcome in outcomes(2)[RESUMED]:
        assert outcome.counted == reference.counted
        assert not _too_large(outcome, replace(reference, reported=last))
