"""Rules for layers whose per-example gradients follow from inputs and output gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from merge_cli.fisher.factors import Contribution, DenseGradients, OuterFactors, RowScatter

# From the layer, its input and the gradient of its output, all with the example first, to its parameters' gradients.
Rule = Callable[[Any, Tensor, Tensor], Iterator[tuple[Tensor, Contribution]]]


def find_rule(module: nn.Module) -> Rule | None:
    """Return the rule for a layer, or None where its class, or how it is set up, is not known.

    A subclass that computes its output in another way does not count as known.
    """
    forward = type(module).forward
    if forward is nn.Linear.forward or forward is nn.modules.linear.NonDynamicallyQuantizableLinear.forward:
        return _linear
    if isinstance(module, nn.Embedding):
        scale = 1.0 if forward is nn.Embedding.forward else _embedding_scale(module)
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
        return partial(_embedding, scale) if plain and scale is not None else None
    if isinstance(module, nn.LayerNorm) and forward is nn.LayerNorm.forward:
        return _layer_norm if len(module.normalized_shape) == 1 else None
    if isinstance(module, nn.Conv2d) and forward is nn.Conv2d.forward:
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return _conv2d if plain else None
    if _is_transposed_linear(module):
        return _transposed_linear
    return _rms_norm if _is_rms_norm(module) else None


def _linear(module: nn.Linear, given: Tensor, back: Tensor) -> Iterator[tuple[Tensor, Contribution]]:
    back = _by_token(back)
    yield module.weight, OuterFactors(back, _by_token(given), "rows")
    if module.bias is not None:
        yield module.bias, DenseGradients(back.sum(dim=1, dtype=torch.float32))


def _transposed_linear(module: Any, given: Tensor, back: Tensor) -> Iterator[tuple[Tensor, Contribution]]:
    """Yield the gradients of transformers' Conv1D: a linear layer whose weight is stored (in, out)."""
    back = _by_token(back)
    yield module.weight, OuterFactors(_by_token(given), back, "columns")
    yield module.bias, DenseGradients(back.sum(dim=1, dtype=torch.float32))


def _embedding(
    scale: float, module: nn.Embedding, given: Tensor, back: Tensor
) -> Iterator[tuple[Tensor, Contribution]]:
    ids = given.reshape(given.shape[0], -1)
    if module.padding_idx is not None:
        ids = ids.masked_fill(ids == module.padding_idx, -1)
    yield module.weight, RowScatter(ids, _by_token(back) if scale == 1.0 else _by_token(back).float() * scale)


def _layer_norm(module: nn.LayerNorm, given: Tensor, back: Tensor) -> Iterator[tuple[Tensor, Contribution]]:
    if module.weight is not None:
        normed = functional.layer_norm(given, module.normalized_shape, None, None, module.eps)
        yield module.weight, DenseGradients(_by_token(normed.mul_(back)).sum(dim=1, dtype=torch.float32))
    if module.bias is not None:
        yield module.bias, DenseGradients(_by_token(back).sum(dim=1, dtype=torch.float32))


def _rms_norm(module: nn.Module, given: Tensor, back: Tensor) -> Iterator[tuple[Tensor, Contribution]]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    normed = _rms_normed(given, _rms_epsilon(module))
    yield weight, DenseGradients(_by_token(normed.mul_(back)).sum(dim=1))


def _conv2d(module: nn.Conv2d, given: Tensor, back: Tensor) -> Iterator[tuple[Tensor, Contribution]]:
    assert not isinstance(module.padding, str)
    size = (module.kernel_size[0], module.kernel_size[1])
    patches = functional.unfold(given, size, module.dilation, module.padding, module.stride)
    places = back.flatten(2).transpose(1, 2)
    yield module.weight, OuterFactors(places, patches.transpose(1, 2), "rows")
    if module.bias is not None:
        yield module.bias, DenseGradients(places.sum(dim=1, dtype=torch.float32))


def _by_token(values: Tensor) -> Tensor:
    """Bring ``(batch, ..., width)`` to ``(batch, tokens, width)``."""
    return values.reshape(values.shape[0], -1, values.shape[-1])


def _embedding_scale(module: nn.Embedding) -> float | None:
    """Return the number that an embedding multiplies its rows with, as Gemma's does; None where it does otherwise."""
    ids = torch.arange(min(8, module.num_embeddings), device=module.weight.device)
    with torch.no_grad():
        rows = module.weight[ids].float()
        try:
            found = module(ids[None])[0].float()
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            return None
    if found.shape != rows.shape:
        return None
    scale = float((found * rows).sum() / rows.square().sum())
    close = 1e-5 if module.weight.dtype == torch.float32 else 2e-2
    return scale if torch.allclose(found, scale * rows, rtol=close) else None


def _is_transposed_linear(module: nn.Module) -> bool:
    # By name, because importing transformers takes seconds and the model may not come from there.
    names = {name for name, _ in module.named_parameters(recurse=False)}
    return type(module).__name__ == "Conv1D" and names == {"weight", "bias"} and hasattr(module, "nf")


def _rms_epsilon(module: nn.Module) -> float | None:
    for name in ("variance_epsilon", "eps"):
        if isinstance(value := getattr(module, name, None), float):
            return value
    return torch.finfo(torch.float32).eps if isinstance(module, nn.RMSNorm) else None


def _rms_normed(given: Tensor, epsilon: float | None) -> Tensor:
    given = given.float()
    return given * torch.rsqrt(given.square().mean(dim=-1, keepdim=True) + (epsilon or 0.0))


def _is_rms_norm(module: nn.Module) -> bool:
    """Try a module whose only parameter is a vector: is its output the RMS-normalised input times w, or 1 + w?

    Dozens of model families have an RMSNorm of their own; what they compute says more than what they are called.
    """
    weights = dict(module.named_parameters(recurse=False))
    if list(weights) != ["weight"] or weights["weight"].dim() != 1 or next(module.children(), None) is not None:
        return False
    weight, epsilon = weights["weight"].detach(), _rms_epsilon(module)
    if epsilon is None:
        return False
    # Small enough that an epsilon in another place, or of another size, would show.
    example = torch.linspace(-2, 3, 2 * weight.numel(), device=weight.device).reshape(1, 2, -1).mul_(epsilon**0.5)
    try:
        with torch.no_grad():
            found = module(example.to(weight.dtype)).float()
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    normed = _rms_normed(example.to(weight.dtype), epsilon)
    close = 1e-4 if weight.dtype == torch.float32 else 2e-2
    return found.shape == normed.shape and any(
        torch.allclose(found, normed * scale.float(), rtol=close, atol=close) for scale in (weight, 1 + weight)
    )
