"""Which weights of a pretrained generator another network can begin with, and what becomes of the rest.

The backbone (patches, positions, blocks) is copied. What differs in meaning is changed or begins anew:

* labels: the rows of the classes; the row for samples without one where both have it. A player that is told no time
  gets the embedding of the one time at which it works, added to every row: noise for a one-step generator, data for a
  discriminator. So a one-step generator that predicts a velocity begins as the flow's own first step.
* time: the embedder, for other sinusoids where they can make the same ones up.
* the final layer: where its output means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint.formats.format import Lazy
from ..checkpoint.formats.misfit import misfits
from ..checkpoint.formats.sinusoids import on_other_sinusoids
from ..core.errors import CheckpointError
from ..core.sinusoids import time_sinusoids
from ..core.types import Role

Change = Callable[[Tensor], Tensor]
"""Makes a weight to begin with of the one that a run would start with otherwise."""

_TABLE = "y_embedder.embedding_table.weight"
_LAST_STEP = 0.999  # of a diffusion's thousand: pure noise
_EMBEDDERS = ("t_embedder", "t_tgt_embedder", "interval_embedder")


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A generator: its weights by their names in it, and what its card says."""

    tensors: Mapping[str, Lazy]
    network: Mapping[str, Any]  # kind and settings, with those at their defaults
    num_classes: int
    prediction: str | None

    @property
    def has_null(self) -> bool:
        return bool(self.network.get("null_class"))

    @property
    def is_of_noise(self) -> bool:
        return self.network["kind"] == "dit_diffusion"

    def embedded(self, embedder: str, t: float) -> Tensor:
        """What an embedder adds to a condition at a time, [d] float64."""
        weights = [self.tensors[f"{embedder}.mlp.{name}"].read().double() for name in
                   ("0.weight", "0.bias", "2.weight", "2.bias")]
        told = time_sinusoids(self.network["time_embedding"], torch.tensor([t])).double()
        return F.linear(F.silu(F.linear(told, *weights[:2])), *weights[2:])[0]

    def moved_to_data(self, t: float) -> Tensor:
        """What its embedders add to a condition for the move from t to 0, [d] float64."""
        embedders = [name for name in _EMBEDDERS if f"{name}.mlp.0.weight" in self.tensors]
        told = {"t_embedder": (1.0, t), "t_tgt_embedder": (1.0, 0.0), "interval_embedder": (t, t)}
        return sum(told[name][0] * self.embedded(name, told[name][1]) for name in embedders)


@dataclass(kw_only=True)
class Beginning:
    """What a player begins with; names that are not in `weights` begin as in any run."""

    weights: dict[str, Change] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)  # in words
    dropped: list[str] = field(default_factory=list)

    def words(self, wanted: Mapping[str, Any]) -> str:
        new = _parts(name for name in wanted if name not in self.weights)
        if not self.weights:
            return f"new {', '.join(new)}"
        said = [f"copied {', '.join([*_parts(self.weights), *self.changed])}"]
        said += [f"dropped {', '.join(self.dropped)}"] if self.dropped else []
        return "; ".join([*said, *([f"new {', '.join(new)}"] if new else [])])


def adapt(
    given: Pretrained, role: Role, network: Any, wanted: Mapping[str, tuple[int, ...]], prediction: str | None
) -> Beginning:
    """For a player whose network is described by `network` and has tensors of these names and shapes.

    Raises CheckpointError if its backbone is of another size, or it is told its times in a way that cannot be made up.
    """
    ours = {"null_class": False, "repetitions": 1, "target_time": False, "time_embedding": "dit", "times": None,
            **{name: getattr(network, name) for name in dir(network) if not name.startswith("_")}}
    found = {name: tuple(lazy.entry.shape) for name, lazy in given.tensors.items()}
    common = {name: shape for name, shape in wanted.items() if _is_backbone(name)}
    if problem := misfits({name: shape for name, shape in found.items() if _is_backbone(name)}, common):
        raise CheckpointError(f"{role.value}: {problem}")
    beginning = Beginning(weights={name: _read(given.tensors[name]) for name in common})
    if _TABLE in wanted:
        _labels(beginning, given, role, ours, wanted)
    _times(beginning, given, role, ours, wanted)
    _final_layer(beginning, given, role, ours, wanted, prediction)
    left = [part for part in _parts(given.tensors) if part not in _parts(beginning.weights)]
    beginning.dropped += [part for part in left if not any(part in words for words in beginning.dropped)]
    return beginning


