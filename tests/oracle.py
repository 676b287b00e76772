"""An oracle: every method once more, as loops over Python's own float64 numbers, straight from the papers' formulas.

It imports neither merge_cli nor torch nor numpy, so that it cannot share a mistake with the code under test. Tests hand
it the numbers that a checkpoint holds and compare.

A vector is a sequence of floats: one tensor, flattened. A model is a mapping from tensor names to vectors; functions
take models where their method looks at more than one tensor, and vectors where it does not. ``weights``, ``densities``
and ``masks`` have one entry per model, in the order of the models. Functions of task vectors take them, not the models:
``deltas = task_vectors(base, models)``. The scale λ, ``lambda`` in recipes, is ``scale`` here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

Vector = Sequence[float]
Model = Mapping[str, Vector]

# --- averaging, task arithmetic ---------------------------------------------------------------------------------------


def passthrough(model: Vector, scale: float = 1.0) -> list[float]:
    """scale · θ."""
    return [scale * x for x in model]


def linear(models: Sequence[Vector], weights: Sequence[float], *, normalize: bool = True) -> list[float]:
    """Σ wᵢ θᵢ, divided by Σ wᵢ with ``normalize``."""
    divisor = sum(weights) if normalize else 1.0
    return [math.fsum(w * x for w, x in zip(weights, xs, strict=True)) / divisor for xs in zip(*models, strict=True)]


def task_vectors(base: Vector, models: Sequence[Vector]) -> list[list[float]]:
    """θᵢ − θ₀, one vector per model."""
    return [[x - b for x, b in zip(model, base, strict=True)] for model in models]


def task_arithmetic(
    base: Vector, deltas: Sequence[Vector], weights: Sequence[float], *, scale: float = 1.0, normalize: bool = False
) -> list[float]:
    """θ₀ + λ Σ wᵢ τᵢ; with ``normalize`` the sum is divided by Σ wᵢ, unless the weights cancel (below 1e-8)."""
    divisor = _divisor(sum(weights)) if normalize else 1.0
    sums = [math.fsum(w * t for w, t in zip(weights, ts, strict=True)) for ts in zip(*deltas, strict=True)]
    return [b + scale * total / divisor for b, total in zip(base, sums, strict=True)]


def _divisor(total: float) -> float:
    return 1.0 if abs(total) < 1e-8 else total


# --- slerp ------------------------------------------------------------------------------------------------------------


def slerp(base: Vector, model: Vector, t: float) -> list[float]:
    """The point at t on the arc from θ₀ to θ₁, the tensor taken as one vector; on the line where there is no arc."""
    first, second = math.hypot(*base), math.hypot(*model)
    along, across = 1 - t, t
    if first > 1e-8 and second > 1e-8:
        cosine = math.fsum(x * y for x, y in zip(base, model, strict=True)) / (first * second)
        if abs(cosine) <= 0.9995:
            angle = math.acos(cosine)
            along, across = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return [along * x + across * y for x, y in zip(base, model, strict=True)]


# --- TIES -------------------------------------------------------------------------------------------------------------


def threshold(magnitudes: Vector, density: float) -> float:
    """The magnitude of the int(density · numel)-th largest entry: 0 where all are kept, infinity where none is.

    Any density but zero keeps the largest entry.
    """
    kept = int(density * len(magnitudes))
    if kept == 0 and density > 0:
        kept = 1
    if kept >= len(magnitudes):
        return 0.0
    return sorted((abs(x) for x in magnitudes), reverse=True)[kept - 1] if kept else math.inf


def keep_largest(deltas: Sequence[Model], densities: Sequence[float], *, scope: str) -> list[dict[str, list[float]]]:
    """Zero all entries below the threshold of their model; every entry at the threshold is kept.

    Args:
        deltas: Whole task vectors.
        densities: Fraction to keep.
        scope: ``tensor`` counts in each tensor, ``model`` in all tensors of a model together.
    """
    result = []
    for delta, density in zip(deltas, densities, strict=True):
        everything = [x for vector in delta.values() for x in vector]
        kept = {}
        for name, vector in delta.items():
            least = threshold(everything if scope == "model" else vector, density)
            kept[name] = [x if abs(x) >= least else 0.0 for x in vector]
        result.append(kept)
    return result


def elected_sign(values: Vector, *, elect: str, zero_sum: str) -> int:
    """The sign of one element: of the sum of the models' values (``mass``) or of the number per side (``count``)."""
    votes = math.fsum(values) if elect == "mass" else sum(_sign(x) for x in values)
    if votes == 0:
        return 1 if zero_sum == "plus" else 0
    return _sign(votes)


