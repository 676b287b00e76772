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
