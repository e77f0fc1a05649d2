"""What differs between a run and the checkpoint it goes on from: said and noted, or refused.

A run may go on with another batch, seed or rate: nobody need start over for that, but everybody should be able to see
it in the run's own files. What cannot go on is in one table, `CANNOT`: there the weights or the optimizers' moments
would mean something else, or the samples already counted would be of other data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.manifest import read_manifest
from ..core.errors import ConfigError
from ..core.typed import found, to_mapping
from ..core.types import Role
from .config import RunConfig

FINGERPRINT = "data.fingerprint"  # of what no setting says: which data lie in the folder
_SETTINGS_OF_COURSE = ("run.accept_changes",)


@dataclass(frozen=True)
class Change:
    """A setting, by its dotted path, and its plain values."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {found(self.old)} -> {found(self.new)}"


@dataclass(frozen=True)
class Cannot:
    """A setting, or a section of them, that a run cannot change."""

    key: str
    why: str
    where: Callable[[RunConfig, bool], bool] = lambda config, same_data: True
    """Whether it holds, of the new configuration, and if the data are known to be the same."""


CANNOT = (
    Cannot("objective.kind", "another objective trains networks of another meaning"),
    Cannot("objective.prediction", "the generator's output would mean something else"),
    *(
        Cannot(
            f"model.{role.value}", f"the {role.value} would be another network, even where its tensors fit",
            lambda config, same_data, role=role: role in config.objective.roles,
        )
        for role in Role
    ),
    Cannot("data.kind", "these may be other data", lambda config, same_data: not same_data),
    *(
        Cannot(f"data.{name}", "the networks were trained on samples of another kind")
        for name in ("shape", "size", "num_classes", "scale")
    ),
    *(Cannot(f"data.{name}", "these are other data") for name in ("distribution", "part")),
    *(
        Cannot(name, "the prompts were embedded by another text encoder: their numbers mean something else")
        for name in ("data.encoder", f"{FINGERPRINT}.text_encoder")
    ),
    Cannot(f"{FINGERPRINT}.classes", "the classes have other names or another order, so labels mean others"),
    Cannot(FINGERPRINT, "this is another data set, or was packed anew"),
)
"""The first that fits a change says why. Everything else may change: seed and batch change the order of the data."""


@dataclass
class Comparison:
    """Compares the settings of this run with those of the checkpoint it is about to go on from."""

    config: RunConfig
    fingerprint: Mapping[str, str]  # of its data
    changes: Sequence[Change] = ()  # found by the last call

    def __call__(self, checkpoint: Path) -> None:
        """Raises ConfigError for changes that are in `CANNOT` and not in `run.accept_changes`.

        A checkpoint that does not say its settings, or not all of them, is taken at its word.
        """
        description = read_manifest(checkpoint).description
        config, data = description.get("config"), description.get("data")
        data = data if isinstance(data, Mapping) else {}
        changes = [
            *(_differences(self.config, config) if isinstance(config, Mapping) and config else ()),
            *(
                Change(f"{FINGERPRINT}.{name}", data[name], value)
                for name, value in self.fingerprint.items() if name in data and data[name] != value
            ),
        ]
        self.changes = [change for change in changes if change.key not in _SETTINGS_OF_COURSE]
        refused = [(change, why) for change in self.changes for why in [self._refusal(change, data)] if why]
        if refused:
            told = "; ".join(f"{change} ({why})" for change, why in refused)
            keys = ", ".join(change.key for change, _ in refused)
            raise ConfigError(
                f"{checkpoint} cannot be gone on from with these settings: {told}. Set them back, choose another "
                f"run.folder, or, if this is meant, say run.accept_changes=[{keys}]"
            )

    def _refusal(self, change: Change, data: Mapping[str, Any]) -> str | None:
        if any(_is_within(change.key, accepted) for accepted in self.config.run.accept_changes):
            return None
        same_data = bool(self.fingerprint) and dict(self.fingerprint) == dict(data)
        reasons = (
            cannot.why for cannot in CANNOT
            if (_is_within(change.key, cannot.key) or _is_within(cannot.key, change.key))
            and cannot.where(self.config, same_data)
        )
        return next(reasons, None)


def _is_within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _differences(new: Any, old: Any, keys: tuple[str, ...] = ()) -> Iterator[Change]:
    """Where a configuration differs from plain values that a configuration, maybe of an older version, once was.

    A setting that the older version did not have is different if it is not at its default; one that it alone had is
    left out. Of two kinds of a thing the whole is told, but of sections.
    """
    plain = json.loads(json.dumps(to_mapping(new)))
    kinds_agree = len(keys) == 1 or isinstance(old, Mapping) and old.get("kind") == getattr(new, "kind", None)
    if not (is_dataclass(new) and isinstance(plain, Mapping) and isinstance(old, Mapping) and kinds_agree):
        if plain != old:
            yield Change(".".join(keys), old, plain)
        return
    for field in fields(new):
        value = getattr(new, field.name)
        if field.name in old:
            yield from _differences(value, old[field.name], (*keys, field.name))
        elif field.default is not MISSING and value != field.default:
            yield Change(".".join((*keys, field.name)), None, plain[field.name])
