"""What the plan says of the output, and what its digest depends on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_cli.errors import RecipeError, ResourceError
from merge_cli.plan import MergePlan, build_plan
from merge_cli.recipe import Recipe
from tests.checkpoints import LLAMA, recipe_over, write_checkpoint, write_header

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


def family(folder: Path, **dtypes: torch.dtype) -> None:
    for name, dtype in dtypes.items():
        tensors = {"layers.0.w": torch.zeros(3, 5, dtype=dtype), "layers.1.w": torch.zeros(4, dtype=dtype)}
        config = {**LLAMA, "torch_dtype": str(dtype).removeprefix("torch.")}
        write_checkpoint(folder / name, tensors, config=config)


def content(**recipe: Any) -> dict[str, Any]:
    models = [{"model": "one", "parameters": {"weight": 0.5}}, {"model": "two", "parameters": {"weight": 0.5}}]
    return {"merge_method": "task_arithmetic", "base_model": "base", "models": models, **recipe}


def plan(folder: Path, recipe: dict[str, Any], **options: Any) -> MergePlan:
    return build_plan(recipe_over(folder, recipe), **options)


def dtypes(found: MergePlan) -> set[str]:
    return {task.target.dtype.torch_name for task in found.tasks}


# --- dtypes and configuration -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({}, "bfloat16"),
        ({"dtype": "float32"}, "float32"),
        ({"out_dtype": "float16"}, "float16"),
        ({"dtype": "float32", "out_dtype": "float16"}, "float16"),
    ],
)
def test_the_output_has_out_dtype_else_dtype_else_the_bases_own(
    tmp_path: Path, keys: dict[str, str], dtype: str
) -> None:
    family(tmp_path, base=BF16, one=F32, two=BF16)
    found = plan(tmp_path, content(**keys))
    assert dtypes(found) == {dtype}
    assert found.config["torch_dtype"] == dtype


def test_a_narrowing_that_nobody_asked_for_is_told_of(tmp_path: Path) -> None:
    family(tmp_path, base=BF16, one=F32, two=BF16)
    (warning,) = plan(tmp_path, content()).warnings
    assert warning.startswith("layers.0.w, layers.1.w: models hold wider numbers than base")
    assert plan(tmp_path, content(dtype="bfloat16")).warnings == ()


def test_float64_is_told_to_be_merged_in_float32(tmp_path: Path) -> None:
    family(tmp_path, base=F64, one=F64, two=F64)
    found = plan(tmp_path, content())
    assert dtypes(found) == {"float64"}
    assert found.warnings == ("layers.0.w, layers.1.w: float64 inputs are merged in float32",)


def test_every_dtype_in_a_configuration_of_parts_is_the_outputs(tmp_path: Path) -> None:
    family(tmp_path, base=BF16, one=BF16, two=BF16)
    config = {"dtype": "bfloat16", "text_config": {"torch_dtype": "bfloat16", "n": 1}, "dtype_note": "bfloat16"}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    assert plan(tmp_path, content(dtype="float16")).config == {
        "dtype": "float16",
        "text_config": {"torch_dtype": "float16", "n": 1},
        "dtype_note": "bfloat16",
    }


def test_a_configuration_without_dtype_gets_one(tmp_path: Path) -> None:
    family(tmp_path, base=F16, one=F16, two=F16)
    (tmp_path / "base" / "config.json").write_text('{"architectures": ["X"]}')
    assert plan(tmp_path, content()).config == {"architectures": ["X"], "torch_dtype": "float16"}


def test_without_a_configuration_there_is_none_and_a_warning(tmp_path: Path) -> None:
    family(tmp_path, base=F32, one=F32, two=F32)
    (tmp_path / "base" / "config.json").unlink()
    found = plan(tmp_path, content())
    assert found.config == {}
    assert "base has no config.json, so neither has the output; transformers will not load it" in found.warnings


def test_configuration_and_side_files_come_from_the_base_even_where_it_takes_no_part(tmp_path: Path) -> None:
    family(tmp_path, base=F32, one=F32, two=F32)
    for name in ("base", "one"):
        (tmp_path / name / "tokenizer.json").write_text(name)
    (tmp_path / "base" / "config.json").write_text('{"mine": "base"}')
    found = plan(tmp_path, content(merge_method="linear"))
    assert found.config["mine"] == "base"
    assert found.side_files == {"tokenizer.json": tmp_path / "base" / "tokenizer.json"}


def test_without_a_base_they_come_from_the_first_model(tmp_path: Path) -> None:
    family(tmp_path, one=F32, two=F32)
    for name in ("one", "two"):
        (tmp_path / name / "tokenizer.json").write_text(name)
    recipe = content(merge_method="linear", base_model=None)
    recipe["models"].reverse()
    assert plan(tmp_path, recipe).side_files == {"tokenizer.json": tmp_path / "two" / "tokenizer.json"}


def test_the_configuration_of_the_one_model_that_gives_the_head_describes_the_output(tmp_path: Path) -> None:
    family(tmp_path, base=F32, one=F32, two=F32)
    (tmp_path / "one" / "config.json").write_text('{"architectures": ["WithHead"], "id2label": {"0": "good"}}')
    found = plan(tmp_path, content(exclude=[{"pattern": "layers.1.w", "from": "one"}]))
    assert found.config["architectures"] == ["WithHead"]


def test_files_about_the_model_come_along_and_files_about_its_training_do_not(tmp_path: Path) -> None:
    family(tmp_path, base=F32, one=F32, two=F32)
    kept = [
        "LICENSE",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "modeling_x.py",
        "tokenizer.model",
    ]
    for name in [
        *kept,
        "README.md",
        "merge_manifest.json",
        "SHA256SUMS",
        "trainer_state.json",
        "optimizer.pt",
        "other.bin",
    ]:
        (tmp_path / "base" / name).write_text("{}")
    (tmp_path / "base" / "folder.json").mkdir()
    assert list(plan(tmp_path, content()).side_files) == kept


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_what_is_read_and_written_is_known(tmp_path: Path) -> None:
    family(tmp_path, base=F32, one=BF16, two=F32)
    found = plan(tmp_path, content(dtype="float16"))
    assert found.read_bytes == 19 * (4 + 2 + 4)
    assert sum(task.target.nbytes for task in found.tasks) == 19 * 2
    assert found.written_bytes == sum(shard.size for shard in found.layout.shards)
    assert (found.n, len(found.merged), len(found.layout.shards)) == (2, 2, 1)


def test_shards_keep_to_their_size(tmp_path: Path) -> None:
    family(tmp_path, base=F32, one=F32, two=F32)
    found = plan(tmp_path, content(), shard_size=60)
    assert [shard.file for shard in found.layout.shards] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_a_memory_budget_that_is_too_small_is_refused(tmp_path: Path) -> None:
    family(tmp_path, base=F32, one=F32, two=F32)
    with pytest.raises(ResourceError, match="--memory allows 100 B"):
        plan(tmp_path, content(), memory=100)


def test_the_inputs_are_all_named_once_with_their_sizes(tmp_path: Path) -> None:
    family(tmp_path, base=F32, one=BF16, two=F32)
    found = plan(tmp_path, content())
    assert [(str(each.role), each.label, each.nbytes) for each in found.inputs] == [
        ("base", "base", 76),
        ("model 0", "one", 38),
        ("model 1", "two", 76),
    ]


# --- the digest -------------------------------------------------------------------------------------------------------


def test_the_digest_does_not_depend_on_how_the_work_is_done(tmp_path: Path) -> None:
    family(tmp_path, base=F32, one=F32, two=F32)
    digests = {
        plan(tmp_path, content(), **options).digest
        for options in ({}, {"memory": 2**21}, {"threads": 1}, {"threads": 7}, {"device": "cpu"})
    }
    assert len(digests) == 1


def test_the_digest_does_not_depend_on_where_the_inputs_are(tmp_path: Path) -> None:
    family(tmp_path / "here", base=F32, one=F32, two=F32)
    first = plan(tmp_path / "here", content()).digest
    (tmp_path / "here").rename(tmp_path / "there")
    assert plan(tmp_path / "there", content()).digest == first


def _changes() -> dict[str, dict[str, Any]]:
    models = content()["models"]
    return {
        "seed": content(seed=1),
        "dtype": content(dtype="bfloat16"),
        "method": content(merge_method="dare_linear"),
        "parameter": content(parameters={"lambda": 0.5}),
        "weight of one layer": content(models=[{"model": "one", "parameters": {"weight": [1, 2]}}, models[1]]),
        "order": content(models=models[::-1]),
        "one model less": content(models=models[:1]),
        "step": content(prepare={"dare": {"drop_rate": 0.5}}),
        "parameter of a step": content(prepare={"dare": {"drop_rate": 0.6}}),
        "excluded": content(exclude=["layers.1.w"]),
        "excluded from one": content(exclude=[{"pattern": "layers.1.w", "from": "one"}]),
        "excluded from two": content(exclude=[{"pattern": "layers.1.w", "from": "two"}]),
        "dropped": content(exclude=[{"pattern": "layers.1.w", "drop": True}]),
    }


def test_the_digest_changes_with_everything_that_changes_the_output(tmp_path: Path) -> None:
    family(tmp_path, base=F32, one=F32, two=F32)
    digests = {name: plan(tmp_path, recipe).digest for name, recipe in _changes().items()}
    digests["nothing"] = plan(tmp_path, content()).digest
    digests["shards"] = plan(tmp_path, content(), shard_size=60).digest
    assert len(set(digests.values())) == len(digests)


def test_the_digest_changes_with_the_inputs(tmp_path: Path) -> None:
    family(tmp_path, base=F32, one=F32, two=F32)
    first = plan(tmp_path, content()).digest
    weights = tmp_path / "one" / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert plan(tmp_path, content()).digest != first


# --- scale ------------------------------------------------------------------------------------------------------------


def test_checkpoints_of_a_hundred_thousand_tensors_are_planned(tmp_path: Path) -> None:
    names = [f"layers.{i // 50}.experts.{i % 50}.w" for i in range(100_000)]
    for name in ("base", "one"):
        write_header(tmp_path / name / "model.safetensors", {tensor: ("BF16", [2], 4) for tensor in names})
    recipe = content(models=[{"model": "one", "parameters": {"weight": [0, 1]}}])
    found = plan(tmp_path, recipe, shard_size=10_000)
    assert len(found.merged) == 100_000
    assert len(found.layout.shards) == 40
    assert len(found.digest) == 64
    last = {task.target.name: task.params for task in found.merged}["layers.1999.experts.7.w"]
    assert last is not None
    assert last.weight == (1,)  # type: ignore[attr-defined]


def test_a_recipe_made_in_python_is_checked_before_it_is_planned(tmp_path: Path) -> None:
    family(tmp_path, base=F32, one=F32, two=F32)
    recipe = content(base_model=str(tmp_path / "base"), parameters={"int8_mask": True})
    for entry in recipe["models"]:
        entry["model"] = str(tmp_path / entry["model"])
    found = build_plan(Recipe.model_validate(recipe))
    assert found.warnings == ("recipe: parameters.int8_mask: task_arithmetic has no such parameter; it is not used",)
    with pytest.raises(RecipeError, match="did you mean 'lambda'"):
        build_plan(Recipe.model_validate({**recipe, "parameters": {"lamda": 2}}))
