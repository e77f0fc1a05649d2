from __future__ import annotations

import pytest

from afm_scale.core import errors


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
