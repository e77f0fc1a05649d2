"""What setup.py asks for, one requirement a line; or, with --freeze, the versions of packages as they are installed.

python docker/requirements.py [--extras a,b] [--without a,b]
python docker/requirements.py --freeze a,b
"""

from __future__ import annotations

import argparse
import re
import runpy
from importlib import metadata
from pathlib import Path
from typing import Any


def requirements(setup: Path, extras: list[str], without: list[str]) -> list[str]:
    """Of the package and of the extras, but for the packages `without`."""
    import setuptools

    about: dict[str, Any] = {}
    setuptools.setup = lambda **given: about.update(given)  # setup.py is asked, not run
    runpy.run_path(str(setup))
    unknown = [name for name in extras if name not in about["extras_require"]]
    if unknown:
        raise SystemExit(f"{setup} has no extras {', '.join(unknown)}")
    found = [*about["install_requires"], *(line for name in extras for line in about["extras_require"][name])]
    return [line for line in dict.fromkeys(found) if re.split(r"[^A-Za-z0-9_.-]", line)[0] not in without]


def version_of(name: str) -> str:
    """With where it lies, since two builds may call themselves the same."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not there"
    return f"{name}=={found.version} in {found.locate_file('')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--extras", "--without", "--freeze"):
        parser.add_argument(option, type=lambda text: text.split(","), default=[])
    options = parser.parse_args()
    here = Path(__file__).parent
    setup = next(path for path in (here / "setup.py", here.parent / "setup.py") if path.exists())
    lines = [version_of(name) for name in options.freeze] or requirements(setup, options.extras, options.without)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
