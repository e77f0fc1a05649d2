"""What a step's memory is made of, from the lives of its storage: at every moment, and where it is highest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .ledger import Life

Part = tuple[str, str]
"""Of a network (or 'step' for what is of none), a kind: ('generator', 'weights')."""

# In the order of the table and the picture: what lies there at rest comes first.
KINDS = (
    "weights", "optimizer", "average", "guides", "gradients", "gathered weights", "activations", "recomputed and other",
    "sent", "data",
)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """All that is held at one time: bytes by part."""

    mover: str
    occasion: str
    parts: Counter[Part]

    @property
    def total(self) -> int:
        return self.parts.total()


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Of one rank in one step."""

    rest: Moment  # before it
    peak: Moment
    turns: Sequence[Moment]  # the highest of each (mover, occasion), in the order in which they were first met
    course: Sequence[tuple[str, str, Counter[Part]]]  # mover, occasion and parts, at most so many as asked for


def part_of(life: Life) -> Part:
    """Whose it is, and what. It is known afterwards: what a forward makes and a backward uses is an activation."""
    if life.owner:
        network, _, kind = life.owner.partition(":")
        return network, kind
    network = life.network if life.network != "none" else life.mover if life.mover != "none" else "step"
    outlives = life.died_in not in ("forward", "backward")
    if life.is_gathered:
        return network, "gathered weights"
    if life.occasion in ("build", "backward") and (outlives or life.occasion == "build"):
        return network, "gradients"  # in the build: DDP's and ZeRO's buckets
    if life.is_sent:
        return network, "sent"
    if life.occasion == "forward":
        return network, "recomputed and other" if life.died_in == "forward" else "activations"
    return (network, "recomputed and other") if life.occasion != "between" else ("step", "data")


def step_memory(lives: Sequence[Life], since: int, *, points: int = 400) -> StepMemory:
    """Of what lived after the moment `since`, the beginning of the step, with what lay there then."""
    events = sorted(_events(lives, since), key=lambda event: event[0])
    held: Counter[Part] = Counter()
    size = 0
    for life in lives:
        if life.born <= since and (life.died is None or life.died > since):
            held[part_of(life)] += life.size
            size += life.size
    rest = Moment(mover="none", occasion="rest", parts=+held)
    peak, highest = rest, size
    tops: dict[tuple[str, str], tuple[int, Counter[Part]]] = {}
    course, every = [], max(1, len(events) // points)
    top_of_stretch, kept = -1, None
    for index, (_, life, sign) in enumerate(events):
        held[part_of(life)] += sign * life.size
        size += sign * life.size
        if sign > 0:
            mover = life.mover
            where = (mover, life.occasion)
            if size > tops.get(where, (-1, held))[0]:
                tops[where] = size, Counter(held)
            if size > highest:
                highest, peak = size, Moment(mover=mover, occasion=life.occasion, parts=Counter(held))
            if size > top_of_stretch:
                top_of_stretch, kept = size, (mover, life.occasion, Counter(held))
        if index % every == every - 1 and kept is not None:
            course.append(kept)
            top_of_stretch, kept = -1, None
    return StepMemory(
        rest=rest, peak=_tidy(peak), course=course,
        turns=[
            _tidy(Moment(mover=mover, occasion=occasion, parts=parts)) for (mover, occasion), (_, parts) in tops.items()
        ],
    )


def _tidy(moment: Moment) -> Moment:
    return Moment(mover=moment.mover, occasion=moment.occasion, parts=+moment.parts)


def _events(lives: Sequence[Life], since: int) -> Iterator[tuple[int, Life, int]]:
    for life in lives:
        if life.born > since:
            yield life.born, life, 1
        if life.died is not None and life.died > since:
            yield life.died, life, -1
