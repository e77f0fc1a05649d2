"""Which implementation of each fused piece is used: chosen for a process by `parallel/process.py`, told by `doctor`.

In order of preference NVIDIA apex, Triton, torch, of those that have the piece and work here. apex has no LayerNorm
with a modulation per sample and no gated residual; for the optimizer and the average torch itself has one launch for
many tensors, so that Triton would gain nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch

from ..core.errors import ConfigError

Implementation = Literal["torch", "triton", "apex"]
Setting = Literal["auto", "torch", "triton", "apex"]

_OFFERED: dict[str, Implementation] = {  # beside torch, which has all
    "modulated_norm": "triton", "gated_residual": "triton", "adamw": "apex", "average": "apex",
}


@dataclass(frozen=True)
class Chosen:
    """The implementation of one fused piece, and why it was chosen."""

    implementation: Implementation
    why: str

    def __str__(self) -> str:
        return f"{self.implementation}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The implementation of every fused piece for tensors on devices of one type; others are always torch's."""

    device_type: str
    modulated_norm: Chosen
    gated_residual: Chosen
    adamw: Chosen
    average: Chosen

    def described(self) -> dict[str, str]:
        """'implementation: why' by the name of the piece."""
        found = {field.name: str(getattr(self, field.name)) for field in fields(self) if field.name != "device_type"}
        if self.adamw.implementation == "torch":
            found["adamw"] += f" (of torch's the {'fused' if self.device_type == 'cuda' else 'foreach'} kernel)"
        return found

    def implementations(self) -> dict[str, str]:
        """The implementation alone, by the name of the piece."""
        pieces = [field.name for field in fields(self) if field.name != "device_type"]
        return {piece: getattr(self, piece).implementation for piece in pieces}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a device type has beside torch: an empty string for what works, else the reason why it does not."""

    device_type: str
    triton: str
    apex: str
    interpreted: bool = False  # Triton, by its own interpreter: slow, for checks

    def problem(self, implementation: Implementation) -> str:
        return {"triton": self.triton, "apex": self.apex, "torch": ""}[implementation]


def choose(setting: Setting, found: Found) -> Choice:
    """What `parallel.ops` means here. Raises ConfigError if it names something that does not work here.

    auto: the preferred one of each piece, but no interpreter. triton, apex: that one for the pieces that it has. torch:
    for all.
    """
    if setting != "auto" and found.problem(setting):
        raise ConfigError(
            f"parallel.ops is {setting!r}, but {found.problem(setting)}; set parallel.ops=auto to use what there is"
        )
    return Choice(
        device_type=found.device_type, **{piece: _chosen(offer, setting, found) for piece, offer in _OFFERED.items()}
    )


def _chosen(offer: Implementation, setting: Setting, found: Found) -> Chosen:
    if setting not in ("auto", offer):
        other = "" if setting == "torch" else ", which has no such piece"
        return Chosen("torch", f"parallel.ops is {setting!r}{other}")
    if found.problem(offer):
        return Chosen("torch", found.problem(offer))
    if setting == "auto" and offer == "triton" and found.interpreted:
        return Chosen("torch", "Triton is interpreted here (TRITON_INTERPRET=1): only for parallel.ops 'triton'")
    return Chosen(offer, "preferred, and works here" if setting == "auto" else f"parallel.ops is {setting!r}")


def triton_problem(device_type: str, *, installed: bool, interpreted: bool, trial: Callable[[], None]) -> str:
    """Why Triton cannot be used, or an empty string.

    Args:
        interpreted: by Triton's own interpreter, which needs no GPU.
        trial: runs something; only called where it has a chance.
    """
    if device_type != "cuda" and not interpreted:
        return f"Triton needs a GPU, and the device is the {device_type}"
    return _problem("Triton", installed, trial)


def apex_problem(device_type: str, *, installed: bool, trial: Callable[[], None]) -> str:
    """Why NVIDIA apex cannot be used, or an empty string. Arguments as of `triton_problem`."""
    if device_type != "cuda":
        return f"NVIDIA apex needs a GPU, and the device is the {device_type}"
    return _problem("NVIDIA apex", installed, trial)


def _problem(name: str, installed: bool, trial: Callable[[], None]) -> str:
    if not installed:
        return f"{name} is not installed"
    try:
        trial()
    except Exception as error:  # another apex, a build for another torch, no C compiler for Triton: all kinds
        first_line = str(error).strip().partition("\n")[0]
        return f"{name} is installed but does not work here ({type(error).__name__}: {first_line})"
    return ""


@cache
def probe(device: torch.device) -> Found:
    """Looks at the packages and tries what may work on the device, which takes seconds where Triton has to compile."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return Found(
        device_type=device.type, interpreted=interpreted,
        triton=triton_problem(
            device.type, installed=find_spec("triton") is not None,
            interpreted=interpreted, trial=lambda: _try_triton(device),
        ),
        apex=apex_problem(device.type, installed=find_spec("apex") is not None, trial=lambda: _try_apex(device)),
    )


def _try_triton(device: torch.device) -> None:
    from . import triton_kernels

    x, modulation = torch.ones(1, 1, 8, device=device), torch.ones(1, 8, device=device)
    triton_kernels.modulated_norm(x, modulation, modulation).sum().item()


def _try_apex(device: torch.device) -> None:
    from . import apex_kernels

    tensor = torch.ones(8, device=device)
    apex_kernels.average_([tensor], [2 * tensor], 0.5)
    tensor.sum().item()


_in_use: Choice | None = None


def use(setting: Setting, device: torch.device) -> Choice:
    """Chooses for this process from now on. Raises ConfigError like `choose`."""
    global _in_use
    _in_use = choose(setting, probe(device))
    return _in_use


def in_use() -> Choice:
    """What was chosen; where nothing was yet, what `auto` means on the GPU if there is one, else on the CPU."""
    return _in_use or use("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
