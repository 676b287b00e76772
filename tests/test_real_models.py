"""The main job on what transformers saved: merged by the command, loaded again, compared with the oracle."""

import contextlib
import functools
import gc
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from merge_cli.cli import main
from tests import models, oracle
from tests.models import FAMILIES, Family, tensors_of

Vectors = dict[str, list[float]]


# --- running the command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What a user sees of a run."""

    code: int
    out: str
    err: str


def run(*words: str | Path) -> Ran:
    """Run the program in this process, as the shell would: words in, exit code and two streams out."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["merge-cli", *map(str, words)])
        with _left_as_found(), pytest.raises(SystemExit) as ended:
            main()
    return Ran(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _left_as_found() -> Iterator[None]:
    """Undo what the program does to its process, which it takes for its own: signals and garbage collection."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.unfreeze()
        gc.enable()


def run_apart(*words: str | Path, cwd: Path, **environment: str) -> Ran:
    """Run the program in a process of its own."""
    command = [sys.executable, "-m", "merge_cli", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=100)
    return Ran(done.returncode, done.stdout, done.stderr)


def write_recipe(folder: Path, recipe: str) -> Path:
    """Put a recipe beside the checkpoints that it names."""
    path = folder / "recipe.yml"
    path.write_text(recipe)
    return path


def merged(folder: Path, recipe: str, out: Path, *options: str) -> dict[str, Any]:
    """Merge, expect success, and return the report."""
    ran = run("merge", write_recipe(folder, recipe), out, "--json", "--no-fsync", *options)
    assert ran.code == 0, ran.err
    report: dict[str, Any] = json.loads(ran.out)
    return report


def refused(folder: Path, recipe: str, out: Path, code: int, *options: str) -> str:
    """Merge, expect this exit code and that nothing is left behind, and return the message."""
    ran = run("merge", write_recipe(folder, recipe), out, "--no-fsync", *options)
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err
    assert not out.exists()
    assert not [path.name for path in out.parent.iterdir() if path.name.startswith(out.name)]
    return ran.err


# --- the checkpoints --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A family on disk, and its numbers as the format's own library reads them.

    Attributes:
        folder: Holds ``base``, ``ft1``, ``ft2`` and for each a Fisher (``fisher-base``) and a gradient.
        base: Tensors by name.
        models: The fine-tuned models' tensors, in order.
        fishers: Their Fisher diagonals.
        base_fisher: That of the base.
        gradients: The gradients of the fine-tuned models' summed losses.
    """

    folder: Path
    base: dict[str, Tensor]
    models: list[dict[str, Tensor]]
    fishers: list[dict[str, Tensor]] = field(default_factory=list)
    base_fisher: dict[str, Tensor] = field(default_factory=dict)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def everything(self) -> list[dict[str, Tensor]]:
        """The base's tensors and the models'."""
        return [self.base, *self.models]

    def theta(self, name: str) -> list[list[float]]:
        """The models' values of one tensor."""
        return [numbers(model[name]) for model in self.models]

    def deltas(self, name: str) -> list[list[float]]:
        """The task vectors of one tensor, in the float32 in which they are compared with thresholds."""
        return [numbers(model[name].float() - self.base[name].float()) for model in self.models]

    def whole_deltas(self) -> list[Vectors]:
        """The task vectors of all tensors, one mapping per model."""
        return [
            {name: numbers(model[name].float() - self.base[name].float()) for name in self.base}
            for model in self.models
        ]

    def masks(self, name: str, densities: Sequence[float], *, seed: int) -> list[list[int]]:
        """Which entries of each model's task vector stay when the first stage drops at random."""
        return [
            oracle.keep_mask((seed, 0, i, name), self.base[name].numel(), density)
            for i, density in enumerate(densities)
        ]


def numbers(tensor: Tensor) -> list[float]:
    """A tensor's elements in C order, exactly."""
    found: list[float] = tensor.to(torch.float64).flatten().tolist()
    return found


def read(folder: Path, *, base: str = "base", tuned: Sequence[str] = ("ft1", "ft2")) -> Trained:
    """Read a base and its fine-tuned models, which have no Fishers."""
    return Trained(folder, tensors_of(folder / base), [tensors_of(folder / name) for name in tuned])


def vectors(tensors: Mapping[str, Tensor]) -> Vectors:
    """The elements of all tensors."""
    return {name: numbers(tensor) for name, tensor in tensors.items()}


EXAMPLES = {"base": 400, "ft1": 30, "ft2": 90}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """On models of this size torch's threads only wait for each other, on a busy machine for seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Makes a family by its name, once for all tests; what it gives must not be changed."""

    @functools.cache
    def make(name: str) -> Trained:
        folder = tmp_path_factory.mktemp(name)
        FAMILIES[name].save(folder)
        for seed, (model, examples) in enumerate(EXAMPLES.items()):
            models.save_fisher(folder / f"fisher-{model}", folder / model, seed, examples=examples)
            models.save_gradient(folder / f"gradient-{model}", folder / model, seed, examples=examples)
        return replace(
            read(folder),
            fishers=[tensors_of(folder / f"fisher-ft{i}") for i in (1, 2)],
            base_fisher=tensors_of(folder / "fisher-base"),
            gradients=[tensors_of(folder / f"gradient-ft{i}") for i in (1, 2)],
        )

    return make


@pytest.fixture
def bert(trained: Callable[[str], Trained], tmp_path: Path) -> Trained:
    """BERT classifiers in a folder of their own, where a test may add, change and remove."""
    source = trained("bert-float32")
    folder = tmp_path / "bert"
    shutil.copytree(source.folder, folder)
    return replace(source, folder=folder)


# --- comparing --------------------------------------------------------------------------------------------------------


def assert_holds(out: Path, expected: Mapping[str, Sequence[float]], sources: Sequence[Mapping[str, Tensor]]) -> None:
    """The checkpoint holds exactly these tensors, to the precision of float32 arithmetic and of its own dtype.

    An element may be off by 1e-5 of its value, by 1e-6 of the largest number that it was computed from, and by what
    rounding it once to the output's dtype may cost: half a unit in the last place. Integers are exact.
    """
    found = tensors_of(out)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        want = torch.tensor(expected[name], dtype=torch.float64).reshape(tensor.shape)
        if not tensor.is_floating_point():
            assert torch.equal(tensor.double(), want), name
            continue
        inputs = torch.stack([source[name].double().abs() for source in sources]).amax(0)
        allowed = want.abs() * 1e-5 + inputs * 1e-6 + half_unit(want, tensor.dtype)
        error = (tensor.double() - want).abs()
        assert bool((error <= allowed).all()), f"{name} is off by {float((error - allowed).max())} more than allowed"


