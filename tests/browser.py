"""A browser without a window: `from tests.browser import missing, seen`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def _found() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


def missing() -> str:
    """Why no page can be looked at here, or an empty string."""
    return "" if _found() else f"none of {', '.join(_NAMES)} is here (Debian: apt-get install chromium)"


def seen(url: str, folder: Path, *, dark: bool = False, size: str = "1400,2200") -> tuple[str, Path, str]:
    """(the page as it stands some seconds later, a picture of it, what the browser said in its console)."""
    program, picture = _found(), folder / f"page{'_dark' if dark else ''}.png"
    assert program is not None
    words = [
        program, "--headless=new", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}", "--no-first-run",
        "--enable-logging=stderr", "--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
    ]

    def told(*more: str) -> tuple[str, str]:
        done = subprocess.run([*words, *more, url], capture_output=True, text=True, timeout=250, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    _, console = told(f"--screenshot={picture}")
    page, _ = told("--dump-dom")
    return page, picture, "\n".join(line for line in console.splitlines() if "CONSOLE" in line)
