"""Which shipped recipe has a network of the size of some weights."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.errors import UserError
from ..core.types import Role
from .config import RunConfig
from .load import load
from .networks import build_network
from .shipped import RECIPES


def recipes_that_fit(role: Role, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the shipped recipes whose network of this role has exactly these tensors, by name and shape."""
    found = []
    for file in sorted(RECIPES.glob("*.yaml")):
        try:
            config = load(RunConfig, file.stem)
            described = getattr(config.model, role.value) if role in config.objective.roles else None
            network = build_network(config, role) if described is not None and described.has_own_names else None
        except UserError:  # one that leaves something open
            continue
        tensors = {} if network is None else network.state_dict()
        if tensors and {name: tuple(tensor.shape) for name, tensor in tensors.items()} == dict(shapes):
            found.append(file.stem)
    return found
