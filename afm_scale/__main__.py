"""python -m afm_scale: train, sample, evaluate, show, doctor (plan is not there yet)."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path
from typing import NoReturn

from .commands.doctor import doctor_command
from .commands.doctor_data import doctor_data_command
from .commands.ending import tell
from .commands.evaluate import NUM_DRAWN, EvaluateRequest, evaluate_command, features_of
from .commands.sample import SampleRequest, sample_command
from .commands.show import show_command
from .commands.train import train_command
from .core.errors import RunError, UserError


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 the user's mistake, 75 stopped by a signal after saving, 1 anything else."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except RunError as error:
        return tell(error)


def _run(options: argparse.Namespace) -> int:
    if options.command == "train":
        return train_command(options.recipe, options.overrides)
    if options.command == "show":
        return show_command(options.recipe, options.overrides)
    if options.command == "doctor" and options.data is not None:
        return doctor_data_command(options.data, as_json=options.json)
    if options.command == "doctor":
        return doctor_command(as_json=options.json)
    given = {name: value for name, value in vars(options).items() if name != "command"}
    if options.command == "sample":
        return sample_command(SampleRequest(**given))
    if options.command == "evaluate":
        features = features_of(given.pop("features"), given.pop("weights"))
        return evaluate_command(EvaluateRequest(**given, features=features))
    raise UserError(f"'{options.command}' is not there yet; train, sample, evaluate, show and doctor are")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m afm_scale", description="One- and few-step image generators.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("train", "train a recipe, or go on with its run"), ("show", "print the resolved recipe")):
        command = commands.add_parser(name, help=text)
        command.add_argument("recipe", help="a YAML file, or the name of one in configs/recipes")
        command.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that win over the recipe's")
    _add_sample(commands.add_parser("sample", help="draw images from a checkpoint's average"))
    _add_evaluate(commands.add_parser("evaluate", help="figures of a checkpoint's samples, or of a set of images"))
    doctor = commands.add_parser("doctor", help="what this machine has, or whether a packed data set is whole")
    doctor.add_argument("--data", type=Path, metavar="PATH", help="compare every byte of this folder of shards")
    doctor.add_argument("--json", action="store_true")
    later = commands.add_parser("plan", help="not there yet")
    later.add_argument("rest", nargs=argparse.REMAINDER)
    return parser


def _add_sample(sample: argparse.ArgumentParser) -> None:
    sample.add_argument("checkpoint", type=Path, help="a checkpoint, or a run's folder (its newest one)")
    sample.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for 000000.png, ...")
    sample.add_argument("--num", type=int, required=True, metavar="N")
    sample.add_argument("--labels", type=_labels, default="balanced", metavar="balanced|random|0,1,2", help=_LABELS)
    sample.add_argument("--steps", type=int, metavar="K", help="network evaluations (default: the recipe's)")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--batch-size", type=int, default=256, help="images held at once; changes no image")
    sample.add_argument("--grid", type=Path, metavar="FILE.png", help="one sheet, a row for each class")
    sample.add_argument("--npz", type=Path, metavar="FILE.npz", help="for ADM's evaluator: arr_0, shuffled; labels")
    sample.add_argument("--vae", metavar="FOLDER", help="decodes latents (default: data.vae, if it is a folder here)")
    sample.add_argument("--latents", action="store_true", help="show latents in false colour, not decoded")
    sample.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: the recipe's")


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    kinds = "a folder of images, a packed data set, or an npz"
    evaluate.add_argument("target", type=Path, help=f"a checkpoint, a run's folder, {kinds}")
    evaluate.add_argument("--reference", type=Path, metavar="PATH", help=f"an npz of statistics (ADM's too), {kinds}")
    evaluate.add_argument("--features", default="inception", metavar="inception|pixels|torchscript|classifier|{...}",
                          help="or all settings, as {kind: torchscript, file: ..., size: 224}")
    evaluate.add_argument("--weights", type=Path, metavar="PATH", help="the features' file, or a classifier's run")
    evaluate.add_argument("--write-reference", type=Path, metavar="FILE.npz", help="store the target's statistics")
    evaluate.add_argument("--num", type=int, metavar="N", help=f"default: {NUM_DRAWN:,} drawn, or all there are")
    evaluate.add_argument("--labels", type=_labels, metavar="balanced|random|0,1,2", help=_LABELS)
    evaluate.add_argument("--steps", type=int, metavar="K", help="network evaluations (default: the recipe's)")
    evaluate.add_argument("--seed", type=int, help="of the samples (default: 0)")
    evaluate.add_argument("--batch-size", type=int, default=64, help="images held at once; changes no figure")
    evaluate.add_argument("--vae", metavar="FOLDER", help="decodes latents (default: data.vae, if it is a folder here)")
    evaluate.add_argument("--neighbours", type=int, default=3, metavar="K", help="k of precision and recall")
    evaluate.add_argument("--members", type=int, metavar="M",
                          help="images for precision and recall (default: 50,000; of a reference, 10,000)")
    evaluate.add_argument("--json", action="store_true", dest="as_json")
    evaluate.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: the recipe's")


_LABELS = "every class in turn (default), by chance, or these in turn"


def _labels(text: str) -> str | tuple[int, ...]:
    if text in ("balanced", "random"):
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither 'balanced' nor 'random' nor a list of class numbers such as 0,1,2"
        ) from None


def _leave(code: int) -> NoReturn:
    """Ends the process without the interpreter's own clean-up, in which gloo's threads were once seen to abort.

    Threads that are not daemons (a checkpoint being written) are waited for, as the interpreter would.
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
