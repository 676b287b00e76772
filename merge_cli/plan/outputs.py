"""Outputs: the merged models and whatever else a merge writes, each a checkpoint in a folder of its own.

What writes, resumes, hashes, reports or verifies goes over this table, so that another row needs no other edit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from merge_cli.checkpoint import DType, Layout, plan_shards
from merge_cli.checkpoint.layout import Shard
from merge_cli.errors import RecipeError
from merge_cli.methods.contract import Method, Params
from merge_cli.recipe import Recipe

if TYPE_CHECKING:
    from merge_cli.plan.model import TensorTask
    from merge_cli.plan.variants import VariantTasks

MERGED = "merged"
_PRECISION = "precision"


@dataclass(frozen=True)
class Output:
    """One checkpoint that a merge writes.

    Attributes:
        name: What it is called; a merge has one output of each name.
        folder: Where it goes, as seen from the folder of the merge; empty for that folder itself.
        layout: Its weight files.
        emitted: The name under which the method emits it, see :meth:`Block.emit`; empty for a merged model, which is
            what the method returns.
        beside: The merged model with which it is emitted; empty for a merged model.
        given: Parameters that it was given in place of the recipe's, as plain data; see :mod:`merge_cli.plan.variants`.
        params: Tensor -> the method's parameters for it, where they are not those of the task.
        config: Its ``config.json``; that of a merged model is the plan's.
        diagnostics: Which of the method's diagnostics its configuration gets too.
    """

    name: str
    folder: str
    layout: Layout
    emitted: str = ""
    beside: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Params] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    diagnostics: tuple[str, ...] = ()

    @property
    def is_merged(self) -> bool:
        """Tell whether it is a merged model, with configuration and tokenizer."""
        return not self.emitted

    @property
    def prefix(self) -> str:
        """Prefix of a sentence about it; nothing where it is the only merged model."""
        return f"variant '{self.name}': " if self.folder else ""

    def params_of(self, task: TensorTask) -> Params | None:
        """Return the method's parameters for a tensor; None where it is copied."""
        return self.params.get(task.target.name, task.params)

    @property
    def shards(self) -> Iterator[tuple[str, Shard]]:
        """Its weight files, each behind its name as seen from the folder of the merge."""
        return ((self.within(shard.file), shard) for shard in self.layout.shards)

    def within(self, file: str) -> str:
        """Return the name of one of its files as seen from the folder of the merge."""
        return f"{self.folder}/{file}" if self.folder else file


def decide_outputs(
    recipe: Recipe,
    method: Method,
    variants: Sequence[VariantTasks],
    layout: Layout,
    shard_size: int,
) -> tuple[Output, ...]:
    """Return the outputs that a recipe asks for.

    Args:
        recipe: What is asked for.
        method: Its method.
        variants: Of the recipe; each gives a merged model.
        layout: The files of a merged model.
        shard_size: Largest size of a file in bytes.

    Raises:
        RecipeError: If the method does not give an output that the recipe asks for.
    """
    precision = _precision(recipe, method, variants[0][1], shard_size) if recipe.save_precision else None
    outputs = []
    for i, (variant, tasks) in enumerate(variants):
        own = {task.target.name: task.params for task in tasks if task.params is not None} if i else {}
        outputs.append(Output(variant.name or MERGED, variant.name, layout, given=variant.given, params=own))
        if precision is not None:
            # Named as the folder is, below that of the model that it belongs to.
            folder = outputs[-1].within(precision.folder)
            outputs.append(replace(precision, name=folder, folder=folder, beside=outputs[-1].name))
    return tuple(outputs)


def _precision(recipe: Recipe, method: Method, merged: Sequence[TensorTask], shard_size: int) -> Output:
    """Return the output for the posterior precision: a float32 tensor for each that is merged."""
    if _PRECISION not in method.emits:
        raise RecipeError(
            f"{recipe.origin.at('save_precision')}: {recipe.merge_method} has no posterior precision",
            hint="gradient_matching has one",
        )
    metadata = {"format": "pt", "kind": "precision", "reduction": "sum", "train_examples": "1"}
    tensors = [(task.target.name, DType.F32, task.target.shape) for task in merged]
    return Output(
        name=_PRECISION,
        folder=_PRECISION,
        layout=plan_shards(tensors, shard_bytes=shard_size, metadata=metadata),
        emitted=_PRECISION,
        config={"kind": "precision"},
        diagnostics=("prior_precision",),
    )


def output_decisions(outputs: Sequence[Output], tasks: Sequence[TensorTask]) -> dict[str, Any]:
    """Return what of the outputs decides their bytes, by a name for each that a user knows."""
    headers = [[hashlib.sha256(shard.header).hexdigest() for shard in each.layout.shards] for each in outputs]
    named = [output for output in outputs if output.is_merged and output.folder]
    variants = {output.name: _params_of_all(output, tasks) for output in named}
    return {
        "save_precision": any(output.emitted == _PRECISION for output in outputs),
        "layout": sha256_of(headers),
        "parameters": _params_of_all(outputs[0], tasks),
        **({"variant": variants} if variants else {}),
    }


def _params_of_all(output: Output, tasks: Sequence[TensorTask]) -> str:
    """Return the SHA-256 of the parameters of every tensor."""
    each = ((task.target.name, output.params_of(task)) for task in tasks)
    return sha256_of([(name, params.model_dump() if params else None) for name, params in each])


def sha256_of(content: Any) -> str:
    """Return the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode("utf-8")).hexdigest()
