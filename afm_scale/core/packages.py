"""Optional packages: whether they are there, and what to install if they are not."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import ConfigError


def to_install(extra: str) -> str:
    """The command, as the README has it: of a checkout, with the versions that are known to fit."""
    return f"pip install -c constraints.txt '.[{extra}]' (in the folder of this project)"


def require(package: str, wanted_by: str, extra: str, *, command: str | None = None) -> None:
    """Raises ConfigError, naming the extra to install (or another command), if an optional package is not there."""
    top = package.partition(".")[0]
    if find_spec(top) is None or find_spec(package) is None:
        raise ConfigError(
            f"{wanted_by} needs the package {package}, which is not installed: "
            + (command or to_install(extra))
        )
