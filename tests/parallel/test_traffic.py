"""What a step sends: the numbers that the plans promise, counted in real games of two networks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from afm_scale.benchmarks.traffic import (
    TrafficBenchmark,
    benchmark_traffic_command,
    count_first_step,
    measure_traffic,
)
from afm_scale.core.errors import RunError, UserError
from afm_scale.core.types import Role
from afm_scale.parallel.kinds.fsdp2 import gathers, reductions
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.run.networks import build_network
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
DEPTH_OF_D = 2
SMALL = (
    "model.generator.hidden_size=8", "model.generator.num_heads=2", "model.discriminator.hidden_size=8",
    f"model.discriminator.depth={DEPTH_OF_D}", "model.discriminator.num_heads=2", "data.global_batch=8", "report=null",
)

Counts = dict[tuple[str, str, str, str], int]  # turn, phase, network, kind -> collectives


def request(*overrides: str, ranks: int = 2, timeout: float = 100) -> TrafficBenchmark:
    return TrafficBenchmark(
        recipe="digits_afm", overrides=(*SMALL, *overrides), ranks=ranks, timeout_seconds=timeout
    )


def of_game(policy: str, depth: int, repetitions: int, *others: str, ranks: int = 2) -> TrafficBenchmark:
    return request(
        f"parallel.fsdp2.policy={policy}", f"model.generator.depth={depth}",
        f"model.generator.repetitions={repetitions}", *others, ranks=ranks,
    )


def count_all(requests: list[TrafficBenchmark]) -> list[tuple[Counts, int]]:
    """Of each request the counts, and the bytes that the generator's gathers in its own turn left behind."""
    found = []
    for each in requests:
        rows = count_first_step(each, int(os.environ["RANK"]))
        counts = {(row.turn, row.phase, row.network, row.kind): row.count for row in rows}
        gathered = [row.bytes for row in rows if row.kind == "all-gather" and row.turn == row.network == "generator"]
        found.append((counts, sum(gathered)))
    return found


def expected(policy: str, depth: int, repetitions: int, replicas: int = 1) -> Counts:
    """By the plan's formulas; the discriminator's blocks are used once in each of its calls."""
    d, g = "discriminator", "generator"
    drawn, _ = gathers(policy, depth, repetitions, 0)  # samples for D, without a backward
    of_d = gathers(policy, DEPTH_OF_D, 1, 1)  # one call
    of_g = gathers(policy, depth, repetitions, repetitions)
    judging = gathers(policy, DEPTH_OF_D, 2, 1)  # D(real), D(fake); of these the latter passes on a gradient
    counts = {
        (d, "forward", g, "all-gather"): drawn,
        (d, "forward", d, "all-gather"): of_d[0],
        (d, "backward", d, "reduce-scatter"): reductions(policy, DEPTH_OF_D),
        (d, "step", d, "all-reduce"): 1,  # the norm
        (g, "forward", g, "all-gather"): of_g[0],
        (g, "forward", d, "all-gather"): judging[0],
        (g, "forward", "none", "all-reduce"): 1,  # the gradient normaliser
        (g, "backward", g, "reduce-scatter"): reductions(policy, depth),  # and none of D
        (g, "step", g, "all-reduce"): 1,
    }
    in_backward = {(d, d): of_d[1], (g, d): judging[1], (g, g): of_g[1]}
    counts |= {(turn, "backward", whose, "all-gather"): n for (turn, whose), n in in_backward.items() if n}
    if replicas > 1:
        counts |= {
            (d, "backward", d, "all-reduce"): reductions(policy, DEPTH_OF_D),
            (g, "backward", g, "all-reduce"): reductions(policy, depth),
        }
    return counts


@pytest.mark.slow
def test_every_collective_of_a_step_is_the_one_that_the_policy_promises() -> None:
    games = [(policy, 3, repetitions) for policy in ("full", "zero2") for repetitions in (1, 2, 4)]
    games += [("full", 2, 4), ("zero2", 5, 2)]
    for found in run_ranks(2, count_all, [of_game(*game) for game in games], timeout=120):
        for game, (counts, _) in zip(games, found, strict=True):
            assert counts == expected(*game), game


