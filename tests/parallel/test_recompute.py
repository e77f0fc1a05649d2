"""Recomputed gradients are those of the plain network; what is kept and what is computed twice have closed forms."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from afm_scale.core.errors import ConfigError
from afm_scale.core.typed import build, to_mapping
from afm_scale.core.types import Role
from afm_scale.models.classifier import ClassifierConfig, DiTClassifier
from afm_scale.models.discriminator import DiscriminatorConfig, DiTDiscriminator
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from afm_scale.models.layers import initial_weights
from afm_scale.models.mlp import MLPConfig, MLPGenerator
from afm_scale.parallel import recompute as module_under_test
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.ddp import DDPPlan
from afm_scale.parallel.fsdp2 import FSDP2Plan
from afm_scale.parallel.kinds.fsdp2 import FSDP2Config
from afm_scale.parallel.launch import Ranks
from afm_scale.parallel.recompute import Recompute, RecomputeConfig, RecomputeEvery, recompute
from tests.parallel.test_plans import OPTIMIZER, CountCollectives, loss_of
from tests.ranks import run_ranks

NONE, FULL, EVERY = Recompute(), Recompute(kind="full"), RecomputeEvery(kind="every", k=2)
SELECTIVE, PER_REPETITION = Recompute(kind="selective"), Recompute(kind="per_repetition")
KINDS = (FULL, EVERY, SELECTIVE, PER_REPETITION)
BATCH, TOKENS, WIDTH, HEADS, DEPTH = 3, 4, 16, 2, 5
SHAPE, CLASSES = (1, 4, 4), 3


def kind_of(config: RecomputeConfig) -> str:
    return config.kind


def generator(config: RecomputeConfig, *, repetitions: int, depth: int = DEPTH) -> DiTGenerator:
    size = {"patch_size": 2, "hidden_size": WIDTH, "depth": depth, "num_heads": HEADS}
    with torch.device("meta"):
        network = DiTGenerator(GeneratorConfig(**size, times="none", repetitions=repetitions), SHAPE, CLASSES)
    return filled(network, config)


def filled(network: nn.Module, config: RecomputeConfig) -> Any:
    """In float64 and with no tensor zero, so that every one has a gradient."""
    recompute(network, config)
    network = network.to(torch.float64).to_empty(device="cpu")
    network.load_state_dict(weights_of(network))
    return network


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.double() + 0.01 for name, value in initial_weights(network, 0)}


def samples(seed: int = 0) -> Tensor:
    return torch.randn(BATCH, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(network: DiTGenerator, x: Tensor) -> Tensor:
    time = torch.ones(len(x))
    return network(x, time, time, torch.arange(len(x)) % CLASSES)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tensor.any(), name
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


class Watch(TorchDispatchMode):
    """Counts operations by name and knows which of their results still take memory."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._results: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function.name().removeprefix("aten::").partition(".")[0]
        self.counts["attention" if "scaled_dot_product" in name and "backward" not in name else name] += 1
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self._results.append((StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes()))
        return out

    def live_bytes(self, network: nn.Module) -> int:
        """Views of the network's weights take none."""
        weights = {StorageWeakRef(weight.untyped_storage()).cdata for weight in network.parameters()}
        alive = {ref.cdata: size for ref, size in self._results if not ref.expired()}
        return sum(size for storage, size in alive.items() if storage not in weights)


class Cost(NamedTuple):
    kept: int  # bytes held between forward and backward, beside weights and input
    forward: Counter[str]
    backward: Counter[str]


def cost(config: RecomputeConfig, *, repetitions: int, depth: int = DEPTH) -> Cost:
    network, x = generator(config, repetitions=repetitions, depth=depth), samples()
    with Watch() as watch:
        loss = drawn(network, x).square().mean()
        kept, forward = watch.live_bytes(network), watch.counts.copy()
        loss.backward()
    return Cost(kept, forward, watch.counts - forward)


@pytest.mark.parametrize("repetitions", [1, 2, 4])
@pytest.mark.parametrize("config", KINDS, ids=kind_of)
def test_gradients_are_those_without_recomputing(config: RecomputeConfig, repetitions: int) -> None:
    plain, found = (generator(chosen, repetitions=repetitions) for chosen in (NONE, config))
    for network in (plain, found):
        for seed in (0, 1):  # two microbatches
            drawn(network, samples(seed)).square().mean().backward()
    assert_close(gradients(found), gradients(plain))


