import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from merge_cli.errors import RecipeError
from merge_cli.fisher.likelihood import Estimator, Likelihood, Task, draw_labels
from merge_cli.fisher.objective import Batch
from merge_cli.fisher.squared_gradients import SquaredGradients
from tests.fisher.models import build


class Softmax(nn.Module):
    """Softmax regression without a bias: logits = W x."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, classes, bias=False)

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.layer(x))


def fisher(model: nn.Module, batch: Batch, objective: Likelihood) -> Tensor:
    squares = SquaredGradients(model, dict(model.named_parameters()))
    squares.add(batch, objective)
    [total] = squares.totals.values()
    return total / batch.size


def softmax_regression(examples: int = 40, classes: int = 4) -> tuple[Softmax, Batch]:
    torch.manual_seed(0)
    return Softmax(3, classes), Batch({"x": torch.randn(examples, 3)}, tuple(range(examples)))


def hessian_diagonal(model: Softmax, x: Tensor) -> Tensor:
    """Second derivative of -log p(y|x) to W[c, d]: p_c (1 - p_c) x_d², whatever y is; the mean over examples."""
    with torch.no_grad():
        p = torch.softmax(model.layer(x).double(), dim=-1)
    return ((p * (1 - p)).t() @ x.double().square()) / len(x)


def test_the_exact_fisher_of_softmax_regression_is_its_hessian() -> None:
    model, batch = softmax_regression()
    expected = hessian_diagonal(model, batch.inputs["x"])
    found = fisher(model, batch, Likelihood(Task.SEQUENCE_CLASSIFICATION, Estimator.EXACT))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-8)


def test_the_exact_fisher_of_logistic_regression_is_its_hessian() -> None:
    # Two logits with weights w and -w/…: written with rows (0, w), p = sigmoid(w x), H = p (1 - p) x² = 0.25 at w = 0.
    model = Softmax(1, 2)
    with torch.no_grad():
        model.layer.weight.zero_()
    batch = Batch({"x": torch.tensor([[1.0], [3.0]])}, (0, 1))
    found = fisher(model, batch, Likelihood(Task.SEQUENCE_CLASSIFICATION, Estimator.EXACT))
    torch.testing.assert_close(found, torch.full((2, 1), 0.25 * (1 + 9) / 2))


def test_the_error_of_the_sampled_fisher_halves_with_four_times_the_draws() -> None:
    model, batch = softmax_regression()
    expected = hessian_diagonal(model, batch.inputs["x"])

    def error(draws: int) -> float:
        found = [
            fisher(model, batch, Likelihood(Task.SEQUENCE_CLASSIFICATION, Estimator.SAMPLED, draws, seed))
            for seed in range(12)
        ]
        return math.sqrt(sum(float((value.double() - expected).square().mean()) for value in found) / 12)

    few, many = error(4), error(64)
    assert 2.5 < few / many < 6.4  # sqrt(16) = 4
    assert many < 0.1 * float(expected.mean())


def test_doubling_the_data_set_leaves_the_mean_and_doubles_the_sum() -> None:
    model, batch = softmax_regression(examples=10)
    twice = batch.take([*range(10), *range(10)])
    objective = Likelihood(Task.SEQUENCE_CLASSIFICATION, Estimator.SAMPLED)
    once, again = fisher(model, batch, objective), fisher(model, twice, objective)
    torch.testing.assert_close(again, once)
    torch.testing.assert_close(20 * again, 2 * 10 * once)


def expected_optimizer_square(model: Softmax, x: Tensor, chances: Tensor) -> Tensor:
    """B times the squared mean gradient of a batch, on average over all its labels, drawn with these chances."""
    classes, total = chances.shape[1], torch.zeros_like(model.layer.weight)
    # Measuring needs no gradients of weights, and has switched them off.
    model.requires_grad_(True)
    for labels in itertools.product(range(classes), repeat=len(x)):
        loss = nn.functional.cross_entropy(model.layer(x), torch.tensor(labels))
        [gradient] = torch.autograd.grad(loss, [model.layer.weight])
        chance = math.prod(float(row[label]) for row, label in zip(chances, labels, strict=True))
        total += chance * len(x) * gradient.square()
    return total


def test_the_square_of_a_mean_gradient_times_the_batch_is_unbiased_for_drawn_labels_alone() -> None:
    """What an import from an optimizer's second moments rests on, and where it goes wrong."""
    model, batch = softmax_regression(examples=3, classes=3)
    x = batch.inputs["x"]
    exact = fisher(model, batch, Likelihood(Task.SEQUENCE_CLASSIFICATION, Estimator.EXACT))
    drawn = expected_optimizer_square(model, x, torch.softmax(model.layer(x), dim=-1).detach())
    torch.testing.assert_close(drawn, exact)
    # True labels are no draws from the model: the gradients of a batch pull together.
    true = expected_optimizer_square(model, x, nn.functional.one_hot(torch.tensor([0, 0, 0]), 3).float())
    labelled = replace(batch, labels=torch.tensor([0, 0, 0]))
    empirical = fisher(model, labelled, Likelihood(Task.SEQUENCE_CLASSIFICATION, Estimator.EMPIRICAL))
    assert float((true - empirical).abs().max()) > 0.1 * float(exact.max())


