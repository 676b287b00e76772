from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from merge_cli.fisher.likelihood import Estimator, Likelihood, Task
from merge_cli.fisher.objective import Batch, Target
from merge_cli.fisher.squared_gradients import SquaredGradients
from tests.fisher.models import FAMILIES, UNUSUAL, build, loop, worst_difference


def estimate(case, objective, batch_size: int) -> SquaredGradients:
    squares = SquaredGradients(case.model, dict(case.model.named_parameters()))
    for start in range(0, case.batch.size, batch_size):
        rows = list(range(start, min(start + batch_size, case.batch.size)))
        squares.add(case.batch.take(rows), objective)
    return squares


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_give_the_sums_of_a_loop_over_single_examples(family: str, batch_size: int) -> None:
    case = build(family)
    squares = estimate(case, Likelihood(case.task, Estimator.EMPIRICAL), batch_size)
    assert case.batch.labels is not None
    expected = loop(case, [case.batch.labels], [torch.ones(8)])
    assert worst_difference(squares.totals, expected) < 1e-5


@pytest.mark.parametrize("family", UNUSUAL)
def test_modules_without_a_rule_give_the_sums_of_the_loop_too(family: str) -> None:
    case = build(family, size=5)
    squares = estimate(case, Likelihood(case.task, Estimator.EMPIRICAL), 3)
    assert case.batch.labels is not None
    assert worst_difference(squares.totals, loop(case, [case.batch.labels], [torch.ones(5)])) < 1e-5


@pytest.mark.parametrize("family", ["roberta", "vit"])
def test_the_exact_estimator_weighs_every_class_with_its_probability(family: str) -> None:
    case = build(family)
    squares = estimate(case, Likelihood(case.task, Estimator.EXACT), 3)
    with torch.no_grad():
        probabilities = torch.softmax(case.model(**case.batch.inputs).logits, dim=-1)
    classes = [torch.full((8,), label) for label in range(3)]
    expected = loop(case, classes, list(probabilities.t()))
    assert worst_difference(squares.totals, expected) < 1e-5


@pytest.mark.parametrize("family", ["llama", "llama tied", "gpt2", "bert", "bert masked", "roberta", "t5"])
def test_the_large_families_take_no_detour(family: str) -> None:
    case = build(family)
    assert set(estimate(case, Likelihood(case.task, Estimator.EMPIRICAL), 8).ways().values()) == {"layer"}


def test_only_class_token_and_positions_of_a_vit_are_replayed() -> None:
    ways = estimate(build("vit"), Likelihood(Task.IMAGE_CLASSIFICATION, Estimator.EXACT), 8).ways()
    assert {name for name, way in ways.items() if way != "layer"} == {
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
    }


def test_a_part_of_the_parameters_gives_the_same_numbers_as_all() -> None:
    case = build("llama tied")
    objective = Likelihood(case.task, Estimator.EMPIRICAL)
    whole = estimate(case, objective, 4).totals
    names = [name for name in whole if "mlp" in name or "embed" in name]
    named = dict(case.model.named_parameters())
    part = SquaredGradients(case.model, {name: named[name] for name in names})
    for start in (0, 4):
        part.add(case.batch.take(list(range(start, start + 4))), objective)
    assert list(part.totals) == names
    for name in names:
        torch.testing.assert_close(part.totals[name], whole[name], rtol=1e-6, atol=0)


def test_accumulators_are_float32_when_the_model_computes_in_bfloat16() -> None:
    case = build("bert")
    exact = estimate(case, Likelihood(case.task, Estimator.EXACT), 8).totals
    case.model.to(torch.bfloat16)
    rough = estimate(case, Likelihood(case.task, Estimator.EXACT), 8).totals
    assert all(total.dtype == torch.float32 for total in rough.values())
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert float(rough[name].sum()) == pytest.approx(float(exact[name].sum()), rel=0.1)


class Sum:
    """Losses are the sums of the outputs."""

    def targets(self, outputs: Tensor, batch: Batch) -> list[Target]:
        return [Target(torch.zeros(batch.size, dtype=torch.long))]

    def losses(self, outputs: Tensor, target: Target) -> Tensor:
        return outputs.flatten(1).sum(dim=1)


class Wrapped(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x)
        return made


def test_tokens_are_summed_before_squaring() -> None:
    # One example of two tokens, 1 and 2: the gradient is 3, its square 9; squares per token would give 5.
    model = Wrapped(nn.Linear(1, 1, bias=False))
    squares = SquaredGradients(model, dict(model.named_parameters()))
    squares.add(Batch({"x": torch.tensor([[[1.0], [2.0]]])}, (0,)), Sum())
    assert squares.totals["layer.weight"].item() == 9.0


