"""Broken and malicious input ends in one error and its exit code, and leaves everything as it was."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import write_checkpoint, write_header
from tests.cli.conftest import Run, listing

Break = Callable[[Path], object]


def put(name: str, content: bytes | str) -> Break:
    """Return what replaces a file by one with this content."""
    raw = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    return lambda folder: ((folder / name).unlink(missing_ok=True), (folder / name).write_bytes(raw))


def link(name: str, target: str) -> Break:
    return lambda folder: ((folder / name).unlink(missing_ok=True), (folder / name).symlink_to(target))


def pipe(name: str) -> Break:
    return lambda folder: ((folder / name).unlink(missing_ok=True), os.mkfifo(folder / name))


def large(name: str, size: int) -> Break:
    def make(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size)

    return make


def recipe(text: str) -> Break:
    return lambda folder: (folder / "r.yml").write_text(text)


def index(**places: str) -> Break:
    """Return what adds an index to the model ``one`` that says where its tensors are."""

    def make(folder: Path) -> None:
        weight_map = {"layers.0.w": "model.safetensors", "ids": "model.safetensors", **places}
        (folder / "one" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return make


CONFIG, WEIGHTS = "base/config.json", "one/model.safetensors"
MODEL = """merge_method: linear
models:
  - {model: one, parameters: {weight: 1}}
  - {model: two, parameters: {weight: 1}}
