"""Figures of a checkpoint's samples or of a set of images, against a reference."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..checkpoint.manifest import MANIFEST_NAME, visible_checkpoints
from ..core.errors import ConfigError, UserError
from ..core.files import make_folder, refuse_to_replace
from ..core.paths import written
from ..core.ranges import LARGEST_WHOLE, MANY, Range
from ..core.run_folder import RunFolder
from ..core.screen import say
from ..core.typed import build
from ..core.types import Role
from ..evaluation.features.extractor import Extractor, FeaturesConfig
from ..evaluation.figures import Figures, reference_from
from ..evaluation.images.sets import ImageSet, open_images
from ..evaluation.measure import AsSamples, check_shapes, compare_on_rank_0, measure, read_reference_on_all, rehearse
from ..evaluation.measurement import Report
from ..evaluation.reference import Reference, holds_statistics, write_reference
from ..parallel.agreement import agreed
from ..parallel.config import ParallelConfig
from ..parallel.launch import Ranks, launch
from ..run.arguments import LABELS_HELP, add_number, add_steps, check_steps, name_or_path, request_of
from ..run.arguments import labels as labels_of
from ..run.autoencoders import encoder_of
from ..run.checkpoints import Checkpoint, on_device, open_checkpoint
from ..run.features import build_extractor
from ..run.load import parse_yaml
from ..run.tables import show_table
from ..sampling.drawing import DrawnImages, LabelChoice, classes_of, describe_labels
from .evaluate_report import ByReport, given_beside, report_of

NUM_MEMBERS = 50_000  # of samples, for precision and recall: ADM's evaluator takes all
NUM_REFERENCE_MEMBERS = 10_000  # as ADM's reference has
NUM_DRAWN = 50_000  # from a checkpoint, unless --num says otherwise: what published figures are of
_WEIGHTS_OF = {"inception": "weights", "torchscript": "file", "classifier": "checkpoint"}  # what --weights sets
_NAMES = {
    "frechet_distance": "Frechet distance", "spatial_frechet_distance": "spatial Frechet distance",
    "inception_score": "inception score", "inception_score_std": "   its deviation over splits",
    "precision": "precision", "recall": "recall",
}
_INCEPTION_NAMES = {"frechet_distance": "FID", "spatial_frechet_distance": "sFID"}


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """The command's arguments. None: not given."""

    target: Path
    reference: Path | None
    features: FeaturesConfig
    write_reference: Path | None
    report: Report | None
    picture: Path | None
    num: int | None
    labels: LabelChoice | None
    steps: int | None
    between: tuple[float, ...] | None
    renoise: bool
    seed: int | None
    batch_size: int
    vae: str | None
    neighbours: int
    members: int | None
    as_json: bool
    device: Literal["auto", "cpu", "cuda"] | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds, add = "a folder of images, a packed data set, or an npz", parser.add_argument
    add("target", type=Path, help=f"a checkpoint, a run's folder, {kinds}")
    add("--reference", type=Path, metavar="PATH", help=f"an npz of statistics (ADM's too), {kinds}")
    add("--features", default="inception", metavar="inception|pixels|torchscript|classifier|{...}",
        help="or all settings, as {kind: torchscript, file: ..., size: 224}")
    add("--weights", type=Path, metavar="PATH", help="the features' file, or a classifier's run")
    add("--write-reference", type=Path, metavar="FILE.npz", help="store the target's statistics")
    add("--report", metavar="KIND|{...}", help="what a recipe's report measures: captioned_mnist, mnist, ...")
    add("--picture", type=Path, metavar="FILE.png", help="what the report draws")
    add_number(parser, "--num", int, Range(1, MANY), metavar="N",
        help=f"default: {NUM_DRAWN:,} drawn, or all there are")
    add("--labels", type=labels_of, metavar="balanced|random|0,1,2", help=LABELS_HELP)
    add_steps(parser)
    add_number(parser, "--seed", int, Range(0, LARGEST_WHOLE), help="of the samples (default: 0)")
    add_number(parser, "--batch-size", int, Range(1, 1_000_000), default=64,
        help="images held at once; changes no figure")
    add("--vae", type=name_or_path, metavar="FOLDER", help="decodes latents (data.vae, if it is a folder here)")
    add_number(parser, "--neighbours", int, Range(1, 1_000), default=3, metavar="K", help="k of precision and recall")
    add_number(parser, "--members", int, Range(1, 100_000_000), metavar="M",
        help="images for precision and recall (default: 50,000; of a reference, 10,000)")
    add("--json", action="store_true", dest="as_json")
    add("--device", choices=("auto", "cpu", "cuda"), help="default: the recipe's")


