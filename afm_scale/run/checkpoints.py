"""What a checkpoint can be asked: what it holds, its average, and the average ready to draw. Nobody else goes from a
card to a network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checkpoint.card import Card, Latents, card_in
from ..checkpoint.falling_back import candidates, of_newest_whole
from ..checkpoint.formats.format import Source, Told
from ..checkpoint.formats.safetensors import CONFIG
from ..checkpoint.formats.table import format_of
from ..checkpoint.manifest import MANIFEST_NAME, whole_manifest, without_sums
from ..checkpoint.names import AVERAGE, of_role, under, with_prefix
from ..checkpoint.sums import sha256_of
from ..checkpoint.tensors import first_mismatch, read_tensors
from ..core.conditions import Conditions
from ..core.errors import CheckpointError, ConfigError, TornError
from ..core.files import read_regular
from ..core.network import learning
from ..core.place import rank_of
from ..core.screen import note
from ..core.typed import build, to_mapping
from ..core.types import Role
from ..data.table import AnySource
from ..flow.path import Prediction
from ..models.layers import initial_weights
from ..parallel.config import ParallelConfig
from ..parallel.ddp import DDPPlan
from ..parallel.launch import Ranks
from ..sampling.decoding import Decoder
from ..sampling.subject import Subject
from .autoencoders import decoder_of_latents, latents_of
from .config import AnyClassifier, AnyDiscriminator, AnyGenerator, RunConfig
from .networks import build_described
from .prompts import prompts_of

Device = Literal["auto", "cpu", "cuda"]

KINDS = {Role.GENERATOR: AnyGenerator, Role.DISCRIMINATOR: AnyDiscriminator, Role.CLASSIFIER: AnyClassifier}
# What torch and a network's own arithmetic raise at sizes that make no sense.
_IMPOSSIBLE = (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError)
_TIMEOUT_SECONDS = 24 * 3600  # ranks wait for one that writes or computes alone


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint of a run, read as far as its card."""

    path: Path
    card: Card
    step: int  # completed updates of the learner
    _read: list[dict[str, Tensor]]  # the weights of its average, until they are asked for; empty if they were not read

    @property
    def identity(self) -> str:
        """SHA-256 of the manifest, which lists all that lies beside it: the same wherever the checkpoint lies.

        Of other formats, of their files.
        """
        if (self.path / MANIFEST_NAME).is_file():
            return sha256(read_regular(self.path / MANIFEST_NAME)).hexdigest()
        files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.safetensors"))
        return sha256("".join(map(sha256_of, files)).encode()).hexdigest()

    @property
    def parallel(self) -> ParallelConfig:
        """How its average is computed where it does not learn: whole on every rank, in the run's own arithmetic."""
        card = self.card
        return ParallelConfig(
            plan="ddp", device=card.device, precision=card.precision, ops=card.ops, deterministic=card.deterministic,
        )

    def settings(self, role: Role) -> Mapping[str, Any]:
        """Kind and settings of a player's network, with those it does not name at their defaults."""
        return to_mapping(self._described(role))

    def network(self) -> nn.Module:
        """The network of the learner's average, on the meta device. Raises CheckpointError if there is none."""
        card = self.card
        described = self._described(card.learner)
        try:
            return build_described(card.learner, described, card.shape, card.num_classes)
        except (ConfigError, *_IMPOSSIBLE) as error:
            raise self._damaged(error) from error

    def average(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """The network of the learner's average on the meta device, and its weights on the CPU, by their names in it.

        Raises CheckpointError if the checkpoint cannot be read, or its card is of another network.
        """
        network = self.network()
        weights = under(AVERAGE, self._read.pop() if self._read else _average_at(self.path))
        learnt = {name for name, _ in learning(network)}
        if unkept := {name for name, _ in network.named_parameters()} - learnt - weights.keys():
            weights |= {name: value for name, value in initial_weights(network, 0) if name in unkept}
        mismatch = first_mismatch(weights, network.state_dict())
        if mismatch is not None:
            raise CheckpointError(
                f"{self.path} does not fit its own configuration: {mismatch}; use another checkpoint"
            )
        return network, weights

    def decoder(self, vae: str | None, device: torch.device, *, setting: str, otherwise: str = "") -> Decoder | None:
        """What decodes its samples; see `autoencoders.decoder_of`."""
        card = self.card
        return decoder_of_latents(
            card.latents, card.shape, str(card.data["kind"]), vae, device, setting=setting, otherwise=otherwise
        )

    def subject(self, ranks: Ranks, parallel: ParallelConfig) -> Subject:
        """The average at work, whole on every rank, which draws by itself. Not collective.

        Args:
            parallel: as `launch` was given it; see `on_device`.
        """
        network, weights = self.average()
        card, plan = self.card, DDPPlan(ranks, parallel)
        return Subject(
            network=plan.frozen(network, weights.items()),
            prediction=None if card.prediction is None else Prediction(card.prediction),
            shape=card.shape, num_classes=card.num_classes, num_steps=card.num_steps, dtype=plan.dtype,
            place=ranks.place, prompts=self._prompts(plan.device),
        )

    def _prompts(self, device: torch.device) -> Conditions | None:
        """What the classes of a generator that is told prompts stand for, read from its data."""
        card = self.card
        if card.learner is not Role.GENERATOR or self._described(card.learner).prompt_width is None:
            return None
        return prompts_of(build(AnySource, card.data, ("data",)).resolved(), device)

    def _described(self, role: Role) -> Any:
        try:
            return build(KINDS[role], self.card.networks[role], (role.value,))
        except ConfigError as error:
            raise CheckpointError(
                f"{self.path} holds a network that this program cannot build: {error}; use the version of the program "
                "that wrote it"
            ) from error
        except _IMPOSSIBLE as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> CheckpointError:
        reason = str(error).partition("\n")[0][:200]
        return CheckpointError(
            f"{self.path} is damaged: no network can be built as its card describes it ({type(error).__name__}: "
            f"{reason}); use an older checkpoint"
        )


def open_checkpoint(path: Path, *, holds: Role | None = None, card_alone: bool = False) -> Checkpoint:
    """The checkpoint a user means by `path`: itself, or the newest whole one of a run's folder.

    Whether it is whole is known when its files have been read: so its average is read here, unless the card alone is
    wanted. One that was passed over is told on stderr, and that one has no sums, by rank 0.
    Raises CheckpointError if there is none, if its card is damaged, or if its run was not for the role that it `holds`.
    """

    def opened(found: Path) -> tuple[Checkpoint, str]:
        if found == path and is_of_another_format(found):  # among the checkpoints of a run it is a torn one
            with format_of("auto", found).source(found, Told()) as source:
                weights = [] if card_alone else [_average_of(source)]
                return Checkpoint(found, source.card(), source.about.step, weights), str(found)
        manifest = whole_manifest(found)
        try:
            card = card_in(found, manifest)
        except CheckpointError as error:
            raise TornError(str(error)) from error
        weights = [] if card_alone else [read_tensors(found, AVERAGE)]
        return Checkpoint(found, card, manifest.step, weights), f"{found}{without_sums(manifest)}"

    def on_torn(found: Path, reason: str) -> None:
        _tell(f"passed over torn {found.name}: {reason}")

    checkpoint, described = of_newest_whole(
        path, candidates(path), opened, on_torn, do="Name another run or another checkpoint"
    )
    card = checkpoint.card
    if holds not in (None, card.learner):
        wanted = {
            Role.GENERATOR: "a generator's checkpoint",
            Role.CLASSIFIER: "the checkpoint of a run of objective 'classification'",
        }[holds]
        raise CheckpointError(f"{checkpoint.path} holds a {card.learner.value}; wanted {wanted}")
    if described != str(checkpoint.path) and not card_alone:
        _tell(described)
    return checkpoint


def is_of_another_format(path: Path) -> bool:
    """Whether a path is a file, or a folder of weights with their config.json, and no checkpoint of this program's."""
    return path.is_file() or (path / CONFIG).is_file() and not (path / MANIFEST_NAME).exists()


def _average_at(path: Path) -> dict[str, Tensor]:
    if not is_of_another_format(path):
        return read_tensors(path, AVERAGE)
    with format_of("auto", path).source(path, Told()) as source:
        return _average_of(source)


def _average_of(source: Source) -> dict[str, Tensor]:
    """The weights of the average, or of the learner where a file has no average."""
    prefix = AVERAGE if any(name.startswith(AVERAGE) for name in source.tensors) else of_role(source.card().learner)
    return with_prefix(AVERAGE, {name: lazy.read() for name, lazy in under(prefix, source.tensors).items()})


def _tell(line: str) -> None:
    if rank_of(os.environ) == 0:
        note(line)


def on_device(config: ParallelConfig, device: Device | None) -> ParallelConfig:
    """For networks that do not learn, which need no GPU with fp8: under that precision too they compute as in bf16."""
    precision = "bf16" if config.precision == "fp8" else config.precision
    return replace(config, device=device or config.device, precision=precision, timeout_seconds=_TIMEOUT_SECONDS)


def card_of_run(config: RunConfig) -> Card:
    """What the checkpoints of a run say of themselves."""
    objective, data, parallel = config.objective, config.data, config.parallel
    dropout = to_mapping(objective).get("class_dropout", 1.0 if objective.hides_classes else 0.0)
    latents = latents_of(data)
    return Card(
        learner=objective.roles[0], objective=objective.kind,
        networks={role: to_mapping(getattr(config.model, role.value)) for role in objective.roles},
        shape=tuple(data.shape), num_classes=data.num_classes,
        prediction=None if objective.prediction is None else objective.prediction.value, class_dropout=dropout,
        num_steps=config.sampling.num_steps, precision=parallel.precision, device=parallel.device, ops=parallel.ops,
        deterministic=parallel.deterministic, data=to_mapping(data),
        latents=None if latents is None else Latents(vae=latents.vae, scale=latents.scale, shift=latents.shift),
    )