class Unigram(nn.Module):
    """The same logits at every token."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 2, bias=False)

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.layer(x))


def test_losses_are_sums_over_tokens_and_not_means() -> None:
    # Four tokens, all with label 0 at p = 1/2: the gradient of each is 1/2, the square of the sum 4; of the mean 1/4.
    model = Unigram()
    with torch.no_grad():
        model.layer.weight.zero_()
    batch = Batch({"x": torch.ones(1, 4, 1)}, (0,), torch.zeros(1, 4, dtype=torch.long))
    found = fisher(model, batch, Likelihood(Task.TOKEN_CLASSIFICATION, Estimator.EMPIRICAL))
    torch.testing.assert_close(found, torch.full((2, 1), 4.0))


def test_tokens_labelled_minus_one_hundred_count_nowhere() -> None:
    model = Unigram()
    with torch.no_grad():
        model.layer.weight.zero_()
    labels = torch.tensor([[0, -100, -100, 0]])
    batch = Batch({"x": torch.ones(1, 4, 1)}, (0,), labels)
    for estimator in (Estimator.EMPIRICAL, Estimator.SAMPLED):
        objective = Likelihood(Task.TOKEN_CLASSIFICATION, estimator)
        [target] = objective.targets(model(**batch.inputs), batch)
        assert (target.labels == -100).tolist() == [[False, True, True, False]]
        assert float(objective.losses(model(**batch.inputs), target).detach().sum()) == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("family", ["llama", "t5", "bert masked"])
def test_drawn_labels_do_not_depend_on_the_batch(family: str) -> None:
    case = build(family)
    objective = Likelihood(case.task, Estimator.SAMPLED, draws=2, seed=7)
    with torch.no_grad():
        together = objective.targets(case.model(**case.batch.inputs), case.batch)
        for row in range(8):
            one = case.batch.take([row])
            alone = objective.targets(case.model(**one.inputs), one)
            for first, second in zip(together, alone, strict=True):
                torch.testing.assert_close(first.labels[row : row + 1], second.labels)


def test_drawn_labels_follow_the_distribution_of_the_model() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log().expand(4000, 3)
    [labels] = draw_labels(logits, None, range(4000), draws=1, seed=0)
    shares = torch.bincount(labels, minlength=3) / 4000
    # Three standard deviations of a share are below 3 * sqrt(.25 / 4000) = 0.024.
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.7]), rtol=0, atol=0.024)


@given(seed=st.integers(0, 2**32), key=st.integers(0, 2**40))
@settings(max_examples=50, deadline=None)
def test_an_impossible_class_is_never_drawn(seed: int, key: int) -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).expand(1, 6, 5)
    for labels in draw_labels(logits, torch.ones(1, 6, dtype=torch.bool), [key], draws=3, seed=seed):
        assert set(labels.flatten().tolist()) <= {1, 3}


def test_different_seeds_and_examples_draw_different_labels() -> None:
    logits = torch.zeros(2, 64, 1000)
    first = draw_labels(logits, None, [0, 1], draws=1, seed=0)[0]
    other = draw_labels(logits, None, [0, 1], draws=1, seed=1)[0]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, other)


def test_the_exact_estimator_is_refused_for_tokens() -> None:
    case = build("llama")
    with pytest.raises(RecipeError, match="one label for each of many tokens"):
        Likelihood(case.task, Estimator.EXACT).targets(case.model(**case.batch.inputs), case.batch)


def test_the_empirical_estimator_is_refused_without_labels() -> None:
    model, batch = softmax_regression()
    with pytest.raises(RecipeError, match="needs labels"):
        Likelihood(Task.SEQUENCE_CLASSIFICATION, Estimator.EMPIRICAL).targets(model(**batch.inputs), batch)