def disjoint_merge(
    rows: Sequence[Vector], weights: Sequence[float], *, normalize: bool, elect: str = "mass", zero_sum: str = "plus"
) -> list[float]:
    """Weigh the rows, elect a sign per element, and sum the entries that have it.

    With ``normalize`` the sum is divided by the weights of the models that agree: 1 where nobody does, or they cancel.
    """
    merged = []
    for entries in zip(*rows, strict=True):
        values = [w * x for w, x in zip(weights, entries, strict=True)]
        sign = elected_sign(values, elect=elect, zero_sum=zero_sum)
        agree = [i for i, value in enumerate(values) if value * sign > 0]
        divisor = _divisor(math.fsum(weights[i] for i in agree)) if normalize else 1.0
        merged.append(math.fsum(values[i] for i in agree) / divisor)
    return merged


def ties(
    base: Model,
    deltas: Sequence[Model],
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    scale: float = 1.0,
    normalize: bool = True,
    trim: str = "tensor",
    elect: str = "mass",
    zero_sum: str = "plus",
) -> dict[str, list[float]]:
    """θ₀ + λ times the disjoint merge of the trimmed task vectors; weights enter before the election."""
    trimmed = keep_largest(deltas, densities, scope=trim)
    result = {}
    for name, vector in base.items():
        merged = disjoint_merge(
            [delta[name] for delta in trimmed], weights, normalize=normalize, elect=elect, zero_sum=zero_sum
        )
        result[name] = [b + scale * m for b, m in zip(vector, merged, strict=True)]
    return result


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


# --- DARE -------------------------------------------------------------------------------------------------------------


def dare(
    deltas: Sequence[Vector],
    masks: Sequence[Sequence[int]],
    densities: Sequence[float],
    *,
    rescale: bool | str = True,
) -> list[list[float]]:
    """The task vectors of one tensor with dropped entries, one vector per model.

    Args:
        deltas: Task vectors of one tensor.
        masks: 1 where an entry is kept, 0 where it is dropped; see :func:`keep_mask`.
        densities: Probability of keeping, 1 − p.
        rescale: True divides survivors by the density, ``"l1"`` restores the tensor's L1 norm, False leaves them.
    """
    result = []
    for delta, mask, density in zip(deltas, masks, densities, strict=True):
        if len(delta) == 1 and density > 0:
            # A single entry is never dropped, so there is nothing to make up for.
            result.append(list(delta))
            continue
        if density > 0 and not any(mask):
            # Of several that would all be dropped the largest stays.
            largest = max(range(len(delta)), key=lambda i: (abs(delta[i]), -i))
            mask = [int(i == largest) for i in range(len(delta))]
        kept = [x if keep else 0.0 for x, keep in zip(delta, mask, strict=True)]
        factor = 1.0
        if rescale == "l1":
            after = math.fsum(abs(x) for x in kept)
            factor = math.fsum(abs(x) for x in delta) / after if after > 0 else 1.0
        elif rescale and density > 0:
            factor = 1 / density
        result.append([x * factor for x in kept])
    return result