def run(options: argparse.Namespace) -> int:
    features = features_of(options.features, options.weights)
    report = None if options.report is None else report_of(options.report)
    return evaluate_command(request_of(EvaluateRequest, options, features=features, report=report))


def features_of(text: str, weights: Path | None) -> FeaturesConfig:
    """A kind of features, or a mapping of one kind in YAML as a recipe has it; and its file. Raises ConfigError."""
    mapping: Any = {"kind": text}
    if text.lstrip().startswith("{"):
        mapping = parse_yaml(text, f"--features {text}")
    kind = str(mapping.get("kind"))
    setting = _WEIGHTS_OF.get(kind)
    if weights is not None and setting is None:
        raise ConfigError(f"--weights {weights}: features {kind!r} have no weights; leave it out")
    if weights is not None:
        mapping[setting] = written(weights)
    elif setting not in (None, "weights", *mapping):
        raise ConfigError(f"--features {kind} needs --weights PATH, its {setting}")
    return build(FeaturesConfig, mapping, ("--features",))


def evaluate_command(request: EvaluateRequest) -> int:
    """Prints the figures of the target on stdout, or stores its statistics, or both; all ranks share the work.

    Raises UserError, the same one on every rank, for what cannot be read, measured or compared.
    """
    began = time.monotonic()
    checkpoint = _checkpoint(request.target)
    parallel = on_device(ParallelConfig(plan="ddp") if checkpoint is None else checkpoint.parallel, request.device)
    if request.report is not None:
        ByReport(target=request.target, checkpoint=checkpoint, report=request.report, picture=request.picture,
                 num_steps=request.steps, others=given_beside(request), as_json=request.as_json).show(parallel)
        return 0
    _check(request, checkpoint)
    with launch(parallel) as ranks:
        with agreed():
            if request.write_reference is not None:
                make_folder(request.write_reference.parent)
                refuse_to_replace(request.write_reference)
            extractor = build_extractor(request.features, ranks.device)
            images = _target(request, checkpoint, extractor, ranks, parallel)
        reference = _reference(request, extractor, images, ranks)
        summary = measure(
            images, extractor, ranks.place, num_members=_num_members(request, is_reference=reference is None),
            batch_size=request.batch_size, progress="measuring",
        )
        with agreed():
            if request.write_reference is not None and ranks.rank == 0:
                write_reference(request.write_reference, reference_from(summary, extractor, images))
        figures = None
        if reference is not None:
            figures = compare_on_rank_0(summary, reference, ranks.place, k=request.neighbours)
        if ranks.rank == 0:
            report = _report(request, images, extractor, reference, figures)
            _print(request, {**report, "seconds": round(time.monotonic() - began, 1), "ranks": ranks.world_size})
    return 0


