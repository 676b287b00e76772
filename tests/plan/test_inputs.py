"""Which checkpoints are models, which is the base, and which Fishers and gradients belong to them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from merge_cli.checkpoint import open_checkpoint
from merge_cli.errors import CheckpointError, RecipeError
from merge_cli.methods import find_method, method_names
from merge_cli.methods.contract import Input
from merge_cli.plan import MergePlan, build_plan
from merge_cli.plan.companions import posterior_prior
from tests.checkpoints import recipe_over, write_checkpoint

N = {"train_examples": "1000"}
NEED_A_BASE = [
    name
    for name in method_names()
    if Input.BASE in find_method(name).needs(find_method(name).params.model_construct(), frozenset())
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "one", "two"):
        write_checkpoint(tmp_path / name, {"w": [1.0, 2.0], "v": [3.0]})
    for name in ("fisher-base", "fisher-one", "fisher-two", "gradient-one"):
        write_checkpoint(
            tmp_path / name, {"w": [1.0, 2.0], "v": [3.0]}, config=None, metadata={"train_examples": "1000"}
        )
    return tmp_path


def model(name: str, **parameters: Any) -> dict[str, Any]:
    return {"model": name, "parameters": {"weight": 1, **parameters}}


def plan(folder: Path, method: str, models: list[dict[str, Any]], **recipe: Any) -> MergePlan:
    return build_plan(recipe_over(folder, {"merge_method": method, "models": models, **recipe}))


def roles(found: MergePlan) -> dict[str, str]:
    return {str(each.role): each.label for each in found.inputs}


def refused(folder: Path, method: str, models: list[dict[str, Any]], **recipe: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        plan(folder, method, models, **recipe)
    return str(caught.value)


@pytest.mark.parametrize("spelling", ["base", "./base", "one/../base"])
def test_a_base_that_is_listed_among_the_models_is_no_model_of_its_own_task_vector(folder: Path, spelling: str) -> None:
    found = plan(folder, "ties", [{"model": spelling}, model("one")], base_model="base")
    assert found.n == 1
    assert [task.params.weight for task in found.merged if task.params] == [(1.0,)] * 2  # type: ignore[attr-defined]
    assert roles(found)["model 0"] == "one"


def test_a_base_given_by_its_whole_path_is_still_the_base(folder: Path) -> None:
    found = plan(folder, "ties", [model(str(folder / "base")), model("one")], base_model="base")
    assert found.n == 1


def test_a_base_that_is_not_listed_takes_no_part_in_an_average(folder: Path) -> None:
    found = plan(folder, "linear", [model("one"), model("two")], base_model="base")
    assert found.n == 2
    assert found.tasks[0].base is None
    assert "linear does not use the base's weights; base gives configuration and tokenizer" in found.warnings


def test_a_base_that_is_listed_takes_part_in_an_average(folder: Path) -> None:
    found = plan(folder, "linear", [model("base"), model("two")], base_model="base")
    assert found.n == 2
    assert [source.file.parent.name for source in found.tasks[0].models] == ["base", "two"]
    assert not [warning for warning in found.warnings if "does not use" in warning]


def test_a_base_that_is_listed_stays_a_model_of_an_average_where_steps_prepare_task_vectors(folder: Path) -> None:
    found = plan(
        folder, "linear", [model("base"), model("two")], base_model="base", prepare={"dare": {"drop_rate": 0.5}}
    )
    assert [source.file.parent.name for source in found.tasks[0].models] == ["base", "two"]
    assert found.tasks[0].base is not None


def test_slerp_takes_the_base_and_one_model(folder: Path) -> None:
    t = {"parameters": {"t": 0.5}}
    assert plan(folder, "slerp", [{"model": "base"}, {"model": "one"}], base_model="base", **t).n == 1
    assert plan(folder, "slerp", [{"model": "one"}], base_model="base", **t).n == 1
    said = refused(folder, "slerp", [{"model": "one"}, {"model": "two"}], base_model="base", **t)
    assert "slerp takes 1 model besides the base, the recipe gives 2" in said
    said = refused(folder, "slerp", [{"model": "base"}], base_model="base", **t)
    assert "slerp takes 1 model besides the base, the recipe gives 0" in said


def test_passthrough_takes_one_model(folder: Path) -> None:
    assert "passthrough takes 1 model, the recipe gives 2" in refused(
        folder, "passthrough", [model("one"), model("two")]
    )


@pytest.mark.parametrize("method", NEED_A_BASE)
def test_methods_of_task_vectors_need_a_base(folder: Path, method: str) -> None:
    said = refused(folder, method, [model("one")], parameters={"t": 0.5, "prior_precision": 1})
    assert f"{method} needs base_model" in said


def test_the_same_model_twice_is_two_models(folder: Path) -> None:
    found = plan(folder, "linear", [model("one"), model("one")])
    assert found.n == 2


def test_a_model_that_is_nowhere_is_an_unusable_input(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'\./three' does not exist"):
        plan(folder, "linear", [model("./three")])


def test_relative_paths_start_from_the_recipe_and_then_from_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(folder / "elsewhere" / "one", {"w": [1.0, 2.0], "v": [3.0]})
    write_checkpoint(folder / "elsewhere" / "three", {"w": [1.0, 2.0], "v": [3.0]})
    monkeypatch.chdir(folder / "elsewhere")
    found = plan(folder, "linear", [model("one"), model("three")])
    assert [each.root for each in found.inputs] == [folder / "one", folder / "elsewhere" / "three"]


# --- Fishers and gradients --------------------------------------------------------------------------------------------


def test_each_model_has_its_fisher_and_the_base_its_own(folder: Path) -> None:
    models = [{**model("two"), "fisher": "fisher-two"}, {**model("one"), "fisher": "fisher-one"}]
    found = plan(folder, "gradient_matching", models, base_model="base", base_fisher="fisher-base")
    assert roles(found) == {
        "base": "base", "model 0": "two", "model 1": "one", "fisher 0": "fisher-two", "fisher 1": "fisher-one",
        "base fisher": "fisher-base",
    }  # fmt: skip
    assert [fisher.file.parent.name for fisher in found.tasks[0].companions["fisher"]] == ["fisher-two", "fisher-one"]
    assert found.scales == (1000, 1000)
    assert found.base_scale == 1000


def test_a_model_without_its_fisher_is_refused_by_name(folder: Path) -> None:
    said = refused(folder, "fisher", [{**model("one"), "fisher": "fisher-one"}, model("two")])
    assert "models.1: fisher needs a fisher for two" in said
    assert "hint: add `fisher: PATH` beside its `model:`" in said


def test_a_fisher_that_lacks_a_tensor_is_refused(folder: Path) -> None:
    write_checkpoint(folder / "half", {"w": [1.0, 2.0]}, config=None)
    with pytest.raises(CheckpointError) as caught:
        plan(folder, "fisher", [{**model("one"), "fisher": "half"}])
    assert "the Fisher half does not fit the models in 1 tensor:\n  v is missing" in str(caught.value)
    assert "leave tensors without one unmerged with `exclude:`" in str(caught.value)


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.zeros(1, 2)])
def test_a_fisher_of_another_shape_or_kind_is_refused(folder: Path, wrong: torch.Tensor) -> None:
    write_checkpoint(folder / "wrong", {"w": wrong, "v": [3.0]}, config=None)
    with pytest.raises(
        CheckpointError, match=r"the Fisher wrong does not fit the models in 1 tensor:\n  w is .*, expected \[2\]"
    ):
        plan(folder, "fisher", [{**model("one"), "fisher": "wrong"}])


def test_a_tensor_without_a_fisher_may_be_excluded(folder: Path) -> None:
    write_checkpoint(folder / "half", {"w": [1.0, 2.0]}, config=None)
    found = plan(folder, "fisher", [{**model("one"), "fisher": "half"}], exclude=["v"])
    assert [task.target.name for task in found.merged] == ["w"]


@pytest.mark.parametrize("prior", ["NaN", "Infinity", "-1", "1e39", "true", '"1"', "null", "1" + "0" * 400])
def test_a_posterior_precision_must_say_a_prior_that_is_a_number(folder: Path, prior: str) -> None:
    tensors = {"w": [1.0]}
    write_checkpoint(folder / "precise", tensors, config=None, metadata={"kind": "precision"})
    (folder / "precise" / "config.json").write_text(f'{{"kind": "precision", "prior_precision": {prior}}}')
    with pytest.raises(CheckpointError, match="is a posterior precision without its prior_precision"):
        posterior_prior(open_checkpoint(folder / "precise", label="precise"))


def test_a_fisher_that_does_not_say_its_number_of_examples_needs_help(folder: Path) -> None:
    write_checkpoint(folder / "bare", {"w": [1.0, 2.0], "v": [3.0]}, config=None)
    models = [{**model("one"), "fisher": "fisher-one"}, {**model("two"), "fisher": "bare"}]
    prior: dict[str, Any] = {"base_model": "base", "parameters": {"prior_precision": 1}}
    said = refused(folder, "gradient_matching", models, **prior)
    assert "bare does not say for how many training examples it stands" in said
    assert "hint: give `examples: N`, or count all data sets alike with `curvature: mean`" in said
    models[1]["parameters"]["examples"] = 50
    assert plan(folder, "gradient_matching", models, **prior).scales == (1000, 50)
    del models[1]["parameters"]["examples"]
    prior["parameters"]["curvature"] = "mean"
    assert plan(folder, "gradient_matching", models, **prior).scales == (1, 1)


@pytest.mark.parametrize("number", ["0", "-5", "many", "inf", "nan", ""])
def test_a_number_of_examples_that_is_none_counts_as_missing(folder: Path, number: str) -> None:
    write_checkpoint(folder / "bare", {"w": [1.0, 2.0], "v": [3.0]}, config=None, metadata={"train_examples": number})
    models = [{**model("one"), "fisher": "fisher-one"}]
    said = refused(folder, "gradient_matching", models, base_model="base", base_fisher="bare")
    assert "hint: give `base_examples: N`" in said


def test_the_recipe_overrides_what_the_files_say_of_examples(folder: Path) -> None:
    models = [{**model("one", examples=7), "fisher": "fisher-one"}, {**model("two"), "fisher": "fisher-two"}]
    found = plan(
        folder,
        "gradient_matching",
        models,
        base_model="base",
        base_fisher="fisher-base",
        parameters={"base_examples": 9},
    )
    assert found.scales == (7, 1000)
    assert found.base_scale == 9


def test_gradient_matching_needs_curvature_at_the_base(folder: Path) -> None:
    models, none = [{**model("one"), "fisher": "fisher-one"}], {"prior_precision": 0}
    said = refused(folder, "gradient_matching", models, base_model="base", parameters=none)
    assert "gradient_matching needs base_fisher or prior_precision above 0" in said


def test_measured_anchors_need_gradients(folder: Path) -> None:
    entry = {**model("one"), "fisher": "fisher-one"}
    rest: dict[str, Any] = {"base_model": "base", "parameters": {"prior_precision": 1, "anchor": "measured"}}
    said = refused(folder, "gradient_matching", [entry], **rest)
    assert "gradient_matching needs a gradient for one" in said
    found = plan(folder, "gradient_matching", [{**entry, "gradient": "gradient-one"}], **rest)
    assert roles(found)["gradient 0"] == "gradient-one"


def test_fishers_and_gradients_that_are_not_used_are_told_of(folder: Path) -> None:
    entry = {**model("one"), "fisher": "fisher-one", "gradient": "gradient-one"}
    found = plan(folder, "task_arithmetic", [entry], base_model="base", base_fisher="fisher-base")
    assert set(found.warnings) == {
        "the Fishers of one are not used by task_arithmetic",
        "the gradients of one are not used by task_arithmetic with these parameters",
        "base_fisher is not used by task_arithmetic with these parameters",
    }
    # What is not used is not looked for either.
    entry["fisher"] = "./nowhere"
    assert plan(folder, "task_arithmetic", [entry], base_model="base").n == 1
