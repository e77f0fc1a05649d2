"""The configurations that come with the program: the folder `configs`, which an installed package has inside."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

_PACKAGE = Path(str(files(__package__.partition(".")[0])))
# A wheel carries a copy inside of the package (setup.py); a checkout, also installed by -e, has the folder beside it.
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
RECIPES = CONFIGS / "recipes"


def shipped(name: str) -> Path | None:
    """The file that a name means, such as `afm_1step_xl2` or `model/dit_xl2`; `.yaml` may be left out."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    candidates = (folder / text for folder in (RECIPES, CONFIGS) for text in (name, f"{name}.yaml"))
    return next((file for file in candidates if file.is_file()), None)


def shipped_names() -> list[str]:
    """All names, the recipes first."""
    parts = [file.relative_to(CONFIGS) for file in sorted(CONFIGS.rglob("*.yaml"))]
    names = [part.relative_to("recipes") if part.parts[0] == "recipes" else part for part in parts]
    return [name.with_suffix("").as_posix() for name in sorted(names, key=lambda name: len(name.parts))]
