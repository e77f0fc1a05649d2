"""A generator that is a transformer of diffusers, as a folder that diffusers loads, with a script that draws from it.

    transformer/               config.json and safetensors: `from_pretrained` of its class
    lora/                      in its place, of adapters: the folder for `load_lora_weights` of a pipeline
    second_time.safetensors    what tells it intervals, where it is told some
    sample.py                  draws in one or a few steps, with diffusers and torch alone
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..checkpoint.formats.format import Lazy, Source
from ..checkpoint.formats.output import new_file, write_json
from ..checkpoint.formats.safetensors import single_part, write_shards
from ..checkpoint.formats.safetensors_file import write_safetensors
from ..core.errors import CheckpointError
from ..core.files import read_regular, write_atomically
from ..core.typed import build
from ..core.types import Role
from ..models.large.config import DiffusersConfig
from ..models.weights_file import CONFIG_NAME, WEIGHTS_NAME

SECOND_TIME, SCRIPT = "second_time.safetensors", "sample.py"
# A folder of its own: diffusers takes the only file of weights in it.
ADAPTERS, ADAPTER_WEIGHTS = "lora", "pytorch_lora_weights.safetensors"
_MOST_BYTES = 10**10  # of a file, as diffusers has it
_HEAD = {"format": "pt"}
_STEM = WEIGHTS_NAME.removesuffix(".safetensors")
_SCRIPTS = Path(__file__).parent.parent / "models" / "large" / "scripts"


def write_for_diffusers(source: Source, folder: Path) -> list[str]:
    """Into a folder that is there; returns what it has written."""
    config: DiffusersConfig = build(DiffusersConfig, source.card().networks[Role.GENERATOR], ("generator",))
    _, tensors = single_part(source.tensors)
    parts = {
        part: {name.removeprefix(f"{part}."): lazy for name, lazy in tensors.items() if name.startswith(f"{part}.")}
        for part in ("transformer", "second_time")
    }
    if sum(map(len, parts.values())) != len(tensors) or not parts["transformer"]:
        raise CheckpointError(f"{source.path} holds other tensors than those of {config.class_name}; use another copy")
    written = [(_write_whole if config.lora is None else _write_adapters)(config, parts["transformer"], folder)]
    if parts["second_time"]:
        with new_file(folder / SECOND_TIME) as file:
            write_safetensors(file, parts["second_time"], _HEAD)
        script = read_regular(_SCRIPTS / f"{config.adapter.script}.py.txt")
        write_atomically(folder / SCRIPT, lambda file: file.write(script))
        written += [SECOND_TIME, SCRIPT]
    return written


def _write_whole(config: DiffusersConfig, tensors: Mapping[str, Lazy], folder: Path) -> str:
    (folder / "transformer").mkdir()
    write_shards(folder / "transformer", tensors, _HEAD, _MOST_BYTES, stem=_STEM)
    write_json(folder / "transformer" / CONFIG_NAME, {"_class_name": config.class_name, **config.settings})
    return "transformer"


def _write_adapters(config: DiffusersConfig, tensors: Mapping[str, Lazy], folder: Path) -> str:
    """As diffusers' `save_lora_weights` does, which keeps rank and alpha in the head of the file."""
    from ..models.large.lora import ADAPTER, saved_settings

    named = {
        f"transformer.{name.replace(f'.{ADAPTER}.', '.')}": lazy for name, lazy in tensors.items() if "lora_" in name
    }
    told = {f"transformer.{name}": value for name, value in saved_settings(config.lora).items()}
    (folder / ADAPTERS).mkdir()
    with new_file(folder / ADAPTERS / ADAPTER_WEIGHTS) as file:
        write_safetensors(file, named, {**_HEAD, "lora_adapter_metadata": json.dumps(told)})
    return ADAPTERS


USE = (
    "```sh", 'python sample.py --pipeline PIPELINE --prompt "a red cube" --steps 1', "```", "",
    "PIPELINE is the one whose text encoder and autoencoder the training data were made with; `sample.py` says more. "
    "Without it, `transformer/` is the flow model, for a pipeline of many steps; of adapters there is `lora/` in its "
    "place, for `load_lora_weights` of a pipeline of their base.",
)
"""A page's words on how it is used, for those who have no afm_scale."""
