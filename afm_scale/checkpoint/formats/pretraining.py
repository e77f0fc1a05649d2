"""What the pretraining files of DiT (arXiv 2212.09748) and of SiT (arXiv 2401.08740) have in common: all but a meaning.

A file is a state dict, or a training checkpoint {model, ema, opt, args} of two. Names and shapes are those of this
program's generator that is told the source time, but for two things:

* with `learn_sigma`, as published, the final layer has twice the channels. The first half is the prediction. DiT's
  second half is a variance, SiT's is never used nor learnt; this program has neither, it is left out and said.
* the last row of the table of labels is for samples without a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.errors import CheckpointError
from ...core.sinusoids import TimeEmbedding
from ...core.types import Role
from ..card import Card
from ..manifest import TensorEntry
from ..names import AVERAGE, of_role, under, with_prefix
from .format import About, Lazy, Source, Told, Wanted
from .official import state_dict_of
from .output import new_file
from .shapes import Size, card_of_size, size_of
from .torch_reader import TorchFile
from .torch_writer import write_torch

FINAL = ("final_layer.linear.weight", "final_layer.linear.bias")
_STEPS = 250  # of a sample, where the user does not say: what both papers draw with
_DROPOUT = 0.1  # share of the samples that both papers show without their class
_LATENTS = 0.18215  # by which both multiply latents


@dataclass(frozen=True)
class _Read:
    """A file that was understood: whose weights, and what its tensors and its command line show."""

    weights: Mapping[str, Lazy]  # the average's, or the only ones
    model: Mapping[str, Lazy] | None  # a training checkpoint's own
    args: Mapping[str, Any]
    has_optimizer: bool
    size: Size

    @property
    def is_doubled(self) -> bool:
        return self.size.num_out == 2 * self.size.shape[0]

    @property
    def has_null(self) -> bool:
        """Whether the last row of the labels is for samples without one: always, unless the file says else."""
        return self.args.get("num_classes") != self.size.rows

    @property
    def num_classes(self) -> int:
        return (self.size.rows or 0) - self.has_null


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """One of the two families of files."""

    name: Literal["dit", "sit"]
    kind: Literal["dit", "dit_diffusion"]  # of this program's generator
    time_embedding: TimeEmbedding
    is_turned: bool  # whether the prediction is the negative of this program's velocity
    second_half: str  # of the final layer: what it is

    def recognises(self, path: Path) -> bool:
        """A file with a second half in its final layer that shows whose it is; the two are told apart by little."""
        try:
            with TorchFile(path) as file:
                read = _read(path, file.content)
                return read.is_doubled and _family(path, read) == self.name
        except CheckpointError:
            return False

    def source(self, path: Path, told: Told) -> Source:
        file = TorchFile(path)
        try:
            read = _read(path, file.content)
            tensors = with_prefix(AVERAGE, self._translated(read.weights, read))
            if read.model is not None:
                tensors |= with_prefix(of_role(Role.GENERATOR), self._translated(read.model, read))
            return Source(path, tensors, self._about(path, read, told), file.close)
        except BaseException:
            file.close()
            raise

    def write(self, source: Source, out: Path, wanted: Wanted) -> None:
        """A plain file of the average, or, where the generator's own weights are there too, {model, ema}.

        The final layer has a second half, as the published SiT wants it, of zeros; DiT's has none (learn_sigma False).
        """
        if problem := self._unfit(source.card()):
            raise CheckpointError(f"{source.path} cannot be written as a file of {self.name}: {problem}")
        groups = {"model": under(of_role(Role.GENERATOR), source.tensors), "ema": under(AVERAGE, source.tensors)}
        parts = {key: self._written(source.path, weights) for key, weights in groups.items() if weights}
        if not parts:
            raise CheckpointError(f"{source.path} holds no weights of a generator; write another part (--part)")
        content = parts if len(parts) > 1 else next(iter(parts.values()))
        with new_file(out) as file:
            write_torch(file, content, out.stem or "archive")

    def _about(self, path: Path, read: _Read, told: Told) -> About:
        size = read.size
        if told.learn_sigma is not None and told.learn_sigma != read.is_doubled:
            raise CheckpointError(
                f"{path}: learn_sigma is said to be {told.learn_sigma}, but its final layer has {size.num_out} "
                f"channels for the {size.shape[0]} that come in; leave it out"
            )
        row = f"the last of its {size.rows} rows of labels is taken for samples without a class"
        notes = [row if read.has_null else "it has no row of labels for samples without a class"]
        if read.is_doubled:
            notes.append(f"the second half of the final layer's channels, {self.second_half}, is left out")
        if read.model is not None:
            notes.append("'ema' is the average, 'model' the generator")
        if read.has_optimizer:
            notes.append("its optimizer is left out: another program's layers number its moments")
        heads = size.heads(told)
        if heads is None:
            return About(no_card=size.no_heads(told), notes=tuple(notes))
        network = {"kind": self.kind, "times": "source", "time_embedding": self.time_embedding,
                   "null_class": read.has_null}
        card = card_of_size(
            size, told, num_heads=heads, num_classes=read.num_classes, network=network, objective="flow_matching",
            prediction="v", num_steps=_STEPS, class_dropout=_DROPOUT if read.has_null else 0.0, scale=_LATENTS,
        )
        return About(card=card, notes=tuple(notes))

    def _translated(self, weights: Mapping[str, Lazy], read: _Read) -> dict[str, Lazy]:
        """Under the generator's names, which are the same."""
        changed = dict(weights)
        for name in FINAL:
            lazy = first_half(weights[name], read.size) if read.is_doubled else weights[name]
            changed[name] = lazy.changed(torch.neg) if self.is_turned else lazy
        return changed

    def _unfit(self, card: Card) -> str | None:
        """Why a checkpoint is no such network's, and what could be done."""
        needed = {"kind": self.kind, "times": "source", "time_embedding": self.time_embedding, "qk_norm": False,
                  "repetitions": 1, "null_class": True}
        defaults = {"time_embedding": "dit", "qk_norm": False, "repetitions": 1, "null_class": False}
        found = defaults | dict(card.networks.get(Role.GENERATOR, {}))
        differing = [f"{key} is {found.get(key)!r}, wanted {needed[key]!r}" for key in needed
                     if found.get(key) != needed[key]]
        if card.learner is not Role.GENERATOR or card.prediction != "v":
            differing = [f"it is a {card.learner.value} with prediction {card.prediction!r}, wanted a velocity, 'v'"]
        if card.shape[1] != card.shape[2]:
            differing.append(f"samples are {list(card.shape)}, wanted square ones")
        return f"{'; '.join(differing)}. Nothing would be lost in native, torch or safetensors" if differing else None

    def _written(self, path: Path, weights: Mapping[str, Lazy]) -> dict[str, Lazy]:
        size = size_of(path, {name: lazy.entry for name, lazy in weights.items()})
        changed = {name: weights[name] for name in size.wanted()}
        for name in FINAL if self.is_turned else ():
            changed[name] = with_zeros_after(weights[name].changed(torch.neg), size)
        return changed


