"""What a recipe says of low-rank adapters (`lora.py`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from ...core.errors import ConfigError
from ...core.ranges import Range
from .pretrained import digest_of


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Adapters of linear layers. They and the second embedding of time learn; all else stays as in `weights`."""

    rank: Annotated[int, Range(1, 4096)]  # r: of B A
    alpha: Annotated[float, Range(above=0, high=65536)] | None = None  # B A is times alpha / rank; null: as rank
    base: str | None = None  # tells their base from other weights (`digest_of`); null: that of `weights`
    targets: tuple[str, ...]  # last parts of the paths of linear layers: [to_q, to_k, to_v, to_out.0]

    def on(self, weights: Path) -> LoraSettings:
        """The same with the digest of its base. Raises ConfigError if the folder has other weights than `base` says."""
        found = digest_of(weights)
        if self.base not in (None, found):
            raise ConfigError(
                f"model.generator.weights {weights} are other weights than the adapters were trained on "
                f"(model.generator.lora.base is {self.base}, theirs {found}); give the folder of their base"
            )
        return replace(self, base=found)

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) < len(self.targets) or not all(self.targets):
            raise ConfigError(
                f"targets {list(self.targets)} are none, or one twice or empty; name linear layers, each once, such as "
                "[to_q, to_k, to_v]"
            )
