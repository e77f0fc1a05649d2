"""What the pipeline that weights belong to says of times, beside what the adapters here take them to be.

All adapters train a flow: x_t = (1 - t) data + t noise, t in [0, 1] told in thousandths, velocity noise - data. A
pipeline's scheduler/scheduler_config.json beside its transformer says which process the weights were trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError
from ...core.strict_json import read_mapping

_FILE = Path("scheduler", "scheduler_config.json")
_OF_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
_OF_FLOWS_TOO = (  # if they are told so
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
)
_TIMES = 1000


def check_scheduler(weights: Path) -> None:
    """Raises ConfigError if a pipeline's scheduler beside these weights is of another process, or cannot be read.

    `weights`: the folder of a transformer. Nothing is wrong where it stands alone.
    """
    path = weights.absolute().parent / _FILE
    if not path.exists():
        return
    try:
        plain = read_mapping(path, 2**20)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.generator.weights {weights}: {path} cannot be read ({getattr(error, 'strerror', None) or error}); "
            "restore it"
        ) from None
    wrong = _contradiction(plain)
    if wrong is not None:
        raise ConfigError(
            f"model.generator.weights {weights}: {path} says {wrong}; wanted weights of a flow from data to noise "
            f"whose times 0 to 1 are told in {_TIMES} parts. Give such weights, or, if these are and the file is "
            "another's, the transformer's folder by itself"
        )


def _contradiction(plain: Mapping[str, Any]) -> str | None:
    name = plain.get("_class_name")
    if name in _OF_FLOWS_TOO:
        predicted, by_flow = plain.get("prediction_type"), plain.get("use_flow_sigmas")
        if predicted != "flow_prediction" or by_flow is not True:
            return f"{name} with prediction_type {predicted!r} and use_flow_sigmas {by_flow!r}"
    elif name not in _OF_FLOWS:
        return f"{name!r}, whose times are not known here"
    if plain.get("invert_sigmas", False):
        return "invert_sigmas true: its times run from noise to data"
    times = plain.get("num_train_timesteps", _TIMES)
    return None if times == _TIMES else f"num_train_timesteps {times!r}"
