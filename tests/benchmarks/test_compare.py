"""`afm_scale benchmark compare`: ways x data x seeds by the train command, resumed, in a table and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from matplotlib.image import imread

from afm_scale.__main__ import main
from afm_scale.benchmarks.compared import Outcome, shown, table, unequal
from afm_scale.benchmarks.comparing import _last_words
from afm_scale.benchmarks.comparison import ComparisonConfig, Job, jobs_of, operations
from afm_scale.core.errors import EXIT_DONE, EXIT_FAILURE, ConfigError
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from tests.program import ROOT

SMALL = ["loop.steps=2", "data.global_batch=8", "model.generator.width=8", "model.discriminator.width=8",
         "parallel={plan: ddp, device: cpu}", "hooks.evaluation={kind: mixture1d, every_steps: 1}"]


def written(folder: Path, **changes: object) -> Path:
    file = folder / "comparison.yaml"
    settings: dict[str, object] = {
        "title": "short runs", "folder": str(folder / "runs"), "seeds": [0, 1], "data": {"mixture1d": SMALL},
        "ways": {
            "as it is": {"recipe": "{data}_afm"},
            "no transport": {"recipe": "mixture1d_afm", "overrides": ["objective.transport_weight=0"]},
        },
        "figures": ["w1", "transport_cost"], "curves": ["w1"], "events": {"starts": {"kind": "start"}},
    }
    file.write_text(yaml.safe_dump(settings | changes))
    return file


def config_of(file: Path) -> ComparisonConfig:
    return load(ComparisonConfig, str(file))


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "evidence").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_comparison_that_is_kept_can_be_read(file: Path) -> None:
    assert config_of(file).ways


def test_runs_are_ways_times_data_times_seeds_the_first_seed_of_all_first(tmp_path: Path) -> None:
    jobs = jobs_of(config_of(written(tmp_path)))
    assert [(job.way, job.seed) for job in jobs] == [
        ("as it is", 0), ("no transport", 0), ("as it is", 1), ("no transport", 1)
    ]
    assert jobs[0].folder == tmp_path / "runs" / "as_it_is" / "mixture1d" / "seed_0" == jobs[0].config.run.folder
    assert jobs[3].config.objective.transport_weight(0) == 0 and jobs[3].config.loop.seed == 1


def test_ways_of_unequal_operations_are_told_from_equal_ones(tmp_path: Path) -> None:
    ways = {name: {"recipe": "mixture1d_afm", "overrides": [f"loop.steps={steps}"]}
            for name, steps in (("short", 100), ("like it", 101), ("long", 103))}
    config = config_of(written(tmp_path, ways=ways))
    jobs = jobs_of(config)
    counted = {(job.way, job.data): operations(job.config) for job in jobs}
    assert counted["long", "mixture1d"] == pytest.approx(1.03 * counted["short", "mixture1d"])
    (warning,) = unequal(Outcome(config, jobs, {}, {}, counted))
    assert "'long' takes 1.03 times those of 'short'" in warning
    del counted["long", "mixture1d"]
    two = config_of(written(tmp_path, ways={name: ways[name] for name in ("short", "like it")}))
    assert unequal(Outcome(two, jobs_of(two), {}, {}, counted)) == []


def test_ways_are_given_the_operations_of_one_of_them_and_schedules_spread_over_their_updates(tmp_path: Path) -> None:
    data = {"mixture1d": ["loop.steps=100", "hooks.evaluation={kind: mixture1d, every_steps: 10}"]}
    ways = {"as it is": {"recipe": "mixture1d_afm"},
            "cheap": {"recipe": "mixture1d_afm", "overrides": ["objective.update=one_pass"]}}
    config = config_of(written(tmp_path, ways=ways, data=data, equal="as it is"))
    plain, cheap = (job.config for job in jobs_of(config)[:2])
    assert plain.loop.steps == 100 and plain.objective.transport_weight.steps == 1600
    factor = cheap.loop.steps / 100
    assert 1.2 < factor < 2 and operations(cheap) == pytest.approx(operations(plain), rel=0.005)
    assert cheap.hooks.evaluation.every_steps == pytest.approx(10 * factor, abs=0.5)
    assert cheap.objective.transport_weight.steps == pytest.approx(factor * 1600, rel=0.005)
    for rate in (cheap.optimizer.generator.learning_rate, cheap.optimizer.discriminator.learning_rate):
        assert [step for step, _ in rate.points] == pytest.approx([0, 1200 * factor, 2000 * factor], rel=0.005)
    with pytest.raises(ConfigError, match="equal: found 'other', wanted one of the ways as it is, cheap"):
        config_of(written(tmp_path, ways=ways, equal="other"))


def test_a_budget_is_what_every_way_costs_and_what_counts_updates_is_spread_over_them(tmp_path: Path) -> None:
    data = {"mixture1d": ["loop.steps=100", "hooks.evaluation={kind: mixture1d, every_steps: 10}"]}
    ways = {"AFM": {"recipe": "{data}_afm"},
            "TwinFlow": {"recipe": "{data}_twin_flow", "overrides": ["objective.warm_up_steps=25"]}}
    alone = operations(load(RunConfig, "mixture1d_afm", data["mixture1d"]))
    config = config_of(written(tmp_path, ways=ways, data=data, budget=3 * alone))
    afm, twin = (job.config for job in jobs_of(config)[:2])
    assert afm.loop.steps == 300 and twin.objective.warm_up_steps == pytest.approx(twin.loop.steps / 4, abs=1)
    assert operations(twin) == pytest.approx(3 * alone, rel=0.01)
    assert operations(twin, twin.objective.warm_up_steps) < 0.25 * operations(twin)  # flow matching costs less
    assert operations(twin, 2 * twin.loop.steps) == operations(twin)
    with pytest.raises(ConfigError, match="equal and budget both say how much a run may cost"):
        config_of(written(tmp_path, ways=ways, equal="AFM", budget=1e9))


def test_a_figure_may_be_of_samples_in_another_number_of_steps(tmp_path: Path) -> None:
    ways = {"few": {"recipe": "mixture1d_afm"},
            "many": {"recipe": "mixture1d_flow_matching", "overrides": ["sampling={num_steps: 8, also_reported: [2]}"]}}
    few, many = jobs_of(config_of(written(
        tmp_path, ways=ways, data={"mixture1d": []}, seeds=[0], figures=["w1@1", "w1@2", "w1@8"]
    )))
    summary = {"quality": {"w1": 0.1}, "quality_by_num_steps": {"2": {"w1": 0.2}}}
    assert [few.figure(f"w1@{steps}", {"quality": {"w1": 0.3}}) for steps in (1, 2, 8)] == [0.3, None, None]
    assert [many.figure(f"w1@{steps}", summary) for steps in (1, 2, 8)] == [None, 0.2, 0.1]
    assert many.picture(8).name == "final.png" and many.picture(2).name == "final_2_steps.png"
    for wrong in ("w1@0", "w1@", "w 1"):
        with pytest.raises(ConfigError, match="a figure's name, or NAME@K"):
            config_of(written(tmp_path, figures=[wrong]))


def test_phases_of_a_pilot_count_with_their_own_objectives() -> None:
    steps = ["loop.steps=10"]
    plain = operations(load(RunConfig, "mixture1d_afm", steps))
    less = operations(load(RunConfig, "mixture1d_afm", [*steps, "objective.penalty.share=0.25"]))
    half = "pilot={phases: [{name: a, until: {updates: 5}}, {name: b, objective: {penalty: {share: 0.25}}}]}"
    assert less < plain
    assert operations(load(RunConfig, "mixture1d_afm", [*steps, half])) == pytest.approx((plain + less) / 2)


def test_the_table_states_means_with_sample_deviations(tmp_path: Path) -> None:
    config = config_of(written(tmp_path))
    jobs = jobs_of(config)
    summaries = {job: {"quality": {"w1": 1.0 + job.seed, "transport_cost": 0.5}} for job in jobs[:3]}
    counted = {(job.way, job.data): 1e9 for job in jobs}
    text = table(Outcome(config, jobs, summaries, {jobs[3]: "exit code 1: it diverged"}, counted))
    assert "| mixture1d | as it is | 2 of 2 | 1e+09 | 1.500 ± 0.707 | 0.500 ± 0.000 | 0, 0 |" in text
    assert "| mixture1d | no transport | 1 of 2 | 1e+09 | 1.000 | 0.500 | 0, 0 |" in text
    assert "- failed: no transport / mixture1d / seed 1: exit code 1: it diverged" in text
    assert shown([]) == ""


@pytest.mark.slow
@pytest.mark.processes
def test_a_comparison_runs_goes_on_and_refuses_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, seeds=[0])
    assert main(["benchmark", "compare", str(file)]) == EXIT_DONE
    first = capsys.readouterr()
    assert "2 of 2: " in first.err and "| mixture1d | as it is | 1 of 1 |" in first.out
    folder = tmp_path / "runs"
    assert (folder / "table.md").read_text() in first.out
    image = imread(folder / "figures.png")
    assert image.shape[0] > 300 and image.min() < 0.5

    summary = folder / "as_it_is" / "mixture1d" / "seed_0" / "summary.json"
    before = summary.stat().st_mtime_ns
    assert main(["benchmark", "compare", str(file), "seeds=[0, 1]"]) == EXIT_DONE
    assert "4 of 4" in (second := capsys.readouterr()).err and "| as it is | 2 of 2 |" in second.out
    assert summary.stat().st_mtime_ns == before and json.loads(summary.read_text())["step"] == 2

    assert main(["benchmark", "compare", str(file), "data={mixture1d: ['loop.steps=3']}"]) == 2
    assert "holds a finished run of other settings than as it is / mixture1d / seed 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.processes
def test_objectives_are_compared_at_a_budget_in_forwards_with_samples_in_several_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["data.global_batch=8", "model.generator.width=8", "parallel={plan: ddp, device: cpu}",
             "hooks.evaluation={kind: mixture1d, every_steps: 1}"]
    ways = {"AFM": {"recipe": "{data}_afm", "overrides": ["model.discriminator.width=8", "loop.steps=2"]},
            "flow matching": {"recipe": "{data}_flow_matching",
                              "overrides": ["sampling={num_steps: 1, also_reported: [2]}"]}}
    file = written(tmp_path, ways=ways, data={"mixture1d": small}, events={}, pictures=[1, 2],
                   figures=["w1@1", "w1@2"])
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    file.rename(tmp_path / "docs" / "evidence" / "objectives_mixture1d.yaml")
    monkeypatch.chdir(tmp_path)
    assert main(["compare_objectives", "--data", "mixture1d", "--seeds", "1", "--budget", "96"]) == EXIT_DONE
    found = capsys.readouterr().out
    assert "| w1, 1 step | w1, 2 steps |" in found and found.count("| 1 of 1 |") == 2
    told = json.loads((tmp_path / "runs" / "flow_matching" / "mixture1d" / "seed_0" / "summary.json").read_text())
    assert 4 <= told["step"] <= 6  # 96 / (8 samples x 3 forwards), or 2 in the first layer, whose input asks nothing
    assert told["quality_by_num_steps"]["2"]["w1"] > 0
    assert told["quality_by_num_steps"]["2"] != told["quality"]
    image = imread(tmp_path / "runs" / "samples.png")
    half = image.shape[0] // 2
    assert image[half:, image.shape[1] // 2:].min() < 0.5, "flow matching in two steps is not drawn"
    assert image[half + 60:, : image.shape[1] // 2].min() > 0.9, "AFM in two steps was drawn"


def test_a_run_that_failed_is_told_of_though_its_folder_was_moved_away(tmp_path: Path) -> None:
    job = Job("way", "digits", 0, tmp_path / "moved", "digits_afm", ())
    assert _last_words(job) == f"and {tmp_path / 'moved' / 'train.log'} cannot be read: No such file or directory"


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_that_fails_is_told_and_the_others_are_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ways = {"lost": {"recipe": "mixture1d_afm", "overrides": ["run.resume_from=nowhere"]},
            "good": {"recipe": "mixture1d_afm"}}
    file = written(tmp_path, ways=ways, seeds=[0])
    assert main(["benchmark", "compare", str(file), "--processes", "1"]) == EXIT_FAILURE
    found = capsys.readouterr()
    assert "| good | 1 of 1 |" in found.out and "- failed: lost / mixture1d / seed 0: exit code 2: error:" in found.out


def test_mistakes_in_a_comparison_are_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes, told in (
        ({"seeds": [1, 1]}, "one comes twice"),
        ({"ways": {}}, "needs ways, found none"),
        ({"ways": {"a": {"recipe": "nothing"}}}, "way 'a' on 'mixture1d': nothing: neither a file"),
        ({"ways": dict.fromkeys(("a b", "a_b"), {"recipe": "mixture1d_afm"})}, "names that give one folder"),
        ({"wyas": {}}, "unknown key; did you mean 'ways'"),
    ):
        assert main(["benchmark", "compare", str(written(tmp_path, **changes))]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
