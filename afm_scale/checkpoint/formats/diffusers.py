"""A folder of diffusers' DiTTransformer2DModel: config.json and safetensors. No part of diffusers is needed for it.

Its layers are those of this program's generator under other names, query, key and value apart, and every block has a
copy of the embedders. It differs in three things:

* its sinusoids of the time are its own (`time_embedding: diffusers`, core/sinusoids.py), its times are 1000 t. A
  generator that is told no time is written with an embedder of zeros; one that is told SiT's, or the few times of fixed
  steps, by an embedder that makes these up (`sinusoids.py`); any other is refused.
* it always has a row of labels for samples without a class; one is written, of zeros, where there is none.
* its positions are computed; they are the published ones.

What its output means is not in it. A folder that this program wrote says it in the metadata of its weights. Another is
taken for what diffusers itself has: a DiT that predicts noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import CheckpointError
from ...core.sinusoids import TimeEmbedding, sincos_positions
from ...core.strict_json import read_mapping
from ...core.types import Role
from ..card import Card
from ..manifest import TensorEntry
from ..names import AVERAGE, under, with_prefix
from .about import about_from, about_to
from .diffusers_config import CLASS, CLASSES, CONFIG, Settings, settings_of, shapes_of
from .format import About, Lazy, Source, Told, Wanted
from .misfit import misfits
from .output import new_file, new_folder, write_json
from .pretraining import FINAL, first_half
from .safetensors import tensors_of_folder
from .safetensors_file import SafetensorsFile, cannot_hold, write_safetensors
from .shapes import Size, card_of_size, size_of
from .sinusoids import on_other_sinusoids

WEIGHTS = "diffusion_pytorch_model.safetensors"
_INDEX = f"{WEIGHTS}.index.json"
_IN_HEAD = "afm_scale"
_EMBEDDERS = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1", "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
_OF_A_BLOCK = {
    "attn.proj": "attn1.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj", "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_TABLE = "y_embedder.embedding_table.weight"


@dataclass(frozen=True)
class Diffusers:
    """A folder, as save_pretrained writes it."""

    name: str = "diffusers"

    def recognises(self, path: Path) -> bool:
        try:
            return read_mapping(path / CONFIG, 2**20).get("_class_name") in CLASSES
        except (OSError, ValueError):
            return False

    def source(self, path: Path, told: Told) -> Source:
        with ExitStack() as opening:
            settings = settings_of(path)
            tensors = _translated(path, tensors_of_folder(path, opening, WEIGHTS, _INDEX), settings)
            size = size_of(path, {name: lazy.entry for name, lazy in tensors.items()})
            about = _said(path) or _about(path, size, settings, told)
            if about.card is not None:
                tensors = _for_card(path, tensors, size, about.card)
            return Source(path, with_prefix(AVERAGE, tensors), about, opening.pop_all().close)

    def write(self, source: Source, out: Path, wanted: Wanted) -> None:
        """The average of a generator."""
        card, weights = source.card(), under(AVERAGE, source.tensors)
        if card.learner is not Role.GENERATOR or not weights:
            raise CheckpointError(f"{source.path} holds no generator's average, which a folder of diffusers is")
        written = _written(source, card, weights)
        if problem := cannot_hold(written):
            raise CheckpointError(f"{problem}, which safetensors does not know; use another --dtype")
        size = size_of(source.path, {name: lazy.entry for name, lazy in weights.items()})
        network = card.networks[Role.GENERATOR]
        config = {
            "_class_name": CLASS, "_diffusers_version": "0.31.0", "activation_fn": "gelu-approximate",
            "attention_bias": True, "attention_head_dim": size.hidden_size // network["num_heads"], "dropout": 0.0,
            "in_channels": size.shape[0], "norm_elementwise_affine": False, "norm_eps": 1e-6, "norm_num_groups": 32,
            "norm_type": "ada_norm_zero", "num_attention_heads": network["num_heads"],
            "num_embeds_ada_norm": card.num_classes, "num_layers": size.depth, "out_channels": size.num_out,
            "patch_size": size.patch_size, "sample_size": size.shape[1], "upcast_attention": False,
        }
        if network["times"] != "none":  # as its embedder is written
            network = {**network, "time_embedding": "diffusers"}
        said = replace(source.about, card=replace(card, networks={**card.networks, Role.GENERATOR: network}), notes=())
        with new_folder(out) as folder:
            with new_file(folder / WEIGHTS) as file:
                write_safetensors(file, written, {"format": "pt", _IN_HEAD: about_to(said)})
            write_json(folder / CONFIG, config)


DIFFUSERS = Diffusers()


def _translated(path: Path, tensors: Mapping[str, Lazy], settings: Settings) -> dict[str, Lazy]:
    """Under the generator's names. Raises CheckpointError for what is missing or surplus, and copies that differ."""
    heads, depth = settings.num_attention_heads, settings.num_layers
    hidden = heads * settings.attention_head_dim
    if hidden % 4 or settings.sample_size % settings.patch_size:
        raise CheckpointError(f"{path / CONFIG}: a width of {hidden} or patches of {settings.patch_size} cannot be")
    shapes = shapes_of(settings, hidden)
    found = {name: tuple(lazy.entry.shape) for name, lazy in tensors.items()}
    if problem := misfits(found, shapes):
        raise CheckpointError(f"{path} is not the network that its {CONFIG} describes: {problem}; restore the folder")
    side = settings.sample_size // settings.patch_size
    changed = {"pos_embed": Lazy.of(sincos_positions(hidden, side, side))}
    for kind in ("weight", "bias"):
        changed |= {f"{ours}.{kind}": tensors[f"{theirs}.{kind}"] for ours, theirs in _OUTSIDE.items()}
        for ours, theirs in _EMBEDDERS.items():
            if f"transformer_blocks.0.norm1.emb.{theirs}.{kind}" in tensors:
                copies = [tensors[f"transformer_blocks.{index}.norm1.emb.{theirs}.{kind}"] for index in range(depth)]
                changed[f"{ours}.{kind}"] = _only(path, f"norm1.emb.{theirs}.{kind}", copies)
        for index in range(depth):
            theirs_of, ours_of = f"transformer_blocks.{index}", f"blocks.{index}"
            changed |= {f"{ours_of}.{ours}.{kind}": tensors[f"{theirs_of}.{theirs}.{kind}"]
                        for ours, theirs in _OF_A_BLOCK.items()}
            parts = [tensors[f"{theirs_of}.attn1.to_{letter}.{kind}"] for letter in "qkv"]
            entry = TensorEntry((3 * hidden, *parts[0].entry.shape[1:]), parts[0].entry.dtype)
            changed[f"{ours_of}.attn.qkv.{kind}"] = Lazy(
                entry, lambda parts=parts: torch.cat([part.read() for part in parts])
            )
    return changed