def _checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint that a path means; None if it means images."""
    if not (RunFolder(path).checkpoints.is_dir() or (path / MANIFEST_NAME).exists()):
        if not path.is_dir() or not visible_checkpoints(path):
            return None
    return open_checkpoint(path, holds=Role.GENERATOR)


def _check(request: EvaluateRequest, checkpoint: Checkpoint | None) -> None:
    for name, least in (("num", 1), ("steps", 1), ("batch_size", 1), ("neighbours", 1), ("members", 0)):
        value = getattr(request, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least {least}")
    if request.reference is None and request.write_reference is None:
        raise UserError(
            "nothing to compare with: give --reference, --report KIND for what a recipe's report measures, or "
            "--write-reference FILE.npz to store the statistics alone"
        )
    if request.picture is not None:
        raise UserError(f"--picture {request.picture} is what --report draws; give that too, or leave it out")
    check_steps(request.steps, request.between)
    given = [name for name in ("labels", "steps", "between", "seed") if getattr(request, name) is not None]
    given += ["renoise"] if request.renoise else []
    if checkpoint is None and given:
        raise UserError(
            f"--{given[0]} says how samples are drawn from a checkpoint, but {request.target} is none; leave it out"
        )


def _num_members(request: EvaluateRequest, *, is_reference: bool) -> int:
    if request.members is not None:
        return request.members
    return NUM_REFERENCE_MEMBERS if is_reference else NUM_MEMBERS


def _target(
    request: EvaluateRequest, checkpoint: Checkpoint | None, extractor: Extractor, ranks: Ranks,
    parallel: ParallelConfig,
) -> ImageSet:
    if checkpoint is None:
        return _readable(open_images(request.target, limit=request.num), extractor, request, ranks)
    labels = request.labels or "balanced"
    classes = classes_of(labels, checkpoint.card.num_classes)
    decoder = None
    if extractor.reads == "images":
        otherwise = "; or measure the latents themselves, with --features classifier"
        decoder = checkpoint.decoder(request.vae, ranks.device, setting="--vae", otherwise=otherwise)
    subject = checkpoint.subject(ranks, parallel)
    stream = subject.stream(
        seed=request.seed or 0, labels=classes, num_steps=request.steps, random_labels=labels == "random",
        between=request.between, renoises=request.renoise,
    )
    about = {
        "source": str(checkpoint.path), "step": checkpoint.step, "seed": stream.seed,
        "num_steps": stream.num_steps, "between": stream.between, "renoised": stream.renoises,
        "labels": describe_labels(labels), "decoded_by": None if decoder is None else decoder.name,
    }
    return DrawnImages(subject.drawing(stream, decoder), request.num or NUM_DRAWN, extractor.reads, about)


def _readable(images: ImageSet, extractor: Extractor, request: EvaluateRequest, ranks: Ranks) -> ImageSet:
    """Images as the extractor reads them."""
    if extractor.reads == "images":
        return images
    encoder = None if request.vae is None else encoder_of(request.vae, ranks.device)
    return AsSamples(images, ranks.device, encoder)


def _reference(
    request: EvaluateRequest, extractor: Extractor, images: ImageSet, ranks: Ranks
) -> Reference | None:
    """Collective: a stored one, or one made of images now. Before anything is drawn, so that a mistake costs little."""
    path = request.reference
    if path is None:
        return None
    own: ImageSet | None = None
    with agreed():
        if path.is_dir() or not path.exists() or not holds_statistics(path):
            own = _readable(open_images(path), extractor, request, ranks)
    if own is None:
        reference = read_reference_on_all(path, extractor, ranks.place, batch_size=request.batch_size)
        if not isinstance(images, AsSamples):
            with agreed():
                rehearse(extractor, images.shape, reference, path, k=request.neighbours, device=ranks.device)
    else:
        if extractor.reads == "images":
            check_shapes(images.shape, own.shape, path)
        summary = measure(
            own, extractor, ranks.place, num_members=_num_members(request, is_reference=True),
            batch_size=request.batch_size, progress="reference",
        )
        reference = reference_from(summary, extractor, own)
    return reference


def _report(
    request: EvaluateRequest, images: ImageSet, extractor: Extractor, reference: Reference | None,
    figures: Figures | None,
) -> dict[str, Any]:
    return {
        "figures": {} if figures is None else figures.values(),
        "num_samples": images.num_images,
        "num_reference": None if figures is None else figures.num_reference,
        "notes": [] if figures is None else list(figures.notes),
        "features": extractor.name,
        "neighbours": request.neighbours,
        "samples": dict(images.describe()),
        "reference": None if reference is None else {"path": str(request.reference), **reference.about},
        "written": None if request.write_reference is None else str(request.write_reference),
    }


def _print(request: EvaluateRequest, report: dict[str, Any]) -> None:
    if request.as_json:
        say(json.dumps(report, indent=2))
        return
    names = {**_NAMES, **(_INCEPTION_NAMES if report["features"].startswith("inception") else {})}
    figures = [(names[name], f"{value:.5g}") for name, value in report["figures"].items() if value is not None]
    show_table(str(request.target), figures, list(_circumstances(request, report).items()))
    for note in report["notes"]:
        say(f"- {note}")


def _circumstances(request: EvaluateRequest, report: dict[str, Any]) -> dict[str, str]:
    samples = report["samples"]
    rows = {"samples": f"{report['num_samples']:,}"}
    if samples["kind"] == "drawn":
        rows["drawn from"] = f"{samples['source']}, {samples['num_steps']} step(s), seed {samples['seed']}"
        if samples["between"]:
            rows["steps end at"] = f"{', '.join(map(str, samples['between']))} and 0"
        if samples["renoised"]:
            rows["between steps"] = "fresh noise"
        rows["labels"] = samples["labels"]
    rows["features"] = report["features"]
    if request.reference is not None:
        count = report["num_reference"]
        rows["reference"] = f"{request.reference} ({'unknown number of' if count is None else f'{count:,}'} images)"
    if report["written"] is not None:
        rows["statistics stored in"] = report["written"]
    return {**rows, "seconds": f"{report['seconds']:g} on {report['ranks']} rank(s)"}
