"""Tensor-parallel shards in Megatron-LM's containers: the legacy format of torch files, without pipeline parallelism.

    OUT/latest_checkpointed_iteration.txt
    OUT/iter_0000007/mp_rank_RR/model_optim_rng.pt      args, iteration, model, optimizer: of tensor-parallel rank RR
    OUT/discriminator/...                               another player

Megatron-LM has no diffusion transformer: files, keys around the weights and the way tensors are cut are its own
(column- and row-parallel layers, arXiv 1909.08053), the weights' names are this program's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import CheckpointError
from ...core.files import read_regular, written_atomically
from ...core.types import Role
from ..manifest import TensorEntry
from ..pickled import Made, Name
from .format import About, Lazy, Source, Told, Wanted
from .networks import MOMENTS, NETWORK, Learned, marks, networks_of, scalar, source_of
from .optimizer_group import group_of_optimizer
from .output import new_folder
from .torch_reader import TorchFile
from .torch_writer import write_torch

_TRACKER, _FILE = "latest_checkpointed_iteration.txt", "model_optim_rng.pt"
_NAMESPACE = Name("argparse", "Namespace")
ADMITTED = {
    **dict.fromkeys(
        [Name("megatron.core.enums", "ModelType"), Name("megatron.core.transformer.enums", "AttnBackend"),
         Name("megatron.core.transformer.enums", "AttnMaskType"), Name("signal", "Signals")],
        "values of Megatron's command line; not read",
    ),
    **dict.fromkeys(
        [*(Name(module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
         Name("numpy", "ndarray")],
        "numpy's random state; not read",
    ),
}
"""What Megatron's files name beyond those of torch alone, and what for. Nothing of it is ever called."""

# How the parameters of a block are cut: along which axis, and how many equal parts are stacked there, each cut alike.
_CUTS = [
    (re.compile(r"blocks\.\d+\.attn\.qkv\.(weight|bias)"), 0, 3),  # query, key and value
    (re.compile(r"blocks\.\d+\.mlp\.fc1\.(weight|bias)"), 0, 1),
    (re.compile(r"blocks\.\d+\.(attn\.proj|mlp\.fc2)\.weight"), 1, 1),
]


def cut_of(name: str) -> tuple[int, int] | None:
    """(axis, stacked parts) of a weight that ranks share, by its name in the network; None: each has all of it."""
    return next(((axis, stacked) for form, axis, stacked in _CUTS if form.fullmatch(name)), None)


@dataclass(frozen=True)
class Megatron:
    """Folders as Megatron-LM's `--ckpt-format torch` writes them."""

    name: str = "megatron"

    def recognises(self, path: Path) -> bool:
        try:
            return path.is_dir() and bool(_files(path))
        except CheckpointError:
            return True  # and is torn, which opening it says
        except OSError:
            return False

    def source(self, path: Path, told: Told) -> Source:
        opening = ExitStack()
        try:
            network, content, step = _opened(path, opening)
            return source_of(
                path, network, content, told, step, opening.close, lambda other: _opened(other, opening)[:2]
            )
        except BaseException:
            opening.close()
            raise

    def write(self, source: Source, out: Path, wanted: Wanted) -> None:
        networks, rest = networks_of(source, self.name)
        for network in networks:
            _check_divides(source, network, wanted.ranks)
        with new_folder(out) as partial:
            for i, network in enumerate(networks):
                folder = partial if i == 0 else partial / network.name
                folder.mkdir(exist_ok=True)
                others = [other.name for other in networks[1:]] if i == 0 else []
                said = marks(source, network, others, rest if i == 0 else {})
                for rank in range(wanted.ranks):
                    content = _shard(network, source.about, rank, wanted.ranks) | (said if rank == 0 else {})
                    place = folder / f"iter_{source.about.step:07d}" / f"mp_rank_{rank:02d}" / _FILE
                    with written_atomically(place) as file:
                        write_torch(file, content, "model_optim_rng")
                with written_atomically(folder / _TRACKER) as file:
                    file.write(str(source.about.step).encode())


MEGATRON = Megatron()


