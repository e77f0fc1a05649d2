"""What config.json of a diffusers DiTTransformer2DModel may say, and the tensors that a network so described has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ...core.errors import CheckpointError, ConfigError
from ...core.ranges import Range
from ...core.strict_json import read_mapping
from ...core.typed import build

CONFIG = "config.json"
CLASS = "DiTTransformer2DModel"
CLASSES = (CLASS, "Transformer2DModel")  # the second is what it was called before it had a class of its own
_MOST_BYTES = 2**20
_OF_OTHERS = (  # settings of the older class that a DiT leaves empty
    "cross_attention_dim", "num_vector_embeds", "use_linear_projection", "only_cross_attention",
    "double_self_attention", "attention_type", "caption_channels", "interpolation_scale",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What config.json may say: that of which this program's network is one."""

    num_attention_heads: Annotated[int, Range(1, 65_536)] = 16
    attention_head_dim: Annotated[int, Range(1, 65_536)] = 72
    in_channels: Annotated[int, Range(1, 65_536)] = 4
    out_channels: Annotated[int, Range(1, 131_072)] | None = None
    num_layers: Annotated[int, Range(1, 1_000)] = 28
    dropout: Annotated[float, Range(0, 1)] = 0.0
    norm_num_groups: Annotated[int, Range(1, 65_536)] = 32
    attention_bias: Literal[True] = True
    sample_size: Annotated[int, Range(1, 65_536)] = 32
    patch_size: Annotated[int, Range(1, 4_096)] = 2
    activation_fn: Literal["gelu-approximate"] = "gelu-approximate"
    num_embeds_ada_norm: Annotated[int, Range(1, 10**7)] = 1000
    upcast_attention: bool = False
    norm_type: Literal["ada_norm_zero"] = "ada_norm_zero"
    norm_elementwise_affine: Literal[False] = False
    norm_eps: Annotated[float, Range(0, 1)] = 1e-5


def settings_of(path: Path) -> Settings:
    """Of a folder. Raises CheckpointError for what is no DiT of this program's kind."""
    try:
        plain = read_mapping(path / CONFIG, _MOST_BYTES)
        if plain.get("_class_name") not in CLASSES:
            raise ValueError(f"it does not describe a {CLASS}")
        said = {name: value for name, value in plain.items() if not name.startswith("_")}
        return build(Settings, {name: value for name, value in said.items() if value or name not in _OF_OTHERS})
    except OSError as error:
        raise CheckpointError(f"{path / CONFIG} cannot be read: {error.strerror or error}; restore it") from error
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{path / CONFIG} is not of a network that this program has: {error}") from error


def shapes_of(settings: Settings, d: int) -> dict[str, tuple[int, ...]]:
    """Of a width d, by name."""
    p, channels = settings.patch_size, settings.in_channels
    layers = {"proj_out_1": (2 * d, d), "proj_out_2": (p * p * (settings.out_channels or channels), d)}
    for index in range(settings.num_layers):
        block = {
            "norm1.emb.timestep_embedder.linear_1": (d, 256), "norm1.emb.timestep_embedder.linear_2": (d, d),
            "norm1.linear": (6 * d, d), **{f"attn1.to_{name}": (d, d) for name in ("q", "k", "v", "out.0")},
            "ff.net.0.proj": (4 * d, d), "ff.net.2": (d, 4 * d),
        }
        layers |= {f"transformer_blocks.{index}.{name}": shape for name, shape in block.items()}
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    shapes |= {"pos_embed.proj.weight": (d, channels, p, p), "pos_embed.proj.bias": (d,)}
    return shapes | {
        f"transformer_blocks.{index}.norm1.emb.class_embedder.embedding_table.weight":
        (settings.num_embeds_ada_norm + 1, d) for index in range(settings.num_layers)
    }
