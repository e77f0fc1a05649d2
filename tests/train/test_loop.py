"""The loop: who moves when, what a report says, what ends it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from afm_scale.core.errors import ConfigError
from afm_scale.core.random import Draws, Positions
from afm_scale.core.schedules import Piecewise
from afm_scale.core.typed import build
from afm_scale.core.types import Batch, Loss, Networks, Role, Turn
from afm_scale.data.toys.synthetic import SyntheticLatents, SyntheticLatentsConfig
from afm_scale.flow.path import Prediction
from afm_scale.parallel.optim import OptimizerConfig
from afm_scale.parallel.plan import ParallelPlan
from afm_scale.train.average import Average, AverageConfig
from afm_scale.train.hooks.hook import HookList, QuietHook, StepReport
from afm_scale.train.loop import LoopConfig, name_of_turn, train
from afm_scale.train.state import TrainState
from tests.train.hooks.small import NUM_CLASSES, SHAPE, small_plan, small_state, small_weights

RATE = Piecewise(points=((0, 0.1), (10, 0.2)))


class Judge(nn.Module):
    """A discriminator of one weight for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 1)

    def shardable_blocks(self) -> list[nn.Module]:
        return [self.head]

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.head(x.flatten(1)).squeeze(1)


class Game:
    """An objective that writes down how it is called; its losses are plain enough to be checked by hand."""

    learner = Role.GENERATOR
    prediction = Prediction.X

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = tuple(turns)
        self.calls: list[tuple[str, Role, int, Positions]] = []
        self.batches: list[Batch] = []
        self.learns: list[tuple[bool, bool]] = []  # whether G and D require grad, in each loss

    def turns(self, step: int) -> tuple[Turn, ...]:
        return self._turns

    def survey(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> None:
        self.calls.append(("survey", role, step, draws.positions))

    def loss(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        turn = self.generator_loss if role is Role.GENERATOR else self.discriminator_loss
        return turn(nets, batch, draws, step)

    def generator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        time = torch.zeros(len(batch.y))
        return self._loss(Role.GENERATOR, nets, batch, draws, step, nets.generator(batch.x, time, time, batch.y))

    def discriminator_loss(self, nets: Networks, batch: Batch, draws: Draws, step: int) -> Loss:
        logits = nets.discriminator(batch.x, torch.zeros(len(batch.y)), batch.y)
        return self._loss(Role.DISCRIMINATOR, nets, batch, draws, step, logits)

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def _loss(self, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int, out: Tensor) -> Loss:
        self.calls.append(("loss", role, step, draws.positions))
        self.batches.append(batch)
        self.learns.append(tuple(
            next(net.parameters()).requires_grad for net in (nets.generator, nets.discriminator) if net is not None
        ))
        total = out.square().mean()
        return Loss(total, {"total": total.detach(), "mean of x": batch.x.mean()})


class Watch(QuietHook):
    """Keeps the reports, and stops after some of them."""

    def __init__(self, stop_after: int = 1000) -> None:
        self.reports: list[StepReport] = []
        self.states: list[tuple[int, int]] = []
        self._stop_after = stop_after

    def after_step(self, state: TrainState, report: StepReport) -> None:
        self.reports.append(report)
        self.states.append((state.step, state.images_seen))

    def wants_stop(self) -> bool:
        return len(self.reports) >= self._stop_after


def game_of_two(*turns: Turn) -> tuple[TrainState, Game, ParallelPlan]:
    plan = small_plan()
    state, game = small_state(plan), Game(turns)
    with torch.device("meta"):
        judge = Judge()
    optimizer = OptimizerConfig(learning_rate=RATE)
    discriminator = plan.player(Role.DISCRIMINATOR, judge, small_weights(judge), optimizer)
    return replace(state, players={**state.players, Role.DISCRIMINATOR: discriminator}, objective=game), game, plan


BOTH = (Role.DISCRIMINATOR, Role.GENERATOR)
ALONE = tuple((role,) for role in BOTH)


def test_players_take_their_turns_in_order_each_with_fresh_data():
    state, game, plan = game_of_two(*ALONE)
    train(state, plan, LoopConfig(steps=2), HookList([]))
    everything = Positions(0, 1, 12)
    assert game.calls == [("loss", role, step, everything) for step in (0, 1) for role in BOTH]
    assert state.data.state_dict() == {"consumed": 4 * 12}
    data = SyntheticLatentsConfig(global_batch=12, shape=SHAPE, num_classes=NUM_CLASSES)
    stream: Iterator[Batch] = iter(SyntheticLatents(data, seed=1, rank=0, world_size=1, device="cpu"))
    assert all(torch.equal(batch.x, next(stream).x) for batch in game.batches)


def test_only_the_player_whose_turn_it_is_learns():
    state, game, plan = game_of_two(*ALONE)
    start = {role: [p.clone() for p in player.module.parameters()] for role, player in state.players.items()}
    train(state, plan, LoopConfig(steps=1), HookList([]))
    assert game.learns == [(False, True), (True, False)]
    for role, player in state.players.items():
        assert all(not torch.equal(p, q) for p, q in zip(player.module.parameters(), start[role], strict=True))

    state, game, plan = game_of_two((Role.GENERATOR,))
    train(state, plan, LoopConfig(steps=2), HookList([]))
    discriminator = state.players[Role.DISCRIMINATOR].module
    assert all(torch.equal(p, q) for p, q in zip(discriminator.parameters(), start[Role.DISCRIMINATOR], strict=True))


def test_a_player_with_two_turns_in_a_step_has_other_data_and_other_noise_in_each():
    once, twice = (Role.DISCRIMINATOR,), [(Role.DISCRIMINATOR,), (Role.DISCRIMINATOR,), (Role.GENERATOR,)]
    found = {}
    for turns in ([once], twice):
        state, game, plan = game_of_two(*turns)
        drawn: list[Tensor] = []

        def loss(self: Game, role: Role, nets: Networks, batch: Batch, draws: Draws, step: int, into=drawn) -> Loss:
            into.append(draws.uniform("noise"))
            return Game.loss(self, role, nets, batch, draws, step)

        game.loss = loss.__get__(game)
        train(state, plan, LoopConfig(steps=1), HookList([]))
        found[len(turns)] = drawn, game.batches
    (alone, _), (together, batches) = found[1], found[3]
    assert torch.equal(alone[0], together[0])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(together, 2))
    assert not any(torch.equal(a.x, b.x) for a, b in itertools.combinations(batches, 2))
    assert [name_of_turn(twice, number) for number in range(3)] == ["discriminator", "discriminator 2", "generator"]


def test_microbatches_are_surveyed_first_and_split_by_position():
    state, game, plan = game_of_two(*ALONE)
    train(state, plan, LoopConfig(steps=1, accumulation=3), HookList([]))
    parts = [Positions(index, 3, 4) for index in range(3)]
    assert game.calls == [
        (kind, role, 0, part) for role in BOTH for kind in ("survey", "loss") for part in parts
    ]
    whole_state, whole, whole_plan = game_of_two(*ALONE)
    train(whole_state, whole_plan, LoopConfig(steps=1), HookList([]))
    for index, batch in enumerate(game.batches):
        assert torch.equal(batch.x, whole.batches[index // 3].x[index % 3 :: 3])


def test_two_who_move_at_once_share_their_samples_and_step_after_both_have_learnt():
    state, game, plan = game_of_two(BOTH)
    start = [p.clone() for player in state.players.values() for p in player.module.parameters()]
    weights: list[list[Tensor]] = []

    def loss(self: Game, *given: object) -> Loss:
        weights.append([p.detach().clone() for player in state.players.values() for p in player.module.parameters()])
        return Game.loss(self, *given)

    game.loss = loss.__get__(game)
    watch = Watch()
    train(state, plan, LoopConfig(steps=1), HookList([watch]))
    assert game.calls == [("loss", role, 0, Positions(0, 1, 12)) for role in BOTH]
    assert game.learns == [(True, True)] * 2
    assert torch.equal(game.batches[0].x, game.batches[1].x) and state.data.state_dict() == {"consumed": 12}
    assert all(torch.equal(p, q) for found in weights for p, q in zip(found, start, strict=True))
    for role in BOTH:
        assert float(watch.reports[0].grad_norms[role.value]) > 0
    assert watch.reports[0].images == 12


def test_each_of_two_who_move_at_once_learns_as_alone():
    norms = []
    for turns in (ALONE, (BOTH,)):
        state, game, plan = game_of_two(*turns)
        game.batches = []
        data = iter(small_state(plan).data)
        batch = next(data)
        state.next_batch = lambda batch=batch: batch
        watch = Watch()
        train(state, plan, LoopConfig(steps=1, accumulation=3), HookList([watch]))
        norms.append(watch.reports[0].grad_norms)
        if len(turns) == 1:
            parts = [Positions(index, 3, 4) for index in range(3)]
            assert game.calls == [
                (kind, role, 0, part) for role in BOTH for kind in ("survey", "loss") for part in parts
            ]
    for role in BOTH:
        torch.testing.assert_close(norms[0][role.value], norms[1][role.value])


def test_a_report_holds_means_over_microbatches_and_counts_images_once():
    state, game, plan = game_of_two(*ALONE)
    watch = Watch()
    train(state, plan, LoopConfig(steps=1, accumulation=3), HookList([watch]))
    (report,) = watch.reports
    assert report.step == 1
    assert report.images == 12  # of the generator's turn alone
    assert watch.states == [(1, 12)]
    assert set(report.terms) == {f"{role.value}/{name}" for role in BOTH for name in ("total", "mean of x")}
    for role, batches in zip(BOTH, (game.batches[:3], game.batches[3:]), strict=True):
        mean = torch.stack([batch.x.mean() for batch in batches]).mean()
        assert torch.equal(report.terms[f"{role.value}/mean of x"], mean)
    assert report.learning_rates == {"discriminator": 0.1, "generator": 1e-3}
    assert 0 < report.data_seconds < report.seconds


def test_the_gradient_norm_reported_is_that_of_the_whole_batch():
    state, _, plan = game_of_two(*ALONE)
    module = state.players[Role.DISCRIMINATOR].module
    batch = next(iter(small_state(plan).data))
    loss = module(batch.x, None, batch.y).square().mean()
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    wanted = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    watch = Watch()
    train(state, plan, LoopConfig(steps=1, accumulation=4), HookList([watch]))
    torch.testing.assert_close(watch.reports[0].grad_norms["discriminator"], wanted)
    assert set(watch.reports[0].grad_norms) == {"discriminator", "generator"}


def test_a_learning_rate_follows_the_step_also_where_a_run_goes_on():
    state, _, plan = game_of_two(*ALONE)
    watch = Watch()
    train(state, plan, LoopConfig(steps=2), HookList([watch]))
    state.step = 9
    train(state, plan, LoopConfig(steps=12), HookList([watch]))
    rates = [report.learning_rates["discriminator"] for report in watch.reports]
    assert rates == pytest.approx([0.1, 0.11, 0.19, 0.2, 0.2])


def test_the_average_moves_once_per_step_by_the_steps_number():
    class Counting(Average):
        steps: list[int] = []

        def update(self, generator, step):
            self.steps.append(step)
            super().update(generator, step)

    state, _, plan = game_of_two(*ALONE)
    state.averages = {"average": Counting(state.average.network, AverageConfig(decay=0.0), plan)}
    train(state, plan, LoopConfig(steps=3, accumulation=2), HookList([]))
    assert Counting.steps == [0, 1, 2]
    weights = state.players[Role.GENERATOR].module.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in state.average.network.state_dict().items())


def test_a_hook_that_wants_to_stop_ends_the_loop_after_its_step():
    state, game, plan = game_of_two(*ALONE)
    train(state, plan, LoopConfig(steps=100), HookList([Watch(stop_after=3), Watch()]))
    assert state.step == 3
    assert state.images_seen == 36
    assert len(game.calls) == 6


def test_a_finished_run_takes_no_step():
    state, game, plan = game_of_two(*ALONE)
    state.step = 5
    train(state, plan, LoopConfig(steps=5), HookList([]))
    assert (state.step, game.calls, state.data.state_dict()) == (5, [], {"consumed": 0})


def test_impossible_lengths_are_refused():
    with pytest.raises(ConfigError, match="accumulation: found 0"):
        build(LoopConfig, {"steps": 1, "accumulation": 0})
    with pytest.raises(ConfigError, match="steps: found -1"):
        build(LoopConfig, {"steps": -1})