def _check_divides(source: Source, network: Learned, ranks: int) -> None:
    if not 1 <= ranks <= 100:
        raise CheckpointError(f"{ranks} ranks: wanted 1 to 100, which share every block's work")
    card = source.about.card
    role = Role(network.name) if network.name != "average" else card.learner if card else None
    heads = card.networks.get(role, {}).get("num_heads") if card and role else None
    if isinstance(heads, int) and heads % ranks:
        raise CheckpointError(
            f"{network.name}: {heads} attention heads cannot be shared by {ranks} ranks; choose a divisor of {heads}"
        )
    for name, lazy in network.weights.items():
        cut = cut_of(name)
        if cut is not None and (len(lazy.entry.shape) <= cut[0] or lazy.entry.shape[cut[0]] % (cut[1] * ranks)):
            raise CheckpointError(
                f"{network.name}.{name} is {lazy.entry}, which {ranks} ranks cannot share equally; choose another"
            )


def _shard(network: Learned, about: About, rank: int, ranks: int) -> dict[str, Any]:
    moved = network.moved
    scalars = about.scalars or {}
    args = {
        "tensor_model_parallel_size": ranks, "pipeline_model_parallel_size": 1, "data_parallel_size": 1,
        "world_size": ranks, "rank": rank, "iteration": about.step, "use_distributed_optimizer": False,
        "consumed_train_samples": int(scalars.get("images_seen", 0)), "params_dtype": Name("torch", "float32"),
    }
    state = {
        i: {"step": network.step, **{
            key: _part(name, lazy, rank, ranks) for key, lazy in network.moments[name].items()
        }} for i, name in enumerate(moved)
    } if network.step is not None else {}
    group = {**group_of_optimizer(about, network.name), "params": list(range(len(moved)))}
    return {
        "args": Made(_NAMESPACE, (), args), "checkpoint_version": 3.0, "iteration": about.step,
        "model": {name: _part(name, lazy, rank, ranks) for name, lazy in network.weights.items()},
        "optimizer": {"state": state, "param_groups": [group]}, "num_floating_point_operations_so_far": 0,
    }


def _part(name: str, lazy: Lazy, rank: int, ranks: int) -> Lazy:
    cut = cut_of(name)
    if cut is None or ranks == 1:
        return lazy
    axis, stacked = cut
    shape = list(lazy.entry.shape)
    shape[axis] //= ranks

    def share(whole: Tensor) -> Tensor:
        return whole.unflatten(axis, (stacked, ranks, -1)).select(axis + 1, rank).flatten(axis, axis + 1)

    return lazy.changed(share, TensorEntry(tuple(shape), lazy.entry.dtype))


def _joined(path: Path, name: str, parts: Sequence[Lazy]) -> Lazy:
    if any(part.entry != parts[0].entry for part in parts):
        raise CheckpointError(f"{path} is damaged: the ranks have parts of {name:.80} of different sizes")
    cut, ranks = cut_of(name), len(parts)
    if cut is None or ranks == 1:
        return parts[0]
    axis, stacked = cut
    shape = list(parts[0].entry.shape)
    if len(shape) <= axis or shape[axis] % stacked:
        raise CheckpointError(f"{path} is damaged: {name:.80} is {parts[0].entry}, which is no part of such a weight")
    shape[axis] *= ranks

    def read() -> Tensor:
        stacks = [part.read().unflatten(axis, (stacked, -1)) for part in parts]
        return torch.stack(stacks, dim=axis + 1).flatten(axis, axis + 2)

    return Lazy(TensorEntry(tuple(shape), parts[0].entry.dtype), read)


def _files(path: Path) -> list[Path]:
    """Of all ranks, in order; empty where nothing of Megatron's lies. Raises CheckpointError if one is missing."""
    folder = path
    try:
        said = read_regular(path / _TRACKER, 1000).decode().strip()
        if said != "release" and not re.fullmatch(r"\d{1,12}", said):
            raise CheckpointError(f"{path / _TRACKER} says {said[:40]!r}; wanted a number of updates")
        folder = path / (said if said == "release" else f"iter_{int(said):07d}")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / _TRACKER} cannot be read: {error}; use another copy") from error
    if not folder.is_dir():
        raise CheckpointError(f"{path} is torn: {_TRACKER} names {folder.name}, which is not there")
    found = sorted(place for place in folder.iterdir() if re.fullmatch(r"mp_rank_\d\d(_\d\d\d){0,2}", place.name))
    for rank, place in enumerate(found):
        if len(place.name) > len("mp_rank_00"):
            raise CheckpointError(
                f"{folder} holds {place.name}: pipeline or expert parallelism cuts it too, which this program does not "
                "read; save it with a pipeline of one"
            )
        if place.name != f"mp_rank_{rank:02d}":
            raise CheckpointError(f"{folder} is torn: mp_rank_{rank:02d} is missing beside {found[-1].name}")
    return [place / _FILE for place in found]