def _only(path: Path, name: str, copies: list[Lazy]) -> Lazy:
    """One for all blocks, which are compared when it is read."""

    def read() -> Tensor:
        first = copies[0].read()
        for index, copy in enumerate(copies[1:], start=1):
            if not torch.equal(copy.read(), first):
                raise CheckpointError(f"{path}: {name} of block {index} is not that of block 0, as in every DiT")
        return first

    return Lazy(copies[0].entry, read)


def _said(path: Path) -> About | None:
    """What this program wrote of it, if it did."""
    if (path / _INDEX).exists():
        return None
    with SafetensorsFile(path / WEIGHTS) as file:
        text = file.metadata.get(_IN_HEAD)
    return None if text is None else about_from(path / WEIGHTS, text)


def _about(path: Path, size: Size, settings: Settings, told: Told) -> About:
    if size.num_out not in (size.shape[0], 2 * size.shape[0]):
        raise CheckpointError(f"{path} has {size.num_out} channels that go out for {size.shape[0]} that come in")
    is_of_noise = told.prediction is None
    notes = ["it is taken for a network that predicts noise (DiT); else say --prediction v"] if is_of_noise else []
    if size.num_out == 2 * size.shape[0]:
        notes.append("the second half of its channels, a variance of the diffusion, is left out")
    if settings.norm_eps != 1e-6:
        notes.append(f"its norm_eps of {settings.norm_eps} before the MLPs is taken for DiT's 1e-06")
    network = {"kind": "dit_diffusion" if is_of_noise else "dit", "times": "source", "time_embedding": "diffusers",
               "null_class": True}
    card = card_of_size(
        size, told, num_heads=settings.num_attention_heads, num_classes=settings.num_embeds_ada_norm, network=network,
        objective="flow_matching", prediction=told.prediction or "v", num_steps=250, class_dropout=0.1, scale=0.18215,
    )
    return About(card=card, notes=tuple(notes))


def _for_card(path: Path, tensors: dict[str, Lazy], size: Size, card: Card) -> dict[str, Lazy]:
    """Without what the network of the card has not."""
    network = card.networks[Role.GENERATOR]
    if size.num_out == 2 * size.shape[0]:
        tensors |= {name: first_half(tensors[name], size) for name in FINAL}
    if network.get("times") == "none":
        tensors = {name: lazy for name, lazy in tensors.items() if not name.startswith("t_embedder.")}
    if not network.get("null_class", False):
        rows, entry = tensors[_TABLE], tensors[_TABLE].entry
        fewer = TensorEntry((entry.shape[0] - 1, entry.shape[1]), entry.dtype)
        tensors[_TABLE] = rows.changed(lambda table: table[:-1], fewer)
    return tensors


