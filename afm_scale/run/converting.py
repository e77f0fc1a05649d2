"""From one format of checkpoints to another: which part, in which type of number, and whether it came out alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..checkpoint.card import Card
from ..checkpoint.dtypes import DTYPES
from ..checkpoint.formats.format import About, Lazy, Source, Told, Wanted
from ..checkpoint.formats.misfit import misfits
from ..checkpoint.formats.table import FORMATS, HOLD_ALL, format_of
from ..checkpoint.names import group_of, of_average, of_role, under, with_prefix
from ..core.errors import CheckpointError, ConfigError
from ..core.typed import build
from ..core.types import PUBLISHED, Role
from .checkpoints import KINDS
from .fitting import recipes_that_fit
from .networks import build_described
from .prompts import labels_of

Part = Literal["all", "average", "generator", "discriminator", "classifier"]
PARTS: tuple[Part, ...] = ("all", "average", "generator", "discriminator", "classifier")
CASTS = ("float64", "float32", "bfloat16", "float16")

_VERIFIED_BYTES = 10**9  # files up to this size are verified unless told otherwise
_SAMPLES = 2


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is asked."""

    source: Path
    source_format: str  # 'auto': what it is recognised as
    out: Path
    out_format: str
    part: Part | None  # None: all, where the format holds all; else the average, or the only network there is
    dtype: str | None
    verify: bool | None  # None: of files under 1 GB
    told: Told
    wanted: Wanted


@dataclass(frozen=True)
class Converted:
    """What came of it."""

    source_format: str
    num_tensors: int
    num_bytes: int  # of the tensors written
    notes: tuple[str, ...]
    differences: Mapping[str, float] | None  # largest of any output, by whose network it is; None: not verified


def convert(asked: Conversion) -> Converted:
    """Raises UserError, with nothing left at `asked.out`, for anything that cannot be read, held or written."""
    kind, target = format_of(asked.source_format, asked.source), FORMATS[asked.out_format]
    with kind.source(asked.source, asked.told) as opened:
        source = in_dtype(chosen(opened, asked.part, asked.out_format), asked.dtype)
        notes = list(opened.about.notes)
        target.write(source, asked.out, asked.wanted)
        differences = None
        if asked.verify or asked.verify is None and source.num_bytes < _VERIFIED_BYTES:
            try:
                with target.source(asked.out, told_by(source.about.card, asked.told)) as written:
                    differences = largest_differences(chosen(opened, asked.part, asked.out_format), written)
            except CheckpointError as error:
                if asked.verify:
                    raise
                notes.append(f"not verified: {error}")
        return Converted(kind.name, len(source.tensors), source.num_bytes, tuple(notes), differences)


def told_by(card: Card | None, told: Told) -> Told:
    """What there is to say of a file that was written from a source with this card, but cannot hold all of it."""
    if card is None:
        return told
    network = card.networks.get(card.learner, {})
    return replace(
        told, heads=network.get("num_heads"), repetitions=network.get("repetitions"), num_steps=card.num_steps,
        prediction=card.prediction,
    )


def chosen(source: Source, part: Part | None, out_format: str) -> Source:
    """The tensors of a part, with a card of their network alone. Raises CheckpointError if there are none."""
    groups = {group_of(name) for name in source.tensors}
    if part is None and out_format not in HOLD_ALL and len(groups) > 1:
        part = "average" if of_average()[:-1] in groups else "generator"
    if part in (None, "all"):
        return source
    prefix = of_average() if part == "average" else of_role(Role(part))
    tensors = {name: lazy for name, lazy in source.tensors.items() if name.startswith(prefix)}
    card = source.about.card
    role = _role_of(prefix, card)
    if not tensors and groups == {PUBLISHED} and (card is None or role is card.learner):
        tensors = with_prefix(prefix, under(of_average(), source.tensors))  # a file of one network
    if not tensors:
        raise CheckpointError(f"{source.path} holds no {part}; it holds {', '.join(sorted(groups))}: choose --part so")
    return Source(source.path, tensors, _of_part(source.about, role), source.close)


def _role_of(prefix: str, card: Card | None) -> Role:
    if prefix != of_average():
        return Role(prefix.rstrip("."))
    return Role.GENERATOR if card is None else card.learner


