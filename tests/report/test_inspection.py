"""What is in a checkpoint."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from merge_cli.checkpoint import open_checkpoint
from merge_cli.plan import build_plan
from merge_cli.report import Inspection, inspect_checkpoint
from merge_cli.run import merge
from tests.checkpoints import recipe_over, write_checkpoint


@pytest.fixture
def found(tmp_path: Path) -> Inspection:
    tensors = {"embed.weight": torch.zeros(7, 2, dtype=torch.bfloat16), "ids": torch.arange(3)}
    for i in range(11):
        tensors |= {f"model.layers.{i}.mlp.weight": torch.zeros(2, 2), f"model.layers.{i}.norm": torch.zeros(2)}
    write_checkpoint(tmp_path / "c", tensors, metadata={"made": "by hand"}, shards=2)
    return inspect_checkpoint(open_checkpoint(tmp_path / "c", label="c"))


def test_parameters_are_counted_by_dtype_and_by_layer(found: Inspection) -> None:
    assert found.parameters == 14 + 3 + 11 * 6
    assert found.dtypes() == {"bfloat16": 14, "int64": 3, "float32": 66}
    layers = found.layers()
    assert layers["model.layers.10"] == 6
    assert layers["embed"] == 14
    assert layers["ids"] == 3
    # In the order of numbers, not of digits.
    assert [name for name in layers if name.startswith("model")] == [f"model.layers.{i}" for i in range(11)]


def test_what_was_set_right_on_opening_is_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", {"_orig_mod.w": torch.zeros(2)})
    found = inspect_checkpoint(open_checkpoint(tmp_path / "c")).to_json()
    assert found["notes"] == [
        "_orig_mod. taken off the names of its tensors, which a wrapper around the model put there"
    ]
    assert [each["name"] for each in found["tensors"]] == ["w"]


def test_what_was_merged_says_from_what(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_checkpoint(tmp_path / name, {"w": [1.0, 2.0]})
    models = [{"model": name, "parameters": {"weight": 1}} for name in ("one", "two")]
    plan = build_plan(recipe_over(tmp_path, {"merge_method": "linear", "models": models}))
    merge(plan, tmp_path / "out", sync=False)
    digest = hashlib.sha256((tmp_path / "one" / "model.safetensors").read_bytes()).hexdigest()
    told = inspect_checkpoint(open_checkpoint(tmp_path / "out")).to_json()["made_from"]
    wanted = {"role": "model 0", "reference": "one", "file": "model.safetensors", "sha256": digest}
    assert told == [wanted, {**wanted, "role": "model 1", "reference": "two"}]
    merge(plan, tmp_path / "out", sync=False, force=True, input_digests=False)
    found = inspect_checkpoint(open_checkpoint(tmp_path / "out"))
    assert [each.sha256 for each in found.made_from] == [None, None]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"inputs": 3}', '{"inputs": [3]}', '{"inputs": [{"files": [{}]}]}', "[" * 9999]
)
def test_a_damaged_manifest_says_nothing(tmp_path: Path, text: str) -> None:
    write_checkpoint(tmp_path / "c", {"w": [1.0]})
    (tmp_path / "c" / "merge_manifest.json").write_text(text)
    assert inspect_checkpoint(open_checkpoint(tmp_path / "c")).made_from == ()


def test_tensors_that_repeat_in_every_layer_are_one_group(found: Inspection) -> None:
    groups = {group.name: (group.dtype, group.shape, group.layers) for group in found.groups()}
    assert groups == {
        "embed.weight": ("bfloat16", (7, 2), ()),
        "ids": ("int64", (3,), ()),
        "model.layers.{i}.mlp.weight": ("float32", (2, 2), tuple(range(11))),
        "model.layers.{i}.norm": ("float32", (2,), tuple(range(11))),
    }


def test_all_of_it_is_json(found: Inspection) -> None:
    content = json.loads(json.dumps(found.to_json()))
    assert content["checkpoint"] == "c"
    assert content["parameters"] == found.parameters
    assert content["bytes"] == 14 * 2 + 3 * 8 + 66 * 4
    assert content["architectures"] == ["LlamaForCausalLM"]
    assert len(content["tensors"]) == 24
    assert {file["name"] for file in content["files"]} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert content["metadata"]["made"] == "by hand"


def test_names_with_numbers_of_any_length_and_script_are_put_in_order(tmp_path: Path) -> None:
    names = ["a.10.w", "a.9.w", f"a.{'9' * 900}.w", "²", "a.1²2.w", "a.٣.w"]
    write_checkpoint(tmp_path / "c", {name: [1.0] for name in names})
    found = inspect_checkpoint(open_checkpoint(tmp_path / "c"))
    assert sum(found.layers().values()) == 6
    assert list(found.layers()).index("a.9") < list(found.layers()).index("a.10")
    assert sum(len(group.layers) or 1 for group in found.groups()) == 6
