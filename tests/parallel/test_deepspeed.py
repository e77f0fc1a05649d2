"""What every plan promises, kept by each stage of ZeRO; that it trains alike is test_deepspeed_equivalence."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from afm_scale.core.errors import ConfigError
from afm_scale.core.schedules import Piecewise
from afm_scale.core.types import Role
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from afm_scale.models.layers import initial_weights
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.kinds.deepspeed import DeepSpeedConfig
from afm_scale.parallel.kinds.kind import Turn
from afm_scale.parallel.launch import Ranks
from afm_scale.parallel.optim import OptimizerConfig
from afm_scale.parallel.plan import ParallelPlan, Player
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.train.average import Average, AverageConfig
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]

pytestmark = [
    # DeepSpeed asks for torch's compiler, which uses what torch deprecates, and gathers by a name that torch 2.13 does.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.distributed.(all_gather_into_tensor|reduce_scatter_tensor):FutureWarning"),
]

OPTIMIZER = OptimizerConfig(
    learning_rate=Piecewise(points=((0, 1.0), (10, 2.0))), weight_decay=0.0, max_grad_norm=0.01, eps=1e-3
)


def plan_of(config: DeepSpeedConfig) -> ParallelPlan:
    from afm_scale.parallel.deepspeed import DeepSpeedPlan

    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    ranks = Ranks(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
    return DeepSpeedPlan(ranks, ParallelConfig(plan="deepspeed", device="cpu", deepspeed=config), Turn(microbatch=4))


def network() -> DiTGenerator:
    config = GeneratorConfig(patch_size=2, hidden_size=8, depth=2, num_heads=2, times="none", repetitions=2)
    with torch.device("meta"):
        return DiTGenerator(config, (1, 4, 4), 3)


def weights(seed: int = 0) -> dict[str, Tensor]:
    """No tensor is zero, so that every one has a gradient."""
    return {name: value + 0.01 * (1 + seed) for name, value in initial_weights(network(), seed)}


def player_of(plan: ParallelPlan, role: Role = Role.GENERATOR, seed: int = 0) -> Player:
    return plan.player(role, network(), weights(seed).items(), OPTIMIZER)


def output_of(called: Any, x: Tensor) -> Tensor:
    time = torch.ones(len(x))
    return called(x, time, time, torch.arange(len(x)) % 3)


def loss_of(called: Any, x: Tensor) -> Tensor:
    return 100 * output_of(called, x).square().mean()


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()).clone()
        for name, tensor in tensors.items()
    }


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def turn(plan: ParallelPlan, player: Player, x: Tensor, step: int = 0) -> Tensor:
    with plan.turn_of(player, last=True):
        plan.backward(player, loss_of(player.network, x))
    return plan.step(player, step)


class Collectives(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            self.found.append(function.name())
        return function(*args, **(kwargs or {}))


def all_stages_keep_their_promises() -> None:
    linear = F.linear
    for config in (
        DeepSpeedConfig(stage=1, zero={"parameter_alignment": True}),
        DeepSpeedConfig(stage=2),
        DeepSpeedConfig(stage=3),
        DeepSpeedConfig(stage=3, zero={"stage3_param_persistence_threshold": 0, "sub_group_size": 100}),
    ):
        keeps_its_promises(plan_of(config), sharded=config.stage == 3)
    assert F.linear is linear  # DeepSpeed would have put its own there


def keeps_its_promises(plan: ParallelPlan, *, sharded: bool) -> None:
    x = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    mine = x[plan.rank :: plan.world_size]

    # Networks hold what they were given, under the names of the unsharded network.
    player, other = player_of(plan), player_of(plan, Role.DISCRIMINATOR, seed=1)
    frozen = plan.frozen(network(), weights().items())
    for module, seed in ((player.module, 0), (other.module, 1), (frozen, 0)):
        assert_equal(whole(plan.state_dict(module)), weights(seed))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    sizes = sum(part.numel() for name, part in plan.local_tensors(player.module).items() if name != "pos_embed")
    in_all = sum(value.numel() for name, value in weights().items() if name != "pos_embed")
    assert sizes <= in_all / plan.world_size + 30 if sharded and plan.world_size > 1 else sizes == in_all

    # The optimizer's state can be listed before the first step, and there is none of what is not this rank's.
    names = [name for name, _ in network().named_parameters()]
    states = whole(plan.optimizer_state_dict(player))
    assert set(states) == {f"{name}.{key}" for name in names for key in ("step", "exp_avg_sq")}
    assert all(states[f"{name}.exp_avg_sq"].shape == weights()[name].shape for name in names)
    assert not any(state.any() for state in states.values())
    kept = sum(state.numel() for part in player.optimizer.state.values() for state in part.values())
    assert kept < 1.1 * in_all / plan.world_size + 100

    # Only the mover's weights require grad, also after forwards without a backward.
    for mover, still in ((player, other), (other, player)):
        with torch.no_grad():
            before = output_of(player.network, mine), output_of(other.network, mine)
        with plan.turn_of(mover, last=True):
            assert all(parameter.requires_grad for parameter in mover.module.parameters())
            assert not any(parameter.requires_grad for parameter in still.module.parameters())

    # Shards share storage, and a network whose weights were written computes and learns with them.
    for part in plan.local_tensors(player.module).values():
        part.mul_(2)
    assert_equal(whole(plan.state_dict(player.module)), {name: 2 * value for name, value in weights().items()})
    with torch.no_grad():
        assert not torch.isclose(output_of(player.network, mine), before[0]).all()
        plan.initialise(player.module, weights().items())
        assert torch.equal(output_of(player.network, mine), before[0])
    with pytest.raises(AssertionError, match="no weights were given"):
        plan.initialise(player.module, list(weights().items())[1:])

    # A step: the mean gradient of all ranks, clipped, by the learning rate of the step.
    norm = turn(plan, player, mine, step=5)
    alone = network().to_empty(device="cpu")
    alone.load_state_dict(weights())
    optimizer = torch.optim.AdamW(alone.parameters(), lr=1.5, betas=(0.0, 0.9), eps=1e-3, weight_decay=0.0)
    for rank in range(plan.world_size):
        (loss_of(alone, x[rank :: plan.world_size]) / plan.world_size).backward()
    wanted_norm = torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.01)
    optimizer.step()
    torch.testing.assert_close(norm, wanted_norm, rtol=1e-5, atol=0)
    assert wanted_norm > 0.02  # so it was clipped
    moved = whole(plan.state_dict(player.module))
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(moved[name], parameter.detach(), rtol=1e-5, atol=1e-5)
    states = whole(plan.optimizer_state_dict(player))
    assert all(state == 1 for name, state in states.items() if name.endswith(".step"))

    # The average is moved without a collective, and samples are drawn from what it then is.
    average = Average(frozen, AverageConfig(decay=0.5), plan)
    with torch.no_grad():
        drawn = output_of(average.network, mine)
    with Collectives() as collectives:
        average.update(player, 0)
    assert not collectives.found
    middle = {name: torch.lerp(value, moved[name], 0.5) for name, value in weights().items()}
    assert_equal(whole(plan.state_dict(frozen)), middle)
    alone.load_state_dict(middle)
    with torch.no_grad():
        torch.testing.assert_close(output_of(average.network, mine), output_of(alone, mine), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(drawn, output_of(alone, mine))

    # What was loaded into a player's tensors counts once taken, in its next forward and in its next step.
    tensors, states = plan.state_dict(player.module), plan.optimizer_state_dict(player)
    with torch.no_grad():
        for name, tensor in {**tensors, **states}.items():
            tensor.copy_(tensor + 1 if name.endswith(".step") else tensor * 3)
    wanted, wanted_states = whole(tensors), whole(states)
    plan.load_state_dict(player.module, tensors)
    plan.load_optimizer_state_dict(player, states)
    assert_equal(whole(plan.state_dict(player.module)), wanted)
    assert_equal(whole(plan.optimizer_state_dict(player)), wanted_states)
    turn(plan, player, mine, step=0)
    moved = whole(plan.state_dict(player.module))
    assert all((moved[name] - wanted[name]).abs().max() < 1.6 for name in wanted)  # not 3: a step from what was taken
    assert all(state == 3 for name, state in plan.optimizer_state_dict(player).items() if name.endswith(".step"))

    # A gradient that is not finite is reported, for the divergence guard, and moves nothing.
    assert turn(plan, player, mine * float("inf")).isnan()
    assert_equal(whole(plan.state_dict(player.module)), moved)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_stage_keeps_what_plans_promise(world_size: int) -> None:
    run_ranks(world_size, all_stages_keep_their_promises, timeout=200)


def configured(*overrides: str) -> RunConfig:
    return load(RunConfig, "digits_afm", ("run.folder=unused", "parallel.plan=deepspeed", *overrides))


@pytest.mark.parametrize(("overrides", "message"), [
    (["precision=fp64"], "parallel.precision fp64 is not for parallel.plan 'deepspeed'.*; set parallel.precision=fp32"),
    (["deepspeed.stage=3", "recompute=selective"], "'selective'.*stage 3.*; set parallel.recompute=full, or"),
    (["deepspeed.stage=3", "compile=true"], "parallel.compile is true.*stage 3.*; set parallel.compile=false"),
    (["deepspeed.stage=3", "compile=false", "model.compile_guides=true"], "model.compile_guides is true.*=false, or"),
    (["deepspeed.stage=4"], "parallel.deepspeed.stage: found 4, wanted one of 1, 2, 3"),
    (["deepspeed.stage=2", "deepspeed.offload_param={device: cpu}"], "offload_param.*stage 2.*; set stage=3, or"),
    (["deepspeed.offload_optimizer={device: nvme}"], "offload_optimizer.device is 'nvme'.*_optimizer.device=cpu"),
    (["deepspeed.offload_optimizer={pin_memory: false}"], "offload_optimizer.device is None"),
    (["deepspeed.offload_optimizer={device: cpu, ratio: 0.5}"], "offload_optimizer.ratio needs .*; leave it out"),
    (["deepspeed.zero={stage: 3}"], "zero.stage is parallel.deepspeed.stage; leave it out"),
    (["deepspeed.zero={round_robin_gradients: true}"], "zero.round_robin_gradients keeps .*; leave it out"),
])
def test_what_zero_cannot_do_is_refused_before_anything_is_built(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(configured(*(each if each.startswith("model.") else f"parallel.{each}" for each in overrides)), 2)


def test_what_zero_can_do_is_not_refused() -> None:
    check(configured("parallel.recompute=selective", "parallel.compile=true", "parallel.deepspeed.stage=2"), 2)
    check(configured("parallel.recompute=full", "parallel.precision=bf16", "parallel.deepspeed.stage=3"), 2)
    other = configured("parallel.deepspeed.stage=3", "parallel.precision=fp64", "parallel.recompute=selective")
    check(replace(other, parallel=replace(other.parallel, plan="fsdp2")), 2)


@pytest.mark.parametrize(("settings", "word"), [
    ({"zero": {"overlap_com": True}}, "overlap_com"),
    ({"zero": {"reduce_bucket_size": "large"}}, "reduce_bucket_size"),
    ({"offload_optimizer": {"device": "cpu", "pin": True}}, "offload_optimizer.pin"),
])
def test_what_deepspeed_refuses_is_a_users_mistake(settings: dict[str, Any], word: str) -> None:
    from afm_scale.parallel.deepspeed import zero_settings

    with pytest.raises(ConfigError, match=f"DeepSpeed refuses(.|\n)*{word}"):
        zero_settings(DeepSpeedConfig(**settings))


def test_settings_reach_deepspeed_as_they_are() -> None:
    from afm_scale.parallel.deepspeed import zero_settings

    config = configured(
        "parallel.deepspeed.stage=3", "parallel.deepspeed.offload_param={device: cpu, pin_memory: false}",
        "parallel.deepspeed.zero={reduce_bucket_size: 1000, overlap_comm: false}",
    ).parallel.deepspeed
    settings = zero_settings(config)
    assert settings["stage"] == 3
    assert settings["offload_param"] == {"device": "cpu", "pin_memory": False}
    assert settings["reduce_bucket_size"] == 1000
    assert settings["overlap_comm"] is False
    assert "offload_optimizer" not in settings


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the launcher, in which the environment is the one of these tests."""
    (tmp_path / "launchers").mkdir()
    for name in ("deepspeed.sh", "deepspeed_runner.py"):
        shutil.copy(ROOT / "launchers" / name, tmp_path / "launchers")
    published = (ROOT / "launchers" / "environment.sh").read_text()
    recipe_from = published[published.index("recipe_from() {") : published.index("if [[ -n \"${AFM_SCALE_PYTHON:-}\"")]
    lines = [f'root="{tmp_path}"', f'python="{sys.executable}"', f'export PYTHONPATH="{ROOT}"', recipe_from]
    (tmp_path / "launchers" / "environment.sh").write_text("\n".join(lines))
    return tmp_path