def half_unit(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Half of the distance between neighbouring numbers of a dtype that is narrower than float32, at some values."""
    if dtype in (torch.float32, torch.float64):
        return torch.zeros_like(values)
    limits = torch.finfo(dtype)
    power = torch.ldexp(torch.ones_like(values), torch.frexp(values).exponent - 1)
    return power.clamp(min=limits.smallest_normal) * limits.eps / 2


def assert_works(out: Path, **arguments: Any) -> nn.Module:
    """transformers loads it without a missing, unexpected or misshapen tensor, and it computes finite numbers."""
    model, info = models.load(out, **arguments)
    assert not any(info.values()), info
    with torch.no_grad():
        output = model.eval()(**models.batch_for(model, 9))
    scores = output.logits_per_image if model.config.model_type == "clip" else output.logits
    assert bool(scores.isfinite().all())
    assert math.isfinite(output.loss)
    return model


# --- every method on every family -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A recipe, and what it makes of a family by the oracle."""

    recipe: str
    expected: Callable[[Trained], Vectors]


def each_tensor(compute: Callable[[Trained, str], list[float]]) -> Callable[[Trained], Vectors]:
    """Turn a computation of one tensor into one of all."""
    return lambda trained: {name: compute(trained, name) for name in trained.base}


CASES: dict[str, Case] = {}


def case(name: str, recipe: str) -> Callable[[Callable[[Trained], Vectors]], Callable[[Trained], Vectors]]:
    """Register the function below as what the recipe must give."""

    def register(expected: Callable[[Trained], Vectors]) -> Callable[[Trained], Vectors]:
        CASES[name] = Case(recipe, expected)
        return expected

    return register


@case(
    "linear",
    """
    merge_method: linear
    models:
      - {model: ft1, parameters: {weight: 1}}
      - {model: ft2, parameters: {weight: 3}}
    """,
)
@each_tensor
def _(t: Trained, name: str) -> list[float]:
    return oracle.linear(t.theta(name), [1, 3])


@case(
    "linear with the base among the models, not normalised",
    """
    merge_method: linear
    base_model: base
    models:
      - {model: base, parameters: {weight: 0.5}}
      - {model: ft1, parameters: {weight: 0.25}}
      - {model: ft2, parameters: {weight: -0.125}}
    parameters: {normalize: false}
    """,
)
@each_tensor
def _(t: Trained, name: str) -> list[float]:
    return oracle.linear([numbers(t.base[name]), *t.theta(name)], [0.5, 0.25, -0.125], normalize=False)


@case(
    "task_arithmetic",
    """
    merge_method: task_arithmetic
    base_model: base
    models:
      - {model: base}
      - {model: ft1, parameters: {weight: 0.8}}
      - {model: ft2, parameters: {weight: -0.3}}
    parameters: {lambda: 0.7}
    """,
)
@each_tensor
def _(t: Trained, name: str) -> list[float]:
    return oracle.task_arithmetic(numbers(t.base[name]), t.deltas(name), [0.8, -0.3], scale=0.7)


@case(
    "ties, trimmed in each tensor",
    """
    merge_method: ties
    base_model: base
    models:
      - {model: ft1, parameters: {weight: 1, density: 0.4}}
      - {model: ft2, parameters: {weight: 0.6, density: 0.7}}
    parameters: {lambda: 1.1}
    """,
)
def _(t: Trained) -> Vectors:
    return oracle.ties(vectors(t.base), t.whole_deltas(), [1, 0.6], [0.4, 0.7], scale=1.1)


@case(
    "ties, trimmed in the whole model",
    """
    merge_method: ties
    base_model: base
    models: [{model: ft1}, {model: ft2}]
    parameters: {weight: 0.7, density: 0.2, normalize: false, trim: model, elect: count, zero_sum: none}
    """,
)
def _(t: Trained) -> Vectors:
    return oracle.ties(
        vectors(t.base), t.whole_deltas(), [0.7, 0.7], [0.2, 0.2],
        normalize=False, trim="model", elect="count", zero_sum="none",
    )  # fmt: skip


@case(
    "dare_linear",
    """
    merge_method: dare_linear
    base_model: base
    models:
      - {model: ft1, parameters: {weight: 0.5, density: 0.6}}
      - {model: ft2, parameters: {weight: 0.9, density: 0.25}}
    seed: 7
    """,
)
@each_tensor
def _(t: Trained, name: str) -> list[float]:
    density = [0.6, 0.25]
    return oracle.dare_linear(
        numbers(t.base[name]), t.deltas(name), t.masks(name, density, seed=7), [0.5, 0.9], density
    )


@case(
    "dare_ties that keeps the L1 norm",
    """
    merge_method: dare_ties
    base_model: base
    models: [{model: ft1}, {model: ft2}]
    parameters: {weight: 0.6, density: 0.5, rescale: l1, normalize: true}
    """,
)
@each_tensor
def _(t: Trained, name: str) -> list[float]:
    masks = t.masks(name, [0.5, 0.5], seed=0)
    return oracle.dare_ties(
        numbers(t.base[name]), t.deltas(name), masks, [0.6, 0.6], [0.5, 0.5], rescale="l1", normalize=True
    )


@case(
    "slerp",
    """
    merge_method: slerp
    base_model: base
    models: [{model: base}, {model: ft1}]
    parameters: {t: 0.3}
    """,
)
@each_tensor
def _(t: Trained, name: str) -> list[float]:
    return oracle.slerp(numbers(t.base[name]), t.theta(name)[0], 0.3)


@case(
    "fisher",
    """
    merge_method: fisher
    models:
      - {model: ft1, fisher: fisher-ft1, parameters: {weight: 0.4}}
      - {model: ft2, fisher: fisher-ft2, parameters: {weight: 0.6}}
    parameters: {favour: 1}
    """,
)
def _(t: Trained) -> Vectors:
    return oracle.fisher([*map(vectors, t.models)], [*map(vectors, t.fishers)], [0.4, 0.6], favour=1)


@case(
    "fisher with the base, raw, without a favourite",
    """
    merge_method: fisher
    base_model: base
    base_fisher: fisher-base
    models: [{model: ft1, fisher: fisher-ft1}, {model: ft2, fisher: fisher-ft2}]
    parameters: {include_base: true, normalize_fisher: false, favour: none, fisher_floor: 1e-3}
    """,
)
def _(t: Trained) -> Vectors:
    return oracle.fisher(
        [*map(vectors, t.models)], [*map(vectors, t.fishers)], [1, 1], normalize_fisher=False, fisher_floor=1e-3,
        favour="none", base=vectors(t.base), base_fisher=vectors(t.base_fisher),
    )  # fmt: skip


def matched(
    t: Trained,
    weights: Sequence[float],
    *,
    examples: Sequence[int] = (EXAMPLES["ft1"], EXAMPLES["ft2"]),
    base_examples: int = EXAMPLES["base"],
    use_gradients: bool = False,
    **scales: Any,
) -> Vectors:
    """Gradient matching by the oracle; unless told otherwise the numbers of examples are those of the Fisher files."""
    deltas, gradients = t.whole_deltas(), [*map(vectors, t.gradients)] if use_gradients else []
    base = curved(t.base_fisher, base_examples)
    models_ = [curved(fisher, number) for fisher, number in zip(t.fishers, examples, strict=True)]
    found = oracle.matching_scales(
        models_, base_curvature=base, weights=weights, deltas=deltas, gradients=gradients, **scales
    )
    measured = scales.get("anchor") == "measured"
    return {
        name: oracle.gradient_matching(
            vector, [delta[name] for delta in deltas], [model[name] for model in models_], weights, found,
            base_curvature=base[name], gradients=[each[name] for each in gradients] if measured else None,
        )
        for name, vector in vectors(t.base).items()
    }  # fmt: skip


def curved(fisher: Mapping[str, Tensor], examples: int) -> Vectors:
    """The curvature for which a Fisher stands."""
    return {name: oracle.curvature(vector, examples) for name, vector in vectors(fisher).items()}


@case(
    "gradient_matching",
    """
    merge_method: gradient_matching
    base_model: base
    base_fisher: fisher-base
    models:
      - {model: ft1, fisher: fisher-ft1}
      - {model: ft2, fisher: fisher-ft2, parameters: {weight: 0.5}}
    parameters: {anchor: base, prior_precision: 0, curvature_floor: 0}
    """,
)
def _(t: Trained) -> Vectors:
    return matched(t, [1, 0.5])


@case(
    "gradient_matching as it is by default",
    """
    merge_method: gradient_matching
    base_model: base
    base_fisher: fisher-base
    models: [{model: ft1, fisher: fisher-ft1}, {model: ft2, fisher: fisher-ft2}]
    """,
)
def _(t: Trained) -> Vectors:
    return matched(t, [1, 1], anchor="auto", prior_precision="auto", curvature_floor=0.01)


@case(
    "gradient_matching that removes a task",
    """
    merge_method: gradient_matching
    base_model: base
    base_fisher: fisher-base
    models:
      - {model: ft1, fisher: fisher-ft1}
      - {model: ft2, fisher: fisher-ft2, parameters: {weight: -1}}
    parameters: {anchor: base, prior_precision: 1e-4, curvature_floor: 0}
    """,
)
def _(t: Trained) -> Vectors:
    return matched(t, [1, -1], prior_precision=1e-4)


@case(
    "gradient_matching of models at their own optimum",
    """
    merge_method: gradient_matching
    base_model: base
    base_fisher: fisher-base
    models: [{model: ft1, fisher: fisher-ft1}, {model: ft2, fisher: fisher-ft2}]
    parameters: {anchor: none, prior_precision: 0, curvature_floor: 0}
    """,
)
def _(t: Trained) -> Vectors:
    return matched(t, [1, 1], anchor="none")


@case(
    "gradient_matching with measured gradients",
    """
    merge_method: gradient_matching
    base_model: base
    base_fisher: fisher-base
    models:
      - {model: ft1, fisher: fisher-ft1, gradient: gradient-ft1}
      - {model: ft2, fisher: fisher-ft2, gradient: gradient-ft2}
    parameters: {anchor: measured, prior_precision: 10, curvature_floor: 0}
    """,
)
def _(t: Trained) -> Vectors:
    return matched(t, [1, 1], anchor="measured", prior_precision=10, use_gradients=True)


@case(
    "gradient_matching anchored as far as the gradients say",
    """
    merge_method: gradient_matching
    base_model: base
    base_fisher: fisher-base
    models:
      - {model: ft1, fisher: fisher-ft1, gradient: gradient-ft1}
      - {model: ft2, fisher: fisher-ft2, gradient: gradient-ft2}
    """,
)
def _(t: Trained) -> Vectors:
    return matched(t, [1, 1], anchor="auto", prior_precision="auto", curvature_floor=0.01, use_gradients=True)


@case(
    "passthrough",
    """
    merge_method: passthrough
    models: [{model: ft2, parameters: {scale: 0.9}}]
    """,
)
@each_tensor
def _(t: Trained, name: str) -> list[float]:
    return oracle.passthrough(t.theta(name)[1], 0.9)


@case(
    "dare before task_arithmetic",
    """
    merge_method: task_arithmetic
    base_model: base
    prepare: {dare: {drop_rate: 0.75}}
    models: [{model: ft1}, {model: ft2}]
    parameters: {weight: 0.5}
    seed: 3
    """,
)
@each_tensor
def _(t: Trained, name: str) -> list[float]:
    dropped = oracle.dare(t.deltas(name), t.masks(name, [0.25, 0.25], seed=3), [0.25, 0.25])
    return oracle.task_arithmetic(numbers(t.base[name]), dropped, [0.5, 0.5])


@case(
    "keep_largest in the whole model before linear",
    """
    merge_method: linear
    base_model: base
    prepare: {keep_largest: {density: 0.3, scope: model}}
    models: [{model: ft1, parameters: {weight: 3}}, {model: ft2, parameters: {weight: 1}}]
    """,
)
def _(t: Trained) -> Vectors:
    kept = oracle.keep_largest(t.whole_deltas(), [0.3, 0.3], scope="model")
    return {
        name: oracle.linear([[b + x for b, x in zip(base, each[name], strict=True)] for each in kept], [3, 1])
        for name, base in vectors(t.base).items()
    }


@case(
    "dare, then keep_largest, before fisher",
    """
    merge_method: fisher
    base_model: base
    prepare:
      dare: {drop_rate: 0.5}
      keep_largest: {density: 0.25}
    models: [{model: ft1, fisher: fisher-ft1}, {model: ft2, fisher: fisher-ft2}]
    """,
)
def _(t: Trained) -> Vectors:
    dropped = [oracle.dare(t.deltas(name), t.masks(name, [0.5, 0.5], seed=0), [0.5, 0.5]) for name in t.base]
    prepared = [{name: rows[i] for name, rows in zip(t.base, dropped, strict=True)} for i in range(2)]
    kept = oracle.keep_largest(prepared, [0.25, 0.25], scope="tensor")
    base = vectors(t.base)
    moved = [{name: [b + x for b, x in zip(base[name], each[name], strict=True)] for name in base} for each in kept]
    return oracle.fisher(moved, [*map(vectors, t.fishers)], [1, 1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CASES)
def test_a_merged_checkpoint_loads_and_works_and_holds_what_the_oracle_computes(
    trained: Callable[[str], Trained], name: str, family: str, tmp_path: Path
) -> None:
    inputs, out = trained(family), tmp_path / "out"
    merged(inputs.folder, CASES[name].recipe, out)
    assert_works(out)
    assert_holds(out, CASES[name].expected(inputs), inputs.everything)
    assert {tensor.dtype for tensor in tensors_of(out).values()} == {FAMILIES[family].dtype}


REMOVE = """
merge_method: gradient_matching
base_model: base
base_fisher: fisher-base
models:
  - {model: ft1, fisher: fisher-ft1}
  - {model: ft2, fisher: fisher-ft2, parameters: {weight: -1}}
parameters: {anchor: base, prior_precision: 0, curvature_floor: 0}
"""
ADD_BOTH = """
merge_method: task_arithmetic
base_model: base
models: [{model: ft1}, {model: ft2}]
parameters: {weight: 0.5}
"""
ADD_ONE = """
merge_method: task_arithmetic
base_model: base
models: [{model: ft1}]
parameters: {weight: 0.5}
"""


def added(t: Trained, weights: Sequence[float] = (0.5, 0.5)) -> Vectors:
    """What ADD_BOTH gives; with one weight what ADD_ONE gives."""
    return {name: oracle.task_arithmetic(numbers(t.base[name]), t.deltas(name), weights) for name in t.base}


def test_the_report_counts_the_elements_whose_precision_was_guarded(bert: Trained, tmp_path: Path) -> None:
    report = merged(bert.folder, REMOVE, tmp_path / "out")
    base = curved(bert.base_fisher, EXAMPLES["base"])
    own = [curved(fisher, EXAMPLES[name]) for fisher, name in zip(bert.fishers, ("ft1", "ft2"), strict=True)]
    clipped = sum(
        h0 + h1 - h2 <= 0.1 * h0
        for name in base
        for h0, h1, h2 in zip(base[name], own[0][name], own[1][name], strict=True)
    )
    assert 0 < clipped < report["parameters"]
    assert report["counts"] == {"clipped": clipped}


def test_the_number_of_examples_in_the_recipe_counts_more_than_that_of_the_fisher_files(
    bert: Trained, tmp_path: Path
) -> None:
    recipe = REMOVE.replace("-1}", "1, examples: 500}").replace("anchor:", "examples: 30, base_examples: 7, anchor:")
    merged(bert.folder, recipe, tmp_path / "out")
    expected = matched(bert, [1, 1], examples=[30, 500], base_examples=7)
    assert_holds(tmp_path / "out", expected, bert.everything)


def test_one_task_vector_added_in_full_predicts_what_its_model_predicts(
    trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    inputs = trained("vit-float32")
    merged(inputs.folder, ADD_ONE, tmp_path / "out", "--set", "parameters.weight=1")
    ours, theirs = (models.load(folder)[0].eval() for folder in (tmp_path / "out", inputs.folder / "ft1"))
    batch = models.batch_for(theirs, 5)
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, rtol=1e-4, atol=1e-5)


# --- parameters that depend on the tensor -----------------------------------------------------------------------------

# Where each family keeps its two layers.
LAYERS = {
    "llama-untied-sharded-float32": "model.layers.{}.",
    "bert-float32": "bert.encoder.layer.{}.",
    "gpt2-tied-float32": "transformer.h.{}.",
    "vit-float32": "vit.encoder.layer.{}.",
    "t5-tied-bfloat16-sharded": "coder.block.{}.",
}


@pytest.mark.parametrize("family", LAYERS)
def test_a_list_of_weights_runs_over_the_layers_and_its_first_counts_outside_of_them(
    trained: Callable[[str], Trained], family: str, tmp_path: Path
) -> None:
    inputs = trained(family)
    merged(inputs.folder, ADD_ONE.replace("0.5", "[0, 1]"), tmp_path / "out")
    last = [name for name in inputs.base if LAYERS[family].format(1) in name]
    assert len(last) >= 9
    expected = {name: numbers((inputs.models[0] if name in last else inputs.base)[name]) for name in inputs.base}
    assert_holds(tmp_path / "out", expected, inputs.everything)


def test_filters_choose_by_part_of_the_name_and_fall_through_to_the_next_place(bert: Trained, tmp_path: Path) -> None:
    recipe = """
    merge_method: task_arithmetic
    base_model: base
    models:
      - model: ft1
        parameters:
          weight:
            - {filter: attention, value: [1, 0.5]}
            - {filter: classifier, value: 0}
      - {model: ft2, parameters: {weight: 0.25}}
    parameters: {weight: 2}
    """
    merged(bert.folder, recipe, tmp_path / "out")

    def weight(name: str) -> float:
        if "attention" in name:
            return 1 if "layer.0." in name else 0.5
        return 0 if "classifier" in name else 2

    expected = {
        name: oracle.task_arithmetic(numbers(bert.base[name]), bert.deltas(name), [weight(name), 0.25])
        for name in bert.base
    }
    assert_holds(tmp_path / "out", expected, bert.everything)


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def five_labels(bert: Trained) -> dict[str, Tensor]:
    """Adds ``ft5``: the first model's body under a head for five labels, as transformers saves it."""
    body = models.load(bert.folder / "ft1")[0]
    torch.manual_seed(11)
    model = models.bert(
        num_labels=5, id2label={i: f"topic {i}" for i in range(5)}, label2id={f"topic {i}": i for i in range(5)}
    )
    model.bert.load_state_dict(body.bert.state_dict())
    model.save_pretrained(bert.folder / "ft5")
    return tensors_of(bert.folder / "ft5")


def pasted(message: str) -> str:
    """Return the block that an error gives for the recipe."""
    return message[message.index("exclude:\n") :].strip() + "\n"


HEADED = """
merge_method: task_arithmetic
base_model: base
models: [{model: ft5}, {model: ft2}]
parameters: {weight: 0.5}
exclude: [EXCLUDED]
"""


def test_heads_that_differ_are_an_error_that_names_them_and_says_how_to_exclude_them(
    bert: Trained, five_labels: dict[str, Tensor], tmp_path: Path
) -> None:
    message = refused(bert.folder, HEADED.replace("EXCLUDED", ""), tmp_path / "out", 3)
    assert "classifier.weight is 3 x 16 in base, 5 x 16 in ft5, 3 x 16 in ft2" in message
    assert "classifier.bias is 3 in base, 5 in ft5, 3 in ft2" in message
    assert "the models have heads for other classes" in message
    # The advice works as given.
    block = pasted(message)
    assert block == "exclude:\n- 'classifier.*'  # from base\n"
    merged(bert.folder, HEADED.replace("exclude: [EXCLUDED]\n", block), tmp_path / "out")


def test_an_excluded_head_comes_from_the_base_to_the_bit(
    bert: Trained, five_labels: dict[str, Tensor], tmp_path: Path
) -> None:
    report = merged(bert.folder, HEADED.replace("EXCLUDED", "classifier.*"), tmp_path / "out")
    assert (report["merged"], report["copied"]) == (39, 2)
    assert assert_works(tmp_path / "out").config.num_labels == 3
    found = tensors_of(tmp_path / "out")
    assert torch.equal(found["classifier.weight"], bert.base["classifier.weight"])
    expected = added(bert) | {name: numbers(bert.base[name]) for name in ("classifier.weight", "classifier.bias")}
    assert_holds(tmp_path / "out", expected, bert.everything)


def test_a_head_from_a_named_model_brings_its_labels_along(
    bert: Trained, five_labels: dict[str, Tensor], tmp_path: Path
) -> None:
    merged(bert.folder, HEADED.replace("EXCLUDED", "{pattern: 'classifier.*', from: ft5}"), tmp_path / "out")
    model = assert_works(tmp_path / "out")
    assert model.config.id2label == {i: f"topic {i}" for i in range(5)}
    assert model.classifier.out_features == 5
    found = tensors_of(tmp_path / "out")
    assert torch.equal(found["classifier.weight"], five_labels["classifier.weight"])
    assert torch.equal(found["classifier.bias"], five_labels["classifier.bias"])


def test_a_dropped_head_leaves_a_body_that_loads_as_one(
    bert: Trained, five_labels: dict[str, Tensor], tmp_path: Path
) -> None:
    report = merged(bert.folder, HEADED.replace("EXCLUDED", "{pattern: 'classifier.*', drop: true}"), tmp_path / "out")
    assert report["notes"] == ["2 tensors left out, as the recipe says"]
    assert tensors_of(tmp_path / "out").keys() == {name for name in bert.base if not name.startswith("classifier")}
    _, info = transformers.BertModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info


def test_an_exclusion_that_both_copies_and_drops_is_refused(bert: Trained, tmp_path: Path) -> None:
    recipe = ADD_BOTH + "exclude: [{pattern: 'classifier.*', from: ft1, drop: true}]\n"
    assert "give one of the two" in refused(bert.folder, recipe, tmp_path / "out", 2)


def test_a_head_that_the_base_lacks_is_an_error_until_the_recipe_says_where_it_comes_from(
    bert: Trained, tmp_path: Path
) -> None:
    models.load(bert.folder / "base")[0].bert.save_pretrained(bert.folder / "body")
    # transformers saves a body without the prefix that it has inside a classifier.
    body = {f"bert.{name}": tensor for name, tensor in tensors_of(bert.folder / "body").items()}
    save_file(body, bert.folder / "body/model.safetensors")
    recipe = ADD_BOTH.replace("base_model: base", "base_model: body") + "exclude: [EXCLUDED]\n"
    message = refused(bert.folder, recipe.replace("EXCLUDED", "classifier.*"), tmp_path / "out", 2)
    assert "'classifier.bias', which body does not have" in message
    assert "from: ft1" in message
    merged(bert.folder, recipe.replace("EXCLUDED", "{pattern: classifier.*, from: ft1}"), tmp_path / "out")
    assert_works(tmp_path / "out")
    expected = added(bert) | {name: numbers(bert.models[0][name]) for name in bert.base if "classifier" in name}
    assert_holds(tmp_path / "out", expected, bert.everything)


# --- what stands beside the weights -----------------------------------------------------------------------------------


def save_tokenizer(folder: Path, words: str) -> None:
    """Save a tokenizer that knows these words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["[UNK]", *words.split()])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    fast.chat_template = "{{ messages }}"
    fast.save_pretrained(folder)


def test_tokenizer_generation_config_and_other_files_come_from_the_base(
    trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(trained("llama-tied-bfloat16").folder, folder)
    save_tokenizer(folder / "base", "one two three")
    save_tokenizer(folder / "ft1", "three two one")
    transformers.GenerationConfig(max_new_tokens=77, bos_token_id=1).save_pretrained(folder / "base")
    (folder / "base" / "modeling_own.py").write_text("# code that belongs to the model\n")
    (folder / "base" / "LICENSE").write_text("free\n")
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "README.md", "merge_manifest.json"):
        (folder / "base" / name).write_text("{}")
    merged(folder, ADD_BOTH, tmp_path / "out")
    copied = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json",
              "modeling_own.py", "LICENSE"}  # fmt: skip
    for name in copied:
        assert (tmp_path / "out" / name).read_bytes() == (folder / "base" / name).read_bytes()
    made = {"model.safetensors", "config.json", "README.md", "recipe.yml", "merge_manifest.json", "SHA256SUMS"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == copied | made
    assert "A merge of 2 models" in (tmp_path / "out/README.md").read_text()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("three one four")["input_ids"] == [3, 1, 0]
    assert assert_works(tmp_path / "out").generation_config.max_new_tokens == 77


def test_without_a_base_they_come_from_the_first_model_of_the_recipe(
    trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(trained("llama-tied-bfloat16").folder, folder)
    for number, name in enumerate(("ft2", "ft1")):
        save_tokenizer(folder / name, f"number{number}")
    recipe = "{merge_method: linear, models: [{model: ft2}, {model: ft1}], parameters: {weight: 1}}"
    merged(folder, recipe, tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == {"[UNK]": 0, "number0": 1}


@pytest.mark.parametrize(
    ("key", "name"), [("out_dtype", "bfloat16"), ("dtype", "float16"), ("dtype", "float64"), ("out_dtype", "float32")]
)
def test_the_configuration_gives_the_dtype_that_the_weights_have(
    bert: Trained, key: str, name: str, tmp_path: Path
) -> None:
    merged(bert.folder, f"{ADD_BOTH}{key}: {name}\n", tmp_path / "out")
    model = assert_works(tmp_path / "out", dtype="auto")
    assert model.dtype == getattr(torch, name)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == name
    assert_holds(tmp_path / "out", added(bert), bert.everything)


def test_a_base_in_bfloat16_gives_its_dtype_to_the_merge_of_wider_models_and_the_user_is_told(
    bert: Trained, tmp_path: Path
) -> None:
    models.load(bert.folder / "base")[0].bfloat16().save_pretrained(bert.folder / "narrow")
    report = merged(bert.folder, ADD_BOTH.replace("base_model: base", "base_model: narrow"), tmp_path / "out")
    assert "models hold wider numbers than narrow" in " ".join(report["warnings"])
    assert assert_works(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    narrow = read(bert.folder, base="narrow")
    assert_holds(tmp_path / "out", added(narrow), narrow.everything)


# --- other families ---------------------------------------------------------------------------------------------------


def test_integer_buffers_are_copied_from_the_base_and_float_buffers_merged(tmp_path: Path) -> None:
    Family(models.resnet).save(tmp_path)
    report = merged(tmp_path, ADD_BOTH, tmp_path / "out")
    inputs = read(tmp_path)
    counters = {name: tensor for name, tensor in inputs.base.items() if tensor.dtype == torch.int64}
    assert len(counters) == report["copied"] == 6
    assert all(int(tensor) != int(inputs.models[0][name]) for name, tensor in counters.items())
    assert {tensors_of(tmp_path / "out")[name].dtype for name in counters} == {torch.int64}
    assert_works(tmp_path / "out")
    assert_holds(tmp_path / "out", added(inputs) | vectors(counters), inputs.everything)


def test_a_mixture_of_experts_merges_under_the_names_of_its_checkpoint(tmp_path: Path) -> None:
    Family(models.mixtral, torch.bfloat16).save(tmp_path)
    merged(tmp_path, ADD_BOTH, tmp_path / "out")
    assert_works(tmp_path / "out")
    inputs = read(tmp_path)
    assert sum("experts" in name for name in inputs.base) == 6
    assert_holds(tmp_path / "out", added(inputs), inputs.everything)


def test_the_parts_of_a_composite_model_get_the_dtype_too_and_each_counts_its_own_layers(tmp_path: Path) -> None:
    Family(models.clip).save(tmp_path, tuned=1)
    merged(tmp_path, ADD_ONE.replace("0.5", "[0, 1]") + "out_dtype: bfloat16\n", tmp_path / "out")
    model = assert_works(tmp_path / "out", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.text_config.dtype == model.config.vision_config.dtype == torch.bfloat16
    inputs = read(tmp_path, tuned=["ft1"])

    def weight(name: str) -> float:
        # Two layers for text, three for vision.
        layer = re.search(r"layers\.(\d)", name)
        return 0 if layer is None else int(layer[1]) / (1 if name.startswith("text") else 2)

    expected = {
        name: oracle.task_arithmetic(numbers(tensor), inputs.deltas(name), [weight(name)])
        for name, tensor in inputs.base.items()
    }
    assert_holds(tmp_path / "out", expected, inputs.everything)


# --- other ways to store a checkpoint ---------------------------------------------------------------------------------


def save_pickled(source: Path, folder: Path, *, shards: int = 1) -> None:
    """Save a model the way that transformers did before safetensors: tied tensors under each of their names."""
    state = models.load(source, dtype="auto")[0].state_dict()
    folder.mkdir()
    shutil.copyfile(source / "config.json", folder / "config.json")
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    names = list(state)
    parts = [names[i::shards] for i in range(shards)]
    files = [f"pytorch_model-{i:05d}-of-{shards:05d}.bin" for i in range(1, shards + 1)]
    for file, part in zip(files, parts, strict=True):
        torch.save({name: state[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("pickled", [["base", "ft1", "ft2"], ["base"], ["ft1"]], ids="-".join)
@pytest.mark.parametrize("family", ["gpt2-tied-float32", "llama-tied-bfloat16", "t5-tied-bfloat16-sharded"])
def test_pickled_checkpoints_merge_as_those_in_safetensors_do_and_with_them(
    trained: Callable[[str], Trained], family: str, pickled: list[str], tmp_path: Path
) -> None:
    inputs = trained(family)
    for name in ("base", "ft1", "ft2"):
        if name in pickled:
            save_pickled(inputs.folder / name, tmp_path / name)
        else:
            shutil.copytree(inputs.folder / name, tmp_path / name)
    merged(tmp_path, ADD_BOTH, tmp_path / "out")
    # Tied tensors are one tensor: written once, under the name that transformers writes too.
    assert_holds(tmp_path / "out", added(inputs), inputs.everything)
    assert_works(tmp_path / "out")


def test_a_pickled_checkpoint_in_shards_is_read_by_its_index(bert: Trained, tmp_path: Path) -> None:
    shutil.rmtree(bert.folder / "base")
    save_pickled(bert.folder / "ft1", bert.folder / "base", shards=3)
    merged(bert.folder, ADD_BOTH, tmp_path / "out")
    assert_works(tmp_path / "out")
    inputs = replace(bert, base=bert.models[0])
    assert_holds(tmp_path / "out", added(inputs), inputs.everything)


def test_a_base_that_ties_its_head_and_a_model_that_does_not_give_a_model_with_a_head_of_its_own(
    tmp_path: Path,
) -> None:
    tied = models.made(functools.partial(models.llama, tied=True), 0)
    tied.save_pretrained(tmp_path / "tied")
    save_pickled(tmp_path / "tied", tmp_path / "base")
    models.made(models.llama, 1).save_pretrained(tmp_path / "ft1")
    merged(tmp_path, ADD_ONE, tmp_path / "out")
    model = assert_works(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    inputs = read(tmp_path, base="tied", tuned=["ft1"])
    inputs.base["lm_head.weight"] = inputs.base["model.embed_tokens.weight"]
    assert_holds(tmp_path / "out", added(inputs, [0.5]), inputs.everything)


def test_one_safetensors_file_is_a_model_too(bert: Trained, tmp_path: Path) -> None:
    recipe = ADD_BOTH.replace("{model: ft1}", "{model: ft1/model.safetensors}")
    merged(bert.folder, recipe, tmp_path / "out")
    assert_works(tmp_path / "out")
    assert_holds(tmp_path / "out", added(bert), bert.everything)


def test_files_alone_merge_but_the_user_is_told_that_no_configuration_comes_with_them(
    bert: Trained, tmp_path: Path
) -> None:
    recipe = "{merge_method: linear, models: [{model: ft1/model.safetensors}], parameters: {weight: 1}}"
    report = merged(bert.folder, recipe, tmp_path / "out")
    assert "ft1/model.safetensors has no config.json" in " ".join(report["warnings"])
    made = {"model.safetensors", "README.md", "recipe.yml", "merge_manifest.json", "SHA256SUMS"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == made


@pytest.fixture
def offline_hub(bert: Trained, tmp_path: Path) -> dict[str, str]:
    """A hub cache that holds ``lab/tuned``, revision ``v2``; returns the environment in which only it is used."""
    repository = tmp_path / "hub" / "models--lab--tuned"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(bert.folder / "ft1", repository / "blobs")
    (repository / "snapshots" / commit).mkdir(parents=True)
    for blob in (repository / "blobs").iterdir():
        (repository / "snapshots" / commit / blob.name).symlink_to(f"../../blobs/{blob.name}")
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text(commit)
    return {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}


def test_a_hub_id_with_a_revision_is_read_from_the_cache_without_a_network(
    bert: Trained, offline_hub: dict[str, str], tmp_path: Path
) -> None:
    recipe = write_recipe(bert.folder, ADD_BOTH.replace("model: ft1", "model: lab/tuned@v2"))
    ran = run_apart("merge", recipe, "out", "--no-fsync", cwd=tmp_path, **offline_hub)
    assert (ran.code, ran.err) == (0, "")
    assert_works(tmp_path / "out")
    assert_holds(tmp_path / "out", added(bert), bert.everything)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model:\n- lab/tuned\nbase_model_relation: merge\n")


def test_a_revision_that_the_cache_lacks_is_an_error_that_names_it(
    bert: Trained, offline_hub: dict[str, str], tmp_path: Path
) -> None:
    recipe = write_recipe(bert.folder, ADD_BOTH.replace("model: ft1", "model: lab/tuned@v1"))
    ran = run_apart("merge", recipe, "out", cwd=tmp_path, **offline_hub)
    assert ran.code == 3
    assert ran.err.startswith("error: 'lab/tuned@v1'")
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["float16", "float64"])
def test_checkpoints_in_other_precisions_keep_theirs(bert: Trained, name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    for model in ("base", "ft1", "ft2"):
        models.load(bert.folder / model)[0].to(dtype).save_pretrained(tmp_path / model)
    merged(tmp_path, ADD_BOTH, tmp_path / "out")
    assert assert_works(tmp_path / "out", dtype="auto").dtype == dtype
    inputs = read(tmp_path)
    assert_holds(tmp_path / "out", added(inputs), inputs.everything)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_checkpoints_are_read_as_plain_numbers(bert: Trained, dtype: torch.dtype, tmp_path: Path) -> None:
    narrow = {}
    for model in ("base", "ft1", "ft2"):
        narrow[model] = {name: tensor.to(dtype) for name, tensor in tensors_of(bert.folder / model).items()}
        save_file(narrow[model], bert.folder / model / "model.safetensors")
    merged(bert.folder, f"{ADD_BOTH}out_dtype: float32\n", tmp_path / "out")
    assert_works(tmp_path / "out")
    wide = [{name: tensor.float() for name, tensor in tensors.items()} for tensors in narrow.values()]
    assert_holds(tmp_path / "out", added(Trained(bert.folder, wide[0], wide[1:])), wide)


def test_float8_numbers_that_need_scales_are_refused(bert: Trained, tmp_path: Path) -> None:
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in bert.models[0].items()}
    tensors["bert.pooler.dense.weight_scale_inv"] = torch.ones(1)
    save_file(tensors, bert.folder / "ft1" / "model.safetensors")
    message = refused(bert.folder, ADD_BOTH, tmp_path / "out", 3)
    assert "ft1 is quantised" in message
    assert "weight_scale_inv" in message


def test_float8_numbers_with_scales_are_merged_as_what_they_stand_for(bert: Trained, tmp_path: Path) -> None:
    said = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    real = {}
    for model, tensors in zip(("base", "ft1", "ft2"), [bert.base, *bert.models], strict=True):
        real[model] = dict(tensors)
        stored = {}
        for name, tensor in tensors.items():
            if tensor.dim() < 2:
                stored[name] = tensor.bfloat16()
                real[model][name] = stored[name].float()
                continue
            # A power of two for each tile, so that products are exact whoever multiplies.
            grid = [-(-size // 16) for size in tensor.shape]
            scales = 2.0 ** -(torch.arange(grid[0] * grid[1]) % 5).float().reshape(grid)
            wide = scales.repeat_interleave(16, 0).repeat_interleave(16, 1)[: tensor.shape[0], : tensor.shape[1]]
            stored[name] = (tensor / wide).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scales
            real[model][name] = stored[name].float() * wide
        save_file(stored, bert.folder / model / "model.safetensors")
        config = bert.folder / model / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": said}))
    merged(bert.folder, ADD_BOTH, tmp_path / "narrow")
    config = json.loads((tmp_path / "narrow/config.json").read_text())
    assert "quantization_config" not in config
    assert assert_works(tmp_path / "narrow", dtype="auto").dtype == torch.bfloat16
    merged(bert.folder, f"{ADD_BOTH}out_dtype: float32\n", tmp_path / "wide")
    numbers = list(real.values())
    assert_holds(tmp_path / "wide", added(Trained(bert.folder, numbers[0], numbers[1:])), numbers)


# --- the output as files ----------------------------------------------------------------------------------------------


def test_an_output_in_shards_loads_as_one_model_and_holds_the_same_numbers(bert: Trained, tmp_path: Path) -> None:
    merged(bert.folder, ADD_BOTH, tmp_path / "one")
    merged(bert.folder, ADD_BOTH, tmp_path / "many", "--shard-size", "4KB")
    assert_works(tmp_path / "many")
    one, many = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in one.values())
    shards = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert shards == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert len(shards) > 4
    assert sorted(set(index["weight_map"].values())) == shards
    for file in shards:
        held = load_file(tmp_path / "many" / file)
        assert sum(4 * tensor.numel() for tensor in held.values()) <= 4000
        assert all(index["weight_map"][name] == file for name in held)


@pytest.mark.parametrize("method", ["ties, trimmed in the whole model", "dare_ties that keeps the L1 norm", "slerp"])
def test_threads_memory_and_shards_do_not_change_a_byte(
    trained: Callable[[str], Trained], method: str, tmp_path: Path
) -> None:
    folder, recipe = trained("gpt2-tied-float32").folder, CASES[method].recipe
    first = merged(folder, recipe, tmp_path / "first", "--threads", "1")
    other = merged(folder, recipe, tmp_path / "other", "--threads", "3", "--memory", "300kB")
    assert (first["threads"], other["threads"]) == (1, 3)
    assert first["files"] == other["files"]
    merged(folder, recipe, tmp_path / "shards", "--shard-size", "5kB")
    one, many = tensors_of(tmp_path / "first"), tensors_of(tmp_path / "shards")
    assert all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_sha256sum_checks_every_file_of_the_output(bert: Trained, tmp_path: Path) -> None:
    save_tokenizer(bert.folder / "base", "one two")
    merged(bert.folder, ADD_BOTH, tmp_path / "out", "--shard-size", "9KB")

    def check() -> subprocess.CompletedProcess[str]:
        command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
        return subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, check=False)

    checked = check()
    assert checked.returncode == 0, checked.stderr
    said = {line.removesuffix(": OK") for line in checked.stdout.splitlines()}
    assert said == {path.name for path in (tmp_path / "out").iterdir()} - {"SHA256SUMS"}
    with (tmp_path / "out" / "config.json").open("a") as config:
        config.write(" ")
    assert check().returncode == 1


def test_the_manifest_tells_the_recipe_the_inputs_and_the_digests(bert: Trained, tmp_path: Path) -> None:
    report = merged(bert.folder, ADD_BOTH, tmp_path / "out", "--set", "models.1.parameters.weight=0.75")
    manifest = json.loads((tmp_path / "out/merge_manifest.json").read_text())
    assert manifest["recipe"] == ADD_BOTH
    assert manifest["overrides"] == ["models.1.parameters.weight=0.75"]
    roles = {each["role"]: each["reference"] for each in manifest["inputs"]}
    assert roles == {"base": "base", "model 0": "ft1", "model 1": "ft2"}
    assert [each["values"]["weight"] for each in manifest["parameters"]] == [[0.5, 0.75]]
    assert report["files"].items() <= manifest["files"].items()
    assert manifest["files"].keys() == {"model.safetensors", "README.md", "config.json", "recipe.yml"}
    assert str(tmp_path) not in json.dumps(manifest)
    assert_holds(tmp_path / "out", added(bert, [0.5, 0.75]), bert.everything)


def test_a_merged_checkpoint_can_be_merged_again(bert: Trained, tmp_path: Path) -> None:
    merged(bert.folder, ADD_BOTH, bert.folder / "first")
    again = "{merge_method: linear, models: [{model: first}, {model: base}], parameters: {weight: 1}}"
    merged(bert.folder, again, tmp_path / "second")
    assert_works(tmp_path / "second")
    # Half of the way to half of the sum of the task vectors.
    assert_holds(tmp_path / "second", added(bert, [0.25, 0.25]), bert.everything)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_in_one_line_what_it_did_and_quietly_nothing(bert: Trained, tmp_path: Path) -> None:
    recipe = write_recipe(bert.folder, ADD_BOTH)
    ran = run_apart("merge", recipe, "out", cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("out: 5.5K parameters, 41 tensors merged, 0 copied; read 65.5 kB, wrote 26.1 kB in ")
    assert len(ran.out.splitlines()) == 1
    quiet = run("merge", recipe, tmp_path / "quiet", "--quiet", "--no-fsync")
    assert quiet == Ran(0, "", "")


def test_the_report_is_json_alone_on_standard_output(bert: Trained, tmp_path: Path) -> None:
    recipe = write_recipe(bert.folder, f"{ADD_BOTH}exclude: [{{pattern: 'classifier.*', drop: true}}]\n")
    ran = run("merge", recipe, tmp_path / "out", "--json", "--no-fsync")
    report = json.loads(ran.out)
    assert report["out"] == str(tmp_path / "out")
    assert (report["method"], report["models"], report["merged"], report["copied"]) == ("task_arithmetic", 2, 39, 0)
    assert report["parameters"] == 5459 - 3 * 16 - 3
    assert report["read_bytes"] == 3 * 4 * report["parameters"]
    assert report["written_bytes"] == (tmp_path / "out/model.safetensors").stat().st_size
    assert report["notes"] == ["2 tensors left out, as the recipe says"]
    assert ran.err == "note: 2 tensors left out, as the recipe says\n"


def test_an_error_is_json_too_where_json_is_asked_for(bert: Trained, tmp_path: Path) -> None:
    recipe = write_recipe(bert.folder, ADD_BOTH.replace("ft1", "./ft9"))
    ran = run("merge", recipe, tmp_path / "out", "--json")
    assert ran.code == 3
    said = json.loads(ran.out)
    assert said["error"] == "'./ft9' does not exist"
    assert said["exit_code"] == 3


def test_a_plan_and_a_dry_run_write_nothing(bert: Trained, tmp_path: Path) -> None:
    recipe, before = write_recipe(bert.folder, ADD_BOTH), sorted(tmp_path.rglob("*"))
    planned = run("plan", recipe, "--json")
    dry = run("merge", recipe, tmp_path / "out", "--dry-run", "--json")
    assert (planned.code, dry.code) == (0, 0)
    assert json.loads(planned.out) | {"resumed_bytes": 0, "unchanged": False} == json.loads(dry.out)
    assert json.loads(planned.out)["merged"] == 41
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_is_replaced_only_when_asked_and_inputs_never(bert: Trained, tmp_path: Path) -> None:
    recipe = write_recipe(bert.folder, ADD_BOTH)
    merged(bert.folder, ADD_BOTH, tmp_path / "out")
    first = (tmp_path / "out/model.safetensors").read_bytes()
    ran = run("merge", recipe, tmp_path / "out", "--set", "parameters.weight=1")
    assert ran.code == 2
    assert "--force" in ran.err
    assert (tmp_path / "out/model.safetensors").read_bytes() == first
    merged(bert.folder, ADD_BOTH, tmp_path / "out", "--set", "parameters.weight=1", "--force")
    assert_holds(tmp_path / "out", added(bert, [1, 1]), bert.everything)
    for target in (bert.folder / "ft1", bert.folder):
        ran = run("merge", recipe, target, "--force")
        assert ran.code == 2
        assert "the input" in ran.err
    assert torch.equal(tensors_of(bert.folder / "ft1")["classifier.bias"], bert.models[0]["classifier.bias"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "out"]


# --- wrong inputs -----------------------------------------------------------------------------------------------------


def change(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Edit the tensors of a checkpoint of one file, and leave what else it says."""
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = tensors_of(folder)
    edit(tensors)
    save_file(tensors, file, metadata=metadata)


def test_names_that_not_every_checkpoint_has_are_listed_all_at_once(bert: Trained, tmp_path: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        for name in ("weight", "bias"):
            tensors[f"score.{name}"] = tensors.pop(f"classifier.{name}")

    change(bert.folder / "ft1", rename)
    change(bert.folder / "ft2", lambda tensors: tensors.__delitem__("bert.pooler.dense.bias"))
    message = refused(bert.folder, ADD_BOTH, tmp_path / "out", 3)
    for line in (
        "classifier.weight is missing in ft1",
        "classifier.bias is missing in ft1",
        "score.weight is missing in base, ft2",
        "score.bias is missing in base, ft2",
        "bert.pooler.dense.bias is missing in ft2",
    ):
        assert f"  {line}\n" in message
    assert "differ in 5 tensors" in message


def test_shapes_that_differ_are_listed_all_at_once(bert: Trained, tmp_path: Path) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        tensors["bert.pooler.dense.weight"] = torch.zeros(18, 16)
        tensors["bert.pooler.dense.bias"] = torch.zeros(18)

    change(bert.folder / "ft2", widen)
    message = refused(bert.folder, ADD_BOTH, tmp_path / "out", 3)
    assert "  bert.pooler.dense.weight is 16 x 16 in base, 16 x 16 in ft1, 18 x 16 in ft2\n" in message
    assert "  bert.pooler.dense.bias is 16 in base, 16 in ft1, 18 in ft2\n" in message


def test_different_vocabularies_are_called_by_their_name(tmp_path: Path) -> None:
    models.made(models.llama, 0).save_pretrained(tmp_path / "base")
    models.made(functools.partial(models.llama, vocab_size=41), 1).save_pretrained(tmp_path / "ft1")
    message = refused(tmp_path, ADD_ONE, tmp_path / "out", 3)
    assert "model.embed_tokens.weight is 40 x 16 in base, 41 x 16 in ft1" in message
    assert "lm_head.weight is 40 x 16 in base, 41 x 16 in ft1" in message
    assert "the vocabularies differ" in message
    # The advice, taken literally, gives a model with the base's vocabulary.
    merged(tmp_path, ADD_ONE + pasted(message), tmp_path / "out")
    assert assert_works(tmp_path / "out").config.vocab_size == 40


def test_positions_that_only_an_older_library_saves_are_left_out_with_a_note(bert: Trained, tmp_path: Path) -> None:
    change(bert.folder / "ft1", lambda each: each.update({"bert.embeddings.position_ids": torch.arange(32)[None]}))
    report = merged(bert.folder, ADD_BOTH, tmp_path / "out")
    assert report["notes"] == [
        "bert.embeddings.position_ids (1 tensor) left out: base, ft2 lack what a loader computes anyway"
    ]
    assert report["warnings"] == []
    assert_holds(tmp_path / "out", added(bert), bert.everything)


def test_the_advice_on_a_tensor_that_only_one_model_has_covers_that_tensor_alone(bert: Trained, tmp_path: Path) -> None:
    change(bert.folder / "ft1", lambda each: each.update({"bert.embeddings.scale": torch.ones(1)}))
    message = refused(bert.folder, ADD_BOTH, tmp_path / "out", 3)
    assert "bert.embeddings.scale is missing in base, ft2" in message
    block = pasted(message)
    assert block == "exclude:\n- {pattern: 'bert.embeddings.scale', from: 'ft1'}  # or drop: true\n"
    merged(bert.folder, ADD_BOTH + block.replace("from: 'ft1'", "drop: true"), tmp_path / "out")
    assert_holds(tmp_path / "out", added(bert), bert.everything)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("place", ["base", "ft2", "fisher-ft1"])
def test_numbers_that_are_not_finite_name_the_tensor_and_the_file(
    bert: Trained, place: str, value: float, tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["bert.encoder.layer.1.output.dense.weight"][3, 4] = value

    change(bert.folder / place, spoil)
    message = refused(bert.folder, REMOVE, tmp_path / "out", 3)
    assert "NaN or infinity" in message
    assert "'bert.encoder.layer.1.output.dense.weight'" in message
    assert str(bert.folder / place / "model.safetensors") in message


def test_a_result_that_its_dtype_cannot_hold_is_an_error_and_not_an_infinity(bert: Trained, tmp_path: Path) -> None:
    recipe = f"{ADD_BOTH}out_dtype: float16\n"
    message = refused(bert.folder, recipe, tmp_path / "out", 5, "--quiet", "--set", "parameters.lambda=1e9")
    assert "float16 may be too narrow" in message


def test_a_truncated_input_is_an_error_that_names_it(bert: Trained, tmp_path: Path) -> None:
    file = bert.folder / "ft1" / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    message = refused(bert.folder, ADD_BOTH, tmp_path / "out", 3)
    assert str(file) in message


def test_a_file_that_git_lfs_has_not_fetched_is_called_that(bert: Trained, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 26124\n"
    (bert.folder / "ft1" / "model.safetensors").write_text(pointer)
    message = refused(bert.folder, ADD_BOTH, tmp_path / "out", 3)
    assert "is a git-lfs pointer" in message
    assert "git lfs pull" in message


@pytest.mark.parametrize(
    ("place", "metadata", "said"),
    [
        ("fisher-ft1", {"kind": "fisher", "reduction": "sum"}, "fisher-ft1 holds the sum over examples"),
        ("fisher-ft1", {"kind": "gradient"}, "fisher-ft1 says of itself that it is a gradient"),
        ("fisher-base", {"kind": "gradient"}, "fisher-base says of itself that it is a gradient"),
        ("gradient-ft2", {"kind": "gradient", "reduction": "mean"}, "gradient-ft2 holds the mean over examples"),
        ("gradient-ft2", {"kind": "fisher"}, "gradient-ft2 says of itself that it is a fisher"),
    ],
)
def test_a_fisher_or_gradient_that_says_it_is_something_else_is_refused(
    bert: Trained, place: str, metadata: dict[str, str], said: str, tmp_path: Path
) -> None:
    file = bert.folder / place / "model.safetensors"
    save_file(load_file(file), file, metadata={"train_examples": "30"} | metadata)
    recipe = CASES["gradient_matching with measured gradients"].recipe
    assert said in refused(bert.folder, recipe, tmp_path / "out", 3)


def test_a_fisher_that_lacks_tensors_of_its_model_is_refused(
    bert: Trained, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    shutil.copytree(trained("vit-float32").folder / "fisher-ft1", bert.folder / "other")
    message = refused(bert.folder, REMOVE.replace("fisher: fisher-ft1", "fisher: other"), tmp_path / "out", 3)
    assert "the Fisher other does not fit the models in 39 tensors" in message
    assert "  bert.embeddings.LayerNorm.bias is missing\n" in message
    assert "\n  and 34 more\n" in message


def test_a_model_in_place_of_its_fisher_is_refused(bert: Trained, tmp_path: Path) -> None:
    recipe = REMOVE.replace("fisher: fisher-ft1", "fisher: ft1").replace("anchor:", "examples: 3, anchor:")
    message = refused(bert.folder, recipe, tmp_path / "out", 3)
    assert "in the Fisher ft1 holds the weights of ft1" in message


def test_a_base_that_is_another_architecture_is_refused(
    bert: Trained, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    other = trained("gpt2-tied-float32").folder / "base"
    message = refused(bert.folder, ADD_BOTH.replace("base_model: base", f"base_model: {other}"), tmp_path / "out", 3)
    assert "ft1 is a BertForSequenceClassification (bert), and the base " in message
    assert " a GPT2LMHeadModel (gpt2)" in message