def _written(source: Source, card: Card, weights: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """Under diffusers' names. Raises CheckpointError for what such a network cannot be."""
    network = {"repetitions": 1, "qk_norm": False, "time_embedding": "dit", "null_class": False,
               **card.networks[Role.GENERATOR]}
    reasons = {
        "is no DiT": network["kind"] not in ("dit", "dit_diffusion"),
        "is told a target time too": network.get("times") in ("both", "gated"),
        f"applies its blocks {network['repetitions']} times": network["repetitions"] != 1,
        "normalises queries and keys": network["qk_norm"],
        f"makes samples of {list(card.shape)}, which are not square": card.shape[1] != card.shape[2],
    }
    if unfit := next((reason for reason, is_so in reasons.items() if is_so), None):
        raise CheckpointError(
            f"{source.path} {unfit}, which a {CLASS} of diffusers cannot be; write native, torch or safetensors"
        )
    given = {**weights, **_embedder(source, card, network, weights)}
    positions, side = weights["pos_embed"].read(), card.shape[1] // network["patch_size"]
    if (positions.double() - sincos_positions(positions.shape[-1], side, side).double()).abs().max() > 1e-6:
        raise CheckpointError(f"{source.path} has other positions than the published ones, which diffusers computes")
    if not network["null_class"]:
        entry = given[_TABLE].entry
        more = TensorEntry((entry.shape[0] + 1, entry.shape[1]), entry.dtype)
        given[_TABLE] = given[_TABLE].changed(lambda table: torch.cat((table, torch.zeros_like(table[:1]))), more)
    written: dict[str, Lazy] = {}
    for kind in ("weight", "bias"):
        written |= {f"{theirs}.{kind}": given[f"{ours}.{kind}"] for ours, theirs in _OUTSIDE.items()}
    for index in range(network["depth"]):
        theirs_of, ours_of = f"transformer_blocks.{index}", f"blocks.{index}"
        for kind in ("weight", "bias"):
            written |= {f"{theirs_of}.norm1.emb.{theirs}.{kind}": given[f"{ours}.{kind}"]
                        for ours, theirs in _EMBEDDERS.items() if f"{ours}.{kind}" in given}
            written |= {f"{theirs_of}.{theirs}.{kind}": given[f"{ours_of}.{ours}.{kind}"]
                        for ours, theirs in _OF_A_BLOCK.items()}
            written |= {f"{theirs_of}.attn1.to_{letter}.{kind}": _third(given[f"{ours_of}.attn.qkv.{kind}"], number)
                        for number, letter in enumerate("qkv")}
    return written


def _third(stacked: Lazy, number: int) -> Lazy:
    rows = stacked.entry.shape[0] // 3
    entry = TensorEntry((rows, *stacked.entry.shape[1:]), stacked.entry.dtype)
    return stacked.changed(lambda tensor: tensor[number * rows : (number + 1) * rows], entry)


def _embedder(
    source: Source, card: Card, network: Mapping[str, Any], weights: Mapping[str, Lazy]
) -> dict[str, Lazy]:
    """The time embedder's tensors, where they are not the generator's own."""
    if network["times"] == "none":
        d, dtype = network["hidden_size"], weights["x_embedder.proj.bias"].entry.dtype
        shapes = {"0.weight": (d, 256), "0.bias": (d,), "2.weight": (d, d), "2.bias": (d,)}
        entries = {f"t_embedder.mlp.{name}": TensorEntry(shape, dtype) for name, shape in shapes.items()}
        return {name: Lazy(entry, lambda entry=entry: torch.zeros(entry.shape, dtype=entry.torch_dtype))
                for name, entry in entries.items()}
    found: TimeEmbedding = network["time_embedding"]
    if found == "diffusers":
        return {}
    first, times = "t_embedder.mlp.0.weight", None
    if card.objective != "flow_matching" and network["kind"] == "dit":  # of fixed steps: asked at these times alone
        times = [(index + 1) / card.num_steps for index in range(card.num_steps)]
    try:
        weight = on_other_sinusoids(weights[first].read(), found, "diffusers", times)
    except CheckpointError as error:
        raise CheckpointError(
            f"{source.path} cannot be written for diffusers, which tells times by other sinusoids: {error}. Train with "
            "model.generator.time_embedding=diffusers, or write another format"
        ) from error
    return {first: Lazy.of(weight)}
