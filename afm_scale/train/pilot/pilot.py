"""The pilot: at a step boundary it may change the phase of a run, copy the average into the generator, or end the run.

    note(report)           after every step: adds to what it knows, without waiting for the device
    observe(evaluation)    after an evaluation: a new point of the history, which is acted on at the next boundary
    steer(state)           before every step: decides (`decide.py`), acts, and writes one line for each act
    roll_back(state)       after a divergence: the state is that of an earlier checkpoint (`train/steered.py`)

It acts before a step rather than after one, so that a checkpoint holds what was known and what is yet to be done:
a run that is killed at any instant, and resumed, does the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ...core.errors import ConfigError, DivergenceError
from ...core.typed import to_mapping
from ...core.types import Role
from ...core.words import STANDING, STEERING
from ...parallel.plan import ParallelPlan, Player
from ..evaluation import Evaluation
from ..hooks.events import EventLog
from ..hooks.hook import StepReport
from ..state import TrainState
from .acts import Act, AdvancePhase, AverageIntoGenerator, ReloadDiscriminator, RollBack, Stop, TryDiscriminators
from .config import PilotConfig
from .decide import decide
from .guard import Guard, Judge
from .memory import Memory, Point, Value, Window
from .phases import Phase
from .reloading import Reloading
from .rolling_back import GoneBadError, RollingBack
from .rules import fired
from .trial import Branch
from .window import Signals


class Pilot:
    """Collective in all it does: every rank calls it, knows the same and decides the same."""

    def __init__(
        self, config: PilotConfig, phases: Sequence[Phase], state: TrainState, plan: ParallelPlan, events: EventLog,
        reloading: Reloading | None = None, rolling_back: RollingBack | None = None,
    ) -> None:
        """Of a state that is where the run starts or goes on. `phases` are those of the recipe, at least one.

        `reloading` is there where earlier discriminators are kept, `rolling_back` where a run may go back.
        """
        self._config = config
        self._phases = tuple(phases)
        self._plan = plan
        self._events = events
        self._reloading = reloading
        self._rolling_back = rolling_back
        self._signals = Signals(plan)
        self._guard = None if config.guard is None else Guard(config.guard, plan, events)
        self._state = state
        self._in_force: tuple[int, int] | None = None  # phase, and when it began

    def on_start(self, state: TrainState) -> None:
        """Takes up what the state remembers; called where the run starts, goes on, or went back to."""
        if self._state.pilot is None:  # a new run, or one that had no pilot so far
            self._state.pilot = Memory(began=self._state.step, began_images=self._state.images_seen)
            self._note_phase("the run begins")
        self._signals.begin(self._memory.window)
        if self._reloading is not None:
            self._reloading.ring.on_start(state)

    @property
    def _memory(self) -> Memory:
        assert self._state.pilot is not None
        return self._state.pilot

    def before_turn(self, state: TrainState, role: Role) -> Judge | None:
        """Who looks at the gradient of this turn before it moves anything."""
        return None if self._guard is None else self._guard.of_turn(state, role)

    def note(self, report: StepReport) -> None:
        """Raises DivergenceError, on all ranks alike, if too many updates in a row were not made."""
        self._signals.add(report)
        if self._guard is not None:
            self._guard.after_step(self._state)

    def roll_back(self, state: TrainState, error: DivergenceError) -> None:
        """Brings the state back to a good checkpoint, and saves it there. Raises the error where it may not."""
        if self._rolling_back is None:
            raise error
        self._rolling_back.restore(state, error)
        self._signals.begin(self._memory.window)
        if self._rolling_back.config.then == "next_phase" and self._memory.phase + 1 < len(self._phases):
            self._put_in_force(state)
            self._advance(state, "the run went back")
        self.before_save(state)
        self._rolling_back.save(state)

    def observe(self, found: Evaluation) -> None:
        """Collective: reads the signals of the steps since the last one.

        Raises ConfigError for a figure that the evaluation does not have.
        """
        for setting in ("quality", "diversity"):
            if (name := getattr(self._config, setting)) is not None and name not in found.figures:
                raise ConfigError(
                    f"pilot.{setting} {name!r}: hooks.evaluation gives {', '.join(found.figures)}; name one of these"
                )
        memory = self._memory
        point = Point(
            step=found.step, images_seen=found.images_seen, figures=_plain(found.figures),
            signals=self._signals.means(), phase=memory.phase,
        )
        noise = memory.noise if found.noise is None else _plain(found.noise)
        memory = replace(memory, points=(*memory.points, point), is_pending=True, window=Window(), noise=noise)
        rules = fired(
            self._config.rules, memory, quality=self._config.quality, diversity=self._config.diversity
        )
        self._state.pilot = replace(memory, fired=tuple(rules))
        for rule, evidence in rules.items():
            self._events.write("rule", step=found.step, rule=rule, evidence=_plain(evidence))

    def before_save(self, state: TrainState) -> None:
        """Collective: makes the memory complete. Raises DivergenceError for weights that must not be saved."""
        if self._guard is not None:
            self._guard.before_save(state)
        state.pilot = replace(self._memory, window=self._signals.window())
        if self._reloading is not None:
            self._reloading.ring.before_save(state)

    def steer(self, state: TrainState) -> bool:
        """Does what is to be done before the next step. Returns whether there is to be one."""
        self._put_in_force(state)
        if self._reloading is not None:
            self._reloading.ring.keep(state)
        goes_on = True
        for act in decide(self._config, self._phases, self._memory, step=state.step, images_seen=state.images_seen):
            with STANDING.during(STEERING):
                goes_on = self._do(act, state) and goes_on
        state.pilot = replace(self._memory, is_pending=False)
        self._put_in_force(state)
        return goes_on

    def reload(
        self, state: TrainState, act: ReloadDiscriminator | TryDiscriminators
    ) -> tuple[int | None, tuple[Branch, ...]]:
        """By hand, where nothing trains: see `Reloading.do`. Raises TornError if what is asked for is not whole."""
        assert self._reloading is not None
        self.on_start(state)
        self._put_in_force(state)
        return self._reloading.do(act, state, or_older=False)

    def _do(self, act: Act, state: TrainState) -> bool:
        """Whether the run goes on after it."""
        if isinstance(act, ReloadDiscriminator | TryDiscriminators):
            assert self._reloading is not None
            self._reloading.do(act, state)
            return True
        if isinstance(act, RollBack):
            raise GoneBadError(f"{act.why} at step {state.step}", not_after=act.not_after)
        self._note(act, state.step)
        if isinstance(act, AverageIntoGenerator):
            average_into_learner(state, self._plan)
        elif isinstance(act, AdvancePhase):
            self._advance(state, act.why)
        return not isinstance(act, Stop)

    def _advance(self, state: TrainState, why: str) -> None:
        state.pilot = replace(
            self._memory, phase=self._memory.phase + 1, began=state.step, began_images=state.images_seen,
            guard=replace(self._memory.guard, norms={}),  # another objective may have others
        )
        if self._phases[self._memory.phase].config.optimizer == "reset":
            for player in state.players.values():
                reset_optimizer(player, self._plan)
        self._note_phase(why)

    def _put_in_force(self, state: TrainState) -> None:
        """The settings of the phase that is going on; again after a resume, or where the state went back."""
        wanted = (self._memory.phase, self._memory.began)
        if wanted != self._in_force:
            settings = self._phases[self._memory.phase].from_step(self._memory.began)
            for role, player in state.players.items():
                player.learning_rate = settings.learning_rates[role]
            state.objective.config = settings.objective
            self._in_force = wanted

    def _note(self, act: Act, step: int) -> None:
        names = {AdvancePhase: "advance_phase", AverageIntoGenerator: "average_into_generator", Stop: "stop"}
        self._events.write("act", step=step, act=names[type(act)], **to_mapping(act))

    def settle(self) -> None:
        """Until this rank's threads no longer write. Not collective."""
        if self._reloading is not None:
            self._reloading.ring.settle()

    def _note_phase(self, why: str) -> None:
        phase = self._phases[self._memory.phase]
        settings = to_mapping(phase.from_step(self._memory.began).learning_rates)
        self._events.write(
            "phase", step=self._state.step, phase=phase.config.name, index=self._memory.phase, why=why,
            settings=to_mapping(phase.config), learning_rates={role.value: rate for role, rate in settings.items()},
        )


