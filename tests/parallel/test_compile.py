"""Compiled blocks give what plain ones give, and are compiled in the first step alone.

What is compiled runs by the backends 'eager' and 'aot_eager' of torch.compile, which take the same way as 'inductor' up
to the machine code: its own is compared in test_guided_equivalence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.profiler import ProfilerActivity, profile

from afm_scale.core.errors import ConfigError
from afm_scale.models.discriminator import DiscriminatorConfig, DiTDiscriminator
from afm_scale.parallel import compile as module_under_test
from afm_scale.parallel.compile import compile_blocks, is_compiled
from afm_scale.parallel.recompute import RecomputeConfig
from afm_scale.run.build import build_plan, build_state
from afm_scale.train.hooks.hook import HookList
from afm_scale.train.loop import train
from tests.equivalence import Layout, config_of, this_rank
from tests.parallel.test_recompute import (
    CLASSES,
    DEPTH,
    EVERY,
    FULL,
    HEADS,
    NONE,
    PER_REPETITION,
    SELECTIVE,
    SHAPE,
    WIDTH,
    assert_close,
    drawn,
    filled,
    generator,
    gradients,
    kind_of,
    samples,
)
from tests.ranks import run_ranks

CPU = torch.device("cpu")
# torch 2.11's and 2.13's own compiler imports and touches what torch itself warns of.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


class Counting:
    """A backend that counts what it compiled, how often that ran, and the matrix products of its backward graphs."""

    def __init__(self) -> None:
        self.compiled, self.called, self.products_of_backward = 0, 0, 0
        self._aot = aot_autograd(
            fw_compiler=lambda graph, inputs: graph, bw_compiler=self._backward,
            partition_fn=min_cut_rematerialization_partition,
        )

    def eager(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.compiled += 1

        def run(*tensors: Any) -> Any:
            self.called += 1
            return graph(*tensors)

        return run

    def aot(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.compiled += 1
        return self._aot(graph, inputs)

    def _backward(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.products_of_backward += sum(node.target is torch.ops.aten.addmm.default for node in graph.graph.nodes)
        return graph


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    counting = Counting()
    monkeypatch.setattr(module_under_test, "BACKEND", counting.aot)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True):  # compile_blocks changes them
        yield counting
    torch._dynamo.reset()


def compiled(network: nn.Module) -> Any:
    compile_blocks(network, True, CPU)
    return network


def judge(config: RecomputeConfig) -> DiTDiscriminator:
    size = {"patch_size": 2, "hidden_size": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    with torch.device("meta"):
        network = DiTDiscriminator(DiscriminatorConfig(**size, target_time=True), SHAPE, CLASSES)
    return filled(network, config)


def judged(network: DiTDiscriminator, x: Tensor) -> Tensor:
    return network(x, torch.ones(len(x)), torch.arange(len(x)) % CLASSES)


PRODUCTS = 5  # of a block: qkv and projection, two of the MLP, the condition's


@pytest.mark.parametrize(("config", "compilations", "again"), [
    (NONE, 1, 0), (FULL, 1, PRODUCTS), (EVERY, 2, PRODUCTS), (SELECTIVE, 1, 0), (PER_REPETITION, 1, 0),
], ids=lambda value: value.kind if isinstance(value, RecomputeConfig) else str(value))
def test_a_generator_learns_the_same_by_one_compilation_of_a_block(
    backend: Counting, config: RecomputeConfig, compilations: int, again: int
) -> None:
    """`again`: products that its backward holds. `every` makes two kinds of blocks, and `per_repetition` computes again
    outside of them."""
    plain, found = generator(NONE, repetitions=2), compiled(generator(config, repetitions=2))
    for network in (plain, found):
        for seed in (0, 1):
            drawn(network, samples(seed)).square().mean().backward()
    assert_close(gradients(found), gradients(plain))
    assert (backend.compiled, backend.products_of_backward) == (compilations, again)


@pytest.mark.parametrize("config", [NONE, FULL, SELECTIVE, PER_REPETITION], ids=kind_of)
def test_a_discriminator_learns_the_same_and_passes_on_the_same_gradient(
    backend: Counting, config: RecomputeConfig
) -> None:
    found = []
    for network in (judge(NONE), compiled(judge(config))):
        judged(network, samples()).square().sum().backward()
        learnt, x = gradients(network), samples().requires_grad_()
        network.requires_grad_(False)
        (passed_on,) = torch.autograd.grad(judged(network, x).square().sum(), x)
        with torch.no_grad():
            said = judged(network, samples(1))
        found.append({**learnt, "passed on": passed_on, "said": said})
    assert_close(found[1], found[0])
    assert backend.compiled == 6  # three ways, each for the last block too, of which one row is asked


def test_each_network_has_a_limit_of_its_own_and_beyond_it_is_an_error(
    backend: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a silent return to plain PyTorch."""
    monkeypatch.setattr(module_under_test, "MOST_WAYS", 3)
    with torch._dynamo.config.patch(recompile_limit=1):
        networks = [compiled(generator(NONE, repetitions=1, depth=1)) for _ in range(3)]
        for network in networks:
            for batch in (1, 2, 3):
                drawn(network, samples()[:batch])
        assert backend.compiled == 9
        with pytest.raises(FailOnRecompileLimitHit):
            drawn(networks[0], torch.cat((samples(), samples())))


