"""Whatever becomes of the screen, a process goes on and ends as its work decides."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from afm_scale.core.screen import note, say
from tests.program import ROOT

SPEAKS = """
import sys, warnings
from afm_scale.core.screen import errors, flush, note, note_at_once, say, take_over
take_over()
for _ in range(3):
    say("said \\u00e9 \\udcff [/final]" + "." * 100_000), note("noted"), note_at_once("at once")
warnings.warn("by a library")
sys.stdout.write("not whole")
assert errors().isatty() is False
flush()
open(sys.argv[1], "w").write("done")
import os
os._exit(7)
"""


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


CHANNELS: dict[str, Callable[[], int]] = {
    "a pipe without a reader": closed_pipe, "a full disk": lambda: os.open("/dev/full", os.O_WRONLY),
    "one that cannot be written to": lambda: os.open(os.devnull, os.O_RDONLY),
}


def speak(folder: Path, script: str = SPEAKS, **details: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "done")], cwd=ROOT, timeout=60, check=False, **details,
    )
    assert done.returncode == 7
    assert (folder / "done").read_text() == "done"


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_channel_that_takes_nothing_ends_nothing(tmp_path: Path, channel: str) -> None:
    descriptor = CHANNELS[channel]()
    try:
        speak(tmp_path, stdout=descriptor, stderr=descriptor)
    finally:
        os.close(descriptor)


def test_the_number_of_a_closed_descriptor_goes_to_no_file(tmp_path: Path) -> None:
    """Libraries write their complaints to number 2, whatever is open there."""
    (tmp_path / "closes.py").write_text("import os, sys\nos.closerange(0, 3)\nos.execv(sys.executable, sys.argv[1:])")
    script = SPEAKS.replace("import os\n", "import os\nos.write(2, b'a complaint')\n")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "closes.py"), sys.executable, "-c", script, str(tmp_path / "done")],
        cwd=ROOT, timeout=60, check=False,
    )
    assert done.returncode == 7
    assert (tmp_path / "done").read_text() == "done"


def test_letters_that_the_screen_lacks_are_spelled(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        speak(tmp_path, stdout=out, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    said = (tmp_path / "out").read_bytes()
    assert said.count(rb"said \xe9 \udcff [/final].") == 3 and said.endswith(b"not whole")


def test_without_a_screen_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    say("to nobody")
    note("to nobody")


READ_BY_NOBODY = """
import os, sys, time
from afm_scale.core import screen
screen.PATIENCE_SECONDS = 0.5
screen.take_over(holds_up=False)
began = time.monotonic()
for _ in range(2000):
    screen.note("." * 100), screen.say("." * 100), screen.note_at_once("." * 100)
took = time.monotonic() - began
os.read(int(sys.argv[2]), 1 << 20)
screen.note("last")
open(sys.argv[1], "w").write(str(took))
os._exit(7)
"""


def test_a_full_pipe_holds_a_run_up_once_and_is_written_to_again_when_it_is_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ_BY_NOBODY, str(tmp_path / "took"), str(reader)], cwd=ROOT, timeout=60,
            check=False, stdout=writer, stderr=writer, pass_fds=(reader,),
        )
        assert done.returncode == 7 and 0.5 <= float((tmp_path / "took").read_text()) < 5
        assert os.read(reader, 1 << 20) == b"last\n"
    finally:
        os.close(reader)
        os.close(writer)
