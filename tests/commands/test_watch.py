"""The command `watch`: its address, its mistakes, and its page in a browser for a run that goes on and one that failed.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from afm_scale.__main__ import main
from afm_scale.core.errors import EXIT_DONE, EXIT_USER_ERROR
from afm_scale.sampling.pictures import save_png
from tests import browser
from tests.evaluation.watching.runs import START, written
from tests.program import ROOT, SMALL_FLOW_MATCHING

FAILURE = "rank 1 was lost </p><script>document.body.textContent = 'broken in'</script>; run the same command again"


def curves(steps: int) -> Iterator[dict[str, float]]:
    for step in range(10, steps + 1, 10):
        share = step / steps
        yield {
            "step": step, "images_seen": 128 * step, "generator/total": 1 - share / 2 + math.sin(step) / 20,
            "discriminator/total": 0.5 + share / 3, "generator/grad_norm": math.exp(math.sin(step / 50)),
            "images_per_second": 900 + 20 * math.cos(step), "seconds_per_step": 0.14, "data_wait_share": 0.02,
        }


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Of 5,000 rows each."""
    figures = [
        {"kind": "evaluation", "step": step, "figures": {"fid": 3e5 / step}} for step in range(5000, 50_001, 5000)
    ]
    phases = [{"kind": "phase", "step": step, "phase": name, "index": index, "why": "so"}
              for index, (step, name) in enumerate([(0, "pretrain"), (20_000, "refine")])]
    acts = [{"kind": "act", "step": 30_000, "act": "reload_discriminator", "to": 25_000, "why": "stall"}]
    events = [START, phases[0], *figures[:4], phases[1], *figures[4:6], *acts, *figures[6:]]
    an_hour_on = -3600  # the beat of a process whose clock is ahead: it stays one that goes on, however slow this is
    goes_on = written(tmp_path / "goes_on", events, curves(50_000), steps=80_000, seconds_since_beat=an_hour_on)
    ramp = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 256, 3))
    save_png(Image.fromarray(ramp), goes_on.samples / "step_00050000.png")
    failed = written(tmp_path / "failed", [START, *figures, {"kind": "failed", "step": 50_000, "why": FAILURE}],
                     curves(50_000), steps=80_000)
    return [goes_on.path, failed.path]


def started(*words: str | Path) -> tuple[subprocess.Popen[str], str]:
    """The command with a port that is free, and the address that it says."""
    process = subprocess.Popen(
        [sys.executable, "-m", "afm_scale", "watch", *map(str, words), "--port", "0"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
    assert found is not None, process.communicate(timeout=60)
    return process, found[0]


def test_it_says_where_it_is_answers_as_a_run_grows_and_ends_when_it_is_interrupted(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["train", *SMALL_FLOW_MATCHING, "parallel.device=cpu", f"run.folder={folder}"]
    assert main([*words, "loop.steps=2"]) == EXIT_DONE
    process, url = started(folder)
    with process:
        try:
            def asked() -> dict:
                with urllib.request.urlopen(f"{url}runs", timeout=60) as answer:
                    return json.load(answer)[0]

            assert asked()["step"] == 2 and asked()["standing"]["state"] == "done"
            assert main([*words, "loop.steps=4"]) == EXIT_DONE
            time.sleep(1.1)  # an answer is a second old at most
            found = asked()
            assert found["step"] == 4 and found["starts"] == 2 and found["ranks"]["number"] == 1
            assert {"loss", "gradient norm", "images per second"} <= {panel["title"] for panel in found["panels"]}
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == EXIT_DONE and process.stderr is not None
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_a_folder_that_is_no_run_s_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path), "--port", "0"]) == EXIT_USER_ERROR
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "has no config.yaml, events.jsonl or metrics.jsonl; name a run's folder" in told


@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "there is one")
def test_a_browser_shows_a_run_that_goes_on_beside_one_that_failed(runs: list[Path], tmp_path: Path) -> None:
    process, url = started(*runs)
    with process:
        try:
            page, picture, console = browser.seen(url, tmp_path)
            _, in_the_dark, _ = browser.seen(url, tmp_path, dark=True)
        finally:
            process.kill()
    assert console == ""  # no error, and nothing that the policy has refused
    assert page.count("<article>") == 2 and 'data-looked="yes"' in page
    states = re.findall(r'<span class="state [\w-]+">([\w ]+)</span>', page)
    assert states == ["goes on", "failed"]
    assert "at step 50,000: rank 1 was lost &lt;/p&gt;&lt;script&gt;" in page and "<script>document" not in page
    assert page.count('class="curve') >= 10 and page.count('class="band') >= 8  # 5,000 rows are thinned
    assert "NaN" not in page and "undefined" not in page and "Infinity" not in page
    assert 'src="/runs/0/step_00050000.png"' in page and "no samples were written yet" in page
    assert "refine (2)" in page and "reload_discriminator" in page and "2 ranks, ddp" in page

    light, dark = imread(picture)[..., :3], imread(in_the_dark)[..., :3]
    assert light.shape == dark.shape == (2200, 1400, 3)
    assert light.mean() > 0.85 and dark.mean() < 0.25
    for shown in (light, dark):
        left, right = shown[:, :700], shown[:, 700:]
        for half in (left, right):  # curves are there: blue and red lines on either side
            strong = half.max(axis=-1) - half.min(axis=-1) > 0.35
            assert strong.sum() > 2000
    ramp = light[:, :700].mean(axis=-1)
    assert len(np.unique((ramp * 255).round())) > 200  # the sheet of samples, all its shades
