"""The formulas of the experiment against the tool, and its statistics against numbers worked out by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_cli import build_plan, load_recipe, merge
from tests.experiments import formulas
from tests.experiments.formulas import Site, gradient_matching
from tests.experiments.runs import _at
from tests.experiments.statistics import area_under_curve, interval

_SHAPE = (40, 25)
_EXAMPLES, _BASE_EXAMPLES = (300, 500, 200), 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three experts, their Fishers and gradients: one tensor each."""
    folder = tmp_path_factory.mktemp("site")
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(_SHAPE, generator=generator)

    def save(name: str, values: Tensor, **metadata: str) -> None:
        (folder / name).mkdir(parents=True)
        save_file({"weight": values}, folder / name / "model.safetensors", metadata={"format": "pt", **metadata})

    base = noise()
    save("base", base)
    save("fisher-base", noise().square(), train_examples=str(_BASE_EXAMPLES))
    for i, examples in enumerate(_EXAMPLES):
        save(f"expert-{i}", base + 0.1 * noise())
        save(f"fisher-{i}", noise().square(), train_examples=str(examples))
        save(f"fisher-{i}/gradient", 20 * noise(), kind="gradient", reduction="sum")
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Site:
    def read(name: str) -> Tensor:
        return load_file(folder / name / "model.safetensors")["weight"].flatten().double()

    def rows(name: str) -> Tensor:
        return torch.stack([read(name.format(i)) for i in range(3)])

    examples = torch.tensor(_EXAMPLES).double()[:, None]
    base = read("base")
    return Site(
        base, rows("expert-{}") - base, read("fisher-base") * _BASE_EXAMPLES, rows("fisher-{}") * examples,
        rows("fisher-{}/gradient"),
    )  # fmt: skip


def _recipe(method: str, rest: str) -> str:
    plain = method in ("linear", "task_arithmetic", "ties")
    base_fisher = "base_fisher: ./fisher-base\n" if method == "gradient_matching" else ""
    gradients = method == "gradient_matching" and "anchor: base" not in rest
    text = f"merge_method: {method}\nbase_model: ./base\n{base_fisher}models:\n"
    for i in range(3):
        text += f"  - model: ./expert-{i}\n"
        text += "" if plain else f"    fisher: ./fisher-{i}\n"
        text += f"    gradient: ./fisher-{i}/gradient\n" if gradients else ""
    return f"{text}parameters: {{{rest}}}\n"


_MATCHING: dict[str, dict[str, Any]] = {
    "weight: 1.0": {},
    "weight: 0.3": {"weight": 0.3},
    "weight: 0.5, anchor: base": {"weight": 0.5, "anchor": "base"},
    "weight: 2.0, anchor: none": {"weight": 2.0, "anchor": "none"},
    "weight: 1.0, anchor: measured": {"anchor": "measured"},
    "weight: 1.0, box: true": {"box": True},
    "weight: -1.0, anchor: base": {"weight": -1.0, "anchor": "base"},
}
_OTHERS: dict[tuple[str, str], Callable[[Site], Tensor]] = {
    ("linear", "weight: 1.0"): formulas.average,
    ("task_arithmetic", "weight: 0.7"): lambda site: formulas.task_arithmetic(site, 0.7),
    ("ties", "weight: 1, density: 0.2, lambda: 1.3, trim: model, zero_sum: none"): lambda site: formulas.ties(
        site, 1.3
    ),
    ("fisher", "fisher_floor: 0.3"): lambda site: formulas.fisher_average(site, 0.3),
}


def _check(method: str, rest: str, expected: Tensor, site: Site, folder: Path, out: Path) -> None:
    path = folder / "recipe.yml"
    path.write_text(_recipe(method, rest))
    merge(build_plan(load_recipe(path)), out)
    found = load_file(out / "model.safetensors")["weight"].flatten().double()
    assert float((expected - site.base).norm()) > 0.1
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("rest", _MATCHING)
def test_the_tool_matches_gradients_as_the_formula_says(rest: str, site: Site, folder: Path, tmp_path: Path) -> None:
    expected = gradient_matching(site, **_MATCHING[rest]).merged
    _check("gradient_matching", rest, expected, site, folder, tmp_path / "merged")


@pytest.mark.parametrize(("method", "rest"), _OTHERS)
def test_the_tool_merges_as_the_formula_says(method: str, rest: str, site: Site, folder: Path, tmp_path: Path) -> None:
    _check(method, rest, _OTHERS[method, rest](site), site, folder, tmp_path / "merged")


def test_the_tool_diagnoses_the_extrapolation_of_the_formula(site: Site, folder: Path, tmp_path: Path) -> None:
    path = folder / "recipe.yml"
    path.write_text(_recipe("gradient_matching", "weight: 1.0"))
    report = merge(build_plan(load_recipe(path)), tmp_path / "merged")
    assert report.diagnostics["extrapolation"] == pytest.approx(gradient_matching(site).extrapolation, rel=1e-4)
    assert report.diagnostics["gratio"] == pytest.approx(site.gratio, rel=1e-3)


def test_an_interval_is_that_of_student() -> None:
    # Mean 2, standard deviation 1, three values: 4.303 / sqrt(3).
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.half) == (2.0, pytest.approx(2.4843, abs=1e-3))
    assert not found.excludes_zero
    assert interval([5.0]).half == float("inf")


def test_the_area_under_the_curve_counts_pairs_in_order() -> None:
    assert area_under_curve([3.0, 2.0, 1.0], [True, False, True]) == 0.5
    assert area_under_curve([3.0, 2.0, 1.0], [True, True, False]) == 1.0
    assert area_under_curve([1.0, 1.0], [True, False]) == 0.5
    assert area_under_curve([1.0, 2.0], [True, True]) is None


def test_removals_are_compared_where_the_control_has_risen_equally() -> None:
    # The control reaches 1.05 half way between the first weight and the second.
    assert _at([(1.02, 3.0), (1.08, 5.0)], (1.0, 2.0), 0.05) == pytest.approx(4.0)
    assert _at([(1.0, 2.5)], (1.0, 2.0), 0.05) == 2.5
