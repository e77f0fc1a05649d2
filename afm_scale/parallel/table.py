"""The plans a recipe may name as `parallel.plan`: adding one is a file and a line here.

A kind that has settings is a section `parallel.<kind>` of a recipe; the kinds' modules import plans only to build them.
"""

from __future__ import annotations

from .kinds.ddp import DDPConfig
from .kinds.deepspeed import DeepSpeedConfig
from .kinds.fsdp2 import FSDP2Config
from .kinds.kind import PlanKind
from .kinds.megatron import MegatronConfig

PLANS: dict[str, type[PlanKind]] = {
    "ddp": DDPConfig,
    "fsdp2": FSDP2Config,
    "deepspeed": DeepSpeedConfig,
    "megatron": MegatronConfig,
}
