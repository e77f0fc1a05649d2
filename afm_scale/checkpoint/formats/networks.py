"""A checkpoint as other trainers see one: networks, each with the state of its optimizer, and what else there is.

DeepSpeed and Megatron keep one network in a folder; a run of this program has up to two, and averages. Both formats
lay the learner's network where their own programs look for it, another player's in a folder of its role beside, and
the rest, with what is known of the run, under names of their own in the learner's first file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...core.errors import CheckpointError
from ...core.types import Role
from ..names import AVERAGE, of_average, of_optimizer, of_role, under, with_prefix
from .about import about_from, about_to
from .format import About, Lazy, Source, Told
from .official import about_of
from .shapes import size_of

ABOUT, NETWORK, TENSORS = "afm_scale", "afm_scale_network", "afm_scale_tensors"
"""Keys in a folder's first file: the text of `about.py`, which network it is, and tensors of no network."""
MOMENTS = ("exp_avg", "exp_avg_sq")
_OF_NETWORKS = (AVERAGE, "optimizer.", *(of_role(role) for role in Role))


@dataclass
class Learned:
    """A network's tensors by their names in it, and the optimizer's state of those it moves."""

    name: str  # a role, or 'average' where there is nothing else
    weights: dict[str, Lazy]  # of parameters and buffers, in the network's order
    moments: dict[str, dict[str, Lazy]] = field(default_factory=dict)  # by parameter, then 'exp_avg', 'exp_avg_sq'
    step: Lazy | None = None  # updates of the optimizer, []; None: there is no state

    @property
    def moved(self) -> dict[str, Lazy]:
        """The parameters: what an optimizer has a state of; without one, all that is not a table of positions."""
        return {
            name: lazy for name, lazy in self.weights.items()
            if (name in self.moments if self.moments else not name.endswith("pos_embed"))
        }

    @property
    def buffers(self) -> dict[str, Lazy]:
        moved = self.moved
        return {name: lazy for name, lazy in self.weights.items() if name not in moved}

    def named(self) -> dict[str, Lazy]:
        """All of it under this program's names."""
        if self.name == "average":
            return with_prefix(AVERAGE, self.weights)
        role = Role(self.name)
        tensors = with_prefix(of_role(role), self.weights)
        for name, moments in self.moments.items():
            kept = {"step": self.step, **moments}
            tensors |= {f"{of_optimizer(role)}{name}.{key}": lazy for key, lazy in kept.items() if lazy is not None}
        return tensors


def networks_of(source: Source, kind: str) -> tuple[list[Learned], dict[str, Lazy]]:
    """The networks, the learner's first, and the tensors that belong to none.

    Args:
        kind: the format that is to hold them, for messages.

    Raises CheckpointError for what such a format cannot hold.
    """
    rest, found = dict(source.tensors), []
    for name, lazy in source.tensors.items():
        if name.startswith(_OF_NETWORKS) and lazy.entry.dtype != "float32" and lazy.entry.shape:
            raise CheckpointError(
                f"{source.path}: {name} is {lazy.entry}, and {kind} moves float32 weights; convert with --dtype "
                "float32, or choose another format"
            )
    for role in Role:
        if under(of_role(role), source.tensors):
            found.append(_learned(source, role, kind))
    if not found and under(AVERAGE, source.tensors):
        found.append(Learned("average", under(AVERAGE, source.tensors)))
    if not found:
        raise CheckpointError(f"{source.path} holds no network: {kind} has nothing to write; choose another --part")
    learner = source.about.card.learner.value if source.about.card else Role.GENERATOR.value
    found.sort(key=lambda network: network.name != learner)
    for network in found:
        for name in network.named():
            rest.pop(name, None)
    return found, rest


def _learned(source: Source, role: Role, kind: str) -> Learned:
    network = Learned(role.value, under(of_role(role), source.tensors))
    steps: dict[str, Lazy] = {}
    for name, lazy in under(of_optimizer(role), source.tensors).items():
        parameter, _, key = name.rpartition(".")
        if key not in ("step", *MOMENTS) or parameter not in network.weights:
            raise CheckpointError(
                f"{source.path}: {of_optimizer(role)}{name} is nothing that {kind} keeps of an optimizer; wanted "
                f"step, {', '.join(MOMENTS)} of a weight"
            )
        network.moments.setdefault(parameter, {})
        if key == "step":
            steps[parameter] = lazy
        elif lazy.entry != network.weights[parameter].entry:
            raise CheckpointError(
                f"{source.path}: {of_optimizer(role)}{name} is {lazy.entry}, its weight "
                f"{network.weights[parameter].entry}; use another checkpoint"
            )
        else:
            network.moments[parameter][key] = lazy
    kinds = {tuple(sorted(moments)) for moments in network.moments.values()}
    if steps.keys() != network.moments.keys() or len(kinds) > 1:
        raise CheckpointError(f"{source.path}: the optimizer of {role.value} has not the same state of every weight")
    if steps:
        values = {(lazy.entry, float(lazy.read())) for lazy in steps.values()}
        if len(values) > 1:
            raise CheckpointError(
                f"{source.path}: the weights of {role.value} have had different numbers of updates, and {kind} keeps "
                "one number for all; choose another format"
            )
        network.step = next(iter(steps.values()))
        # In the network's order, which is that of its parameters in every optimizer.
        network.moments = {name: network.moments[name] for name in network.weights if name in network.moments}
    return network


