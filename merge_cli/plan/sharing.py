"""Measures that merged models share: a method measures once for those that agree in what its measure depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from merge_cli.methods.contract import Method
from merge_cli.plan.outputs import Output

if TYPE_CHECKING:
    from merge_cli.plan.model import TensorTask


@dataclass(frozen=True)
class MeasureSharing:
    """Groups of merged models that share what the method measures, by the first of them.

    Attributes:
        method: The method.
        variants: The merged models.
        merged: The tasks that go through the method.
    """

    method: Method
    variants: Sequence[Output]
    merged: Sequence[TensorTask]

    @cached_property
    def over_model(self) -> Mapping[str, str]:
        """Merged model -> the first one for which the same is measured over all tensors."""
        found: dict[Any, str] = {}
        return {
            output.name: found.setdefault(tuple(self._key(task, output) for task in self.merged), output.name)
            for output in self.variants
        }

    def first(self, task: TensorTask, output: Output) -> Output:
        """Return the first merged model for which the same is measured over a tensor."""
        key = self._key(task, output)
        return next(each for each in self.variants if each is output or self._key(task, each) == key)

    def _key(self, task: TensorTask, output: Output) -> Any:
        return self._keys[id(output.params_of(task))]

    @cached_property
    def _keys(self) -> Mapping[int, Any]:
        """The parameters, by their identity -> what the method's measure depends on."""
        every = {id(params): params for output in self.variants for params in map(output.params_of, self.merged)}
        found: dict[int, Any] = {}
        for number, params in every.items():
            measure = self.method.measure(params)
            if measure is not None:
                names = measure.depends
                found[number] = number if names is None else (measure.over, *(getattr(params, each) for each in names))
        return {number: found.get(number) for number in every}
