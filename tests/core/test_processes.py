"""Processes start, and are handed memory, where /dev/shm is small and the name of the temporary folder long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.small import packed_images

SMALL = "mount -t tmpfs -o size=1m none /dev/shm"
IN_THERE = ["unshare", "--mount", "sh", "-c", SMALL + ' && exec "$@"', "sh"]
SCRIPT = """
import subprocess, sys
from itertools import islice
from pathlib import Path
from afm_scale.core.errors import UserError
from afm_scale.core.processes import check_processes
from afm_scale.data.images import WebDatasetConfig
from afm_scale.data.webdataset import WebDatasetSource

config = WebDatasetConfig(folder=Path(sys.argv[1]), size=256, num_classes=3, global_batch=16, workers=1)
source = WebDatasetSource(config, seed=0, rank=0, world_size=1, device="cpu")
print([batch.x.shape[0] for batch in islice(source, 3)])  # 3 MB each
source.close()
for options in ("size=1m,ro", "size=4k,nr_inodes=1"):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", "/dev/shm"], check=True)
    try:
        check_processes()
        print("started")
    except UserError as error:
        print(error)
"""


@pytest.mark.processes
@pytest.mark.skipif(
    subprocess.run([*IN_THERE, "true"], capture_output=True, timeout=60).returncode != 0,
    reason="may not lay another /dev/shm over that of this machine",
)
def test_a_small_shm_and_a_long_tmpdir_do_and_without_semaphores_one_message_says_what_to_do(tmp_path: Path) -> None:
    packed_images(tmp_path / "packed", size=256)
    temporary = tmp_path / ("t" * 90)
    temporary.mkdir()
    ended = subprocess.run(
        [*IN_THERE, sys.executable, "-c", SCRIPT, tmp_path / "packed"], text=True, capture_output=True, timeout=120,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    assert ended.returncode == 0, ended.stderr
    read, *refused = ended.stdout.splitlines()
    assert read == "[16, 16, 16]"
    for line, reason in zip(refused, ("Read-only file system", "No space left on device"), strict=True):
        told = f"processes that work for this one cannot be started: {reason}; give it a /dev/shm"
        assert line.startswith(told), line
