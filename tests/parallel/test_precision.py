"""Which parts of a network compute in which dtype, and what stays float32; that plans agree: test_bf16_equivalence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from afm_scale.core.arithmetic import allow_tf32
from afm_scale.core.errors import ConfigError
from afm_scale.core.random import tensor_generator
from afm_scale.models.classifier import ClassifierConfig, DiTClassifier
from afm_scale.models.discriminator import DiscriminatorConfig, DiTDiscriminator
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from afm_scale.models.layers import initial_weights
from afm_scale.models.mlp import MLPConfig, MLPGenerator
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.ddp import DDPPlan
from afm_scale.parallel.launch import Ranks, launch
from afm_scale.parallel.precision import block_dtype, set_precision
from afm_scale.parallel.recompute import Recompute, RecomputeConfig, RecomputeEvery, recompute
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load

BF16, FP32 = torch.bfloat16, torch.float32
SIZE = {"patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 2}
SHAPE, CLASSES, BATCH = (1, 4, 4), 3, 4


def generator(repetitions: int = 1, **changes: Any) -> DiTGenerator:
    times = "none" if repetitions > 1 else "both"
    return DiTGenerator(GeneratorConfig(**SIZE, times=times, repetitions=repetitions, **changes), SHAPE, CLASSES)


def discriminator(**changes: Any) -> DiTDiscriminator:
    return DiTDiscriminator(DiscriminatorConfig(**SIZE, target_time=True, **changes), SHAPE, CLASSES)


def classifier() -> DiTClassifier:
    return DiTClassifier(ClassifierConfig(**SIZE), SHAPE, CLASSES)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "generator": generator, "deep generator": lambda: generator(4), "discriminator": discriminator,
    "classifier": classifier, "normed discriminator": lambda: discriminator(qk_norm=True),
}


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Away from the start, where gates are shut and heads zero."""
    return {
        name: value + 0.2 * torch.randn(value.shape, generator=tensor_generator("awake", name))
        for name, value in initial_weights(network, 0)
    }


def filled(network: Any, precision: str) -> Any:
    network.load_state_dict(weights_of(network))
    set_precision(network, precision, learns=True)
    return network


def asked(network: Any, **options: bool) -> Tensor:
    """The network's answer to samples, times and labels, as many as it takes."""
    x = torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(0))
    time, y = torch.full((BATCH,), 0.7), torch.arange(BATCH) % CLASSES
    module = getattr(network, "module", network)
    if isinstance(module, DiTGenerator):
        return network(x, time, time, y)
    return network(x, time) if isinstance(module, DiTClassifier) else network(x, time, y, **options)


class Products(TorchDispatchMode):
    """Counts matrix products, convolutions and attentions by dtype and, in float32, by the switch for TF32."""

    MATRICES = ("mm", "addmm", "bmm", "baddbmm")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[torch.dtype, str]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().removeprefix("aten::").partition(".")[0]
        convolves, attends = name == "convolution", "scaled_dot_product" in name and "backward" not in name
        if name in self.MATRICES or convolves or attends:
            (dtype,) = {arg.dtype for arg in args if isinstance(arg, Tensor) and arg.dtype.is_floating_point}
            backend = torch.backends.cudnn.conv if convolves else torch.backends.cuda.matmul
            self.found[dtype, backend.fp32_precision if dtype == FP32 else ""] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def tf32_as_before() -> Iterator[None]:
    yield
    allow_tf32("fp32")


def dtypes_of_layers(network: nn.Module, **options: bool) -> dict[str, set[torch.dtype]]:
    """Of what goes into and comes out of every layer, and every direct part of the network, in one forward."""
    seen: dict[str, set[torch.dtype]] = {}

    def note(name: str, given: tuple[Any, ...], out: Tensor) -> None:
        tensors = [value for value in (*given, out) if isinstance(value, Tensor)]
        seen.setdefault(name, set()).update(tensor.dtype for tensor in tensors if tensor.dtype.is_floating_point)

    for name, part in network.named_modules():
        part.register_forward_hook(lambda module, given, out, name=name: note(name, given, out))
    assert asked(network, **options).dtype == FP32
    return seen


@pytest.mark.parametrize("kind", NETWORKS)
def test_under_bf16_blocks_are_lowered_and_everything_else_is_float32(kind: str) -> None:
    seen = dtypes_of_layers(filled(NETWORKS[kind](), "bf16"))
    inside = {name: dtypes for name, dtypes in seen.items() if name.startswith("blocks.")}
    outside = {name: dtypes for name, dtypes in seen.items() if name not in inside}
    assert len(inside) > 15 and set(map(frozenset, inside.values())) == {frozenset({BF16})}
    assert len(outside) > 5 and set(map(frozenset, outside.values())) == {frozenset({FP32})}


@pytest.mark.parametrize("kind", ["discriminator", "normed discriminator"])
def test_a_precise_call_is_float32_throughout_and_gives_the_numbers_of_float32(kind: str) -> None:
    lowered, plain = (filled(NETWORKS[kind](), precision) for precision in ("bf16", "fp32"))
    assert set(map(frozenset, dtypes_of_layers(lowered, precise=True).values())) == {frozenset({FP32})}
    assert torch.equal(asked(lowered, precise=True), asked(plain))
    difference = (asked(lowered) - asked(plain)).abs().max() / asked(plain).abs().max()
    assert 1e-3 < difference < 0.1


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp64"])
def test_other_precisions_lower_nothing(precision: str) -> None:
    network = filled(discriminator(), precision)
    assert network.block_dtype is None and block_dtype(precision) is None
    assert set(map(frozenset, dtypes_of_layers(network).values())) == {frozenset({FP32})}


