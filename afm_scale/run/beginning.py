"""What a new run begins with where `run.initialise_from` is a checkpoint of another program, or of another form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint.card import card_of
from ..checkpoint.falling_back import candidates
from ..checkpoint.formats.format import Source, Told
from ..checkpoint.formats.table import FORMATS, format_of
from ..checkpoint.names import AVERAGE, of_role, under
from ..core.errors import CheckpointError
from ..core.files import read_regular
from ..core.typed import build, to_mapping
from ..core.types import Role
from ..core.weights import FLOATS
from ..models.layers import initial_weights
from ..parallel.agreement import agreed
from ..parallel.plan import ParallelPlan
from ..train.state import TrainState
from .adapting import Beginning, Pretrained, adapt, exactly
from .config import AnyGenerator, RunConfig
from .load import parse_yaml
from .networks import build_network
from .shipped import CONFIGS

_SHOWN_IN_CONFIGS = ("patch_size", "hidden_size", "depth")


def is_foreign(config: RunConfig) -> bool:
    """Whether `run.initialise_from` is no checkpoint of a run, or one of a network that is told one time less.

    Raises CheckpointError for a file of no known format.
    """
    path, kind = config.run.initialise_from, config.run.initialise_format
    if path is None:
        return False
    if kind == "native" or kind == "auto" and path.is_dir() and FORMATS["native"].recognises(path):
        return _is_told_less(path, config)
    if kind != "auto" or path.is_file():
        return True
    return path.is_dir() and any(other.recognises(path) for name, other in FORMATS.items() if name != "native")


def _is_told_less(path: Path, config: RunConfig) -> bool:
    """Whether a run's newest checkpoint is of a flow model that is told the source, where ours is told intervals too.

    A checkpoint that cannot be read is for whoever loads it to refuse.
    """
    ours = config.model.generator
    if ours is None or ours.times != "gated":
        return False
    for checkpoint in candidates(path):
        try:
            return card_of(checkpoint).networks.get(Role.GENERATOR, {}).get("times") == "source"
        except CheckpointError:
            continue
    return False


def foreign_beginning(config: RunConfig) -> Callable[[TrainState, ParallelPlan], str] | None:
    """`begin` for such a checkpoint; None for a run's."""
    return partial(begin, config) if is_foreign(config) else None


def check_beginning(config: RunConfig) -> None:
    """Raises CheckpointError for what `begin` would find of another size, by names and shapes alone."""
    with opened(config) as source:
        beginnings(config, source)


def begin(config: RunConfig, state: TrainState, plan: ParallelPlan) -> str:
    """Gives the players and the averages their weights, and says in one line what was done. Collective."""
    with agreed():
        source = opened(config)
    with source:
        with agreed():
            found = beginnings(config, source)
        for role, player in state.players.items():
            plan.initialise(player.module, weights(config, role, found[role]))
        learner = state.objective.learner
        for average in state.averages.values():
            plan.initialise(average.network, weights(config, learner, found[learner]))
    said = [f"{role.value}: {beginning.words(shapes(config, role))}" for role, beginning in found.items()]
    return f"new run with weights of {source.path}: " + ". ".join([*said, *source.about.notes])


def opened(config: RunConfig) -> Source:
    """What `run.initialise_from` is, open."""
    path, network = config.run.initialise_from, config.model.generator
    heads = None if network is None else to_mapping(network).get("num_heads")  # which few files say
    kind = format_of(config.run.initialise_format, path)
    try:
        return kind.source(path, Told(heads=heads))
    except CheckpointError as error:
        raise CheckpointError(f"run.initialise_from: {error}") from error


def beginnings(config: RunConfig, source: Source) -> dict[Role, Beginning]:
    """What each player begins with. Raises CheckpointError for what is of another size."""
    card = source.card()
    pretrained = None
    if Role.GENERATOR in card.networks and card.learner is Role.GENERATOR:
        described = to_mapping(build(AnyGenerator, dict(card.networks[Role.GENERATOR]), ("generator",)))
        given = under(AVERAGE, source.tensors) or under(of_role(Role.GENERATOR), source.tensors)
        if described["kind"] in ("dit", "dit_diffusion") and given:
            pretrained = Pretrained(
                tensors=given, network=described, num_classes=card.num_classes, prediction=card.prediction
            )
    found: dict[Role, Beginning] = {}
    try:
        for role in config.objective.roles:
            found[role] = _of_role(config, role, source, pretrained)
    except CheckpointError as error:
        fitting = _fitting(pretrained)
        raise CheckpointError(
            f"{source.path} is of another model: {error}; change run.initialise_from or the model{fitting}"
        ) from error
    if not any(beginning.weights for beginning in found.values()):
        raise CheckpointError(
            f"{source.path} holds nothing for {' or '.join(role.value for role in config.objective.roles)}; change "
            "run.initialise_from"
        )
    return found


def _of_role(config: RunConfig, role: Role, source: Source, pretrained: Pretrained | None) -> Beginning:
    card, network, wanted = source.card(), getattr(config.model, role.value), shapes(config, role)
    own = under(of_role(role), source.tensors)
    if card.learner is role:
        own = under(AVERAGE, source.tensors) or own
    is_dit = to_mapping(network).get("kind") in ("dit", "dit_diffusion")
    if pretrained is not None and is_dit and (role is Role.GENERATOR or not own):
        prediction = config.objective.prediction
        return adapt(pretrained, role, network, wanted, None if prediction is None else prediction.value)
    return exactly(own, role, wanted) if own else Beginning()


def shapes(config: RunConfig, role: Role) -> dict[str, tuple[int, ...]]:
    """Of all tensors of a player's network."""
    return {name: tuple(tensor.shape) for name, tensor in build_network(config, role).state_dict().items()}


def weights(config: RunConfig, role: Role, beginning: Beginning) -> Iterator[tuple[str, Tensor]]:
    """Of all tensors of a network, those that begin anew as in any run."""
    for name, start in initial_weights(build_network(config, role), config.loop.seed, role.value):
        value = beginning.weights[name](start) if name in beginning.weights else start
        if value.dtype not in FLOATS or not bool(value.isfinite().all()):
            raise CheckpointError(f"{name} in {config.run.initialise_from} holds no finite floats; use another copy")
        yield name, value.to(start.dtype)


def _fitting(pretrained: Pretrained | None) -> str:
    """Which of the models that come with the program the weights are of."""
    if pretrained is None:
        return ""
    size = {name: pretrained.network.get(name) for name in _SHOWN_IN_CONFIGS}
    for file in sorted((CONFIGS / "model").glob("*.yaml")):
        content: Mapping[str, Any] = parse_yaml(read_regular(file), str(file))
        network = content.get("model", {}).get("generator") or {}
        if all(network.get(name) == value for name, value in size.items()):
            return f", such as inherit: [model/{file.stem}]"
    return f" (it has {', '.join(f'{name} {value}' for name, value in size.items())})"
