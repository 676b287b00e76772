import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from merge_cli.checkpoint import open_checkpoint
from merge_cli.errors import CheckpointError
from tests.checkpoint.helpers import assert_holds, filled

INDEX = "model.safetensors.index.json"
STATE = {
    "model.a": filled(torch.bfloat16, (4, 3), seed=1),
    "model.b": filled(torch.float32, (5,), seed=2),
    "model.c": filled(torch.float16, (2, 2), seed=3),
}
PLACES = {
    "model.a": "model-00001-of-00002.safetensors",
    "model.b": "model-00001-of-00002.safetensors",
    "model.c": "model-00002-of-00002.safetensors",
}


def save(folder: Path, name: str, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, folder / name, metadata={"format": "pt"})


def write_index(folder: Path, weight_map: Any) -> None:
    content = {"metadata": {"total_size": 52}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(content))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in sorted(set(PLACES.values())):
        save(folder, file, {name: tensor for name, tensor in STATE.items() if PLACES[name] == file})
    write_index(folder, PLACES)
    (folder / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": false}')
    return folder


def refusal(root: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(root)
    assert str(root) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_sharded_folder_is_read_through_its_index(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded, label="wizard")
    assert_holds(checkpoint, STATE)
    assert checkpoint.label == "wizard"
    assert checkpoint.root == sharded
    assert [identity.path.name for identity in checkpoint.files] == sorted(set(PLACES.values()))
    assert checkpoint.config == {"model_type": "llama", "tie_word_embeddings": False}
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.nbytes == 12 * 2 + 5 * 4 + 4 * 2
    assert checkpoint.tied == {}


def test_the_label_is_the_path_unless_one_is_given(sharded: Path) -> None:
    assert open_checkpoint(sharded).label == str(sharded)


def test_a_folder_with_one_file_of_the_usual_name_is_read(tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", STATE)
    save(tmp_path, "consolidated.safetensors", {"other": torch.ones(2)})
    checkpoint = open_checkpoint(tmp_path)
    assert_holds(checkpoint, STATE)
    assert checkpoint.config == {}


def test_a_folder_with_a_single_file_of_any_name_is_read(tmp_path: Path) -> None:
    save(tmp_path, "model-00001-of-00001.safetensors", STATE)
    assert_holds(open_checkpoint(tmp_path), STATE)
    (tmp_path / "model-00001-of-00001.safetensors").rename(tmp_path / "diffusion.safetensors")
    assert_holds(open_checkpoint(tmp_path), STATE)


def test_an_index_may_name_a_single_file_of_the_usual_name(tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", STATE)
    write_index(tmp_path, dict.fromkeys(STATE, "model.safetensors"))
    assert_holds(open_checkpoint(tmp_path), STATE)


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", STATE)
    torch.save({"old": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert_holds(open_checkpoint(tmp_path), STATE)


def test_files_of_a_cache_that_are_links_are_followed(sharded: Path, tmp_path: Path) -> None:
    blobs, linked = tmp_path / "models--org--name" / "blobs", tmp_path / "models--org--name" / "snapshots" / "0123abcd"
    linked.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sharded.iterdir()):
        path.rename(blobs / str(number))
        (linked / path.name).symlink_to(f"../../blobs/{number}")
    assert_holds(open_checkpoint(linked), STATE)


def test_a_weight_file_can_be_named_itself(sharded: Path) -> None:
    path = sharded / "model-00002-of-00002.safetensors"
    checkpoint = open_checkpoint(path)
    assert_holds(checkpoint, {"model.c": STATE["model.c"]})
    assert checkpoint.config == {}


@pytest.mark.parametrize(
    "file",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        ".",
        "",
        "x\0y",
        "x\ny",
        "\x1b[2J",
        "\u202e",
        "./x",
        "x/",
    ],
)
def test_an_index_that_points_out_of_its_folder_is_refused_and_nothing_is_opened(file: str, sharded: Path) -> None:
    save(sharded.parent, "secret.safetensors", {"model.a": STATE["model.a"]})
    write_index(sharded, {**PLACES, "model.a": file})
    message = refusal(sharded)
    assert message == f"{sharded / INDEX}: model.a is said to be in {file!r}, which is not a file of the folder"


@pytest.mark.parametrize("file", [None, 3, ["x"], {"x": 1}, True])
def test_an_index_must_name_files(file: Any, sharded: Path) -> None:
    write_index(sharded, {**PLACES, "model.a": file})
    assert "which is not a file of the folder" in refusal(sharded)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x", 3])
def test_an_index_without_a_weight_map_is_refused(weight_map: Any, sharded: Path) -> None:
    write_index(sharded, weight_map)
    assert refusal(sharded) == f"{sharded / INDEX}: weight_map is missing or empty"
    (sharded / INDEX).write_text("{}")
    assert refusal(sharded) == f"{sharded / INDEX}: weight_map is missing or empty"


@pytest.mark.parametrize("file", [INDEX, "config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"{'a': 1}", b'{"a": 1} x', b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[" * 200_000]
)
def test_json_that_is_none_is_refused(file: str, content: bytes, sharded: Path) -> None:
    (sharded / file).write_bytes(content)
    assert refusal(sharded).startswith(f"{sharded / file} is not valid JSON: ")


@pytest.mark.parametrize("file", [INDEX, "config.json"])
@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b'"x"'])
def test_json_that_is_no_object_is_refused(file: str, content: bytes, sharded: Path) -> None:
    (sharded / file).write_bytes(content)
    assert refusal(sharded) == f"{sharded / file} is not a JSON object"


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    message = refusal(sharded)
    assert message == f"cannot read {sharded / 'model-00002-of-00002.safetensors'}: No such file or directory"


def test_a_tensor_that_its_shard_does_not_hold_is_named(sharded: Path) -> None:
    write_index(sharded, {**PLACES, "model.d": "model-00002-of-00002.safetensors"})
    assert refusal(sharded).endswith("its index names model.d, which the shard named there does not hold")


def test_a_tensor_that_another_shard_holds_is_named(sharded: Path) -> None:
    write_index(sharded, {**PLACES, "model.a": "model-00002-of-00002.safetensors"})
    assert "its index names model.a" in refusal(sharded)


def test_a_tensor_that_the_index_does_not_list_is_named(sharded: Path) -> None:
    write_index(sharded, {name: file for name, file in PLACES.items() if name != "model.b"})
    assert refusal(sharded).endswith("its shards hold model.b, which its index does not name")


def test_many_missing_tensors_are_counted(sharded: Path) -> None:
    more = {f"x{number}": "model-00002-of-00002.safetensors" for number in range(12)}
    write_index(sharded, PLACES | more)
    assert "names x0, x1, x2, x3, x4, x5, x6, x7 and 4 more, which" in refusal(sharded)


def test_a_tensor_that_stands_in_two_shards_is_named(sharded: Path) -> None:
    save(sharded, "model-00002-of-00002.safetensors", {"model.c": STATE["model.c"], "model.a": STATE["model.a"]})
    assert refusal(sharded).endswith("model.a stand in more than one file")


def test_a_damaged_shard_is_named(sharded: Path) -> None:
    path = sharded / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"^{path} is not a sound safetensors file"):
        open_checkpoint(sharded)


def test_shards_without_their_index_are_refused(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    message = refusal(sharded)
    assert "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors" in message
    assert f"no {INDEX}" in message


def test_one_shard_of_several_is_no_checkpoint(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    (sharded / "model-00001-of-00002.safetensors").unlink()
    assert f"no {INDEX}" in refusal(sharded)


def test_several_models_in_a_folder_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "first.safetensors", STATE)
    save(tmp_path, "second.safetensors", STATE)
    assert "holds first.safetensors, second.safetensors and no" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_single_file_beside_an_index_of_others_is_refused(kind: str, sharded: Path) -> None:
    if kind == "safetensors":
        save(sharded, "model.safetensors", STATE)
        assert "may be two models" in refusal(sharded)
    else:  # the pickles are not looked at where there are safetensors
        torch.save(STATE, sharded / "pytorch_model.bin")
        assert_holds(open_checkpoint(sharded), STATE)


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    assert "holds no weights; expected model.safetensors" in refusal(tmp_path)
    assert refusal(tmp_path / "no").endswith("No such file or directory")


def test_a_folder_that_may_not_be_read_is_an_error(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", denied)
    assert refusal(sharded) == f"cannot read {sharded}: Permission denied"


def test_a_lora_adapter_is_refused_with_a_hint(tmp_path: Path) -> None:
    save(tmp_path, "adapter_model.safetensors", {"base_model.model.q_proj.lora_A.weight": torch.ones(2, 2)})
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds a LoRA adapter.*\n  hint: .*merge_and_unload"):
        open_checkpoint(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    assert "LoRA" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "adapter_model.bin").rename(tmp_path / "adapter_model.safetensors")
    assert "LoRA" in refusal(tmp_path)


def test_a_model_that_has_its_adapter_beside_it_is_read(sharded: Path) -> None:
    (sharded / "adapter_config.json").write_text("{}")
    assert_holds(open_checkpoint(sharded), STATE)


FLOAT8 = {"w": filled(torch.float8_e4m3fn, (4, 4)), "norm": torch.ones(4)}


@pytest.mark.parametrize(
    "name",
    [
        "w_scale", "w.weight_scale", "w.weight_scale_inv", "w.input_scale", "w.weight_scale_2", "attn.k_scale",
        "attn.v_scale", "scale", "w.scale", "w.scale_weight", "w.scale_input", "w.qscale_act", "w.qscale_weight",
    ],
)  # fmt: skip
def test_float8_numbers_with_scales_are_quantised_and_refused(name: str, tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", {**FLOAT8, name: torch.ones(1)})
    message = refusal(tmp_path)
    assert f"is quantised: it holds scales ({name}), so its numbers are not the weights" in message


def test_float8_numbers_without_scales_are_weights(tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", FLOAT8)
    assert_holds(open_checkpoint(tmp_path), FLOAT8)


@pytest.mark.parametrize("name", ["logit_scale", "w.scale", "layer_scale", "scaler.weight", "norm.scale_inv"])
def test_a_model_of_wider_numbers_may_have_parameters_called_scale(name: str, tmp_path: Path) -> None:
    state = {name: torch.ones(1), "w": filled(torch.bfloat16, (2, 2)), "mask": torch.ones(2, dtype=torch.uint8)}
    save(tmp_path, "model.safetensors", state)
    assert_holds(open_checkpoint(tmp_path), state)


@pytest.mark.parametrize("suffix", ["qweight", "qzeros", "weight.absmax", "weight_packed"])
def test_integers_that_hold_several_weights_each_are_refused(suffix: str, tmp_path: Path) -> None:
    name = f"model.layers.0.q_proj.{suffix}"
    state = {name: torch.ones(2, 2, dtype=torch.int32), "model.layers.0.q_proj.scales": torch.ones(2)}
    save(tmp_path, "model.safetensors", state)
    assert f"is quantised: it holds packed integers ({name})" in refusal(tmp_path)


def test_nothing_in_the_folder_is_changed_by_opening_it(sharded: Path, tmp_path: Path) -> None:
    shutil.copytree(sharded, tmp_path / "copy")
    open_checkpoint(sharded)
    assert {path.name: path.read_bytes() for path in sharded.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()
    }
