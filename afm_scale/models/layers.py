"""Building blocks of the diffusion transformer (DiT, arXiv 2212.09748), each of which knows how its tensors start.

Modules are built on the meta device. `initial_weights` yields the starting value of every parameter and
buffer by name, each from its own random generator, so a network starts the same however it is sharded.
Parameter names are those of the published DiT and AFM checkpoints.

Legend: B batch, N tokens, d width, H x W pixels, p patch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.conditions import Conditions
from ..core.errors import ConfigError
from ..core.network import Entry, Shared
from ..core.random import tensor_generator
from ..core.sinusoids import NUM_FREQUENCIES, TimeEmbedding, time_sinusoids
from ..core.types import NO_CLASS
from ..ops.attention import attention

Initialiser = Callable[[tuple[int, ...], torch.Generator], Tensor]


def zeros(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.zeros(shape)


def xavier_uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Glorot and Bengio (2010) on the matrix [shape[0], the rest]."""
    fan_out, fan_in = shape[0], math.prod(shape[1:])
    bound = math.sqrt(6 / (fan_in + fan_out))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def small_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape).normal_(std=0.02, generator=generator)


def initial_weights(network: nn.Module, *context: object) -> Iterator[tuple[str, Tensor]]:
    """(name, full float32 CPU tensor) of every parameter and kept buffer, as a function of context and name.

    Every module that owns tensors directly has `initial(name, generator) -> Tensor`.
    """
    for prefix, module in network.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        unkept = module._non_persistent_buffers_set  # of who computes them
        own += [name for name, _ in module.named_buffers(recurse=False) if name not in unkept]
        for name in own:
            full_name = f"{prefix}.{name}" if prefix else name
            yield full_name, module.initial(name, tensor_generator("weights", *context, full_name))


def in_dtype_of(x: Tensor, *parameters: Tensor | None) -> list[Tensor | None]:
    """Parameters as a computation on x needs them.

    Cast for every use, so that the gradients of all uses add up in the dtype in which the parameters are kept.
    """
    return [None if parameter is None else parameter.to(x.dtype) for parameter in parameters]


class Linear(nn.Linear):
    """A linear layer whose weight starts as told and whose bias starts at zero; it computes in the dtype of its input.
    """

    def __init__(self, num_in: int, num_out: int, *, bias: bool = True, start: Initialiser = xavier_uniform) -> None:
        super().__init__(num_in, num_out, bias=bias)
        self._start = start

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *in_dtype_of(x, self.weight, self.bias))

    def initial(self, name: str, generator: torch.Generator) -> Tensor:
        return self._start(tuple(self.weight.shape), generator) if name == "weight" else torch.zeros(self.out_features)


class DefaultLinear(nn.Linear):
    """A linear layer with PyTorch's own start: uniform within 1 / sqrt(inputs), the bias too."""

    def initial(self, name: str, generator: torch.Generator) -> Tensor:
        bound = 1 / math.sqrt(self.in_features)
        shape = self.weight.shape if name == "weight" else self.bias.shape
        return torch.empty(tuple(shape)).uniform_(-bound, bound, generator=generator)


