"""What to install is said as the README has it: of this checkout, and by an extra that it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from afm_scale.core.errors import ConfigError
from afm_scale.core.packages import require

ROOT = Path(__file__).parents[2]


def test_a_missing_package_is_named_with_the_readmes_command() -> None:
    with pytest.raises(ConfigError, match=r"x needs the package absent_here, .*: pip install -c con.*.txt '.\[fp8\]'"):
        require("absent_here", "x", "fp8")
    assert "pip install -c constraints.txt" in (ROOT / "README.md").read_text()


def test_every_message_that_says_what_to_install_keeps_to_the_constraints() -> None:
    for file in (ROOT / "afm_scale").rglob("*.py"):
        for command in re.findall("pip install.*", file.read_text()):
            assert "-c constraints.txt" in command, f"{file.name}: {command}"
