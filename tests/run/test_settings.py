"""Every number of every configuration has a range that the loader holds it to; every setting is documented."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from afm_scale.__main__ import main
from afm_scale.commands.settings import as_page
from afm_scale.core.errors import ConfigError
from afm_scale.core.paths import OrName
from afm_scale.core.ranges import FINITE, Levels, Range
from afm_scale.core.schedules import Schedule
from afm_scale.run.config import RunConfig
from afm_scale.run.load import load
from afm_scale.run.settings import members_of, settings_of
from tests.program import ROOT

Put = Callable[[Any], dict]
"""Makes a whole recipe of the value of one setting."""


@dataclass(frozen=True)
class Number:
    """A number that a recipe may say, where it lies, and the recipe around it."""

    key: str
    allowed: Range | None  # None: it declares none
    whole: bool
    put: Put


def numbers_in(config_type: type, key: str, put: Put) -> Iterator[Number]:
    """All numbers that a configuration may say, those of lists, schedules and sections of every kind included."""
    for name, hint in get_type_hints(config_type, include_extras=True).items():
        if name in {field.name for field in fields(config_type)}:
            required = {other: value for other, value in smallest(config_type).items() if other != name}
            yield from numbers_of(hint, None, f"{key}{name}", lambda value, n=name, r=required: put({**r, n: value}))


def numbers_of(hint: Any, allowed: Range | None, key: str, put: Put) -> Iterator[Number]:
    if get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], Range):
        yield from numbers_of(get_args(hint)[0], hint.__metadata__[0], key, put)
        return
    for member in members_of(hint):
        if member is not hint and get_origin(member) is Annotated:
            yield from numbers_of(member, allowed, key, put)
        elif is_dataclass(member) and issubclass(member, Levels):
            if allowed is None:
                yield Number(key, None, False, put)
            else:
                yield from levels_of(member, allowed, key, put)
        elif is_dataclass(member):
            yield from numbers_in(member, f"{key}.", put)
        elif get_origin(member) is tuple:
            yield from numbers_of_list(get_args(member), allowed, key, put)
        elif member in (int, float):
            yield Number(key, allowed, member is int, put)


def levels_of(schedule: type, allowed: Range, key: str, put: Put) -> Iterator[Number]:
    """A schedule's values keep to the range of the setting, its steps to one of their own."""
    for number in numbers_in(schedule, f"{key}.", put):
        yield Number(number.key, allowed if number.allowed is FINITE else number.allowed, number.whole, number.put)


def numbers_of_list(parts: tuple, allowed: Range | None, key: str, put: Put) -> Iterator[Number]:
    length = 2 if parts[1:] == (Ellipsis,) else len(parts)
    types = parts[:1] * length if parts[1:] == (Ellipsis,) else parts
    others = [smallest_value(part if allowed is None else Annotated[part, allowed]) for part in types]
    for i, part in enumerate(types):
        if part not in types[i + 1 :]:
            yield from numbers_of(
                part, allowed, f"{key}[{i}]", lambda value, i=i: put([*others[:i], value, *others[i + 1 :]])
            )


def smallest(config_type: type) -> dict[str, Any]:
    """What must be said of a section, its kind included, with values inside of their ranges."""
    hints = get_type_hints(config_type, include_extras=True)
    return {
        field.name: smallest_value(hints[field.name]) for field in fields(config_type)
        if field.name == "kind" or field.default is MISSING and field.default_factory is MISSING
    }


def smallest_value(hint: Any) -> Any:
    if get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], Range):
        allowed, inner = hint.__metadata__[0], get_args(hint)[0]
        number = allowed.low if allowed.above is None else allowed.above + 1
        plain = smallest_value(inner)
        return [number for _ in plain] if isinstance(plain, list) else int(max(number, 0))
    if get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], OrName):
        return smallest_value(get_args(hint)[0])
    member = next(iter(members_of(hint)))
    if member is not hint:
        return smallest_value(member)
    if is_dataclass(member):
        return smallest(member)
    if get_origin(member) is Literal:
        return get_args(member)[0]
    if get_origin(member) is tuple:
        return [smallest_value(part) for part in get_args(member) if part is not Ellipsis]
    if isinstance(member, type) and issubclass(member, Enum):
        return next(iter(member)).value
    return {bool: False, str: "x", Path: "x", int: 1, float: 1.0}[member]


