"""`python -m afm_scale sample`: images from the average of a checkpoint, alone or shared by the ranks of a launcher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from ..checkpoint.manifest import resolve_checkpoint
from ..core.errors import UserError
from ..core.files import write_atomically
from ..parallel.ddp import DDPPlan
from ..parallel.launch import Ranks, agree, launch
from ..sampling.pictures import image_grid, save_png, to_uint8
from ..sampling.sampler import TILE, SampleStream, Tile, generate
from .config import RunConfig
from .guides import average_weights, generative_config_of
from .networks import build_generator, prediction_of


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """The command's arguments."""

    checkpoint: Path
    out: Path
    num: int
    labels: tuple[int, ...] | None
    steps: int | None
    seed: int
    batch_size: int
    grid: Path | None
    npz: Path | None


def sample_command(request: SampleRequest) -> int:
    """Writes OUT/000000.png, ... and, if asked for, a grid and an npz. Image i depends on (weights, seed, i) alone."""
    if request.num < 1 or request.batch_size < 1 or (request.steps is not None and request.steps < 1):
        raise UserError(
            f"--num {request.num}, --batch-size {request.batch_size} and --steps {request.steps} must all be at least 1"
        )
    checkpoint = resolve_checkpoint(request.checkpoint)
    config = generative_config_of(checkpoint)
    with launch(config.parallel) as ranks:
        plan = DDPPlan(ranks, config.parallel)  # whole networks: every rank draws by itself
        network = plan.frozen(build_generator(config), average_weights(checkpoint).items())
        stream = _stream(request, config)
        _make_folders(request, ranks)
        parts = _draw(request, network, stream, ranks)
        _write_sheets(request, parts, ranks)
        if ranks.rank == 0:
            print(f"{request.num} images of {checkpoint} (classes {_classes(request)}) in {request.out}")
    return 0


def _stream(request: SampleRequest, config: RunConfig) -> SampleStream:
    num_classes = config.data.num_classes
    labels = request.labels or tuple(range(num_classes))
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if wrong:
        raise UserError(f"--labels: there is no class {wrong[0]}; this model has classes 0 to {num_classes - 1}")
    return SampleStream(
        seed=request.seed, shape=config.data.shape, labels=labels,
        num_steps=request.steps or config.sampling.num_steps,
        prediction=prediction_of(config), dtype=config.parallel.dtype,
    )


def _classes(request: SampleRequest) -> str:
    return "in turn, balanced" if request.labels is None else ", ".join(map(str, request.labels)) + " in turn"


def _make_folders(request: SampleRequest, ranks: Ranks) -> None:
    error: UserError | None = None
    try:
        for folder in (request.out, *(file.parent for file in (request.grid, request.npz) if file)):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as caught:
        error = UserError(f"cannot make the folder {caught.filename}: {caught.strerror}; choose another")
    agree(error)


def _draw(request: SampleRequest, network: nn.Module, stream: SampleStream, ranks: Ranks) -> list[Tile]:
    """Writes this rank's images; returns them only if a grid or an npz will need them."""
    kept: list[Tile] = []
    # Whole tiles at a time: --batch-size bounds memory and cannot reach the arithmetic.
    tiles_at_once = max(1, request.batch_size // TILE)
    window = tiles_at_once * TILE * ranks.world_size
    for start in range(0, request.num, window):
        count = min(window, request.num - start)
        tiles = list(
            generate(
                network, stream, start=start, count=count,
                rank=ranks.rank, world_size=ranks.world_size, device=ranks.device,
            )
        )
        for tile in tiles:
            pixels = to_uint8(tile.images).cpu()
            for index, image in zip(tile.indices.tolist(), pixels, strict=True):
                save_png(_picture(image), request.out / f"{index:06d}.png")
            if request.grid or request.npz:
                kept.append(Tile(tile.indices, pixels, tile.labels))
    return kept


def _picture(image: Tensor) -> Image.Image:
    """[C, H, W] uint8; of latents (four channels) the first three, in false colour."""
    array = image[:3].permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))


def _write_sheets(request: SampleRequest, parts: list[Tile], ranks: Ranks) -> None:
    if not (request.grid or request.npz):
        return
    gathered: list[list[Tile]] = [[] for _ in range(ranks.world_size)]
    dist.gather_object(parts, gathered if ranks.rank == 0 else None)
    if ranks.rank != 0:
        return
    tiles = [tile for part in gathered for tile in part]
    order = torch.cat([tile.indices for tile in tiles]).argsort()
    images = torch.cat([tile.images for tile in tiles])[order]
    labels = torch.cat([tile.labels for tile in tiles])[order]
    if request.grid:
        columns = len(request.labels) if request.labels else min(10, len(images))
        upscale = max(1, 64 // images.shape[-1])
        save_png(image_grid(images, columns=columns, upscale=upscale), request.grid)
    if request.npz:
        arrays = {"arr_0": images.permute(0, 2, 3, 1).numpy(), "labels": labels.numpy()}
        write_atomically(request.npz, lambda file: np.savez(file, **arrays))
