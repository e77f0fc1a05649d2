"""A network kind is one file and one line in models/table.py: here a class of the test's own and an entry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from afm_scale.__main__ import main
from afm_scale.models.layers import DefaultLinear, LabelTable
from afm_scale.models.network_config import NetworkConfig
from afm_scale.models.table import GENERATORS
from tests.program import SMALL_FLOW_MATCHING


@dataclass(frozen=True, kw_only=True)
class PixelwiseConfig(NetworkConfig):
    """One hidden layer over the pixels of a sample, its time and its class."""

    kind: Literal["pixelwise"] = "pixelwise"
    width: int
    times: ClassVar[str] = "both"
    takes_no_class: ClassVar[bool] = False
    no_class_setting: ClassVar[str] = "kind"


class Pixelwise(nn.Module):
    repetitions = 1
    passes = ()

    def __init__(self, config: PixelwiseConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        num_pixels = shape[0] * shape[1] * shape[2]
        self.first, self.last = DefaultLinear(num_pixels + 2, config.width), DefaultLinear(config.width, num_pixels)
        self.label = LabelTable(num_classes, config.width)

    def shardable_blocks(self) -> list[nn.Module]:
        return []

    def forward(self, x: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        given = torch.cat((x.flatten(1), s[:, None].to(x.dtype), t[:, None].to(x.dtype)), dim=1)
        return self.last(torch.relu(self.first(given) + self.label(y))).view_as(x).clone()


RECIPE = (
    "digits_flow_matching", *SMALL_FLOW_MATCHING[-4:], "model.generator={kind: pixelwise, width: 8}", "loop.steps=2",
    "hooks.metrics.every_steps=1", "parallel.device=cpu",
)


def test_it_trains_resumes_and_draws_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GENERATORS, PixelwiseConfig, Pixelwise)
    folder = tmp_path / "run"
    assert main(["train", *RECIPE, f"run.folder={folder}"]) == 0
    assert main(["train", *RECIPE, f"run.folder={folder}", "loop.steps=3"]) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and all(row["generator/grad_norm"] > 0 for row in rows)
    assert main(["sample", str(folder), "--out", str(tmp_path / "drawn"), "--num", "3"]) == 0
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 3


def test_without_its_line_the_kinds_there_are_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *RECIPE, f"run.folder={tmp_path}"]) == 2
    wanted = "wanted one of 'dit', 'dit_diffusion', 'mlp', 'diffusers'"
    assert f"model.generator.kind: found 'pixelwise', {wanted}" in capsys.readouterr().err
