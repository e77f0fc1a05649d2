"""The published method's recorded runs are reproduced, and a recording that is wrong in one number is not."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from afm_scale.commands.replay_reference import SAME_ON_EVERY_CPU, replay
from afm_scale.core.errors import UserError
from tests.program import run
from tests.ranks import PRELOADED, start_afresh

Replay = Callable[[Path], dict[str, float]]
ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
CASES = ["afm_1nfe", "afm_1nfe_deep2", "afm_1nfe_guided", "afm_2nfe_v", "afm_any_v"]
TOLERANCE = 1e-9


def golden(name: str) -> Path:
    return GOLDEN / f"{name}.json"


def begin(environment: dict[str, str]) -> None:
    start_afresh(environment)
    warnings.simplefilter("error")


@pytest.fixture(scope="module")
def replay_elsewhere() -> Iterator[Replay]:
    """`replay` in a process in which MKL had not computed before: one for all cases, as the command has one."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)  # of no effect where the server runs already
    environment = {**os.environ, **SAME_ON_EVERY_CPU}
    with ProcessPoolExecutor(1, server, initializer=begin, initargs=(environment,)) as process:
        yield lambda case_file: process.submit(replay, case_file).result(timeout=100)


def changed_copy(
    folder: Path,
    name: str,
    change_case: Callable[[dict[str, Any]], None] = lambda case: None,
    change_tensors: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
) -> Path:
    case, tensors = json.loads(golden(name).read_text()), load_file(GOLDEN / f"{name}.safetensors")
    change_case(case)
    change_tensors(tensors)
    copy = folder / f"{name}.json"
    copy.write_text(json.dumps(case))
    save_file(tensors, copy.with_suffix(".safetensors"))
    return copy


def truncated(case: dict[str, Any], num_half_steps: int) -> None:
    del case["records"][num_half_steps:]


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_run_of_the_published_method_is_reproduced(replay_elsewhere: Replay, name: str) -> None:
    errors = replay_elsewhere(golden(name))
    kinds = {"losses", "predictions", "gradient norms", "gradient scale", "final weights", "forwards"}
    assert set(errors) == kinds
    assert {kind: error for kind, error in errors.items() if not error <= TOLERANCE} == {}