def marks(source: Source, network: Learned, others: list[str], rest: Mapping[str, Lazy]) -> dict[str, Any]:
    """What a network's first file says beside what its own program reads: so much that nothing is lost.

    Args:
        others: networks that lie in folders of their own beside this one.
    """
    kept = sorted({key for moments in network.moments.values() for key in moments})
    return {
        ABOUT: about_to(source.about), NETWORK: {
            "name": network.name, "moments": kept, "moved": list(network.moved), "others": others,
        },
        TENSORS: dict(rest),
    }


def source_of(
    path: Path, network: Learned, content: Mapping[str, Any], told: Told, step: int, close: Callable[[], None],
    beside: Callable[[Path], tuple[Learned, Mapping[str, Any]]],
) -> Source:
    """The checkpoint that lies in a folder.

    Args:
        network: what is in the folder itself; its name is found here.
        content: of the folder's first file.
        step: as the other program counted.
        beside: reads the network in a folder beside.
    """
    if ABOUT not in content:
        return _of_others(path, network, told, step, close)
    named, kept = content.get(NETWORK), content.get(TENSORS)
    if not isinstance(content[ABOUT], str) or not isinstance(named, dict) or not isinstance(kept, dict):
        raise CheckpointError(f"{path} is damaged: what it says of itself is no text; use another copy")
    tensors = {str(name): lazy for name, lazy in kept.items() if isinstance(lazy, Lazy)}
    for found, said in [(network, named), *_others(path, named, beside)]:
        if said.get("name") not in {"average", *(role.value for role in Role)}:
            raise CheckpointError(f"{path} is damaged: it names a network {str(said.get('name')):.40}")
        found.name = said["name"]
        wanted = said.get("moments") or []
        for name, moments in found.moments.items():
            found.moments[name] = {key: lazy for key, lazy in moments.items() if key in wanted}
        tensors |= found.named()
    return Source(path, tensors, about_from(path, content[ABOUT]), close)


def _others(
    path: Path, named: Mapping[str, Any], beside: Callable[[Path], tuple[Learned, Mapping[str, Any]]]
) -> Iterator[tuple[Learned, Mapping[str, Any]]]:
    for name in named.get("others") or []:
        if name not in {role.value for role in Role}:
            raise CheckpointError(f"{path} is damaged: it names a network {str(name):.40}")
        found, content = beside(path / name)
        said = content.get(NETWORK)
        yield found, said if isinstance(said, dict) else {}


def _of_others(path: Path, network: Learned, told: Told, step: int, close: Callable[[], None]) -> Source:
    """One network that another program trained. Its weights stand in for the average, which there is none of."""
    entries = {name: lazy.entry for name, lazy in network.weights.items()}
    try:
        size = size_of(path, entries)
        network.name, about = size.role.value, about_of(size, told)
        if size.role is Role.GENERATOR and (size.num_out != size.shape[0] or size.rows is None):
            about = About(no_card=f"it has {size.num_out} outputs for {size.shape[0]} channels: no AFM generator")
    except CheckpointError as error:
        network.name, about = Role.GENERATOR.value, About(no_card=f"it {str(error).removeprefix(f'{path} ')}")
    tensors = network.named()
    notes = about.notes
    if network.name != Role.DISCRIMINATOR.value:
        tensors = with_prefix(of_average(), network.weights) | tensors
        notes = (*notes, "it keeps no average of the weights: the weights themselves stand in for it")
    return Source(path, tensors, About(card=about.card, no_card=about.no_card, step=step, notes=notes), close)


def scalar(value: Any, path: Path) -> Lazy:
    """A number of updates, which is a tensor or a plain number. Raises CheckpointError for anything else."""
    if isinstance(value, Lazy) and value.entry.shape == ():
        return value
    if type(value) in (int, float):
        return Lazy.of(torch.tensor(float(value)))
    raise CheckpointError(f"{path}: its number of updates is no number; use another copy")