def test_examples_are_squared_before_summing() -> None:
    # Two examples, 1 and 2: 1 + 4, not 9.
    model = Wrapped(nn.Linear(1, 1, bias=False))
    squares = SquaredGradients(model, dict(model.named_parameters()))
    squares.add(Batch({"x": torch.tensor([[1.0], [2.0]])}, (0, 1)), Sum())
    assert squares.totals["layer.weight"].item() == 5.0


class Twice(nn.Module):
    """Uses a weight in a layer and once more beside it, where no hook sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)) @ self.layer.weight


def test_a_use_that_no_layer_shows_is_found_out_by_comparison_with_the_loop() -> None:
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(4, 2, 3)
    weight = model.layer.weight
    gradients = [torch.autograd.grad(model(row[None]).sum(), weight)[0] for row in x]
    squares = SquaredGradients(model, {"weight": weight})
    squares.add(Batch({"x": x}, (0, 1, 2, 3)), Sum())
    assert squares.ways() == {"weight": "model"}
    torch.testing.assert_close(squares.totals["weight"], sum(gradient**2 for gradient in gradients))


class Router(nn.Module):
    """Calls its second layer for large inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x)
        large = x.abs().amax(dim=1, keepdim=True) > 10
        return torch.where(large, self.second(out), out) if bool(large.any()) else out


def test_a_layer_that_is_first_called_in_a_later_batch_is_not_missed() -> None:
    torch.manual_seed(0)
    model = Router()
    named = dict(model.named_parameters())
    x = torch.tensor([[1.0, 2.0], [3.0, 1.0], [20.0, 1.0], [2.0, 2.0]])
    expected = {name: torch.zeros_like(value) for name, value in named.items()}
    for row in x:
        gradients = torch.autograd.grad(model(row[None]).sum(), list(named.values()), allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            expected[name] += 0 if gradient is None else gradient**2
    squares = SquaredGradients(model, named)
    for rows in ([0, 1], [2, 3]):
        squares.add(Batch({"x": x}, (0, 1, 2, 3)).take(rows), Sum())
    assert float(expected["second.weight"].detach().sum()) > 0
    for name, value in expected.items():
        torch.testing.assert_close(squares.totals[name], value.detach())


@pytest.mark.parametrize("settings", [{"stride": 2}, {"padding": 1, "dilation": 2}, {"groups": 2}])
def test_convolutions_of_any_setting_match_the_loop(settings: dict[str, int]) -> None:
    torch.manual_seed(0)
    model, x = Wrapped(nn.Conv2d(2, 4, 3, **settings)), torch.randn(3, 2, 7, 7)
    named = dict(model.named_parameters())
    expected = {
        name: sum(torch.autograd.grad((model(row[None]) ** 2).sum(), value)[0] ** 2 for row in x)
        for name, value in named.items()
    }

    class Energy(Sum):
        def losses(self, outputs: Tensor, target: Target) -> Tensor:
            return outputs.square().flatten(1).sum(dim=1)

    squares = SquaredGradients(model, named)
    squares.add(Batch({"x": x}, (0, 1, 2)), Energy())
    for name, value in expected.items():
        torch.testing.assert_close(squares.totals[name], value, rtol=1e-4, atol=1e-4)


class Largest(TorchDispatchMode):
    """Records how many elements the largest tensor made had."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else (made,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.element_size())
        return made


def test_no_tensor_is_larger_than_a_weight_or_an_activation() -> None:
    # A weight has 512 * 512 = 262,144 elements, an activation 4 * 64 * 512 = 131,072; all gradients at once, 4 weights.
    model = Wrapped(nn.Sequential(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 512)))
    squares = SquaredGradients(model, dict(model.named_parameters()))
    batch = Batch({"x": torch.randn(4, 64, 512)}, (0, 1, 2, 3))
    squares.add(batch, Sum())
    with Largest() as largest:
        squares.add(batch, Sum())
    assert largest.numel == 512 * 512


def test_a_table_with_as_many_rows_as_the_batch_is_not_taken_for_examples() -> None:
    # T5 looks its table of relative positions up with (tokens, tokens) ids; here tokens equal the batch size.
    case = build("t5", size=9)
    assert case.batch.inputs["input_ids"].shape == (9, 9)
    squares = estimate(case, Likelihood(case.task, Estimator.EMPIRICAL), 9)
    assert case.batch.labels is not None
    assert worst_difference(squares.totals, loop(case, [case.batch.labels], [torch.ones(9)])) < 1e-5
