"""A transformer of diffusers, as a recipe describes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from ...core.errors import ConfigError
from ...core.packages import require
from ..network_config import BlockSize, NetworkConfig
from .adapter import Adapter, Sizes
from .lora_config import LoraSettings
from .pretrained import read_settings
from .scheduler import check_scheduler
from .table import adapter_of


@dataclass(frozen=True, kw_only=True)
class DiffusersConfig(NetworkConfig):
    """A text-to-image transformer of diffusers, told embedded prompts; the empty prompt stands for no class.

    `times`: source: the class as it is, for flow matching. gated: told intervals and the sign of times by a second
    embedding of time, which begins as a copy of the first (`two_times.py`), for objectives of few steps.
    """

    no_class_setting: ClassVar[str] = "kind"  # never asked for: it always takes samples without a class
    takes_no_class: ClassVar[bool] = True
    any_size: ClassVar[bool] = True
    has_own_names: ClassVar[bool] = False
    no_forward_derivative: ClassVar[str | None] = (
        "attention of model.generator.kind 'diffusers' has none"
    )
    kind: Literal["diffusers"] = "diffusers"
    class_name: str  # of diffusers: QwenImageTransformer2DModel
    # the class's own settings, as its config.json has them; what is left out is at the class's default; null: those of
    # `weights`
    config: dict[str, Any] | None = None
    # a folder that save_pretrained wrote (a pipeline's 'transformer'), whose weights it begins with; null: from scratch
    weights: Path | None = None
    times: Literal["source", "gated"] = "gated"  # what it is told of times
    # low-rank adapters on `weights`, which then stay as they are; null: all weights learn
    lora: LoraSettings | None = None

    def __post_init__(self) -> None:
        if self.config is None and self.weights is None:
            raise ConfigError(
                "config and weights are both null; describe the network by config={...}, or give weights=FOLDER of a "
                "pretrained one"
            )
        if self.lora is not None:
            require("peft", "model.generator.lora", "lora")

    @property
    def negative_times(self) -> bool:
        """Whether it is told the sign of its times."""
        return self.times == "gated"

    @property
    def prompt_width(self) -> int:
        return self.sizes.prompt_width

    @property
    def pooled_width(self) -> int | None:
        return self.sizes.pooled_width

    @property
    def block_size(self) -> BlockSize:
        return BlockSize(self.sizes.hidden_size, self.sizes.num_heads, can_be_shared=False)

    def resolved(self) -> DiffusersConfig:
        """With the class's settings and the digest of an adapters' base, as they lie in the folder of weights.

        Raises ConfigError for weights of another class, or of a pipeline whose times are not those of a flow.
        """
        if self.weights is None:
            return self
        check_scheduler(self.weights)
        config = read_settings(self.weights, self.class_name) if self.config is None else self.config
        lora = self.lora if self.lora is None else self.lora.on(self.weights)
        return replace(self, config=config, lora=lora)

    def check_named(self) -> None:
        if self.lora is not None and self.weights is None:
            raise ConfigError(
                "model.generator.weights is null: model.generator.lora puts adapters on a pretrained transformer, "
                "which no checkpoint keeps; give its folder with model.generator.weights=FOLDER"
            )

    def without_files(self) -> DiffusersConfig:
        return replace(self, weights=None)

    @cached_property
    def adapter(self) -> Adapter:
        """Raises ConfigError, with the reason, if the class cannot be trained here."""
        return adapter_of(self.class_name)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All of the class's settings. Raises ConfigError for one that it does not know."""
        from ..diffusers import settings_of

        if self.config is None:
            raise ConfigError(f"config is null and was not read from weights {self.weights}; resolve the recipe")
        return settings_of(self.class_name, self.config)

    @cached_property
    def sizes(self) -> Sizes:
        """Raises ConfigError for a network that the class's adapter does not know."""
        try:
            return self.adapter.sizes(self.settings)
        except TypeError as error:
            raise ConfigError(f"config: {self.class_name} cannot be built so: {error}") from error

    def check_shape(self, shape: tuple[int, int, int]) -> None:
        channels, height, width = shape
        sizes = self.sizes
        if channels != sizes.channels or height % sizes.patch or width % sizes.patch:
            raise ConfigError(
                f"model.generator takes latents of {sizes.channels} channels in patches of {sizes.patch} x "
                f"{sizes.patch}, samples are {channels} x {height} x {width}; use data that were encoded for it"
            )
        most, rows, columns = sizes.most_of_a_side, height // sizes.patch, width // sizes.patch
        if most is not None and max(rows, columns) > most:
            raise ConfigError(
                f"model.generator has positions of {most} tokens a side, samples of {height} x {width} are cut into "
                f"{rows} x {columns}; use smaller samples"
            )

    def num_tokens(self, shape: tuple[int, int, int]) -> int:
        """Of a sample [C, H, W], without those of its prompt."""
        return (shape[1] // self.sizes.patch) * (shape[2] // self.sizes.patch)
