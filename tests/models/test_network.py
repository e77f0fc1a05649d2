"""What every network owes the plans (core/network.py): walked over all kinds that a recipe can choose.

All but those of another program, whose blocks are called in another way: see tests/models/large.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from afm_scale.core.network import Network
from afm_scale.models.classifier import ClassifierConfig
from afm_scale.models.diffusion import DiffusionConfig
from afm_scale.models.discriminator import DiscriminatorConfig
from afm_scale.models.generator import GeneratorConfig
from afm_scale.models.large.config import DiffusersConfig
from afm_scale.models.layers import initial_weights
from afm_scale.models.mlp import MLPClassifierConfig, MLPConfig
from afm_scale.models.table import CLASSIFIERS, DISCRIMINATORS, GENERATORS
from tests.models.small import NUM_CLASSES, SHAPE, SIZE

SMALL = {  # one configuration of each kind
    GeneratorConfig: GeneratorConfig(**SIZE, times="none", repetitions=3),
    DiffusionConfig: DiffusionConfig(**SIZE, times="source"),
    DiscriminatorConfig: DiscriminatorConfig(**SIZE, target_time=True),
    ClassifierConfig: ClassifierConfig(**SIZE),
    MLPConfig: MLPConfig(width=8),
    MLPClassifierConfig: MLPClassifierConfig(width=8),
}
KINDS = [
    (table, config) for table in (GENERATORS, DISCRIMINATORS, CLASSIFIERS) for config in table
    if config is not DiffusersConfig
]

every_kind = pytest.mark.parametrize(
    ("table", "config"), KINDS, ids=[table[config].__name__ for table, config in KINDS]
)


def on_meta(table: dict, config: type) -> nn.Module:
    with torch.device("meta"):
        return table[config](SMALL[config], SHAPE, NUM_CLASSES)


def names_of(protocol: type) -> set[str]:
    return {name for name in {*protocol.__annotations__, *vars(protocol)} if not name.startswith("_")}


@every_kind
def test_a_network_has_all_that_the_protocol_names(table: dict, config: type) -> None:
    network = on_meta(table, config)
    assert names_of(Network) == {"repetitions", "passes", "shardable_blocks", "large_linears", "compute_blocks_in"}
    assert names_of(Network) <= set(dir(network))
    assert network.repetitions == (3 if config is GeneratorConfig else 1)


@every_kind
def test_blocks_are_alike_and_hold_no_parameter_together(table: dict, config: type) -> None:
    blocks = on_meta(table, config).shardable_blocks()
    shapes = [[(name, tensor.shape) for name, tensor in block.named_parameters()] for block in blocks]
    assert all(other == shapes[0] for other in shapes)
    parameters = [id(parameter) for block in blocks for parameter in block.parameters()]
    assert len(set(parameters)) == len(parameters)


@every_kind
def test_large_linears_lie_in_the_blocks(table: dict, config: type) -> None:
    network = on_meta(table, config)
    inside = {part for block in network.shardable_blocks() for part in block.modules()}
    assert all(isinstance(linear, nn.Linear) and linear in inside for linear in network.large_linears())
    assert bool(network.large_linears()) == bool(network.shardable_blocks())


@every_kind
def test_every_tensor_knows_how_it_starts(table: dict, config: type) -> None:
    network = on_meta(table, config)
    given = {name: (tensor.shape, tensor.dtype, tensor.device.type) for name, tensor in initial_weights(network, 0)}
    wanted = {name: (tensor.shape, torch.float32, "cpu") for name, tensor in network.state_dict().items()}
    assert given == wanted


def called(network: nn.Module) -> Tensor:
    shapes = {"x": torch.randn(2, *SHAPE), "y": torch.zeros(2, dtype=torch.int64)}
    times = {name: torch.full((2,), 0.5) for name in ("s", "t")}
    wanted = list(inspect.signature(network.forward).parameters)
    return network(*[(shapes | times)[name] for name in wanted if name in shapes | times])


def counting(forward: Callable[..., Tensor], calls: list[str], name: str) -> Callable[..., Tensor]:
    def counted(*inputs: Tensor, **options: bool) -> Tensor:
        calls.append(name)
        return forward(*inputs, **options)

    return counted


@every_kind
def test_a_forward_is_its_passes_each_of_which_uses_every_block_once(table: dict, config: type) -> None:
    network, calls = on_meta(table, config), []
    network.to_empty(device="cpu").load_state_dict(dict(initial_weights(network, 0)))
    for name in network.passes:
        setattr(network, name, counting(getattr(network, name), calls, "pass"))
    for block in network.shardable_blocks():
        block.forward = counting(block.forward, calls, "block")
    called(network)
    once = ["pass", *["block"] * len(network.shardable_blocks())] if network.shardable_blocks() else []
    assert calls == once * network.repetitions


@every_kind
def test_lowered_blocks_are_given_the_lower_dtype_and_the_output_keeps_its_own(table: dict, config: type) -> None:
    network, seen = on_meta(table, config), []
    network.to_empty(device="cpu").load_state_dict(dict(initial_weights(network, 0)))
    network.compute_blocks_in(torch.bfloat16)
    for block in network.shardable_blocks():
        block.register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0].dtype))
    assert called(network).dtype == torch.float32
    assert set(seen) <= {torch.bfloat16} and bool(seen) == bool(network.shardable_blocks())


@every_kind
def test_blocks_say_how_their_work_is_shared(table: dict, config: type) -> None:
    for block in on_meta(table, config).shardable_blocks():
        shared = block.share(2, lambda x: x)
        assert {each.kind for each in shared} <= {"column", "row", "partial"}
        for each in shared:
            replaced = each.owner.get_submodule(each.name)
            assert each.kind == "partial" or isinstance(replaced, nn.Linear)
