"""What a recipe says of low-rank adapters (`lora.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ...core.errors import ConfigError
from ...core.ranges import Range


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Adapters of linear layers. They and the second embedding of time learn; all else stays as in `weights`."""

    rank: Annotated[int, Range(1, 4096)]  # r: of B A
    alpha: Annotated[float, Range(above=0, high=65536)] | None = None  # B A is times alpha / rank; null: as rank
    targets: tuple[str, ...]  # last parts of the paths of linear layers: [to_q, to_k, to_v, to_out.0]

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) < len(self.targets) or not all(self.targets):
            raise ConfigError(
                f"targets {list(self.targets)} are none, or one twice or empty; name linear layers, each once, such as "
                "[to_q, to_k, to_v]"
            )
