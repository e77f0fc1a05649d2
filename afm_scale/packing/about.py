"""What a packed data set is, in the words and numbers that a person wants to know."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ..data.description import DatasetDescription, LatentContent, PromptContent


def about(folder: Path, description: DatasetDescription) -> dict[str, Any]:
    """Facts by name, JSON values, in the order they are printed. Nothing is read: the description says it all."""
    reasons = Counter(refused.reason for refused in description.refused)
    counts = description.class_counts
    return {
        "folder": str(folder),
        "content": _content(description),
        "samples": description.num_samples,
        "classes": description.num_classes,
        "samples of a class": {"fewest": min(counts, default=0), "most": max(counts, default=0)},
        "shards": len(description.shards),
        "bytes": sum(shard.num_bytes for shard in description.shards),
        **({} if description.account is None else {"when packed": {
            "files found": description.account.found, "changed": {
                change.how: change.count for change in description.account.changes
            },
        }}),
        "refused when packed": {"files": len(description.refused), "by reason": dict(reasons.most_common())},
    }


def _content(description: DatasetDescription) -> str:
    content = description.content
    if isinstance(content, PromptContent):
        encoder, pooled = content.encoder, f" and {content.pooled} pooled" if content.pooled else ""
        return (
            f"prompts, {content.length} x {content.width}{pooled}, {content.dtype}, by the text encoder of "
            f"{encoder.pipeline} (SHA-256 {encoder.text_encoder_sha256})"
        )
    with_texts = " with texts" if content.texts else ""
    if isinstance(content, LatentContent):
        shift = f", shift {content.shift}" if content.shift else ""
        shape = " x ".join(map(str, content.shape))
        made = f"of {content.vae} (SHA-256 {content.vae_sha256}), scale {content.scale}{shift}"
        return f"latents, {shape}, {made}{with_texts}"
    size = f"{content.size} x {content.size} pixels" if content.size else "of any size"
    encoding = {"original": "the original bytes"}.get(content.encoding, content.encoding)
    return f"{'grey ' if content.channels == 1 else ''}images, {size}, {encoding}{with_texts}"
