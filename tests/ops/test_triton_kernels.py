"""The Triton kernels under Triton's interpreter, against torch in float64.

The interpreter has to be chosen before Triton is imported, so all of it runs in a process of its own. It cuts numbers
to bfloat16 where a GPU rounds them, hence a tolerance of one unit in the last of bfloat16's 8 digits.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from afm_scale.core.types import Role
from afm_scale.models.discriminator import DiscriminatorConfig, DiTDiscriminator
from afm_scale.models.generator import DiTGenerator, GeneratorConfig
from afm_scale.models.layers import initial_weights
from afm_scale.ops import block, choice
from afm_scale.parallel.config import ParallelConfig
from afm_scale.parallel.ddp import DDPPlan
from afm_scale.parallel.fsdp2 import FSDP2Plan
from afm_scale.parallel.kinds.fsdp2 import FSDP2Config
from afm_scale.parallel.launch import Ranks
from afm_scale.parallel.process import configure_process
from afm_scale.parallel.recompute import Recompute
from tests.parallel.test_plans import OPTIMIZER
from tests.ranks import run_ranks

SHAPES = ((2, 5, 37), (3, 1, 48), (2, 17, 24), (1, 2, 4096), (2, 3, 1))  # B, N, d
DTYPES = (torch.float32, torch.bfloat16)
PIECES = ("modulated_norm", "gated_residual")
TOLERANCE = {torch.float32: (1e-5, 1e-6), torch.bfloat16: (2**-7, 1e-5)}  # relative to the number, to the largest

Outcome = dict[str, Tensor]


def inputs_of(piece: str, shape: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """As a block has them: modulations are parts of one linear layer's output, tokens may be part of more."""
    batch, num_tokens, width = shape
    generator = torch.Generator().manual_seed(batch)
    x, y = torch.randn(2, batch, num_tokens + 3, width, generator=generator).to(dtype)
    first, second = torch.randn(batch, 3 * width, generator=generator).to(dtype).chunk(3, dim=1)[1:]
    x, y = x[:, :num_tokens], y[:, 3:]
    return [x, first, second] if piece == "modulated_norm" else [x, first, y]


def weights_of(out: Tensor) -> Tensor:
    """Numbers that every dtype has."""
    return torch.linspace(-1, 2, out.numel()).view(out.shape).bfloat16().to(out.dtype)


def computed(function, inputs: list[Tensor]) -> Outcome:
    """The result of a piece and the gradients of its inputs, for the weights of a sum that differ everywhere."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    weights = weights_of(out)
    out.backward(weights.transpose(0, 1).contiguous().transpose(0, 1))  # not contiguous, as a backward may have it
    return {"result": out.detach(), **{f"gradient {index}": leaf.grad for index, leaf in enumerate(leaves)}}


def interpreted_pieces() -> dict[tuple, Outcome]:
    """Of every piece, shape and dtype."""
    from afm_scale.ops import triton_kernels

    return {
        (piece, shape, dtype): computed(getattr(triton_kernels, piece), inputs_of(piece, shape, dtype))
        for piece in PIECES for shape in SHAPES for dtype in DTYPES
    }


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # processes that are started inherit it


@pytest.fixture(scope="module")
def pieces() -> dict[tuple, Outcome]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        (found,) = run_ranks(1, interpreted_pieces, timeout=200, imported=False)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("piece", PIECES)
def test_results_and_gradients_are_torchs(pieces: dict, piece: str, shape: tuple, dtype: torch.dtype) -> None:
    found = pieces[piece, shape, dtype]
    wanted = computed(getattr(block, piece), [tensor.double() for tensor in inputs_of(piece, shape, dtype)])
    relative, absolute = TOLERANCE[dtype]
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == dtype
        # A row of one number has no deviation: what is left of its gradients is rounding, times 1 / sqrt(eps).
        scale = float(tensor.abs().max()) or 1e3
        torch.testing.assert_close(found[name].double(), tensor, rtol=relative, atol=absolute * scale, msg=name)


def gradients_that_are_wanted() -> None:
    """A frozen network asks for its input's alone; a second derivative is refused."""
    from afm_scale.ops import triton_kernels

    for piece in PIECES:
        function = getattr(triton_kernels, piece)
        inputs = inputs_of(piece, (2, 5, 37), torch.float32)
        wanted = computed(function, inputs)["gradient 0"]
        x = inputs[0].detach().requires_grad_()
        out = function(x, *inputs[1:])
        (gradient,) = torch.autograd.grad(out, x, weights_of(out))
        assert torch.equal(gradient, wanted)
        assert not any(tensor.requires_grad for tensor in inputs[1:])
        assert not function(*inputs).requires_grad

        y = function(x, *inputs[1:]).square().sum()
        (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


def test_only_wanted_gradients_are_computed_and_once(interpreter: None) -> None:
    run_ranks(1, gradients_that_are_wanted, timeout=100, imported=False)


SIZE = {"patch_size": 2, "hidden_size": 12, "num_heads": 3}


def networks() -> dict[Role, nn.Module]:
    with torch.device("meta"):
        return {
            Role.GENERATOR: DiTGenerator(GeneratorConfig(**SIZE, depth=1, times="none", repetitions=2), (1, 2, 4), 3),
            Role.DISCRIMINATOR: DiTDiscriminator(DiscriminatorConfig(**SIZE, depth=2, target_time=True), (1, 2, 4), 3),
        }


def gradients_of_a_turn(config: ParallelConfig) -> Outcome:
    """Of both players, each trained on two microbatches."""
    configure_process(config, torch.device("cpu"))
    plan = {"ddp": DDPPlan, "fsdp2": FSDP2Plan}[config.plan](Ranks(0, 0, 1, torch.device("cpu")), config)
    x, time, labels = torch.linspace(-1, 1, 16).view(2, 1, 2, 4), torch.ones(2), torch.arange(2)
    found = {}
    for role, network in networks().items():
        weights = {name: value + 0.05 for name, value in initial_weights(network, 0)}  # all gates are open
        player = plan.player(role, network, weights.items(), OPTIMIZER)
        arguments = (time, time, labels) if role is Role.GENERATOR else (time, labels)
        for last in (False, True):
            with plan.turn_of(player, last=last):
                plan.backward(player, player.network((1 + last) * x, *arguments).square().sum())
        plan.reshard(player.module)
        for name, parameter in player.module.named_parameters():
            gradient = parameter.grad
            found[f"{role.value}.{name}"] = gradient.full_tensor() if config.plan == "fsdp2" else gradient
    return found


def implementations() -> set[str]:
    return {choice.in_use().modulated_norm.implementation, choice.in_use().gated_residual.implementation}


def networks_by_triton() -> None:
    wanted = gradients_of_a_turn(ParallelConfig(plan="ddp"))
    assert implementations() == {"torch"}
    for plan, policy, kind in (
        ("ddp", "full", "selective"), ("ddp", "full", "per_repetition"), ("fsdp2", "full", "full"),
        ("fsdp2", "zero2", "selective"),
    ):
        config = ParallelConfig(
            plan=plan, fsdp2=FSDP2Config(policy=policy), recompute=Recompute(kind=kind), ops="triton"
        )
        found = gradients_of_a_turn(config)
        assert implementations() == {"triton"}
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert gradient.any(), name
            atol = 1e-5 * float(gradient.abs().max()) + 1e-5
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=atol, msg=f"{config}: {name}")
        assert any(not torch.equal(found[name], wanted[name]) for name in wanted)  # the roundings are not the same