class NoPilot:
    """Of a run that nobody steers."""

    def on_start(self, state: TrainState) -> None:
        """There is nothing to take up."""

    def before_turn(self, state: TrainState, role: Role) -> None:
        """Nobody looks."""

    def note(self, report: StepReport) -> None:
        """Nothing is remembered."""

    def steer(self, state: TrainState) -> bool:
        return True

    def roll_back(self, state: TrainState, error: DivergenceError) -> None:
        """Nobody would know where to."""
        raise error

    def settle(self) -> None:
        """Nothing is written."""


def _plain(figures: Mapping[str, float]) -> dict[str, Value]:
    """As JSON has them: null for what is not finite."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


@torch.no_grad()
def average_into_learner(state: TrainState, plan: ParallelPlan) -> None:
    """The weights of the published average become those of the learner; communicates nothing."""
    learner = state.players[state.objective.learner]
    weights = plan.local_tensors(learner.module)
    for name, value in plan.local_tensors(state.average.network).items():
        weights[name].copy_(value)
    plan.reshard(learner.module)


@torch.no_grad()
def reset_optimizer(player: Player, plan: ParallelPlan) -> None:
    """Its state is as before the first update: zeros. Collective."""
    tensors = plan.optimizer_state_dict(player)
    for tensor in tensors.values():
        tensor.zero_()
    plan.load_optimizer_state_dict(player, tensors)
