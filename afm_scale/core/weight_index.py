"""Which file holds which tensor of a model in several files, by an index as diffusers and transformers write it."""

from __future__ import annotations

from pathlib import Path

from .strict_json import read_mapping


def read_weight_index(path: Path) -> dict[str, str]:
    """The name of a safetensors file beside the index, for the name of each tensor.

    Raises OSError as `read_regular` does, and ValueError, whose words go into a message, for anything else: readers of
    other programs would follow it out of its folder, or unpickle what is no safetensors file by its name.
    """
    places = read_mapping(path).get("weight_map")
    if not isinstance(places, dict):
        raise ValueError("it has no weight_map of names to files")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"it names {str(name)[:80]!r}, which is no safetensors file beside it")
    return places
