"""The counted step of every recipe: what is called, and how often."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, ConfigError
from afm_scale.core.types import Batch, Loss, Networks, Role, Turn
from afm_scale.estimate.demand import step_flops_per_sample
from afm_scale.run.config import RunConfig
from afm_scale.run.forecast.counting import step_flops
from afm_scale.run.load import RECIPES, load

NAMES = [
    pytest.param(name, marks=pytest.mark.slow if name.startswith("afm_") else ())
    for name in sorted(file.stem for file in RECIPES.glob("*.yaml"))
]


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_s_step_is_counted(name: str) -> None:
    """With its own objective and all that it asks; narrow and shallow, which changes no call."""
    config = load(RunConfig, name)
    overrides = []
    for part in ("generator", "discriminator", "classifier"):
        network = getattr(config.model, part)
        if network is not None and network.kind == "dit":
            overrides += [f"model.{part}.{size}" for size in ("depth=1", "hidden_size=32", "num_heads=2")]
        elif network is not None and network.kind == "diffusers":
            overrides.append(f"model.{part}.config.num_layers=1")
    assert step_flops(load(RunConfig, name, overrides)) > 0


class Layer(nn.Linear):
    """A network of 10 x 10 weights that is called with anything more."""

    def __init__(self) -> None:
        super().__init__(10, 10, bias=False, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


class Called:
    """An objective that calls what it is told to, once each."""

    def turns(self, step: int) -> tuple[Turn, ...]:
        return ((Role.GENERATOR,),)

    def loss(self, role: Role, nets: Networks, batch: Batch, draws: object, step: int) -> Loss:
        with torch.no_grad():
            target = nets.averages["target"](batch.x) + nets.frozen["teacher"](batch.x)
        total = (nets.generator(batch.x) - target).square().mean()
        return Loss(total, {})


def test_what_learns_is_counted_forward_and_backward_and_what_does_not_forward_alone() -> None:
    one = 2 * 10 * 10
    found = step_flops_per_sample(
        {Role.GENERATOR: Layer()}, {"average": Layer(), "target": Layer()}, {"teacher": Layer()}, Called(), (10, 1, 1)
    )
    assert found == {  # the inputs of a first layer need no gradient
        ("generator", "target forward"): one, ("generator", "teacher forward"): one,
        ("generator", "generator forward"): one, ("generator", "generator backward"): one,
    }


VELOCITY = ("objective.guidance={kind: velocity, weight: 1.0, low: 0.0, high: 0.5}",)


def test_a_recipe_guided_by_a_flow_model_is_counted_with_it(tmp_path: Path) -> None:
    flow = tmp_path / "flow"
    assert main([
        "train", "mixture2d_flow_matching", f"run.folder={flow}", "objective.class_dropout=0.1", "loop.steps=0",
        "parallel.device=cpu", "report=null", "hooks.metrics.tensorboard=false",
    ]) == EXIT_DONE
    plain = step_flops(load(RunConfig, "mixture2d_afm"))
    guided = step_flops(load(RunConfig, "mixture2d_afm", [*VELOCITY, f"model.flow={flow}"]))
    alone = step_flops(load(RunConfig, "mixture2d_flow_matching"))
    assert guided - plain == pytest.approx(2 / 3 * alone, rel=0.2)  # without and with the class, forward alone
    with pytest.raises(ConfigError, match="model.flow: .*nowhere"):
        step_flops(load(RunConfig, "mixture2d_afm", [*VELOCITY, f"model.flow={tmp_path / 'nowhere'}"]))
