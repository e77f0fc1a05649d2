"""Everything a checkpoint holds, enumerated in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Tensor, nn

from ..checkpoint.manifest import Manifest
from ..checkpoint.names import OBJECTIVE, of_average, of_optimizer, of_role, under, with_prefix
from ..core.conditions import Conditions
from ..core.ranges import MANY, Range
from ..core.typed import Mistake, build, to_mapping
from ..core.types import PUBLISHED, Batch, Networks, Role, networks_of
from ..data.source import DataSource, Position
from ..objectives.objective import Objective
from ..parallel.plan import ParallelPlan, Player
from ..sampling.subject import Subject
from .average import Average
from .pilot.memory import Memory


@dataclass(frozen=True, kw_only=True)
class Scalars:
    """What a checkpoint keeps of a state beside its tensors."""

    step: Annotated[int, Range(0, MANY)]
    images_seen: Annotated[int, Range(0, 2**62)]
    data: Position
    pilot: Memory | None = None  # null: none has steered the run yet


def scalars_in(manifest: Manifest) -> Scalars:
    """Raises Mistake for what is not the state of a run at the manifest's step."""
    scalars = build(Scalars, manifest.scalars, ("scalars",))
    if scalars.step != manifest.step:
        raise Mistake(("scalars", "step"), f"found {scalars.step}, wanted the {manifest.step} of the manifest itself")
    return scalars


@dataclass
class TrainState:
    """The state of a run at a step boundary. Randomness has none: it is a function of (seed, step, role, position)."""

    players: Mapping[Role, Player]
    averages: Mapping[str, Average]  # of the learner: the one that is published, and those the objective asks
    objective: Objective
    data: DataSource
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)  # come from their own files, not from the checkpoint
    prompts: Conditions | None = None  # that samples of the average are drawn for, on the device; likewise
    step: int = 0  # completed updates of the learner: the generator, or the classifier that is trained
    images_seen: int = 0  # by the learner, over all ranks
    pilot: Memory | None = None  # what the pilot knows; null in a run that has none
    _batches: Iterator[Batch] | None = field(default=None, init=False, repr=False)

    def next_batch(self) -> Batch:
        """This rank's samples of the next turn."""
        if self._batches is None:
            self._batches = iter(self.data)
        return next(self._batches)

    @property
    def average(self) -> Average:
        """The one that is sampled, evaluated and published."""
        return self.averages[PUBLISHED]

    def networks(self) -> Networks:
        players = {role: player.network for role, player in self.players.items()}
        return networks_of(players, {name: average.network for name, average in self.averages.items()}, self.frozen)

    def subject(self, plan: ParallelPlan, num_steps: int) -> Subject:
        """The average, for a report or an evaluation that draws samples in `num_steps` steps."""
        return Subject(
            network=self.average.network, prediction=self.objective.prediction, shape=self.data.shape,
            num_classes=self.data.num_classes, num_steps=num_steps, dtype=plan.dtype, place=plan.place,
            source=self.data, prompts=self.prompts,
        )

    def tensors(self, plan: ParallelPlan) -> dict[str, Tensor]:
        """All tensors by a name that does not depend on the plan; loading a checkpoint fills them in place."""
        named = {}
        for average, kept in self.averages.items():
            named |= with_prefix(of_average(average), self._moving(plan.state_dict(kept.network)))
        for role in self.players:
            named |= self.player_tensors(plan, role)
        return named | with_prefix(OBJECTIVE, self.objective.state_dict())

    def player_tensors(self, plan: ParallelPlan, role: Role, *, optimizer: bool = True) -> dict[str, Tensor]:
        """Those of `tensors` that are a player's: its weights and, if wanted, its optimizer's state."""
        player = self.players[role]
        named = with_prefix(of_role(role), player.moving(plan.state_dict(player.module)))
        return named | (with_prefix(of_optimizer(role), plan.optimizer_state_dict(player)) if optimizer else {})

    def _moving(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.players[self.objective.learner].moving(tensors)

    def take(self, plan: ParallelPlan, tensors: Mapping[str, Tensor]) -> None:
        """Makes the values of `tensors(plan)`, into which a checkpoint was loaded, those of the run. Collective."""
        for name, average in self.averages.items():
            plan.load_state_dict(average.network, under(of_average(name), tensors))
        for role in self.players:
            self.take_player(plan, role, tensors)

    def take_player(self, plan: ParallelPlan, role: Role, tensors: Mapping[str, Tensor]) -> None:
        """Does as `take`, for those of `player_tensors(plan, role)`."""
        player = self.players[role]
        plan.load_state_dict(player.module, under(of_role(role), tensors))
        if optimizer := under(of_optimizer(role), tensors):
            plan.load_optimizer_state_dict(player, optimizer)

    def scalars(self) -> dict[str, Any]:
        """The rest of the state, as plain JSON values; kept in the checkpoint's manifest."""
        pilot = {} if self.pilot is None else {"pilot": to_mapping(self.pilot)}
        return {"step": self.step, "images_seen": self.images_seen, "data": dict(self.data.state_dict()), **pilot}

    def load_scalars(self, scalars: Scalars) -> None:
        self.step = scalars.step
        self.images_seen = scalars.images_seen
        self.pilot = scalars.pilot
        self.data.load_state_dict(to_mapping(scalars.data))
        self._batches = None  # what was read ahead is of another position
