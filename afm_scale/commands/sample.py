"""Images from the average of a checkpoint, alone or shared by the ranks of a launcher."""

from __future__ import annotations

import argparse
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..core.errors import UserError
from ..core.files import make_folder, refuse_to_replace
from ..core.ranges import LARGEST_WHOLE, MANY, Range
from ..core.screen import say
from ..core.types import Role
from ..evaluation.images.encoded import image_files
from ..evaluation.images.stamp import Stamp, check_replaceable, claim_folder, name_of
from ..parallel.agreement import agreed
from ..parallel.launch import Ranks, launch
from ..run.arguments import LABELS_HELP, add_number, add_steps, check_steps, labels, name_or_path, request_of
from ..run.checkpoints import Checkpoint, on_device, open_checkpoint
from ..sampling.decoding import Decoder
from ..sampling.drawing import Drawing, LabelChoice, check_finite, classes_of, describe_labels
from ..sampling.pictures import save_png, to_uint8
from ..sampling.sampler import Tile
from ..sampling.sheets import Sheets

_WRITERS = 8


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """The command's arguments."""

    checkpoint: Path
    out: Path
    num: int
    labels: LabelChoice
    steps: int | None
    between: tuple[float, ...] | None
    renoise: bool
    seed: int
    batch_size: int
    grid: Path | None
    npz: Path | None
    vae: str | None
    latents: bool  # pictures of latents in false colour, without an autoencoder
    device: Literal["auto", "cpu", "cuda"] | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, help="a checkpoint, or a run's folder (its newest one)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for 000000.png, ...")
    add_number(parser, "--num", int, Range(1, MANY), required=True, metavar="N")
    add("--labels", type=labels, default="balanced", metavar="balanced|random|0,1,2", help=LABELS_HELP)
    add_steps(parser)
    add_number(parser, "--seed", int, Range(0, LARGEST_WHOLE), default=0)
    add_number(parser, "--batch-size", int, Range(1, 1_000_000), default=256,
        help="images held at once; changes no image")
    add("--grid", type=Path, metavar="FILE.png", help="one sheet, a row for each class")
    add("--npz", type=Path, metavar="FILE.npz", help="for ADM's evaluator: arr_0, shuffled; labels")
    add("--vae", type=name_or_path, metavar="FOLDER", help="decodes latents (data.vae, if it is a folder here)")
    add("--latents", action="store_true", help="show latents in false colour, not decoded")
    add("--device", choices=("auto", "cpu", "cuda"), help="default: the recipe's")


def run(options: argparse.Namespace) -> int:
    return sample_command(request_of(SampleRequest, options))


def sample_command(request: SampleRequest) -> int:
    """Writes OUT/000000.png, ... and, if asked for, a grid and an npz. Image i depends on (weights, seed, i) alone."""
    _check(request)
    checkpoint = open_checkpoint(request.checkpoint, holds=Role.GENERATOR)
    classes = classes_of(request.labels, checkpoint.card.num_classes)
    parallel = on_device(checkpoint.parallel, request.device)
    with launch(parallel) as ranks:
        with agreed():
            decoder = None if request.latents else _decoder(checkpoint, request, ranks)
            subject = checkpoint.subject(ranks, parallel)
            stream = subject.stream(
                seed=request.seed, labels=classes, num_steps=request.steps, random_labels=request.labels == "random",
                between=request.between, renoises=request.renoise,
            )
            drawing = subject.drawing(stream, decoder)
            stamp = _stamp(request, checkpoint, drawing)
            sheets = _claim(request, ranks, drawing, stamp)
        _draw(request, drawing, ranks, sheets)
        with agreed():  # nobody leaves before rank 0 has written everything: launchers end the ranks that linger
            for written in sheets.write() if sheets else ():
                say(str(written))
        if ranks.rank == 0:
            by = f", decoded by {decoder.name}" if decoder else ""
            say(
                f"{request.num} images of {checkpoint.path} in {request.out}; {stream.num_steps} step(s), seed "
                f"{request.seed}, labels: {describe_labels(request.labels)}{by}"
            )
    return 0


