"""The size of a published diffusion transformer, read from the shapes of its tensors; and the card of its network.

What no tensor shows is asked of the user: how many heads attention has, how often a deep generator applies its blocks,
how many steps a sample takes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...core.errors import CheckpointError
from ...core.types import Role
from ..card import Card, Latents
from ..manifest import TensorEntry
from .format import Told
from .misfit import misfits

_PUBLISHED_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of DiT-S, B, M and L, XL
_MOST_DEPTH = 1000

Times = Literal["none", "source", "both"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a DiT, as its tensors show it."""

    role: Role
    patch_size: int
    hidden_size: int
    depth: int
    shape: tuple[int, int, int]  # [C, H, W] of a sample
    rows: int | None  # of the label table; None: it is told no labels
    num_out: int  # outputs of a generator for each position of a sample, or of a classifier: its classes
    times: Times
    qk_norm: bool

    def wanted(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors of such a network, the published ones."""
        d, p, channels = self.hidden_size, self.patch_size, self.shape[0]
        tokens = (self.shape[1] // p) * (self.shape[2] // p)
        shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, tokens, d)}
        if self.role is not Role.GENERATOR:
            shapes["dis_embed" if self.role is Role.DISCRIMINATOR else "cls_embed"] = (d,)
        shapes |= {"x_embedder.proj.weight": (d, channels, p, p), "x_embedder.proj.bias": (d,)}
        for name in {"none": [], "source": ["t_embedder"], "both": ["t_embedder", "t_tgt_embedder"]}[self.times]:
            shapes |= _linear(f"{name}.mlp.0", d, 256) | _linear(f"{name}.mlp.2", d, d)
        if self.rows is not None:
            shapes["y_embedder.embedding_table.weight"] = (self.rows, d)
        for i in range(self.depth):
            shapes |= _linear(f"blocks.{i}.attn.qkv", 3 * d, d) | _linear(f"blocks.{i}.attn.proj", d, d)
            shapes |= _linear(f"blocks.{i}.mlp.fc1", 4 * d, d) | _linear(f"blocks.{i}.mlp.fc2", d, 4 * d)
            shapes |= _linear(f"blocks.{i}.adaLN_modulation.1", 6 * d, d)
        if self.role is Role.GENERATOR:
            shapes |= _linear("final_layer.linear", p * p * self.num_out, d)
            shapes |= _linear("final_layer.adaLN_modulation.1", 2 * d, d)
        elif self.role is Role.DISCRIMINATOR:
            shapes["final_layer.1.weight"] = (1, d)
        else:
            shapes |= _linear("final_layer.1", self.num_out, d)
        return shapes

    def heads(self, told: Told) -> int | None:
        """Heads of attention: as told, as published for the width, or of 64 or 72 numbers each; None: not known."""
        d = self.hidden_size
        if told.heads is not None:
            return told.heads if d % told.heads == 0 else None
        guesses = [_PUBLISHED_HEADS.get(d), *(d // each for each in (64, 72) if d % each == 0)]
        return next((heads for heads in guesses if heads), None)

    def no_heads(self, told: Told) -> str:
        """What to say where there are none."""
        if told.heads is not None:
            return f"a width of {self.hidden_size} does not divide into {told.heads} heads; give --heads another number"
        return (
            f"its width is {self.hidden_size}, and no tensor shows how many heads of attention that is; say it, "
            "such as --heads 16"
        )


def _linear(name: str, num_out: int, num_in: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (num_out, num_in), f"{name}.bias": (num_out,)}


def size_of(path: Path, entries: Mapping[str, TensorEntry]) -> Size:
    """The size of the network whose tensors, by their published names, are `entries`: exactly these, of these shapes.

    Raises CheckpointError for what is missing, surplus or of another size, with the nearest names.
    """
    shapes = {name: tuple(entry.shape) for name, entry in entries.items()}
    size = _guessed(path, shapes)
    problem = misfits({name: shape for name, shape in shapes.items() if not _is_norm(name)}, size.wanted())
    if problem is not None:
        raise CheckpointError(
            f"{path} does not hold a {size.role.value} of depth {size.depth} and width {size.hidden_size}, which it "
            f"most resembles: {problem}. Name another file, or say of which format it is by --from"
        )
    return size


def _guessed(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Size:
    """From as few tensors as will do; what contradicts them is found by comparing all."""
    role = Role.GENERATOR
    if "dis_embed" in shapes or shapes.get("final_layer.1.weight", (0,))[0] == 1 and "cls_embed" not in shapes:
        role = Role.DISCRIMINATOR
    elif "cls_embed" in shapes or "final_layer.1.weight" in shapes:
        role = Role.CLASSIFIER
    patches, positions = shapes.get("x_embedder.proj.weight", ()), shapes.get("pos_embed", ())
    out = shapes.get("final_layer.linear.weight" if role is Role.GENERATOR else "final_layer.1.weight", ())
    depths = {int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d{1,6})\.", name))}
    if len(patches) != 4 or len(positions) != 3 or len(out) != 2 or not depths:
        wanted = {"x_embedder.proj.weight": patches, "pos_embed": positions, "blocks.0.attn.qkv.weight": depths,
                  "final_layer": out}
        lacking = next(name for name, there in wanted.items() if not there or name != "blocks.0.attn.qkv.weight")
        raise CheckpointError(
            f"{path} holds no diffusion transformer under the published names: no {lacking} of the shape that it has "
            f"there; it holds {', '.join(list(shapes)[:4])[:200] or 'nothing'}"
        )
    d, channels, p, _ = patches
    grid = math.isqrt(positions[1])
    if not d or not p or grid * grid != positions[1] or max(depths) >= _MOST_DEPTH:
        raise CheckpointError(
            f"{path}: its pos_embed is {list(positions)}, its x_embedder.proj.weight {list(patches)}, its last block "
            f"number {max(depths)}; wanted a square of patches and at most {_MOST_DEPTH} blocks"
        )
    table = shapes.get("y_embedder.embedding_table.weight")
    times: Times = "both" if "t_tgt_embedder.mlp.0.weight" in shapes else (
        "source" if "t_embedder.mlp.0.weight" in shapes else "none"
    )
    return Size(
        role=role, patch_size=p, hidden_size=d, depth=max(depths) + 1, shape=(channels, grid * p, grid * p),
        rows=None if table is None or role is Role.CLASSIFIER else table[0],
        num_out=out[0] // (p * p) if role is Role.GENERATOR else out[0], times=times,
        qk_norm=any(map(_is_norm, shapes)),
    )


def _is_norm(name: str) -> bool:
    return re.fullmatch(r"blocks\.\d+\.attn\.[qk]_norm\.(weight|bias)", name) is not None


def card_of_size(
    size: Size, told: Told, *, num_heads: int, num_classes: int, network: Mapping[str, Any], objective: str,
    prediction: Literal["x", "v"] | None, num_steps: int, class_dropout: float = 0.0, scale: float | None = None,
) -> Card:
    """The card of a file of one network.

    Args:
        network: what is to be said of it beside its size: times, repetitions, null_class, target_time.
        scale: of latents, where the format says it; their autoencoder is never known.
    """
    described = {
        "kind": "dit", "patch_size": size.patch_size, "hidden_size": size.hidden_size, "depth": size.depth,
        "num_heads": num_heads, "qk_norm": size.qk_norm, **network,
    }
    is_latent = size.shape[0] not in (1, 3)
    return Card(
        learner=size.role, objective=objective, networks={size.role: described}, shape=size.shape,
        num_classes=num_classes, prediction=prediction, class_dropout=class_dropout,
        num_steps=told.num_steps or num_steps, precision="fp32", data={"kind": "synthetic"},
        latents=Latents(vae=None, scale=scale) if is_latent else None, device="auto",
    )
