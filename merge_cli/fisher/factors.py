"""Per-example gradients of one parameter in factored form, and sums of their squares.

A gradient of a linear layer is a sum of outer products over the tokens of an example. Its square is taken after that
sum, so it must exist for a moment; it does so for one example at a time, in a buffer that is used again, and never for
a whole batch of large matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# Elements of the buffer that one example's gradient goes through. Larger ones fall out of the last level of cache,
# smaller ones make matrix products of too few rows to be fast.
_BUFFER_NUMEL = 2**22
# Up to how many elements the gradients of several examples share one batched product: where calls cost more than work.
_GROUP_NUMEL = {"cpu": 2**17, "cuda": 2**26}

# Share of live tokens from which on all of a range are multiplied.
_MOST_LIVE = 0.75


@dataclass(frozen=True)
class OuterFactors:
    """The gradient of example b is ``sum_t rows[b, t] ⊗ columns[b, t]``.

    Attributes:
        rows: Shape ``(batch, tokens, m)``.
        columns: Shape ``(batch, tokens, n)``.
        returned: Which of the two came back from the losses; where it is zero, tokens need not be multiplied.
    """

    rows: Tensor
    columns: Tensor
    returned: Literal["rows", "columns"]


@dataclass(frozen=True)
class RowScatter:
    """The gradient of example b has ``rows[b, t]`` added at row ``ids[b, t]``, for every t; ids below 0 count nowhere.

    Attributes:
        ids: Shape ``(batch, tokens)``.
        rows: Shape ``(batch, tokens, width)``.
    """

    ids: Tensor
    rows: Tensor


@dataclass(frozen=True)
class DenseGradients:
    """The gradients themselves, shape ``(batch, *parameter.shape)``; for small parameters."""

    gradients: Tensor


Contribution = OuterFactors | RowScatter | DenseGradients


def new_accumulator(shape: torch.Size, device: torch.device) -> Tensor:
    """Return float32 zeros of this shape, a matrix with its longer side outermost in memory.

    Products of few tokens with matrices of few long rows run at half the speed of their transposes.
    """
    if len(shape) == 2 and shape[0] < shape[1]:
        return torch.zeros(shape[1], shape[0], device=device).t()
    return torch.zeros(shape, device=device)


def add_squares(total: Tensor, parts: Sequence[Contribution]) -> None:
    """Add the sum over examples of the squared gradient, which is the sum of ``parts``, to ``total``.

    Args:
        total: Float32, the parameter's shape; changed in place.
        parts: One per use of the parameter in the pass, all of the same examples.
    """
    outers = [_live(part) for part in parts if isinstance(part, OuterFactors)]
    scatters = [part for part in parts if isinstance(part, RowScatter)]
    dense = [part.gradients.float() for part in parts if isinstance(part, DenseGradients)]
    outer, scatter = _joined_outer(outers), _joined_scatter(scatters)
    if dense:
        gradients = sum(dense[1:], dense[0])
        if outer is not None or scatter is not None:
            for example in range(len(gradients)):
                one = gradients[example].clone()
                _add_one(one, outer, scatter, example, 0)
                total.addcmul_(one, one)
        else:
            total.add_(gradients.square().sum(dim=0))
    elif outer is not None:
        _add_matrices(total, outer, scatter)
    elif scatter is not None:
        _add_rows(total, scatter)


def _joined_outer(parts: list[OuterFactors]) -> OuterFactors | None:
    """Join the uses of one matrix, which add up as more tokens of one use do."""
    if len(parts) < 2:
        return parts[0] if parts else None
    rows, columns = [part.rows for part in parts], [part.columns for part in parts]
    return OuterFactors(torch.cat(rows, dim=1), torch.cat(columns, dim=1), parts[0].returned)


def _joined_scatter(parts: list[RowScatter]) -> RowScatter | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return RowScatter(torch.cat([part.ids for part in parts], dim=1), torch.cat([part.rows for part in parts], dim=1))


def _live(outer: OuterFactors) -> OuterFactors:
    """Leave out the tokens from which nothing comes back in any example: padding; all but the first before a pooler."""
    rows, columns = outer.rows.float(), outer.columns.float()
    if rows.device.type == "cpu" and rows.shape[1] > 1:
        # NaN compares unequal to zero, so it stays.
        live = ((rows if outer.returned == "rows" else columns).abs().amax(dim=2) != 0).any(dim=0)
        places = live.nonzero().flatten().tolist()
        first, last = (places[0], places[-1] + 1) if places else (0, 0)
        rows, columns = rows[:, first:last], columns[:, first:last]
        # A range needs no copy; leaving out what is dead inside it does, and pays off where that is much.
        if len(places) < _MOST_LIVE * (last - first):
            rows, columns = rows[:, live[first:last]], columns[:, live[first:last]]
    return OuterFactors(rows, columns, outer.returned)


def _add_matrices(total: Tensor, outer: OuterFactors, scatter: RowScatter | None) -> None:
    matrix = total.view(outer.rows.shape[2], -1) if total.dim() != 2 else total
    left, right = outer.rows, outer.columns
    if scatter is None and not matrix.is_contiguous():
        matrix, left, right = matrix.t(), right, left
    batch, tokens, height = left.shape
    if tokens == 0 and scatter is None:
        return
    if tokens == 1 and scatter is None:
        # The square of a single outer product is the outer product of the squares: one product for the whole batch.
        matrix.addmm_(left[:, 0].square().t(), right[:, 0].square())
        return
    width = right.shape[2]
    group = min(batch, _GROUP_NUMEL.get(left.device.type, _GROUP_NUMEL["cuda"]) // (height * width))
    if group > 1 and scatter is None:
        for start in range(0, batch, group):
            products = torch.bmm(left[start : start + group].transpose(1, 2), right[start : start + group])
            matrix.add_(products.square_().sum(dim=0))
        return
    pieces = -(-height * width // _BUFFER_NUMEL)
    step = -(-height // pieces)
    buffer = torch.empty(step * width, device=left.device)
    for start in range(0, height, step):
        part = matrix[start : start + step]
        one = buffer[: part.shape[0] * width].view(part.shape[0], width)
        for example in range(batch):
            torch.mm(left[example, :, start : start + step].t(), right[example], out=one)
            if scatter is not None:
                _add_one(one, None, scatter, example, start)
            part.addcmul_(one, one)


def _add_one(one: Tensor, outer: OuterFactors | None, scatter: RowScatter | None, example: int, start: int) -> None:
    """Add the gradient of one example to ``one``, which holds rows from ``start`` of the parameter."""
    if outer is not None:
        one.view(outer.rows.shape[2], -1).addmm_(outer.rows[example].t(), outer.columns[example])
    if scatter is not None:
        ids = scatter.ids[example] - start
        inside = (ids >= 0) & (ids < one.shape[0]) & (scatter.ids[example] >= 0)
        one.index_add_(0, ids[inside], scatter.rows[example][inside].float())


def _add_rows(total: Tensor, scatter: RowScatter) -> None:
    """Add squares of gradients that touch few rows, without making the others."""
    height = total.shape[0]
    examples = torch.arange(len(scatter.ids), device=scatter.ids.device)[:, None]
    counted = scatter.ids >= 0
    places, index = torch.unique((examples * height + scatter.ids)[counted], return_inverse=True)
    sums = torch.zeros(len(places), total.shape[1], device=total.device)
    sums.index_add_(0, index, scatter.rows[counted].float())
    total.index_add_(0, places % height, sums.square_())
