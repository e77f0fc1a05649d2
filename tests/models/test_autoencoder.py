"""The wrapper around diffusers' autoencoder, and reading one from a folder."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from afm_scale.core.errors import ConfigError
from afm_scale.data.images_to_latents import ImagesToLatentsConfig
from afm_scale.models.autoencoder import Autoencoder
from afm_scale.models.diffusers import WEIGHTS_NAME, read_autoencoder
from afm_scale.models.encoding import build_encoder
from tests.models.small_autoencoder import saved_autoencoder, small_autoencoder

SCALE = 0.3


@pytest.fixture(scope="module")
def network() -> AutoencoderKL:
    return small_autoencoder()


def pixels(num: int = 3) -> torch.Tensor:
    return torch.rand(num, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_moments_are_those_of_the_network(network):
    mean, deviation = Autoencoder(network, scale=SCALE).moments(pixels())
    posterior = network.encode(pixels()).latent_dist
    assert mean.shape == (3, 4, 8, 8) and mean.dtype == deviation.dtype == torch.float32
    assert torch.equal(mean, posterior.mean) and torch.equal(deviation, posterior.std)
    assert not mean.requires_grad and not mean.is_inference()


def test_decoding_is_the_networks_own_on_unscaled_latents(network):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    decoded = Autoencoder(network, scale=SCALE, precision="bf16").decode(latents)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, network.decode(latents / SCALE).sample)


def test_a_shift_is_taken_off_when_encoding_and_added_when_decoding(network):
    shifted, plain = (Autoencoder(network, scale=SCALE, shift=shift) for shift in (0.0609, 0.0))
    mean, deviation = shifted.moments(pixels())
    assert torch.equal(mean, plain.moments(pixels())[0] - 0.0609)
    assert torch.equal(deviation, plain.moments(pixels())[1])
    assert torch.equal(shifted.decode(SCALE * mean), network.decode(SCALE * mean / SCALE + 0.0609).sample)


@pytest.mark.parametrize(("scale", "shift"), [(1.5305, 0.0609), (0.3611, 0.1159), (0.18215, None)])
def test_scale_and_shift_of_published_descriptions_are_read(tmp_path, scale, shift):
    config = saved_autoencoder(tmp_path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": scale, "shift_factor": shift}))
    found = read_autoencoder(str(tmp_path))
    assert (found.scale, found.shift) == (scale, shift or 0.0)
    recipe = ImagesToLatentsConfig(global_batch=2, folder=tmp_path, vae=str(tmp_path), scale=scale, shift=9.0)
    with pytest.raises(ConfigError, match=f"data.shift is 9.0, .* says {shift or 0.0} .*set data.shift={shift or 0.0}"):
        build_encoder(recipe, torch.device("cpu"))


@pytest.mark.parametrize("name", ["latents_mean", "latents_std"])
def test_a_normalisation_channel_by_channel_is_refused_and_not_left_out(tmp_path, name):
    config = saved_autoencoder(tmp_path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), name: [0.5] * 4}))
    with pytest.raises(ConfigError, match="normalised channel by channel, are not read"):
        read_autoencoder(str(tmp_path))


def test_encoding_in_bfloat16_is_near_and_returns_float32(network):
    exact, _ = Autoencoder(network, scale=SCALE).moments(pixels())
    mean, deviation = Autoencoder(network, scale=SCALE, precision="bf16").moments(pixels())
    assert mean.dtype == deviation.dtype == torch.float32
    error = (mean - exact).abs().max() / exact.abs().max()
    assert 0 < error < 0.05


def test_the_weights_are_frozen_and_stay_in_evaluation_mode(network):
    whole = torch.nn.Sequential(Autoencoder(network, scale=SCALE)).train()
    assert not any(module.training for module in whole[0].modules())
    assert not any(parameter.requires_grad for parameter in whole.parameters())


def test_an_autoencoder_is_read_as_it_was_saved(network, tmp_path):
    found = read_autoencoder(str(saved_autoencoder(tmp_path / "tiny")))
    assert found.name == "tiny" and found.weights == tmp_path / "tiny" / WEIGHTS_NAME
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.network.state_dict().items())


def test_weights_in_a_pickle_are_refused(tmp_path):
    folder = saved_autoencoder(tmp_path / "tiny")
    (folder / WEIGHTS_NAME).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(ConfigError, match="no diffusion_pytorch_model.safetensors; wanted a folder of an"):
        read_autoencoder(str(folder))


def test_damaged_weights_are_refused_with_their_folder(tmp_path):
    folder = saved_autoencoder(tmp_path / "tiny")
    weights = folder / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="tiny cannot be read as an AutoencoderKL"):
        read_autoencoder(str(folder))


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def test_the_published_weights_older_names_are_understood(network, tmp_path):
    weights = saved_autoencoder(tmp_path / "tiny") / WEIGHTS_NAME
    tensors = {}
    for name, value in load_file(weights).items():
        for new, old in OLD_NAMES.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        tensors[name] = value.clone()
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in tensors
    save_file(tensors, weights)
    found = read_autoencoder(str(tmp_path / "tiny")).network.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_weights_of_another_network_are_refused(tmp_path, change):
    weights = saved_autoencoder(tmp_path / "tiny") / WEIGHTS_NAME
    tensors = load_file(weights)
    if change == "missing":
        del tensors["quant_conv.bias"]
    else:
        tensors["quant_conv.bias" + ".more" * (change == "surplus")] = torch.zeros(3)
    save_file({name: value.clone() for name, value in tensors.items()}, weights)
    with pytest.raises(ConfigError, match="quant_conv.bias"):
        read_autoencoder(str(tmp_path / "tiny"))


def test_a_name_that_is_no_folder_asks_for_one(tmp_path):
    with pytest.raises(ConfigError, match=r"is no folder here.*give a local folder"):
        read_autoencoder(str(tmp_path / "nothing" / "here"))