"""


@pytest.mark.parametrize(
    ("broken", "code", "says"),
    [
        # Recipes
        pytest.param(pipe("r.yml"), 2, "cannot read the recipe r.yml: it is not a regular file", id="recipe a pipe"),
        pytest.param(link("r.yml", "/dev/zero"), 2, "it is not a regular file", id="recipe without an end"),
        pytest.param(link("r.yml", "r.yml"), 2, "cannot read the recipe r.yml: Too many levels", id="recipe a loop"),
        pytest.param(large("r.yml", 2**30), 2, "r.yml has 1073741824 bytes", id="recipe of 1 GiB"),
        pytest.param(recipe("a: " + "[" * 100_000), 2, "nested too deeply", id="recipe nested deeply"),
        pytest.param(recipe("&a [*a]"), 2, "r.yml", id="recipe within itself"),
        pytest.param(recipe("x: &a [y]\n" * 1001), 2, "r.yml", id="recipe of one key again and again"),
        pytest.param(recipe("".join(f"k{i}: &a{i} 1\n" for i in range(30_000))), 2, "30000 keys", id="recipe of keys"),
        pytest.param(recipe(f"merge_method: linear\nmodels: [{'1,' * 90_000}]"), 2, "89980 findings more", id="items"),
        pytest.param(recipe(f"{MODEL}seed: 0x{'f' * 9000}"), 2, "is not a value of type int", id="seed of 9000 digits"),
        pytest.param(recipe(f"{MODEL}seed: {'1:' * 90_000}1"), 2, "is not a value of type int", id="seed to base 60"),
        pytest.param(recipe(MODEL.replace("weight: 1}", "weight: .nan}", 1)), 2, "finite number", id="weight NaN"),
        pytest.param(recipe(MODEL.replace("weight: 1}", "weight: 1e999}", 1)), 2, "finite number", id="weight 1e999"),
        pytest.param(recipe(MODEL.replace("one", "x" * 500)), 3, "File name too long", id="model's name too long"),
        pytest.param(recipe(MODEL.replace("one", "a+" + "x" * 5000)), 2, "LoRA", id="adapter's name too long"),
        pytest.param(recipe(MODEL.replace("one", '"a\\0b"')), 3, "'a\\x00b' does not exist", id="name with zero"),
        pytest.param(recipe(MODEL.replace("one", "'[red]x[/red]'")), 3, "'[red]x[/red]' does not exist", id="markup"),
        pytest.param(recipe(MODEL.replace("one", '"\\e[31mx"')), 3, "'\\x1b[31mx' does not exist", id="model in red"),
        pytest.param(
            recipe("!!python/object/apply:os.system ['touch made']"), 2, "apply:os.system", id="code on top"
        ),
        pytest.param(
            recipe(f"{MODEL}name: !!python/object/apply:os.system ['touch made']"), 2, "apply:os.system", id="code"
        ),
        # What stands beside the weights
        pytest.param(large(CONFIG, 2**30), 3, "config.json has 1073741824 bytes", id="configuration of 1 GiB"),
        pytest.param(put(CONFIG, '{"a":' * 500 + "1" + "}" * 500), 3, "nested too deeply", id="configuration nested"),
        pytest.param(put(CONFIG, '{"a": "\\ud800"}'), 3, "half of a surrogate pair", id="config no text"),
        pytest.param(put(CONFIG, '{"a": ' + "9" * 5000 + "}"), 3, "is not valid JSON", id="configuration, 5000 digits"),
        pytest.param(put(CONFIG, "[" + "0," * 6_000_000 + "0]"), 3, "more than 5000000 values", id="many values"),
        pytest.param(link(CONFIG, "/etc/passwd"), 3, "is a link to /etc/passwd, outside", id="configuration a link"),
        pytest.param(link(CONFIG, "nowhere"), 3, "is a link that leads nowhere", id="configuration gone"),
        pytest.param(link("base/tokenizer.json", "../secret"), 3, "outside of the checkpoint", id="tokenizer a link"),
        pytest.param(link("base/tokenizer.json", "tokenizer.json"), 3, "leads nowhere", id="tokenizer a loop"),
        pytest.param(large("base/tokenizer.json", 2**40), 3, "too many to come along", id="tokenizer of 1 TiB"),
        pytest.param(put("base/a\n0  b.json", "{}"), 3, "a name that cannot be printed", id="line in a file's name"),
        pytest.param(put("base/\udcff.json", "{}"), 3, "a name that cannot be printed", id="file's name no text"),
        # Weights
        pytest.param(pipe(WEIGHTS), 3, "model.safetensors: it is not a regular file", id="weights a pipe"),
        pytest.param(link(WEIGHTS, "../two/model.safetensors"), 3, "outside of the checkpoint", id="weights a link"),
        pytest.param(link(WEIGHTS, "/dev/zero"), 3, "outside of the checkpoint", id="weights without an end"),
        pytest.param(large(WEIGHTS, 2**40), 3, "not valid JSON", id="zeros"),
        pytest.param(index(ids="../two/model.safetensors"), 3, "not a file of the folder", id="index out of it"),
        pytest.param(index(ids="/etc/passwd"), 3, "not a file of the folder", id="index to anywhere"),
        pytest.param(
            lambda folder: (index(ids="x.safetensors")(folder), os.mkfifo(folder / "one" / "x.safetensors")),
            3, "x.safetensors: it is not a regular file", id="shard a pipe",
        ),
        pytest.param(
            lambda folder: (
                index(ids="x.safetensors")(folder),
                link("one/x.safetensors", "../two/model.safetensors")(folder),
            ),
            3, "outside of the checkpoint", id="shard a link",
        ),
        pytest.param(
            lambda folder: write_header(folder / WEIGHTS, {"layers.0.w\x1b[2J": ("F32", [1], 4)}),
            3, "'layers.0.w\\x1b[2J' of 14 characters cannot be the name of a tensor", id="name that clears the screen",
        ),
        pytest.param(
            lambda folder: write_header(folder / WEIGHTS, {"a\n  hint: all is well": ("F32", [1], 4)}),
            3, "cannot be the name of a tensor", id="name that says more than it is asked",
        ),
        pytest.param(
            lambda folder: write_header(folder / WEIGHTS, {"a" * 1001: ("F32", [1], 4)}),
            3, "of 1001 characters cannot be the name of a tensor", id="long name",
        ),
        pytest.param(
            lambda folder: write_header(folder / WEIGHTS, {f"layers.{'9' * 900}.w": ("F32", [1], 4)}),
            3, "differ in", id="layer of 900 digits",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_ends_in_one_error_and_leaves_everything_as_it_was(
    run: Run, folder: Path, broken: Break, code: int, says: str
) -> None:
    (folder / "secret").write_text("hf_secret")
    broken(folder)
    before = listing(folder)
    done = run("merge", "r.yml", "out", "--no-fsync")
    assert says in done.err
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    assert len(done.err) < 5000
    assert all(line.isprintable() for line in done.err.splitlines())
    assert listing(folder) == before


@pytest.mark.parametrize(
    "content", [{"inputs": 3}, {"inputs": [None]}, {"inputs": [{"role": "base", "reference": []}]}, []]
)
def test_a_manifest_that_is_none_warns_of_nothing(run: Run, folder: Path, content: Any) -> None:
    (folder / "base" / "merge_manifest.json").write_text(json.dumps(content))
    assert run("merge", "r.yml", "out", "--no-fsync").err == ""


def test_a_manifest_that_is_a_pipe_is_not_waited_for(run: Run, folder: Path) -> None:
    os.mkfifo(folder / "base" / "merge_manifest.json")
    os.mkfifo(folder / "base" / "vocab.txt")
    done = run("merge", "r.yml", "out", "--no-fsync")
    assert (done.code, done.err) == (0, "")
    assert not (folder / "out" / "vocab.txt").exists()


def test_a_manifest_that_speaks_to_the_terminal_is_shown_and_not_obeyed(run: Run, folder: Path) -> None:
    made = {"inputs": [{"role": "base", "reference": "\x1b[31mx"}], "method": {"name": "ties"}}
    (folder / "base" / "merge_manifest.json").write_text(json.dumps(made))
    assert "ties onto \\x1b[31mx" in run("merge", "r.yml", "out", "--no-fsync").err


def test_a_recipe_may_come_through_a_pipe_of_the_shell(folder: Path) -> None:
    command = [sys.executable, "-m", "merge_cli", "plan", "/dev/stdin", "--json"]
    done = subprocess.run(command, input=(folder / "r.yml").read_bytes(), capture_output=True, check=True, timeout=100)
    assert json.loads(done.stdout)["merged"] == 1


def test_what_a_checkpoint_says_of_itself_is_shown_and_not_obeyed(run: Run, folder: Path) -> None:
    said = {"\x1b[2Jkey": "\x1b]0;title\x07[bold]value"}
    write_checkpoint(folder / "one", {"w": [1.0]}, metadata=said, config={"architectures": ["\x1b[31mRed"]})
    done = run("inspect", "one")
    assert done.code == 0
    assert "\x1b" not in done.out
    assert "\\x1b]0;title\\x07[bold]value" in done.out
    assert "\\x1b[31mRed" in done.out


def test_an_output_may_have_a_name_that_is_no_text(run: Run, folder: Path) -> None:
    done = run("merge", "r.yml", os.fsdecode(b"out\xff"), "--no-fsync")
    assert done.code == 0
    assert done.out.startswith("out\\udcff: ")
    assert "# out\\udcff" in (folder / os.fsdecode(b"out\xff") / "README.md").read_text()


def test_a_recipe_may_have_a_name_that_is_no_text(run: Run, folder: Path) -> None:
    name = os.fsdecode(b"r\xff.yml")
    (folder / name).write_text((folder / "r.yml").read_text() + "parameters: {int8_mask: true}\n")
    done = run("merge", name, "out", "--no-fsync")
    assert (done.code, done.err.startswith("warning: r\\udcff.yml:8: parameters.int8_mask")) == (0, True)
    assert "r\\\\udcff.yml" in (folder / "out" / "merge_manifest.json").read_text()
