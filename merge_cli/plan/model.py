"""The plan: every decision of a merge and no tensor data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from merge_cli.checkpoint import Checkpoint, Extent, FileIdentity, Layout, Source
from merge_cli.methods import find_method, find_step
from merge_cli.methods.contract import Input, Method, Params, Scope, Step
from merge_cli.plan.blocks import block_numel, unit_of
from merge_cli.plan.outputs import Output, output_decisions, sha256_of
from merge_cli.plan.roles import BASE, Role
from merge_cli.plan.sharing import MeasureSharing
from merge_cli.recipe import Recipe


@dataclass(frozen=True, slots=True)
class TensorTask:
    """The task of making one output tensor.

    Attributes:
        target: Name, dtype, shape and position in the output.
        copied: The stored tensor to copy; None for a tensor that is merged. The fields below then count.
        models: The tensor in every model.
        base: The tensor in the base, None where the method does not read it.
        companions: Kind -> what each model's companion holds of it, of the kinds that the method reads.
        base_companions: Kind -> what the base's holds.
        params: The method's parameters for it, in the first of the merged models.
        scope: What the method must see of it at once.
        twins: The tensor in what else is merged, of one that is copied because no arithmetic makes sense on it. They
            are only compared with it.
    """

    target: Extent
    copied: Source | None = None
    models: tuple[Source, ...] = ()
    base: Source | None = None
    companions: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    base_companions: Mapping[str, Source] = field(default_factory=dict)
    params: Params | None = None
    scope: Scope = Scope.ELEMENT
    twins: tuple[Source, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """Everything that is read for it, once each."""
        if self.copied is not None:
            return (self.copied,)
        base = (self.base,) if self.base is not None else ()
        beside = (tensor for group in self.companions.values() for tensor in group)
        return (*self.models, *base, *self.base_companions.values(), *beside)


@dataclass(frozen=True)
class PlannedInput:
    """One checkpoint that is read, and what it is to the merge."""

    role: Role
    checkpoint: Checkpoint

    @property
    def label(self) -> str:
        """The name in the recipe."""
        return self.checkpoint.label

    @property
    def root(self) -> Path:
        """Folder of the checkpoint, or its only file."""
        return self.checkpoint.root

    @property
    def files(self) -> tuple[FileIdentity, ...]:
        """Its weight files."""
        return self.checkpoint.files

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data."""
        return self.checkpoint.nbytes


