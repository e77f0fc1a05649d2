"""The manifests are what the API takes, and start, stop and start again what the launchers do."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.program import ROOT

SCHEMAS = Path(__file__).parent / "schemas"
FOLDER = ROOT / "launchers" / "kubernetes"
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def schema(name: str) -> dict[str, Any]:
    file, _, part = name.partition("#")
    whole = json.loads((SCHEMAS / file).read_text())
    return whole["$defs"][part] if part else whole


def problems(value: Any, by: dict[str, Any], where: str = "") -> list[str]:
    """What a value lacks of a JSON schema, of whose words those are known that the schemas here use; others raise."""
    if "$ref" in by:
        return problems(value, schema(by["$ref"]), where)
    unknown = by.keys() - {
        "description", "$defs", "type", "enum", "pattern", "minimum", "required", "properties", "additionalProperties",
        "items",
    }
    assert not unknown, unknown
    kinds = by.get("type", [])
    allowed = tuple(TYPES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))
    if allowed and (not isinstance(value, allowed) or isinstance(value, bool) and bool not in allowed):
        return [f"{where}: {value!r} is no {kinds}"]
    found = []
    if "enum" in by and value not in by["enum"]:
        found.append(f"{where}: {value!r} is none of {by['enum']}")
    if "pattern" in by and not re.search(by["pattern"], str(value)):
        found.append(f"{where}: {value!r} is not like {by['pattern']}")
    if "minimum" in by and value < by["minimum"]:
        found.append(f"{where}: {value} is under {by['minimum']}")
    if isinstance(value, dict):
        found += [f"{where}: no {name}" for name in by.get("required", []) if name not in value]
        others = by.get("additionalProperties", True)
        for name, inner in value.items():
            if name in by.get("properties", {}):
                found += problems(inner, by["properties"][name], f"{where}.{name}")
            elif isinstance(others, dict):
                found += problems(inner, others, f"{where}.{name}")
            elif not others:
                found.append(f"{where}: {name} is unknown")
    if isinstance(value, list) and "items" in by:
        for number, inner in enumerate(value):
            found += problems(inner, by["items"], f"{where}[{number}]")
    return found


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def pods(content: dict[str, Any]) -> list[dict[str, Any]]:
    spec = content["spec"]
    if content["kind"] == "JobSet":
        return [job["template"]["spec"]["template"]["spec"] for job in spec["replicatedJobs"]]
    return [replica["template"]["spec"] for replica in spec["pytorchReplicaSpecs"].values()]


@pytest.mark.parametrize("name", ["jobset", "pytorchjob"])
def test_the_manifests_are_of_their_schemas(name: str) -> None:
    assert problems(manifest(name), schema(f"{name}.json")) == []


def _grace(content: dict[str, Any]) -> None:
    pods(content)[0]["terminationGracePeriodSecond"] = 3


def _quantity(content: dict[str, Any]) -> None:
    pods(content)[0]["containers"][0]["resources"]["limits"]["memory"] = "900 GB"


def _value(content: dict[str, Any]) -> None:
    pods(content)[0]["containers"][0]["env"] = [{"name": "A", "value": 4}]


def _kind(content: dict[str, Any]) -> None:
    del content["kind"]


@pytest.mark.parametrize("name", ["jobset", "pytorchjob"])
@pytest.mark.parametrize(("spoil", "told"), [
    (_grace, "terminationGracePeriodSecond is unknown"), (_quantity, "'900 GB' is not like"),
    (_value, "4 is no string"), (_kind, ": no kind"),
])
def test_a_mistake_in_a_manifest_is_found(name: str, spoil: Callable[[dict[str, Any]], None], told: str) -> None:
    content = copy.deepcopy(manifest(name))
    spoil(content)
    assert any(told in problem for problem in problems(content, schema(f"{name}.json")))


@pytest.mark.parametrize("name", ["jobset", "pytorchjob"])
def test_a_pod_has_time_to_save_shared_memory_gpus_and_a_place_for_runs(name: str) -> None:
    for pod in pods(manifest(name)):
        (container,) = pod["containers"]
        assert pod["terminationGracePeriodSeconds"] > 300  # what launchers/torchrun.py gives its workers
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        limits, requests = (container["resources"][name] for name in ("limits", "requests"))
        assert limits["nvidia.com/gpu"] == requests["nvidia.com/gpu"] > 0
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        runs = next(word for word in container["args"] if word.startswith("run.folder=")).partition("=")[2]
        assert "persistentVolumeClaim" in volumes[mounts[str(Path(runs).parent)]]


def test_only_75_starts_the_set_of_jobs_again() -> None:
    spec = manifest("jobset")["spec"]
    (job,) = spec["replicatedJobs"]
    of_pods = job["template"]["spec"]
    disrupted, by_code = of_pods["podFailurePolicy"]["rules"]
    assert (by_code["action"], by_code["onExitCodes"]["operator"], by_code["onExitCodes"]["values"]) == (
        "FailJob", "NotIn", [75]
    )
    assert by_code["onExitCodes"]["containerName"] == of_pods["template"]["spec"]["containers"][0]["name"]
    assert disrupted["action"] == "Count" and of_pods["backoffLimit"] == 0
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert of_pods["completions"] == of_pods["parallelism"]
    wanted = {entry["name"]: entry.get("value") for entry in of_pods["template"]["spec"]["containers"][0]["env"]}
    assert wanted["NODES_WANTED"] == str(of_pods["completions"])


def started(name: str, tree: Path, **environment: str) -> subprocess.Popen[str]:
    """The command of the first container, in a folder where the launcher says what it was given."""
    (container,) = pods(manifest(name))[0]["containers"]
    (tree / "launchers").mkdir(parents=True)
    (tree / "launchers" / "torchrun_multinode.sh").write_text(
        'trap "exit ${ENDS_WITH:-75}" TERM\n'
        'echo "$NODES|$NODE_RANK|${PORT:-}|$RUN_ID|$MAX_RESTARTS|${RANK:-}${WORLD_SIZE:-}|$*" | tee said\n'
        '[[ -z "${WAITS:-}" ]] || { sleep 60 >/dev/null 2>&1 & wait; }\nexit "${ENDS_WITH:-0}"\n'
    )
    return subprocess.Popen(
        [*container["command"], *container["args"]], cwd=tree, env={"PATH": os.environ["PATH"]} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


OF_JOBSET = {"JOBSET_NAME": "digits", "NODES_WANTED": "2", "JOB_COMPLETION_INDEX": "1"}
OF_PYTORCHJOB = {"MASTER_ADDR": "digits-master-0", "MASTER_PORT": "23456", "RANK": "1", "WORLD_SIZE": "3",
                 "HOSTNAME": "digits-worker-0"}


def test_what_a_pod_is_told_names_the_nodes_its_number_and_where_to_meet(tmp_path: Path) -> None:
    words = "afm_1step_xl2 run.folder=/runs/xl2"
    output, errors = started("jobset", tmp_path / "a", **OF_JOBSET).communicate(timeout=60)
    nodes = " digits-nodes-0-0.digits digits-nodes-0-1.digits"
    assert (output, errors) == (f"{nodes}|1||digits|0||{words}\n", "")
    output, errors = started("pytorchjob", tmp_path / "b", **OF_PYTORCHJOB).communicate(timeout=60)
    assert (output, errors) == (f"digits-master-0 worker-1 worker-2|1|23456|digits|0||{words}\n", "")


@pytest.mark.parametrize(("code", "wanted"), [(0, 0), (75, 138), (2, 2), (1, 1), (143, 1)])
def test_the_operator_starts_a_pod_again_for_75_alone(tmp_path: Path, code: int, wanted: int) -> None:
    """It does for codes of 128 and more."""
    process = started("pytorchjob", tmp_path / "pod", ENDS_WITH=str(code), **OF_PYTORCHJOB)
    process.communicate(timeout=60)
    assert process.returncode == wanted


@pytest.mark.parametrize(("name", "around", "code"), [("jobset", OF_JOBSET, 75), ("pytorchjob", OF_PYTORCHJOB, 138)])
def test_a_signal_to_the_first_process_of_a_pod_reaches_the_launcher(
    tmp_path: Path, name: str, around: dict[str, str], code: int
) -> None:
    process = started(name, tmp_path / "pod", WAITS="1", ENDS_WITH="75", **around)
    until = time.monotonic() + 60
    while not (tmp_path / "pod" / "said").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == code


@pytest.mark.skipif(sys.platform != "linux", reason="bash of a pod")
def test_the_scripts_of_the_manifests_are_bash() -> None:
    for name in ("jobset", "pytorchjob"):
        script = pods(manifest(name))[0]["containers"][0]["args"][0]
        assert subprocess.run(["bash", "-n", "-c", script], capture_output=True, timeout=60, check=False).stderr == b""
