"""The ranks of a launcher beside each other: whether they are alike, what each can do, and which are slow."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..core.errors import EXIT_DONE, EXIT_FAILURE
from ..core.files import explained_write
from ..core.screen import say
from ..parallel.agreement import agreed, check_same_on_all_ranks, from_rank_0
from ..parallel.config import ParallelConfig
from ..parallel.health import CLOCK, LONGEST_SKEW, SLOW, figures_of, slow
from ..parallel.launch import Ranks, launch
from ..run.config import RunConfig
from ..run.load import dump_yaml, load
from ..run.tables import show_table
from ..run.together import check_seen, check_versions, versions

DEFAULT_FOLDER = Path("runs")


def doctor_cluster_command(recipe: str | None, overrides: Sequence[str], *, as_json: bool) -> int:
    """Every rank calls it. Returns 0, or 1 if a rank fails in a figure.

    Raises ConfigError, the same on every rank, for versions, code or a configuration that differ, and for a folder that
    a rank does not see.
    """
    config = None if recipe is None else load(RunConfig, recipe, overrides)
    wanted = (DEFAULT_FOLDER if config is None else config.run.folder).resolve()
    with launch(ParallelConfig(plan="ddp") if config is None else config.parallel) as ranks:
        check_versions()
        if config is not None and dist.is_initialized():
            check_same_on_all_ranks(dump_yaml(config), "the configuration")
        # That of the run, or where it would be made.
        folder = from_rank_0(ranks.rank, lambda: next(path for path in (wanted, *wanted.parents) if path.is_dir()))
        check_seen(folder, ranks.rank)
        rows = _measure(ranks, folder)
        if ranks.rank == 0:
            _show(rows, folder, as_json=as_json)
        return EXIT_FAILURE if slow(_by_figure(rows)) else EXIT_DONE


def _measure(ranks: Ranks, folder: Path) -> list[dict[str, Any]]:
    """A row of each rank, on every rank."""
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
    row: dict[str, Any] = {"rank": ranks.rank, "host": socket.gethostname(), "device": device}
    for figure in figures_of(ranks.world_size):
        with agreed(), explained_write(folder):
            row[figure.name] = figure.measure(ranks.place, folder)
    rows: list[dict[str, Any]] = [row] * ranks.world_size
    if dist.is_initialized():
        dist.all_gather_object(rows, row)
    return rows


def _by_figure(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    return {figure.name: [row[figure.name] for row in rows] for figure in figures_of(len(rows))}


def _show(rows: Sequence[dict[str, Any]], folder: Path, *, as_json: bool) -> None:
    failed = slow(_by_figure(rows))
    if as_json:
        say(json.dumps({"versions": versions(), "folder": str(folder), "ranks": rows, "failed": failed}, indent=2))
        return
    figures = figures_of(len(rows))
    lines = [
        [str(row["rank"]), row["host"], row["device"]] + [
            f"{row[figure.name]:.3g}{' *' if row['rank'] in failed.get(figure.name, []) else ''}" for figure in figures
        ]
        for row in rows
    ]
    heads = ["rank", "host", "device", *(f"{figure.name} {figure.unit}" for figure in figures)]
    show_table(f"afm_scale doctor --cluster, writing to {folder}", lines, columns=heads)
    alike = ", ".join(f"{name} {version}" for name, version in versions().items() if version != "not installed")
    say(f"the same on all ranks: {alike}")
    say(f"* is slow: below {SLOW:.0%} of the median over the ranks; {CLOCK.name}: over {LONGEST_SKEW:g} s from it")
    for name, ranks in failed.items():
        say(f"failed: {name} of " + ", ".join(f"rank {rank} on {rows[rank]['host']}" for rank in ranks))
