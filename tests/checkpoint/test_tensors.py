"""Loading: into other layouts, and refusing what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from afm_scale.checkpoint import tensors as checkpoint_tensors
from afm_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from afm_scale.checkpoint.tensors import digest, load_into, read_tensors
from afm_scale.core.errors import CheckpointError
from tests.ranks import run_ranks


def save(folder: Path, step: int, tensors: dict[str, Tensor], rank: int = 0, world_size: int = 1, **scalars) -> Path:
    config = CheckpointConfig(every_steps=1)
    manager = CheckpointManager(folder, config, rank=rank, world_size=world_size, description={})
    manager.save(step, tensors, scalars)
    manager.close()
    return folder / f"step_{step:08d}"


def weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (7, 4), "0.bias": (7,), "1.weight": (1, 7), "1.bias": (1,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_loading_fills_the_tensors_in_place_and_returns_the_scalars(tmp_path: Path) -> None:
    path = save(tmp_path, 3, weights(0), images_seen=12)
    model = nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 1))
    assert load_into(path, dict(model.named_parameters())) == {"images_seen": 12}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights(0)[name]), name


def test_a_prefix_reads_only_what_begins_with_it(tmp_path: Path) -> None:
    loaded = read_tensors(save(tmp_path, 1, weights(0)), "1.")
    assert loaded.keys() == {"1.weight", "1.bias"}
    assert torch.equal(loaded["1.weight"], weights(0)["1.weight"])


def test_another_models_checkpoint_is_refused_untouched(tmp_path: Path) -> None:
    path = save(tmp_path, 1, weights(0))
    other = weights(1) | {"0.weight": torch.zeros(8, 4), "0.bias": torch.zeros(7, dtype=torch.float64)}
    other["2.weight"] = other.pop("1.weight")
    before = {name: tensor.clone() for name, tensor in other.items()}
    with pytest.raises(CheckpointError) as caught:
        load_into(path, other)
    message = str(caught.value)
    assert "0.bias is [7] float32 in the checkpoint, [7] float64 in this model" in message
    assert "0.weight is [7, 4] float32 in the checkpoint, [8, 4] float32 in this model" in message
    assert "1.weight is [1, 7] float32 in the checkpoint, absent in this model; and 1 more" in message
    assert all(torch.equal(other[name], before[name]) for name in other)


def test_damaged_data_of_the_right_size_is_a_user_error(tmp_path: Path) -> None:
    path = save(tmp_path, 1, weights(0))
    data = next(path.glob("*.distcp"))
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(CheckpointError, match="is damaged: __0_0.distcp has SHA-256"):
        read_tensors(path)


def test_the_digest_depends_on_names_shapes_dtypes_and_values_alone(tmp_path: Path) -> None:
    base = weights(0)
    same = digest(save(tmp_path / "a", 1, base, images_seen=1))
    assert digest(save(tmp_path / "b", 2, dict(reversed(base.items())), images_seen=2)) == same
    changed = base["0.bias"].clone()
    changed[0] = torch.nextafter(changed[0], torch.tensor(9.0))
    others = (
        {"0.bias": changed},
        {"0.bias": base["0.bias"].reshape(7, 1)},
        {"0.bias": base["0.bias"].view(torch.int32)},
        {"2.bias": base["0.bias"]},
    )
    digests = {digest(save(tmp_path / str(k), 1, base | other)) for k, other in enumerate(others)}
    assert len(digests | {same}) == 5


def test_the_digest_of_a_large_checkpoint_is_taken_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 1, weights(0))
    whole = digest(path)
    monkeypatch.setattr(checkpoint_tensors, "_DIGEST_CHUNK_BYTES", 30)
    assert digest(path) == whole


def load_sharded_and_save(plain: Path, folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Loads one process's checkpoint into an FSDP2 model of two ranks, saves it from there, changes it meanwhile."""
    rank = dist.get_rank()
    model = nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 1))
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    sharded = dict(model.named_parameters())
    assert all(isinstance(tensor, DTensor) for tensor in sharded.values())
    load_into(plain, sharded)
    local = {name: tensor.to_local().detach().clone() for name, tensor in sharded.items()}

    manager = CheckpointManager(folder, CheckpointConfig(every_steps=1), rank=rank, world_size=2, description={})
    manager.save(7, sharded, {"rank": rank})
    with torch.no_grad():
        for tensor in sharded.values():
            tensor.to_local().fill_(-1)
    for _ in range(20):  # training's collectives go on meanwhile
        model(torch.randn(2, 4)).sum().backward()
    manager.close()
    visible = [path.name for path in folder.iterdir()]

    wrong = {name: tensor for name, tensor in sharded.items() if rank == 0 or name != "1.bias"}
    with pytest.raises(CheckpointError, match="1.bias is .* absent in this model"):  # rank 0, too, is told
        load_into(folder / "step_00000007", wrong)
    return local, visible


def test_ranks_may_change_between_saving_and_loading(tmp_path: Path) -> None:
    plain = save(tmp_path / "one", 1, weights(0))
    (first, visible), (second, also_visible) = run_ranks(2, load_sharded_and_save, plain, tmp_path / "two")
    assert visible == also_visible == ["step_00000007"]
    for name, tensor in weights(0).items():
        assert torch.equal(torch.cat([first[name], second[name]]), tensor), name
    sharded = tmp_path / "two" / "step_00000007"
    assert len(list(sharded.glob("*.distcp"))) == 2
    assert digest(sharded) == digest(plain)
    target = {name: torch.zeros_like(tensor) for name, tensor in weights(0).items()}
    assert load_into(sharded, target) == {"rank": 0}
    assert all(torch.equal(target[name], tensor) for name, tensor in weights(0).items())
