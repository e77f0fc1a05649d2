"""DeepSpeed's folders, read without DeepSpeed: ZeRO's flat partitions, and universal checkpoints.

    LATEST says TAG.  TAG/mp_rank_00_model_states.pt                            stage 1, 2: names, shapes, buffers
                      TAG/zero_pp_rank_R_mp_rank_00_model_states.pt             stage 3: the same, of every rank
                      TAG/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt      rank R's part of all that moves
                      TAG/zero/PARAMETER/{fp32,exp_avg,exp_avg_sq,step}.pt      universal: whole
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.errors import CheckpointError
from ..manifest import TensorEntry
from ..pickled import Made
from .deepspeed_files import FRAGMENT, OF_MODEL, OF_OPTIMIZER, StateFile, by_rank, checked_name, tag_in
from .format import Lazy
from .networks import MOMENTS, Learned, scalar


class _Piece(NamedTuple):
    """A part of a parameter: in which file's flat tensor it lies, from where on, and how much of it."""

    file: StateFile
    flat: Lazy
    start: int
    count: int


class Folder:
    """One tag of one engine's checkpoints. Raises CheckpointError for what is not whole."""

    def __init__(self, path: Path) -> None:
        self.path = tag_in(path)
        with ExitStack() as opening:
            self._opening = opening
            self.content, self.network, self.step = self._read()
            self._opening = opening.pop_all()

    def close(self) -> None:
        self._opening.close()

    def _file(self, path: Path) -> StateFile:
        file = StateFile(path)
        self._opening.callback(file.close)
        if not isinstance(file.content, dict):
            raise CheckpointError(f"{path} holds no mapping: it is no file of DeepSpeed's; use another copy of it")
        return file

    def _read(self) -> tuple[Mapping[str, Any], Learned, int]:
        of_model = by_rank(self.path, OF_MODEL)
        if not of_model and not (self.path / "zero").is_dir():
            raise CheckpointError(f"{self.path} holds no model states of DeepSpeed's; name another folder")
        models = [self._file(file) for file in of_model]
        content = models[0].content if models else {}
        if (self.path / "zero").is_dir():
            network = self._universal(models)
        else:
            network = self._sharded(models)
        step = content.get("global_steps")
        return content, network, step if type(step) is int and 0 <= step < 2**53 else 0

    def _sharded(self, models: Sequence[StateFile]) -> Learned:
        optimizers = [self._file(file) for file in by_rank(self.path, OF_OPTIMIZER)]
        if not optimizers:
            raise CheckpointError(f"{self.path} holds no optimizer states of ZeRO's; name another folder")
        states = [_mapping(file, file.content, "optimizer_state_dict") for file in optimizers]
        stage = states[0].get("zero_stage")
        stage = stage.arguments[0] if isinstance(stage, Made) and stage.arguments else stage
        if stage not in (1, 2, 3):
            raise CheckpointError(f"{optimizers[0].path}: its stage of ZeRO is {str(stage):.40}; wanted 1, 2 or 3")
        count = states[0].get("partition_count")
        count = count[0] if isinstance(count, list) and count else count
        wanted = {"optimizer": (len(optimizers), count), "model": (len(models), count if stage == 3 else 1)}
        for kind, (there, needed) in wanted.items():
            if there != needed:
                raise CheckpointError(
                    f"{self.path} is torn: it has {kind} states of {there} ranks, {needed} wrote it; use another copy"
                )
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        shapes = _shapes(models[0])
        pieces: dict[str, dict[str, list[_Piece]]] = {"fp32": {}, **{moment: {} for moment in MOMENTS}}
        step = None
        for rank, (file, state) in enumerate(zip(optimizers, states, strict=True)):
            base = _mapping(file, state, "optimizer_state_dict" if stage == 3 else "base_optimizer_state")
            kept, flats = _mapping(file, base, "state"), state.get(key)
            if not isinstance(flats, list) or len(flats) != len(shapes):
                raise CheckpointError(f"{file.path} is damaged: it has not {len(shapes)} groups of weights")
            for group, named in enumerate(shapes):
                places = _rows(named, rank, len(states)) if stage == 3 else _mapped(file, state, group)
                kinds = {"fp32": flats[group], **{
                    moment: value for moment, value in (kept.get(group) or {}).items() if moment in MOMENTS
                }}
                for kind, flat in kinds.items():
                    _add(file, pieces[kind], file.tensor(flat), places)
                if group in kept and "step" in kept[group]:
                    step = scalar(kept[group]["step"], file.path)
        whole = {name: shape for named in shapes for name, shape in named.items()}
        found = {
            kind: {name: _joined(self.path, name, whole[name], parts) for name, parts in named.items()}
            for kind, named in pieces.items()
        }
        return self._network(models, whole, found, step, is_sharded=stage == 3)

    def _universal(self, models: Sequence[StateFile]) -> Learned:
        if not models:
            raise CheckpointError(f"{self.path} is torn: its model states, with the shapes, are missing")
        shapes = {name: shape for named in _shapes(models[0]) for name, shape in named.items()}
        found: dict[str, dict[str, Lazy]] = {"fp32": {}, **{moment: {} for moment in MOMENTS}}
        step = None
        for name, shape in shapes.items():
            folder = self.path / "zero" / checked_name(self.path, name)
            for kind in found:
                path = folder / f"{kind}.pt"
                if kind in MOMENTS and not path.exists():
                    continue
                value, file = self._single(path)
                lazy = file.tensor(value.get("param") if isinstance(value, dict) else value)
                if math.prod(lazy.entry.shape) != math.prod(shape):
                    raise CheckpointError(f"{path} is of {list(lazy.entry.shape)}, its weight of {list(shape)}")
                found[kind][name] = _shaped(lazy, shape)
            if step is None and (folder / "step.pt").exists():
                step = scalar(self._single(folder / "step.pt")[0], folder / "step.pt")
        if step is None and (self.path / "zero" / "optimizer_state.pt").exists():
            step = self._common_step(self.path / "zero" / "optimizer_state.pt")
        return self._network(models, shapes, found, step, is_sharded=models[0].path.name.startswith("zero_pp"))

    def _single(self, path: Path) -> tuple[Any, StateFile]:
        file = StateFile(path)
        self._opening.callback(file.close)
        return file.content, file

    def _common_step(self, path: Path) -> Lazy | None:
        value = self._file(path).content.get("optimizer_state_dict")
        state = value.get("state") if isinstance(value, dict) else None
        first = state.get(0) if isinstance(state, dict) else None
        return scalar(first["step"], path) if isinstance(first, dict) and "step" in first else None

    def _network(
        self, models: Sequence[StateFile], shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, dict[str, Lazy]],
        step: Lazy | None, *, is_sharded: bool,
    ) -> Learned:
        """All of it in the order of the model's state dict; what did not move is taken from there."""
        model = models[0]
        module = _mapping(model, model.content, "module")
        buffers, shared = model.content.get("buffer_names") or [], model.content.get("shared_params") or {}
        if len(models) < (model.content.get("dp_world_size") or 1) and is_sharded:
            raise CheckpointError(f"{self.path} is torn: it has model states of {len(models)} ranks")
        frozen = model.content.get("frozen_param_shapes") or {}
        weights: dict[str, Lazy] = {}
        for name, value in module.items():
            if name in shapes:
                weights[name] = found["fp32"][name] if name in found["fp32"] else _missing(self.path, name)
            elif name in shared:
                weights[name] = found["fp32"].get(shared[name]) or _missing(self.path, name)
            elif name in buffers or not models[1:] and not is_sharded:
                weights[name] = model.tensor(value)
            elif name in frozen:
                parts = []
                for file in models:
                    flat = file.tensor((file.content.get("frozen_param_fragments") or {}).get(name))
                    parts.append(_Piece(file, flat, 0, math.prod(flat.entry.shape)))
                weights[name] = _joined(self.path, name, tuple(frozen[name]), parts, is_padded=True)
        if missing := [name for name in shapes if name not in weights]:
            raise CheckpointError(f"{self.path} is damaged: its model states lack {missing[0]:.80}; use another copy")
        moments: dict[str, dict[str, Lazy]] = {}
        if step is not None:
            moments = {name: {key: found[key][name] for key in MOMENTS if name in found[key]} for name in shapes}
        return Learned("", weights, moments, step)


