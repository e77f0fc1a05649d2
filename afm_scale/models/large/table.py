"""The classes of diffusers that a recipe may choose: adding one is a file and a line here."""

from __future__ import annotations

from ...core.errors import ConfigError
from ...core.packages import require
from .adapter import Adapter, wants
from .flux import Flux
from .qwen_image import QwenImage
from .sana import Sana
from .sd3 import SD3
from .z_image import ZImage

ADAPTERS: dict[str, Adapter] = {
    adapter.class_name: adapter
    for adapter in (
        QwenImage(),
        SD3(),
        Sana(),
        Flux(),
        ZImage(),
    )
}


def adapter_of(class_name: str) -> Adapter:
    """Raises ConfigError, with the reason, for a class that cannot be trained here."""
    require("diffusers", "model.generator.kind 'diffusers'", "latents")
    from ..diffusers import transformer_class

    transformer_class(class_name)
    if class_name not in ADAPTERS:
        raise ConfigError(
            f"class_name {class_name!r} is a transformer of diffusers, but nothing here says how it is called; known: "
            f"{', '.join(ADAPTERS)}. Another one is a file in models/large and a line in its table.py, which say "
            f"{wants}"
        )
    return ADAPTERS[class_name]
