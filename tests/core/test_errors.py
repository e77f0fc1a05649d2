from __future__ import annotations

import errno
import importlib.util
import inspect
import os
import pickle
import pkgutil
import re

import pytest

import afm_scale
from afm_scale.core import errors
from afm_scale.core.typed import Mistake
from afm_scale.data.shards import SampleError
from afm_scale.data.transforms import ImageError
from afm_scale.parallel.agreement import agree
from tests.ranks import run_ranks


@pytest.mark.parametrize("kind", [errors.UserError, errors.ConfigError, errors.DataError, errors.CheckpointError])
def test_what_a_user_can_put_right_ends_with_code_2(kind: type[errors.RunError]) -> None:
    assert kind("found, wanted, do").exit_code == 2
    assert str(kind("found, wanted, do")) == "found, wanted, do"


def test_divergence_is_a_failure_and_not_the_users_mistake() -> None:
    assert errors.DivergenceError("step 3").exit_code == 1
    assert not issubclass(errors.DivergenceError, errors.UserError)


def test_a_run_stopped_by_a_signal_has_a_code_of_its_own() -> None:
    codes = (errors.EXIT_DONE, errors.EXIT_FAILURE, errors.EXIT_USER_ERROR, errors.EXIT_STOPPED_BY_SIGNAL)
    assert codes == (0, 1, 2, 75)


def of_the_package() -> list[type[errors.RunError]]:
    """Every class of errors there is, in one order, whoever imported them. Found in the sources, then imported."""
    for module in pkgutil.walk_packages(afm_scale.__path__, "afm_scale."):
        source = importlib.util.find_spec(module.name).loader.get_source(module.name)
        if re.search(r"^class \w+\(.*Error\)", source or "", re.MULTILINE):
            importlib.import_module(module.name)
    known = [errors.RunError]
    for kind in known:
        others = sorted(kind.__subclasses__(), key=lambda other: (other.__module__, other.__qualname__))
        known += [other for other in others if other.__module__.startswith("afm_scale.")]
    return known


def one_of(kind: type[errors.RunError]) -> errors.RunError:
    """An error of a class, whatever it is made of."""
    wanted = [] if kind.__init__ is Exception.__init__ else list(inspect.signature(kind).parameters.values())
    return kind(*[("loop", "steps") if word.name == "keys" else word.name for word in wanted] or ["what happened"])


def test_the_classes_with_more_to_say_than_one_text_are_among_them() -> None:
    assert {SampleError, ImageError, Mistake} <= set(of_the_package())


@pytest.mark.parametrize("kind", of_the_package())
def test_every_error_can_be_pickled_as_a_plain_one_with_its_message_and_exit_code(kind: type[errors.RunError]) -> None:
    error = one_of(kind)
    found = pickle.loads(pickle.dumps(error.plain()))
    assert (str(found), found.exit_code) == (str(error), error.exit_code) and str(found)
    assert isinstance(error, type(found)), "it is caught where the original would be"


def test_a_class_that_takes_one_text_stays_itself() -> None:
    assert type(errors.CheckpointError("torn").plain()) is errors.CheckpointError
    assert type(SampleError("shard 1", "is broken").plain()) is errors.DataError
    assert type(Mistake(("loop", "steps"), "found -1").plain()) is errors.ConfigError


def _errors_of_rank_1() -> list[tuple[str, int, bool]]:
    found = []
    for kind in of_the_package():
        try:
            agree(one_of(kind) if os.environ["RANK"] == "1" else None)
        except errors.RunError as error:
            found.append((str(error), error.exit_code, error.is_of_all_ranks))
    return found


def test_every_error_of_one_rank_is_met_by_the_other_with_its_message_and_exit_code() -> None:
    wanted = [(str(error), error.exit_code, True) for error in map(one_of, of_the_package())]
    assert run_ranks(2, _errors_of_rank_1) == [wanted, wanted]


@pytest.mark.parametrize("error", [
    MemoryError(), OSError(errno.EMFILE, "Too many open files"), RuntimeError("can't start new thread"),
    RuntimeError("Resource temporarily unavailable"), ImportError("libx.so: failed to map segment from shared object"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_a_system_that_refuses_memory_threads_or_files_is_one_message(error: Exception) -> None:
    told = errors.of_scarcity(error)
    assert told is not None and told.exit_code == 2
    assert (str(error) or "out of memory") in str(told) and "allow more (ulimit -a" in str(told)


@pytest.mark.parametrize("error", [
    RuntimeError("Connection closed by peer"), OSError(errno.ENOSPC, "No space left on device"),
    errors.ConfigError("can't start new thread"), KeyError("a"),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_other_errors_are_not_taken_for_a_systems_refusal(error: Exception) -> None:
    assert errors.of_scarcity(error) is None
