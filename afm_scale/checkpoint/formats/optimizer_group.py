"""The hyperparameters that other trainers keep beside an optimizer's state: of the run's recipe, else as published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .format import About

_PUBLISHED = {"learning_rate": 1e-4, "betas": [0.0, 0.9], "eps": 1e-8, "weight_decay": 0.01}


def group_of_optimizer(about: About, role: str) -> dict[str, Any]:
    """A parameter group of torch.optim.AdamW, without its weights. A learning rate that changes is the published one.
    """
    said = _recipe(about, role)
    rate = said["learning_rate"]
    return {
        "lr": float(rate) if isinstance(rate, (int, float)) else _PUBLISHED["learning_rate"],
        "betas": tuple(map(float, said["betas"])), "eps": float(said["eps"]),
        "weight_decay": float(said["weight_decay"]), "amsgrad": False, "maximize": False, "foreach": None,
        "capturable": False, "differentiable": False, "fused": None, "decoupled_weight_decay": True,
    }


def _recipe(about: About, role: str) -> dict[str, Any]:
    """What the run's recipe says of a player's optimizer; as published where it does not."""
    config = about.description.get("config")
    optimizers = config.get("optimizer") if isinstance(config, Mapping) else None
    said = optimizers.get(role) if isinstance(optimizers, Mapping) else None
    known = {key: said[key] for key in _PUBLISHED if key in said} if isinstance(said, Mapping) else {}
    return {**_PUBLISHED, **known}
