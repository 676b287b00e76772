"""Arrays in, arrays out: the arithmetic that methods share. Imports torch when asked to.

A result must not depend on how a tensor is cut into blocks. Elementwise torch operations keep that promise when blocks
start at multiples of :data:`GRAIN`, because only the last few elements of a tensor then take a kernel's scalar path.
Matrix products do not (BLAS picks its code by size), and neither do sums over the first dimension (torch picks their
order by shape), so sums over models are added in the order of the models. Sums over elements are taken grain by grain
in float64 and added up exactly.

Every kernel goes to the backend of its arrays (``backend.py``): on the CPU compiled from C (``compiled.py``) or, where
the installation found no compiler, numpy to the same bytes; torch elsewhere. The design had torch alone; but importing
it took 0.8 of the 2.2 s that a linear merge of a 0.5B model took, and its elementwise operations pass over a block once
each: a TIES merge of three models took 4.4 s instead of 2.8.
"""

from merge_cli.kernels import kth_magnitude
from merge_cli.kernels.backend import Array, Backend, backend_for, backend_of, empty, higher, lower
from merge_cli.kernels.casts import count_nonfinite, from_float32, to_float32
from merge_cli.kernels.drop_mask import Key, drop, keep_mask, make_key
from merge_cli.kernels.numpy_casts import PATTERNS
from merge_cli.kernels.sign_election import Election, ZeroSum, disjoint_merge, elect_sign, zero_below
from merge_cli.kernels.slerp import slerp_coefficients
from merge_cli.kernels.sums import (
    GRAIN,
    chunk_gram,
    chunk_sums,
    fsum_rows,
    page_sums,
    sum_models,
    weight_sum_or_one,
    weighted_sum,
)

__all__ = [
    "GRAIN",
    "PATTERNS",
    "Array",
    "Backend",
    "Election",
    "Key",
    "ZeroSum",
    "backend_for",
    "backend_of",
    "chunk_gram",
    "chunk_sums",
    "count_nonfinite",
    "disjoint_merge",
    "drop",
    "elect_sign",
    "empty",
    "from_float32",
    "fsum_rows",
    "higher",
    "keep_mask",
    "kth_magnitude",
    "lower",
    "make_key",
    "page_sums",
    "slerp_coefficients",
    "sum_models",
    "to_float32",
    "weight_sum_or_one",
    "weighted_sum",
    "zero_below",
]
