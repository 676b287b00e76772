"""Planning: from a recipe and headers to a plan, without tensor data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from merge_cli.checkpoint import Checkpoint, DType, Files, Layout, Source, parse_float_dtype, plan_shards
from merge_cli.errors import RecipeError
from merge_cli.methods import find_method, find_step
from merge_cli.methods.contract import COMPANIONS, Input, Method, Params, Scope
from merge_cli.plan.blocks import Blocks, bytes_per_element, choose_blocks, unit_of
from merge_cli.plan.common_names import with_common_names
from merge_cli.plan.companions import FISHER, check_kinds, check_shapes, posterior_prior
from merge_cli.plan.configs import check_model_types
from merge_cli.plan.inputs import Inputs, resolve_inputs
from merge_cli.plan.labels import check_labels
from merge_cli.plan.matching import TensorMatch, match_tensors
from merge_cli.plan.model import MergePlan, PlannedInput, TensorTask
from merge_cli.plan.outputs import decide_outputs
from merge_cli.plan.parameters import ParameterLookup
from merge_cli.plan.side_files import collect_side_files, output_config
from merge_cli.plan.tying import with_ties
from merge_cli.plan.variants import (
    Variant,
    VariantTasks,
    check_measures,
    common_scales,
    decide_variants,
    params_of,
    tasks_of,
)
from merge_cli.plan.warnings import plan_notes, plan_warnings
from merge_cli.process import gc_paused
from merge_cli.recipe import Recipe, check_recipe

_DEFAULT_MEMORY = 512 * 2**20
_DEFAULT_SHARD = 5 * 10**9


@gc_paused()
def build_plan(
    recipe: Recipe,
    *,
    memory: int = _DEFAULT_MEMORY,
    threads: int | None = None,
    shard_size: int = _DEFAULT_SHARD,
    device: str = "auto",
    allow_nonfinite: bool = False,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    files: Files | None = None,
) -> MergePlan:
    """Decide everything about a merge.

    With variants, one merge reads its inputs once and writes a merged model for each into a folder of its own:
    ``build_plan(recipe, variants={"weak": {"lambda": 0.3}, "strong": {"lambda": 1.0}})``. One result is held at a time.

    Args:
        recipe: What is asked for.
        memory: Budget in bytes for all buffers together.
        threads: Workers; default: one per processor that this process may use.
        shard_size: Largest size of an output file in bytes.
        device: ``auto``, ``cpu`` or ``cuda[:N]``.
        allow_nonfinite: Whether inputs may hold NaN or infinity.
        variants: Name, which is also that of a folder -> parameters that count in place of the recipe's. A method that
            measures before it merges does so once for variants that agree in what the measure depends on.
        files: The system calls to use.

    Raises:
        RecipeError: If the recipe asks for what cannot be.
        CheckpointError: If a checkpoint is unusable or does not fit the others.
        ResourceError: If the budget is too small.
    """
    # One made in Python, and not loaded, was not checked yet.
    recipe = check_recipe(recipe)
    method = find_method(recipe.merge_method)
    decided = decide_variants(recipe, variants)
    inputs = _inputs(recipe, method, decided, files or Files())
    names = match_tensors(recipe, inputs)
    check_labels(inputs.parts, [name for name in names.order if name in names.merged], recipe.exclude)
    check_shapes(inputs, sorted(names.merged))
    steps = tuple((name, find_step(name).params.model_validate(given)) for name, given in recipe.prepare.items())
    layout = _layout(recipe, inputs, names, shard_size)
    params = params_of(recipe, decided, inputs, names, layout, method)
    tasks = tuple(_tasks(recipe, inputs, names, layout, method, params))
    merged = [task for task in tasks if task.copied is None]
    of_each = tasks_of(decided, merged, params)
    check_measures(of_each, method)
    blocks = _blocks(inputs, method, of_each, memory, threads or len(os.sched_getaffinity(0)))
    scales, base_scale = common_scales(of_each, inputs, method)
    beside = collect_side_files(inputs)
    return MergePlan(
        recipe=recipe,
        inputs=tuple(PlannedInput(role, each) for role, each in inputs.by_role()),
        needs=inputs.needs,
        steps=steps,
        tasks=tasks,
        outputs=decide_outputs(recipe, method, of_each, layout, shard_size),
        scales=scales,
        base_scale=base_scale,
        posteriors=tuple(posterior_prior(fisher) for fisher in inputs.companions.get(FISHER, ())),
        block_numel=blocks.numel,
        threads=blocks.threads,
        memory_bytes=memory,
        buffer_bytes=blocks.buffer_bytes,
        device=device,
        allow_nonfinite=allow_nonfinite,
        config=output_config(inputs, names, _main_dtype(tasks)),
        side_files=beside.files,
        side_texts=beside.texts,
        warnings=(*plan_warnings(recipe, inputs, names, method, of_each), *beside.warnings),
        notes=(*plan_notes(recipe, inputs, names, of_each), *beside.notes),
    )


def _inputs(recipe: Recipe, method: Method, variants: Sequence[Variant], files: Files) -> Inputs:
    """Open all that the recipe names and the method reads, in any variant."""
    needs = []
    for variant in variants:
        settings = ParameterLookup(variant.recipe, method, variant.recipe.models).settings()
        needs.append(_needs(variant.recipe, method, settings))
        if (Input.BASE in needs[-1]) != (Input.BASE in needs[0]):
            raise RecipeError(
                f"{variant.recipe.origin.name}: whether the base is merged too is not as in variant "
                f"'{variants[0].name}', and what is copied to all variants depends on it",
                hint="merge it on its own",
            )
    inputs = resolve_inputs(recipe, method, frozenset[Input]().union(*needs), files)
    check_kinds(inputs)
    check_model_types(inputs.models, inputs.base)
    return with_ties(with_common_names(inputs), recipe.exclude, files)


def _needs(recipe: Recipe, method: Method, settings: Params) -> frozenset[Input]:
    """Return what the method reads, given what the recipe names."""
    entries = [entry for entry in recipe.models if entry.model != recipe.base_model]
    given: set[str] = set()
    for each in COMPANIONS:
        if recipe.base_companion(each.kind) is not None:
            given |= each.base_inputs
        if all(entry.companion(each.kind) is not None for entry in entries):
            given |= each.inputs
    try:
        return method.needs(settings, frozenset(given))  # type: ignore[arg-type]
    except ValueError as error:
        raise RecipeError(f"{recipe.origin.at('merge_method')}: {error}") from error


def _layout(recipe: Recipe, inputs: Inputs, names: TensorMatch, shard_size: int) -> Layout:
    """Lay out the output in the order in which the reference is stored, so that reads and writes both go forward."""
    chosen = recipe.out_dtype or recipe.dtype
    wanted = parse_float_dtype(chosen) if chosen else None

    def entries() -> Iterator[tuple[str, DType, tuple[int, ...]]]:
        for name in names.order:
            stored = names.copied.get(name) or inputs.reference.find(name)
            assert stored is not None
            yield name, wanted if wanted and stored.dtype.is_float else stored.dtype, stored.shape

    if not names.order:
        raise RecipeError(f"{recipe.origin.at('exclude')}: nothing is left to write")
    return plan_shards(entries(), shard_bytes=shard_size, metadata={"format": "pt"})


def _tasks(
    recipe: Recipe,
    inputs: Inputs,
    names: TensorMatch,
    layout: Layout,
    method: Method,
    params: Mapping[str, Sequence[Params]],
) -> Iterator[TensorTask]:
    for shard in layout.shards:
        for place in shard.tensors:
            name = place.name
            if name in names.copied:
                yield TensorTask(place, copied=names.copied[name], twins=names.twins.get(name, ()))
                continue
            models = _of_each(inputs.models, name)
            if all(map(method.copies, params[name])) and not recipe.prepare:
                yield TensorTask(place, copied=models[0])
                continue
            yield TensorTask(
                place,
                models=models,
                base=_of_each([inputs.base], name)[0] if inputs.base and inputs.uses_base else None,
                companions={kind: _of_each(group, name) for kind, group in inputs.companions.items()},
                base_companions={kind: _of_each([each], name)[0] for kind, each in inputs.base_companions.items()},
                params=params[name][0],
                scope=max((method.scope(own, place.shape) for own in params[name]), key=list(Scope).index),
            )


def _of_each(checkpoints: Iterable[Checkpoint], name: str) -> tuple[Source, ...]:
    """Return the tensor of this name in each checkpoint; that they fit has been checked."""
    found = [checkpoint.find(name) for checkpoint in checkpoints]
    return tuple(tensor for tensor in found if tensor is not None)


def _blocks(inputs: Inputs, method: Method, variants: Sequence[VariantTasks], memory: int, threads: int) -> Blocks:
    n = len(inputs.models)
    each = {id(task.params): task.params for _, tasks in variants for task in tasks}
    needed = [method.workspace(params, n) for params in each.values()] if method.workspace else []
    return choose_blocks(
        each=bytes_per_element(inputs.needs, n, max(needed, default=None)),
        units={unit_of(task.scope, task.target.shape) for task in variants[0][1]},
        n=n,
        memory=memory,
        threads=threads,
    )


def _main_dtype(tasks: tuple[TensorTask, ...]) -> DType | None:
    """Return the floating-point dtype that most bytes of the output have."""
    sizes: dict[DType, int] = {}
    for task in tasks:
        if task.target.dtype.is_float:
            sizes[task.target.dtype] = sizes.get(task.target.dtype, 0) + task.target.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None