def _labels(
    beginning: Beginning, given: Pretrained, role: Role, ours: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    num_classes, has_null = wanted[_TABLE][0] - bool(ours["null_class"]), bool(ours["null_class"])
    if num_classes != given.num_classes:
        raise CheckpointError(
            f"{role.value}: {_TABLE} is of {given.num_classes} classes there, of {num_classes} here; train on data of "
            "the same classes"
        )
    is_told = "t_embedder.mlp.0.weight" in wanted
    at = None
    if not is_told and "t_embedder.mlp.0.weight" in given.tensors:
        at = 0.0 if role is Role.DISCRIMINATOR else _LAST_STEP if given.is_of_noise else 1.0
        beginning.changed.append(f"the time of {'data' if at == 0 else 'noise'} added to y_embedder")
    if given.has_null and not has_null:
        beginning.dropped.append("the row of labels for samples without a class")

    def change(start: Tensor) -> Tensor:
        rows = given.tensors[_TABLE].read()
        rows = rows if at is None else (rows.double() + given.moved_to_data(at)).to(rows.dtype)
        kept = num_classes + (has_null and given.has_null)
        return torch.cat((rows[:kept].to(start.dtype), start[kept:]))

    beginning.weights[_TABLE] = change


def _times(
    beginning: Beginning, given: Pretrained, role: Role, ours: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    theirs, mine = given.network.get("time_embedding", "dit"), ours["time_embedding"]
    signs = [name for name in wanted if name.startswith("sign_embedder.") and name in given.tensors]
    beginning.weights |= {name: _read(given.tensors[name]) for name in signs}
    for embedder in _EMBEDDERS:
        first = f"{embedder}.mlp.0.weight"
        if first not in wanted or first not in given.tensors:
            continue
        names = [name for name in wanted if name.startswith(f"{embedder}.")]
        beginning.weights |= {name: _read(given.tensors[name]) for name in names}
        if theirs != mine:
            try:
                weight = on_other_sinusoids(given.tensors[first].read(), theirs, mine)
            except CheckpointError as error:
                if role is Role.CLASSIFIER:  # which has no such setting
                    beginning.weights = {n: w for n, w in beginning.weights.items() if n not in names}
                    beginning.dropped.append(f"{embedder} (of {theirs}'s sinusoids)")
                    continue
                raise CheckpointError(
                    f"{role.value}: {error}; set model.{role.value}.time_embedding={theirs}"
                ) from error
            beginning.weights[first] = lambda start, weight=weight: weight
            beginning.changed.append(f"{embedder} for the sinusoids of {mine} instead of {theirs}")


def _final_layer(
    beginning: Beginning, given: Pretrained, role: Role, ours: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]],
    prediction: str | None,
) -> None:
    same = given.network["kind"] == ours["kind"] and given.prediction == prediction
    if role is Role.GENERATOR and same:
        beginning.weights |= {name: _read(given.tensors[name]) for name in wanted if name.startswith("final_layer.")}
    elif role is Role.GENERATOR:
        what = "noise" if given.is_of_noise else given.prediction
        beginning.dropped.append(f"final_layer (it predicts {what}, this one {prediction})")


def exactly(given: Mapping[str, Lazy], role: Role, wanted: Mapping[str, tuple[int, ...]]) -> Beginning:
    """With all weights of the same network. Raises CheckpointError if it is of another one."""
    if problem := misfits({name: tuple(lazy.entry.shape) for name, lazy in given.items()}, wanted):
        raise CheckpointError(f"{role.value}: {problem}")
    return Beginning(weights={name: _read(given[name]) for name in wanted})


def _read(lazy: Lazy) -> Change:
    return lambda start: lazy.read()


def _is_backbone(name: str) -> bool:
    return name == "pos_embed" or name.startswith(("x_embedder.", "blocks."))


def _parts(names: Any) -> list[str]:
    """The modules of a network that names are of, each once."""
    return list(dict.fromkeys(name.partition(".")[0] for name in names))