@pytest.mark.parametrize("config", KINDS, ids=kind_of)
def test_gradients_of_networks_that_read_one_token_too(config: RecomputeConfig) -> None:
    size = {"patch_size": 2, "hidden_size": WIDTH, "depth": DEPTH, "num_heads": HEADS}

    def judged(chosen: RecomputeConfig) -> dict[str, Tensor]:
        with torch.device("meta"):
            judge = DiTDiscriminator(DiscriminatorConfig(**size, target_time=True), SHAPE, CLASSES)
            classifier = DiTClassifier(ClassifierConfig(**size), SHAPE, CLASSES)
        judge, classifier, x, time = filled(judge, chosen), filled(classifier, chosen), samples(), torch.ones(BATCH)
        (judge(x, time, torch.arange(BATCH)).sum() + classifier(x, time).square().sum()).backward()
        return {f"{type(net).__name__}.{name}": g for net in (judge, classifier) for name, g in gradients(net).items()}

    assert_close(judged(config), judged(NONE))


@pytest.mark.parametrize("config", KINDS, ids=kind_of)
def test_a_frozen_network_gives_its_input_the_same_gradient(config: RecomputeConfig) -> None:
    """As the generator's turn asks the discriminator: autograd.grad, no weight learns."""
    found = []
    for chosen in (NONE, config):
        network, x = generator(chosen, repetitions=2).requires_grad_(False), samples().requires_grad_()
        found += torch.autograd.grad(drawn(network, x).square().mean(), x)
        assert all(parameter.grad is None for parameter in network.parameters())
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("repetitions", [1, 2, 4])
def test_what_is_computed_twice(repetitions: int) -> None:
    """A use of a block is five linear layers and one attention; a backward has none of them but recomputed ones."""
    uses = repetitions * DEPTH
    wanted = {"none": 0, "full": uses, "every": repetitions * (DEPTH // 2), "selective": 0, "per_repetition": uses}
    plain = cost(NONE, repetitions=repetitions)
    assert plain.forward["attention"] == uses
    for config in (NONE, *KINDS):
        found = cost(config, repetitions=repetitions)
        assert (found.backward["addmm"], found.backward["attention"]) == (5 * wanted[config.kind], wanted[config.kind])
        assert (found.forward["addmm"], found.backward["mm"]) == (plain.forward["addmm"], plain.backward["mm"])
    # The rest is what `selective` computes again: two LayerNorms, one GELU and one SiLU for each use.
    selective = cost(SELECTIVE, repetitions=repetitions).backward
    assert [selective[name] for name in ("native_layer_norm", "gelu", "silu")] == [2 * uses, uses, uses]


@pytest.mark.parametrize("repetitions", [1, 2])
def test_what_another_block_keeps(repetitions: int) -> None:
    tokens = BATCH * TOKENS * WIDTH * 8  # bytes of [B, N, d]

    def per_use(config: RecomputeConfig) -> float:
        deep, shallow = (cost(config, repetitions=repetitions, depth=depth).kept for depth in (DEPTH + 1, DEPTH - 1))
        return (deep - shallow) / 2 / repetitions

    assert per_use(PER_REPETITION) == 0
    assert per_use(FULL) == tokens
    assert per_use(EVERY) == (per_use(FULL) + per_use(NONE)) / 2
    # The input; query, key and value; attention and its normaliser; its projection; four widths and one of the MLP;
    # six vectors of the condition.
    vectors, normaliser = BATCH * 6 * WIDTH * 8, BATCH * HEADS * TOKENS * 8
    assert per_use(SELECTIVE) == (1 + 3 + 1 + 1 + 4 + 1) * tokens + vectors + normaliser
    assert per_use(NONE) > 1.3 * per_use(SELECTIVE)


@pytest.mark.parametrize("config", KINDS, ids=kind_of)
def test_it_costs_nothing_without_a_graph(config: RecomputeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a checkpoint was made")

    monkeypatch.setattr(module_under_test, "checkpoint", refuse)
    network = generator(config, repetitions=2)
    with torch.no_grad():
        drawn(network, samples())
    with pytest.raises(AssertionError, match="a checkpoint was made"):
        drawn(network, samples())


@pytest.mark.parametrize("config", KINDS, ids=kind_of)
def test_no_name_changes(config: RecomputeConfig) -> None:
    plain, found = generator(NONE, repetitions=2), generator(config, repetitions=2)
    assert list(found.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in found.named_modules()] == [name for name, _ in plain.named_modules()]


class LaidOut(NamedTuple):
    gradients: dict[str, Tensor]  # of two microbatches with other samples on every rank
    collectives: dict[str, int]  # of the second one
    recomputed: int  # linear layers in its backward
    recomputed_if_frozen: int  # and in that of a network that no loss trains


def laid_out(kind: str, repetitions: int, config: RecomputeConfig) -> LaidOut:
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    ranks = Ranks(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
    plan = {"ddp": DDPPlan, "fsdp2": FSDP2Plan}[kind](
        ranks,
        ParallelConfig(
            plan=kind, device="cpu", precision="fp64", recompute=config, fsdp2=FSDP2Config(policy="full")
        ),
    )
    size = {"patch_size": 2, "hidden_size": WIDTH, "depth": 2, "num_heads": HEADS}
    with torch.device("meta"):
        network = DiTGenerator(GeneratorConfig(**size, times="none", repetitions=repetitions), SHAPE, CLASSES)
    weights = weights_of(network)
    player = plan.player(Role.GENERATOR, network, weights.items(), OPTIMIZER)
    assert plan.state_dict(player.module).keys() == weights.keys()
    for last in (False, True):
        with CountCollectives() as counter, Watch() as watch, plan.turn_of(player, last=last):
            loss = loss_of(player, samples(rank + 10 * last))
            before = watch.counts["addmm"]
            plan.backward(player, loss)
    plan.reshard(player.module)
    found = {name: whole(gradient).clone() for name, gradient in gradients(player.module).items()}

    with torch.device("meta"):
        network = DiTGenerator(GeneratorConfig(**size, times="none", repetitions=repetitions), SHAPE, CLASSES)
    guide, x = plan.frozen(network, weights.items()), samples().requires_grad_()
    with Watch() as of_guide:
        drawn(guide, x).sum().backward()
    return LaidOut(found, counter.found, watch.counts["addmm"] - before, of_guide.counts["addmm"] - before)


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def all_laid_out(kind: str) -> None:
    for repetitions in (1, 2, 4):
        plain, uses = laid_out(kind, repetitions, NONE), 2 * repetitions
        for config, recomputed in ((FULL, uses), (EVERY, repetitions), (SELECTIVE, 0), (PER_REPETITION, uses)):
            found = laid_out(kind, repetitions, config)
            assert_close(found.gradients, plain.gradients)
            assert (found.recomputed, found.recomputed_if_frozen) == (5 * recomputed, 0), (config, found)
            if config.kind != "per_repetition":  # blocks are gathered inside it; torch's versions prefetch differently
                assert found.collectives == plain.collectives, (config, found.collectives, plain.collectives)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_gradients_of_every_plan_are_those_without_recomputing(kind: str, world_size: int) -> None:
    run_ranks(world_size, all_laid_out, kind, timeout=120)


def configured(value: Any) -> RecomputeConfig:
    return build(ParallelConfig, {"plan": "ddp", "recompute": value}).recompute


def test_a_kind_may_be_named_alone() -> None:
    for config in (NONE, FULL, SELECTIVE, PER_REPETITION):
        assert configured(config.kind) == configured({"kind": config.kind}) == configured(to_mapping(config)) == config
    assert configured({"kind": "every", "k": 2}) == configured(to_mapping(EVERY)) == EVERY
    assert build(ParallelConfig, {"plan": "ddp"}).recompute == NONE


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "full", "reentrant": True}, "reentrant is true, but .* wrong gradients.*; leave it out"),
        ({"kind": "every", "k": 2, "reentrant": True}, "reentrant is true, but .* wrong gradients"),
        ({"kind": "every", "k": 0}, "k: found 0, wanted a whole number from 1"),
        ({"kind": "every"}, "missing 'k'"),
        ("reentrant", "found 'reentrant', wanted one of 'none', 'full', 'selective', 'per_repetition'"),
    ],
)
def test_impossible_settings_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^parallel.recompute.*{message}|^recompute.*{message}"):
        configured(value)


def test_a_network_without_enough_blocks_is_refused() -> None:
    with torch.device("meta"):
        without = MLPGenerator(MLPConfig(width=8), (1, 1, 1), 1)
    for config in KINDS:
        with pytest.raises(ConfigError, match=f"{config.kind}.*MLPGenerator has 0 blocks.*parallel.recompute=none"):
            recompute(without, config)
    recompute(without, NONE)
    with pytest.raises(ConfigError, match="DiTGenerator has 5 blocks, wanted k of at most that .found 6.;"):
        generator(RecomputeEvery(kind="every", k=6), repetitions=1)
