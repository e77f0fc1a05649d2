from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
import torch

from afm_scale.core.errors import ConfigError
from afm_scale.core.typed import build
from afm_scale.train.hooks.console import ConsoleConfig, ConsoleHook, most_memory
from tests.train.hooks.small import report, small_plan, small_state


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(stream: io.StringIO, config: ConsoleConfig, *, steps: Iterator[int], total_steps: int) -> str:
    hook = ConsoleHook(config, total_steps=total_steps, stream=stream)
    state = small_state(small_plan())
    hook.on_start(state)
    for step in steps:
        terms = {"discriminator/total": torch.tensor(0.25), "discriminator/r1": torch.tensor(9.0),
                 "generator/total": torch.tensor(float(step))}
        hook.after_step(state, report(step, terms=terms))
    hook.on_end(state, None)
    return stream.getvalue()


def test_a_log_file_gets_one_plain_line_at_a_time() -> None:
    config = ConsoleConfig(line_every_seconds=0)
    lines = show(io.StringIO(), config, steps=iter(range(1, 4)), total_steps=2000).splitlines()
    assert len(lines) == 3
    assert re.fullmatch(
        r"step 3/2000  discriminator 0\.2500  generator 3\.0000  [\d,]+ images/s  data wait \d+%  "
        r"\d+\.\d GiB  (\d+:)?\d+:\d\d left", lines[2]
    )


def test_the_last_step_is_always_shown_and_the_others_only_now_and_then() -> None:
    config = ConsoleConfig(line_every_seconds=3600)
    lines = show(io.StringIO(), config, steps=iter(range(1, 6)), total_steps=5).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 5/5"]
    assert lines[0].endswith("0:00 left")


def test_a_terminal_gets_a_bar_that_starts_where_the_run_does() -> None:
    shown = show(Terminal(), ConsoleConfig(bar_every_seconds=0), steps=iter([1, 2]), total_steps=4)
    assert "\r 50%|" in shown
    assert "step 2/4  discriminator 0.2500  generator 2.0000" in shown


def test_losses_stay_on_the_device_until_they_are_shown() -> None:
    config = ConsoleConfig(line_every_seconds=3600)
    hook, state = ConsoleHook(config, total_steps=9, stream=io.StringIO()), small_state(small_plan())
    hook.on_start(state)
    unreadable = torch.empty((), device="meta")  # reading a meta tensor raises
    hook.after_step(state, report(1, terms={"generator/total": unreadable}))


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match="line_every_seconds: found -1, wanted a number from 0"):
        build(ConsoleConfig, {"line_every_seconds": -1})


def test_the_memory_shown_is_of_the_process_where_there_is_no_gpu() -> None:
    before = most_memory(torch.device("cpu"))
    held = torch.ones(2**25)  # 128 MiB
    assert 2**20 < before <= most_memory(torch.device("cpu")) < 2**40 and held.sum() == 2**25
