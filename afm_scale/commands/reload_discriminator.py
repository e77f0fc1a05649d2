"""Brings back an earlier discriminator of a run that has stopped; the next `train` goes on from it.

    --list           the discriminators that are kept
    --to STEP        that of a step
    --trial          the one from which a short branch improves the quality fastest, if it is not the present one

Writes the checkpoint of the newest step anew, and one event. Under a launcher too, with the plan of the run.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from ..checkpoint.falling_back import candidates, of_newest_whole
from ..checkpoint.manifest import folder_name, read_manifest, whole_manifest
from ..core import stopping
from ..core.errors import EXIT_DONE, CheckpointError, ConfigError, UserError
from ..core.holding import hold
from ..core.ranges import MANY, Range
from ..core.run_folder import RunFolder
from ..core.screen import note, say
from ..parallel.agreement import agreed, from_rank_0
from ..parallel.launch import launch
from ..run import build
from ..run.arguments import add_number
from ..run.check import check
from ..run.config import RunConfig
from ..run.evaluations import Evaluations
from ..run.load import load
from ..run.origin import origin_of
from ..run.pilot import build_pilot
from ..run.ready import check_ready
from ..run.start import start
from ..train.hooks.events import EventLog
from ..train.pilot.acts import ReloadDiscriminator, TryDiscriminators
from ..train.pilot.memory import Memory
from ..train.pilot.reload import ByTrial, spread, usable
from ..train.pilot.ring import counted_on
from ..train.pilot.trial import Branch
from ..train.state import TrainState

_BY_HAND = "by hand"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the folder of a run that keeps discriminators (pilot.ring)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="steps, ages in updates and bytes of those that are kept")
    add_number(what, "--to", int, Range(0, MANY), metavar="STEP", help="the step whose discriminator comes back")
    what.add_argument("--trial", action="store_true", help="short branches decide; the present one takes part")
    add_number(parser, "--candidates", int, Range(1, 100), help="of a trial (default: pilot.reload's)")
    add_number(parser, "--updates", int, Range(1, MANY), help="of a branch (default: pilot.reload's)")


def run(options: argparse.Namespace) -> int:
    config = _config_of(options.run)
    if not options.trial and (options.candidates or options.updates):
        raise UserError("--candidates and --updates are of a trial: say --trial, or leave them out")
    if options.list:
        _list(options.run)
        return EXIT_DONE
    if options.trial:
        config = _with_trial(config, options.candidates, options.updates)
    return _reload(config, options.to)


def _config_of(folder: Path) -> RunConfig:
    """The run's own recipe, wherever its folder lies now."""
    file = RunFolder(folder).config
    if not file.is_file():
        raise ConfigError(f"{folder} holds no {file.name}: it is not the folder of a run; name one")
    config = load(RunConfig, str(file), ()).resolved()
    if config.pilot is None or config.pilot.ring is None:
        raise ConfigError(f"{folder} keeps no discriminators: its recipe has no pilot.ring; train it with one")
    return replace(config, run=replace(config.run, folder=folder, resume_from=None, initialise_from=None))


def _with_trial(config: RunConfig, count: int | None, updates: int | None) -> RunConfig:
    pilot = config.pilot
    assert pilot is not None
    if config.hooks.evaluation is None:
        raise ConfigError("--trial compares qualities, and the run's recipe has no hooks.evaluation; use --to STEP")
    trial = pilot.reload if isinstance(pilot.reload, ByTrial) else ByTrial()
    updates = updates or trial.updates
    trial = replace(
        trial, candidates=count or trial.candidates, updates=updates, evaluations=min(trial.evaluations, updates)
    )
    return replace(config, pilot=replace(pilot, reload=trial))


def _list(folder: Path) -> None:
    newest, manifest = of_newest_whole(
        folder, candidates(folder), lambda path: (path, whole_manifest(path)), lambda path, reason: note(reason),
        do="Name another run",
    )
    lines = [f"{newest}", f"{'step':>12} {'age':>12} {'bytes':>16}"]
    for step in counted_on(newest):
        try:
            files = read_manifest(RunFolder(folder).discriminators / folder_name(step)).files
            size = f"{sum(files.values()):,}"
        except CheckpointError:
            size = "damaged"
        lines.append(f"{step:>12} {manifest.step - step:>12} {size:>16}")
    say("\n".join(lines))


def _reload(config: RunConfig, to: int | None) -> int:
    """To the discriminator of this step, or of a trial's choice. Every rank calls it."""
    folder = RunFolder(config.run.folder)
    with ExitStack() as afterwards, launch(config.parallel, log_of=folder.rank_log) as ranks:
        check(config, ranks.world_size)
        with agreed():
            check_ready(config)
        with agreed():
            if ranks.rank == 0:
                held = afterwards.enter_context(hold(folder.path, ranks=ranks.world_size))
                stopping.before_the_end(held.end)
        plan = build.build_plan(config, ranks)
        with agreed():
            state = build.build_state(config, ranks, plan)
        with closing(state.data):
            manager = build.build_manager(config, ranks, from_rank_0(ranks.rank, lambda: origin_of(config)))
            afterwards.callback(manager.settle)
            events = EventLog(folder.events, enabled=ranks.rank == 0)
            pilot = build_pilot(config, plan, state, events, Evaluations(config, plan), manager)
            afterwards.callback(pilot.settle)
            with agreed():
                start(state, plan, manager, config.run, EventLog(folder.events, enabled=False))
            chosen, branches = pilot.reload(state, _act(config, state, to))
            if chosen is not None:
                pilot.before_save(state)
                manager.save(state.step, state.tensors(plan), state.scalars())
                manager.wait()
            with agreed():
                if ranks.rank == 0:
                    _tell(state, chosen, branches, folder)
    return EXIT_DONE


def _act(config: RunConfig, state: TrainState, to: int | None) -> ReloadDiscriminator | TryDiscriminators:
    memory = state.pilot or Memory()
    kept = ", ".join(map(str, memory.ring)) or "none"
    if to is not None:
        if to not in memory.ring:
            raise UserError(f"--to {to}: the discriminator of that step is not kept; these are: {kept}")
        return ReloadDiscriminator(to=to, why=_BY_HAND)
    found = [step for step in usable(memory) if step < state.step]
    if not found:
        raise UserError(f"--trial has no candidate at step {state.step}: these are kept: {kept}; train on first")
    assert config.pilot is not None and isinstance(config.pilot.reload, ByTrial)
    return TryDiscriminators(candidates=spread(found, config.pilot.reload.candidates), why=_BY_HAND)


def _tell(state: TrainState, chosen: int | None, branches: tuple[Branch, ...], folder: RunFolder) -> None:
    lines = [
        f"{'present' if branch.to is None else branch.to:>12}  "
        + ("lost" if branch.slope is None else f"{branch.slope:.4g} per update")
        for branch in branches
    ]
    if chosen is None:
        lines.append(f"{folder.path}: the present discriminator stays; nothing was changed")
    else:
        saved = folder.checkpoints / folder_name(state.step)
        lines.append(f"{folder.path}: the discriminator is that of step {chosen}; train goes on from {saved}")
    say("\n".join(lines))