def dare_linear(
    base: Vector,
    deltas: Sequence[Vector],
    masks: Sequence[Sequence[int]],
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    scale: float = 1.0,
    normalize: bool = False,
    rescale: bool | str = True,
) -> list[float]:
    """Task arithmetic of the dropped and rescaled task vectors."""
    return task_arithmetic(
        base, dare(deltas, masks, densities, rescale=rescale), weights, scale=scale, normalize=normalize
    )


def dare_ties(
    base: Vector,
    deltas: Sequence[Vector],
    masks: Sequence[Sequence[int]],
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    scale: float = 1.0,
    normalize: bool = False,
    rescale: bool | str = True,
    elect: str = "mass",
    zero_sum: str = "plus",
) -> list[float]:
    """θ₀ + λ times the disjoint merge of the dropped and rescaled task vectors, without trimming."""
    rows = dare(deltas, masks, densities, rescale=rescale)
    merged = disjoint_merge(rows, weights, normalize=normalize, elect=elect, zero_sum=zero_sum)
    return [b + scale * m for b, m in zip(base, merged, strict=True)]


def keep_mask(parts: Sequence[str | int], numel: int, density: float, *, start: int = 0) -> list[int]:
    """The mask of the vector that is keyed by ``parts`` (seed, model, tensor), elements ``start`` and following.

    An element draws 40 bits, and is kept where they are below ``density · 2⁴⁰``: first a byte of a word that it shares
    with three neighbours, then a word of its own. Beyond 2³² elements the key is another one.
    """
    limit = divmod(round(density * 2**40), 2**32)
    return [int(drawn_bits(parts, index) < limit) for index in range(start, start + numel)]


