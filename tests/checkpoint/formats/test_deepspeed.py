"""DeepSpeed's folders: what is written is read again bit for bit, by this program and by DeepSpeed itself."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from afm_scale.__main__ import main
from afm_scale.checkpoint.formats.deepspeed import DEEPSPEED
from afm_scale.checkpoint.formats.deepspeed_reader import Folder
from afm_scale.checkpoint.formats.format import Told, Wanted
from afm_scale.core.errors import CheckpointError
from tests.ranks import run_ranks

from .trained import STEP, Net, same, source, values, with_code

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.distributed.(all_gather_into_tensor|reduce_scatter_tensor):FutureWarning"),
]
UNIVERSAL = 0


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("stage", [1, 2, 3, UNIVERSAL])
def test_what_is_written_is_read_again_in_every_bit(stage: int, ranks: int, tmp_path: Path) -> None:
    DEEPSPEED.write(source(), tmp_path / "out", Wanted(ranks=ranks, stage=stage))
    assert DEEPSPEED.recognises(tmp_path / "out")
    with DEEPSPEED.source(tmp_path / "out", Told()) as found:
        assert same(values(found), values(source()))
        assert (found.about.step, found.about.scalars) == (STEP, source().about.scalars)


def load_and_save(folder: Path, stage: int, saved: Path, *, universal: bool) -> None:
    """DeepSpeed's own engine loads the generator of the folder, and saves it."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from importlib import import_module

    import deepspeed
    import torch

    import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # it would be compiled
    deepspeed.init_distributed("gloo")
    net = Net()
    config = {
        "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": universal},
    }
    engine, *_ = deepspeed.initialize(model=net, optimizer=torch.optim.AdamW(net.parameters()), config=config)
    loaded, _ = engine.load_checkpoint(str(folder))
    assert loaded is not None and engine.global_steps == STEP
    assert engine.optimizer.optimizer.param_groups[0]["betas"] == (0.0, 0.9)
    engine.save_checkpoint(str(saved))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize(
    ("stage", "ranks", "universal"),
    [(1, 2, False), (2, 2, False), (3, 2, False), (3, 1, False), (2, 2, True), (3, 2, True)],
)
def test_deepspeed_loads_what_is_written_and_what_it_saves_is_read(
    stage: int, ranks: int, universal: bool, tmp_path: Path
) -> None:
    out, saved = tmp_path / "out", tmp_path / "saved"
    DEEPSPEED.write(source(), out, Wanted(ranks=ranks, stage=UNIVERSAL if universal else stage))
    run_ranks(ranks, load_and_save_of, (out, stage, saved, universal), timeout=100)
    folder, wanted = Folder(saved), values(source())
    assert folder.step == STEP and float(folder.network.step.read()) == STEP
    moved = [name for name in folder.network.weights if not (universal and name == "pos_embed")]
    for name in moved:
        assert folder.network.weights[name].read().equal(wanted[f"generator.{name}"]), name
    for name, moments in folder.network.moments.items():
        assert moments["exp_avg_sq"].read().equal(wanted[f"optimizer.generator.{name}.exp_avg_sq"]), name
        assert not moments["exp_avg"].read().any()
    folder.close()
    with DEEPSPEED.source(saved, Told()) as found:  # of whom this program knows nothing
        assert {name.partition(".")[0] for name in found.tensors} == {"average", "generator", "optimizer"}
        assert found.about.step == STEP and found.about.card is None


def load_and_save_of(arguments: tuple[Path, int, Path, bool]) -> None:
    folder, stage, saved, universal = arguments
    load_and_save(folder, stage, saved, universal=universal)


def _take_the_place_of(file: Path, rank: int) -> None:
    shutil.copy(file.parent / file.name.replace("rank_1", f"rank_{rank}", 1), file)


BAD = {
    "a rank is missing": (lambda file: file.unlink(), "the file of rank 1 is missing"),
    "cut off": (lambda file: file.write_bytes(file.read_bytes()[:-200]), "is no file of torch's"),
    "empty": (lambda file: file.write_bytes(b""), "is no file of torch's"),
    "code in it": (lambda file: with_code(file, file.parents[2] / "ran"), "Nothing in it was run"),
    "of another rank": (lambda file: _take_the_place_of(file, 0), "wanted"),
}


@pytest.mark.parametrize(
    # Stage 3 does not say whose a file is.
    ("case", "stage"), [(case, stage) for case in BAD for stage in (2, 3) if (case, stage) != ("of another rank", 3)]
)
def test_a_bad_file_among_them_is_one_message_and_runs_nothing(case: str, stage: int, tmp_path: Path) -> None:
    damage, told = BAD[case]
    DEEPSPEED.write(source(), tmp_path / "out", Wanted(ranks=3, stage=stage))
    damage(tmp_path / "out" / f"global_step{STEP}" / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    with pytest.raises(CheckpointError, match=told):
        DEEPSPEED.source(tmp_path / "out", Told())
    assert not (tmp_path / "ran").exists()


def test_the_last_rank_missing_is_seen(tmp_path: Path) -> None:
    DEEPSPEED.write(source(), tmp_path / "out", Wanted(ranks=3, stage=2))
    (tmp_path / "out" / f"global_step{STEP}" / "zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match="states of 2 ranks, 3 wrote it"):
        DEEPSPEED.source(tmp_path / "out", Told())


def test_weights_of_other_types_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    first = source()
    name = "generator.a.weight"
    doubled = first.with_tensors({**first.tensors, name: first.tensors[name].of(first.read(name).double())})
    with pytest.raises(CheckpointError, match="moves float32 weights"):
        DEEPSPEED.write(doubled, tmp_path / "out", Wanted(ranks=2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", BAD)
def test_a_command_ends_with_one_message_and_leaves_nothing_behind(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    DEEPSPEED.write(source(), tmp_path / "out", Wanted(ranks=3, stage=2))
    BAD[case][0](tmp_path / "out" / f"global_step{STEP}" / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    assert main(["convert_checkpoint", "--to", "torch", str(tmp_path / "out"), str(tmp_path / "new.pt")]) == 2
    told = capfd.readouterr().err
    assert told.count("error: ") == 1 and "Traceback" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
