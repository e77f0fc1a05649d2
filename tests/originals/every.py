"""All cases."""

from __future__ import annotations

from . import of_archives, of_folders, of_images
from .cases import Case


def all_cases() -> list[Case]:
    return [*of_archives.cases(), *of_folders.cases(), *of_images.cases()]
