"""Weights whose own pipeline says that they are of another process are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afm_scale.core.errors import ConfigError
from afm_scale.models.large.scheduler import check_scheduler
from tests.models.large.small import described

EULER, SOLVER = "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"


def beside(folder: Path, name: str, **settings: Any) -> Path:
    """The folder of a transformer in a pipeline with this scheduler, as diffusers writes it."""
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": name, **settings}))
    (folder / "transformer").mkdir()
    return folder / "transformer"


@pytest.mark.parametrize(("name", "settings"), [
    (EULER, {"num_train_timesteps": 1000, "shift": 3.0, "invert_sigmas": False}),
    (EULER, {"num_train_timesteps": 1000, "use_dynamic_shifting": True, "base_shift": 0.5}),
    (SOLVER, {"num_train_timesteps": 1000, "prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
])
def test_a_flow_is_taken_whatever_its_shift(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    check_scheduler(beside(tmp_path, name, **settings))


@pytest.mark.parametrize(("name", "settings", "told"), [
    ("DDIMScheduler", {"prediction_type": "epsilon"}, "'DDIMScheduler', whose times are not known"),
    (SOLVER, {"prediction_type": "epsilon", "use_flow_sigmas": False}, "'epsilon' and use_flow_sigmas False"),
    (SOLVER, {"prediction_type": "v_prediction", "use_flow_sigmas": True}, "'v_prediction'"),
    (EULER, {"num_train_timesteps": 100}, "num_train_timesteps 100"),
    (EULER, {"invert_sigmas": True}, "from noise to data"),
])
def test_another_process_is_refused_with_what_the_file_says(
    tmp_path: Path, name: str, settings: dict[str, Any], told: str
) -> None:
    weights = beside(tmp_path, name, **settings)
    with pytest.raises(ConfigError, match=told) as error:
        described(weights=weights).resolved()
    assert str(tmp_path / "scheduler" / "scheduler_config.json") in str(error.value)


def test_a_transformer_by_itself_is_taken_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    weights = tmp_path / "transformer"
    weights.mkdir()
    check_scheduler(weights)
    (tmp_path / "scheduler").mkdir()
    for text in ("{", json.dumps([])):
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(text)
        with pytest.raises(ConfigError, match="cannot be read"):
            check_scheduler(weights)
