"""What is done to networks in files of their own: guides' weights, other runs, features, TorchScript, autoencoders."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import doors
from .harm import (
    DEEP,
    HUGE,
    KINDS,
    LONG,
    Harm,
    Planted,
    absent,
    cut,
    flipped,
    header_said,
    in_a_zip,
    kind,
    longer,
    moved_behind_a_link,
    nothing,
    planted,
    read_only,
    replaced,
    safetensors,
    said,
    together,
    unsaid,
    zeros,
)
from .of_checkpoints import MANIFEST, METADATA, TENSORS, at, entered, in_the_largest, planted_plans, sealed
from .trial import Case

WEIGHTS, SCRIPT = "weights.safetensors", "features.pt"


def tensors(name: str, change: Callable[[dict[str, Tensor]], object]) -> Harm:
    def harm(root: Path) -> None:
        held = load_file(root / name)
        change(held)
        save_file({key: value.contiguous() for key, value in held.items()}, root / name)

    return harm


def each(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda held: held.update({key: change(value) for key, value in held.items()})


def first(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def put(held: dict[str, Tensor]) -> None:
        key = min(held, key=lambda key: (held[key].numel() < 4, key))
        held[key] = change(held[key].clone())

    return put


def _set(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[1] = value
        return tensor

    return change


def of_safetensors(name: str) -> Iterator[tuple[str, Harm, str]]:
    yield "untouched", nothing, "done"
    yield "behind a link", moved_behind_a_link(name), "done"
    yield "read-only", read_only(name), "done"
    for what, make in KINDS.items():
        yield f"it is {what}", kind(name, make), "refused"
    for share in (0.0, 0.5, 0.99):
        yield f"cut to {share:g}", cut(name, share), "refused"
    yield "longer", longer(name), "refused"
    yield "zeros", zeros(name), "refused"
    yield "planted code", planted(name), "refused"
    yield "a torch.save with planted code", planted(name, in_a_zip), "refused"
    for what, change in (
        ("one is NaN", first(_set(float("nan")))), ("one is infinite", first(_set(float("inf")))),
        ("all NaN", each(lambda tensor: tensor * float("nan"))),
        ("whole numbers", each(lambda tensor: tensor.to(torch.int64))),
        ("bytes", each(lambda tensor: tensor.to(torch.uint8))), ("truth", each(lambda tensor: tensor > 0)),
        ("one of whole numbers", first(lambda tensor: tensor.to(torch.int32))),
        ("one of another shape", first(lambda tensor: tensor[..., :-1])),
        ("one missing", lambda held: held.pop(min(held))), ("one too many", lambda held: held.update(
            more=torch.zeros(2))), ("none", lambda held: held.clear()),
    ):
        yield what, tensors(name, change), "refused"
    yield "float64", tensors(name, each(lambda tensor: tensor.to(torch.float64))), "either"
    yield "one is NaN in float64", tensors(name, each(lambda tensor: _set(float("nan"))(
        tensor.to(torch.float64)) if tensor.numel() > 3 else tensor)), "refused"
    yield "with a description", header_said(name, lambda header: header.update(__metadata__={"by": "us"})), "done"
    yield "called complex", header_said(name, _complex), "refused"
    yield "a shape of 2^62", header_said(name, lambda header: header[min(header)].update(shape=[HUGE])), "refused"
    yield "a negative shape", header_said(name, lambda header: header[min(header)].update(shape=[-4])), "refused"
    yield "places past the end", header_said(name, lambda header: header[min(header)].update(
        data_offsets=[HUGE, HUGE + 4])), "refused"
    yield "a header of 2^62 bytes", replaced(name, safetensors(b"{}", length=HUGE)), "refused"
    yield "a header nested 100,000 deep", replaced(name, safetensors(str(DEEP).encode())), "refused"
    yield "a header that is a list", replaced(name, safetensors(b"[]")), "refused"
    yield "names of 5,000 letters", header_said(name, lambda header: header.update({
        LONG: header.pop(min(header))})), "refused"


def _complex(header: dict[str, Any]) -> None:
    for entry in header.values():
        if entry["shape"] and entry["shape"][-1] % 2 == 0:
            entry.update(dtype="C64", shape=[*entry["shape"][:-1], entry["shape"][-1] // 2])


def guides() -> Iterator[Case]:
    for name, harm, wants in of_safetensors(WEIGHTS):
        yield Case(
            kind="weights: guides", name=name, door=doors.GUIDE_WEIGHTS, harm=harm, wants=wants, names=(WEIGHTS,)
        )
    readers = cycle((doors.GUIDE_RUN, doors.FLOW_RUN, doors.JUDGE))
    for name, of in (
        ("its manifest cut", at(MANIFEST, cut, 0.5)), ("its manifest a pipe", at(MANIFEST, kind, KINDS["a pipe"])),
        ("its card of NaN", sealed(at(MANIFEST, said, ["card", "class_dropout"], float("nan")))),
        ("its network of 10^9 blocks", sealed(_of_its_network("depth", 10**9))),
        ("its network of 10^9 heads", sealed(_of_its_network("num_heads", 10**9))),
        ("its plan planted", entered(at(METADATA, planted), METADATA)), ("its plan a pipe", at(METADATA, kind, KINDS[
            "a pipe"])), ("its tensors flipped", at(TENSORS, flipped, 7, between=(0.4, 0.5))),
        ("its tensors of zeros", at(TENSORS, zeros)),
        ("planted code in a tensor", entered(in_the_largest(in_a_zip), TENSORS)),
        ("no manifest", at(MANIFEST, absent)),
        *((f"its plan {name}", entered(of, METADATA)) for name, of in planted_plans()),
    ):
        for _ in range(2):
            door = next(readers)
            folder = "flow" if door is doors.FLOW_RUN else "classifier"
            either = "plan" in name
            yield Case(
                kind="weights: another run's", name=name, door=door, harm=of(f"{folder}/checkpoints/step_00000002"),
                wants="either" if either else "refused", names=(folder,),
            )


def _of_its_network(key: str, value: object) -> Callable[[str], Harm]:
    def of(folder: str) -> Harm:
        role = "classifier" if folder.startswith("classifier") else "generator"
        return said(f"{folder}/{MANIFEST}", ["card", "networks", role, key], value)

    return of


# TorchScript, which is a program.


class FromFile(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        written = torch.from_file(self.path, True, 64, dtype=torch.uint8).fill_(7)
        return images.to(torch.float32).flatten(1)[:, :8] + written[0]


class FromFileInside(nn.Module):
    """The same in a submodule, in a method that is not called by that name."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.inner = FromFile(path)

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)


