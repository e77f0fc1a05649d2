"""The DiT backbone (arXiv 2212.09748) shared by generator, discriminator and classifier.

Legend: B batch, N tokens, d width, p patch size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.network import Entry, Shared
from ..core.ranges import Range
from ..core.sinusoids import sincos_positions
from ..ops.block import gated_residual, modulated_norm
from .layers import Attention, Linear, Mlp, PatchEmbed, zeros
from .network_config import BlockSize, NetworkConfig


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(NetworkConfig):
    """The size of a DiT. B, M, L and XL with patch 2 are in configs/model."""

    patch_size: Annotated[int, Range(1, 4_096)]  # of a side: positions of a sample that make one token
    hidden_size: Annotated[int, Range(4, 1_048_576)]  # width; a multiple of num_heads and of 4
    depth: Annotated[int, Range(1, 1_000)]  # blocks
    num_heads: Annotated[int, Range(1, 65_536)]  # of attention
    qk_norm: bool = False  # off as published (TF32); bf16 was unstable without it

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise ConfigError(
                f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads} and of 4 "
                "(two sinusoids for each of two axes)"
            )

    @property
    def block_size(self) -> BlockSize:
        return BlockSize(self.hidden_size, self.num_heads)

    def num_tokens(self, shape: tuple[int, int, int]) -> int:
        """Of a sample [C, H, W]; a token that a network adds does not count."""
        return (shape[1] // self.patch_size) * (shape[2] // self.patch_size)


class Block(nn.Module):
    """Attention and MLP, each modulated and gated by the condition (adaLN-zero: the gates start at 0)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attn = Attention(config.hidden_size, config.num_heads, qk_norm=config.qk_norm)
        self.mlp = Mlp(config.hidden_size)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), Linear(config.hidden_size, 6 * config.hidden_size, start=zeros)
        )

    def large_linears(self) -> list[nn.Linear]:
        return [self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2]

    def share(self, parts: int, entry: Entry) -> list[Shared]:
        """Makes this one of `parts` that share the work; what is replaced where is for the plan to do.

        The condition's modulation is not shared. Raises ConfigError if the heads cannot be divided so.
        """
        return [*self.attn.share(parts, entry), *self.mlp.share()]

    def forward(self, x: Tensor, c: Tensor, first_only: bool = False) -> Tensor:
        """x [B, N, d], c [B, d] -> [B, N, d]; with `first_only` the first token alone, [B, 1, d]."""
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        attended = self.attn(modulated_norm(x, shift_attn, scale_attn), first_only=first_only)
        x = gated_residual(x[:, :1] if first_only else x, gate_attn, attended)
        return gated_residual(x, gate_mlp, self.mlp(modulated_norm(x, shift_mlp, scale_mlp)))


class FinalLayer(nn.Module):
    """[B, N, d] -> [B, N, p * p * C]; starts at zero."""

    def __init__(self, hidden_size: int, num_out: int) -> None:
        super().__init__()
        self.linear = Linear(hidden_size, num_out, start=zeros)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(hidden_size, 2 * hidden_size, start=zeros))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulated_norm(x, shift, scale))


class Backbone(nn.Module):
    """Patches with positions, and the stack of blocks. Subclasses add conditions and heads."""

    repetitions = 1  # of the stack in one forward
    passes = ("run_blocks", "read_first")

    def __init__(self, config: BackboneConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        num_channels, height, width = shape
        if height % config.patch_size or width % config.patch_size:
            raise ConfigError(f"samples of {height} x {width} do not divide into patches of {config.patch_size}")
        self.grid = (height // config.patch_size, width // config.patch_size)
        self.patch_size = config.patch_size
        self.x_embedder = PatchEmbed(num_channels, config.patch_size, config.hidden_size)
        self.register_buffer("pos_embed", torch.empty(1, self.grid[0] * self.grid[1], config.hidden_size))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.block_dtype: torch.dtype | None = None  # what the blocks compute in; None: the dtype of their inputs

    def initial(self, name: str, generator: torch.Generator) -> Tensor:
        assert name == "pos_embed", name
        return sincos_positions(self.pos_embed.shape[-1], *self.grid)

    def shardable_blocks(self) -> list[nn.Module]:
        """The modules a plan may shard, recompute and compile one by one, in forward order."""
        return list(self.blocks)

    def large_linears(self) -> list[nn.Linear]:
        """The layers that do nearly all of the work: one row for each token. Those of the condition have one a sample.
        """
        return [linear for block in self.blocks for linear in block.large_linears()]

    def compute_blocks_in(self, dtype: torch.dtype) -> None:
        """Everything outside of the blocks stays as it is: embedders, sinusoids, final LayerNorms, heads, outputs."""
        self.block_dtype = dtype

    def run_blocks(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """One pass through the stack, which a plan may recompute as one: [B, N, d] and [B, d] -> [B, N, d]."""
        given, (tokens, condition) = tokens.dtype, self._lowered(tokens, condition)
        for block in self.blocks:
            tokens = block(tokens, condition)
        return tokens.to(given)

    def read_first(self, tokens: Tensor, condition: Tensor, precise: bool = False) -> Tensor:
        """What `run_blocks` makes of the first token, [B, d]; recomputed as one too.

        The last block's other rows would be thrown away, so it asks the query, the projection and the MLP of the
        first token alone: 3% of a discriminator's work at XL, 7% at B. With `precise` nothing is lowered to
        `block_dtype`. That is an argument, and no mode, because a recomputation knows the arguments alone.
        """
        given, (tokens, condition) = tokens.dtype, self._lowered(tokens, condition, precise)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens, condition)
        return last(tokens, condition, True)[:, 0].to(given)

    def _lowered(self, tokens: Tensor, condition: Tensor, precise: bool = False) -> tuple[Tensor, Tensor]:
        dtype = tokens.dtype if precise or self.block_dtype is None else self.block_dtype
        return tokens.to(dtype), condition.to(dtype)

    def tokens(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, d] with positions added."""
        return self.x_embedder(x) + self.pos_embed

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """[B, N, p * p * C] -> [B, C, H, W]."""
        p, (rows, columns) = self.patch_size, self.grid
        patches = tokens.unflatten(1, (rows, columns)).unflatten(-1, (p, p, -1))  # [B, rows, columns, p, p, C]
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, rows * p, columns * p)
