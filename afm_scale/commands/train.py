"""One run, from the recipe to the last table; started again, it goes on. Also under torchrun, deepspeed and srun."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoint.manifest import newest_complete
from ..core import stopping
from ..core.errors import EXIT_DONE, EXIT_STOPPED_BY_SIGNAL
from ..core.files import write_atomically
from ..core.holding import Held, hold
from ..core.place import rank_of
from ..core.run_folder import RunFolder
from ..core.screen import note
from ..core.words import REPORTING, STANDING, STARTING
from ..parallel.agreement import agreed, check_same_on_all_ranks, from_rank_0
from ..parallel.describe import in_one_line
from ..parallel.launch import Ranks, launch
from ..parallel.plan import ParallelPlan
from ..run import build
from ..run.after_loss import after_loss
from ..run.arguments import add_recipe
from ..run.beginning import foreign_beginning
from ..run.changes import Comparison
from ..run.check import check
from ..run.config import RunConfig
from ..run.elastic import for_ranks, most_ranks
from ..run.hooks import build_observers
from ..run.load import dump_yaml, load
from ..run.origin import origin_of, write_records
from ..run.ready import check_ready
from ..run.start import start
from ..run.tables import rows_of, show_table
from ..run.together import check_seen, check_versions
from ..train.loop import LoopConfig
from ..train.state import TrainState
from ..train.steered import train_steered


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)


def run(options: argparse.Namespace) -> int:
    return train_command(options.recipe, options.overrides)


def train_command(recipe: str, overrides: Sequence[str]) -> int:
    """Trains, or goes on training, and reports. Returns the exit code; every rank calls it."""
    config = load(RunConfig, recipe, overrides).resolved()
    own = RunFolder(config.run.folder)
    STANDING.begin(STARTING)
    stopping.know(lambda: newest_complete(own.checkpoints), speaks=rank_of(os.environ) == 0)
    launched = launch(config.parallel, log_of=own.rank_log, after_loss=lambda: after_loss(own))
    with ExitStack() as afterwards, launched as ranks:
        check_versions()
        check_same_on_all_ranks(dump_yaml(config), "the configuration")
        most = from_rank_0(ranks.rank, lambda: most_ranks(own))
        with agreed():
            here = for_ranks(config, ranks.world_size, most)
            check(here, ranks.world_size)
            check_ready(config)
        held: Held | None = None
        with agreed():  # before anything in the folder is looked at, written or cleared away
            if ranks.rank == 0:
                held = afterwards.enter_context(hold(config.run.folder, ranks=ranks.world_size))
                stopping.before_the_end(held.end)
        check_seen(config.run.folder, ranks.rank)
        plan = build.build_plan(here, ranks)
        with agreed():
            state = build.build_state(config, ranks, plan)
        with closing(state.data):  # its processes and threads end whatever happens
            return _run(config, here.loop, ranks, plan, state, held, afterwards)


def _run(
    config: RunConfig, loop: LoopConfig, ranks: Ranks, plan: ParallelPlan, state: TrainState, held: Held | None,
    afterwards: ExitStack,
) -> int:
    """From where the run starts to its report, or to the checkpoint of the step that a signal stopped it at.

    `loop` is the recipe's as so many ranks train it.
    """
    origin = from_rank_0(ranks.rank, lambda: origin_of(config))
    manager = build.build_manager(config, ranks, origin)
    afterwards.callback(manager.settle)  # after an error a save may be under way: the folder is held until it is over
    observers = build_observers(config, plan, state, manager, origin.run)
    afterwards.callback(observers.pilot.settle)
    if held is not None:
        held.on_loss(observers.failures.keep)
    look = Comparison(config, origin.data)
    with agreed():
        where = start(state, plan, manager, config.run, observers.events, look, foreign_beginning(config))
    with agreed():
        if plan.rank == 0:
            write_records(RunFolder(config.run.folder), origin, dump_yaml(config), state.step)
            if look.changes:
                changes = [asdict(change) for change in look.changes]
                observers.events.write("settings", step=state.step, changes=changes)
            if loop != config.loop:
                observers.events.write(
                    "elastic", step=state.step, ranks=plan.world_size, accumulation=loop.accumulation
                )
    afterwards.push(lambda kind, error, trace: observers.events.note_failure(error, step=state.step))
    if plan.rank == 0:
        described = plan.describe({role.value: player.module for role, player in state.players.items()})
        changed = (f"changed: {change}" for change in look.changes)
        kept = f"{plan.world_size} rank(s) keep data.global_batch with loop.accumulation={loop.accumulation}"
        elastic = [kept] if loop != config.loop else []
        told = (f"{config.run.folder}: {where}", *changed, *elastic, in_one_line(described))
        note("\n".join(told))
    first_step, began = state.step, time.monotonic()
    train_steered(state, plan, loop, observers.hooks, observers.pilot)
    seconds = time.monotonic() - began
    stopped_by = observers.stop.signal
    STANDING.begin(REPORTING)
    newest = None if stopped_by is None else from_rank_0(ranks.rank, manager.latest)
    with agreed():  # nobody leaves before rank 0 has written everything: launchers end the ranks that linger
        if stopped_by is None:
            _report(config, ranks, plan, state, seconds, state.step - first_step)
        elif plan.rank == 0:
            saved = f"saved at step {state.step}; run the same command again to go on from {newest}"
            note(f"stopped by {stopped_by.name} and {saved if newest else 'without a checkpoint to go on from'}")
    if stopped_by is None:
        return EXIT_DONE
    return 128 + stopped_by if newest is None else EXIT_STOPPED_BY_SIGNAL


def _report(
    config: RunConfig, ranks: Ranks, plan: ParallelPlan, state: TrainState, seconds: float, num_steps: int
) -> None:
    folder = RunFolder(config.run.folder)
    picture = folder.final_picture
    summary: dict[str, Any] = {
        "step": state.step, "images_seen": state.images_seen, "steps_in_this_process": num_steps,
        "training_seconds": round(seconds, 1), "ranks": ranks.world_size, "plan": config.parallel.plan,
    }
    if config.report is not None:
        summary["quality"] = dict(config.report(state.subject(plan, config.sampling.num_steps), picture))
        others = {
            str(number): dict(config.report(state.subject(plan, number), folder.final_picture_in(number)))
            for number in config.sampling.also_reported
        }
        if others:
            summary["quality_by_num_steps"] = others
    if plan.rank == 0:
        text = json.dumps(summary, indent=2) + "\n"
        write_atomically(folder.summary, lambda file: file.write(text.encode()))
        _print_table(summary, folder, picture if config.report is not None else None)


def _print_table(summary: dict[str, Any], folder: RunFolder, picture: Path | None) -> None:
    minutes, seconds = divmod(round(summary["training_seconds"]), 60)
    took = ("training time", f"{minutes} min {seconds:02d} s for {summary['steps_in_this_process']} steps")
    places = {"picture": picture, "summary": folder.summary, "metrics": folder.metrics,
              "checkpoints": folder.checkpoints}
    written = [(name, str(place)) for name, place in places.items() if place is not None]
    show_table(f"{folder.path} at step {summary['step']}", rows_of(summary.get("quality", {})), [took], written)
