"""What an update costs, counted on the meta device where nothing is computed: in forward passes of the network.

    python -m afm_scale benchmark cost flow_matching_xl2 mean_flow_xl2 alpha_flow_xl2 twin_flow_xl2 afm_2step_xl2

A forward is 1 and its backward 2. A recipe whose objective changes in the run is counted at several shares of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from ..core.ranges import Range
from ..core.screen import say
from ..objectives.flow_matching import FlowMatchingConfig
from ..run.arguments import add_number
from ..run.config import RunConfig
from ..run.forecast.counting import step_flops
from ..run.load import load

_OF_FLOW_MATCHING = 3  # forward passes: one with its backward


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    add_number(parser, "--at", float, Range(0, below=1), nargs="+", metavar="SHARE", default=[0.1, 0.5, 0.9],
        help="shares of the run (default: 0.1 0.5 0.9)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings that replace the recipes'")


def run(options: argparse.Namespace) -> int:
    say(f"| recipe | TFLOP a forward | {' | '.join(f'at {share:g}' for share in options.at)} |")
    say("|---" * (2 + len(options.at)) + "|")
    for name in options.recipes:
        forward, units = counted(load(RunConfig, name, options.set).resolved(), options.at)
        say(f"| {name} | {forward / 1e12:.4f} | {' | '.join(f'{unit:.2f}' for unit in units)} |")
    return 0


def counted(config: RunConfig, shares: Sequence[float]) -> tuple[float, list[float]]:
    """Operations of a forward of the generator for one sample, and how many of them an update takes for each sample of
    its batch, at shares of the run. Raises ConfigError where no generator learns."""
    plain = replace(config, objective=FlowMatchingConfig(), model=replace(config.model, discriminator=None))
    forward = step_flops(plain) / _OF_FLOW_MATCHING
    return forward, [step_flops(config, int(share * config.loop.steps)) / forward for share in shares]
