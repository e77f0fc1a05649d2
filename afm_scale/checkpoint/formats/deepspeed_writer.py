"""Writes the folders that DeepSpeed loads: `load_checkpoint` on as many ranks, `load_universal` on any number.

The weights of a network are flattened in its own order, in one group; hyperparameters of the optimizer are those of
the run's recipe where the checkpoint has one. With beta1 = 0 there is no first moment, which DeepSpeed wants: zeros
stand in for it, which such an optimizer never looks at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.files import written_atomically
from ..manifest import TensorEntry
from ..pickled import Entries, Made, Name
from .deepspeed_files import FRAGMENT, SCALER, STAGE
from .format import About, Lazy
from .networks import MOMENTS, Learned
from .optimizer_group import group_of_optimizer
from .torch_writer import Pieces, write_torch

VERSION = "0.19.8"  # of the DeepSpeed whose files these are like
UNIVERSAL = 0  # instead of a stage
_ALIGNMENT = 2  # numbers, of every rank's part under stages 1 and 2
_SIZE = Name("torch", "Size")


def write_folder(
    folder: Path, network: Learned, about: About, marks: Mapping[str, Any], ranks: int, stage: int
) -> None:
    """One engine's checkpoint, in a folder that is there and that is renamed when it is whole."""
    tag = f"global_step{about.step}"
    if stage == UNIVERSAL:
        tag, ranks = f"{tag}_universal", 1
        _write_universal(folder / tag / "zero", network, about)
        for_third = _model(network, about, 1, is_sharded=True)  # engines of stage 3 look for this name
        _write(folder / tag / "zero_pp_rank_0_mp_rank_00_model_states.pt", for_third)
    else:
        for rank in range(ranks):
            state = _third(network, about, rank, ranks) if stage == 3 else _state(network, about, rank, ranks, stage)
            content = {"optimizer_state_dict": state, "ds_config": {}, "ds_version": VERSION}
            _write(folder / tag / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", content)
    for rank in range(ranks if stage == 3 else 1):
        content = _model(network, about, ranks, is_sharded=stage == 3) | (marks if rank == 0 else {})
        name = f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
        _write(folder / tag / name, content)
    with written_atomically(folder / ("latest_universal" if stage == UNIVERSAL else "latest")) as file:
        file.write(tag.encode())


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with written_atomically(path) as file:
        write_torch(file, dict(content), path.stem)


def _model(network: Learned, about: About, ranks: int, *, is_sharded: bool) -> dict[str, Any]:
    moved, empty = network.moved, Lazy.of(torch.empty(0))
    module = Entries((name, empty if is_sharded and name in moved else lazy) for name, lazy in network.weights.items())
    shapes = Entries((name, Made(_SIZE, (tuple(lazy.entry.shape),))) for name, lazy in moved.items())
    return {
        "module": module, "buffer_names": list(network.buffers), "optimizer": None, "param_shapes": [shapes],
        "frozen_param_shapes": Entries(), "shared_params": {}, "frozen_param_fragments": Entries(),
        "lr_scheduler": None, "data_sampler": None, "random_ltd": None, "skipped_steps": 0,
        "global_steps": about.step, "global_samples": int((about.scalars or {}).get("images_seen", 0)),
        "dp_world_size": ranks, "mp_world_size": 1,
        "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1}, "ds_config": {}, "ds_version": VERSION,
    }


def _state(network: Learned, about: About, rank: int, ranks: int, stage: int) -> dict[str, Any]:
    """Stages 1 and 2: all weights end to end, in equal parts."""
    sizes = {name: math.prod(lazy.entry.shape) for name, lazy in network.moved.items()}
    total = sum(sizes.values())
    share = math.ceil(total / (_ALIGNMENT * ranks)) * _ALIGNMENT
    begins, ends = min(rank * share, total), min((rank + 1) * share, total)
    places: dict[str, tuple[int, int]] = {}  # of what is in this part: from which number on, and how many
    fragments, offset = Entries(), 0
    for name, size in sizes.items():
        first, last = max(begins, offset), min(ends, offset + size)
        if first < last:
            places[name] = first - offset, last - first
            fragments[name] = Made(FRAGMENT, (last - first, first - begins))
        offset += size
    padding = share - (ends - begins)
    return {
        "loss_scaler": _scaler(), "dynamic_loss_scale": False, "overflow": False, "clip_grad": 0.0,
        "base_optimizer_state": _optimizer(network, about, lambda kind: _flat(network, kind, places, padding)),
        "single_partition_of_fp32_groups": [_flat(network, "fp32", places, 0)],
        "zero_stage": Made(STAGE, (stage,)), "group_paddings": [padding],
        "param_alignment_paddings": [[0] * len(sizes)], "partition_count": [ranks], "ds_version": VERSION,
        "param_slice_mappings": [fragments],
    }


def _third(network: Learned, about: About, rank: int, ranks: int) -> dict[str, Any]:
    """Stage 3: each weight in equal parts, the last ones filled up."""
    places, paddings = {}, {}
    for name, lazy in network.moved.items():
        size = math.prod(lazy.entry.shape)
        share = math.ceil(size / ranks)
        start = min(rank * share, size)
        places[name] = start, min(share, size - start)
        paddings[name] = share - places[name][1]
    return {
        "zero_stage": Made(STAGE, (3,)), "loss_scaler": _scaler(), "dynamic_loss_scale": False, "overflow": False,
        "partition_count": ranks,
        "optimizer_state_dict": _optimizer(network, about, lambda kind: _flat(network, kind, places, 0, paddings)),
        "fp32_flat_groups": [_flat(network, "fp32", places, 0, paddings)],
    }


def _write_universal(folder: Path, network: Learned, about: About) -> None:
    for name, lazy in network.moved.items():
        kinds = {"fp32": lazy}
        if network.step is not None:
            kinds |= {moment: network.moments[name].get(moment) or _zeros(lazy) for moment in MOMENTS}
            _write_value(folder / name / "step.pt", network.step)
        for kind, value in kinds.items():
            _write(folder / name / f"{kind}.pt", {"param": value, "cat_dim": 0})
    groups = _optimizer(network, about, lambda kind: Lazy.of(torch.zeros(0)))
    _write(folder / "optimizer_state.pt", {
        "loss_scaler": _scaler(), "dynamic_loss_scale": False, "overflow": False, "clip_grad": 0.0,
        "zero_stage": Made(STAGE, (2,)), "ds_version": VERSION, "param_groups": groups["param_groups"],
        "optimizer_state_dict": groups,
    })


def _write_value(path: Path, value: Lazy) -> None:
    with written_atomically(path) as file:
        write_torch(file, value, path.stem)


def _scaler() -> Made:
    return Made(SCALER, (1.0,), {"cur_scale": 1.0, "dynamic": False})


def _optimizer(network: Learned, about: About, flat: Callable[[str], Lazy | Pieces]) -> dict[str, Any]:
    """`state_dict` of a torch.optim.AdamW whose only weight is the flat partition."""
    group = {**group_of_optimizer(about, network.name), "params": [0]}
    kept = {"step": network.step, **{moment: flat(moment) for moment in MOMENTS}}
    return {"state": {} if network.step is None else {0: kept}, "param_groups": [group]}


def _flat(
    network: Learned, kind: str, places: Mapping[str, tuple[int, int]], padding: int,
    after: Mapping[str, int] | None = None,
) -> Pieces:
    """A rank's part of the weights (`fp32`) or of a moment, with the zeros that fill it up: at its end, and `after`
    each weight."""
    paddings = after or {}
    total = sum(count for _, count in places.values()) + padding + sum(paddings.values())

    def pieces() -> Iterator[Tensor]:
        for name, (start, count) in places.items():
            lazy = network.weights[name] if kind == "fp32" else network.moments[name].get(kind)
            if count:
                yield torch.zeros(count) if lazy is None else lazy.read().reshape(-1)[start : start + count].clone()
            yield torch.zeros(paddings.get(name, 0))
        yield torch.zeros(padding)

    return Pieces(TensorEntry((total,), "float32"), pieces)


def _zeros(lazy: Lazy) -> Lazy:
    return Lazy(lazy.entry, lambda: torch.zeros(lazy.entry.shape))
