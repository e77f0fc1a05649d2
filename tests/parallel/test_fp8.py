"""The blocks' large products in fp8, as torchao emulates them; the products of a GPU that has fp8 have not been run."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from afm_scale.core import packages
from afm_scale.core.errors import ConfigError
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.launch import Ranks
from afm_scale.parallel.precision import fp8_error, set_precision
from afm_scale.parallel.recompute import Recompute, recompute
from afm_scale.run.build import build_plan
from afm_scale.run.check import check
from afm_scale.run.checkpoints import on_device
from tests.parallel.test_precision import BF16, asked, discriminator, generator, gradients, recipe, weights_of

with_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")


def lowered(network: Any, *, emulated: bool, kind: str = "none") -> Any:
    network.load_state_dict(weights_of(network))
    if emulated:
        from afm_scale.parallel.fp8 import compute_in_fp8

        compute_in_fp8(network.large_linears(), emulate=True)
    recompute(network, Recompute(kind=kind))
    set_precision(network, "bf16", learns=True)
    return network


def away(found: Tensor, wanted: Tensor) -> float:
    return float(((found - wanted).norm() / wanted.norm()).detach())


def all_gradients(network: Any, **options: bool) -> dict[str, Tensor]:
    (asked(network).square().mean() + asked(network, **options).sum()).backward()
    return gradients(network)


@with_torchao
@pytest.mark.parametrize("make", [lambda: generator(2), discriminator], ids=["generator", "discriminator"])
def test_answers_and_gradients_are_near_those_of_bf16_and_no_name_changes(make: Any) -> None:
    plain, found = lowered(make(), emulated=False), lowered(make(), emulated=True)
    assert list(found.state_dict()) == list(plain.state_dict())
    assert [type(part) for part in found.modules()] == [type(part) for part in plain.modules()]
    assert 0.01 < away(asked(found), asked(plain)) < 0.5  # its mantissa has 3 bits: each product is off by some 3%
    wanted = all_gradients(plain)
    for name, gradient in all_gradients(found).items():
        assert gradient.dtype == torch.float32
        assert 1e-4 < away(gradient, wanted[name]) < 0.25, name


@with_torchao
@pytest.mark.parametrize("kind", ["full", "selective", "per_repetition"])
def test_what_is_recomputed_is_the_same(kind: str) -> None:
    plain, found = (lowered(generator(2), emulated=True, kind=chosen) for chosen in ("none", kind))
    wanted = all_gradients(plain)
    for name, gradient in all_gradients(found).items():
        assert torch.equal(gradient, wanted[name]), name


@with_torchao
def test_a_precise_call_is_not_in_fp8() -> None:
    plain, found = lowered(discriminator(), emulated=False), lowered(discriminator(), emulated=True)
    assert torch.equal(asked(found, precise=True), asked(plain, precise=True))
    assert not torch.equal(asked(found), asked(plain))


@with_torchao
def test_the_large_layers_alone_of_networks_that_learn_compute_so() -> None:
    with torch.device("meta"):
        learns, frozen = discriminator(), discriminator()
    set_precision(learns, "fp8", learns=True)
    set_precision(frozen, "fp8", learns=False)
    replaced = {name for name, part in learns.blocks.named_modules() if "forward" in vars(part)}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert replaced == {f"{block}.{layer}" for block in range(2) for layer in layers}
    assert not any("forward" in vars(part) for part in frozen.blocks.modules())
    assert frozen.block_dtype == learns.block_dtype == BF16


@pytest.mark.parametrize(("capability", "told"), [((8, 9), ""), ((9, 0), ""), ((10, 0), ""), ((8, 0), "8.9 or newer")])
def test_a_gpu_without_fp8_is_refused_by_name(
    capability: tuple[int, int], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an A100")
    error = fp8_error(torch.device("cuda", 0))
    assert bool(error) is bool(told) and told in error
    assert not error or "found an A100 of 8.0; set parallel.precision=bf16" in error


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"parallel.precision 'fp8' needs the package torchao.*\[fp8\]"):
        build_plan(recipe("digits_afm", "parallel.precision=fp8"), Ranks(0, 0, 1, torch.device("cpu")))


def test_widths_that_fp8_cannot_multiply_are_refused() -> None:
    settings = ("parallel.precision=fp8", "model.discriminator.num_heads=2")
    with pytest.raises(ConfigError, match="divisible by 16, but model.discriminator.hidden_size is 24; change it"):
        check(recipe("digits_afm", *settings, "model.discriminator.hidden_size=24"), 1)
    check(recipe("digits_afm", *settings, "model.discriminator.hidden_size=32"), 1)


def test_samples_of_a_run_in_fp8_need_no_gpu_that_has_it() -> None:
    trained = ParallelConfig(plan="ddp", precision="fp8")
    assert on_device(trained, "cpu").precision == "bf16"
    assert on_device(ParallelConfig(plan="ddp", precision="tf32"), "cpu").precision == "tf32"
