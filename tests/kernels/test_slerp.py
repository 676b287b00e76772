"""Coefficients of spherical interpolation, for angles that a set square has."""

from __future__ import annotations

import math

import pytest

from merge_cli.kernels import slerp_coefficients

ROOT = math.sqrt


@pytest.mark.parametrize(
    ("cosine", "t", "expected"),
    [
        (0.0, 1 / 2, (ROOT(1 / 2), ROOT(1 / 2))),  # 90 degrees, halfway: sin 45 each
        (0.0, 1 / 3, (ROOT(3) / 2, 1 / 2)),  # 90 degrees, a third: sin 60 and sin 30
        (1 / 2, 1 / 2, (1 / ROOT(3), 1 / ROOT(3))),  # 60 degrees, halfway: sin 30 / sin 60
        (-1 / 2, 1 / 2, (1.0, 1.0)),  # 120 degrees, halfway: sin 60 / sin 120
        (-1 / 2, 1 / 4, (2 / ROOT(3), 1 / ROOT(3))),  # 120 degrees, a quarter: sin 90 and sin 30 over sin 120
        (0.0, 2.0, (-1.0, 0.0)),  # beyond the second: twice 90 degrees is opposite the first
    ],
)
def test_coefficients_are_ratios_of_sines(cosine: float, t: float, expected: tuple[float, float]) -> None:
    assert slerp_coefficients(1.0, 1.0, cosine, t) == pytest.approx(expected, abs=1e-12)


def test_the_angle_does_not_depend_on_the_lengths() -> None:
    # Vectors of length 3 and 4 at 60 degrees have inner product 6.
    assert slerp_coefficients(3.0, 4.0, 6.0, 0.5) == pytest.approx((1 / ROOT(3), 1 / ROOT(3)))


@pytest.mark.parametrize("cosine", [0.3, -0.7, 0.99999, -0.99999])
def test_both_ends_are_exact(cosine: float) -> None:
    assert slerp_coefficients(2.0, 2.0, 4 * cosine, 0.0) == (1.0, 0.0)
    assert slerp_coefficients(2.0, 2.0, 4 * cosine, 1.0) == (0.0, 1.0)


@pytest.mark.parametrize("cosine", [0.9996, 1.0, 1.0000001, -0.9996, -1.0])
def test_nearly_parallel_and_opposite_vectors_are_interpolated_on_the_line(cosine: float) -> None:
    assert slerp_coefficients(1.0, 1.0, cosine, 0.25) == (0.75, 0.25)


def test_the_line_begins_beyond_a_cosine_of_0_9995() -> None:
    # On the arc both halves are 1 / (2 cos(angle / 2)), a little more than one half.
    arc = 1 / ROOT(2 * (1 + 0.9994))
    assert slerp_coefficients(1.0, 1.0, 0.9994, 0.5) == pytest.approx((arc, arc), rel=1e-9)
    assert arc > 0.50007


@pytest.mark.parametrize("norms", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1e-9, 1.0)])
def test_a_vector_that_vanishes_has_no_direction_and_is_interpolated_on_the_line(norms: tuple[float, float]) -> None:
    assert slerp_coefficients(*norms, 0.0, 0.25) == (0.75, 0.25)
