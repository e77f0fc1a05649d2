"""Low-rank adapters on a pretrained transformer, by peft (LoRA, arXiv 2106.09685): they learn, the base does not.

    W x  ->  W x + (alpha / rank) B A x,   B beginning at zero: the pretrained network, bit for bit

Imported when a recipe asks for adapters. Names of tensors are peft's: `X.base_layer.weight` is what was `X.weight`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.typed import nearest
from .lora_config import LoraSettings

ADAPTER = "default"  # peft's name of an adapter that is not named


def add_adapters(transformer: nn.Module, settings: LoraSettings) -> None:
    """On the meta device. From now on what was there needs no gradient, and the adapters do.

    Raises ConfigError for a target that no linear layer answers to.
    """
    _check_targets(transformer, settings.targets)
    inject_adapter_in_model(peft_config(settings), transformer, low_cpu_mem_usage=True)
    for part in transformer.modules():
        if isinstance(part, LoraLayer):
            part.lora_A[ADAPTER].initial = partial(_initial, part.lora_A[ADAPTER], False)
            part.lora_B[ADAPTER].initial = partial(_initial, part.lora_B[ADAPTER], True)


def peft_config(settings: LoraSettings) -> LoraConfig:
    return LoraConfig(
        r=settings.rank, lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
        target_modules=list(settings.targets), lora_dropout=0.0, bias="none",
    )


def saved_settings(settings: LoraSettings) -> dict[str, Any]:
    """As peft keeps them beside the weights, in plain JSON values."""
    plain = peft_config(settings).to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in plain.items()}


def _initial(owner: nn.Linear, is_zero: bool, name: str, generator: torch.Generator) -> Tensor:
    """As peft has it: A uniform, of the bound 1 / sqrt(inputs), B zero; whole, float32, on the CPU."""
    if is_zero:
        return torch.zeros(owner.weight.shape)
    bound = 1 / math.sqrt(owner.in_features)
    return (2 * torch.rand(owner.weight.shape, generator=generator) - 1) * bound


def _check_targets(transformer: nn.Module, targets: tuple[str, ...]) -> None:
    linear = {path for path, part in transformer.named_modules() if isinstance(part, nn.Linear)}
    known = sorted({path.rpartition(".")[2] for path in linear if not path.rpartition(".")[2].isdigit()})
    others = {path for path, _ in transformer.named_modules() if path} - linear
    for target in targets:
        ends = f".{target}"
        if not any(f".{path}".endswith(ends) for path in linear):
            raise ConfigError(
                f"lora.targets names {target!r}, which no linear layer of {type(transformer).__name__} is called"
                f"{nearest(target, known)}; the last parts of their names are {', '.join(known)}"
            )
        if wrong := sorted(path for path in others if f".{path}".endswith(ends)):
            raise ConfigError(
                f"lora.targets names {target!r}, which {wrong[0]} answers to, and that is no linear layer; give more "
                "of the path of those that are meant"
            )