def _opened(path: Path, opening: ExitStack) -> tuple[Learned, Mapping[str, Any], int]:
    """The network in a folder, the first rank's content, and the number of updates."""
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder; name one of Megatron's")
    files = [opening.enter_context(TorchFile(file, ADMITTED)) for file in _files(path)]
    if not files:
        raise CheckpointError(f"{path} holds no mp_rank_00: it is no folder of Megatron's; name another")
    for file in files:
        if not isinstance(file.content, dict) or not isinstance(file.content.get("model"), dict):
            raise CheckpointError(f"{file.path} has no state dict under 'model'; use another copy")
    content = files[0].content
    args = content.get("args") if isinstance(content.get("args"), dict) else {}
    ranks = args.get("tensor_model_parallel_size", len(files))
    if ranks != len(files) or args.get("pipeline_model_parallel_size", 1) != 1:
        raise CheckpointError(
            f"{path} is torn, or cut by a pipeline: {len(files)} ranks are there, it was written by {str(ranks):.20} "
            f"of a pipeline of {str(args.get('pipeline_model_parallel_size', 1)):.20}; use another copy"
        )
    models = [file.content["model"] for file in files]
    for model, file in zip(models, files, strict=True):
        if model.keys() != models[0].keys() or not all(isinstance(lazy, Lazy) for lazy in model.values()):
            raise CheckpointError(f"{file.path} has not the tensors of the first rank; use another copy")
    weights = {name: _joined(path, name, [model[name] for model in models]) for name in models[0]}
    network = Learned("", weights)
    _take_optimizer(path, network, content, [file.content.get("optimizer") for file in files])
    step = content.get("iteration")
    return network, content, step if type(step) is int and 0 <= step < 2**53 else 0


def _take_optimizer(path: Path, network: Learned, content: Mapping[str, Any], optimizers: Sequence[Any]) -> None:
    """Its state, by the order of the weights it moves; under 16 bits with the weights in float32 beside."""
    if any(not isinstance(optimizer, dict) for optimizer in optimizers):
        return  # saved without
    masters = [optimizer.get("fp32_from_fp16_params") for optimizer in optimizers]
    inner = [optimizer.get("optimizer", optimizer) for optimizer in optimizers]
    states = [optimizer.get("state") if isinstance(optimizer, dict) else None for optimizer in inner]
    if not all(isinstance(state, dict) for state in states):
        raise CheckpointError(
            f"{path}: its optimizer's state is not in these files; wanted one without a distributed optimizer"
        )
    said = content.get(NETWORK)
    moved = said.get("moved") if isinstance(said, dict) else list(network.moved)
    if not isinstance(moved, list) or not set(map(str, moved)) <= network.weights.keys():
        raise CheckpointError(f"{path} is damaged: its optimizer moves what is not there; use another copy")
    if not states[0]:
        return
    if any(state.keys() != set(range(len(moved))) for state in states):
        raise CheckpointError(
            f"{path}: its optimizer has states of {len(states[0])} weights, its model {len(moved)} that move; use "
            "another copy"
        )
    for i, name in enumerate(moved):
        entries = [state[i] for state in states]
        if not all(isinstance(entry, dict) for entry in entries):
            raise CheckpointError(f"{path} is damaged: the optimizer's state of {name:.80} is none")
        network.moments[name] = {}
        for key in MOMENTS:
            parts = [entry.get(key) for entry in entries]
            if all(isinstance(part, Lazy) for part in parts):
                network.moments[name][key] = _joined(path, name, parts)
        if "step" in entries[0]:
            network.step = scalar(entries[0]["step"], path)
        elif network.step is None:
            groups = inner[0].get("param_groups")
            network.step = scalar(groups[0].get("step") if isinstance(groups, list) and groups else None, path)
    flat = [[part for group in master for part in group] for master in masters if isinstance(master, list)]
    if len(flat) == len(optimizers) and all(len(parts) == len(moved) for parts in flat):
        for i, name in enumerate(moved):
            network.weights[name] = _joined(path, name, [parts[i] for parts in flat])