def _of_part(about: About, role: Role) -> About:
    card = about.card
    if card is None or role not in card.networks:
        return about
    prediction = card.prediction if role is Role.GENERATOR else None
    networks = {role: card.networks[role]}
    return replace(about, card=replace(card, learner=role, networks=networks, prediction=prediction))


def in_dtype(source: Source, dtype: str | None) -> Source:
    """The same with every float of 16 to 64 bits in another type; whole numbers, and the optimizer's steps, stay."""
    if dtype is None:
        return source
    wanted = DTYPES[dtype]

    def cast(name: str, lazy: Lazy) -> Lazy:
        if lazy.entry.dtype not in CASTS or lazy.entry.dtype == dtype or name.endswith(".step"):
            return lazy
        return lazy.changed(lambda tensor: tensor.to(wanted), replace(lazy.entry, dtype=dtype))

    return source.with_tensors({name: cast(name, lazy) for name, lazy in source.tensors.items()})


def largest_differences(one: Source, other: Source) -> dict[str, float]:
    """The largest difference of any output between the networks of two checkpoints, for the same fixed inputs.

    Each is built from its own card and computes in the wider of both types, float32 at least; keys are groups of
    `names.group_of`. Raises CheckpointError if one side has no card, or does not fit it.
    """
    found = {}
    groups = {name: [source for source in (one, other) if _has(source, name)] for name in _networks_in(one)}
    for group, sides in groups.items():
        others = [group] if len(sides) == 2 else [name for name in _networks_in(other)]
        if len(others) != 1:
            raise CheckpointError(f"{other.path} holds no {group} to compare with")
        first, second = (outputs(one, group), outputs(other, others[0]))
        found[group] = float((first.double() - second.double()).abs().max()) if first.numel() else 0.0
    return found


def _has(source: Source, group: str) -> bool:
    return any(name.startswith(f"{group}.") for name in source.tensors)


def _networks_in(source: Source) -> list[str]:
    groups = dict.fromkeys(group_of(name) for name in source.tensors)
    return [name for name in groups if name.split(".")[0] in ("average", "averages", *(role.value for role in Role))]


def outputs(source: Source, group: str) -> Tensor:
    """What one network of a checkpoint answers to inputs that depend on the card's shape and classes alone."""
    card = source.card()
    role = card.learner if group.startswith("average") else Role(group)
    weights = under(f"{group}.", source.tensors)
    network = network_for(source.path, card, role, weights)
    read = {name: lazy.read() for name, lazy in weights.items()}
    dtype = max((tensor.dtype for tensor in read.values() if tensor.is_floating_point()), key=lambda d: d.itemsize)
    dtype = torch.float64 if dtype is torch.float64 else torch.float32
    network = network.to_empty(device="cpu").to(dtype)
    network.load_state_dict({name: tensor.to(dtype) for name, tensor in read.items()})
    random = torch.Generator().manual_seed(0)
    x = torch.randn(_SAMPLES, *card.shape, generator=random).to(dtype)
    s = torch.linspace(1, 0.75, _SAMPLES)
    y = labels_of(build(KINDS[role], card.networks[role], (role.value,)), card.num_classes, _SAMPLES, dtype)
    with torch.inference_mode():
        if role is Role.GENERATOR:
            return network(x, s, s / 2, y)
        return network(x, s, y) if role is Role.DISCRIMINATOR else network(x, s)


def network_for(path: Path, card: Card, role: Role, weights: Mapping[str, Lazy]) -> nn.Module:
    """The network that a card describes, on the meta device.

    Raises CheckpointError if the weights are not its own: both shapes are named, and a recipe that would fit.
    """
    if role not in card.networks:
        raise CheckpointError(f"{path} does not say what its {role.value} is")
    try:
        network = build_described(role, build(KINDS[role], card.networks[role], (role.value,)), card.shape,
                                  card.num_classes)
    except (ConfigError, ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds a {role.value} that cannot be built: {str(error):.300}") from error
    shapes = {name: tuple(lazy.entry.shape) for name, lazy in weights.items()}
    problem = misfits(shapes, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
    if problem is not None:
        fitting = recipes_that_fit(role, shapes)
        hint = f"the recipe {fitting[0]} would fit" if fitting else "use another checkpoint"
        raise CheckpointError(f"{path} does not fit its own card: {role.value}: {problem}; {hint}")
    return network
