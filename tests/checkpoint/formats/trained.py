"""A checkpoint of two players in memory, of sizes that no number of ranks divides: `from .trained import source`."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from afm_scale.checkpoint.formats.format import About, Lazy, Source

STEP = 7


class Net(nn.Module):
    """35 + 7 + 21 + 3 + 1 weights, and a buffer that does not move."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("pos_embed", torch.arange(4.0))
        self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x))) * self.scale


def source(about: About | None = None) -> Source:
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for role in ("generator", "discriminator"):
        net = Net()
        tensors |= {f"{role}.{name}": torch.randn_like(value) for name, value in net.state_dict().items()}
        for name, value in net.named_parameters():
            tensors[f"optimizer.{role}.{name}.step"] = torch.tensor(float(STEP))
            if role == "discriminator":  # whose beta1 is not 0
                tensors[f"optimizer.{role}.{name}.exp_avg"] = torch.randn_like(value).detach()
            tensors[f"optimizer.{role}.{name}.exp_avg_sq"] = torch.rand_like(value).detach()
    tensors |= {f"average.{name}": torch.randn_like(value) for name, value in Net().state_dict().items()}
    tensors["objective.norm"] = torch.tensor(0.25, dtype=torch.float64)
    about = about or About(step=STEP, scalars={"step": STEP, "images_seen": 8, "data": {"consumed": 16}})
    return Source(Path("memory"), {name: Lazy.of(tensor) for name, tensor in tensors.items()}, about)


def values(of: Source) -> dict[str, Tensor]:
    return {name: lazy.read() for name, lazy in of.tensors.items()}


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """In names, types and every bit."""
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]) for name in wanted
    )


class Malicious:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.place,)


def with_code(file: Path, ran: Path) -> None:
    """A file of torch's whose pickle makes another file."""
    with zipfile.ZipFile(file) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    (pickled,) = (name for name in members if name.endswith("data.pkl"))
    members[pickled] = pickle.dumps({"model": Malicious(ran)}, protocol=2)
    with zipfile.ZipFile(file, "w") as new:
        for name, value in members.items():
            new.writestr(name, value)