class PatchEmbed(nn.Module):
    """[B, C, H, W] -> [B, N, d], one token for each p x p patch, row by row."""

    def __init__(self, num_channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = PatchProjection(num_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class PatchProjection(nn.Conv2d):
    """[B, C, H, W] -> [B, N, d], with the weight of a convolution [d, C, p, p] as published checkpoints have it.

    Patches do not overlap, so it is one matrix product: on a CPU 2 to 13 times as fast as the convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(x, self.stride[0]).flatten(2).transpose(1, 2)  # [B, N, C p p]
        # Contiguous: else torch takes a product that rounds otherwise where the weight does not require grad.
        return F.linear(patches.contiguous(), self.weight.flatten(1), self.bias)

    def initial(self, name: str, generator: torch.Generator) -> Tensor:
        if name == "weight":
            return xavier_uniform(tuple(self.weight.shape), generator)
        return torch.zeros(self.out_channels)


class LabelEmbedder(nn.Module):
    """[B] int64 -> [B, d]. AFM always tells the label; with `null_class` there is a last row for NO_CLASS."""

    def __init__(self, num_classes: int, hidden_size: int, *, null_class: bool = False) -> None:
        super().__init__()
        self.null_row = num_classes if null_class else None
        self.embedding_table = LabelTable(num_classes + null_class, hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y if self.null_row is None else y.masked_fill(y == NO_CLASS, self.null_row))


class PooledEmbedder(nn.Module):
    """Rows of conditions -> [B, d]: a linear layer of what an encoder gives for a whole prompt."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = Linear(width, hidden_size)

    def forward(self, y: Conditions) -> Tensor:
        return self.proj(y.pooled.to(self.proj.weight.dtype))


class LabelTable(nn.Embedding):
    def reset_parameters(self) -> None:
        """Nothing: `initial` decides; and on the meta device torch's own start would import its compiler, a second."""

    def initial(self, name: str, generator: torch.Generator) -> Tensor:
        return small_normal(tuple(self.weight.shape), generator)


class TimestepEmbedder(nn.Module):
    """[B] float32 in [0, 1] -> [B, d]. The factor 1000 lives here; sinusoids are computed in float32, then widened.

    `last`: how the last layer's weight starts.
    """

    def __init__(
        self, hidden_size: int, embedding: TimeEmbedding = "dit", last: Initialiser = small_normal
    ) -> None:
        super().__init__()
        self._embedding = embedding
        self.mlp = nn.Sequential(
            Linear(2 * NUM_FREQUENCIES, hidden_size, start=small_normal),
            nn.SiLU(),
            Linear(hidden_size, hidden_size, start=last),
        )

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(time_sinusoids(self._embedding, t).to(self.mlp[0].weight.dtype))


class SignEmbedder(nn.Module):
    """[B] times -> [B, d]: a learnt vector where the time is negative, zero elsewhere."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.empty(hidden_size))

    def forward(self, t: Tensor) -> Tensor:
        return (t < 0).to(self.vector.dtype)[:, None] * self.vector

    def initial(self, name: str, generator: torch.Generator) -> Tensor:
        return small_normal(tuple(self.vector.shape), generator)


class HeadNorm(nn.LayerNorm):
    """LayerNorm over one attention head's width, for QK-norm; in the dtype of its input, its sums in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, *in_dtype_of(x, self.weight, self.bias), self.eps)

    def initial(self, name: str, generator: torch.Generator) -> Tensor:
        return torch.ones(self.normalized_shape) if name == "weight" else torch.zeros(self.normalized_shape)


class Attention(nn.Module):
    """Multi-head self-attention over [B, N, d], with query, key and value in one projection."""

    def __init__(self, hidden_size: int, num_heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_size = hidden_size // num_heads
        self.qkv = Linear(hidden_size, 3 * hidden_size)
        self.q_norm = HeadNorm(head_size, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = HeadNorm(head_size, eps=1e-6) if qk_norm else nn.Identity()
        self.proj = Linear(hidden_size, hidden_size)
        self._entry: Entry | None = None  # of shared work

    def share(self, parts: int, entry: Entry) -> list[Shared]:
        """Makes this one of `parts`, each with as many heads. Raises ConfigError if they cannot be divided so."""
        if self.num_heads % parts:
            raise ConfigError(f"{self.num_heads} attention heads cannot be shared by {parts} ranks")
        self.num_heads //= parts
        self._entry = entry
        return [
            Shared(self, "qkv", "column", stacked=3), Shared(self, "q_norm", "partial"),
            Shared(self, "k_norm", "partial"), Shared(self, "proj", "row"),
        ]

    def forward(self, x: Tensor, *, first_only: bool = False) -> Tensor:
        """x [B, N, d] -> [B, N, d]; with `first_only` the first token's row alone, [B, 1, d]."""
        if first_only:
            q, k, v = self._first_query(x)
        else:
            qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [B, N, 3, heads, d / heads]
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _first_query(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The query of the first token [B, heads, 1, d / heads], keys and values of all [B, heads, N, d / heads]."""
        x = x if self._entry is None else self._entry(x)
        weight, bias = in_dtype_of(x, self.qkv.weight, self.qkv.bias)
        d = len(weight) // 3  # the width, or this rank's share of it
        weights, biases = weight.split([d, 2 * d]), bias.split([d, 2 * d])
        q = F.linear(x[:, :1], weights[0], biases[0]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        kv = F.linear(x, weights[1], biases[1]).unflatten(-1, (2, self.num_heads, -1))  # [B, N, 2, heads, d / heads]
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


class Mlp(nn.Module):
    """Linear, tanh-GELU, Linear."""

    def __init__(self, hidden_size: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = Linear(hidden_size, ratio * hidden_size)
        self.fc2 = Linear(ratio * hidden_size, hidden_size)

    def share(self) -> list[Shared]:
        return [Shared(self, "fc1", "column"), Shared(self, "fc2", "row")]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
