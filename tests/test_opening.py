"""Files are opened by core/files.py, which knows pipes and devices; by others only for the reasons given here."""

from __future__ import annotations

import ast

import pytest

from tests.test_layering import PACKAGE, Sources, package_sources, part_of

OPENS = {
    "open", "fdopen", "read_bytes", "read_text", "write_bytes", "write_text", "load_file", "save_file", "safe_open",
    "memmap", "fromfile", "tofile", "loadtxt", "savetxt", "export_chrome_trace", "from_pretrained", "ZipFile",
    "copyfile", "copy2", "FileSystemReader", "TarFile", "from_file",
}
"""The last word of a call that opens a file, whatever it is called on."""
OPENS_IN = {
    "load": {"np", "numpy", "torch", "pickle", "torch.jit", "marshal"},
    "save": {"np", "numpy", "torch", "torch.jit", "image", "picture"},
    "savez": {"np", "numpy"},
    "savefig": {"figure", "plt"},
}
"""The same of words that mean other things elsewhere."""

ALLOWED = {
    ("data.transforms", "Image.open"): "bytes in memory",
    ("evaluation.images.npz", "archive.open"): "a member of an archive that is open",
}
"""Calls (module, function) that open no file by its name, or do so after `require_regular`."""
LATER = {"checkpoint", "data", "packing", "evaluation", "train", "models", "benchmarks", "run", "commands", "sampling"}


def openings(sources: Sources) -> set[tuple[str, str]]:
    """(module without the package's name, function as it is written) of all that opens a file."""
    found = set()
    for module, source in sources.items():
        if module == f"{PACKAGE}.core.files":
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call):
                function = ast.unparse(node.func)
                owner, _, word = function.rpartition(".")
                if word in OPENS or owner in OPENS_IN.get(word, ()):
                    found.add((module.removeprefix(f"{PACKAGE}."), function))
    return found


def test_files_are_opened_in_one_place() -> None:
    found = {opening for opening in openings(package_sources()) if part_of(f"x.{opening[0]}") not in LATER}
    told = "\n".join(f"{module} calls {function}" for module, function in sorted(found - ALLOWED.keys()))
    assert not told, f"use core/files.py, or say here why not:\n{told}"


@pytest.mark.parametrize("call", [
    "open('x')", "path.open('rb')", "os.open(path, 0)", "path.read_bytes()", "(a / b).write_text('')", "np.load(x)",
    "torch.jit.load(x)", "load_file(path)", "figure.savefig(path)",
])
def test_an_opening_is_found(call: str) -> None:
    assert openings({f"{PACKAGE}.data.x": f"def f():\n    return {call}"})
