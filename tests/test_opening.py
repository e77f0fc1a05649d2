"""Files are opened by core/files.py, which knows pipes and devices; by others only for the reasons given here."""

from __future__ import annotations

import ast

import pytest

from tests.test_layering import PACKAGE, Sources, package_sources

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
    ("checkpoint.manifest", "open"): "for writing, in a folder that this process has made under a name of its own",
    ("checkpoint.manifest", "os.open"): "a folder, to put its names on the disk",
    ("checkpoint.stored", "zipfile.ZipFile"): "a part of a file that open_regular has opened",
    ("checkpoint.formats.native", "torch.save"): "into the stream of torch's writer, in a folder made for it",
    ("checkpoint.formats.torch_writer", "zipfile.ZipFile"): "in a file that is open for writing",
    ("core.screen", "os.open"): "nothing, in the place of a descriptor that was closed",
    ("data.transforms", "Image.open"): "bytes in memory",
    ("data.index", "safe_open"): "safetensors maps the file itself, after require_regular",
    ("packing.records", "safe_open"): "safetensors maps the file itself, after require_regular",
    ("packing.archives", "tarfile.open"): "a file that open_regular has opened",
    ("packing.archives", "zipfile.ZipFile"): "a file that open_regular has opened, or after require_regular",
    ("packing.archives", "self._zip.open"): "a member of an archive that is open",
    ("data.toys.digits", "np.loadtxt"): "bytes in memory",
    ("data.npz", "archive.open"): "a member of an archive that is open",
    ("data.npz", "zipfile.ZipFile"): "a file that open_regular has opened",
    ("models.weights_file", "load_file"): "safetensors maps the file itself, after require_regular",
    ("models.text_pipelines", "kind.from_pretrained"): "after require_regular of all files of the folder",
    ("models.large.pretrained", "safe_open"): "safetensors maps the file itself, after require_regular",
    ("models.diffusers", "_of_diffusers('AutoencoderKL').from_pretrained"): "after its two files were read here",
    ("evaluation.features.torchscript", "torch.jit.load"): "bytes in memory, whose SHA-256 was named",
    ("evaluation.features.inception", "torch.load"): "bytes in memory, as weights alone",
    ("evaluation.features.inception", "torch.save"): "into memory",
    ("evaluation.reference", "np.savez"): "into the file of write_atomically",
    ("sampling.sheets", "np.savez"): "into the file of write_atomically",
    ("sampling.pictures", "picture.save"): "into the file of write_atomically",
    ("packing.recode", "image.save"): "into memory",
    ("commands.encode_latents", "np.save"): "into memory",
    ("benchmarks.sample_files", "np.save"): "into memory",
    ("benchmarks.sample_files", "image.save"): "into memory",
    ("benchmarks.compared", "Image.open"): "bytes in memory",
    ("benchmarks.sample_files", "Image.open"): "bytes in memory",
    ("benchmarks.plain_webdataset", "Image.open"): "bytes in memory",
    ("train.hooks.profile", "profiler.export_chrome_trace"): "to the name of named_atomically",
    ("benchmarks.spawned", "(folder / f'found_{rank}').read_text"): "in a folder that was made for it",
    ("benchmarks.spawned", "(folder / f'found_{rank}').write_text"): "in a folder that was made for it",
    ("benchmarks.spawned", "(folder / f'error_{rank}').write_text"): "in a folder that was made for it",
    ("benchmarks.spawned", "error.read_text"): "in a folder that was made for it",
    ("benchmarks.checkpoint", "dcp.FileSystemReader"): "of what it has just written, to compare with",
    **{
        (module, "figure.savefig"): "into the file of write_atomically"
        for module in (
            "evaluation.accuracy", "evaluation.course_picture", "evaluation.toys.mixture2d", "run.forecast.picture",
            "evaluation.toys.mixture1d", "benchmarks.compared",
        )
    },
}
"""Calls (module, function) that open no file by its name, or do so after `require_regular`."""


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
    found = openings(package_sources())
    told = "\n".join(f"{module} calls {function}" for module, function in sorted(found - ALLOWED.keys()))
    assert not told, f"use core/files.py, or say here why not:\n{told}"
    assert not ALLOWED.keys() - found, "these do not open anything any more: take them from the list"


@pytest.mark.parametrize("call", [
    "open('x')", "path.open('rb')", "os.open(path, 0)", "path.read_bytes()", "(a / b).write_text('')", "np.load(x)",
    "torch.jit.load(x)", "load_file(path)", "figure.savefig(path)",
])
def test_an_opening_is_found(call: str) -> None:
    assert openings({f"{PACKAGE}.data.x": f"def f():\n    return {call}"})
