"""The published AFM files: one state dict of a generator (one-step, fixed steps, any step, deep), of a discriminator or
of a classifier. Names and shapes are this program's own, so that both ways nothing changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...core.errors import CheckpointError
from ...core.types import Role
from ..card import Card
from ..names import of_average, of_role, with_prefix
from .format import About, Lazy, Source, Told, Wanted
from .output import new_file
from .safetensors import single_part
from .shapes import Size, card_of_size, size_of
from .torch_reader import TorchFile
from .torch_writer import write_torch

_STEPS = {"none": 1, "source": 2, "both": 1}  # of a sample, where the user does not say


@dataclass(frozen=True)
class Official:
    """A file of torch's, of one network."""

    name: str = "official"

    def recognises(self, path: Path) -> bool:
        try:
            with self.source(path, Told()):
                return True
        except CheckpointError:
            return False

    def source(self, path: Path, told: Told) -> Source:
        file = TorchFile(path)
        try:
            tensors = state_dict_of(path, file.content)
            size = size_of(path, {name: lazy.entry for name, lazy in tensors.items()})
            if size.role is Role.GENERATOR and (size.num_out != size.shape[0] or size.rows is None):
                raise CheckpointError(
                    f"{path} has {size.num_out} outputs for {size.shape[0]} channels: no AFM generator; is it --from "
                    "dit or --from sit?"
                )
            prefix = of_role(size.role) if size.role is Role.DISCRIMINATOR else of_average()
            return Source(path, with_prefix(prefix, tensors), about_of(size, told), file.close)
        except BaseException:
            file.close()
            raise

    def write(self, source: Source, out: Path, wanted: Wanted) -> None:
        part, tensors = single_part(source.tensors)
        if part is None:
            raise CheckpointError(
                "a published file holds one network; say which by --part average, generator, discriminator or "
                "classifier"
            )
        size_of(source.path, {name: lazy.entry for name, lazy in tensors.items()})
        for network in () if source.about.card is None else source.about.card.networks.values():
            foreign = [name for name in ("kind", "time_embedding") if network.get(name, "dit") not in ("dit", "mlp")]
            if foreign:  # names and shapes would be those of one, and its outputs others
                raise CheckpointError(
                    f"{source.path} holds a network of {foreign[0]} {network[foreign[0]]!r}, which a published file "
                    "cannot say; write native, torch or safetensors"
                )
        with new_file(out) as file:
            write_torch(file, tensors, out.stem or "archive")


OFFICIAL = Official()


def state_dict_of(path: Path, content: Any) -> dict[str, Lazy]:
    """The tensors of a file that is one state dict. Raises CheckpointError if it is anything else."""
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no state dict; name another file, or say of which format it is by --from")
    others = [name for name, value in content.items() if not isinstance(value, Lazy) or not isinstance(name, str)]
    if others:
        raise CheckpointError(
            f"{path} is no state dict: {str(others[0]):.80} in it is no tensor; say of which format it is by --from"
        )
    return dict(content)


def about_of(size: Size, told: Told) -> About:
    heads = size.heads(told)
    if heads is None:
        return About(no_card=size.no_heads(told))
    card, notes = _card(size, told, heads)
    return About(card=card, notes=notes)


def _card(size: Size, told: Told, heads: int) -> tuple[Card, tuple[str, ...]]:
    notes = []
    if size.role is not Role.GENERATOR:
        is_classifier = size.role is Role.CLASSIFIER
        return card_of_size(
            replace(size, times="none"), told, num_heads=heads,
            num_classes=size.num_out if is_classifier else size.rows or 1,
            network={} if is_classifier else {"target_time": size.times != "none"},
            objective="classification" if is_classifier else "afm", prediction=None, num_steps=1,
        ), ()
    repetitions = told.repetitions or 1
    if repetitions > 1 and size.times != "source":
        raise CheckpointError(f"--repetitions {repetitions}: a deep generator has one time embedder, this has not")
    times = "none" if repetitions > 1 else size.times
    if times == "source":
        if told.num_steps is None:
            notes.append(
                f"a generator of fixed steps, whose file does not say how many: {_STEPS[times]}; else --num-steps N"
            )
        if told.repetitions is None:
            notes.append("if it is a deep one-step generator, say how often it applies its blocks by --repetitions N")
    return card_of_size(
        size, told, num_heads=heads, num_classes=size.rows or 1,
        network={"times": times, "repetitions": repetitions}, objective="afm",
        prediction=told.prediction or ("x" if times == "none" else "v"), num_steps=_STEPS[times],
    ), tuple(notes)
