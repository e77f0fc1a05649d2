"""All commands: a function for each, whose first line is its help and which imports it only when it is called for.

Adding a command is one file with `add_arguments` and `run`, and its entry here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Protocol, Union


class Command(Protocol):
    """What a module owes that is a command. Its docstring is the head of the command's help."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Says what stands on the command line."""
        ...

    def run(self, options: argparse.Namespace) -> int:
        """Does it, and returns the exit code. Raises RunError; under a launcher every rank calls it."""
        ...


Table = Mapping[str, Union[Callable[[], Command], "Table"]]


def _train() -> Command:
    """train a recipe, or go on with its run"""
    from . import train

    return train


def _sample() -> Command:
    """draw images from a checkpoint's average"""
    from . import sample

    return sample


def _evaluate() -> Command:
    """figures of a checkpoint's samples, or of a set of images"""
    from . import evaluate

    return evaluate


def _report() -> Command:
    """the course of a run: a picture of its curves, phases and acts"""
    from . import report

    return report


def _watch() -> Command:
    """a live page of runs, on this machine"""
    from . import watch

    return watch


def _show() -> Command:
    """print the resolved recipe"""
    from . import show

    return show


def _plan() -> Command:
    """what a recipe will cost on N GPUs, estimated without one"""
    from . import plan

    return plan


def _settings() -> Command:
    """what a recipe may say: type, range, default and meaning"""
    from . import settings

    return settings


def _doctor() -> Command:
    """what this machine has or each rank can do, or whether a packed data set is whole"""
    from . import doctor

    return doctor


def _make_shards() -> Command:
    """pack images into checked shards"""
    from . import make_shards

    return make_shards


def _encode_latents() -> Command:
    """encode packed images into latents"""
    from . import encode_latents

    return encode_latents


def _encode_prompts() -> Command:
    """embed prompts with a pipeline's text encoder"""
    from . import encode_prompts

    return encode_prompts


def _inspect_checkpoint() -> Command:
    """what a checkpoint holds"""
    from . import inspect_checkpoint

    return inspect_checkpoint


def _convert_checkpoint() -> Command:
    """from one format of checkpoints to another"""
    from . import convert_checkpoint

    return convert_checkpoint


def _export() -> Command:
    """a run's average as safetensors, with a page about it"""
    from . import export

    return export


def _reload_discriminator() -> Command:
    """bring back an earlier discriminator of a stopped run"""
    from . import reload_discriminator

    return reload_discriminator


def _replay_reference() -> Command:
    """recorded runs of the published method through this code, in float64"""
    from . import replay_reference

    return replay_reference


def _guidance_figure() -> Command:
    """runs on the plane's mixture side by side"""
    from . import guidance_figure

    return guidance_figure


def _compare_updates() -> Command:
    """cheap adversarial updates beside the published one, at equal operations"""
    from ..benchmarks import compare_updates

    return compare_updates


def _compare_objectives() -> Command:
    """AFM, flow matching, MeanFlow, alpha-Flow and TwinFlow, trained at equal operations"""
    from ..benchmarks import compare_objectives

    return compare_objectives


def _benchmark_data() -> Command:
    """data sources beside plain webdataset, and whether they feed a recipe"""
    from ..benchmarks import data

    return data


def _benchmark_step() -> Command:
    """a training step: images/s, TFLOP/s, utilisation, memory"""
    from ..benchmarks import step

    return step


def _benchmark_traffic() -> Command:
    """collectives and bytes of one real step, counted over gloo"""
    from ..benchmarks import traffic

    return traffic


def _benchmark_memory() -> Command:
    """the estimate of `plan` beside the memory of real steps"""
    from ..benchmarks import memory

    return memory


def _benchmark_seconds() -> Command:
    """the estimate of `plan` beside the time of real steps"""
    from ..benchmarks import seconds

    return seconds


def _benchmark_evaluation() -> Command:
    """statistics, Frechet distance, precision and recall"""
    from ..benchmarks import evaluation

    return evaluation


def _benchmark_checkpoint() -> Command:
    """saving and loading a checkpoint, and what sums and reading back cost"""
    from ..benchmarks import checkpoint

    return checkpoint


def _benchmark_compare() -> Command:
    """ways of training beside each other: data x seeds, a table and a picture"""
    from ..benchmarks import compare

    return compare


def _benchmark_cost() -> Command:
    """forward passes that an update of each recipe takes, counted"""
    from ..benchmarks import cost

    return cost


def _benchmark_convert() -> Command:
    """converting a checkpoint: time beside copying it, and memory"""
    from ..benchmarks import convert

    return convert


BENCHMARKS = {
    "data": _benchmark_data,
    "step": _benchmark_step,
    "traffic": _benchmark_traffic,
    "memory": _benchmark_memory,
    "seconds": _benchmark_seconds,
    "evaluation": _benchmark_evaluation,
    "checkpoint": _benchmark_checkpoint,
    "convert": _benchmark_convert,
    "compare": _benchmark_compare,
    "cost": _benchmark_cost,
}

COMMANDS = {
    "train": _train,
    "sample": _sample,
    "evaluate": _evaluate,
    "report": _report,
    "watch": _watch,
    "show": _show,
    "plan": _plan,
    "settings": _settings,
    "doctor": _doctor,
    "make_shards": _make_shards,
    "encode_latents": _encode_latents,
    "encode_prompts": _encode_prompts,
    "inspect_checkpoint": _inspect_checkpoint,
    "convert_checkpoint": _convert_checkpoint,
    "export": _export,
    "reload_discriminator": _reload_discriminator,
    "replay_reference": _replay_reference,
    "guidance_figure": _guidance_figure,
    "compare_updates": _compare_updates,
    "compare_objectives": _compare_objectives,
    "benchmark": BENCHMARKS,
}
