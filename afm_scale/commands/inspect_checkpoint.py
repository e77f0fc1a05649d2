"""Shows what a checkpoint holds."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

from ..checkpoint.manifest import Manifest, read_manifest, resolve_checkpoint
from ..checkpoint.names import group_of
from ..checkpoint.tensors import digest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a run's folder for its newest complete one")
    parser.add_argument("--digest", action="store_true", help="one SHA-256 over all tensors by name, on the last line")
    parser.add_argument("--json", action="store_true", help="the manifest as JSON")


def run(options: argparse.Namespace) -> int:
    path = resolve_checkpoint(options.checkpoint, on_torn=lambda path, reason: print(reason, file=sys.stderr))
    manifest = read_manifest(path)
    print(json.dumps(asdict(manifest), indent=1) if options.json else describe(path, manifest))
    if options.digest:
        print(digest(path))
    return 0


def describe(path: Path, manifest: Manifest) -> str:
    groups: dict[str, list[str]] = {}
    for name in manifest.tensors:
        groups.setdefault(group_of(name), []).append(name)
    lines = [
        f"checkpoint  {path}",
        f"step        {manifest.step}",
        f"created     {manifest.created} by {manifest.world_size} rank(s)",
        f"files       {len(manifest.files)}, {sum(manifest.files.values()):,} bytes",
        f"scalars     {json.dumps(manifest.scalars)}",
        f"run         {manifest.description.get('config', {}).get('run', {}).get('folder', 'not said')}",
        f"versions    {json.dumps(manifest.description.get('versions', {}))}",
        "",
        f"{'tensors':32} {'count':>7} {'elements':>16} {'bytes':>16}",
    ]
    for group, names in sorted(groups.items()) + [("total", list(manifest.tensors))]:
        entries = [manifest.tensors[name] for name in names]
        elements, num_bytes = sum(math.prod(entry.shape) for entry in entries), sum(e.num_bytes for e in entries)
        lines.append(f"{group:32} {len(entries):>7} {elements:>16,} {num_bytes:>16,}")
    return "\n".join(lines)
