"""Files of weights from elsewhere: read once, identified by their SHA-256, and never unpickled."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import ConfigError
from ...core.files import NotRegular, read_regular, remedy_of_reading

_LARGEST = 2**34  # bytes, which are all held in memory


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file that everybody's figures are made with."""

    name: str
    sha256: str
    origin: str  # who publishes it, for a person


@dataclass(frozen=True)
class WeightsFile:
    """The bytes that were hashed are the bytes that are used: the file is read once."""

    path: Path
    content: bytes
    sha256: str

    @property
    def short_sha256(self) -> str:
        """The first 16 hex digits, as they stand in names."""
        return self.sha256[:16]


def check_there(path: Path, *, setting: str) -> None:
    """Raises ConfigError, naming the setting, if there is no such file."""
    if not path.exists():
        raise _not_there(path, setting)


def _not_there(path: Path, setting: str) -> ConfigError:
    return ConfigError(f"{path} is not there; name a file with the setting {setting}")


def check_published_there(path: Path, published: PublishedFile) -> None:
    """Raises ConfigError, which says what it is and where to put it, if there is no such file."""
    if not path.exists():
        raise ConfigError(
            f"{path} is not there. Inception features need {published.name} ({published.origin}; SHA-256 "
            f"{published.sha256}): put it there, or name the file you have with the setting weights (--weights FILE)"
        )


def read_weights_file(path: Path, *, setting: str) -> WeightsFile:
    """Raises ConfigError, naming the setting, if the file is missing or cannot be read."""
    try:
        content = read_regular(path, _LARGEST)
    except FileNotFoundError:
        raise _not_there(path, setting) from None
    except NotRegular as error:
        raise ConfigError(f"{path} cannot be used: {error.strerror}; name a file with the setting {setting}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; {remedy_of_reading(error)}") from error
    return WeightsFile(path, content, hashlib.sha256(content).hexdigest())


def read_published_file(path: Path, published: PublishedFile, expected_sha256: str | None) -> WeightsFile:
    """The file, if its SHA-256 is the expected one (None: any).

    Raises ConfigError if it is missing, which says what it is and where to put it, or if it is another file.
    """
    check_published_there(path, published)
    file = read_weights_file(path, setting="weights (--weights FILE)")
    if expected_sha256 not in (None, file.sha256):
        whose = f" ({published.name}, {published.origin})" if expected_sha256 == published.sha256 else ""
        raise ConfigError(
            f"{path} has {len(file.content):,} bytes and SHA-256 {file.sha256}, wanted {expected_sha256}{whose}; fetch "
            "it again, or set sha256 to null or to the number found to use this file knowingly: the name of the "
            "features then tells their figures from the published ones"
        )
    return file