def _read(path: Path, content: Any) -> _Read:
    """Raises CheckpointError for what is no such file."""
    content = content if isinstance(content, dict) else {}
    parts = {key: content[key] for key in ("model", "ema") if isinstance(content.get(key), dict)} or {"": content}
    weights = {key: _without_ddp(state_dict_of(path, part)) for key, part in parts.items()}
    sizes = [size_of(path, {name: lazy.entry for name, lazy in of.items()}) for of in weights.values()]
    size, channels = sizes[-1], sizes[-1].shape[0]
    if sizes[0] != size:
        raise CheckpointError(f"{path}: its 'model' and its 'ema' are of two networks; name another file")
    if size.role is not Role.GENERATOR or size.times != "source" or size.qk_norm or (size.rows or 0) < 2:
        raise CheckpointError(
            f"{path} is no pretraining file: wanted a network that is told one time and at least two labels; say of "
            "which format it is by --from"
        )
    if size.num_out not in (channels, 2 * channels):
        raise CheckpointError(
            f"{path}: its final layer has {size.num_out} channels, wanted {channels} or {2 * channels}; name another"
        )
    args, optimizer = content.get("args"), content.get("opt")
    return _Read(
        weights=list(weights.values())[-1], model=weights["model"] if len(weights) > 1 else None,
        args=args if isinstance(args, dict) and len(parts) and "" not in parts else {},
        has_optimizer=isinstance(optimizer, dict) and bool(optimizer.get("state")), size=size,
    )


def _without_ddp(weights: dict[str, Lazy]) -> dict[str, Lazy]:
    """Names as the network has them: some programs save from inside of DistributedDataParallel."""
    if all(name.startswith("module.") for name in weights):
        return {name.removeprefix("module."): lazy for name, lazy in weights.items()}
    return weights


def _family(path: Path, read: _Read) -> str | None:
    """Whose file it is: by the command line in it, by the half that SiT never learns, by its name; None: not known."""
    model = str(read.args.get("model"))[:3].lower()
    if model in ("dit", "sit"):
        return model
    weight = read.weights[FINAL[0]].read().unflatten(0, (read.size.patch_size**2, read.size.num_out))
    prediction, rest = weight.split(read.size.shape[0], dim=1)
    if prediction.any() and not rest.any():
        return "sit"
    named = [family for family in ("dit", "sit") if family in path.name.lower()]
    return named[0] if len(named) == 1 else None


def first_half(lazy: Lazy, size: Size) -> Lazy:
    """Of the final layer's weight or bias, whose rows are [p, p, channels]: the prediction's."""

    def change(tensor: Tensor) -> Tensor:
        rows = tensor.unflatten(0, (size.patch_size**2, size.num_out))
        return rows[:, : size.num_out // 2].flatten(0, 1)

    return lazy.changed(change, replace(lazy.entry, shape=(lazy.entry.shape[0] // 2, *lazy.entry.shape[1:])))


def with_zeros_after(lazy: Lazy, size: Size) -> Lazy:
    """The inverse of `first_half` where nothing was learnt in the other half."""

    def change(tensor: Tensor) -> Tensor:
        rows = tensor.unflatten(0, (size.patch_size**2, size.num_out))
        return torch.cat((rows, torch.zeros_like(rows)), dim=1).flatten(0, 1)

    return lazy.changed(change, TensorEntry((2 * lazy.entry.shape[0], *lazy.entry.shape[1:]), lazy.entry.dtype))