def launched(checkout: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "launchers/deepspeed.sh", *arguments], cwd=checkout, capture_output=True, text=True, timeout=250
    )


@pytest.mark.slow
def test_the_launcher_trains_and_ends_as_its_ranks_end(checkout: Path) -> None:
    small = ("run.folder=run", "model.generator.hidden_size=8", "model.generator.num_heads=2", "report=null")
    recipe = str(ROOT / "configs" / "recipes" / "digits_flow_matching.yaml")
    options = ("--num_accelerators", "2", "--master_port", "29617", "--")
    done = launched(checkout, *options, recipe, *small, "loop.steps=1", "parallel.deepspeed.stage=3")
    assert done.returncode == 0, done.stderr
    assert "plan: deepspeed" in (checkout / "run" / "config.yaml").read_text()
    assert (checkout / "run" / "checkpoints" / "step_00000001").is_dir()

    refused = launched(checkout, "--num_accelerators", "1", "--", recipe, *small, "data.global_batch=0")
    assert refused.returncode == 2
    assert "data.global_batch: found 0, wanted" in refused.stderr


@pytest.mark.parametrize(("options", "told"), [
    (("--hostfile", "hosts"), "Hostfile contains multiple entries for 127.0.0.9"),
    (("--hostfile", "one", "--ssh_port", "1"), "ssh"),  # nobody listens there, or there is no ssh here
])
def test_hosts_that_deepspeed_cannot_use_are_one_message(
    checkout: Path, options: tuple[str, ...], told: str
) -> None:
    (checkout / "hosts").write_text("127.0.0.9 slots=1\n127.0.0.9 slots=1\n")
    (checkout / "one").write_text("127.0.0.9 slots=1\n")
    done = launched(checkout, *options, "--", "digits_flow_matching")
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    assert errors[0].startswith("error: DeepSpeed's launcher: ") and told in errors[0]