@pytest.mark.slow
def test_networks_train_by_it_under_recompute_and_sharded(interpreter: None) -> None:
    run_ranks(1, networks_by_triton, timeout=250, imported=False)


def compiled_for_hopper() -> dict[tuple[str, str], tuple[bool, set[str]]]:
    """Of each kernel and dtype: whether there is machine code, and how wide it reads and writes, for rows of 1152."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from afm_scale.ops import triton_kernels

    launch = triton_kernels._launch(1152)
    found = {}
    for name, options in (
        ("_norm_forward", {"eps": 1e-6}), ("_norm_backward", {"eps": 1e-6, "ROWS": 16, "WITH_SUMS": True}),
        ("_residual_forward", {}), ("_residual_backward", {"ROWS": 16, "WITH_SUMS": True}),
    ):
        kernel, constants = getattr(triton_kernels, name), {**options, "BLOCK": launch["BLOCK"]}
        for dtype in ("fp32", "bf16"):
            kinds = {"sums": "*fp32", **{name: "constexpr" for name in constants}}
            tensors = {"x", "y", "shift", "scale", "gate", "grad", "out", "grad_x", "grad_y"}
            signature = {
                name: kinds.get(name, f"*{dtype}" if name in tensors else "i32") for name in kernel.arg_names
            }
            whole = {  # what a launch tells the compiler of addresses, strides and widths that 16 divides
                (index,): [["tt.divisibility", 16]] for index, name in enumerate(signature) if name not in constants
            }
            source = ASTSource(
                fn=kernel, signature=signature, attrs=whole,
                constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
            )
            code = triton.compile(
                source, target=GPUTarget("cuda", 90, 32), options={"num_warps": launch["num_warps"]}
            ).asm
            widths = set(re.findall(r"(?:ld|st)\.global\S*?((?:\.v\d)?\.b\d+)", code["ptx"]))
            found[name, dtype] = "cubin" in code, widths
    return found


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset:UserWarning")  # the user's to set, not ours
def test_every_kernel_compiles_for_a_gpu_and_moves_sixteen_bytes_at_a_time(tmp_path, monkeypatch) -> None:
    """Compiling needs no GPU; what the interpreter runs need not compile."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (found,) = run_ranks(1, compiled_for_hopper, timeout=100, imported=False)
    assert len(found) == 8
    assert all(outcome == (True, {".v4.b32"}) for outcome in found.values()), found