def _check(request: SampleRequest) -> None:
    if request.num < 1 or request.batch_size < 1 or (request.steps is not None and request.steps < 1):
        raise UserError(
            f"--num {request.num}, --batch-size {request.batch_size} and --steps {request.steps} must all be at least 1"
        )
    check_steps(request.steps, request.between)
    if request.latents and (request.vae is not None or request.npz is not None):
        other = "--vae" if request.vae is not None else "--npz"
        raise UserError(f"--latents shows latents in false colour, which does not go with {other}; leave one out")
    grid, out = (Path(os.path.realpath(path)) if path is not None else None for path in (request.grid, request.out))
    if grid is not None and grid.is_relative_to(out):  # not Path.resolve, which raises at a link to itself
        raise UserError(
            f"--grid {request.grid} would lie among the images of --out {request.out}, and be measured as one; choose "
            "another folder"
        )


def _decoder(checkpoint: Checkpoint, request: SampleRequest, ranks: Ranks) -> Decoder | None:
    otherwise = "; or say --latents for pictures in false colour"
    return checkpoint.decoder(request.vae, ranks.device, setting="--vae", otherwise=otherwise)


def _stamp(request: SampleRequest, checkpoint: Checkpoint, drawing: Drawing) -> Stamp:
    shown = "false colour" if request.latents else None
    return Stamp(
        checkpoint=checkpoint.identity, step=checkpoint.step, seed=request.seed, num=request.num,
        labels=request.labels if isinstance(request.labels, str) else ",".join(map(str, request.labels)),
        num_steps=drawing.stream.num_steps, shape=drawing.shape,
        decoded_by=shown if drawing.decoder is None else drawing.decoder.name,
        between=drawing.stream.between, renoised=drawing.stream.renoises,
    )


def _claim(request: SampleRequest, ranks: Ranks, drawing: Drawing, stamp: Stamp) -> Sheets | None:
    """Makes the folders, and stamps that of the images, unless other images are there.

    Returns what gathers the images for the grid and the npz: on rank 0, if they are asked for.
    """
    if ranks.rank != 0:
        return None
    if request.npz is not None:
        check_replaceable(request.npz, stamp)
    for folder in (request.out, *(file.parent for file in (request.grid, request.npz) if file)):
        make_folder(folder)
    for file in (request.grid, request.npz):  # before anything is drawn
        if file is not None:
            refuse_to_replace(file)
    claim_folder(request.out, stamp, image_files(request.out)[0])
    if not (request.grid or request.npz):
        return None
    return Sheets(request.num, drawing.shape, grid=request.grid, npz=request.npz, stamp=stamp.to_bytes())


def _draw(request: SampleRequest, drawing: Drawing, ranks: Ranks, sheets: Sheets | None) -> None:
    """Writes this rank's images, and brings them to rank 0 window by window if a grid or an npz needs them."""
    with tqdm(total=request.num, unit="image", desc="drawing", disable=True if ranks.rank else None) as progress:
        for end, tiles in drawing.windows(request.num, request.batch_size):
            with agreed():
                tiles = _write_pictures(tiles, request.out)
            if request.grid or request.npz:
                _gather(tiles, ranks, sheets)
            progress.update(end - progress.n)


def _write_pictures(tiles: list[Tile], out: Path) -> list[Tile]:
    """The same tiles as uint8 on the CPU, which are now on the disk."""
    check_finite(tiles)
    written = [Tile(tile.indices, to_uint8(tile.images).cpu(), tile.labels) for tile in tiles]
    with ThreadPoolExecutor(min(_WRITERS, len(os.sched_getaffinity(0)))) as writers:  # disks and zlib let others run
        numbered = [pair for tile in written for pair in zip(tile.indices.tolist(), tile.images, strict=True)]
        done = writers.map(lambda pair: save_png(_picture(pair[1]), out / name_of(pair[0])), numbered)
        deque(done, maxlen=0)  # raises the first error
    return written


def _picture(image: Tensor) -> Image.Image:
    """[C, H, W] uint8; of latents (four channels) the first three, in false colour."""
    array = image[:3].permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))


def _gather(tiles: list[Tile], ranks: Ranks, sheets: Sheets | None) -> None:
    gathered: list[list[Tile]] = [[] for _ in range(ranks.world_size)]
    dist.gather_object(tiles, gathered if ranks.rank == 0 else None)
    if sheets is not None:
        for tile in (tile for part in gathered for tile in part):
            sheets.add(tile)