def _mapping(file: StateFile, value: Any, key: str) -> Mapping[Any, Any]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file.path} is damaged, or of a DeepSpeed that this program does not know: no {key}")
    return found


def _shapes(file: StateFile) -> list[dict[str, tuple[int, ...]]]:
    """Of the parameters of each group, in the order in which they are flattened."""
    groups = file.content.get("param_shapes")
    if not isinstance(groups, list) or not all(isinstance(named, dict) for named in groups):
        raise CheckpointError(f"{file.path} is damaged: it has no shapes of parameters; use another copy")
    for name, shape in (entry for named in groups for entry in named.items()):
        whole = isinstance(shape, tuple) and all(type(size) is int and 0 <= size < 2**53 for size in shape)
        if not isinstance(name, str) or not whole:
            raise CheckpointError(f"{file.path} is damaged: the shape of {str(name):.80} is none; use another copy")
    return groups


Places = Mapping[str, tuple[int, int]]  # start in the flat partition, and numbers there


def _rows(named: Mapping[str, tuple[int, ...]], rank: int, count: int) -> Places:
    """Stage 3: every parameter is cut into equal parts, the last ones filled up."""
    places, offset = {}, 0
    for name, shape in named.items():
        share, size = math.ceil(math.prod(shape) / count), math.prod(shape)
        places[name] = offset, max(0, min(share, size - rank * share))
        offset += share
    return places


