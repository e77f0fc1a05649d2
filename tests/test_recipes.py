"""Every recipe loads, builds and takes a step; those of ImageNet-256 say what the paper's Table 11 says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from afm_scale.commands.show import show_command
from afm_scale.core.errors import ConfigError
from afm_scale.core.schedules import Constant, Cosine
from afm_scale.core.types import Role
from afm_scale.data.affine import AffineConfig
from afm_scale.data.toys.synthetic import SyntheticLatentsConfig
from afm_scale.evaluation.classifiers import ClassifierReport
from afm_scale.flow.guidance import FlowGuidance, PlainGuidance
from afm_scale.flow.mean_velocity import MixedVelocity
from afm_scale.flow.path import Prediction
from afm_scale.flow.times import AnyTimes, GridTimes, LogitNormalIntervals
from afm_scale.models.layers import initial_weights
from afm_scale.objectives.weighting import AdaptiveWeight
from afm_scale.parallel.launch import Ranks
from afm_scale.run import build
from afm_scale.run.check import check
from afm_scale.run.config import RunConfig
from afm_scale.run.guides import frozen_modules, frozen_networks
from afm_scale.run.load import RECIPES, dump_yaml, load
from afm_scale.run.networks import build_networks, learner_of
from afm_scale.train.hooks.hook import HookList, QuietHook, StepReport
from afm_scale.train.loop import train
from afm_scale.train.state import TrainState
from tests.data.small import mnist_file
from tests.ranks import run_ranks

SMALL_TRANSFORMER = {  # settings of each class, and the data's
    "QwenImageTransformer2DModel": (
        ("num_layers=1", "num_attention_heads=2", "attention_head_dim=16", "joint_attention_dim=12",
         "axes_dims_rope=[4,6,6]"),
        ("data.shape=[16,8,8]", "data.text={length: 4, width: 12}"),
    ),
    "SanaTransformer2DModel": (
        ("num_layers=1", "num_attention_heads=2", "attention_head_dim=16", "num_cross_attention_heads=2",
         "cross_attention_head_dim=16", "cross_attention_dim=32", "caption_channels=12"),
        ("data.shape=[32,4,4]", "data.text={length: 4, width: 12}"),
    ),
    "SD3Transformer2DModel": (
        ("num_layers=1", "num_attention_heads=2", "attention_head_dim=16", "joint_attention_dim=12",
         "caption_projection_dim=32", "pooled_projection_dim=6", "pos_embed_max_size=8"),
        ("data.shape=[16,8,8]", "data.text={length: 4, width: 12, pooled: 6}"),
    ),
}
NAMES = sorted(file.stem for file in RECIPES.glob("*.yaml"))


class Row(NamedTuple):
    """One line of Table 11: phase 1 of an unguided recipe, phase 4 of a guided one."""

    size: tuple[int, int, int]  # depth, width, heads
    num_steps: int
    repetitions: int
    epochs: int  # that the phase lasts
    learning_rates: tuple[float, float]  # generator, discriminator
    transport: tuple[float, float] | float  # cosine from, to; or constant
    max_grad_norm: float
    fid: str  # at the end of the phase
    guidance: FlowGuidance | PlainGuidance | None = None


B, M, L, XL = (12, 768, 12), (16, 1024, 16), (24, 1024, 16), (28, 1152, 16)
ONE_STEP = FlowGuidance(weight=0.003, low=0.0, high=0.1)
FEW_STEPS = PlainGuidance(weight=0.02, low=0.0, high=0.49)  # target times 0 of two steps, 0 and 0.25 of four
TABLE_11 = {
    "afm_1step_b2": Row(B, 1, 1, 150, (1e-4, 1e-4), (0.2, 0.01), 50.0, "7.30"),
    "afm_1step_m2": Row(M, 1, 1, 100, (1e-4, 1e-4), (0.2, 0.005), 50.0, "6.19"),
    "afm_1step_l2": Row(L, 1, 1, 85, (1e-4, 1e-4), (0.2, 0.005), 50.0, "6.26"),
    "afm_1step_xl2": Row(XL, 1, 1, 90, (1e-4, 1e-4), (0.2, 0.005), 50.0, "5.88"),
    "afm_2step_xl2": Row(XL, 2, 1, 75, (1e-4, 1e-4), (0.25, 0.005), 5.0, "4.79"),
    "afm_4step_xl2": Row(XL, 4, 1, 130, (1e-4, 1e-4), (0.25, 0.005), 5.0, "5.28"),
    "afm_deep56": Row(XL, 1, 2, 75, (5e-5, 1e-4), (0.2, 0.005), 5.0, "4.16"),
    "afm_deep112": Row(XL, 1, 4, 90, (2.5e-5, 1e-4), (0.2, 0.005), 5.0, "3.78"),
    "afm_1step_b2_guided": Row(B, 1, 1, 30, (5e-5, 5e-5), 0.001, 50.0, "3.05", ONE_STEP),
    "afm_1step_m2_guided": Row(M, 1, 1, 10, (5e-5, 5e-5), 0.001, 50.0, "2.82", ONE_STEP),
    "afm_1step_l2_guided": Row(L, 1, 1, 10, (5e-5, 5e-5), 0.001, 50.0, "2.63", ONE_STEP),
    "afm_1step_xl2_guided": Row(XL, 1, 1, 5, (5e-5, 5e-5), 0.001, 50.0, "2.38", ONE_STEP),
    "afm_2step_xl2_guided": Row(XL, 2, 1, 5, (3e-5, 3e-5), 0.001, 5.0, "2.11", FEW_STEPS),
    "afm_4step_xl2_guided": Row(XL, 4, 1, 5, (3e-5, 3e-5), 0.001, 5.0, "2.02", FEW_STEPS),
    "afm_deep56_guided": Row(XL, 1, 2, 10, (1e-5, 2e-5), 0.001, 5.0, "2.08", ONE_STEP),
    "afm_deep112_guided": Row(XL, 1, 4, 20, (5e-6, 2e-5), 0.001, 5.0, "1.94", ONE_STEP),
}
GUIDED = [name for name, row in TABLE_11.items() if row.guidance]
OTHERS = {
    "digits_afm", "digits_flow_matching", "mixture1d_afm", "afm_anystep_xl2", "afm_1step_tiny", "flow_matching_xl2",
    "mixture2d_afm", "mixture2d_flow_matching", "mnist_afm", "digits_afm_phases", "flow_matching_b2",
    *(f"{kind}_{size}" for kind in ("mean_flow", "alpha_flow", "twin_flow") for size in ("b2", "xl2")),
    *(f"{data}_{kind}" for kind in ("mean_flow", "alpha_flow", "twin_flow") for data in ("digits", "mixture1d")),
}
OTHERS_GUIDED = {"mixture2d_afm_flow", "mixture2d_afm_plain", "digits_afm_guided"}  # by a classifier
OF_PHASES = {name.replace("_guided", "_phases") for name in GUIDED}  # guided in the last one; test_recipes_of_phases.py
CHEAP = {f"{name}{kind}_cheap" for name in ("afm_1step_xl2", "afm_deep56", "afm_deep112") for kind in ("", "_phases")}
CLASSIFIERS = {"classifier_b2", "classifier_digits", "mixture2d_classifier"}


def recipe(name: str, *overrides: str) -> RunConfig:
    return load(RunConfig, name, overrides)


def header(name: str) -> str:
    """The comment a recipe starts with, on one line."""
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end])


def test_the_names_others_build_on_are_there() -> None:
    assert TABLE_11.keys() | OTHERS | OTHERS_GUIDED | OF_PHASES | CHEAP | CLASSIFIERS <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_short_and_says_first_what_it_is(name: str) -> None:
    assert len((RECIPES / f"{name}.yaml").read_text().splitlines()) <= 35
    assert header(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_fits_one_rank_and_eight(name: str) -> None:
    for world_size in (1, 8):
        check(recipe(name), world_size)


@pytest.mark.parametrize("name", NAMES)
def test_what_show_prints_loads_as_the_same_recipe(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show_command(name, []) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    again = load(RunConfig, tmp_path / "shown.yaml")
    assert again == recipe(name) and dump_yaml(again) == dump_yaml(recipe(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_builds_its_networks_without_storage(name: str) -> None:
    config = recipe(name)
    networks, classifier = build_networks(config), frozen_modules(config).get("classifier")
    learner = Role.CLASSIFIER if name in CLASSIFIERS else Role.GENERATOR
    assert networks.keys() == {learner} | ({Role.DISCRIMINATOR} if config.objective.kind == "afm" else set())
    assert (config.objective.kind == "classification") == (name in CLASSIFIERS)
    assert (classifier is not None) == (name.removesuffix("_cheap") in OTHERS_GUIDED.union(GUIDED, OF_PHASES))
    for network in [*networks.values(), *filter(None, [classifier])]:
        tensors = [*network.parameters(), *network.buffers()]
        assert tensors and all(tensor.is_meta for tensor in tensors)


def test_every_run_has_a_folder_named_after_its_recipe() -> None:
    folders = {name: recipe(name).run.folder for name in NAMES}
    assert len(set(folders.values())) == len(NAMES)
    assert {name: folders[name] for name in TABLE_11} == {name: Path("runs", name) for name in TABLE_11}


@pytest.mark.parametrize("name", TABLE_11)
def test_a_recipe_is_its_row_of_table_11(name: str) -> None:
    row, config = TABLE_11[name], recipe(name)
    generator, discriminator = config.model.generator, config.model.discriminator
    for network in (generator, discriminator):
        assert (network.depth, network.hidden_size, network.num_heads) == row.size
        assert network.patch_size == 2 and not network.qk_norm
    one_step = row.num_steps == 1
    assert generator.times == ("none" if one_step else "source") and generator.repetitions == row.repetitions
    assert discriminator.target_time is not one_step
    assert config.objective.times == GridTimes(steps=row.num_steps) and config.sampling.num_steps == row.num_steps
    assert config.objective.prediction is (Prediction.X if one_step else Prediction.V)
    assert config.loop.steps == round(row.epochs * 1_281_167 / 256)
    expected = Constant(value=row.transport) if row.guidance else Cosine(
        start=row.transport[0], end=row.transport[1], steps=500_000  # published: a million half-steps
    )
    assert config.objective.transport_weight == expected
    optimizers = (config.optimizer.generator, config.optimizer.discriminator)
    assert tuple(optimizer.learning_rate(0) for optimizer in optimizers) == row.learning_rates
    assert config.objective.guidance == row.guidance


@pytest.mark.parametrize("name", [*TABLE_11, "afm_anystep_xl2"])
def test_a_recipe_has_the_constants_of_table_10(name: str) -> None:
    config = recipe(name)
    assert config.data == SyntheticLatentsConfig(global_batch=256) and config.loop.accumulation == 1
    clip = TABLE_11[name].max_grad_norm if name in TABLE_11 else 5.0
    for optimizer in (config.optimizer.generator, config.optimizer.discriminator):
        assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.0, 0.9), 1e-8, 0.01)
        assert optimizer.max_grad_norm == clip and isinstance(optimizer.learning_rate, Constant)
    penalty, scale = config.objective.penalty, config.objective.gradient_scale
    assert (penalty.weight, penalty.share, penalty.epsilon) == (0.25, 0.25, 0.01)
    assert config.objective.centring_weight == 0.01
    assert scale is not None and (scale.decay, scale.target) == (0.9, 1.0)
    assert (config.average.decay, config.average.warm_up) == (0.9999, False)
    assert config.parallel.precision == "tf32"
    assert (config.objective.augmentation is not None) == (name in GUIDED)


@pytest.mark.parametrize("name", TABLE_11)
def test_the_header_cites_the_row_and_admits_that_it_was_not_run(name: str) -> None:
    text = header(name)
    for words in ("2511.22475", "Table 11", TABLE_11[name].fid, "has not run it", "synthetic"):
        assert words in text


@pytest.mark.parametrize("name", GUIDED)
def test_a_guided_recipe_takes_the_weights_of_the_unguided_one(name: str) -> None:
    config, before = recipe(name), recipe(name.removesuffix("_guided"))
    assert (config.model.generator, config.model.discriminator) == (before.model.generator, before.model.discriminator)
    assert config.run.initialise_from is None and config.objective.augmentation.probability == Constant(value=0.4)
    with pytest.raises(ConfigError, match="model.classifier.weights is null: guidance needs a trained classifier"):
        frozen_networks(config, plan=None)


@pytest.mark.parametrize("name", sorted(CHEAP))
def test_a_cheap_recipe_is_the_published_one_but_for_the_update_and_the_tokens_of_d(name: str) -> None:
    config, published = recipe(name), recipe(name.removesuffix("_cheap"))
    assert (config.objective.update, config.objective.token_share) == ("one_pass", 0.5)
    assert (published.objective.update, published.objective.token_share) == ("alternating", 1.0)
    assert published == replace(
        config, run=published.run, objective=replace(config.objective, update="alternating", token_share=1.0)
    )


def test_the_any_step_recipe_is_told_both_times() -> None:
    config = recipe("afm_anystep_xl2")
    assert config.objective.times == AnyTimes() and config.objective.prediction is Prediction.V
    assert config.model.generator.times == "both" and config.model.discriminator.target_time
    assert config.objective.transport_weight == Cosine(start=0.25, end=0.005, steps=500_000)


@pytest.mark.parametrize(("name", "size", "mixed", "settings"), [
    ("mean_flow_b2", B, (1.0, 0.5, 0.0, 1.0), {"flow_matching_share": 0.75}),
    ("mean_flow_xl2", XL, (0.2, 0.92, 0.0, 0.75), {"flow_matching_share": 0.75}),
    ("alpha_flow_b2", B, (1.0, 0.5, 0.0, 1.0), {"flow_matching_share": 0.25, "clamp": 4.0}),
    ("alpha_flow_xl2", XL, (0.2, 0.92, 0.0, 0.75), {"flow_matching_share": 0.5, "clamp": 4.0}),
])
def test_mean_flow_and_alpha_flow_have_their_published_settings(
    name: str, size: tuple[int, int, int], mixed: tuple[float, ...], settings: dict[str, float]
) -> None:
    config = recipe(name)
    generator, optimizer, objective = config.model.generator, config.optimizer.generator, config.objective
    assert (generator.depth, generator.hidden_size, generator.num_heads) == size and not generator.qk_norm
    assert (generator.times, generator.time_embedding, generator.null_class) == ("gated", "plain", True)
    assert objective.guidance == MixedVelocity(
        **dict(zip(("omega", "kappa", "low", "high"), mixed, strict=True))
    )
    assert objective.times == LogitNormalIntervals(mean=-0.4, std=1.0) and objective.class_dropout == 0.1
    assert {key: getattr(objective, key) for key in settings} == settings
    of_alpha = objective.kind == "alpha_flow"
    assert objective.weight == AdaptiveWeight(
        power=1.0, eps=1e-3 if of_alpha else 0.01, reduction="mean" if of_alpha else "sum"
    )
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (Constant(value=1e-4), (0.9, 0.95), 0)
    assert config.loop.steps == (1_200_000 if of_alpha else round(240 * 1_281_167 / 256))
    assert config.data.global_batch == 256 and (config.average.decay, config.average.warm_up) == (0.9999, False)
    if of_alpha:
        alpha = objective.over(config.loop.steps).alpha
        ends = {"alpha_flow_b2": (345_900, 854_100), "alpha_flow_xl2": (715_300, 884_700)}[name]
        assert alpha(ends[0] - 300) == 1 > alpha(ends[0] + 300) and alpha(ends[1] - 300) > 0 == alpha(ends[1] + 300)


def test_flow_matching_has_the_optimizer_of_its_own_paper() -> None:
    config = recipe("flow_matching_xl2")
    afm, optimizer = recipe("afm_2step_xl2").model.generator, config.optimizer.generator
    assert config.model.generator == afm and config.model.discriminator is None
    assert optimizer.learning_rate == Constant(value=1e-4)
    assert (optimizer.betas, optimizer.weight_decay) == ((0.9, 0.999), 0.0)
    assert config.parallel.precision == "tf32" and config.data.global_batch == 256


def test_the_classifier_is_that_of_section_4_1_and_the_one_the_guided_recipes_describe() -> None:
    config = recipe("classifier_b2")
    classifier, optimizer = config.model.classifier, config.optimizer.classifier
    assert (classifier.depth, classifier.hidden_size, classifier.num_heads) == B
    assert classifier.patch_size == 2 and not classifier.qk_norm
    assert all(recipe(name).model.classifier == classifier for name in GUIDED)
    assert config.loop.steps == round(30 * 1_281_167 / 256) and config.loop.accumulation == 1
    assert config.data == SyntheticLatentsConfig(global_batch=256)
    assert optimizer.learning_rate == Constant(value=1e-4) and optimizer.max_grad_norm == 50.0
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.9, 0.95), 1e-8, 0.01)
    assert (config.average.decay, config.average.warm_up) == (0.9995, False)
    assert config.parallel.precision == "tf32" and isinstance(config.report, ClassifierReport)
    for words in ("2511.22475", "section 4.1", "has not run it", "synthetic", "imagenet256_classifier.yaml"):
        assert words in header("classifier_b2")


def test_the_classifier_of_imagenet_takes_the_augmented_originals_as_its_header_says(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        f"inherit: [{RECIPES}/classifier_b2.yaml, {RECIPES.parent}/data/imagenet256_classifier.yaml]\n"
        "data: {folder: DATA, vae: VAE}\n"
    )
    config = load(RunConfig, tmp_path / "own.yaml")
    check(config, 8)
    assert config.data.affine == AffineConfig(
        probability=0.8, degrees=10.0, translation=0.3, scale_low=1.0, scale_high=1.3
    )
    assert config.data.mirror and config.data.kind == "images_to_latents" and config.data.global_batch == 256
    assert config.data.shape == SyntheticLatentsConfig(global_batch=256).shape


class LastReport(QuietHook):
    def after_step(self, state: TrainState, report: StepReport) -> None:
        self.report = report


def take_a_step(recipes: dict[str, list[str]]) -> dict[str, tuple[bool, dict[str, float]]]:
    """Whether the network that the run is for moved, and all terms of the losses and gradient norms."""
    results = {}
    for name, overrides in recipes.items():
        config = recipe(name, *overrides)
        ranks = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
        plan = build.build_plan(config, ranks)
        state, last = build.build_state(config, ranks, plan), LastReport()
        learner = state.players[learner_of(config)].module
        before = {key: tensor.clone() for key, tensor in plan.local_tensors(learner).items()}
        train(state, plan, config.loop, HookList([last]))
        moved = any(not torch.equal(before[key], tensor) for key, tensor in plan.local_tensors(learner).items())
        numbers = {key: float(value) for key, value in {**last.report.terms, **last.report.grad_norms}.items()}
        results[name] = (moved, numbers)
    return results


def shrunk(name: str, tmp_path: Path) -> list[str]:
    """Overrides that make a recipe a second's work: everything as it is, but narrow networks and few samples."""
    config = recipe(name)
    parts = {part: getattr(config.model, part) for part in ("generator", "discriminator", "classifier")}
    samples = 4 if config.objective.kind == "twin_flow" else 2  # of which it makes quarters
    overrides = [f"data.global_batch={samples}", "loop.steps=1", f"run.folder={tmp_path / name}"]
    if config.data.kind == "mnist":
        overrides.append(f"data.file={mnist_file(tmp_path / 'digits.npz')}")
    if config.data.kind == "captioned_mnist":  # which would need a text encoder
        overrides += [
            f"data={{kind: synthetic, global_batch: {samples}, shape: [1, 8, 8], num_classes: 3, "
            "text: {length: 4, width: 64}}", "report=null", "model.generator.config.num_layers=1",
        ]
        parts = {}
    for part, network in parts.items():
        if network is not None and network.kind == "mlp":
            overrides.append(f"model.{part}.width=8")
        elif network is not None and network.kind == "diffusers":
            settings, of_data = SMALL_TRANSFORMER[network.class_name]
            overrides += [f"model.{part}.config.{size}" for size in settings]
            overrides += [*of_data, "data.num_classes=3"]
        elif network is not None:
            overrides += [f"model.{part}.{size}" for size in ("depth=1", "hidden_size=16", "num_heads=2")]
    classifier = frozen_modules(recipe(name, *overrides)).get("classifier")
    if classifier is not None:
        file = tmp_path / f"{name}.safetensors"
        save_file(dict(initial_weights(classifier, 0, "classifier")), file)
        overrides.append(f"model.classifier.weights={file}")
    return overrides


def test_every_recipe_takes_a_step_with_narrow_networks(tmp_path: Path) -> None:
    (results,) = run_ranks(1, take_a_step, {name: shrunk(name, tmp_path) for name in NAMES}, timeout=240)
    assert results.keys() == set(NAMES)
    for name, (moved, numbers) in results.items():
        has_base = name != "twinflow_qwen_image_lora"  # from scratch its output is zero whatever its adapters are
        assert (moved or not has_base) and numbers and all(map(math.isfinite, numbers.values())), f"{name}: {numbers}"
        assert ("generator/guidance" in numbers) == (name in OTHERS_GUIDED.union(GUIDED)), name