@dataclass(frozen=True)
class MergePlan:
    """A merge, decided.

    Attributes:
        recipe: What was asked for.
        inputs: What is read.
        needs: What the method and the steps read of a tensor.
        steps: The preparing steps in order, with their parameters.
        tasks: One per output tensor, in the order of the output.
        outputs: What is written; a merged model first, and behind each what else the method gives with it.
        scales: What each model's Fisher is multiplied with to give its curvature, the number of examples.
        base_scale: The same for the base's Fisher.
        posteriors: For each model whose Fisher file is a posterior precision, the prior precision that is part of it;
            None for the others.
        block_numel: Elements that blocks come close to; see :meth:`block_of`.
        threads: Workers.
        memory_bytes: Budget for all buffers together.
        buffer_bytes: What the buffers will take.
        device: ``auto``, ``cpu`` or ``cuda[:N]``.
        allow_nonfinite: Whether inputs may hold NaN or infinity.
        config: The output's ``config.json``; empty where no input has one.
        side_files: Name -> file that is copied beside the weights; a name may lie in a folder.
        side_texts: Name -> text of a file that is written beside them.
        warnings: What a user should know, in sentences.
        notes: What was set right or is as the recipe says, in sentences; never an error.
    """

    recipe: Recipe
    inputs: tuple[PlannedInput, ...]
    needs: frozenset[Input]
    steps: tuple[tuple[str, Params], ...]
    tasks: tuple[TensorTask, ...]
    outputs: tuple[Output, ...]
    scales: tuple[float, ...]
    base_scale: float
    posteriors: tuple[float | None, ...]
    block_numel: int
    threads: int
    memory_bytes: int
    buffer_bytes: int
    device: str
    allow_nonfinite: bool
    config: Mapping[str, Any]
    side_files: Mapping[str, Path]
    side_texts: Mapping[str, str]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to another process: what was decided, not what has been derived from it."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def labels(self) -> tuple[str, ...]:
        """The names by which the recipe calls its models, in order."""
        return tuple(each.label for each in self.inputs if each.role.is_model and each.role != BASE)

    @cached_property
    def by_role(self) -> Mapping[Role, Checkpoint]:
        """Return each checkpoint by what it is to the merge."""
        return {each.role: each.checkpoint for each in self.inputs}

    @cached_property
    def method(self) -> Method:
        """The method."""
        return find_method(self.recipe.merge_method)

    @cached_property
    def prepared_by(self) -> tuple[tuple[Step, Params], ...]:
        """The preparing steps."""
        return tuple((find_step(name), params) for name, params in self.steps)

    @property
    def n(self) -> int:
        """Number of models, the base not counted where it is only a base."""
        return len(next((task.models for task in self.tasks if task.copied is None), ()))

    @property
    def merged(self) -> tuple[TensorTask, ...]:
        """The tasks that go through the method."""
        return tuple(task for task in self.tasks if task.copied is None)

    def block_of(self, task: TensorTask) -> int:
        """Return the elements of a tensor's blocks, whole rows or all of it where the method must see these."""
        return block_numel(unit_of(task.scope, task.target.shape), task.target.numel, self.block_numel)

    @cached_property
    def read_bytes(self) -> int:
        """Bytes read for blocks that are merged or copied; measures read their inputs once more per round."""
        return sum(source.nbytes for task in self.tasks for source in task.sources)

    @cached_property
    def variants(self) -> tuple[Output, ...]:
        """The outputs that are merged models, usually one."""
        return tuple(output for output in self.outputs if output.is_merged)

    @property
    def weight_files(self) -> list[str]:
        """The weight files of the merged models, as seen from the folder of the merge."""
        return [name for output in self.variants for name, _ in output.shards]

    @property
    def input_files(self) -> list[FileIdentity]:
        """The weight files of all inputs."""
        return [file for each in self.inputs for file in each.files]

    @cached_property
    def sharing(self) -> MeasureSharing:
        """Groups of merged models that share what the method measures."""
        return MeasureSharing(self.method, self.variants, self.merged)

    @property
    def layout(self) -> Layout:
        """The files of a merged model: those of each have the same names, headers and sizes."""
        return self.outputs[0].layout

    @property
    def has_variants(self) -> bool:
        """Tell whether there are several merged models, or one that was asked for as a variant, each with a name."""
        return bool(self.outputs[0].folder)

    @cached_property
    def written_bytes(self) -> int:
        """Bytes of the weight files of all merged models."""
        return sum(output.layout.nbytes for output in self.variants)

    @cached_property
    def emitted(self) -> Mapping[tuple[str, str], Output]:
        """Targets of emitted values: a merged model's name, and the emitted name -> output."""
        return {(output.beside, output.emitted): output for output in self.outputs if not output.is_merged}

    @cached_property
    def decisions(self) -> Mapping[str, Any]:
        """Everything that decides the output's bytes, by a name for each that a user knows.

        Threads, memory and where the inputs lie are not among it; large parts are given by their SHA-256.
        """
        every = dict.fromkeys(file for each in self.inputs for file in each.files)
        number = {file.path: i for i, file in enumerate(every)}
        return {
            "method": f"{self.recipe.merge_method} {self.method.version}",
            "steps": [[name, params.model_dump(), find_step(name).version] for name, params in self.steps],
            "seed": self.recipe.seed,
            "examples": [self.scales, self.base_scale, self.posteriors],
            "input": {
                f"{each.role} ({each.label}, {file.path.name})": file.content
                for each in self.inputs
                for file in each.files
            },
            **output_decisions(self.outputs, self.tasks),
            "sources": sha256_of([[_parts(source, number) for source in t.sources] for t in self.tasks]),
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides the output's bytes."""
        return sha256_of({**self.decisions, "input": list(self.decisions["input"].values())})


def _parts(source: Source, number: Mapping[Path, int]) -> list[int]:
    """Return what decides a source's numbers: where its leaves lie in the numbered files, and its constants."""
    return [*(part for leaf in source.leaves for part in (number[leaf.file], leaf.offset)), *source.constants]