# Outside of blocks: an embedder of time has two layers, a final layer one and its modulation, a head one. A use of a
# block: five layers and an attention; where one token is read, the last one's queries are a layer of their own.
@pytest.mark.parametrize(("kind", "inside", "outside"), [
    ("generator", 2 * 6, 2 + 2 + 2), ("deep generator", 4 * 2 * 6, 4 * 2 + 2), ("discriminator", 2 * 6 + 1, 2 + 1),
])
def test_tf32_is_for_precise_blocks_alone(kind: str, inside: int, outside: int, tf32_as_before: None) -> None:
    def products(precision: str, **options: bool) -> dict[tuple[torch.dtype, str], int]:
        allow_tf32(precision)
        network = filled(NETWORKS[kind](), precision)
        with Products() as counter:
            asked(network, **options)
        return dict(counter.found)

    assert products("fp32") == {(FP32, "ieee"): inside + outside + 1}
    assert products("tf32") == {(FP32, "tf32"): inside + outside + 1}
    assert products("bf16") == {(BF16, ""): inside, (FP32, "ieee"): outside + 1}
    if "discriminator" in kind:
        assert products("bf16", precise=True) == {(FP32, "tf32"): inside, (FP32, "ieee"): outside + 1}


def test_networks_that_guide_and_the_average_are_lowered_too() -> None:
    plan = DDPPlan(Ranks(0, 0, 1, torch.device("cpu")), ParallelConfig(plan="ddp", precision="bf16"))
    for make in (classifier, generator):
        with torch.device("meta"):
            network = make()
        guide = plan.frozen(network, weights_of(network).items())
        assert {parameter.dtype for parameter in guide.parameters()} == {FP32}
        with Products() as counter:
            asked(guide)
        assert counter.found[BF16, ""] > 10


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_gradients_of_all_uses_of_a_block_add_up_in_float32() -> None:
    """Weights are cast for each use, so the gradient of one use is a bf16 number, and a sum of several is none."""
    for repetitions, exact in ((1, True), (4, False)):
        network = filled(generator(repetitions), "bf16")
        asked(network).square().mean().backward()
        found = gradients(network)
        assert {gradient.dtype for gradient in found.values()} == {FP32}
        for name, gradient in found.items():
            if name.startswith("blocks."):
                assert torch.equal(gradient, gradient.bfloat16().float()) is exact, name


@pytest.mark.parametrize("config", [
    Recompute(kind="full"), RecomputeEvery(kind="every", k=2), Recompute(kind="selective"),
    Recompute(kind="per_repetition"),
], ids=lambda config: config.kind)
def test_what_is_recomputed_has_the_dtype_of_the_forward(config: RecomputeConfig) -> None:
    """In one loss, a call with lowered blocks and a precise one, as in the discriminator's turn."""

    def judged(chosen: RecomputeConfig) -> tuple[dict[str, Tensor], Counter]:
        network = discriminator(qk_norm=True)
        network.load_state_dict(weights_of(network))
        recompute(network, chosen)
        set_precision(network, "bf16", learns=True)
        loss = asked(network).sum() + asked(network, precise=True).square().sum()
        with Products() as counter:
            loss.backward()
        return gradients(network), counter.found

    (found, again), (plain, once) = judged(config), judged(Recompute())
    for name, gradient in plain.items():
        assert torch.equal(found[name], gradient), name
    more = {"full": 13, "every": 7, "selective": 0, "per_repetition": 13}[config.kind]
    assert {dtype for dtype, _ in again} == {BF16, FP32}
    assert again - once == Counter({key: more for key in again if more and key[0] in (BF16, FP32)})


def recipe(name: str, *overrides: str) -> RunConfig:
    return load(RunConfig, name, ("run.folder=unused", *overrides))


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_network_without_blocks_is_refused(precision: str) -> None:
    told = f"parallel.precision '{precision}' lowers the blocks of a network, but .* has none; set .* fp32 or tf32"
    with pytest.raises(ConfigError, match=told.replace(".* has", "model.generator of kind 'mlp' has")):
        check(recipe("mixture1d_afm", f"parallel.precision={precision}"), 1)
    with torch.device("meta"):
        network = MLPGenerator(MLPConfig(width=8), (1, 1, 1), 1)
    with pytest.raises(ConfigError, match=told.replace(".* has", "MLPGenerator has")):
        set_precision(network, precision, learns=False)
    set_precision(network, "tf32", learns=False)


def test_fp8_on_a_cpu_is_refused_before_there_is_a_process_group() -> None:
    with pytest.raises(ConfigError, match="fp8, which needs a GPU of .* 8.9 or newer, found device 'cpu'; set .*=bf16"):
        launch(ParallelConfig(plan="ddp", device="cpu", precision="fp8"))
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp64"])
def test_torch_s_older_and_newer_switches_of_tf32_agree(precision: str, tf32_as_before: None) -> None:
    """Else whoever asks the older ones, as torch.compile may, meets an error; also within a layer without TF32."""

    def ask() -> tuple[bool, bool]:
        return torch._C._get_cublas_allow_tf32(), torch._C._get_cudnn_allow_tf32()

    allow_tf32(precision)
    network, inside = NETWORKS["discriminator"](), []
    head = network.final_layer[1]
    plain = head.forward
    head.forward = lambda x: (inside.append(ask()), plain(x))[1]
    filled(network, precision)
    head(torch.ones(1, head.in_features))
    assert inside == [(precision == "tf32", precision == "tf32")]
    assert ask() == (precision in ("tf32", "bf16"), precision == "tf32")
