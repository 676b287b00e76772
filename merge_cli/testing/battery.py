"""All rules together, as tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from merge_cli.methods.contract import Method, Step
from merge_cli.testing.block_rules import check_any_block_size, check_last_block, check_measure_order, check_scope
from merge_cli.testing.description_rules import check_description, check_parameters
from merge_cli.testing.purity_rules import (
    check_inputs_are_not_modified,
    check_measure_depends,
    check_needs,
    check_second_results,
)
from merge_cli.testing.result_rules import (
    check_copies,
    check_fixed_point,
    check_kinds_of_arrays,
    check_oracle,
)
from merge_cli.testing.tensors import Oracle

Tested = TypeVar("Tested")

_OF_BOTH = (
    check_description,
    check_parameters,
    check_any_block_size,
    check_last_block,
    check_measure_order,
    check_scope,
    check_inputs_are_not_modified,
    check_needs,
    check_measure_depends,
    check_kinds_of_arrays,
)
_OF_METHODS = (check_second_results, check_fixed_point, check_copies)


@dataclass(frozen=True)
class Check:
    """A rule and the method or step that it is checked of; call it to check it.

    Attributes:
        name: Of the rule.
        check: Raises :class:`~merge_cli.testing.RuleBroken`.
    """

    name: str
    check: Callable[[], None]

    def __call__(self) -> None:
        """Check the rule."""
        self.check()

    def __str__(self) -> str:
        return self.name


def method_checks(method: Method, *, oracle: Oracle) -> list[Check]:
    """Return the checks that a method must pass.

    Args:
        method: The method.
        oracle: The definition once more, as loops over Python's own numbers; see :func:`per_tensor`.
    """
    checks = [_check(rule.__name__, rule, method) for rule in (*_OF_BOTH, *_OF_METHODS)]
    return [*checks, Check("oracle", lambda: check_oracle(method, oracle))]


def step_checks(step: Step, *, oracle: Oracle) -> list[Check]:
    """Return the checks that a preparing step must pass; its oracle gives one list per model."""
    checks = [_check(rule.__name__, rule, step) for rule in _OF_BOTH]
    return [*checks, Check("oracle", lambda: check_oracle(step, oracle))]


def check_method(method: Method, *, oracle: Oracle) -> None:
    """Check all rules of a method; see :func:`method_checks`.

    Raises:
        RuleBroken: At the first that is broken.
    """
    for check in method_checks(method, oracle=oracle):
        check()


def check_step(step: Step, *, oracle: Oracle) -> None:
    """Check all rules of a preparing step; see :func:`step_checks`.

    Raises:
        RuleBroken: At the first that is broken.
    """
    for check in step_checks(step, oracle=oracle):
        check()


def _check(name: str, rule: Callable[[Tested], None], what: Tested) -> Check:
    return Check(name.removeprefix("check_"), lambda: rule(what))
