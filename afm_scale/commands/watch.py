"""A live page of one run, or several side by side: curves, phase, acts, newest samples, ranks, and how each stands.

It only reads their files, also while they go on, and is seen on this machine alone unless --host says otherwise:
ssh -L 8600:localhost:8600 HOST shows that of another. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import EXIT_DONE, DataError, UserError
from ..core.files import read_regular
from ..core.ranges import Range
from ..core.run_folder import RunFolder
from ..core.screen import say
from ..evaluation.watching.server import Server
from ..evaluation.watching.view import Watched
from ..run.arguments import add_number, request_of
from ..run.load import parse_yaml


@dataclass(frozen=True, kw_only=True)
class WatchRequest:
    """The command's arguments."""

    runs: Sequence[Path]
    host: str
    port: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    parser.add_argument("--host", default="127.0.0.1", help="the address that it listens at (default 127.0.0.1)")
    add_number(
        parser, "--port", int, Range(0, 65535), default=8600, metavar="N", help="0: one that is free (default 8600)"
    )


def run(options: argparse.Namespace) -> int:
    return watch_command(request_of(WatchRequest, options))


def watch_command(request: WatchRequest) -> int:
    """Serves until it is interrupted. Raises UserError for an address that cannot be had, DataError for no run."""
    with Server([watched(path) for path in request.runs], request.host, request.port) as server:
        say(f"{', '.join(map(str, request.runs))}: {server.url} (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
    return EXIT_DONE


def watched(path: Path) -> Watched:
    """A run that may be at its very beginning: a folder with its settings or a log."""
    folder = RunFolder(path)
    if not any(file.exists() for file in (folder.config, folder.events, folder.metrics)):
        raise DataError(
            f"{path} has no {folder.config.name}, {folder.events.name} or {folder.metrics.name}; name a run's folder"
        )
    return Watched(path, lambda: _settings(folder))


def _settings(folder: RunFolder) -> dict[str, Any]:
    try:
        found = parse_yaml(read_regular(folder.config), str(folder.config))
    except (OSError, UserError):  # lost, damaged or not written yet: curves are shown without
        return {}
    return found if isinstance(found, dict) else {}