NUMBERS = list(numbers_in(RunConfig, "", lambda value: value))
ONCE = [number for number in NUMBERS if ".held_out." not in number.key or number.key.endswith("global_batch")]
"""Without those that are numbers of `data` again."""


def wrong_values(number: Number) -> Iterator[Any]:
    allowed = number.allowed
    assert allowed is not None
    ends = [(allowed.above, allowed.low, -1), (allowed.below, allowed.high, 1)]
    for open_end, closed_end, direction in ends:
        if open_end is not None:
            yield int(open_end) if number.whole else open_end
        elif math.isfinite(closed_end):
            yield closed_end + direction if number.whole else closed_end + direction * max(1e-6 * abs(closed_end), 1e-6)
    yield from (10**30 if number.whole else "1e999", math.nan, math.inf)


def test_the_walk_meets_numbers_of_every_section_and_kind() -> None:
    keys = {number.key for number in NUMBERS}
    assert {
        "loop.seed", "average.decay", "objective.penalty.share", "optimizer.generator.betas[1]", "parallel.recompute.k",
        "optimizer.discriminator.learning_rate.end", "data.distribution.centres[1][1]", "data.shape[2]",
        "objective.augmentation.probability.points[1][0]", "hooks.evaluation.held_out.affine.degrees",
        "hooks.evaluation.features.std[1]", "hooks.garbage.every_steps", "parallel.megatron.tensor", "report.upscale",
    } <= keys
    assert len(NUMBERS) > 150


def test_every_number_of_every_configuration_declares_its_range() -> None:
    assert [number.key for number in NUMBERS if number.allowed is None] == []


def test_a_number_that_declares_none_is_noticed() -> None:
    @dataclass(frozen=True)
    class Careless:
        rate: float = 1.0
        sizes: tuple[int, ...] = ()
        weight: Schedule | None = None
        fine: Annotated[int, Range(1)] = 1

    hints = {"rate": float, "sizes": tuple[int, ...], "weight": Schedule | None}
    found = [number.key for name, hint in hints.items() for number in numbers_of(hint, None, name, lambda value: {})
             if number.allowed is None]
    assert found == ["rate", "sizes[1]", "weight", "weight", "weight"]


@pytest.mark.parametrize("number", ONCE, ids=lambda number: number.key)
def test_what_lies_outside_of_a_range_is_refused_by_the_loader(number: Number, tmp_path: Path) -> None:
    for value in wrong_values(number):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(number.put(value)))
        with pytest.raises(ConfigError) as caught:
            load(RunConfig, tmp_path / "recipe.yaml")
        assert f": {number.key}: found" in str(caught.value) and "wanted a" in str(caught.value), value


@pytest.mark.parametrize("setting", [
    "optimizer.generator.learning_rate=-1", "average.decay=1.5", "objective.penalty.share=0",
    "objective.penalty.share=2", "optimizer.generator.max_grad_norm=0", "optimizer.generator.max_grad_norm=-1",
    "optimizer.generator.weight_decay=-1", "objective.centring_weight=-1", "objective.gradient_scale.decay=1",
    "objective.gradient_scale.target=-1", "objective.transport_weight=-3", "model.generator.depth=0", "loop.seed=-1",
    "loop.seed=99999999999999999999", "parallel.timeout_seconds=0", "parallel.timeout_seconds=-5",
    "optimizer.generator.betas=[2, 3]", "model.generator.hidden_size=-32", "model.discriminator.depth=1000000000",
    "data.global_batch=-2",
])
def test_one_message_names_the_setting_what_was_found_and_what_is_wanted(
    setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "digits_afm", setting]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    key, _, value = setting.partition("=")
    assert line.startswith(f"error: override '{setting}': {key}") and ": found " in line and ", wanted a" in line


def test_every_setting_is_documented() -> None:
    assert [setting.key for setting in settings_of(RunConfig) if not setting.documentation] == []


def test_the_page_of_settings_is_what_the_program_says() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == as_page(settings_of(RunConfig)), "run: python -m afm_scale settings --markdown > docs/settings.md"
