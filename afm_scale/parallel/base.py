"""What the plans share: preparing and initialising modules, one player's turn at a time, stepping, listing state.

The optimizer works on this rank's shards as plain tensors, whatever the parameters are wrapped in (DeepSpeed's on flat
partitions): the same arithmetic under every plan, and no dispatch cost for each small tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..core.network import Network, learning
from ..core.place import Place
from ..core.types import Role
from .compile import compile_blocks
from .config import ParallelConfig
from .describe import describe
from .kinds.kind import ONE_MICROBATCH, Turn
from .launch import Ranks
from .optim import OptimizerConfig, build_optimizer
from .plan import Admits, Player, Weights
from .precision import lower_frozen, set_precision
from .recompute import recompute


class WhileLearning:
    """Calls the wrapper of a network while its player learns, the bare module otherwise.

    A wrapper prepares for a backward in each forward; one that a frozen network never gets would upset it.
    """

    def __init__(self, module: nn.Module, wrapper: Callable[..., Tensor]) -> None:
        self.module = module
        self.wrapper = wrapper
        self._one = learning(module)[0][1]  # of those that learn and are frozen together

    def __call__(self, *inputs: Tensor, **options: Any) -> Tensor:
        learns = torch.is_grad_enabled() and self._one.requires_grad
        return (self.wrapper if learns else self.module)(*inputs, **options)


class BasePlan:
    """Every rank computes its share of the batch with whole networks; subclasses say how weights are kept."""

    def __init__(self, ranks: Ranks, config: ParallelConfig, turn: Turn = ONE_MICROBATCH) -> None:
        self.rank = ranks.rank
        self.world_size = ranks.world_size
        self.data_rank, self.num_data_ranks = ranks.rank, ranks.world_size
        self.device = ranks.device
        self.dtype = config.dtype
        self._config = config
        self._compile = config.compiles_on(ranks.device.type)
        self._players: list[Player] = []
        self._movers: list[Player] = []  # of the turn that is going on, or was last
        self._memory: int | None = None  # of the smallest device, where the plan has asked; see `describe`

    @property
    def place(self) -> Place:
        return Place(self.rank, self.world_size, self.device, self.world_size // self.num_data_ranks)

    def player(self, role: Role, module: Network, weights: Weights, optimizer: OptimizerConfig) -> Player:
        """Does as the protocol says. This is the order of things under every plan, which override steps of it alone."""
        # 1. Precision: what the blocks compute in, which a recomputation has to know and a compilation to contain.
        set_precision(module, self._config.precision, learns=True)
        # 2. Recompute: before compile, so that what is compiled includes the recomputation.
        recompute(module, self._config.recompute)
        # 3. Compile, block by block: before anything wraps a block, so that hooks which gather its weights stay
        #    outside, uncompiled.
        compile_blocks(module, self._compile, self.device)
        # 4. Blocks, still on the meta device: each becomes a unit of what is sharded, gathered and reduced.
        # 5. Root: after the blocks, since it takes what they left (embedders, final layer), or everything.
        # 6. Values: only now is there memory, this rank's part of each tensor, which is filled one by one.
        module = self._laid_out(module, weights)
        # 7. Optimizer: last, since its state lies as the shards do.
        player = self._with_optimizer(role, module, optimizer)
        self._players.append(player)
        return player

    def frozen(self, module: Network, weights: Weights) -> nn.Module:
        """Does steps 1 and 4 to 6 of `player`: there is no backward to recompute for, nor an optimizer."""
        set_precision(module, self._config.precision, learns=False)
        return self._laid_out(module, weights).requires_grad_(False)

    @contextmanager
    def turn_of(self, player: Player, *, last: bool, beside: Sequence[Player] = ()) -> Iterator[None]:
        movers = [one for one in self._players if one is player or self._is_among(one, beside)]
        if len(movers) != len(self._movers) or not all(self._is_among(one, self._movers) for one in movers):
            for other in self._players:
                self.reshard(other.module)
                for parameter in other.parameters:
                    parameter.requires_grad_(self._is_among(other, movers))
            self._movers = movers
        with self._reducing(player, last):
            yield

    def backward(self, player: Player, loss: Tensor) -> None:
        loss.backward()

    @torch.no_grad()
    def step(self, player: Player, step: int, admits: Admits | None = None) -> Tensor:
        self.reshard(player.module)
        (group,) = player.optimizer.param_groups
        for shard, parameter in zip(group["params"], player.parameters, strict=True):
            shard.grad = None if parameter.grad is None else _local(parameter.grad)
            parameter.grad = None
        gradients = [shard.grad for shard in group["params"] if shard.grad is not None]
        norm = self._whole_square(player, torch.stack(torch._foreach_norm(gradients)).square()).sqrt()
        if admits is None or admits(norm):
            torch._foreach_mul_(gradients, (player.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
            group["lr"] = player.learning_rate(step)
            player.optimizer.step()
        player.optimizer.zero_grad()
        return norm

    @torch.no_grad()
    def initialise(self, module: nn.Module, weights: Weights, still: Collection[str] = ()) -> None:
        targets = self.state_dict(module)
        for name, value in weights:
            self._initialise(targets.pop(name), value)
        missing = targets.keys() - set(still)
        assert not missing, f"no weights were given for {sorted(missing)}"

    def describe(self, networks: Mapping[str, Network]) -> dict[str, Any]:
        return describe(self._config, networks, self.world_size, device=self.device, memory=self._memory)

    def mean_(self, value: Tensor) -> Tensor:
        if self.world_size > 1:
            dist.all_reduce(value)  # gloo has no AVG
            value /= self.world_size
        return value

    def local_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        return {name: _local(tensor) for name, tensor in self.state_dict(module).items()}

    def reshard(self, module: nn.Module) -> None:
        """Nothing: parameters never move."""

    def state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        self.reshard(module)
        return module.state_dict()

    def optimizer_state_dict(self, player: Player) -> dict[str, Tensor]:
        self.reshard(player.module)
        (group,) = player.optimizer.param_groups
        parameters = dict(player.module.named_parameters())
        return {
            f"{name}.{key}": self._like(parameters[name], value)
            for name, shard in zip(player.names, group["params"], strict=True)
            for key, value in player.optimizer.state[shard].items()
        }

    def load_state_dict(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Nothing: `state_dict` share storage."""

    def load_optimizer_state_dict(self, player: Player, tensors: Mapping[str, Tensor]) -> None:
        """Nothing: `optimizer_state_dict` share storage."""

    @staticmethod
    def _is_among(player: Player, others: Sequence[Player]) -> bool:
        return any(player is other for other in others)

    def _laid_out(self, module: Network, weights: Weights) -> nn.Module:
        module = module.to(self.dtype)
        lower_frozen(module, self._config.precision)
        self._lay_out_blocks(module)
        module = self._lay_out_root(module)
        return self._materialise(module, weights)

    def _lay_out_blocks(self, module: Network) -> None:
        """Step 4: wraps the blocks of a module on the meta device, or replaces parts of them."""

    def _lay_out_root(self, module: Network) -> nn.Module:
        """Step 5: wraps the module itself."""
        return module

    def _materialise(self, module: nn.Module, weights: Weights) -> nn.Module:
        """Step 6: gives it memory and its values."""
        module = module.to_empty(device=self.device)
        self.initialise(module, weights)
        return module

    def _with_optimizer(self, role: Role, module: nn.Module, config: OptimizerConfig) -> Player:
        """Step 7: over this rank's shards as plain tensors."""
        names, parameters = zip(*learning(module), strict=True)
        shards = [nn.Parameter(_local(parameter)) for parameter in parameters]
        return Player(
            role=role, module=module, parameters=parameters, names=names, network=self._network(module),
            optimizer=build_optimizer(shards, config),
            max_grad_norm=config.max_grad_norm, learning_rate=config.learning_rate,
        )

    def _initialise(self, target: Tensor, full: Tensor) -> None:
        target.copy_(full)

    def _like(self, parameter: nn.Parameter, local: Tensor) -> Tensor:
        """A local optimizer tensor as a checkpoint stores it, sharing storage."""
        return local

    def _network(self, module: nn.Module) -> Any:
        """What objectives call."""
        return module

    def _reducing(self, player: Player, last: bool) -> AbstractContextManager[None]:
        """The context of a microbatch: whether its backward reduces gradients over the ranks."""
        return nullcontext()

    def _whole_square(self, player: Player, squares: Tensor) -> Tensor:
        """The squared norm of all of a player's gradients, of those of this rank's shards [number of gradients]."""
        return self._sum_over_shards_(squares.sum())

    def _sum_over_shards_(self, value: Tensor) -> Tensor:
        return value


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its storage."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
