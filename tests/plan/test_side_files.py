"""What comes along beside the weights: chat templates, modules in folders, special tokens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from merge_cli.errors import CheckpointError
from merge_cli.plan import MergePlan, build_plan
from merge_cli.run import merge
from merge_cli.verification import verify
from tests.checkpoints import LLAMA, recipe_over, write_checkpoint

Texts = Mapping[str, str]


def planned(folder: Path, files: Mapping[str, Texts]) -> MergePlan:
    """Plan task arithmetic of ``one`` and ``two`` onto ``base``, which have these files beside their weights."""
    for i, name in enumerate(["base", "one", "two"]):
        write_checkpoint(folder / name, {"layers.0.w": [1.0 + i, 2.0]}, config=LLAMA)
        for file, text in files.get(name, {}).items():
            (folder / name / file).parent.mkdir(exist_ok=True)
            (folder / name / file).write_text(text)
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("one", "two")]
    content = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    return build_plan(recipe_over(folder, content))


def merged(folder: Path, files: Mapping[str, Texts]) -> Path:
    merge(planned(folder, files), folder / "out", sync=False)
    return folder / "out"


# --- chat templates ---------------------------------------------------------------------------------------------------


IN_SETTINGS = json.dumps({"chat_template": "{{ x }}"})


@pytest.mark.parametrize(
    "place",
    [
        {"chat_template.jinja": "{{ x }}"},
        {"chat_template.json": IN_SETTINGS},
        {"tokenizer_config.json": IN_SETTINGS},
        {"tokenizer_config.json": json.dumps({"chat_template": [{"name": "default", "template": "{{ x }}"}]})},
    ],
)
def test_the_models_template_is_taken_where_the_base_has_none(tmp_path: Path, place: Texts) -> None:
    files = {"base": {"tokenizer_config.json": "{}"}, "one": place, "two": {"chat_template.jinja": "{{ x }}"}}
    plan = planned(tmp_path, files)
    assert plan.warnings == ()
    assert plan.notes == ("the chat template is that of one, two: base has none",)
    merge(plan, tmp_path / "out", sync=False)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ x }}"
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == "{}"
    assert "  chat_template.jinja\n" in (tmp_path / "out" / "SHA256SUMS").read_text()


def test_further_templates_come_along_from_a_folder(tmp_path: Path) -> None:
    own = {"chat_template.jinja": "{{ x }}", "additional_chat_templates/tool.jinja": "{{ tool }}"}
    out = merged(tmp_path, {"base": own})
    assert (out / "additional_chat_templates" / "tool.jinja").read_text() == "{{ tool }}"


def test_further_templates_of_the_models_are_taken_too(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "{{ x }}"}, {"name": "rag", "template": "{{ rag }}"}]
    out = merged(tmp_path, {"one": {"tokenizer_config.json": json.dumps({"chat_template": named})}})
    assert (out / "chat_template.jinja").read_text() == "{{ x }}"
    assert (out / "additional_chat_templates" / "rag.jinja").read_text() == "{{ rag }}"


def test_a_template_that_is_not_the_base_s_is_told_of_and_left(tmp_path: Path) -> None:
    files = {"base": {"chat_template.jinja": "a"}, "one": {"chat_template.jinja": "b"}}
    plan = planned(tmp_path, files)
    assert plan.warnings == ("one has another chat template than base, whose the output gets",)
    assert plan.side_files["chat_template.jinja"] == tmp_path / "base" / "chat_template.jinja"


def test_models_that_have_two_templates_give_none(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"one": {"chat_template.jinja": "a"}, "two": {"chat_template.jinja": "b"}})
    assert plan.warnings == (
        "base has no chat template, and one another one than two: the output gets none, copy the one that fits",
    )
    assert plan.side_texts == {}


@pytest.mark.parametrize("strange", ["[]", "{", '{"chat_template": 3}', '{"chat_template": [3, {"name": "../x"}]}'])
def test_settings_of_another_form_break_nothing(tmp_path: Path, strange: str) -> None:
    files = {"chat_template.json": strange, "tokenizer_config.json": strange}
    assert planned(tmp_path, {"base": files, "one": files}).warnings == ()


# --- modules in folders -----------------------------------------------------------------------------------------------


def modules(*folders: str) -> str:
    return json.dumps([{"idx": i, "name": str(i), "path": path, "type": "x"} for i, path in enumerate(folders)])


POOLING = {"modules.json": modules("", "1_Pooling"), "1_Pooling/config.json": '{"pooling": "mean"}'}


def test_what_modules_name_comes_along_and_is_checked_like_all_else(tmp_path: Path) -> None:
    dense = {"modules.json": modules("", "1_Pooling", "2_Dense/", "3_Normalize"), "2_Dense/model.safetensors": "bytes"}
    out = merged(tmp_path, {"base": POOLING | dense, "one": POOLING | dense, "two": POOLING | dense})
    assert (out / "1_Pooling" / "config.json").read_text() == '{"pooling": "mean"}'
    assert (out / "2_Dense" / "model.safetensors").read_text() == "bytes"
    assert not (out / "3_Normalize").exists()
    assert verify(out).sound
    (out / "1_Pooling" / "config.json").write_text("{}")
    assert not verify(out).sound


def test_an_output_with_folders_can_be_replaced(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"base": POOLING})
    merge(plan, tmp_path / "out", sync=False)
    (tmp_path / "base" / "modules.json").unlink()
    merge(planned(tmp_path, {}), tmp_path / "out", sync=False, force=True)
    assert not (tmp_path / "out" / "1_Pooling").exists()


def test_a_module_that_differs_is_a_note_as_the_base_s_is_copied(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"base": POOLING, "one": {**POOLING, "1_Pooling/config.json": "{}"}})
    assert plan.notes == ("1_Pooling/config.json of one is not that of base, which the output gets unmerged",)


def test_modules_that_only_the_models_have_are_taken_where_they_agree(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"one": POOLING, "two": POOLING})
    assert plan.notes == ("modules.json and what it names are those of one, two: base has none",)
    assert plan.side_files["1_Pooling/config.json"] == tmp_path / "one" / "1_Pooling" / "config.json"
    other = {**POOLING, "1_Pooling/config.json": "{}"}
    plan = planned(tmp_path, {"one": POOLING, "two": other})
    assert plan.warnings == ("base has no modules.json, and one others than two: the output gets none",)
    assert not plan.side_files


@pytest.mark.parametrize("path", ["../one", "/etc", "a/../../one", ".git", "a/b/c/d", "a\\b"])
def test_a_folder_that_is_not_inside_of_the_checkpoint_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="which is not a folder inside the checkpoint"):
        planned(tmp_path, {"base": {"modules.json": modules("", path)}})


def test_a_link_in_a_folder_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("secret")
    planned(tmp_path, {"base": POOLING})
    (tmp_path / "base" / "1_Pooling" / "more.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        planned(tmp_path, {})


@pytest.mark.parametrize("strange", ["{}", "[3]", "[{}]", "{"])
def test_modules_of_another_form_break_nothing(tmp_path: Path, strange: str) -> None:
    assert planned(tmp_path, {"base": {"modules.json": strange}}).warnings == ()


# --- special tokens ---------------------------------------------------------------------------------------------------


def tokens(**given: Any) -> Texts:
    return {"tokenizer_config.json": json.dumps(given)}


def test_another_end_of_text_is_told_of_with_the_file_and_both_values(tmp_path: Path) -> None:
    files = {"base": tokens(eos_token="</s>"), "one": tokens(eos_token={"content": "<|end|>"})}
    assert planned(tmp_path, files).warnings == (
        "the special tokens of one are not those of base, whose files the output gets: eos_token in "
        'tokenizer_config.json is "<|end|>" and "</s>"',
    )


def test_ids_are_compared_as_sets_and_what_one_lacks_is_no_difference(tmp_path: Path) -> None:
    generation = {"base": {"eos_token_id": [1, 2]}, "one": {"eos_token_id": [2, 1]}, "two": {"temperature": 0.5}}
    files = {name: {"generation_config.json": json.dumps(given)} for name, given in generation.items()}
    assert planned(tmp_path, files).warnings == ()
    files["two"] = {"generation_config.json": '{"eos_token_id": 1}'}
    (warning,) = planned(tmp_path, files).warnings
    assert warning.endswith("eos_token_id in generation_config.json is 1 and [1, 2]")


def test_another_padding_is_a_note(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"base": tokens(pad_token="a"), "one": tokens(pad_token="b")})
    assert plan.warnings == ()
    assert plan.notes == (
        'the padding of one is not that of base, whose files the output gets: pad_token in tokenizer_config.json is "b"'
        ' and "a"',
    )
