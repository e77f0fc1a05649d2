"""The record of an embedded prompt: safetensors of as many tokens as it has, which readers pad to one length."""

from __future__ import annotations

from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .description import PromptContent

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Embedding(NamedTuple):
    """One prompt."""

    tokens: Tensor  # [n, D], 1 <= n <= L
    pooled: Tensor  # [P]


class EmbeddingRecords:
    """Writes and reads the records of one data set; all are held to its shape and dtype."""

    def __init__(self, content: PromptContent) -> None:
        self._content = content
        self.dtype = DTYPES[content.dtype]

    def write(self, embedding: Embedding) -> bytes:
        tensors = {"embeddings": embedding.tokens.contiguous()}
        if self._content.pooled:
            tensors["pooled"] = embedding.pooled.contiguous()
        return save(tensors)

    def read(self, data: bytes) -> Embedding:
        """Raises ValueError if the record holds anything else, or a number that is not finite."""
        content = self._content
        try:
            found = load(bytes(data))
        except SafetensorError as error:
            raise ValueError(f"the record is none of safetensors: {error}") from None
        wanted = {"embeddings": (content.width,), **({"pooled": (content.pooled,)} if content.pooled else {})}
        if found.keys() != wanted.keys():
            raise ValueError(f"the record holds {sorted(found)}, wanted {sorted(wanted)}")
        for name, tensor in found.items():
            fits = tensor.dtype == self.dtype and tensor.dim() >= 1 and tensor.shape[-1:] == wanted[name]
            if not fits or tensor.dim() != (2 if name == "embeddings" else 1):
                raise ValueError(
                    f"{name} of the record is {tensor.dtype} {list(tensor.shape)}, wanted {self.dtype} of "
                    f"{wanted[name][0]} numbers"
                )
            if not bool(tensor.isfinite().all()):
                raise ValueError("the record holds numbers that are not finite")
        tokens = found["embeddings"]
        if not 1 <= len(tokens) <= content.length:
            raise ValueError(f"the record holds {len(tokens)} tokens, wanted 1 to {content.length}")
        return Embedding(tokens, found.get("pooled", tokens.new_empty(0)))
