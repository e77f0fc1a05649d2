"""The memory of a step as a picture: what one rank holds from its begin to its end, by player and kind."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from ...core.files import write_atomically
from ...estimate.memory import KINDS
from .planning import Plan

_COLOURS = (
    "#1b4f72", "#2e86c1", "#85c1e9", "#aab7b8", "#145a32", "#f5b041", "#cb4335", "#d7bde2", "#7d6608", "#616a6b",
)


def draw_plan(path: Path, plan: Plan, *, title: str) -> None:
    """Draws a PNG of the phase that needs most. Raises UserError if it cannot be written."""
    memory = plan.largest.run.memory
    moments = [("none", "rest", memory.rest.parts), *memory.course]
    found_parts = {part for _, _, found in moments for part in found}
    parts = sorted(found_parts, key=lambda part: (KINDS.index(part[1]), part[0]))
    networks = sorted({network for network, _ in parts})
    figure = Figure(figsize=(12.0, 5.5), layout="constrained")
    axes = figure.subplots()
    stacks = [[found.get(part, 0) / 1e9 for _, _, found in moments] for part in parts]
    drawn = axes.stackplot(
        range(len(moments)), stacks, labels=[" ".join(part) for part in parts],
        colors=[_COLOURS[KINDS.index(kind)] for _, kind in parts], step="post",
    )
    for area, (network, _) in zip(drawn, parts, strict=True):
        area.set_hatch(("", "///", "...", "xx", "++")[networks.index(network) % 5])
        area.set_edgecolor("white")
        area.set_linewidth(0.0)
    begin = 0
    for (mover, occasion), stretch in groupby(moments, key=lambda moment: moment[:2]):
        length = len(list(stretch))
        if length > len(moments) / 40:
            axes.text(begin, 1.0, f"{mover}\n{occasion}", fontsize=7, va="bottom", transform=axes.get_xaxis_transform())
            axes.axvline(begin, color="#7f8c8d", linewidth=0.5)
        begin += length
    axes.set_xlim(0, len(moments) - 1)
    axes.set_xticks([])
    axes.set_xlabel("a step, by what is allocated and freed (not by time)")
    axes.set_ylabel("GB of rank 0, estimated")
    axes.set_title(title, loc="left", fontsize=9, pad=26)
    axes.legend(*(list(reversed(side)) for side in axes.get_legend_handles_labels()), fontsize=7, loc="center left",
                bbox_to_anchor=(1.0, 0.5))
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