def test_it_is_the_gpu_s_default_alone_and_needs_triton_there(
    backend: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = generator(NONE, repetitions=1, depth=1)
    plain = network.blocks[0].forward
    for wanted in (None, False):
        compile_blocks(network, wanted, CPU)
    assert network.blocks[0].forward == plain and not is_compiled(network)
    monkeypatch.setattr(module_under_test, "has_triton", lambda: False)
    with pytest.raises(ConfigError, match="needs Triton .* parallel.compile=false"):
        compile_blocks(network, None, torch.device("cuda"))
    monkeypatch.setattr(module_under_test, "has_triton", lambda: True)
    compile_blocks(network, None, torch.device("cuda"))
    assert network.blocks[0].forward != plain and is_compiled(network)
    assert list(network.state_dict()) == list(generator(NONE, repetitions=1, depth=1).state_dict())


class Played(NamedTuple):
    compilations: list[int]  # after each step
    calls: int  # of compiled functions, in the last step
    collectives: dict[str, int]  # of the last step
    tensors: dict[str, Tensor]  # this rank's, when all is done


STEPS = 2


def play(game: str, layout: Layout, *, compiled: bool, steps: int = STEPS) -> Played:
    """In float64, so that only what differs in the order of sums may differ."""
    counting = Counting()
    module_under_test.BACKEND = counting.eager
    torch._dynamo.reset()
    settings = (*layout.settings, f"parallel.compile={str(compiled).lower()}")
    config, ranks = config_of(game, layout._replace(settings=settings)), this_rank(layout)
    plan = build_plan(config, ranks)
    state = build_state(config, ranks, plan)
    compilations, calls = [], 0
    with closing(state.data):
        for step in range(1, steps + 1):
            before = counting.called
            with profile(activities=[ProfilerActivity.CPU]) as watched:  # compiled code refuses a dispatch mode
                train(state, plan, replace(config.loop, steps=step), HookList([]))
            compilations.append(counting.compiled)
            calls = counting.called - before
    tensors = {
        f"{role.value}.{name}": shard.clone()
        for role, player in state.players.items() for name, shard in plan.local_tensors(player.module).items()
    }
    tensors |= {f"average.{name}": shard for name, shard in plan.local_tensors(state.average.network).items()}
    events = {event.key: event.count for event in watched.key_averages() if event.key.startswith("c10d::")}
    return Played(compilations, calls, events, tensors)


WIDE = ("model.generator.hidden_size=128",)  # blocks of more than DDP's first bucket
LAYOUTS = (
    ("deep", Layout("ddp", 2, 1, settings=WIDE)),
    ("deeper", Layout("fsdp2", 2, 2, "full")),
)


def play_all() -> list[tuple[Played, Played]]:
    return [(play(game, layout, compiled=False), play(game, layout, compiled=True)) for game, layout in LAYOUTS]


@pytest.mark.slow
def test_games_over_ranks_are_compiled_in_their_first_step_and_play_alike() -> None:
    """G with and without a graph, and once more while microbatches are surveyed; D learns, judges the real without a
    graph and passes on a gradient, each with a last block of which one row is asked. D learns from batches of two sizes
    where microbatches cannot share the two samples with a penalty."""
    for rank in run_ranks(2, play_all, timeout=280):
        for (game, layout), (plain, found) in zip(LAYOUTS, rank, strict=True):
            of_g, of_d = (2, 6) if layout.accumulation == 1 else (3, 8)
            assert found.compilations == STEPS * [of_g + of_d], (game, layout)
            assert plain.compilations == STEPS * [0]
            repetitions = 4 if game == "deeper" else 2
            uses_of_g = 2 if layout.accumulation == 1 else 2 * (1 + 2)  # by D; surveyed and moved in its own turn
            assert found.calls == uses_of_g * repetitions * 2 + 3 * 2 * layout.accumulation
            assert found.collectives == plain.collectives and sum(plain.collectives.values()) >= 3
            for name, tensor in plain.tensors.items():
                torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=1e-11, msg=f"{game} {name}")


FLOWS = {  # in forward mode compiled blocks step aside: `alpha flow` ends in derivatives, `mean flow` begins with them
    "mean flow": ("objective.derivative=forward", "objective.tangent=velocity"), "mean flow by differences": (),
    "alpha flow": (), "twin flow": (),
}


def play_flows() -> dict[str, tuple[Played, Played]]:
    found = {}
    for name, settings in FLOWS.items():
        game = "mean flow by differences" if name == "mean flow" else name
        layout = Layout("fsdp2", 2, 1, "zero2", settings=settings)
        found[name] = tuple(play(game, layout, compiled=compiled, steps=4) for compiled in (False, True))
    return found


@pytest.mark.slow
def test_flow_maps_play_alike_when_their_blocks_are_compiled() -> None:
    for rank in run_ranks(2, play_flows, timeout=280):
        for name, (plain, found) in rank.items():
            assert plain.compilations == 4 * [0] and found.compilations[0] > 0 and found.calls > 0, name
            assert found.collectives == plain.collectives, name
            for key, tensor in plain.tensors.items():
                torch.testing.assert_close(found.tensors[key], tensor, rtol=0, atol=1e-11, msg=f"{name} {key}")
