"""The hooks there are, in the order they run. A new one is a file beside this one and a line here."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from typing import Any

from . import (
    checkpoint,
    consistency,
    console,
    divergence,
    evaluation,
    expected_memory,
    garbage,
    memory_snapshot,
    metrics,
    profile,
    samples,
    skipped,
    stragglers,
)
from .surroundings import HookKind

# What is seen is shown and written before anything may stop the run for it: the console, an evaluation, the row of
# metrics that holds its figures, what was skipped. Then come those that may: nothing is drawn or saved of a step that
# was not finite, or that the ranks disagree on. Saving is late, for it waits for the device, and garbage is collected
# when a save has left some. Profiles begin and end after all of these, so that a step is watched whole. The stop hook
# comes last of all, to see the errors of the others (run/hooks.py).
HOOKS: dict[str, HookKind] = {
    "console": HookKind(console.build, console.ConsoleConfig, console.ConsoleConfig()),
    "expected_memory": HookKind(
        expected_memory.build, expected_memory.ExpectedMemoryConfig, expected_memory.ExpectedMemoryConfig()
    ),
    "evaluation": HookKind(evaluation.build, evaluation.EvaluationConfig),
    "metrics": HookKind(metrics.build, metrics.MetricsConfig, metrics.MetricsConfig()),
    "stragglers": HookKind(stragglers.build, stragglers.StragglersConfig, stragglers.StragglersConfig()),
    "skipped": HookKind(skipped.build),
    "divergence": HookKind(divergence.build, divergence.DivergenceConfig, divergence.DivergenceConfig()),
    "consistency": HookKind(consistency.build, consistency.ConsistencyConfig),
    "samples": HookKind(samples.build, samples.SamplesConfig),
    "checkpoint": HookKind(checkpoint.build),
    "garbage": HookKind(garbage.build, garbage.GarbageConfig),
    "profile": HookKind(profile.build, profile.ProfileConfig, profile.ProfileConfig()),
    "memory_snapshot": HookKind(memory_snapshot.build, memory_snapshot.MemorySnapshotConfig),
}


def hooks_config(module: str, **types: Any) -> type:
    """The class of a recipe's section `hooks`: a field for every hook of the table that has settings of its own.

    Args:
        module: where the class is to be found by its name, HooksConfig
        types: of settings by the name of the hook, where the table knows a protocol alone
    """
    settings = []
    for name, kind in HOOKS.items():
        if kind.config is not None:
            wanted = types.get(name, kind.config)
            about = {"documentation": (kind.config.__doc__ or "").partition("\n")[0]}
            settings.append((
                name, wanted if kind.default is not None else wanted | None,
                field(default=kind.default, metadata=about),
            ))
    return make_dataclass("HooksConfig", settings, frozen=True, kw_only=True, namespace={"__module__": module})