def drawn_bits(parts: Sequence[str | int], index: int) -> tuple[int, int]:
    """The first eight and the other 32 bits that an element draws."""
    key = _key(*parts)
    epoch, low = divmod(index, 2**32)
    first, second = _key(*key, epoch) if epoch else key
    own_first, own_second = _key(first, second, "own")
    shared = fmix32(low // 4 ^ first, second)
    return shared >> 8 * (low % 4) & 255, fmix32(low ^ own_first, own_second)


def random_word(parts: Sequence[str | int], index: int) -> int:
    """The unsigned 32-bit word of an index below 2³²."""
    first, second = _key(*parts)
    return fmix32(index ^ first, second)


def fmix32(word: int, key: int = 0) -> int:
    """The finalizer of MurmurHash3 on 32-bit words (Austin Appleby, public domain), with a key between its halves."""
    word ^= word >> 16
    word = word * 0x85EBCA6B % 2**32
    word ^= key
    word ^= word >> 13
    word = word * 0xC2B2AE35 % 2**32
    return word ^ word >> 16


def _key(*parts: str | int) -> tuple[int, int]:
    digest = blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    whole = int.from_bytes(digest, "little")
    return whole % 2**32, whole >> 32


# --- Fisher averaging -------------------------------------------------------------------------------------------------


def fisher(
    models: Sequence[Model],
    fishers: Sequence[Model],
    weights: Sequence[float],
    *,
    normalize_fisher: bool = True,
    fisher_floor: float = 1e-6,
    favour: int | str = 0,
    base: Model | None = None,
    base_fisher: Model | None = None,
) -> dict[str, list[float]]:
    """Σ cᵢ φᵢ θᵢ / Σ cᵢ φᵢ with φᵢ = max(Fᵢ, floor · mean of Fᵢ) and cᵢ = wᵢ / ‖Fᵢ‖₂, mean and norm over the model.

    Args:
        models: Whole models.
        fishers: Their Fisher diagonals.
        weights: λᵢ of the paper.
        normalize_fisher: Whether to divide by the norm; cᵢ = wᵢ otherwise.
        fisher_floor: Relative to the mean.
        favour: Position of the model returned where no Fisher says anything; ``"none"``: the weighted mean.
        base: Takes part with weight 1 where given.
        base_fisher: Its Fisher diagonal.
    """
    models, fishers, weights = list(models), list(fishers), list(weights)
    if base is not None and base_fisher is not None:
        models.append(base)
        fishers.append(base_fisher)
        weights.append(1.0)
    floors, factors = [], []
    for diagonal, weight in zip(fishers, weights, strict=True):
        everything = [x for vector in diagonal.values() for x in vector]
        norm = math.hypot(*everything)
        floors.append(fisher_floor * math.fsum(everything) / len(everything))
        factors.append(weight / norm if normalize_fisher and norm > 0 else weight)
    result = {}
    for name in models[0]:
        merged = []
        for xs, fs in zip(_transposed(models, name), _transposed(fishers, name), strict=True):
            phi = [c * max(f, least) for c, f, least in zip(factors, fs, floors, strict=True)]
            if sum(fs) > 0 and sum(phi) > 0:
                merged.append(math.fsum(p * x for p, x in zip(phi, xs, strict=True)) / math.fsum(phi))
            elif isinstance(favour, int):
                merged.append(xs[favour])
            else:
                merged.append(math.fsum(w * x for w, x in zip(weights, xs, strict=True)) / math.fsum(weights))
        result[name] = merged
    return result


def _transposed(models: Sequence[Model], name: str) -> list[tuple[float, ...]]:
    return list(zip(*(model[name] for model in models), strict=True))


# --- gradient matching ------------------------------------------------------------------------------------------------


def curvature(fisher: Vector, examples: float, *, scale: str = "sum") -> list[float]:
    """H = N·F on the scale of the summed loss (``sum``), or H = F, which counts all data sets alike (``mean``)."""
    return [(examples if scale == "sum" else 1.0) * f for f in fisher]


@dataclass(frozen=True)
class Scales:
    """What gradient matching takes from the whole model.

    Attributes:
        prior: δ.
        floors: Least curvature of each model.
        anchors: kᵢ, the share of the base's curvature that held each model.
        gratio: −⟨gᵢ, τᵢ⟩ / ⟨τᵢ, H₀ τᵢ⟩ of each model, of which kᵢ is the part in [0, 1]; empty without gradients.
    """

    prior: float
    floors: list[float]
    anchors: list[float]
    gratio: list[float]


def matching_scales(
    curvatures: Sequence[Model],
    *,
    base_curvature: Model | None = None,
    prior_precision: float | str = 0.0,
    curvature_floor: float = 0.0,
    anchor: str = "base",
    weights: Sequence[float] = (),
    deltas: Sequence[Model] = (),
    gradients: Sequence[Model] = (),
) -> Scales:
    """Turn relative parameters of gradient matching into numbers, by means over the whole model.

    Args:
        curvatures: Hᵢ.
        base_curvature: H₀ without the prior.
        prior_precision: δ, or ``"auto"``: 0.01 times the mean of H₀; where that is zero the mean of all Hᵢ.
        curvature_floor: Relative to the mean of each Hᵢ.
        anchor: ``"base"``, ``"none"``, ``"measured"``, or ``"auto"``: by the gradients, where there are none as with
            base; those of models that are added are divided by their sum, each times its weight, where that exceeds 1.
        weights: αᵢ, for ``auto``.
        deltas: Task vectors, for ``auto``.
        gradients: gᵢ, for ``auto``.
    """
    means = [_mean(curvature) for curvature in curvatures]
    base_mean = _mean(base_curvature) if base_curvature is not None else 0.0
    if isinstance(prior_precision, str):
        prior = 0.01 * base_mean if base_mean > 0 else math.fsum(means) / len(means)
    else:
        prior = prior_precision
    gratio = []
    if anchor == "auto":
        for delta, gradient in zip(deltas, gradients, strict=bool(gradients)):
            held = math.fsum(
                (prior + (base_curvature[name][j] if base_curvature is not None else 0.0)) * x * x
                for name, vector in delta.items()
                for j, x in enumerate(vector)
            )
            pull = math.fsum(x * g for name in delta for x, g in zip(delta[name], gradient[name], strict=True))
            gratio.append(-pull / held if held > 0 else 1.0)
    anchors = [min(max(share, 0.0), 1.0) for share in gratio]
    if not gratio:
        anchors = [1.0 if anchor in ("base", "auto") else 0.0] * len(means)
    if anchor == "auto":
        together = math.fsum(max(weight, 0.0) * k for weight, k in zip(weights, anchors, strict=True))
        added = [weight > 0 for weight in weights]
        anchors = [k / max(together, 1.0) if each else k for k, each in zip(anchors, added, strict=True)]
    return Scales(prior, [curvature_floor * mean for mean in means], anchors, gratio)


def _mean(model: Model) -> float:
    everything = [x for vector in model.values() for x in vector]
    return math.fsum(everything) / len(everything)


def gradient_matching(
    base: Vector,
    deltas: Sequence[Vector],
    curvatures: Sequence[Vector],
    weights: Sequence[float],
    scales: Scales,
    *,
    base_curvature: Vector | None = None,
    gradients: Sequence[Vector] | None = None,
    kappa: float = 0.1,
    box: bool = False,
) -> list[float]:
    """θ₀ + Σ αᵢ (Hᵢ τᵢ − gᵢ) / (H₀ + Σ αⱼ Hⱼ), per element, with H₀ the base's curvature plus the prior precision.

    The gradient gᵢ of the model's summed loss is −kᵢ H₀ τᵢ, with kᵢ = 1 where fine-tuning was held by the base's
    curvature (equation 12 of the paper) and 0 where it ran to the optimum, or measured for each element. Where a
    weight is negative the denominator is kept at κ H₀ or more. Without any curvature the rule is task arithmetic with
    weights kᵢ αᵢ, its limit for a small prior.

    Args:
        base: θ₀.
        deltas: Task vectors τᵢ.
        curvatures: Hᵢ on the sum scale; see :func:`curvature`.
        weights: αᵢ; negative to remove a task.
        scales: See :func:`matching_scales`.
        base_curvature: H₀ without the prior; zero where not given.
        gradients: gᵢ of each element, for the anchor ``measured``.
        kappa: κ.
        box: Whether to keep each step between the least and the largest of zero and the task vectors, those of
            removed tasks turned around.
    """
    merged = []
    for j, origin in enumerate(base):
        h0 = (base_curvature[j] if base_curvature is not None else 0.0) + scales.prior
        h = [max(each[j], least) for each, least in zip(curvatures, scales.floors, strict=True)]
        precision = _guarded_precision(h0, h, weights, kappa)
        step = 0.0
        for i, weight in enumerate(weights):
            tau, k = deltas[i][j], scales.anchors[i]
            gradient = -k * h0 * tau if gradients is None else gradients[i][j]
            step += weight * ((h[i] * tau - gradient) / precision if precision > 0 else k * tau)
        if box:
            towards = [0.0] + [_sign(weight) * delta[j] for weight, delta in zip(weights, deltas, strict=True)]
            step = min(max(step, min(towards)), max(towards))
        merged.append(origin + step)
    return merged


def matched_precision(
    curvatures: Sequence[Vector],
    weights: Sequence[float],
    scales: Scales,
    *,
    base_curvature: Vector | None = None,
    kappa: float = 0.1,
) -> list[float]:
    """The merged model's posterior precision, the denominator of :func:`gradient_matching`."""
    result = []
    for j in range(len(curvatures[0])):
        h0 = (base_curvature[j] if base_curvature is not None else 0.0) + scales.prior
        h = [max(each[j], least) for each, least in zip(curvatures, scales.floors, strict=True)]
        result.append(_guarded_precision(h0, h, weights, kappa))
    return result


def _guarded_precision(h0: float, h: Sequence[float], weights: Sequence[float], kappa: float) -> float:
    precision = h0 + math.fsum(w * each for w, each in zip(weights, h, strict=True))
    return max(precision, kappa * h0) if min(weights) < 0 else precision
