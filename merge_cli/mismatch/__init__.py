"""Gradient mismatch measured on data, for each way of merging the same models."""

from merge_cli.mismatch.comparing import squared_norm
from merge_cli.mismatch.measuring import MeasuredMismatch, measure_mismatch

__all__ = ["MeasuredMismatch", "measure_mismatch", "squared_norm"]