@pytest.mark.parametrize(
    ("record", "key", "kind"),
    [(0, "loss/r1", "losses"), (1, "loss/ot", "losses"), (1, "loss/cg", "losses"), (4, "logits/fake", "losses"),
     (3, "ot_scale", "losses"), (5, "gen_grad_norm", "gradient norms"), (1, "square_avg", "gradient scale")],
)  # fmt: skip
def test_a_recorded_number_that_is_wrong_by_a_millionth_is_found(
    replay_elsewhere: Replay, tmp_path: Path, record: int, key: str, kind: str
) -> None:
    def change(case: dict[str, Any]) -> None:
        case["records"][record][key] += 1e-6

    errors = replay_elsewhere(changed_copy(tmp_path, "afm_1nfe_guided", change))
    assert errors.pop(kind) == pytest.approx(1e-6, rel=1e-3)
    assert max(errors.values()) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "kind"),
    [("final.gen.blocks.0.attn.qkv.weight", "final weights"), ("final.dis.dis_embed", "final weights"),
     ("final.ema.final_layer.linear.bias", "final weights"), ("step3.prediction", "predictions"),
     ("forward.final_gen", "forwards"), ("forward.final_dis", "forwards"), ("forward.cls", "forwards")],
)  # fmt: skip
def test_a_recorded_tensor_that_is_wrong_in_one_place_is_found(
    replay_elsewhere: Replay, tmp_path: Path, name: str, kind: str
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[-1] += 1e-6

    errors = replay_elsewhere(changed_copy(tmp_path, "afm_1nfe_guided", change_tensors=change))
    assert errors.pop(kind) == pytest.approx(1e-6, rel=1e-3)
    assert max(errors.values()) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "draw"),
    [("afm_any_v", "noises_src"), ("afm_any_v", "noises_tgt"), ("afm_any_v", "noises_r1"), ("afm_any_v", "noises_r2"),
     ("afm_any_v", "timesteps_src"), ("afm_any_v", "timesteps_tgt"), ("afm_any_v", "latents"),
     ("afm_1nfe_guided", "noises_cg"), ("afm_1nfe_guided", "timesteps_cg")],
)  # fmt: skip
def test_every_recorded_draw_is_used(replay_elsewhere: Replay, tmp_path: Path, name: str, draw: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for half_step in range(2):  # a discriminator's and a generator's
            tensors[f"step{half_step}.{draw}"].view(-1)[0] *= 0.9

    assert max(replay_elsewhere(changed_copy(tmp_path, name, change_tensors=change)).values()) > 1e-7


@pytest.mark.parametrize(
    ("key", "value"),
    [("gp_scale", 0.26), ("cp_scale", 0.02), ("gp_batch_ratio", 0.5), ("ot_decay_steps", 22), ("ema_decay", 0.91),
     ("weight_decay", 0.1), ("clip", 0.5), ("cg_scale", 0.31), ("lr", 1.1e-3), ("classifier_flow", False)],
)  # fmt: skip
def test_every_setting_of_a_case_matters(replay_elsewhere: Replay, tmp_path: Path, key: str, value: object) -> None:
    errors = replay_elsewhere(changed_copy(tmp_path, "afm_1nfe_guided", lambda case: case.update({key: value})))
    assert max(errors.values()) > 1e-6


def test_without_clipping_a_case_that_never_clips_is_the_same(replay_elsewhere: Replay, tmp_path: Path) -> None:
    errors = replay_elsewhere(changed_copy(tmp_path, "afm_1nfe", lambda case: case.update(clip=None)))
    assert max(errors.values()) <= TOLERANCE


def test_a_case_with_fewer_half_steps_ends_earlier(replay_elsewhere: Replay, tmp_path: Path) -> None:
    errors = replay_elsewhere(changed_copy(tmp_path, "afm_2nfe_v", lambda case: truncated(case, 3)))
    assert errors.pop("final weights") > 1e-4  # the recorded ones are those after six half-steps
    assert errors.pop("forwards") > 1e-6
    assert max(errors.values()) <= TOLERANCE


def test_a_case_without_gradient_normalisation_scales_no_gradient(replay_elsewhere: Replay, tmp_path: Path) -> None:
    # With the scale off, the first update of the generator still starts from the recorded weights: all values that
    # were recorded before it moved agree, and its gradient norm does not.
    def change(case: dict[str, Any]) -> None:
        case["grad_norm"] = None
        truncated(case, 2)

    errors = replay_elsewhere(changed_copy(tmp_path, "afm_1nfe", change))
    assert "gradient scale" not in errors
    assert errors["losses"] <= TOLERANCE and errors["predictions"] <= TOLERANCE
    assert errors["gradient norms"] > 1e-3


@pytest.mark.parametrize("name", ["final.gen.blocks.1.mlp.fc1.bias", "step3.prediction", "forward.cls"])
def test_what_is_not_a_number_is_an_error_and_not_a_zero(replay_elsewhere: Replay, tmp_path: Path, name: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[0] = math.nan

    assert max(replay_elsewhere(changed_copy(tmp_path, "afm_1nfe_guided", change_tensors=change)).values()) == math.inf


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    copy = changed_copy(tmp_path, "afm_1nfe")
    copy.with_suffix(suffix).unlink()
    with pytest.raises(UserError, match=f"afm_1nfe{suffix}: no such file"):
        replay(copy)


def test_a_case_without_a_setting_or_a_draw_is_refused_by_name(tmp_path: Path) -> None:
    copy = changed_copy(tmp_path, "afm_1nfe", lambda case: case.pop("gp_eps"))
    with pytest.raises(UserError, match="gp_eps"):
        replay(copy)
    copy = changed_copy(tmp_path, "afm_1nfe", change_tensors=lambda tensors: tensors.pop("step2.noises_r1"))
    with pytest.raises(UserError, match="noises_r1"):
        replay(copy)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_torn_file_is_refused(tmp_path: Path, suffix: str) -> None:
    copy = changed_copy(tmp_path, "afm_1nfe")
    torn = copy.with_suffix(suffix)
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a case of the golden format"):
        replay(copy)


FLOW_MAPS = {
    "velocity", "target", "prediction", "weight", "loss rows", "gradients", "sample", "times", "rectified target",
    "total", "target average",
}


def test_recorded_losses_of_alpha_flow_mean_flow_and_twin_flow_are_reproduced() -> None:
    errors = replay(golden("flow_maps"))
    assert set(errors) == FLOW_MAPS
    assert {kind: error for kind, error in errors.items() if not error <= TOLERANCE} == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("alphaflow_4.target", "target"), ("alphaflow_10.loss", "loss rows"), ("alphaflow_9.grad_b", "gradients"),
     ("alphaflow_6.weight", "weight"), ("twinflow_2.ema_a_after", "target average"), ("twinflow_3.target", "target"),
     ("twinflow_5.rectified_target", "rectified target"), ("twinflow_1.grad_a", "gradients"),
     ("twinflow_4.total", "total"), ("twinflow_4.rectification_rows", "loss rows")],
)  # fmt: skip
def test_a_recorded_loss_that_is_wrong_by_a_millionth_is_found(tmp_path: Path, name: str, kind: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[-1] += 1e-6

    errors = replay(changed_copy(tmp_path, "flow_maps", change_tensors=change))
    assert errors.pop(kind) == pytest.approx(1e-6, rel=1e-3)
    assert max(errors.values()) <= TOLERANCE


@pytest.mark.parametrize(
    "draw", ["normal.0", "normal.1", "normal.2", "uniform.0", "uniform.1", "uniform_time.0", "uniform_time.1"]
)
def test_every_draw_of_a_recorded_twin_flow_is_used(tmp_path: Path, draw: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"twinflow_3.draw.{draw}"] *= 0.9

    assert max(replay(changed_copy(tmp_path, "flow_maps", change_tensors=change)).values()) > 1e-6


@pytest.mark.parametrize(
    ("case", "key", "value"),
    [("alphaflow_4", "alpha", 0.4), ("alphaflow_2", "omega", 0.3), ("alphaflow_8", "kappa", 0.9),
     ("alphaflow_6", "guidance_range", [0.0, 0.3]), ("alphaflow_4", "clamp", 0.5), ("alphaflow_9", "adaptive_eps", 0.1),
     ("twinflow_3", "order", 1), ("twinflow_5", "guidance_weight", 0.6), ("twinflow_1", "rectification_weight", 0.4),
     ("twinflow_2", "target_decay_of_this_update", 0.8), ("twinflow_3", "loss", {"type": "l2"})],
)  # fmt: skip
def test_every_setting_of_a_recorded_loss_matters(tmp_path: Path, case: str, key: str, value: object) -> None:
    copy = changed_copy(tmp_path, "flow_maps", lambda content: content["cases"][case].update({key: value}))
    assert max(replay(copy).values()) > 1e-6


def test_a_recorded_loss_of_an_unknown_kind_or_without_a_tensor_is_refused_by_name(tmp_path: Path) -> None:
    copy = changed_copy(tmp_path, "flow_maps", lambda content: content["cases"]["alphaflow_1"].update(kind="other"))
    with pytest.raises(UserError, match="other"):
        replay(copy)
    copy = changed_copy(tmp_path, "flow_maps", change_tensors=lambda tensors: tensors.pop("twinflow_1.x_t"))
    with pytest.raises(UserError, match="x_t"):
        replay(copy)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = ROOT / "tools" / "replay_reference.py"
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def test_the_command_reports_every_case_and_ends_with_0_if_all_agree() -> None:
    done = command(golden("afm_1nfe"), golden("afm_any_v"), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert set(report) == {str(golden("afm_1nfe")), str(golden("afm_any_v"))}
    for errors in report.values():
        assert errors["max_error"] == max(errors.values()) <= TOLERANCE


def test_the_command_ends_with_1_if_one_case_does_not_agree(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["final.gen.pos_embed"] += 1e-6

    wrong = changed_copy(tmp_path, "afm_1nfe", change_tensors=change)
    code, told, _ = run("replay_reference", wrong, golden("afm_2nfe_v"))
    assert code == 1
    assert f"{wrong}: max error 1.0" in told and f"{golden('afm_2nfe_v')}: max error" in told


def test_the_command_ends_with_2_and_one_message_if_a_case_cannot_be_read(tmp_path: Path) -> None:
    shutil.copy(golden("afm_1nfe"), tmp_path)
    code, printed, told = run("replay_reference", tmp_path / "afm_1nfe.json")
    assert code == 2
    assert printed == "" and "Traceback" not in told
    assert "afm_1nfe.safetensors: no such file" in told