def padded_bytes(config: RunConfig, ranks: int) -> int:
    """FSDP2 cuts every parameter along its first axis, into parts of the same size."""
    return sum(
        4 * -(-len(parameter) // ranks) * ranks * parameter[0].numel()
        for parameter in build_network(config, Role.GENERATOR).parameters()
    )


@pytest.mark.slow
def test_microbatches_share_the_gathers_and_reductions_of_zero2_and_its_bytes_are_those_of_the_weights() -> None:
    game = of_game("zero2", 3, 4, "loop.accumulation=2")
    wanted = padded_bytes(load(RunConfig, game.recipe, game.overrides), 2)
    for [(counts, gathered)] in run_ranks(2, count_all, [game], timeout=100):
        assert counts == expected("zero2", 3, 4)
        assert gathered == wanted


def expected_in_one_pass(policy: str, depth: int, repetitions: int) -> Counts:
    """D's loss draws the samples with G, whose backward comes after D's own; nothing is asked twice."""
    d, g = "discriminator", "generator"
    of_d, of_g = gathers(policy, DEPTH_OF_D, 1, 1), gathers(policy, depth, repetitions, repetitions)
    counts = {
        (d, "forward", g, "all-gather"): of_g[0],
        (d, "forward", d, "all-gather"): of_d[0],
        (d, "backward", d, "reduce-scatter"): reductions(policy, DEPTH_OF_D),
        (g, "forward", "none", "all-reduce"): 1,  # the gradient normaliser
        (g, "backward", g, "reduce-scatter"): reductions(policy, depth),
        (d, "step", d, "all-reduce"): 1,
        (g, "step", g, "all-reduce"): 1,
    }
    in_backward = {d: of_d[1], g: of_g[1]}
    return counts | {(whose, "backward", whose, "all-gather"): n for whose, n in in_backward.items() if n}


@pytest.mark.slow
def test_one_pass_gathers_each_network_once_and_reduces_it_once_under_zero2() -> None:
    games = [("zero2", 3, 1, 1), ("zero2", 3, 2, 1), ("zero2", 3, 2, 2), ("full", 3, 2, 1)]
    requests = [of_game(*game, "objective.update=one_pass", f"loop.accumulation={micros}") for *game, micros in games]
    for found in run_ranks(2, count_all, requests, timeout=120):
        for (*game, _), (counts, _) in zip(games, found, strict=True):
            assert counts == expected_in_one_pass(*game), game
    zero2 = expected_in_one_pass("zero2", 3, 2)
    for network, blocks in (("generator", 3), ("discriminator", DEPTH_OF_D)):
        for kind in ("all-gather", "reduce-scatter"):
            of_network = [n for (_, _, whose, what), n in zero2.items() if (whose, what) == (network, kind)]
            assert of_network == [blocks + 1]  # every block, and what lies outside of them: once


@pytest.mark.slow
def test_replicas_add_one_all_reduce_to_every_reduce_scatter() -> None:
    game = of_game("zero2", 3, 2, "parallel.fsdp2.replicas=2", ranks=4)
    for [(counts, _)] in run_ranks(4, count_all, [game], timeout=120):
        assert counts == expected("zero2", 3, 2, replicas=2)


@pytest.mark.slow
def test_the_command_starts_its_ranks_and_prints_what_they_sent() -> None:
    words = [sys.executable, "tools/benchmark.py", "traffic", "digits_afm", *SMALL, "parallel.plan=ddp", "--ranks", "2"]
    done = subprocess.run([*words, "--json"], cwd=ROOT, text=True, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["ranks"], found["plan"]) == (2, "ddp")
    generator = build_network(load(RunConfig, "digits_afm", SMALL), Role.GENERATOR)
    reduced = [row for row in found["rows"] if row["phase"] == "backward" and row["network"] == "generator"]
    assert {row["kind"] for row in reduced} == {"all-reduce"}  # DDP: gradients alone, once
    assert sum(row["bytes"] for row in reduced) == sum(4 * parameter.numel() for parameter in generator.parameters())


def test_a_recipe_that_ranks_cannot_share_is_refused_before_any_starts(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="data.global_batch 8 is not divisible"):
        benchmark_traffic_command(request(ranks=3), as_json=True)
    with pytest.raises(UserError, match="parallel.fsdp2.replicas 3"):
        benchmark_traffic_command(request("parallel.fsdp2.replicas=3"), as_json=True)
    with pytest.raises(UserError, match="--ranks 0"):
        request(ranks=0)
    assert not capsys.readouterr().out


def test_ranks_that_take_too_long_are_ended() -> None:
    with pytest.raises(RunError, match="still running after 0.2 seconds"):
        measure_traffic(request(timeout=0.2))


def test_what_a_rank_finds_wrong_is_told_as_training_would() -> None:
    guide = ("objective.guidance={kind: velocity, weight: 1.0, low: 0.0, high: 1.0}", "model.flow=nowhere")
    with pytest.raises(UserError, match="nowhere"):
        measure_traffic(request(*guide, ranks=1))
