"""Recipes, what they inherit, overrides on the command line, and the messages for all that can be wrong in them."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar, Literal, Optional, Union

import pytest
import yaml

from afm_scale.core.errors import ConfigError
from afm_scale.core.schedules import Constant, Cosine, Piecewise, Schedule
from afm_scale.core.typed import build, to_mapping
from afm_scale.run import load as load_module
from afm_scale.run import shipped as shipped_module
from afm_scale.run.load import dump_yaml, load


class Prediction(str, Enum):
    X = "x"
    V = "v"


@dataclass(frozen=True, kw_only=True)
class Loop:
    steps: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < self.seed:
            raise ConfigError(f"steps is {self.steps}; it must be at least the seed, {self.seed}")


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    kind: Literal["afm"] = "afm"
    prediction: Prediction = Prediction.X
    transport_weight: Schedule
    centring: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Matching:
    kind: Literal["flow_matching"] = "flow_matching"
    time_std: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    loop: Loop
    objective: Union[Adversarial, Matching]  # noqa: UP007
    learning_rate: Schedule = Constant(value=1e-4)
    matching: Matching | None = None


@dataclass(frozen=True, kw_only=True)
class Everything:
    count: int = 1
    rate: float = 0.5
    active: bool = True
    name: str = "plain"
    folder: Path = Path("runs/x")
    old_style: Optional[int] = None  # noqa: UP045
    limit: float | None = None
    mode: Literal["auto", "cpu", 2] = "auto"
    prediction: Prediction = Prediction.V
    layers: tuple[int, ...] = (1, 2)
    betas: tuple[float, float] = (0.0, 0.9)
    named: tuple[str, int] = ("a", 1)
    weights: dict[str, float] = field(default_factory=dict)
    loops: dict[str, Loop] = field(default_factory=dict)
    several: tuple[Schedule, ...] = ()
    schedule: Schedule | None = None


@dataclass(frozen=True, kw_only=True)
class Warm:
    """Has a shorthand, and something beside it."""

    shorthand: ClassVar[str] = "value"
    value: float
    warm_up: int = 0


COSINE = {"kind": "cosine", "start": 1.0, "end": 0.0, "steps": 5.0}
ADVERSARIAL_V = Adversarial(prediction=Prediction.V, transport_weight=Constant(value=0.2), centring=0.5)
FULL = Everything(
    count=-3, rate=1e-8, active=False, name="1e-4", folder=Path("a b/ü"), old_style=7, limit=1e30, mode=2,
    prediction=Prediction.X, layers=(), betas=(0.5, 0.999), named=("no", 3), weights={"true": 1.0, "3": 2.0},
    loops={"a": Loop(steps=5, seed=2)}, several=(Constant(value=1.0), Cosine(start=1.0, end=0.0, steps=5.0)),
    schedule=Piecewise(points=((0, 1.0), (5, 0.1 + 0.2))),
)


def write(folder: Path, **texts: str) -> Path:
    """Writes NAME.yaml for every name; returns the file of the last."""
    for name, text in texts.items():
        file = folder / f"{name}.yaml"
        file.write_text(text, encoding="utf-8")
    return file


RECIPE = """
loop: {steps: 10}
objective:
  kind: afm
  transport_weight: 0.2
  centring: 0.5
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory: messages show files relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def recipe(here) -> Path:
    return write(here, recipe=RECIPE)