class FromFileAtLoading(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).flatten(1)[:, :8]

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.from_file(self.path, True, 64, dtype=torch.uint8).fill_(7)


class Saves(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        torch.save(images, self.path)
        return images.to(torch.float32).flatten(1)[:, :8]


class Loops(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        count = 0
        while count >= 0:
            count = (count + 1) % 7
        return images.to(torch.float32).flatten(1)[:, :8]


class Grows(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        held = [images]
        while len(held) > 0:
            held.append(torch.zeros([1 << 26]))
        return images.to(torch.float32).flatten(1)[:, :8]


class AsksForMuch(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros([1 << 44]).view(len(images), -1)


class Recurses(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        x = images.to(torch.float32).flatten(1)
        for _ in range(1 << 40):
            x = x @ torch.eye(x.shape[1])
        return x[:, :8]


class Exits(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        assert images.numel() < 0, "as it likes"
        return images.to(torch.float32).flatten(1)[:, :8]


class NotFinite(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).flatten(1)[:, :8] / 0.0


class OfWhole(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :8]


class Random(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.rand([len(images), 8])


class OutOfBounds(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        x = images.to(torch.float32).flatten(1)
        return torch.as_strided(x, [len(images), 8], [1 << 40, 1 << 30])


class WritesIntoItsImages(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        images.fill_(0)
        return images.to(torch.float32).flatten(1)[:, :8]


def script(make: Callable[[Path], nn.Module]) -> Harm:
    def harm(root: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.script(make(root)).save(str(root / SCRIPT))

    return harm


def to_the_other(kind_of: Callable[[str], nn.Module]) -> Harm:
    return script(lambda root: kind_of(str(root / "other" / "config.yaml")))


def code(change: Callable[[str], str]) -> Harm:
    """Another text of its program, in the archive."""
    def harm(root: Path) -> None:
        old = (root / SCRIPT).read_bytes()
        with zipfile.ZipFile(io.BytesIO(old)) as found, zipfile.ZipFile(root / SCRIPT, "w") as archive:
            for info in found.infolist():
                data = found.read(info)
                if info.filename.endswith(".py"):
                    data = change(data.decode()).encode()
                archive.writestr(info.filename, data)

    return harm


def data_pickle(wrap: Callable[[Path], bytes]) -> Harm:
    def harm(root: Path) -> None:
        old = (root / SCRIPT).read_bytes()
        with zipfile.ZipFile(io.BytesIO(old)) as found, zipfile.ZipFile(root / SCRIPT, "w") as archive:
            for info in found.infolist():
                archive.writestr(
                    info.filename, wrap(root) if info.filename.endswith("data.pkl") else found.read(info)
                )

    return harm


def scripts() -> Iterator[tuple[str, Harm, str]]:
    from .harm import plant

    yield "untouched", nothing, "done"
    yield "behind a link", moved_behind_a_link(SCRIPT), "done"
    for name, make in (
        ("writes over a file by from_file", FromFile), ("the same in a submodule", FromFileInside),
        ("the same when it is loaded", FromFileAtLoading),
    ):
        yield name, to_the_other(make), "refused"
    for name, make in (
        ("loops for ever", Loops), ("loops with arithmetic", Recurses), ("grows for ever", Grows),
        ("asks for 64 TB", AsksForMuch), ("fails", Exits), ("gives what is not finite", NotFinite),
        ("gives whole numbers", OfWhole), ("reads beside its tensors", OutOfBounds),
    ):
        yield name, script(lambda root, make=make: make()), "refused"
    yield "draws at random", script(lambda root: Random()), "refused"
    yield "writes into its images", script(lambda root: WritesIntoItsImages()), "either"
    yield "code nested 100,000 deep", code(lambda text: text.replace("return ", "return " + "(" * 100_000)), "refused"
    yield "code that is none", code(lambda text: "def forward(self, x: Tensor):\n  return nothing\n"), "refused"
    yield "code with an operator that there is not", code(
        lambda text: text.replace("torch.flatten", "torch.flutten")), "refused"
    yield "planted code in its data", data_pickle(lambda root: plant(root, 2)), "refused"
    yield "planted code", planted(SCRIPT), "refused"
    yield "a torch.save with planted code", planted(SCRIPT, in_a_zip), "refused"
    yield "a state dict", lambda root: torch.save({"weight": torch.zeros(3)}, root / SCRIPT), "refused"
    for share in (0.0, 0.5, 0.95):
        yield f"cut to {share:g}", cut(SCRIPT, share), "refused"
    yield "zeros", zeros(SCRIPT), "refused"
    for seed in range(5):
        yield f"flipped, seed {seed}", flipped(SCRIPT, seed, bits=2), "either"
    for what, make in KINDS.items():
        yield f"it is {what}", kind(SCRIPT, make), "refused"


def features() -> Iterator[Case]:
    for number, (name, harm, wants) in enumerate(scripts()):
        door = doors.UNNAMED_SCRIPT if number % 3 == 2 else doors.SCRIPT
        yield Case(kind="TorchScript", name=name, door=door, harm=harm, wants=wants, names=(SCRIPT,))
    for file, door in (("inception.pt", doors.INCEPTION), ("inception.pth", doors.INCEPTION_STATE)):
        for name, harm in (
            ("planted code", planted(file)), ("a torch.save with planted code", planted(file, in_a_zip)),
            ("cut", cut(file, 0.5)), ("zeros", zeros(file)), ("flipped", flipped(file, 2, bits=4)),
            ("of another network", nothing if file.endswith("pth") else absent(file)),
            ("a list", lambda root, file=file: torch.save([1, 2], root / file)),
            ("numbers for tensors", lambda root, file=file: torch.save({"Conv2d_1a_3x3.conv.weight": 5}, root / file)),
            ("it is a pipe", kind(file, KINDS["a pipe"])), ("it is a folder", kind(file, KINDS["a folder"])),
            ("it is a link to /dev/zero", kind(file, KINDS["a link to /dev/zero"])),
        ):
            wants = "either" if name == "flipped" else "refused"
            yield Case(
                kind="weights: features", name=f"{file}: {name}", door=door, harm=harm, wants=wants, names=(file,)
            )
    yield Case(
        kind="weights: features", name="inception.pt: untouched", door=doors.INCEPTION, harm=nothing, wants="done",
        names=("inception.pt",),
    )


# Autoencoders.


def _pickle_beside(root: Path) -> None:
    (root / "vae" / "diffusion_pytorch_model.bin").write_bytes(in_a_zip(root))


def autoencoders() -> Iterator[Case]:
    config, weights = "vae/config.json", "vae/diffusion_pytorch_model.safetensors"
    chosen = list(of_safetensors(weights))
    found: list[tuple[str, Harm, str]] = [(f"weights: {name}", harm, wants) for name, harm, wants in chosen[::2]]
    for key, values in {
        "scaling_factor": (None, "one", -1.0, 0, float("nan"), HUGE * HUGE, [1]),
        "block_out_channels": ([], None, [8], [-8, 16], [10**9, 16], "88", [8, 16, 16], [8.5, 16]),
        "latent_channels": (0, -4, None, 10**9, 5, "4"), "norm_num_groups": (0, 3, None),
        "down_block_types": ([], ["DownEncoderBlock2D", "os.system"], None, 5), "_class_name": ("UNet2DModel", None, 5),
        "layers_per_block": (10**9, -1, "1"),
    }.items():
        for value in values:
            found.append((f"config: {key} is {value!r:.40}", said(config, [key], value), "refused"))
    found += [
        (f"config: its text is {text[:10]!r}", replaced(config, text), "refused")
        for text in ("", "null", "[]", "{", DEEP, "\x00\xff")
    ]
    found += [(f"config: it is {what}", kind(config, make), "refused") for what, make in KINDS.items()]
    found += [
        ("config: another key", said(config, ["more"], 1), "either"),
        ("config: without scaling_factor", unsaid(config, ["scaling_factor"]), "either"),
        ("config: code of its own", said(config, ["auto_map"], {"AutoencoderKL": "evil.Model"}), "either"),
        ("a pickle beside it", _pickle_beside, "done"),
        ("a pickle in its place", together(absent(weights), _pickle_beside), "refused"),
        ("a list of parts in another folder", together(absent(weights), lambda root: (
            root / f"{weights}.index.json").write_text(json.dumps({
                "metadata": {}, "weight_map": {"x": "../other/config.yaml"}}))), "refused"),
        ("planted numpy", lambda root: (root / weights).write_bytes(json.dumps(
            str(Planted(root))).encode()), "refused"),
        ("behind a link", moved_behind_a_link("vae"), "done"),
    ]
    readers = cycle((doors.ENCODE, doors.DECODE))
    for name, harm, wants in found:
        yield Case(kind="autoencoder", name=name, door=next(readers), harm=harm, wants=wants, names=("vae",))


def cases() -> Iterator[Case]:
    yield from guides()
    yield from features()
    yield from autoencoders()
