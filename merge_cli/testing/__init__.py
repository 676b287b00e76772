'''The battery of tests that every method and preparing step passes, for those of other packages too.

A method of your own is a package with one module, here ``merge_median.py``:

    """The median of three models, a method for merge-cli in a package of its own."""

    from merge_cli.kernels import Array, higher, lower
    from merge_cli.methods.contract import Block, Input, Method, Params


    def median_of_three(block: Block, params: Params) -> Array:
        """Return the middle one of three numbers, element by element."""
        one, two, three = block.models
        return higher(lower(one, two), lower(higher(one, two), three))


    METHOD = Method(
        merge=median_of_three,
        params=Params,
        needs=lambda params, available: frozenset({Input.MODELS}),
        summary="take the median of three models",
        equation="merged = median(θ₁, θ₂, θ₃)",
        source="no paper: the median",
        models=(3, 3),
        numpy=True,
    )

an entry point, in its ``pyproject.toml``:

    [project.entry-points."merge_cli.methods"]
    median_of_three = "merge_median:METHOD"

and a test that checks it against its definition, written once more in loops over plain numbers:

    """The median keeps the contract; the oracle is its definition once more, over plain numbers."""

    import merge_median
    import pytest

    from merge_cli.testing import Check, PlainTensor, method_checks, per_tensor


    @per_tensor
    def oracle(tensor: PlainTensor, params: object) -> list[float]:
        return [sorted(numbers)[1] for numbers in zip(*tensor.models, strict=True)]


    @pytest.mark.parametrize("check", method_checks(merge_median.METHOD, oracle=oracle), ids=str)
    def test_the_median_keeps_the_rules(check: Check) -> None:
        check()

A check raises :class:`RuleBroken`, which says what was broken, with which parameters, and what to do. What holds for a
method alone it says itself: values of its parameters to test with (``examples``), ``fixed_point``, ``scope``,
``rounds_before_deciding``. Methods that declare ``numpy=True`` are tested without torch, and with it where it is
installed; others with torch, on a GPU too where there is one.

:func:`check_source` is the battery for what a tensor is made of: a kind of source that ``merge_cli.stream.decode``
knows.
'''

from importlib.util import find_spec

if find_spec("hypothesis") is None:
    raise ModuleNotFoundError("merge_cli.testing needs hypothesis: pip install 'merge-cli-nn[test]'", name="hypothesis")

from merge_cli.testing.battery import Check, check_method, check_step, method_checks, step_checks
from merge_cli.testing.block_rules import check_any_block_size, check_last_block, check_measure_order, check_scope
from merge_cli.testing.description_rules import check_description, check_parameters
from merge_cli.testing.harness import Outcome, Setup, measure, run
from merge_cli.testing.parameters import any_params, params_for, typical_params
from merge_cli.testing.purity_rules import (
    check_inputs_are_not_modified,
    check_measure_depends,
    check_needs,
    check_second_results,
)
from merge_cli.testing.result_rules import check_copies, check_fixed_point, check_kinds_of_arrays, check_oracle
from merge_cli.testing.rules import RuleBroken
from merge_cli.testing.source_rules import check_any_cut, check_bytes_behind, check_source, check_source_is_data
from merge_cli.testing.tensors import Oracle, PlainTensor, per_tensor

__all__ = [
    "Check",
    "Oracle",
    "Outcome",
    "PlainTensor",
    "RuleBroken",
    "Setup",
    "any_params",
    "check_any_block_size",
    "check_any_cut",
    "check_bytes_behind",
    "check_copies",
    "check_description",
    "check_fixed_point",
    "check_inputs_are_not_modified",
    "check_kinds_of_arrays",
    "check_last_block",
    "check_measure_depends",
    "check_measure_order",
    "check_method",
    "check_needs",
    "check_oracle",
    "check_parameters",
    "check_scope",
    "check_second_results",
    "check_source",
    "check_source_is_data",
    "check_step",
    "measure",
    "method_checks",
    "params_for",
    "per_tensor",
    "run",
    "step_checks",
    "typical_params",
]
