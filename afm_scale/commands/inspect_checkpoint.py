"""Shows what a checkpoint holds, or in what two differ."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoint.falling_back import candidates, of_newest_whole
from ..checkpoint.manifest import Manifest, whole_manifest
from ..checkpoint.names import group_of
from ..checkpoint.sums import compare
from ..checkpoint.tensors import digest
from ..core.screen import note, say
from ..run.differing import differences


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a run's folder for its newest complete one")
    parser.add_argument(
        "other", type=Path, nargs="?", help="another, of any format: what differs is listed, of any two formats"
    )
    parser.add_argument("--digest", action="store_true", help="one SHA-256 over all tensors by name, on the last line")
    parser.add_argument("--json", action="store_true", help="the manifest as JSON")


def run(options: argparse.Namespace) -> int:
    if options.other is not None:
        for line in differences(options.checkpoint, options.other):
            say(line)
        return 0
    path, manifest = of_newest_whole(
        options.checkpoint, candidates(options.checkpoint), _compared,
        lambda path, reason: note(reason), do="Name another run or another checkpoint",
    )
    say(json.dumps(asdict(manifest), indent=1) if options.json else describe(path, manifest))
    if options.digest:
        say(digest(path))
    return 0


def _compared(path: Path) -> tuple[Path, Manifest]:
    """The manifest of a checkpoint whose files all have their sums."""
    manifest = whole_manifest(path)
    compare(path, manifest.sha256 or {})
    return path, manifest


def describe(path: Path, manifest: Manifest) -> str:
    groups: dict[str, list[str]] = {}
    for name in manifest.tensors:
        groups.setdefault(group_of(name), []).append(name)
    lines = [
        f"checkpoint  {path}",
        f"step        {manifest.step}",
        f"created     {manifest.created} by {manifest.world_size} rank(s)",
        f"files       {len(manifest.files)}, {sum(manifest.files.values()):,} bytes",
        f"checksums   {'no checksums (older checkpoint)' if manifest.sha256 is None else 'SHA-256, all compared'}",
        f"scalars     {json.dumps(manifest.scalars)}",
        f"run         {_said(manifest, 'config', 'run', 'folder')}",
        f"versions    {_said(manifest, 'versions')}",
        "",
        f"{'tensors':32} {'count':>7} {'elements':>16} {'bytes':>16}",
    ]
    for group, names in sorted(groups.items()) + [("total", list(manifest.tensors))]:
        entries = [manifest.tensors[name] for name in names]
        elements, num_bytes = sum(math.prod(entry.shape) for entry in entries), sum(e.num_bytes for e in entries)
        lines.append(f"{group:32} {len(entries):>7} {elements:>16,} {num_bytes:>16,}")
    return "\n".join(lines)


def _said(manifest: Manifest, *keys: str) -> str:
    """What its description, which is for people and holds anything, has there."""
    value: Any = manifest.description
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return "not said" if value is None else value if isinstance(value, str) else json.dumps(value)
