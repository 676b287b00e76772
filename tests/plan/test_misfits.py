"""What is said of tensors that do not fit, and that the block which is given for the recipe works when it is pasted."""

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merge_cli.errors import CheckpointError
from merge_cli.plan import MergePlan, build_plan
from merge_cli.plan.misfits import patterns
from merge_cli.recipe import parse_recipe
from tests.checkpoints import LLAMA, write_checkpoint

W = torch.zeros(2, 3)
TWO_LAYERS = {f"model.layers.{i}.{part}.weight": W for i in range(2) for part in ("up", "down")} | {"model.norm": W}


def text_over(checkpoints: Mapping[str, Any], more: str = "") -> str:
    models = [{"model": f"./{name}", "parameters": {"weight": 1}} for name in checkpoints if name != "base"]
    content = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    return yaml.safe_dump(content) + more


def written(folder: Path, checkpoints: Mapping[str, Mapping[str, Tensor]]) -> None:
    for name, tensors in checkpoints.items():
        write_checkpoint(folder / name, tensors)


def refused(folder: Path, recipe: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        build_plan(parse_recipe(recipe, folder=folder))
    return str(caught.value)


def pasted(folder: Path, checkpoints: Mapping[str, Mapping[str, Tensor]], more: str = "") -> tuple[str, MergePlan]:
    """Return what is said of checkpoints, and the plan of the recipe with the block that it gives."""
    written(folder, checkpoints)
    said = refused(folder, text_over(checkpoints, more))
    block = said[said.index("exclude:\n") :]
    return said, build_plan(parse_recipe(text_over(checkpoints) + block + "\n", folder=folder))


def copied(plan: MergePlan) -> dict[str, str]:
    return {task.target.name: task.copied.file.parent.name for task in plan.tasks if task.copied is not None}


def test_five_tensors_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    more = {f"model.layers.{i}.extra.{part}": W for i in range(48) for part in ("x", "y")}
    names = {f"model.layers.{i}.up.weight": W for i in range(100)}
    said, plan = pasted(tmp_path, {"base": names, "a": names | more})
    assert said.splitlines() == [
        "the checkpoints differ in 96 tensors:",
        *(f"  {name} is missing in base" for name in sorted(more)[:5]),
        "  and 91 more",
        "  hint: put this into the recipe to copy them unmerged:",
        "exclude:",
        "- {pattern: 'model.layers.*.extra.*', from: './a'}  # or drop: true",
    ]
    assert copied(plan) == dict.fromkeys(more, "a")


def test_one_pattern_covers_all_layers(tmp_path: Path) -> None:
    more = {f"model.layers.{i}.gain": W for i in range(2)}
    said, plan = pasted(tmp_path, {"base": TWO_LAYERS | more, "a": TWO_LAYERS})
    assert said.endswith("exclude:\n- 'model.layers.*.gain'  # from base")
    assert copied(plan) == dict.fromkeys(more, "base")


def test_a_pattern_over_layers_is_not_given_where_it_would_cover_a_tensor_that_fits(tmp_path: Path) -> None:
    base = {f"layers.{i}.up": W for i in range(4)}
    _, plan = pasted(
        tmp_path, {"base": base, "a": base | dict.fromkeys(("layers.1.up", "layers.3.up"), torch.zeros(3, 2))}
    )
    assert copied(plan) == {"layers.1.up": "base", "layers.3.up": "base"}


def test_heads_of_other_classes_are_told_in_few_lines(tmp_path: Path) -> None:
    def model(classes: int) -> dict[str, Tensor]:
        return TWO_LAYERS | {"classifier.weight": torch.zeros(classes, 3), "classifier.bias": torch.zeros(classes)}

    said, plan = pasted(tmp_path, {"base": TWO_LAYERS, "a": model(2), "b": model(5)})
    assert "is missing in base" in said
    assert said.splitlines()[3:] == [
        "  hint: the models have heads for other classes; put this into the recipe to copy them unmerged:",
        "exclude:",
        "- {pattern: 'classifier.*', from: './a'}  # or drop: true",
    ]
    assert copied(plan) == {"classifier.weight": "a", "classifier.bias": "a"}


def test_what_the_recipe_excludes_already_stays_in_the_block(tmp_path: Path) -> None:
    base = TWO_LAYERS | {"old": W, "gone": W, "it's": W}
    checkpoints = {"base": base, "a": base | {"new.x": W, "new.y": W}}
    more = "exclude: [{pattern: old, from: a}, {pattern: 'go*', drop: true}, it's]\n"
    said, plan = pasted(tmp_path, checkpoints, more)
    assert "put this in place of its exclude" in said
    assert copied(plan) == {"old": "a", "it's": "base", "new.x": "a", "new.y": "a"}
    assert "gone" not in {task.target.name for task in plan.tasks}


def test_names_with_signs_of_patterns_and_quotes_are_covered_too(tmp_path: Path) -> None:
    odd = {"a[0].w": W, "b*": W, "c'?": W}
    _, plan = pasted(
        tmp_path, {"base": TWO_LAYERS | {"a0.w": W, "bb": W}, "a": TWO_LAYERS | {"a0.w": W, "bb": W} | odd}
    )
    assert copied(plan) == dict.fromkeys(odd, "a")


def test_other_architectures_are_called_by_their_names(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", TWO_LAYERS, config=LLAMA)
    bert = {"architectures": ["BertForSequenceClassification"]}
    write_checkpoint(tmp_path / "a", {f"bert.encoder.{i}.weight": W for i in range(90)}, config=bert)
    said = refused(tmp_path, text_over({"base": 0, "a": 0}))
    assert "./a is BertForSequenceClassification, base is LlamaForCausalLM" in said
    assert len(said.splitlines()) == 4
    assert "exclude" not in said


def test_where_very_many_differ_no_block_is_given(tmp_path: Path) -> None:
    names = {f"model.w{i}x": W for i in range(90)}
    other = {f"model.w{i}x": W if i % 2 else torch.zeros(5) for i in range(90)}
    written(tmp_path, {"base": names, "a": other})
    said = refused(tmp_path, text_over({"base": 0, "a": 0}))
    assert "differ in 45 tensors" in said
    assert "hardly belong together" in said


def test_names_that_few_patterns_cannot_cover_are_given_one_by_one() -> None:
    names = [f"layers.{i}.w" for i in range(20_000)]
    assert len(patterns(names, names[::2])) == 10_000
    strange = [f"a{i}.b" for i in range(20_000)]
    assert len(patterns(strange, strange[::2])) == 10_000


NAMES = st.lists(
    st.sampled_from(["a", "b", "layers.0", "layers.1", "layers.2", "c*", "d[0]"]).flatmap(
        lambda stem: st.sampled_from(["w", "b", "x.w", "3"]).map(lambda leaf: f"{stem}.{leaf}")
    ),
    unique=True,
    min_size=1,
)


@given(NAMES, st.data())
def test_patterns_cover_the_wrong_names_and_no_others(names: list[str], data: st.DataObject) -> None:
    wrong = data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
    found = patterns(names, wrong)
    assert {name for name in names if any(fnmatch.fnmatchcase(name, each) for each in found)} == set(wrong)
    assert len(found) <= len(wrong)
