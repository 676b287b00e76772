"""Which tensors are merged, copied and left out, and what happens where checkpoints do not fit each other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_cli.errors import CheckpointError, RecipeError
from merge_cli.plan import MergePlan, build_plan
from tests.checkpoints import recipe_over, write_checkpoint

W = torch.zeros(2, 3)


def planned(folder: Path, checkpoints: dict[str, dict[str, Tensor]], **recipe: Any) -> MergePlan:
    """Plan task arithmetic of every checkpoint onto ``base``; without one a linear merge."""
    for name, tensors in checkpoints.items():
        write_checkpoint(folder / name, tensors)
    models = [{"model": name, "parameters": {"weight": 1}} for name in checkpoints if name != "base"]
    content = {"merge_method": "linear", "models": models}
    if "base" in checkpoints:
        content |= {"merge_method": "task_arithmetic", "base_model": "base"}
    return build_plan(recipe_over(folder, {**content, **recipe}))


def refused(kind: type[Exception], folder: Path, checkpoints: dict[str, dict[str, Tensor]], **recipe: Any) -> str:
    with pytest.raises(kind) as caught:
        planned(folder, checkpoints, **recipe)
    return str(caught.value)


def merged(plan: MergePlan) -> list[str]:
    return [task.target.name for task in plan.tasks if task.copied is None]


def copied(plan: MergePlan) -> dict[str, str]:
    """Return name -> the folder it is copied from."""
    return {task.target.name: task.copied.file.parent.name for task in plan.tasks if task.copied is not None}


def test_tensors_are_merged_in_the_order_in_which_the_base_holds_them(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"base": {"b": W, "a": W, "c": W}, "one": {"c": W, "a": W, "b": W}})
    # The safetensors library sorts by name; what counts is the order of bytes.
    assert merged(plan) == ["a", "b", "c"]
    assert [source.file.parent.name for source in plan.tasks[0].models] == ["one"]
    assert plan.tasks[0].base is not None
    assert plan.tasks[0].base.file.parent.name == "base"


def test_everything_that_does_not_fit_is_listed_at_once(tmp_path: Path) -> None:
    said = refused(
        CheckpointError,
        tmp_path,
        {
            "base": {"x.w": W, "y.w": W, "z.w": W, "i.w": W},
            "one": {"x.w": W, "y.w": torch.zeros(3, 2), "z.w": W, "i.w": torch.zeros(2, 3, dtype=torch.int64)},
            "two": {"x.w": W, "y.w": W, "i.w": W, "extra": W},
        },
    )
    assert said.splitlines()[:5] == [
        "the checkpoints differ in 4 tensors:",
        "  i.w is 2 x 3 in base, 2 x 3 of int64 in one, 2 x 3 in two",
        "  y.w is 2 x 3 in base, 3 x 2 in one, 2 x 3 in two",
        "  z.w is missing in two",
        "  extra is missing in base, one",
    ]
    assert said.splitlines()[5:] == [
        "  hint: put this into the recipe to copy them unmerged:",
        "exclude:",
        "- 'i.w'  # from base",
        "- 'y.w'  # from base",
        "- 'z.w'  # from base",
        "- {pattern: 'extra', from: 'two'}  # or drop: true",
    ]


def test_a_scalar_and_a_vector_of_one_do_not_fit(tmp_path: Path) -> None:
    said = refused(CheckpointError, tmp_path, {"base": {"s": torch.tensor(1.0)}, "one": {"s": torch.zeros(1)}})
    assert "s is a scalar in base, 1 in one" in said


def test_vocabularies_that_differ_have_a_hint_of_their_own(tmp_path: Path) -> None:
    said = refused(
        CheckpointError,
        tmp_path,
        {
            "base": {"model.embed_tokens.weight": torch.zeros(4, 2), "lm_head.weight": torch.zeros(4, 2)},
            "one": {"model.embed_tokens.weight": torch.zeros(5, 2), "lm_head.weight": torch.zeros(5, 2)},
        },
    )
    assert "hint: the vocabularies differ" in said
    assert said.endswith("exclude:\n- 'lm_head.weight'  # from base\n- 'model.embed_tokens.weight'  # from base")


def test_excluded_tensors_are_copied_from_the_base(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        {"base": {"a.w": W, "head.w": W}, "one": {"a.w": W, "head.w": torch.zeros(5, 3)}},
        exclude=["head.*"],
    )
    assert merged(plan) == ["a.w"]
    assert copied(plan) == {"head.w": "base"}


def test_without_a_base_they_are_copied_from_the_first_model(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"one": {"a": W, "head": W}, "two": {"a": W, "head": W}}, exclude=["head"])
    assert copied(plan) == {"head": "one"}


def test_excluded_tensors_may_be_copied_from_a_model_or_left_out(tmp_path: Path) -> None:
    checkpoints = {
        "base": {"a.w": W, "old.w": W},
        "one": {"a.w": W, "old.w": W, "head.w": torch.zeros(7, 3), "head.b": torch.zeros(7)},
        "two": {"a.w": W, "old.w": W, "head.w": torch.zeros(9, 3)},
    }
    plan = planned(
        tmp_path, checkpoints, exclude=[{"pattern": "head.*", "from": "one"}, {"pattern": "old.?", "drop": True}]
    )
    assert merged(plan) == ["a.w"]
    assert copied(plan) == {"head.w": "one", "head.b": "one"}
    assert {task.target.name: task.target.shape for task in plan.tasks}["head.w"] == (7, 3)
    assert "1 tensor left out, as the recipe says" in plan.notes


def test_the_first_pattern_that_matches_decides(tmp_path: Path) -> None:
    checkpoints = {name: {"a": W, "head.w": W, "head.b": W} for name in ("base", "one")}
    plan = planned(tmp_path, checkpoints, exclude=[{"pattern": "head.b", "from": "one"}, "head.*"])
    assert copied(plan) == {"head.b": "one", "head.w": "base"}


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    said = refused(
        RecipeError, tmp_path, {"base": {"model.a": W}, "one": {"model.a": W}}, exclude=["model.*", "lm_haed.*"]
    )
    assert "exclude.1: 'lm_haed.*' matches no tensor" in said
    assert "names begin with model" in said


@pytest.mark.parametrize("pattern", ["head.*", "_orig_mod.head.*", "module._orig_mod.head.*"])
def test_a_pattern_may_be_one_for_the_names_that_a_wrapper_gave(tmp_path: Path, pattern: str) -> None:
    wrapped = {"module._orig_mod.a": W, "module._orig_mod.head.w": W}
    plan = planned(tmp_path, {"base": wrapped, "one": {"a": W, "head.w": W}}, exclude=[pattern])
    assert (merged(plan), copied(plan)) == (["a"], {"head.w": "base"})


def test_a_source_that_is_no_model_is_refused(tmp_path: Path) -> None:
    checkpoints = {"base": {"a": W, "b": W}, "one": {"a": W, "b": W}}
    said = refused(RecipeError, tmp_path, checkpoints, exclude=[{"pattern": "b", "from": "on"}])
    assert "'on' is not a model of this recipe" in said
    assert "did you mean 'one'?" in said


@pytest.mark.parametrize("holder", ["one", "two"])
def test_a_tensor_that_its_source_does_not_have_is_never_left_out_in_silence(tmp_path: Path, holder: str) -> None:
    checkpoints = {"base": {"a.w": W}, "one": {"a.w": W}, "two": {"a.w": W}}
    checkpoints[holder]["head.w"] = W
    said = refused(RecipeError, tmp_path, checkpoints, exclude=["head.*"])
    assert "'head.*' copies 'head.w', which base does not have" in said
    assert f"from: {holder}" in said
    assert "drop: true" in said


def test_where_nothing_is_left_there_is_nothing_to_write(tmp_path: Path) -> None:
    said = refused(RecipeError, tmp_path, {"one": {"a": W}}, exclude=[{"pattern": "*", "drop": True}])
    assert "nothing is left to write" in said


def test_integers_and_booleans_are_copied_from_the_base(tmp_path: Path) -> None:
    integers, flags = torch.arange(3), torch.tensor([True, False])
    tensors = {"w": W, "ids": integers, "flags": flags}
    plan = planned(tmp_path, {"base": tensors, "one": {**tensors, "ids": integers + 1}}, dtype="bfloat16")
    assert copied(plan) == {"ids": "base", "flags": "base"}
    assert {task.target.name: task.target.dtype.value for task in plan.tasks} == {
        "ids": "I64",
        "flags": "BOOL",
        "w": "BF16",
    }


def test_a_tied_tensor_that_every_safetensors_file_lacks_is_not_missed(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"base": {"embed": W}, "one": {"embed": W}})
    assert merged(plan) == ["embed"]


def test_names_tied_in_one_checkpoint_fit_names_that_another_holds_apart(tmp_path: Path) -> None:
    tied = {"embed": W, "head": W}
    (tmp_path / "base").mkdir()
    torch.save(tied, tmp_path / "base" / "pytorch_model.bin")
    (tmp_path / "base" / "config.json").write_text('{"tie_word_embeddings": true}')
    plan = planned_over_bin(tmp_path, {"embed": W, "head": W + 1})
    assert sorted(merged(plan)) == ["embed", "head"]
    assert plan.config["tie_word_embeddings"] is False


def planned_over_bin(folder: Path, model: dict[str, Tensor]) -> MergePlan:
    write_checkpoint(folder / "one", model)
    models = [{"model": "one", "parameters": {"weight": 1}}]
    content = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    return build_plan(recipe_over(folder, content))


def test_names_tied_in_every_checkpoint_are_one_tensor(tmp_path: Path) -> None:
    for name in ("base", "one"):
        (tmp_path / name).mkdir()
        weight = torch.zeros(2, 3)
        torch.save({"embed": weight, "head": weight}, tmp_path / name / "pytorch_model.bin")
        (tmp_path / name / "config.json").write_text('{"tie_word_embeddings": true}')
    content = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "one", "parameters": {"weight": 1}}],
    }
    plan = build_plan(recipe_over(tmp_path, content))
    assert merged(plan) == ["embed"]
    assert plan.config["tie_word_embeddings"] is True
