"""What a method is: a pure function from a block to a tensor, plus what it needs to know beforehand."""

from merge_cli.methods.contract.advice import unusual_average, unusual_task_weights
from merge_cli.methods.contract.block import Block, Masks, Need
from merge_cli.methods.contract.measure import Extent, Measure, Measured, Totals, measure_sums
from merge_cli.methods.contract.method import Diagnosis, Method, Scope, Step, element_wise
from merge_cli.methods.contract.params import (
    Density,
    Params,
    Scale,
    Weights,
    field_default,
    is_constant,
    is_per_model,
    per_model,
    setting,
)

__all__ = [
    "Block",
    "Density",
    "Diagnosis",
    "Extent",
    "Masks",
    "Measure",
    "Measured",
    "Method",
    "Need",
    "Params",
    "Scale",
    "Scope",
    "Step",
    "Totals",
    "Weights",
    "element_wise",
    "field_default",
    "is_constant",
    "is_per_model",
    "measure_sums",
    "per_model",
    "setting",
    "unusual_average",
    "unusual_task_weights",
]
