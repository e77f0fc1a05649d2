"""Which discriminator comes back when training stalls, as a function of what the pilot remembers."""

from __future__ import annotations

import pytest

from afm_scale.train.pilot.acts import Act, AdvancePhase, ReloadDiscriminator, Stop, TryDiscriminators
from afm_scale.train.pilot.config import PhaseConfig, PilotConfig
from afm_scale.train.pilot.decide import decide
from afm_scale.train.pilot.memory import Memory, Reload
from afm_scale.train.pilot.reload import ByRule, ByTrial, has_helped, on_stall, spread

from .small import QUALITY, history, ready

RING = (10, 20, 40, 60, 70, 80)
RULE = ByRule(age=30, cool_down=20, limit=3)


def act_of(config: ByRule | ByTrial, memory: Memory, *, step: int = 100, is_last: bool = False) -> Act | None:
    return on_stall(config, memory, step=step, quality=QUALITY, least_improvement=0.1, is_last=is_last)


def to(act: Act | None) -> int | None:
    assert act is None or isinstance(act, ReloadDiscriminator)
    return None if act is None else act.to


def flat(*reloads: tuple[int, int | None], **changes: object) -> Memory:
    return history((4.0,) * 10, ring=RING, reloads=tuple(Reload(step=at, to=to) for at, to in reloads), **changes)


def test_by_rule_the_newest_that_is_old_enough_comes_back() -> None:
    assert to(act_of(RULE, flat())) == 70
    assert to(act_of(ByRule(age=31), flat())) == 60
    assert act_of(ByRule(age=91), flat()) is None


def test_nothing_comes_back_while_the_last_one_has_its_chance() -> None:
    assert act_of(RULE, flat((81, 40))) is None
    assert to(act_of(RULE, flat((80, 40)))) == 20


def test_after_one_that_did_not_help_an_older_one_is_next_after_one_that_did_the_same_again() -> None:
    assert to(act_of(RULE, flat((80, 40)))) == 20
    helped = history((4.0,) * 8 + (3.0, 3.0), ring=RING, reloads=(Reload(step=80, to=40),))
    assert has_helped(helped.reloads[0], helped, QUALITY, 0.1)
    assert to(act_of(RULE, helped)) == 40  # those from 41 to 80 led to the stall


@pytest.mark.parametrize(
    ("when_spent", "is_last", "wanted"),
    [("go_on", False, None), ("next_phase", False, AdvancePhase), ("next_phase", True, Stop), ("stop", False, Stop)],
)
def test_when_no_reload_is_left_the_recipe_says_what_next(when_spent: str, is_last: bool, wanted: type | None) -> None:
    config = ByRule(age=30, cool_down=20, limit=2, when_spent=when_spent)
    for memory in (flat((30, 20), (60, 10)), flat((50, 10))):  # the limit; nothing older
        act = act_of(config, memory, is_last=is_last)
        assert act is None if wanted is None else type(act) is wanted


def test_reloads_of_an_earlier_phase_do_not_count() -> None:
    config = ByRule(age=30, cool_down=20, limit=1)
    assert act_of(config, flat((30, 10))) is None
    assert to(act_of(config, flat((30, 10), phase=1, began=50))) == 70


def test_candidates_of_a_trial_are_spread_over_the_ring() -> None:
    assert spread(RING, 6) == RING
    assert spread(RING, 1) == (80,)
    assert spread(RING, 2) == (10, 80)
    assert spread(RING, 3)[0] == 10 and spread(RING, 3)[-1] == 80 and len(set(spread(RING, 3))) == 3
    act = act_of(ByTrial(candidates=2, cool_down=20), flat((80, 40)))
    assert act == TryDiscriminators(candidates=(10, 20), why="training stalls")


def test_a_stall_is_acted_on_where_the_phase_says_so_and_once() -> None:
    pilot = PilotConfig(reload=RULE)
    for says, pending, fired, wanted in (
        ("on_stagnation", True, ("stall",), 1), ("never", True, ("stall",), 0),
        ("on_stagnation", False, ("stall",), 0), ("on_stagnation", True, ("collapse",), 0),
    ):
        phases = [ready(PhaseConfig(name="a", discriminator_reload=says))]
        memory = flat(fired=fired, is_pending=pending)
        assert len(list(decide(pilot, phases, memory, step=100, images_seen=0))) == wanted
