"""python -m afm_scale: train, sample, show, doctor (evaluate and plan are not there yet)."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path
from typing import NoReturn

from .core.errors import RunError, UserError
from .run.doctor import doctor_command
from .run.doctor_data import doctor_data_command
from .run.sample import SampleRequest, sample_command
from .run.show import show_command
from .run.train import train_command


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 the user's mistake, 75 stopped by a signal after saving, 1 anything else."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except RunError as error:
        # Ranks agree on their errors, so rank 0 speaks for all.
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _run(options: argparse.Namespace) -> int:
    if options.command == "train":
        return train_command(options.recipe, options.overrides)
    if options.command == "show":
        return show_command(options.recipe, options.overrides)
    if options.command == "doctor" and options.data is not None:
        return doctor_data_command(options.data, as_json=options.json)
    if options.command == "doctor":
        return doctor_command(as_json=options.json)
    if options.command == "sample":
        request = SampleRequest(
            checkpoint=options.checkpoint, out=options.out, num=options.num, labels=options.labels,
            steps=options.steps, seed=options.seed, batch_size=options.batch_size, grid=options.grid, npz=options.npz,
        )
        return sample_command(request)
    raise UserError(f"'{options.command}' is not there yet; train, sample, show and doctor are")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m afm_scale", description="One- and few-step image generators.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("train", "train a recipe, or go on with its run"), ("show", "print the resolved recipe")):
        command = commands.add_parser(name, help=text)
        command.add_argument("recipe", help="a YAML file, or the name of one in configs/recipes")
        command.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that win over the recipe's")
    sample = commands.add_parser("sample", help="draw images from a checkpoint's average")
    sample.add_argument("checkpoint", type=Path, help="a checkpoint, or a run's folder (its newest one)")
    sample.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for 000000.png, ...")
    sample.add_argument("--num", type=int, required=True, metavar="N")
    sample.add_argument("--labels", type=_labels, metavar="0,1,2", help="classes in turn (default: all, balanced)")
    sample.add_argument("--steps", type=int, metavar="K", help="network evaluations (default: the recipe's)")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--batch-size", type=int, default=256, help="images held at once; changes no image")
    sample.add_argument("--grid", type=Path, metavar="FILE.png", help="one sheet of all images")
    sample.add_argument("--npz", type=Path, metavar="FILE.npz", help="arr_0 [N, H, W, C] uint8 and the labels")
    doctor = commands.add_parser("doctor", help="what this machine has, or whether a packed data set is whole")
    doctor.add_argument("--data", type=Path, metavar="PATH", help="compare every byte of this folder of shards")
    doctor.add_argument("--json", action="store_true")
    for name in ("evaluate", "plan"):
        later = commands.add_parser(name, help="not there yet")
        later.add_argument("rest", nargs=argparse.REMAINDER)
    return parser


def _labels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of class numbers such as 0,1,2") from None


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
