"""Passthrough: one model as it is, or multiplied by a factor."""

from __future__ import annotations

from merge_cli.kernels import Array
from merge_cli.methods.contract import Block, Input, Method, Params, per_model


class PassthroughParams(Params):
    """Parameters of passthrough."""

    scale: tuple[float, ...] = per_model(1.0, example=0.75, description="factor that the tensor is multiplied with")


def passthrough(block: Block, params: PassthroughParams) -> Array:
    """Return the only model, scaled."""
    return block.models[0] * params.scale[0]


METHOD = Method(
    merge=passthrough,
    params=PassthroughParams,
    needs=lambda params, available: frozenset({Input.MODELS}),
    summary="copy one model, scaled or converted",
    equation="merged = scale · θ₁",
    source="no paper: the identity",
    models=(1, 1),
    copies=lambda params: params.scale == (1.0,),
    numpy=True,
)
