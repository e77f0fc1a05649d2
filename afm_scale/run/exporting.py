"""From a run or a checkpoint to a folder that can be handed on: weights, how they are built, and a page about them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.formats.format import Source, Told, Wanted
from ..checkpoint.formats.output import new_folder
from ..checkpoint.formats.safetensors import CONFIG, WEIGHTS, write_folder
from ..checkpoint.formats.table import format_of
from ..core.errors import DataError
from ..core.files import write_atomically
from ..core.run_folder import RunFolder
from ..core.screen import note
from ..core.typed import build
from ..core.types import Role
from ..models.large.config import DiffusersConfig
from ..sampling.pictures import image_grid, save_png
from .checkpoints import KINDS
from .converting import chosen, in_dtype
from .exporting_diffusers import USE, write_for_diffusers
from .model import load_model

_ROWS, _COLUMNS = 4, 8  # of the picture
_SMALL = 64  # pixels: smaller images are shown larger
PICTURE, PAGE = "samples.png", "README.md"


def export(path: Path, out: Path, *, dtype: str | None = None, vae: str | None = None) -> list[str]:
    """Writes OUT: model.safetensors (or several with an index), config.json, README.md, and a generator's samples.png.

    A transformer of diffusers is written for diffusers in their place. Returns the names of what was written.

    Raises UserError, with no OUT left, if there is no such checkpoint, or if OUT is there.
    """
    with new_folder(out) as folder, format_of("auto", path).source(path, Told()) as opened:
        source = in_dtype(chosen(opened, "average", "safetensors"), dtype)
        card = source.card()
        network = build(KINDS[card.learner], card.networks[card.learner], (card.learner.value,))
        write, use, readable = _OTHERS.get(type(network), (_as_own, _own_use(out.name), folder))
        written = write(source, folder)
        is_generator = card.learner is Role.GENERATOR
        has_picture = is_generator and _picture(readable or path, folder, vae)
        page = model_card(source, figures_at(opened.path, source.about.step), out.name, use, has_picture=has_picture)
        write_atomically(folder / PAGE, lambda file: file.write(page.encode()))
    return [*written, PAGE, *[PICTURE] * has_picture]


def _as_own(source: Source, folder: Path) -> list[str]:
    write_folder(source, folder, Wanted())
    return [WEIGHTS, CONFIG]


def _own_use(name: str) -> tuple[str, ...]:
    return (
        "```python", "import afm_scale", "", f'model = afm_scale.load("{name}")',
        "images = model.sample([0, 1, 2], seed=0)", "```", "",
        f"Or `python -m afm_scale sample {name} --out pictures --num 10`.",
    )


# By a network's configuration, where its export is another program's: what writes it, the page's words on its use, and
# what the picture is drawn from; None: the checkpoint.
_OTHERS = {DiffusersConfig: (write_for_diffusers, USE, None)}


def _picture(readable: Path, folder: Path, vae: str | None) -> bool:
    """A sheet with a column for each class, drawn from what was written. False where prompts are not there any more."""
    try:
        model = load_model(readable, vae=vae, device="auto")
    except DataError as error:
        note(f"without a picture: {error}")
        return False
    columns = min(_COLUMNS, model.num_classes)
    images = model.sample([label for _ in range(_ROWS) for label in range(columns)])
    save_png(image_grid(images, columns=columns, upscale=max(1, _SMALL // images.shape[-1])), folder / PICTURE)
    return True


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


def model_card(
    source: Source, figures: Mapping[str, Any], name: str, use: Sequence[str], *, has_picture: bool
) -> str:
    """A page for people, in Markdown; `use` is what it says of how it is used."""
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
    lines += ["", "## Use", "", *use]
    if isinstance(config, Mapping):
        lines += ["", "## Recipe", "", "```json", json.dumps(config, indent=1), "```"]
    return "\n".join(lines) + "\n"

