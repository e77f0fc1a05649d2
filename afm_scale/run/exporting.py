"""From a run or a checkpoint to a folder that can be handed on: weights, how they are built, and a page about them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.formats.format import Source, Told, Wanted
from ..checkpoint.formats.output import new_folder
from ..checkpoint.formats.safetensors import write_folder
from ..checkpoint.formats.table import format_of
from ..core.errors import DataError
from ..core.files import write_atomically
from ..core.run_folder import RunFolder
from ..core.types import Role
from ..sampling.pictures import image_grid, save_png
from .converting import chosen, in_dtype
from .model import load_model

_ROWS, _COLUMNS = 4, 8  # of the picture
_SMALL = 64  # pixels: smaller images are shown larger
PICTURE, PAGE = "samples.png", "README.md"


def export(path: Path, out: Path, *, dtype: str | None = None, vae: str | None = None) -> None:
    """Writes OUT: model.safetensors (or several with an index), config.json, README.md, and a generator's samples.png.

    Raises UserError, with no OUT left, if there is no such checkpoint, or if OUT is there.
    """
    with new_folder(out) as folder, format_of("auto", path).source(path, Told()) as opened:
        source = in_dtype(chosen(opened, "average", "safetensors"), dtype)
        write_folder(source, folder, Wanted())
        is_generator = source.card().learner is Role.GENERATOR
        if is_generator:
            _picture(folder, vae)
        page = model_card(source, figures_at(opened.path, source.about.step), out.name, has_picture=is_generator)
        write_atomically(folder / PAGE, lambda file: file.write(page.encode()))


def _picture(folder: Path, vae: str | None) -> None:
    """A sheet with a column for each class, drawn from what was written."""
    model = load_model(folder, vae=vae, device="auto")
    columns = min(_COLUMNS, model.num_classes)
    images = model.sample([label for _ in range(_ROWS) for label in range(columns)])
    save_png(image_grid(images, columns=columns, upscale=max(1, _SMALL // images.shape[-1])), folder / PICTURE)


def figures_at(checkpoint: Path, step: int) -> Mapping[str, Any]:
    """Quality figures of the run that a checkpoint lies in, of the evaluation at its step or the last one before it.

    Empty where there are none: "step" among them is that of the evaluation.
    """
    for folder in (checkpoint, *checkpoint.parents[:2]):
        if RunFolder(folder).events.is_file():
            try:
                rows = [row for row in RunFolder(folder).read_events() if row["kind"] == "evaluation"]
            except DataError:
                return {}
            rows = [row for row in rows if row.get("step", 0) <= step and isinstance(row.get("figures"), dict)]
            return {"step": rows[-1]["step"], **rows[-1]["figures"]} if rows else {}
    return {}


def model_card(source: Source, figures: Mapping[str, Any], name: str, *, has_picture: bool) -> str:
    """A page for people, in Markdown."""
    card, about = source.card(), source.about
    network = card.networks[card.learner]
    config = about.description.get("config")
    kind = "pixels in [-1, 1]" if card.latents is None else "latents"
    lines = [
        f"# {name}", "",
        f"The average of a {card.learner.value}: objective `{card.objective}`, {about.step:,} updates.",
        "", "| | |", "|---|---|",
        f"| samples | {' x '.join(map(str, card.shape))}, {card.num_classes} classes, {kind} |",
        f"| network | {', '.join(f'{key} {value}' for key, value in network.items())} |",
        f"| parameters | {sum(math.prod(lazy.entry.shape) for lazy in source.tensors.values()):,} |",
        f"| steps of a sample | {card.num_steps} |",
        f"| prediction | {card.prediction} |",
    ]
    if card.latents is not None:
        less = f"less {card.latents.shift:g}, " if card.latents.shift else ""
        of = card.latents.vae or "an autoencoder that is not named"
        lines.append(f"| latents | of {of}, {less}times {card.latents.scale or 'an unknown scale'} |")
    if figures:
        told = {key: value for key, value in figures.items() if key != "step"}
        lines += ["", f"Measured at step {figures['step']:,}:", "", "| figure | |", "|---|---|"]
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in told.items()}
        lines += [f"| {key} | {value} |" for key, value in shown.items()]
    else:
        lines += ["", "No quality figures were measured in its run."]
    if has_picture:
        lines += ["", f"![samples]({PICTURE})", "", "Drawn from these weights, a column for each class, seed 0."]
    lines += [
        "", "## Use", "", "```python", "import afm_scale", "", f'model = afm_scale.load("{name}")',
        "images = model.sample([0, 1, 2], seed=0)", "```", "",
        f"Or `python -m afm_scale sample {name} --out pictures --num 10`.",
    ]
    if isinstance(config, Mapping):
        lines += ["", "## Recipe", "", "```json", json.dumps(config, indent=1), "```"]
    return "\n".join(lines) + "\n"

