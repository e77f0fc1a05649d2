"""Shows what a checkpoint holds: python tools/inspect_checkpoint.py CHECKPOINT|RUN [--digest] [--json]"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from afm_scale.checkpoint.manifest import Manifest, read_manifest, resolve_checkpoint
from afm_scale.checkpoint.tensors import digest
from afm_scale.core.errors import RunError


def main() -> int:
    parser = argparse.ArgumentParser(description="Shows the manifest of a checkpoint.")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a run's folder for its newest complete one")
    parser.add_argument("--digest", action="store_true", help="one SHA-256 over all tensors by name, on the last line")
    parser.add_argument("--json", action="store_true", help="the manifest as JSON")
    arguments = parser.parse_args()
    try:
        path = resolve_checkpoint(arguments.checkpoint, on_torn=lambda path, reason: print(reason, file=sys.stderr))
        manifest = read_manifest(path)
        print(json.dumps(asdict(manifest), indent=1) if arguments.json else describe(path, manifest))
        if arguments.digest:
            print(digest(path))
    except RunError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def describe(path: Path, manifest: Manifest) -> str:
    groups: dict[str, list[str]] = {}
    for name in manifest.tensors:
        parts = name.split(".")
        groups.setdefault(".".join(parts[: 2 if parts[0] == "optimizer" else 1]), []).append(name)
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


if __name__ == "__main__":
    raise SystemExit(main())
