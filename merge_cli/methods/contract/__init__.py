"""The contract of a method: a pure function from a block to a tensor, and the measures it needs beforehand."""

from merge_cli.methods.contract.advice import scaled_weights, unusual_average, unusual_task_weights
from merge_cli.methods.contract.block import Block, Input, Masks
from merge_cli.methods.contract.companions import COMPANIONS, Companion, companion
from merge_cli.methods.contract.measure import Measure, Measured, MeasureOver, Totals, measure_sums
from merge_cli.methods.contract.method import CurvatureScale, Diagnosis, Method, Scope, Step, element_wise
from merge_cli.methods.contract.params import (
    Density,
    Params,
    Scale,
    Weights,
    field_default,
    field_examples,
    is_constant,
    is_per_model,
    must_be_given,
    per_model,
    setting,
)

__all__ = [
    "COMPANIONS",
    "Block",
    "Companion",
    "CurvatureScale",
    "Density",
    "Diagnosis",
    "Input",
    "Masks",
    "Measure",
    "MeasureOver",
    "Measured",
    "Method",
    "Params",
    "Scale",
    "Scope",
    "Step",
    "Totals",
    "Weights",
    "companion",
    "element_wise",
    "field_default",
    "field_examples",
    "is_constant",
    "is_per_model",
    "measure_sums",
    "must_be_given",
    "per_model",
    "scaled_weights",
    "setting",
    "unusual_average",
    "unusual_task_weights",
]
