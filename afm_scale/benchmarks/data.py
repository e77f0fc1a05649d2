"""How fast the sources are beside plain webdataset, and whether they feed a recipe.

All get the same cores and hand out what training takes from their workers: uint8 pixels (making floats of them is the
training device's work), or drawn latents. Each is opened, warmed up until what it had read ahead is used up, timed and
closed, one after another, several times over, so that a slow spell of the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.errors import ConfigError
from ..core.packages import require
from ..core.ranges import Range
from ..core.screen import say
from ..data.images import DaliConfig, WebDatasetConfig
from ..data.latents import LatentsConfig
from ..data.source import SourceConfig
from ..data.table import build_source
from ..data.transforms import decode_checked, to_pixels
from ..estimate.demand import Demand
from ..estimate.devices import GPUS
from ..run.arguments import add_number, add_recipe, request_of
from ..run.config import RunConfig
from ..run.forecast.counting import demand_of
from ..run.load import load
from .sample_files import NUM_CLASSES, make_jpegs, pack_latents, pack_originals, pack_squares

SIZE = 256
PREFETCH = 2
PARITY_IMAGES = 32
WARM_UP = 1  # batches of every worker, beyond those read ahead

Batches = Callable[[], Iterator[int]]
"""Opens a source; the iterator gives the number of samples of one batch after another, and closes it."""


@dataclass(frozen=True, kw_only=True)
class DataBenchmark:
    """What to measure."""

    recipe: str | None = None
    overrides: Sequence[str] = ()
    images: int = 512
    batch: int = 128
    cores: int | None = None  # of this machine; None: all that this process may use
    seconds: float = 3.0  # of one window
    windows: int = 5
    gpu: str = "h100"
    utilisation: float = 0.5  # of the GPU's peak, in the estimate of a step's seconds
    step_seconds: float | None = None

    def __post_init__(self) -> None:
        available = len(os.sched_getaffinity(0))
        if self.cores is not None and not 1 <= self.cores <= available:
            raise ConfigError(f"--cores {self.cores}: this process may use 1 to {available}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One source. None where it could not be measured, and `note` says why."""

    name: str
    images_per_second: float | None  # median of the windows
    windows: tuple[float, ...] = ()
    ratio: float | None = None  # to plain webdataset: median over the rounds
    keeps_up: bool | None = None  # with the recipe's step on one GPU
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Grey levels between the Pillow path and DALI on the same images: mean absolute difference."""

    images: int
    mean: float
    worst_image: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, required=False, note="say how many images/s this recipe's step needs")
    add = parser.add_argument
    add_number(parser, "--images", int, Range(1, 10_000_000), default=512, metavar="N",
        help="JPEGs to make (default 512)")
    add_number(parser, "--batch", int, Range(1, 1_000_000), default=128, metavar="B",
        help="samples of a batch (default 128)")
    add_number(parser, "--cores", int, Range(1, 100_000), metavar="K",
        help="cores, worker processes and threads (default: all)")
    add_number(parser, "--seconds", float, Range(above=0, high=1e6), default=3.0, metavar="S",
        help="of one window (default 3)")
    add_number(parser, "--windows", int, Range(1, 1_000_000), default=5, metavar="N",
        help="of every source (default 5)")
    add("--gpu", default="h100", help=f"for the estimate: {', '.join(GPUS)} (default h100)")
    add_number(parser, "--utilisation", float, Range(above=0, high=1), default=0.5, metavar="U",
        help="of its bf16 peak (default 0.5)")
    add_number(parser, "--step-seconds", float, Range(above=0, high=1e6), metavar="X",
        help="measured seconds of a step on one GPU instead")
    add("--json", action="store_true", help="the result as JSON")


def run(options: argparse.Namespace) -> int:
    return benchmark_data_command(request_of(DataBenchmark, options), as_json=options.json)


def benchmark_data_command(options: DataBenchmark, *, as_json: bool) -> int:
    result = measure(options)
    say(json.dumps(result, indent=1) if as_json else describe(result))
    return 0


def measure(options: DataBenchmark) -> dict:
    """Everything the command reports, as JSON values. Raises UserError for what cannot be measured."""
    wanted = None
    if options.recipe is not None:
        config = load(RunConfig, options.recipe, options.overrides).resolved()
        wanted = demand_of(
            config, options.recipe, step_seconds=options.step_seconds, gpu=options.gpu, utilisation=options.utilisation
        )
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    cores = sorted(before)[:options.cores]
    os.sched_setaffinity(0, cores)  # worker processes and threads started from here inherit it
    torch.set_num_threads(max(len(cores) - 1, 1))  # latents are drawn while a thread reads the next ones
    try:
        with tempfile.TemporaryDirectory(prefix="afm_scale-benchmark-") as folder:
            return _measure(options, Path(folder), len(cores), wanted)
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


def _measure(options: DataBenchmark, folder: Path, cores: int, wanted: Demand | None) -> dict:
    jpegs = make_jpegs(options.images)
    num_shards = max(1, min(2 * cores, options.images))
    pack_originals(folder / "originals", jpegs, num_shards)
    pack_squares(folder / "squares", jpegs[:PARITY_IMAGES], SIZE)
    pack_latents(folder / "latents", options.images, num_shards)
    candidates = {
        "plain": lambda: _plain(folder / "originals", options.batch, cores),
        "webdataset": lambda: _ours(WebDatasetConfig(**_images(folder / "originals", options.batch, cores))),
        "dali": lambda: _ours(DaliConfig(**_images(folder / "originals", options.batch, cores))),
        "latents": lambda: _ours(
            LatentsConfig(folder=folder / "latents", global_batch=options.batch, num_classes=NUM_CLASSES)
        ),
    }
    missing = {name: reason for name in candidates if (reason := _missing(name))}
    present = {name: opened for name, opened in candidates.items() if name not in missing}
    speeds = _interleaved(present, options, cores)
    return {
        "machine": {"cores": cores, "cpu": platform.processor() or platform.machine(), "torch": torch.__version__},
        "images": {"count": len(jpegs), "width": 500, "height": 375, "mean_bytes": sum(map(len, jpegs)) // len(jpegs)},
        "batch": options.batch,
        "rows": [asdict(_row(name, speeds, missing.get(name, ""), wanted)) for name in candidates],
        "parity": None if "dali" in missing else {
            "originals": asdict(_parity(folder / "originals", jpegs[:PARITY_IMAGES], len(jpegs), cores)),
            "squares": asdict(
                _parity(folder / "squares", jpegs[:PARITY_IMAGES], len(jpegs[:PARITY_IMAGES]), cores)
            ),
        },
        "recipe": None if wanted is None else asdict(wanted),
    }


def _images(folder: Path, batch: int, cores: int) -> dict:
    return {
        "folder": folder, "global_batch": batch, "size": SIZE, "num_classes": NUM_CLASSES, "workers": cores,
        "prefetch": PREFETCH, "mirror": False,
    }


def _missing(name: str) -> str:
    """Which extra to install for a source whose package is not there."""
    package = {"plain": ("webdataset", "webdataset"), "dali": ("nvidia.dali", "dali")}.get(name)
    if package is None:
        return ""
    try:
        require(package[0], f"the row '{name}'", package[1])
    except ConfigError as error:
        return str(error)
    return ""


def _plain(folder: Path, batch: int, cores: int) -> Iterator[int]:
    from .plain_webdataset import plain_batches  # optional: imported only where webdataset is installed

    with closing(plain_batches(folder, size=SIZE, batch=batch, workers=cores, prefetch=PREFETCH)) as batches:
        for pixels, _ in batches:
            yield len(pixels)


def _ours(config: SourceConfig) -> Iterator[int]:
    with closing(build_source(config, seed=0, rank=0, world_size=1, device=torch.device("cpu"))) as source:
        if isinstance(config, LatentsConfig):
            for drawn in source:
                yield len(drawn.y)
        with closing(source.decoded()) as batches:
            for pixels, _, _ in batches:
                yield len(pixels)


def _interleaved(sources: dict[str, Batches], options: DataBenchmark, cores: int) -> dict[str, list[float]]:
    """Images a second of every source, window by window."""
    speeds: dict[str, list[float]] = {name: [] for name in sources}
    rounds = [(name, opened) for _ in range(options.windows) for name, opened in sources.items()]
    for name, opened in tqdm(rounds, desc="windows", leave=False):
        with closing(opened()) as batches:
            for _ in islice(batches, (PREFETCH + WARM_UP) * cores):
                pass
            speeds[name].append(_images_per_second(batches, options.seconds, cores))
    return speeds


def _images_per_second(batches: Iterator[int], seconds: float, workers: int) -> float:
    """Over whole rounds of the workers, whose batches come in bursts."""
    started, count, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < seconds:
        count += sum(islice(batches, workers))
        elapsed = time.perf_counter() - started
    return count / elapsed


def _row(name: str, speeds: dict[str, list[float]], note: str, wanted: Demand | None) -> Row:
    if note:
        return Row(name=name, images_per_second=None, note=note)
    median = statistics.median(speeds[name])
    ratio = None
    if "plain" in speeds:
        ratio = statistics.median(ours / plain for ours, plain in zip(speeds[name], speeds["plain"], strict=True))
    return Row(
        name=name, images_per_second=median, windows=tuple(speeds[name]), ratio=ratio,
        keeps_up=None if wanted is None else median >= wanted.images_per_second,
    )


def _parity(folder: Path, jpegs: list[bytes], num_samples: int, cores: int) -> Parity:
    """The first images of a data set, whose keys are their numbers, through both paths."""
    config = DaliConfig(**(_images(folder, num_samples, cores)))
    with closing(build_source(config, seed=0, rank=0, world_size=1, device=torch.device("cpu"))) as source:
        keys = source.shards.index.key[source.order.indices(next(source.cursor.upcoming()))].tolist()
        with closing(source.decoded()) as batches:
            pixels: Tensor = next(batches)[0]
    by_key = dict(zip(keys, pixels, strict=True))
    differences = [
        (by_key[key].float() - to_pixels(decode_checked(data), SIZE).float()).abs().mean().item()
        for key, data in enumerate(jpegs)
    ]
    return Parity(images=len(jpegs), mean=statistics.fmean(differences), worst_image=max(differences))


def describe(result: dict) -> str:
    """The report for people."""
    machine, images = result["machine"], result["images"]
    lines = [
        f"{images['count']} JPEGs of {images['width']} x {images['height']}, {images['mean_bytes'] / 1000:.0f} kB on "
        f"average, to {SIZE} pixels; batches of {result['batch']}; {machine['cores']} cores ({machine['cpu']})",
        "", f"{'source':12} {'images/s':>10} {'to plain':>9}   windows",
    ]
    for row in result["rows"]:
        if row["images_per_second"] is None:
            lines.append(f"{row['name']:12} {'-':>10} {'-':>9}   {row['note']}")
            continue
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}x"
        windows = " ".join(f"{speed:.0f}" for speed in row["windows"])
        lines.append(f"{row['name']:12} {row['images_per_second']:>10.0f} {ratio:>9}   {windows}")
    for name, parity in (result["parity"] or {}).items():
        lines.append(
            f"DALI and Pillow differ on {parity['images']} {name} by {parity['mean']:.3f} grey levels on average, "
            f"{parity['worst_image']:.3f} in the worst image"
        )
    return "\n".join([*lines, *_describe_demand(result)])


def _describe_demand(result: dict) -> list[str]:
    if (wanted := result["recipe"]) is None:
        return []
    lines = [
        "", f"{wanted['recipe']}: a step of {wanted['turns']} turn(s) of {wanted['global_batch']} samples in "
        f"{wanted['step_seconds']:.3g} s on one GPU needs {wanted['images_per_second']:.0f} images/s a GPU",
        f"  ({wanted['how']})",
    ]
    for row in result["rows"]:
        if row["keeps_up"] is not None:
            cores = wanted["images_per_second"] / row["images_per_second"] * result["machine"]["cores"]
            verdict = "keeps up" if row["keeps_up"] else "does not keep up"
            lines.append(f"  {row['name']:12} {verdict}; cores like these that a GPU would take: {cores:.2g}")
    return lines
