"""Time, steps, money and advice of a plan, on a machine that a test describes."""

from __future__ import annotations

import pytest

from afm_scale.core.errors import ConfigError
from afm_scale.estimate.devices import GPUS, Gpu, gpu_of
from afm_scale.run.config import RunConfig
from afm_scale.run.forecast.advice import search, that_fit
from afm_scale.run.forecast.planning import OUTSIDE, SLACK, Cluster, answer_of, calibrated, plan_of
from afm_scale.run.load import load

DEEP = (
    "data.shape=[4,16,16]", "data.global_batch=32", "hooks.samples=null", "model.generator.repetitions=4",
    *(f"model.{name}.{size}" for name in ("generator", "discriminator")
      for size in ("hidden_size=96", "num_heads=3", "depth=2")),
)


def loaded(settings: tuple[str, ...] | list[str] = ()) -> RunConfig:
    return load(RunConfig, "afm_1step_tiny", [*DEEP, *settings]).resolved()


def cluster(memory: float = 80, **others: float) -> Cluster:
    return Cluster(ranks=2, nodes=1, gpu=Gpu(memory=memory, tflops=100, bandwidth=1, **others))


def test_seconds_follow_the_figures_and_the_calibration() -> None:
    plan = plan_of(loaded(), cluster())
    phase = plan.phases[0]
    assert 0 < phase.low.total < phase.middle < phase.high.total
    slower = plan_of(loaded(), Cluster(ranks=2, nodes=1, gpu=Gpu(memory=80, tflops=50, bandwidth=0.5, link=225)))
    assert slower.phases[0].high.total == pytest.approx(2 * phase.high.total, rel=1e-6)
    right = calibrated(plan, 3.0)
    assert right.phases[0].low.total < 3 * phase.middle < right.phases[0].high.total
    answer = answer_of(plan, loaded(), price=2.0)
    hours = answer["phases"][0]["gpu_hours"]
    assert hours[0] == pytest.approx(20 * 2 * phase.low.total / 3600) and answer["phases"][0]["cost"][0] == 2 * hours[0]


def test_a_device_that_the_host_waits_for_takes_a_time_around_each_kernel_and_collective() -> None:
    phase = plan_of(loaded(), cluster()).phases[0]
    waited = plan_of(loaded(), cluster(host=10.0, latency=5.0)).phases[0]
    assert waited.run is phase.run  # a step that was taken is not taken again
    around = 1e-5 * sum(kernels.total() for kernels in phase.run.costs.values())
    sent = 5e-6 * sum(row.count for row in phase.sent if row.ranks > 1)
    assert phase.high.host == 0 and sent > 0
    assert waited.high.total == pytest.approx(phase.high.total + around + sent)


def test_operations_are_those_that_the_recipe_is_counted_at() -> None:
    from afm_scale.estimate.roofline import operations
    from afm_scale.run.forecast.counting import step_flops

    config = loaded(["parallel.plan=ddp", "parallel.precision=fp32"])
    found = sum(operations(plan_of(config, cluster()).phases[0].run.costs).values())
    assert found * 2 / 32 == pytest.approx(step_flops(config), rel=0.01)


def test_advice_ends_at_a_layout_that_fits_by_the_same_estimate() -> None:
    whole = plan_of(loaded(["parallel.plan=ddp"]), cluster())
    tight = (whole.largest.peak.total * SLACK * 0.5 + OUTSIDE) / 1e9
    found = list(that_fit(loaded(["parallel.plan=ddp"]), cluster(tight), lambda settings: loaded(
        ["parallel.plan=ddp", *settings])))
    assert [one.plan is not None and one.plan.fits for one in found] == [False] * (len(found) - 1) + [True]
    followed = plan_of(loaded(["parallel.plan=ddp", *found[-1].change.settings]), cluster(tight))
    assert followed.fits and followed.needed == found[-1].plan.needed


def test_nothing_in_the_search_is_beaten_by_another() -> None:
    found = search(loaded(), cluster(), loaded)
    needs = [one.plan.needed for one in found]
    assert len(found) > 1 and needs == sorted(needs, reverse=True)  # the fastest first


def test_gpus_are_known_or_described() -> None:
    assert gpu_of("h200") is GPUS["h200"] and gpu_of("mine", {"memory": 8, "tflops": 9, "bandwidth": 1}).memory == 8
    for text, described in (("h99", None), ("{}", {}), ("{memory: x}", {"memory": "x", "tflops": 1, "bandwidth": 1})):
        with pytest.raises(ConfigError, match="--gpu"):
            gpu_of(text, described)
    with pytest.raises(ConfigError, match="--nodes 3"):
        Cluster(ranks=8, nodes=3, gpu=GPUS["h100"])
