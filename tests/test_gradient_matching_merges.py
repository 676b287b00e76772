"""Gradient matching as a user runs it: diagnostics, posterior precision, refusals."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_cli import CheckpointError, RecipeError, build_plan, merge, open_checkpoint
from merge_cli.checkpoint import model_identity
from merge_cli.report import mismatch_report, summarize_fisher
from merge_cli.stream import diagnose
from tests.checkpoints import read_checkpoint, recipe_over, write_checkpoint

SHAPES = {"model.layers.0.w": (40, 50), "model.layers.1.w": (30, 20), "norm": (25,)}


def fisher_metadata(examples: int, **more: str) -> dict[str, str]:
    return {"kind": "fisher", "reduction": "mean", "train_examples": str(examples), **more}


@pytest.fixture
def family(tmp_path: Path) -> dict[str, dict[str, Tensor]]:
    """A base, three experts and their Fishers on disk, and the same as tensors."""
    generator = torch.Generator().manual_seed(0)

    def drawn(scale: float) -> dict[str, Tensor]:
        return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    found = {"base": drawn(1.0)}
    for i in (1, 2, 3):
        found[f"expert-{i}"] = {name: found["base"][name] + delta for name, delta in drawn(0.1).items()}
    for i, examples in enumerate((500, 100, 200, 300)):
        found[f"fisher-{i}"] = {name: value.square() for name, value in drawn(1.0).items()}
        write_checkpoint(tmp_path / f"fisher-{i}", found[f"fisher-{i}"], metadata=fisher_metadata(examples))
    for name in ("base", "expert-1", "expert-2", "expert-3"):
        write_checkpoint(tmp_path / name, found[name])
    return found


def recipe(tmp_path: Path, models: list[dict[str, Any]], **more: Any) -> Any:
    content = {"merge_method": "gradient_matching", "base_model": "./base", "base_fisher": "./fisher-0"}
    return recipe_over(tmp_path, {**content, "models": models, **more})


def expert(i: int, weight: float = 1.0) -> dict[str, Any]:
    return {"model": f"./expert-{i}", "fisher": f"./fisher-{i}", "parameters": {"weight": weight}}


def largest_gap(one: Path, other: Path) -> float:
    left, right = read_checkpoint(one), read_checkpoint(other)
    return max((left[name] - right[name]).abs().max().item() for name in left)


@pytest.mark.usefixtures("family")
def test_merging_one_after_another_with_the_saved_precision_equals_merging_all_at_once(tmp_path: Path) -> None:
    weights = (0.7, 1.0, 0.4)
    settings = {"anchor": "base"}
    at_once = recipe(tmp_path, [expert(i, w) for i, w in zip((1, 2, 3), weights, strict=True)], parameters=settings)
    merge(build_plan(at_once), tmp_path / "at-once", sync=False)
    first = recipe(tmp_path, [expert(1, 0.7), expert(2, 1.0)], save_precision=True, parameters=settings)
    merge(build_plan(first), tmp_path / "first", sync=False)
    models = [{"model": "./first", "fisher": "./first/precision"}, expert(3, 0.4)]
    then = recipe(tmp_path, models, parameters=settings)
    merge(build_plan(then), tmp_path / "then", sync=False)
    # The precision is stored in float32, and the base's part is subtracted from it again.
    assert largest_gap(tmp_path / "then", tmp_path / "at-once") < 2e-4
    stale = recipe_over(
        tmp_path,
        {
            "merge_method": "gradient_matching",
            "base_model": "./first",
            "base_fisher": "./first/precision",
            "models": [expert(3, 0.4)],
        },
    )
    plan = build_plan(stale)
    assert any("itself a merge" in warning and "base_model: ./base" in warning for warning in plan.warnings)
    merge(plan, tmp_path / "stale", sync=False)
    assert largest_gap(tmp_path / "stale", tmp_path / "at-once") > 0.05


def test_the_saved_precision_is_the_base_curvature_plus_the_weighted_curvatures(
    tmp_path: Path, family: dict[str, dict[str, Tensor]]
) -> None:
    settings = {"prior_precision": 2.0, "curvature_floor": 0}
    made = recipe(tmp_path, [expert(1, 0.5), expert(2, 2.0)], save_precision=True, parameters=settings)
    merge(build_plan(made), tmp_path / "out", sync=False)
    precision = read_checkpoint(tmp_path / "out" / "precision")
    for name, found in precision.items():
        parts = [family[f"fisher-{i}"][name].double() for i in range(3)]
        expected = 500 * parts[0] + 2.0 + 0.5 * 100 * parts[1] + 2.0 * 200 * parts[2]
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    assert json.loads((tmp_path / "out" / "precision" / "config.json").read_text())["prior_precision"] == 2.0


def test_a_method_without_a_posterior_cannot_save_its_precision(tmp_path: Path, family: object) -> None:
    content = {"merge_method": "linear", "models": [{"model": "./expert-1", "parameters": {"weight": 1}}]}
    with pytest.raises(RecipeError, match="linear has no posterior precision"):
        build_plan(recipe_over(tmp_path, {**content, "save_precision": True}))


def test_the_forecast_of_mismatch_is_that_of_the_paper(tmp_path: Path, family: dict[str, dict[str, Tensor]]) -> None:
    """||sum_t α_t H_t (θ_TA - θ_t)|| in the metric of 1 / H_0, by hand in float64."""
    weights, settings = (0.7, 0.4), {"prior_precision": 3.0, "curvature_floor": 0, "anchor": "base"}
    plan = build_plan(recipe(tmp_path, [expert(1, 0.7), expert(2, 0.4)], parameters=settings))
    found = mismatch_report(diagnose(plan).sums)
    expected: dict[str, float] = {}
    for name in SHAPES:
        base = family["base"][name].double()
        models = [family[f"expert-{i}"][name].double() for i in (1, 2)]
        added = base + sum(w * (m - base) for w, m in zip(weights, models, strict=True))
        curvature = [n * family[f"fisher-{i}"][name].double() for i, n in ((1, 100), (2, 200))]
        gap = sum(w * h * (added - m) for w, h, m in zip(weights, curvature, models, strict=True))
        expected[name] = float((gap.square() / (500 * family["fisher-0"][name].double() + 3.0)).sum())
    assert found.total["task_arithmetic"] == pytest.approx(math.sqrt(sum(expected.values())), rel=1e-4)
    assert found.layers["model.layers.1"]["task_arithmetic"] == pytest.approx(
        math.sqrt(expected["model.layers.1.w"]), rel=1e-4
    )
    assert found.total["gradient_matching"] == 0


def test_gradients_say_how_far_fine_tuning_was_held_back(tmp_path: Path, family: dict[str, dict[str, Tensor]]) -> None:
    """With g = -c H_0 τ, gratio is c, and anchor auto takes that share of H_0."""
    for i, share in ((1, 0.25), (2, 1.0)):
        gradient = {
            name: -share * (500 * family["fisher-0"][name] + 3.0) * (family[f"expert-{i}"][name] - family["base"][name])
            for name in SHAPES
        }
        write_checkpoint(tmp_path / f"gradient-{i}", gradient, metadata={"kind": "gradient", "reduction": "sum"})
    models = [{**expert(i, 0.5), "gradient": f"./gradient-{i}"} for i in (1, 2)]
    settings = {"prior_precision": 3.0, "curvature_floor": 0}
    report = merge(build_plan(recipe(tmp_path, models, parameters=settings)), tmp_path / "auto", sync=False)
    assert report.diagnostics["gratio"] == pytest.approx([0.25, 1.0], rel=1e-4)
    assert report.findings[0].startswith("./expert-1: hardly held back by the base's curvature")
    assert report.findings[1].startswith("./expert-2: held back by the base's curvature, as assumed (gratio 1,")
    exact = recipe(tmp_path, models, parameters={**settings, "anchor": "measured"})
    merge(build_plan(exact), tmp_path / "measured", sync=False)
    # Where the gradient is that share of H_0 everywhere, the measured rule says the same.
    assert largest_gap(tmp_path / "auto", tmp_path / "measured") < 1e-5


@pytest.mark.usefixtures("family")
def test_extrapolation_is_one_for_a_single_model_and_warned_of_where_it_is_large(tmp_path: Path) -> None:
    alone = diagnose(build_plan(recipe(tmp_path, [expert(1)]))).diagnosis
    assert alone.values["extrapolation"] == pytest.approx(1.0, rel=1e-4)
    models = [expert(1, 4.0), expert(1, 4.0), expert(1, 4.0)]
    far = diagnose(build_plan(recipe(tmp_path, models, parameters={"anchor": "base"}))).diagnosis
    assert far.values["extrapolation"] > 1.5
    assert not any("far beyond" in warning for warning in alone.warnings)


@pytest.mark.usefixtures("family")
def test_what_was_counted_is_said_in_a_sentence(tmp_path: Path) -> None:
    models = [expert(1, -1.0), expert(2, -1.0)]
    report = merge(build_plan(recipe(tmp_path, models, parameters={"kappa": 1.0})), tmp_path / "out", sync=False)
    # A least precision of all that the base has leaves nothing to remove.
    assert report.counts == {"clipped": report.parameters}
    assert report.findings[-1].startswith(f"{report.parameters:,} of {report.parameters:,} elements kept the least")


def test_a_fisher_of_another_model_is_refused(tmp_path: Path, family: dict[str, dict[str, Tensor]]) -> None:
    identity = model_identity(open_checkpoint(tmp_path / "expert-2"))
    metadata = fisher_metadata(100, model_identity=identity)
    write_checkpoint(tmp_path / "fisher-1", family["fisher-1"], metadata=metadata)
    with pytest.raises(CheckpointError, match=r"fisher-1 was not measured at \./expert-1"):
        merge(build_plan(recipe(tmp_path, [expert(1), expert(2)])), tmp_path / "out", sync=False)
    assert not (tmp_path / "out").exists()
    write_checkpoint(tmp_path / "fisher-2", family["fisher-2"], metadata=metadata)
    merge(build_plan(recipe(tmp_path, [expert(2)])), tmp_path / "out", sync=False)


def test_a_base_fisher_of_another_model_is_refused(tmp_path: Path, family: dict[str, dict[str, Tensor]]) -> None:
    identity = model_identity(open_checkpoint(tmp_path / "expert-2"))
    write_checkpoint(tmp_path / "fisher-0", family["fisher-0"], metadata=fisher_metadata(500, model_identity=identity))
    with pytest.raises(
        CheckpointError, match=r"the Fisher \./fisher-0 was not measured at \./base: it records another"
    ):
        diagnose(build_plan(recipe(tmp_path, [expert(1)])))


def gradient_of(tmp_path: Path, measured_at: str, values: dict[str, Tensor]) -> dict[str, Any]:
    """Write a gradient that was measured somewhere, and return the entry of expert-1 with it."""
    said = {
        "kind": "gradient",
        "reduction": "sum",
        "model_identity": model_identity(open_checkpoint(tmp_path / measured_at)),
    }
    write_checkpoint(tmp_path / "gradient", values, config=None, metadata=said)
    return {**expert(1), "gradient": "./gradient"}


@pytest.mark.parametrize(
    ("measured_at", "says"),
    [("expert-2", "it records another model's identity"), ("base", "but at the base")],
)
def test_a_gradient_of_another_model_is_refused(
    tmp_path: Path, family: dict[str, dict[str, Tensor]], measured_at: str, says: str
) -> None:
    entry = gradient_of(tmp_path, measured_at, family["fisher-3"])
    with pytest.raises(CheckpointError) as caught:
        merge(build_plan(recipe(tmp_path, [entry])), tmp_path / "out", sync=False)
    assert caught.value.message.startswith("the gradient ./gradient was not measured at ./expert-1")
    assert says in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_gradient_of_its_model_is_taken(tmp_path: Path, family: dict[str, dict[str, Tensor]]) -> None:
    entry = gradient_of(tmp_path, "expert-1", family["fisher-3"])
    merge(build_plan(recipe(tmp_path, [entry])), tmp_path / "out", sync=False)
    assert (tmp_path / "out").is_dir()


def test_a_file_that_holds_the_weights_is_no_gradient(tmp_path: Path, family: dict[str, dict[str, Tensor]]) -> None:
    write_checkpoint(tmp_path / "gradient", family["expert-1"], config=None)
    with pytest.raises(CheckpointError, match=r"in the gradient \./gradient holds the weights of \./expert-1"):
        diagnose(build_plan(recipe(tmp_path, [{**expert(1), "gradient": "./gradient"}])))


def test_a_file_that_holds_the_weights_is_no_fisher(tmp_path: Path, family: dict[str, dict[str, Tensor]]) -> None:
    positive = {name: value.abs() + 1 for name, value in family["expert-1"].items()}
    write_checkpoint(tmp_path / "expert-1", positive)
    mixed = {**family["fisher-1"], "norm": positive["norm"]}
    write_checkpoint(tmp_path / "fisher-1", mixed, metadata=fisher_metadata(100))
    with pytest.raises(CheckpointError, match=r"'norm' in the Fisher \./fisher-1 holds the weights of \./expert-1"):
        merge(build_plan(recipe(tmp_path, [expert(1)])), tmp_path / "out", sync=False)


@pytest.mark.parametrize(("value", "what"), [(-1e-3, "negative"), (float("nan"), "NaN or infinity")])
def test_a_fisher_that_is_negative_or_not_finite_is_refused(
    tmp_path: Path, family: dict[str, dict[str, Tensor]], value: float, what: str
) -> None:
    family["fisher-2"]["norm"][7] = value
    write_checkpoint(tmp_path / "fisher-2", family["fisher-2"], metadata=fisher_metadata(200))
    with pytest.raises(CheckpointError, match=rf"'norm' in .*fisher-2.*{what}"):
        merge(build_plan(recipe(tmp_path, [expert(1), expert(2)])), tmp_path / "out", sync=False)
    assert not (tmp_path / "out").exists()


def test_the_summary_of_a_fisher_shows_mean_zeros_and_largest(tmp_path: Path) -> None:
    tensors = {"layers.0.w": [0.0, 2.0, 4.0, 0.0], "layers.0.b": [2.0, 4.0], "head": [8.0]}
    write_checkpoint(tmp_path / "fisher", tensors, metadata=fisher_metadata(1))
    summary = summarize_fisher(open_checkpoint(tmp_path / "fisher"))
    assert (summary["layers.0"].mean, summary["layers.0"].zeros, summary["layers.0"].largest) == (2.0, 2 / 6, 4.0)
    assert summary["head"].largest == 8.0
    write_checkpoint(tmp_path / "model", tensors)
    assert summarize_fisher(open_checkpoint(tmp_path / "model")) == {}
