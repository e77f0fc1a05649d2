"""Low-rank adapters on transformers of diffusers: what learns, what is kept, and what other programs make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from afm_scale.__main__ import main
from afm_scale.core.errors import ConfigError
from afm_scale.core.network import learning
from afm_scale.models.large.lora_config import LoraSettings
from afm_scale.models.layers import initial_weights
from tests.models.large.classes import CLASSES, network, plain, samples
from tests.models.large.small import described
from tests.models.large.small import on_meta as built_on_meta

EACH = pytest.mark.parametrize("name", CLASSES)
TIMES = torch.tensor([0.25, 0.0, 1.0])
LORA = LoraSettings(rank=2, alpha=3.0, targets=("to_q", "to_k"))


def adapted(name: str, folder: Path, lora: LoraSettings = LORA) -> torch.nn.Module:
    """On the pretrained base that lies in a folder, as a recipe begins with it."""
    plain(name, network(name)).save_pretrained(folder)
    one = CLASSES[name]
    config = described(class_name=one.class_name, config=one.settings, weights=folder, lora=lora)
    built = built_on_meta(config).to_empty(device="cpu")
    with torch.no_grad():
        for part, value in initial_weights(built, 0, "generator"):
            built.state_dict()[part].copy_(value)
    return built


@EACH
def test_it_begins_as_the_pretrained_network_bit_for_bit(name, tmp_path) -> None:
    ours, (x, told) = adapted(name, tmp_path), samples(name)
    assert torch.equal(ours(x, TIMES, TIMES, told), CLASSES[name].velocity(plain(name, network(name)), x, TIMES, told))


@EACH
def test_adapters_and_the_second_time_learn_and_nothing_else_does(name, tmp_path) -> None:
    ours, (x, told) = adapted(name, tmp_path), samples(name)
    names = {one for one, _ in learning(ours)}
    assert names and all(".lora_" in one or one.startswith("second_time.") for one in names)
    ours(x, torch.tensor([0.9, 0.5, 0.7]), torch.zeros(3), told).square().mean().backward()
    assert {one for one, parameter in ours.named_parameters() if parameter.grad is not None} == names


def test_a_base_has_to_be_named_to_train(capfd) -> None:
    assert main(["train", "twinflow_qwen_image_lora", "parallel.device=cpu"]) == 2
    assert "give its folder with model.generator.weights=FOLDER" in capfd.readouterr().err


def test_a_target_that_no_layer_answers_to_is_refused_with_the_names_that_there_are(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"'to_w', which no linear layer .* did you mean 'to_.'.*to_k"):
        adapted("sd3", tmp_path, LoraSettings(rank=2, targets=("to_q", "to_w")))
    with pytest.raises(ConfigError, match="'attn', which .* is no linear layer|'attn', which no linear layer"):
        adapted("sd3", tmp_path, LoraSettings(rank=2, targets=("attn",)))