def message_of(config_type: type, file: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(config_type, file, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_recipe_becomes_typed_values_and_the_rest_keeps_its_defaults(recipe):
    objective = Adversarial(transport_weight=Constant(value=0.2), centring=0.5)
    assert load(Recipe, recipe) == Recipe(loop=Loop(steps=10), objective=objective)


@pytest.mark.parametrize("name, given, value", [
    ("rate", 3, 3.0), ("rate", "1e-4", 1e-4), ("rate", "-1E+3", -1000.0), ("rate", ".5", 0.5), ("rate", 10**30, 1e30),
    ("count", -3, -3), ("active", False, False), ("name", "1e-4", "1e-4"), ("folder", "a/b", Path("a/b")),
    ("old_style", None, None), ("old_style", 3, 3), ("limit", None, None), ("limit", 2, 2.0),
    ("mode", 2, 2), ("mode", "cpu", "cpu"), ("prediction", "x", Prediction.X),
    ("layers", [3], (3,)), ("layers", [], ()), ("betas", [0, "1e-1"], (0.0, 0.1)), ("named", ["b", 2], ("b", 2)),
    ("weights", {"a": 1}, {"a": 1.0}), ("loops", {"b": {"steps": 3}}, {"b": Loop(steps=3)}),
    ("schedule", "1e-4", Constant(value=1e-4)), ("schedule", {"kind": "constant", "value": 2}, Constant(value=2.0)),
    ("schedule", COSINE, Cosine(start=1.0, end=0.0, steps=5.0)),
    ("schedule", {"kind": "piecewise", "points": [[0, 1], [9, "1e-2"]]}, Piecewise(points=((0, 1.0), (9, 0.01)))),
    ("several", [1, COSINE], (Constant(value=1.0), Cosine(start=1.0, end=0.0, steps=5.0))),
])
def test_a_type_hint_says_what_becomes_of_a_value(name, given, value):
    found = getattr(build(Everything, {name: given}), name)
    assert type(found) is type(value) and found == value


@pytest.mark.parametrize("name, wanted, wrong", [
    ("rate", "a finite number", [True, None, "x", "", "1_000", "0x1", "nan", "1e999", math.nan, math.inf, [1.0], {}]),
    ("count", "a whole number in digits (1000, not 1e3, 1000.0 or quoted)", [True, None, 3.0, "3", "1e4", [3]]),
    ("active", "true or false", [0, 1, "true", "yes", None]),
    ("name", "text, in quotes if YAML takes it for something else", [1, 1.5, True, None, ["a"]]),
    ("folder", "a path", [1, None, ""]),
    ("limit", "a finite number", ["much"]),
    ("mode", "one of 'auto', 'cpu', 2", ["2", 2.0, None, []]),
    ("prediction", "one of 'x', 'v'", ["X", 1, None]),
    ("layers", "a list", ["12", 1, None, {"a": 1}]),
    ("weights", "a mapping", [[1], 1, None]),
])
def test_a_wrong_type_says_where_what_was_found_and_what_was_wanted(name, wanted, wrong):
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"^{name}: found .+, wanted {re.escape(wanted)}$"):
            build(Everything, {name: value})


@pytest.mark.parametrize("mapping, message", [
    ({"count": None}, "count: found null, wanted a whole number"),
    ({"mode": "cpuu"}, "mode: found 'cpuu', wanted one of 'auto', 'cpu', 2; did you mean 'cpu'?"),
    ({"layers": [1, "x"]}, "layers[1]: found 'x', wanted a whole number"),
    ({"betas": [0.0]}, "betas: found [0.0] of 1, wanted a list of 2"),
    ({"weights": {1: 1.0}}, "weights.1: found 1, wanted text"),
    ({"loops": {"b": {"stepz": 3}}}, "loops.b.stepz: unknown key; did you mean 'steps'? known: steps, seed"),
    ({"loops": {"b": {"qqq": 3}}}, "loops.b.qqq: unknown key; known: steps, seed"),
    ({"loops": {"b": 3}}, "loops.b: found 3, wanted a mapping"),
    ({"loops": {"b": {}}}, "loops.b: missing 'steps'; there is no default"),
    ({"schedule": "fast"}, "schedule.value: found 'fast', wanted a finite number"),
    ({"schedule": {"start": 1}}, "schedule: missing 'kind'; the kinds are: constant, cosine, piecewise"),
    ({"schedule": {"kind": "cosin"}},
     "schedule.kind: found 'cosin', wanted one of 'constant', 'cosine', 'piecewise'; did you mean 'cosine'?"),
    ({"schedule": {"kind": ["cosine"]}}, "schedule.kind: found ['cosine'], wanted one of"),
    ({"schedule": {"kind": "piecewise", "points": [[0, 1], ["ten", 2]]}}, "schedule.points[1][0]: found 'ten', wanted"),
    ({"several": [1, COSINE | {"steps": 0}]}, "several[1].steps: found 0, wanted a number above 0"),
])
def test_a_mistake_is_reported_with_the_way_to_it(mapping, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        build(Everything, mapping)


@pytest.mark.parametrize("text, message", [
    ("loop: {stepz: 1}", "odd.yaml: missing 'objective'; there is no default"),
    ("# nothing yet", "odd.yaml: missing 'loop', 'objective'; there is no default"),
    ("loop: {stepz: 1}\nobjective: 1", "odd.yaml: loop.stepz: unknown key; did you mean 'steps'? known: steps, seed"),
    ("loop: {seed: 1}\nobjective: 1", "odd.yaml: loop: missing 'steps'; there is no default"),
    ("- 1", "odd.yaml: found [1], wanted a mapping of sections"),
    ("0", "odd.yaml: found 0, wanted a mapping of sections"),
    ("inherit: null", "odd.yaml: inherit: found null, wanted a file name or a list of them"),
    ("inherit: [a.yaml, 3]", "odd.yaml: inherit: found ['a.yaml', 3], wanted a file name or a list of them"),
    ("inherit: odd.yaml", "odd.yaml: inherit: the files inherit each other in a circle: odd.yaml -> odd.yaml"),
    ("inherit: ood.yaml", "odd.yaml: inherit: ood.yaml cannot be read: No such file or directory; did you mean 'odd"),
    ("loop: {steps: 1", "odd.yaml, line 1: not YAML: "),
    ("loop:\n  steps: [1\nobjective: 2\n", "odd.yaml, line 3: not YAML: "),
    ("loop:\n  steps: 1\n  steps: 2\n", "odd.yaml, line 3: not YAML: key 'steps' twice in a mapping"),
    ("loop: 1\nseveral: [{a: 1, a: 2}]", "odd.yaml, line 2: not YAML: key 'a' twice in a mapping"),
    ("loop: {on: 1}", "odd.yaml, line 1: not YAML: a key that is not text wants quotes"),
    ("? [a, b]\n: x", "odd.yaml, line 1: not YAML: a key that is not text wants quotes"),
    ("loop: *nothing", "odd.yaml, line 1: not YAML: found undefined alias"),
    ("loop: !!python/object:os.system {}", "odd.yaml, line 1: not YAML: could not determine a constructor"),
    ("a: 1\n---\nb: 2", "odd.yaml, line 2: not YAML: "),
    ("loop: \x00", "odd.yaml: not YAML: "),
    ("loop: 2026-13-01", "odd.yaml: not YAML: month must be in 1..12"),
    ("loop: " + "9" * 5000, "odd.yaml: not YAML: Exceeds the limit"),
    ("loop: &a {steps: *a}", "odd.yaml: not YAML: its aliases repeat more than"),
    ("a: &a [x]\n" + "\n".join(f"{b}: &{b} [{(f'*{a}, ' * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
     "odd.yaml: not YAML: its aliases repeat more than"),
    ("a: &a {k: 1}\n" + "\n".join(
        f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ), "odd.yaml: not YAML: its aliases repeat more than"),
    ("# " + "x" * 2**18, "odd.yaml cannot be read: it has more than 262,144 bytes"),
    ("[" * 3000, "odd.yaml: nested too deeply"),
])
def test_a_file_that_cannot_be_used_is_a_message_and_no_traceback(here, text, message):
    assert message_of(Recipe, write(here, odd=text)).startswith(message)


def test_a_file_that_is_not_utf8_is_a_message_and_no_traceback(here):
    (here / "odd.yaml").write_bytes(b"loop: \xe9\xff")
    assert message_of(Recipe, "odd.yaml").startswith("odd.yaml: not YAML: ")


def test_yaml_anchors_and_merge_keys_work(here):
    file = write(here, b="loops:\n  a: &a {steps: 3, seed: 1}\n  b:\n    <<: *a\n    seed: 2\n")
    assert load(Everything, file).loops == {"a": Loop(steps=3, seed=1), "b": Loop(steps=3, seed=2)}


def test_a_file_wins_over_what_it_inherits_and_later_over_earlier(here):
    (here / "parts").mkdir()
    write(here / "parts", bottom="count: 1\nrate: 1\nname: bottom\nlayers: [1, 2, 3]\nweights: {a: 1, b: 1}")
    write(here / "parts", first="inherit: bottom.yaml\ncount: 2\nrate: 2\nweights: {b: 2}", second="rate: 3")
    top = write(here, top="inherit: [parts/first.yaml, parts/second.yaml]\nlayers: [9]")
    expected = Everything(count=2, rate=3.0, name="bottom", layers=(9,), weights={"a": 1.0, "b": 2.0})
    assert load(Everything, top) == expected


def test_one_file_may_be_inherited_on_two_ways(here):
    write(here, base="count: 5", left="inherit: base.yaml\nrate: 1", right="inherit: base.yaml\nname: r")
    top = write(here, top="inherit: [left.yaml, right.yaml]")
    assert load(Everything, top) == Everything(count=5, rate=1.0, name="r")


def test_a_longer_circle_is_named_without_the_way_into_it(here):
    write(here, a="inherit: b.yaml", b="inherit: c.yaml", c="inherit: b.yaml")
    assert message_of(Everything, "a.yaml").endswith("inherit each other in a circle: b.yaml -> c.yaml -> b.yaml")


def test_a_base_lies_below_the_recipe_and_all_it_inherits(here):
    base = write(here, base="count: 1\nrate: 1\nname: base")
    write(here, part="count: 2\nrate: 2")
    config = load(Everything, write(here, top="inherit: part.yaml\nrate: 3"), ["active=false"], base=base)
    assert config == Everything(count=2, rate=3.0, name="base", active=False)


@pytest.mark.parametrize("above, objective", [
    ("{kind: flow_matching}", Matching()),
    ("{kind: afm, prediction: v}", ADVERSARIAL_V),
    ("{prediction: v}", ADVERSARIAL_V),
])
def test_another_kind_replaces_and_the_same_kind_merges(here, recipe, above, objective):
    assert load(Recipe, write(here, top=f"inherit: recipe.yaml\nobjective: {above}")).objective == objective


def test_a_mapping_replaces_null_and_null_a_mapping(here, recipe):
    write(here, on="inherit: recipe.yaml\nmatching: {time_std: 2}", off="inherit: on.yaml\nmatching: null")
    assert load(Recipe, "off").matching is None
    assert load(Recipe, write(here, again="inherit: off.yaml\nmatching: {}")).matching == Matching()


def test_the_file_or_override_that_set_the_wrong_value_is_blamed(here):
    write(here, base="count: many\nbetas: [0, x]", middle="inherit: base.yaml\nrate: slow")
    top = write(here, top="inherit: middle.yaml\nname: top")
    assert message_of(Everything, top).startswith("base.yaml: count: found 'many'")
    assert message_of(Everything, top, "count=1").startswith("middle.yaml: rate: found 'slow'")
    assert message_of(Everything, top, "count=1", "rate=1").startswith("base.yaml: betas[1]: found 'x'")
    assert message_of(Everything, top, "count=2.5").startswith("override 'count=2.5': count: found 2.5")


def test_a_mistake_of_several_keys_together_blames_all_who_set_them(here, recipe):
    together = "loop: steps is 10; it must be at least the seed, 11"
    assert message_of(Recipe, recipe, "loop.seed=11") == f"recipe.yaml, override 'loop.seed=11': {together}"
    replaced = "override 'learning_rate={kind: cosine}': learning_rate: missing 'start', 'end', 'steps'"
    assert message_of(Recipe, recipe, "learning_rate=1", "learning_rate={kind: cosine}").startswith(replaced)


@pytest.fixture
def recipes(here, monkeypatch) -> Path:
    folder = here / "elsewhere"
    folder.mkdir()
    monkeypatch.setattr(load_module, "RECIPES", folder)
    write(folder, digits_afm="count: 7", digits_flow_matching="count: 8")
    return folder


@pytest.mark.parametrize("name", ["digits_afm", "digits_afm.yaml", "elsewhere/digits_afm", "elsewhere/digits_afm.yaml"])
def test_a_recipe_is_found_by_name_and_by_path(recipes, name):
    assert load(Everything, name).count == 7


def test_what_is_inherited_is_a_file_beside_or_else_a_shipped_recipe_by_name(here, monkeypatch):
    folder = here / "shipped" / "recipes"
    for made in (folder, folder.parent / "model", here / "mine"):
        made.mkdir(parents=True)
    write(folder, first="count: 1", second="count: 2")
    write(folder.parent / "model", small="rate: 5")
    monkeypatch.setattr(shipped_module, "RECIPES", folder)
    monkeypatch.setattr(shipped_module, "CONFIGS", folder.parent)
    mine = write(here / "mine", first="inherit: [first, model/small]", second="count: 3", third="inherit: second")
    assert (load(Everything, here / "mine" / "first.yaml").count, load(Everything, mine).count) == (1, 3)
    assert load(Everything, here / "mine" / "first.yaml").rate == 5
    for name, near in [("frist", "first"), ("model/smal", "model/small"), ("thrid.yaml", "third.yaml")]:
        asked = write(here / "mine", asks=f"inherit: {name}")
        assert message_of(Everything, asked) == (
            f"mine/asks.yaml: inherit: mine/{name} cannot be read: No such file or directory; did you mean '{near}'?"
        )


def test_a_missing_recipe_lists_the_nearest(recipes):
    there = "neither a file nor a recipe in elsewhere; there are: digits_afm"
    assert message_of(Everything, "digit_afm").startswith(f"digit_afm: {there}")
    assert message_of(Everything, "configs/zzz.yaml") == f"configs/zzz.yaml: {there}, digits_flow_matching"


@pytest.mark.parametrize("override, name, value", [
    ("count=3", "count", 3), ("rate=1e-4", "rate", 1e-4), ("active=false", "active", False),
    ("layers=[4, 5]", "layers", (4, 5)), ("name=a=b", "name", "a=b"), ("name=''", "name", ""),
    ("name='3'", "name", "3"), ("limit=null", "limit", None),
    ("name=D/try #2", "name", "D/try #2"), ("name=#2", "name", "#2"), ("name=a\n b", "name", "a\n b"),
    ("name=3 # x", "name", "3 # x"),
    ("name='D/try #2'", "name", "D/try #2"), ("weights={'a #1': 1}", "weights", {"a #1": 1}),
    ("schedule=2", "schedule", Constant(value=2.0)), ("weights.a=1", "weights", {"a": 1.0}),
    ("loops.x.steps=4", "loops", {"x": Loop(steps=4)}),
    ("schedule={kind: cosine, start: 1, end: 0, steps: 5}", "schedule", Cosine(start=1.0, end=0.0, steps=5.0)),
])
def test_an_override_sets_one_value_written_as_yaml(here, override, name, value):
    assert getattr(load(Everything, write(here, recipe="limit: 3"), [override]), name) == value


def test_the_last_override_wins(recipe):
    assert load(Recipe, recipe, ["loop.steps=3", "loop.steps=4"]).loop.steps == 4


def test_a_new_kind_drops_the_keys_of_the_old_and_its_own_come_in_any_order(recipe):
    assert load(Recipe, recipe, ["objective.kind=flow_matching"]).objective == Matching()
    for overrides in itertools.permutations(["objective.kind=flow_matching", "objective.time_std=2"]):
        assert load(Recipe, recipe, overrides).objective == Matching(time_std=2.0)


def test_an_override_may_go_into_a_mapping_that_an_earlier_one_set(recipe):
    given = ["learning_rate=1", "learning_rate={kind: cosine, start: 1, end: 0, steps: 5}", "learning_rate.steps=6"]
    assert load(Recipe, recipe, given).learning_rate == Cosine(start=1.0, end=0.0, steps=6.0)


@pytest.mark.parametrize("override, message", [
    *((odd, "wanted the form section.key=value") for odd in ["loop.steps", "=3", ".steps=3", "loop.=3", "a..b=3", ""]),
    ("matching=", "no value after '='; if none is meant, write matching=null"),  # else an unset shell variable is null
    ("objective.centring.x=3", "objective.centring is 0.5 (from recipe.yaml), not a mapping; give it as a whole: "),
    ("loop.steps=[1", "not YAML: "),
    ("loop.steps=3 # of them", "loop.steps: found '3 # of them', wanted a whole number"),
    ("loop={steps: 3} # x", "'# x' follows the value; an override has no comments"),
    ("learning_rate='3' # x", "'# x' follows the value; an override has no comments"),
    ("loop={a: 1, a: 2}", "not YAML: key 'a' twice in a mapping"),
    ("inherit=x.yaml", "inherit: unknown key"),
    ("loop.qqq=1", "loop.qqq: unknown key; known: steps, seed"),
    ("objective=3", "objective: found 3, wanted a mapping of one kind: afm, flow_matching"),
])
def test_an_override_that_cannot_be_used_is_named(recipe, override, message):
    found = message_of(Recipe, recipe, override).replace("', line 1: ", "': ")
    assert found.startswith(f"override '{override}': {message}")


@pytest.mark.parametrize(
    "config", [Everything(), FULL, Everything(schedule=Constant(value=1e-4), name="null: # x\n'y'")]
)
def test_a_configuration_survives_the_way_to_yaml_and_back(here, config):
    assert build(Everything, to_mapping(config)) == config
    assert load(Everything, write(here, again=dump_yaml(config))) == config


def test_a_mapping_holds_plain_values_and_shorthands():
    mapping = to_mapping(FULL)
    assert json.loads(json.dumps(mapping)) == mapping == yaml.safe_load(dump_yaml(FULL))
    assert mapping["several"] == [1.0, COSINE | {"begin": 0}] and type(mapping["prediction"]) is str
    assert (mapping["folder"], mapping["layers"], mapping["loops"]) == ("a b/ü", [], {"a": {"steps": 5, "seed": 2}})


def test_a_shorthand_is_not_written_where_it_would_lose_a_value():
    assert build(Warm, 2) == Warm(value=2.0)
    assert to_mapping(Warm(value=2.0, warm_up=3)) == {"value": 2.0, "warm_up": 3}
