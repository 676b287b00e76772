"""Arrays in, arrays out: the arithmetic that methods share. Imports nothing of this project, and torch when asked to.

A result must not depend on how a tensor is cut into blocks. Elementwise torch operations keep that promise when blocks
start at multiples of :data:`GRAIN`, because only the last few elements of a tensor then take a kernel's scalar path.
Matrix products do not (BLAS picks its code by size), and neither do sums over the first dimension (torch picks their
order by shape), so sums over models are added in the order of the models. Sums over elements are taken grain by grain
in float64 and added up exactly.

What takes most time on the CPU is compiled where the installation found a C compiler (``compiled.py``), and is then
given numpy's arrays (``arrays.py``). The design had torch alone; but importing it took 0.8 of the 2.2 s that a linear
merge of a 0.5B model took, and its elementwise operations pass over a block once each: a TIES merge of three models
took 4.4 s instead of 2.8.
"""

from merge_cli.kernels.arrays import Array, empty, higher, is_numpy, lower
from merge_cli.kernels.conversion import PATTERNS, narrow, widen
from merge_cli.kernels.election import Election, ZeroSum, disjoint_merge, elect_sign
from merge_cli.kernels.quantile import Found, Search, first_search, gather, join, next_search, sample_size
from merge_cli.kernels.randomness import Key, drop, keep_mask, make_key
from merge_cli.kernels.spherical import slerp_coefficients
from merge_cli.kernels.sums import GRAIN, divisor_of, exact_sums, grain_gram, grain_sums, sum_models, weighted_sum
from merge_cli.kernels.trimming import keep_at_least

__all__ = [
    "GRAIN",
    "PATTERNS",
    "Array",
    "Election",
    "Found",
    "Key",
    "Search",
    "ZeroSum",
    "disjoint_merge",
    "divisor_of",
    "drop",
    "elect_sign",
    "empty",
    "exact_sums",
    "first_search",
    "gather",
    "grain_gram",
    "grain_sums",
    "higher",
    "is_numpy",
    "join",
    "keep_at_least",
    "keep_mask",
    "lower",
    "make_key",
    "narrow",
    "next_search",
    "sample_size",
    "slerp_coefficients",
    "sum_models",
    "weighted_sum",
    "widen",
]
