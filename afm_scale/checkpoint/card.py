"""A checkpoint's card: all that is needed to build its networks, to draw from them and to convert them; plain values.

It has a version of its own and stands in the manifest beside the run's configuration, which is kept for people: so a
setting may be renamed or removed without making an older checkpoint unreadable. Checkpoints from before there were
cards get theirs from the few keys of their configuration that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import CheckpointError
from ..core.types import Role
from .manifest import Manifest, read_manifest

T = TypeVar("T")

VERSION = 1
PREDICTIONS = ("x", "v")
OPS = ("auto", "torch", "triton", "apex")
PRECISIONS = ("fp32", "tf32", "bf16", "fp8", "fp64")


@dataclass(frozen=True, kw_only=True)
class Latents:
    """What the samples of a latent model are: `scale` times an autoencoder's latents. None: the run did not say."""

    vae: str | None
    scale: float | None


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a checkpoint holds."""

    version: int = VERSION
    learner: Role  # whom the run was for: its weights are averaged
    objective: str  # its kind
    networks: Mapping[Role, Mapping[str, Any]]  # kind and settings of each player's network
    shape: tuple[int, int, int]  # [C, H, W] of one sample
    num_classes: int
    prediction: str | None  # what the generator's output means: x or v; None for a classifier
    class_dropout: float  # share of the samples that were shown without their class
    num_steps: int  # network evaluations of one sample, unless told otherwise
    precision: str  # parallel.precision
    data: Mapping[str, Any]  # kind and settings of the data
    latents: Latents | None  # None: samples are pixels, in [-1, 1]
    device: str  # parallel.device
    ops: str = "auto"  # parallel.ops
    deterministic: bool = False  # parallel.deterministic


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
            f"{path} has a card of version {plain.get('version')!r}, this program reads version {VERSION}; use the "
            "version of the program that wrote it"
        )
    try:
        return read(plain)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is damaged: its description of what it holds cannot be read ({error!r}); use an older checkpoint"
        ) from error


def to_plain(card: Card) -> dict[str, Any]:
    """JSON values; the inverse of `from_plain`."""
    networks = {role.value: dict(settings) for role, settings in card.networks.items()}
    return {**asdict(card), "learner": card.learner.value, "networks": networks, "shape": list(card.shape)}


def from_plain(plain: Mapping[str, Any]) -> Card:
    """Raises KeyError, TypeError or ValueError for what is no card of this version."""
    networks = {Role(role): _settings(settings) for role, settings in _mapping(plain["networks"]).items()}
    latents = plain["latents"]
    card = Card(
        version=_number(plain["version"], int),
        learner=Role(plain["learner"]),
        objective=_text(plain["objective"]),
        networks=networks,
        shape=_shape(plain["shape"]),
        num_classes=_number(plain["num_classes"], int, least=1),
        prediction=None if plain["prediction"] is None else _one_of(plain["prediction"], PREDICTIONS),
        class_dropout=_number(plain["class_dropout"], float),
        num_steps=_number(plain["num_steps"], int, least=1),
        precision=_one_of(plain["precision"], PRECISIONS),
        device=_one_of(plain["device"], ("auto", "cpu", "cuda")),
        ops=_one_of(plain["ops"], OPS),
        deterministic=_one_of(plain["deterministic"], (True, False)),
        data=_settings(plain["data"]),
        latents=None if latents is None else _latents(_mapping(latents)),
    )
    if card.learner not in networks:
        raise ValueError(f"no network of the learner {card.learner.value!r}")
    if (card.learner is Role.GENERATOR) != (card.prediction is not None):
        raise ValueError(f"a {card.learner.value} with prediction {card.prediction!r}")
    return card


def _from_configuration(config: Mapping[str, Any]) -> Card:
    """The card of a checkpoint from before there were cards (format 1, until 2026-11): of a run's resolved recipe."""
    model, data, objective = _mapping(config["model"]), _settings(config["data"]), _settings(config["objective"])
    learner = Role.CLASSIFIER if objective["kind"] == "classification" else Role.GENERATOR
    players = (learner, Role.DISCRIMINATOR) if model.get("discriminator") is not None else (learner,)
    shape, num_classes = _CONTENTS[data["kind"]](data)
    draws_latents = data["kind"] in ("latents", "images_to_latents", "synthetic")
    return from_plain({
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
    })


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


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"found {value!r:.60}, wanted a mapping")
    return value


def _settings(value: Any) -> Mapping[str, Any]:
    """A mapping with a `kind`."""
    _text(_mapping(value)["kind"])
    return dict(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"found {value!r:.60}, wanted text")
    return value


def _number(value: Any, kind: type, *, least: float = 0) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not least <= value < float("inf"):
        raise ValueError(f"found {value!r:.60}, wanted a number of at least {least}")
    return kind(value)


def _one_of(value: T, choices: tuple[T, ...]) -> T:
    if not isinstance(value, type(choices[0])) or value not in choices:
        raise ValueError(f"found {value!r:.60}, wanted one of {', '.join(map(str, choices))}")
    return value


def _shape(value: Any) -> tuple[int, int, int]:
    channels, height, width = (_number(size, int, least=1) for size in value)
    return channels, height, width


def _latents(value: Mapping[str, Any]) -> Latents:
    vae, scale = value["vae"], value["scale"]
    return Latents(
        vae=None if vae is None else _text(vae), scale=None if scale is None else _number(scale, float),
    )
