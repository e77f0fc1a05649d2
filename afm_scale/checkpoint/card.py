"""A checkpoint's card: all that is needed to build its networks, to draw from them and to convert them; plain values.

It has a version of its own and stands in the manifest beside the run's configuration, which is kept for people: so a
setting may be renamed or removed without making an older checkpoint unreadable. Checkpoints from before there were
cards get theirs from the few keys of their configuration that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from ..core.errors import CheckpointError, ConfigError
from ..core.ranges import Range
from ..core.typed import build, found
from ..core.types import Role
from .manifest import Manifest, read_manifest

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Latents:
    """What the samples of a latent model are: `scale` times an autoencoder's latents less `shift`.

    None: the run did not say.
    """

    vae: str | None
    scale: Annotated[float, Range(0)] | None
    shift: Annotated[float, Range(-1e6, 1e6)] = 0.0  # of what was trained before there was one


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a checkpoint holds. Raises ConfigError for a card that contradicts itself."""

    version: int = VERSION
    learner: Role  # whom the run was for: its weights are averaged
    objective: str  # its kind
    networks: Mapping[Role, Mapping[str, Any]]  # kind and settings of each player's network
    shape: Annotated[tuple[int, int, int], Range(1, 2**16)]  # [C, H, W] of one sample
    num_classes: Annotated[int, Range(1, 10**7)]
    prediction: Literal["x", "v"] | None  # what the generator's output means; None for a classifier
    class_dropout: Annotated[float, Range(0, 1)]  # share of the samples that were shown without their class
    num_steps: Annotated[int, Range(1, 100_000)]  # network evaluations of one sample, unless told otherwise
    precision: Literal["fp32", "tf32", "bf16", "fp8", "fp64"]  # parallel.precision
    data: Mapping[str, Any]  # kind and settings of the data
    latents: Latents | None  # None: samples are pixels, in [-1, 1]
    device: Literal["auto", "cpu", "cuda"]  # parallel.device
    ops: Literal["auto", "torch", "triton", "apex"] = "auto"  # parallel.ops
    deterministic: bool = False  # parallel.deterministic

    def __post_init__(self) -> None:
        described = {role.value: settings for role, settings in self.networks.items()} | {"data": self.data}
        for name, settings in described.items():
            if not isinstance(settings.get("kind"), str):
                raise ConfigError(f"the 'kind' of {name} is {found(settings.get('kind'))}, wanted text")
        if self.learner not in self.networks:
            raise ConfigError(f"no network of the learner {self.learner.value!r}")
        if (self.learner is Role.GENERATOR) != (self.prediction is not None):
            raise ConfigError(f"a {self.learner.value} with prediction {found(self.prediction)}")


def card_of(path: Path) -> Card:
    """The card of a complete checkpoint.

    Raises CheckpointError if there is no such checkpoint, if it does not say what it holds, or if its card is damaged
    or of a newer version.
    """
    return card_in(path, read_manifest(path))


def card_in(path: Path, manifest: Manifest) -> Card:
    """The card in a manifest that was read from `path`; raises as `card_of`."""
    plain, read = manifest.card, from_plain
    if plain is None:
        plain, read = manifest.description.get("config"), _from_configuration
    if not isinstance(plain, Mapping) or not plain:
        raise CheckpointError(f"{path} does not say how it was made; wanted a checkpoint written by train")
    if manifest.card is not None and plain.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has a card of version {found(plain.get('version'))}, this program reads version {VERSION}; use "
            "the version of the program that wrote it"
        )
    try:
        return read(plain)
    except ConfigError as error:
        raise CheckpointError(
            f"{path} is damaged: its description of what it holds cannot be read ({str(error):.300}); use an older "
            "checkpoint"
        ) from error


def to_plain(card: Card) -> dict[str, Any]:
    """JSON values; the inverse of `from_plain`."""
    networks = {role.value: dict(settings) for role, settings in card.networks.items()}
    return {**asdict(card), "learner": card.learner.value, "networks": networks, "shape": list(card.shape)}


def from_plain(plain: Mapping[str, Any]) -> Card:
    """Raises ConfigError for what is no card of this version: without any of its entries, or with others."""
    if missing := [field.name for field in fields(Card) if field.name not in plain]:
        raise ConfigError(f"missing {', '.join(map(repr, missing))}")  # defaults are for those who make a card
    return build(Card, plain)


def _from_configuration(config: Mapping[str, Any]) -> Card:
    """The card of a checkpoint from before there were cards (format 1, until 2026-11): of a run's resolved recipe."""
    try:
        return from_plain(_told_by(config))
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"its configuration has no {error}") from error


def _told_by(config: Mapping[str, Any]) -> dict[str, Any]:
    model, data, objective = config["model"], config["data"], config["objective"]
    learner = Role.CLASSIFIER if objective["kind"] == "classification" else Role.GENERATOR
    players = (learner, Role.DISCRIMINATOR) if model.get("discriminator") is not None else (learner,)
    shape, num_classes = _CONTENTS[data["kind"]](data)
    draws_latents = data["kind"] in ("latents", "images_to_latents", "synthetic")
    return {
        "version": VERSION,
        "learner": learner.value,
        "objective": objective["kind"],
        "networks": {role.value: model[role.value] for role in players},
        "shape": shape,
        "num_classes": num_classes,
        "prediction": None if learner is Role.CLASSIFIER else objective.get("prediction", "v"),
        "class_dropout": objective.get("class_dropout", 0.0),
        "num_steps": config["sampling"]["num_steps"],
        "precision": config["parallel"]["precision"],
        "device": config["parallel"]["device"],
        "ops": config["parallel"].get("ops", "auto"),
        "deterministic": config["parallel"].get("deterministic", False),
        "data": data,
        "latents": {"vae": data.get("vae"), "scale": data.get("scale")} if draws_latents else None,
    }


def _as_said(data: Mapping[str, Any]) -> tuple[Any, Any]:
    return data["shape"], data["num_classes"]


def _pixels(data: Mapping[str, Any]) -> tuple[Any, Any]:
    return [3, data["size"], data["size"]], data["num_classes"]


# Shape and number of classes of the data there were before cards, by their kind.
_CONTENTS: dict[str, Callable[[Mapping[str, Any]], tuple[Any, Any]]] = {
    "digits": lambda data: ([1, 8, 8], 10),
    "mixture1d": lambda data: ([1, 1, 1], 1),
    "mixture2d": lambda data: ([2, 1, 1], len(data["distribution"]["centres"])),
    "synthetic": _as_said, "latents": _as_said, "images_to_latents": _as_said,
    "webdataset": _pixels, "dali": _pixels,
}
