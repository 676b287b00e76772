"""Geometry on the sphere."""

import math


def slerp_coefficients(norm_first: float, norm_second: float, dot: float, t: float) -> tuple[float, float]:
    """Return what to multiply two vectors with to walk from the first (t = 0) to the second (t = 1) along the arc.

    Vectors that are nearly parallel or opposite (cosine beyond 0.9995) or vanish are interpolated on the straight line.

    Args:
        norm_first: Euclidean norm of the first vector.
        norm_second: Euclidean norm of the second vector.
        dot: Their inner product.
        t: Position between them.

    Source:
        Shoemake 1985, "Animating rotation with quaternion curves"; the threshold is the one customary for weights.
    """
    if norm_first <= 1e-8 or norm_second <= 1e-8:
        return 1 - t, t
    cosine = dot / (norm_first * norm_second)
    if abs(cosine) > 0.9995:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