def _mapped(file: StateFile, state: Mapping[str, Any], group: int) -> Places:
    """Stages 1 and 2: all parameters end to end are cut into equal parts, whose fragments are listed."""
    groups = state.get("param_slice_mappings")
    named = groups[group] if isinstance(groups, list) and group < len(groups) else None
    if not isinstance(named, dict):
        raise CheckpointError(f"{file.path} does not say where parameters lie; wanted DeepSpeed 0.8 or later")
    places = {}
    for name, made in named.items():
        place = _place(made)
        if place is None:
            raise CheckpointError(f"{file.path} is damaged: {str(name):.80} lies nowhere; use another copy")
        places[name] = place
    return places


def _place(made: Any) -> tuple[int, int] | None:
    """(start, count) of a `fragment_address`."""
    if not isinstance(made, Made) or made.of != FRAGMENT:
        return None
    said = made.state if isinstance(made.state, dict) else dict(zip(("numel", "start"), made.arguments, strict=False))
    start, count = said.get("start"), said.get("numel")
    whole = type(start) is int and type(count) is int and 0 <= start < 2**53 and 0 <= count < 2**53
    return (start, count) if whole else None


def _add(file: StateFile, pieces: dict[str, list[_Piece]], flat: Lazy, places: Places) -> None:
    size = math.prod(flat.entry.shape)
    for name, (start, count) in places.items():
        if start + count > size:
            raise CheckpointError(f"{file.path} is damaged: {str(name):.80} does not lie within its partition")
        pieces.setdefault(name, [])
        if count:
            pieces[name].append(_Piece(file, flat, start, count))


def _joined(
    path: Path, name: str, shape: tuple[int, ...], parts: Sequence[_Piece], *, is_padded: bool = False
) -> Lazy:
    there, size = sum(part.count for part in parts), math.prod(shape)
    if there != size and not (is_padded and there > size):
        raise CheckpointError(f"{path} is torn: {there} numbers of {name:.80} are there, {size} wanted")
    dtypes = {part.flat.entry.dtype for part in parts} or {"float32"}
    if len(dtypes) > 1:
        raise CheckpointError(f"{path} is damaged: {name:.80} is of {len(dtypes)} types of number")
    entry = TensorEntry(tuple(shape), dtypes.pop())

    def read() -> Tensor:
        whole, place = torch.empty(max(there, size), dtype=entry.torch_dtype), 0
        for part in parts:
            whole[place : place + part.count] = part.file.part(part.flat, part.start, part.count)
            place += part.count
        return whole[:size].reshape(shape)

    return Lazy(entry, read)


def _shaped(lazy: Lazy, shape: tuple[int, ...]) -> Lazy:
    return lazy.changed(lambda tensor: tensor.reshape(shape), TensorEntry(tuple(shape), lazy.entry.dtype))


def _missing(path: Path, name: str) -> Lazy:
    raise CheckpointError(f"{path} is torn: no part of {name:.80} is there; use another copy")
