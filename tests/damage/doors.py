"""The commands by which a kind of file comes in: what they are called with, what they may write, what their work is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from afm_scale.checkpoint.manifest import resolve_checkpoint
from afm_scale.checkpoint.tensors import digest
from afm_scale.core.run_folder import RunFolder
from tests.program import SMALL_AFM

NEWEST, OLDER = "step_00000004", "step_00000002"
SHORT = ("parallel.device=cpu", "checkpoint.every_steps=2")
OLD = json.loads((Path(__file__).parents[1] / "golden" / "checkpoints" / "about.json").read_text())["runs"]["afm"]
GUIDED = "objective.guidance={kind: velocity, weight: 1.0, low: 0.0, high: 0.5}"


@dataclass(frozen=True, kw_only=True)
class Door:
    """One way in. Paths are those of a folder of its own, in which everything of a case lies."""

    name: str
    needs: tuple[str, ...]  # of what `originals` makes
    words: Callable[[Path], Sequence[str | Path]]  # of the command line; "load" stands for afm_scale.load
    result: Callable[[Path, str], str]  # of the work that is done: the folder and stdout to what must be the same
    writes: tuple[str, ...] = ()  # patterns of what may change, or be made, by work that is done
    touches: tuple[str, ...] = ()  # the same of a refusal


def _trained(folder: str) -> Callable[[Path, str], str]:
    """The state at the end, and whether a start passed over what was torn."""
    def result(root: Path, printed: str) -> str:
        run = RunFolder(root / folder)
        starts = [line for line in run.events.read_bytes().splitlines() if b'"kind": "start"' in line]
        torn = json.loads(starts[-1])["torn"]
        return f"{digest(resolve_checkpoint(run.path))}, {'fell back' if torn else 'nothing torn'}"

    return result


def _printed(root: Path, printed: str) -> str:
    return printed.replace(str(root), "ROOT")


def _written(*names: str) -> Callable[[Path, str], str]:
    """All bytes under some names."""
    def result(root: Path, printed: str) -> str:
        digests = sha256()
        for name in names:
            for path in sorted([root / name, *(root / name).rglob("*")]):
                if path.is_file():
                    digests.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
        return digests.hexdigest()

    return result


def _figures(root: Path, printed: str) -> str:
    figures = json.loads(printed)["figures"]
    return ", ".join(f"{name} {value:.3g}" for name, value in sorted(figures.items()) if value is not None)


def _trains(
    name: str, folder: str, needs: tuple[str, ...], *words: str | Callable[[Path], str], steps: int,
    recipe: Sequence[str] = SMALL_AFM,
) -> Door:
    def command(root: Path) -> list[str]:
        given = [word if isinstance(word, str) else word(root) for word in words]
        return ["train", *recipe, f"run.folder={root / folder}", *SHORT, f"loop.steps={steps}", *given]

    # A refused start may have noted that, and may have held the folder; it makes a new run's folder as it begins.
    notes = ("events.jsonl", "config.*", ".*") if folder in needs else ("", "*")
    touches = tuple(f"{folder}/{name}".rstrip("/") for name in notes)
    return Door(
        name=name, needs=needs, words=command, result=_trained(folder), writes=(folder, f"{folder}/*"), touches=touches
    )


def _settings(name: str, path: str, **more: object) -> Callable[[Path], str]:
    settings = "".join(f", {key}: {json.dumps(value)}" for key, value in more.items())
    return lambda root: f"data={{kind: {name}, global_batch: 8, {path.replace('ROOT', str(root))}{settings}}}"


def _from(setting: str, path: str) -> Callable[[Path], str]:
    return lambda root: f"{setting}={root / path}"


def _draws(name: str, needs: tuple[str, ...], path: str, *words: str) -> Door:
    return Door(
        name=name, needs=needs, result=_written("out"), writes=("out", "out/*"), touches=("out",),
        words=lambda root: [
            "sample", root / path, "--out", root / "out", "--num", "4", "--npz", root / "out" / "samples.npz",
            *(word.replace("ROOT", str(root)) for word in words),
        ],
    )


def _evaluates(name: str, needs: tuple[str, ...], path: str, *words: str) -> Door:
    return Door(
        name=name, needs=needs, result=_figures,
        words=lambda root: [
            "evaluate", root / path, "--json", "--num", "12", "--members", "4",
            *(_filled_in(word, root) for word in words),
        ],
    )


def _filled_in(word: str, root: Path) -> str:
    """A word with the folder, and with the sum of a good file that lies beside it."""
    for sums in root.glob("*.sha256"):
        word = word.replace("SHA256", sums.read_text())
    return word.replace("ROOT", str(root))


PIXELS = ("--features", "pixels", "--reference", "ROOT/reference.npz")
OF_CLASSIFIER = ("model.classifier.hidden_size=16", "model.classifier.num_heads=2")

# A run's folder, whose newest checkpoint may be passed over.
TRAIN = _trains("train goes on", "run", ("run",), steps=6)
RESUME = _trains("run.resume_from RUN", "new", ("run",), _from("run.resume_from", "run"), steps=6)
INITIALISE = _trains("run.initialise_from RUN", "new", ("run",), _from("run.initialise_from", "run"), steps=1)
SAMPLE = _draws("sample RUN", ("run",), "run")
EVALUATE = _evaluates("evaluate RUN", ("run", "reference.npz"), "run", *PIXELS)
INSPECT = Door(
    name="inspect_checkpoint RUN", needs=("run",), result=_printed,
    words=lambda root: ["inspect_checkpoint", root / "run", "--digest"],
)
LOAD = Door(name="afm_scale.load(RUN)", needs=("run",), result=_printed, words=lambda root: ["load", root / "run"])
OF_RUN = (TRAIN, RESUME, INITIALISE, SAMPLE, EVALUATE, INSPECT, LOAD)

# One checkpoint, which is the one or none.
_ONE = f"run/checkpoints/{NEWEST}"
SAMPLE_ONE = _draws("sample CHECKPOINT", ("run",), _ONE)
INSPECT_ONE = Door(
    name="inspect_checkpoint CHECKPOINT", needs=("run",), result=_printed,
    words=lambda root: ["inspect_checkpoint", root / _ONE, "--digest"],
)
LOAD_ONE = Door(
    name="afm_scale.load(CHECKPOINT)", needs=("run",), result=_printed, words=lambda root: ["load", root / _ONE]
)
RESUME_ONE = _trains("run.resume_from CHECKPOINT", "new", ("run",), _from("run.resume_from", _ONE), steps=6)
INITIALISE_ONE = _trains("run.initialise_from CHECKPOINT", "new", ("run",), _from("run.initialise_from", _ONE), steps=1)
EVALUATE_ONE = _evaluates("evaluate CHECKPOINT", ("run", "reference.npz"), _ONE, *PIXELS)
OF_CHECKPOINT = (RESUME_ONE, INITIALISE_ONE, SAMPLE_ONE, EVALUATE_ONE, INSPECT_ONE, LOAD_ONE)

# One checkpoint from before there were sums in it.
_OLD = "old/checkpoints/step_00000003"
_OLD_RECIPE = (OLD["recipe"], *OLD["overrides"])
OLD_TRAIN = _trains("train goes on, old run", "old", ("old",), steps=4, recipe=_OLD_RECIPE)
OLD_SAMPLE = _draws("sample, old CHECKPOINT", ("old",), _OLD)
OLD_INSPECT = Door(
    name="inspect_checkpoint, old CHECKPOINT", needs=("old",), result=_printed,
    words=lambda root: ["inspect_checkpoint", root / _OLD, "--digest"],
)
OLD_LOAD = Door(
    name="afm_scale.load(old CHECKPOINT)", needs=("old",), result=_printed, words=lambda root: ["load", root / _OLD]
)
OLD_INITIALISE = _trains(
    "run.initialise_from old CHECKPOINT", "new", ("old",), _from("run.initialise_from", _OLD), steps=1,
    recipe=_OLD_RECIPE,
)
OF_OLD = (OLD_TRAIN, OLD_SAMPLE, OLD_INSPECT, OLD_LOAD, OLD_INITIALISE)

# Networks that do not learn.
_GUIDED_RECIPE = ("digits_afm_guided", *SMALL_AFM[1:])
GUIDE_WEIGHTS = _trains(
    "model.classifier.weights FILE", "new", ("weights.safetensors",), *OF_CLASSIFIER,
    _from("model.classifier.weights", "weights.safetensors"), steps=1, recipe=_GUIDED_RECIPE,
)
GUIDE_RUN = _trains(
    "model.classifier.weights RUN", "new", ("classifier",), *OF_CLASSIFIER,
    _from("model.classifier.weights", "classifier"), steps=1, recipe=_GUIDED_RECIPE,
)
FLOW_RUN = _trains("model.flow RUN", "new", ("flow",), _from("model.flow", "flow"), GUIDED, steps=1)

# Features and statistics.
OF_SAMPLES = _evaluates("evaluate NPZ", ("samples.npz", "reference.npz"), "samples.npz", *PIXELS)
REFERENCE = _evaluates("evaluate --reference", ("samples.npz", "reference.npz"), "samples.npz", *PIXELS)
FID_REFERENCE = _evaluates(
    "evaluate --reference (mu, sigma)", ("samples.npz", "fid.npz"), "samples.npz", "--features", "pixels",
    "--reference", "ROOT/fid.npz",
)
REFERENCE_IMAGES = _evaluates(
    "evaluate --reference IMAGES", ("samples.npz", "images.npz"), "samples.npz", "--features", "pixels",
    "--reference", "ROOT/images.npz",
)
_SCRIPT = "{kind: torchscript, file: ROOT/features.pt, channels: 1, size: 8, input: uint8, sha256: SHA256}"
SCRIPT = _evaluates(
    "evaluate --features torchscript", ("samples.npz", "features.pt", "features.pt.sha256"), "samples.npz",
    "--reference", "ROOT/samples.npz", "--features", _SCRIPT,
)
UNNAMED_SCRIPT = _evaluates(
    "evaluate --features torchscript, unnamed", ("samples.npz", "features.pt"), "samples.npz",
    "--reference", "ROOT/samples.npz", "--features", _SCRIPT.replace("SHA256", "null"),
)
INCEPTION = _evaluates(
    "evaluate --features inception", ("samples.npz", "inception.pt", "inception.pt.sha256"), "samples.npz",
    "--reference", "ROOT/samples.npz", "--features", "{kind: inception, weights: ROOT/inception.pt, sha256: SHA256}",
)
INCEPTION_STATE = _evaluates(
    "evaluate --features inception (.pth)", ("samples.npz", "inception.pth"), "samples.npz",
    "--reference", "ROOT/samples.npz", "--features", "{kind: inception, weights: ROOT/inception.pth, sha256: null}",
)
JUDGE = _evaluates(
    "evaluate --features classifier", ("samples.npz", "classifier"), "samples.npz", "--features", "classifier",
    "--weights", "ROOT/classifier", "--reference", "ROOT/samples.npz",
)

# Data.
MNIST = _trains(
    "data.kind mnist", "new", ("mnist.npz",), _settings("mnist", "file: ROOT/mnist.npz"),
    "model.generator.patch_size=7", "model.discriminator.patch_size=7", steps=1,
)
PACKED = _trains(
    "data.kind webdataset", "new", ("packed",),
    _settings("webdataset", "folder: ROOT/packed", size=16, num_classes=3, workers=1), steps=1,
)
LATENTS = _trains("data.kind latents", "new", ("latents",), _settings("latents", "folder: ROOT/latents"), steps=1)
DOCTOR = Door(
    name="doctor --data", needs=("packed",), result=_printed, words=lambda root: ["doctor", "--data", root / "packed"]
)
DOCTOR_LATENTS = Door(
    name="doctor --data (latents)", needs=("latents",), result=_printed,
    words=lambda root: ["doctor", "--data", root / "latents"],
)
PACKED_IMAGES = Door(
    name="evaluate PACKED", needs=("packed",), result=_figures,
    words=lambda root: [
        "evaluate", root / "packed", "--features", "pixels", "--reference", root / "packed", "--json"
    ],
)
MAKE_SHARDS = Door(
    name="make_shards goes on", needs=("source", "unfinished"), result=_written("unfinished"),
    writes=("unfinished", "unfinished/*"), touches=("unfinished", "unfinished/.*"),
    words=lambda root: [
        "make_shards", root / "source", root / "unfinished", "--size", "16", "--shards", "2", "--workers", "1"
    ],
)

# Autoencoders.
ENCODE = Door(
    name="encode_latents --vae", needs=("packed", "vae"), writes=("encoded", "encoded/*"), touches=("encoded",),
    result=_written(*(f"encoded/shard-{number:06d}.tar" for number in range(3))),
    words=lambda root: [
        "encode_latents", root / "packed", root / "encoded", "--vae", root / "vae", "--device", "cpu", "--workers", "0"
    ],
)
DECODE = _draws("sample --vae", ("latent_run", "vae"), "latent_run", "--vae", "ROOT/vae")

# Recipes.
SHOW = Door(
    name="show RECIPE", needs=("recipe.yaml", "base.yaml"), result=_printed,
    words=lambda root: ["show", root / "recipe.yaml"],
)
TRAIN_RECIPE = Door(
    name="train RECIPE", needs=("recipe.yaml", "base.yaml"), result=_trained("new"), writes=("new", "new/*"),
    words=lambda root: ["train", root / "recipe.yaml", f"run.folder={root / 'new'}"],
)

# Recorded cases.
REPLAY = Door(
    name="replay_reference", needs=("case.json", "case.safetensors"), result=_printed,
    words=lambda root: ["replay_reference", root / "case.json"],
)
