"""What is written where: the output folder, standard output and standard error."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from merge_cli import __version__
from merge_cli.checkpoint import Files
from merge_cli.checkpoint.folder_lock import lock_folder
from merge_cli.cli.progress import byte_progress
from merge_cli.kernels import backend
from merge_cli.kernels.compiled import LIBRARY, CompiledBackend
from merge_cli.kernels.numpy_backend import NumpyBackend
from merge_cli.stream import NullListener
from tests.checkpoints import write_checkpoint
from tests.cli.conftest import Run, listing

WARNED = ["--set", "parameters.int8_mask=true"]


def test_a_merge_says_in_one_line_what_it_did(run: Run, folder: Path) -> None:
    done = run("merge", "r.yml", "out")
    assert done.err == ""
    assert done.out.startswith("out: 15 parameters, 1 tensors merged, 1 copied; ")
    assert done.out.count("\n") == 1
    assert (folder / "out" / "model.safetensors").is_file()


def test_quietly_it_says_nothing_at_all(run: Run, folder: Path) -> None:
    done = run("merge", "r.yml", "out", "--quiet", *WARNED)
    assert (done.out, done.err) == ("", "")


def test_warnings_go_to_standard_error(run: Run, folder: Path) -> None:
    wanted = "warning: r.yml: parameters.int8_mask: ties has no such parameter; it is not used\n"
    assert run("merge", "r.yml", "out", *WARNED).err == wanted
    assert run("plan", "r.yml", *WARNED).err == wanted


def test_verbosely_the_plan_goes_to_standard_error(run: Run, folder: Path) -> None:
    done = run("merge", "r.yml", "out", "-v")
    assert "1 merged, 1 copied" in done.err
    assert done.out.startswith("out: ")


def test_a_dry_run_plans_and_writes_nothing(run: Run, folder: Path) -> None:
    before = listing(folder)
    done = run("merge", "r.yml", "deep/out", "--dry-run")
    assert done.code == 0
    assert "1 merged, 1 copied" in done.out
    assert listing(folder) == before


def test_a_dry_run_finds_what_a_run_would_refuse(run: Run, folder: Path) -> None:
    write_checkpoint(folder / "out", {"w": [1.0]})
    assert run("merge", "r.yml", "out", "--dry-run").code == 2
    assert run("merge", "r.yml", "base", "--dry-run", "--force").code == 2


def test_an_output_that_exists_is_refused_unless_forced(run: Run, folder: Path) -> None:
    assert run("merge", "r.yml", "out").code == 0
    before = (folder / "out" / "model.safetensors").read_bytes()
    done = run("merge", "r.yml", "out", "--set", "parameters.lambda=2")
    assert done.code == 2
    assert done.err == "error: out exists\n  hint: choose another name, or replace it with --force\n"
    assert (folder / "out" / "model.safetensors").read_bytes() == before
    assert run("merge", "r.yml", "out", "--set", "parameters.lambda=2", "--force").code == 0
    assert (folder / "out" / "model.safetensors").read_bytes() != before
    assert [name for name in listing(folder) if name.startswith("out.")] == []


def test_an_output_that_exists_is_refused_before_anything_is_looked_for(run: Run, folder: Path) -> None:
    write_checkpoint(folder / "out", {"w": [1.0]})
    done = run("merge", "r.yml", "out", "--set", "base_model=./nowhere")
    assert done.code == 2
    assert done.err.startswith("error: out exists")


def test_force_replaces_only_what_a_merge_wrote(run: Run, folder: Path) -> None:
    # As a Trainer leaves it, with the recipe that is being run.
    write_checkpoint(folder / "out", {"w": [1.0]})
    (folder / "out" / "checkpoint-500").mkdir()
    (folder / "out" / "checkpoint-500" / "optimizer.pt").write_bytes(b"x")
    before = listing(folder)
    done = run("merge", "r.yml", "out", "--force")
    assert done.code == 2
    assert "out was not written by merge-cli" in done.err
    assert listing(folder) == before


def test_force_deletes_no_file_that_was_added_to_an_output_and_names_it(run: Run, folder: Path) -> None:
    assert run("merge", "r.yml", "out").code == 0
    (folder / "out" / "checkpoint-500").mkdir()
    (folder / "out" / "checkpoint-500" / "optimizer.pt").write_bytes(b"x")
    (folder / "out" / "notes.md").write_text("mine")
    (folder / "out" / "empty").mkdir()
    before = listing(folder)
    done = run("merge", "r.yml", "out", "--set", "parameters.lambda=2", "--force")
    assert done.code == 2
    assert done.err == (
        "error: out holds checkpoint-500/optimizer.pt, empty/, notes.md, not written by merge-cli; --force does not "
        "delete that\n  hint: move the rest away, or choose another name\n"
    )
    assert listing(folder) == before


def test_an_output_that_contains_its_recipe_is_refused(run: Run, folder: Path) -> None:
    assert run("merge", "r.yml", "out").code == 0
    text = (folder / "r.yml").read_text()
    for name in ("base", "one", "two"):
        text = text.replace(f" {name}\n", f" {folder / name}\n")
    (folder / "out" / "own.yml").write_text(text)
    done = run("merge", "out/own.yml", "out", "--force")
    assert done.code == 2
    assert "out contains the recipe own.yml" in done.err
    assert (folder / "out" / "own.yml").is_file()


def test_an_empty_folder_is_taken_for_the_output(run: Run, folder: Path) -> None:
    (folder / "out").mkdir()
    assert run("merge", "r.yml", "out").code == 0
    assert (folder / "out" / "model.safetensors").is_file()
    assert [name for name in listing(folder) if name.startswith("out.")] == []


def test_the_same_command_again_is_done_and_changes_nothing(run: Run, folder: Path) -> None:
    assert run("merge", "r.yml", "out").code == 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "out").iterdir()}
    again = run("merge", "r.yml", "out")
    assert again.code == 0
    assert again.out == "out is complete: this merge has made it already (--force merges again)\n"
    told = json.loads(run("merge", "r.yml", "out", "--json").out)
    assert told["unchanged"] is True
    assert told["files"] == {
        "model.safetensors": hashlib.sha256(before[folder / "out" / "model.safetensors"][0]).hexdigest()
    }
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "out").iterdir()} == before


@pytest.mark.parametrize(
    "what", ["an input", "the base's tokenizer", "a shard", "the configuration", "an added file", "a removed file"]
)
def test_an_output_that_is_not_what_the_command_makes_is_in_its_way(run: Run, folder: Path, what: str) -> None:
    (folder / "base" / "tokenizer.json").write_text("{}")
    assert run("merge", "r.yml", "out").code == 0
    if what == "an input":
        write_checkpoint(folder / "one", {"layers.0.w": torch.full((4, 3), 7.0), "ids": torch.arange(3)})
    elif what == "the base's tokenizer":
        (folder / "base" / "tokenizer.json").write_text('{"a": 1}')
    elif what == "a shard":
        (folder / "out" / "model.safetensors").write_bytes(b"x")
    elif what == "the configuration":
        (folder / "out" / "config.json").write_text("{}")
    elif what == "an added file":
        (folder / "out" / "notes.txt").write_text("mine")
    else:
        (folder / "out" / "README.md").unlink()
    done = run("merge", "r.yml", "out")
    assert done.code == 2
    assert done.err.startswith("error: out exists")


def test_an_output_whose_weights_have_changed_is_not_called_complete(run: Run, folder: Path) -> None:
    assert run("merge", "r.yml", "out").code == 0
    path = folder / "out" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = run("merge", "r.yml", "out")
    assert done.code == 2
    assert "model.safetensors has changed since" in done.err
    assert "--force merges again" in done.err
    assert run("merge", "r.yml", "out", "--force").code == 0
    assert run("merge", "r.yml", "out").code == 0


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".journal"], [".lock", ".journal", ".replacing"]])
def test_the_same_command_ends_well_after_a_kill_just_after_the_output_got_its_name(
    run: Run, folder: Path, left: list[str]
) -> None:
    assert run("merge", "r.yml", "out").code == 0
    before = listing(folder)
    with lock_folder(folder / "other", Files(), run="run", busy=""):
        mark = (folder / "other" / ".lock").read_bytes()
    shutil.rmtree(folder / "other")
    for name in left:
        (folder / "out" / name).write_bytes(mark if name == ".lock" else b"")
    assert run("merge", "r.yml", "out").code == 0
    assert listing(folder) == before


def test_a_folder_behind_a_loop_of_links_is_refused_without_a_stack_trace(run: Run, folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    for out in ("loop", "loop/out"):
        for more in ([], ["--force"]):
            done = run("merge", "r.yml", out, *more)
            assert done.code in (2, 4, 6)
            assert done.err.startswith("error: ")


@pytest.mark.parametrize("out", ["one", "./one", "base/../two", "base"])
def test_an_output_that_is_an_input_is_refused_even_when_forced(run: Run, folder: Path, out: str) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    done = run("merge", "r.yml", out, "--force")
    assert done.code == 2
    assert f"{Path(out)} is the input " in done.err
    assert {path: path.read_bytes() for path in folder.rglob("*.safetensors")} == before


def test_an_output_that_contains_an_input_is_refused(run: Run, folder: Path) -> None:
    (folder / "all").mkdir()
    (folder / "one").rename(folder / "all" / "one")
    arguments = ["--set", "models.0.model=all/one", "--force"]
    done = run("merge", "r.yml", "all", *arguments)
    assert done.code == 2
    assert "all contains the input all/one" in done.err
    done = run("merge", "r.yml", ".", *arguments)
    assert done.code == 2
    assert (folder / "all" / "one" / "model.safetensors").is_file()


def test_an_input_behind_a_link_is_an_input(run: Run, folder: Path) -> None:
    (folder / "link").symlink_to("one", target_is_directory=True)
    done = run("merge", "r.yml", "link", "--force")
    assert done.code == 2
    assert "link is the input one" in done.err
    done = run("merge", "r.yml", "one", "--set", "models.0.model=link", "--force")
    assert done.code == 2
    assert "one is the input link" in done.err


def test_an_input_that_is_one_file_within_the_output_is_found(run: Run, folder: Path) -> None:
    done = run("merge", "r.yml", "one", "--set", "models.0.model=one/model.safetensors", "--force")
    assert done.code == 2
    assert "one contains the input one/model.safetensors" in done.err


def test_a_fisher_is_an_input_too(run: Run, folder: Path) -> None:
    arguments = ["--set", "merge_method=fisher", "--set", "models=[{model: one, fisher: two}]"]
    done = run("merge", "r.yml", "two", *arguments, "--force")
    assert done.code == 2
    assert "two is the input two" in done.err


def test_the_output_may_lie_within_an_input_or_in_a_folder_that_is_not_there_yet(run: Run, folder: Path) -> None:
    assert run("merge", "r.yml", "base/merged").code == 0
    assert run("merge", "r.yml", "deep/er/merged", "--no-fsync").code == 0
    assert (folder / "deep" / "er" / "merged" / "config.json").is_file()


@pytest.mark.parametrize("out", ["..", "/", ""])
def test_an_output_without_a_name_is_refused(run: Run, folder: Path, out: str) -> None:
    assert run("merge", "r.yml", out, "--force").code == 2


def test_progress_is_drawn_on_terminals_only(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with byte_progress(visible=True) as listener:
        listener.phase("merging", 20)
        listener.advance("layers.1.w", 20)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with byte_progress(visible=False) as listener:
        assert isinstance(listener, NullListener)
    with byte_progress(visible=True) as listener:
        assert not isinstance(listener, NullListener)
        listener.phase("measuring", 10)
        listener.advance("layers.0.w", 10)
        listener.phase("merging", 20)
        listener.advance("layers.1.w", 20)
    assert "merging" in capfd.readouterr().err


def test_tables_are_not_cut_to_eighty_columns_in_a_pipe(run: Run, folder: Path) -> None:
    name = "layers.0." + "very_long_module." * 10 + "weight"
    for checkpoint in ("base", "one", "two"):
        write_checkpoint(folder / checkpoint, {name: [1.0]})
    assert name in run("plan", "r.yml", "-v").out
    assert name.replace(".0.", ".{i}.") in run("inspect", "one").out
    assert name in run("inspect", "one", "-v").out
    assert max(map(len, run("methods").out.splitlines())) > 80


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").out == f"merge-cli {__version__}\n"


@pytest.mark.parametrize("options", [("--version", "-v"), ("-V", "--verbose"), ("-v", "--version")])
def test_on_request_with_what_computes(run: Run, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]) -> None:
    monkeypatch.setattr("merge_cli.kernels.compiled.MISSING", "not built")
    lines = run(*options).out.splitlines()
    assert lines[0] == f"merge-cli {__version__}"
    assert lines[2].startswith("compiled kernels not built")
    assert [line.split()[0] for line in lines[3:]] == ["numpy", "torch"]


@pytest.mark.parametrize("compiled", [True, False])
def test_a_report_says_what_computed_and_a_note_why_it_was_slow(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, *, compiled: bool
) -> None:
    if compiled and LIBRARY is None:
        pytest.skip("the kernels were not compiled")
    cpu = CompiledBackend(LIBRARY) if compiled else NumpyBackend()
    monkeypatch.setattr(backend, "CPU", cpu)
    monkeypatch.delenv("MERGE_CLI_COMPILED", raising=False)
    monkeypatch.setattr("merge_cli.kernels.compiled.MISSING", "not built")
    content = json.loads(run("merge", "r.yml", "out", "--json", "--device", "cpu", *WARNED).out)
    assert content["kernels"] == ("compiled" if compiled else "numpy")
    note = "numpy computed, to the same bytes but more slowly: the compiled kernels are not built"
    assert (note in content["notes"]) is not compiled
    said = run("merge", "r.yml", "other", "--device", "cpu", *WARNED)
    assert (note in said.err) is not compiled
    assert said.out.endswith(f" with {'compiled kernels' if compiled else 'numpy'}\n")
    monkeypatch.setenv("MERGE_CLI_COMPILED", "0")
    asked = json.loads(run("merge", "r.yml", "third", "--json", "--device", "cpu", *WARNED).out)
    assert note not in asked["notes"]


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_a_merge_in_json(run: Run, folder: Path) -> None:
    done = run("merge", "r.yml", "out", "--json", "-v", *WARNED)
    content = json.loads(done.out)
    assert (content["out"], content["merged"], content["copied"], content["parameters"]) == ("out", 1, 1, 15)
    assert content["warnings"] == ["r.yml: parameters.int8_mask: ties has no such parameter; it is not used"]
    assert set(content["files"]) == {"model.safetensors"}


@pytest.mark.parametrize("arguments", [["plan", "r.yml"], ["merge", "r.yml", "out", "--dry-run"]])
def test_a_plan_in_json(run: Run, folder: Path, arguments: list[str]) -> None:
    content = json.loads(run(*arguments, "--json", *WARNED).out)
    assert [each["role"] for each in content["inputs"]] == ["base", "model 0", "model 1"]
    assert (content["merged"], content["copied"]) == (1, 1)
    # Three times 12 numbers of 4 bytes, and 3 of 8.
    assert content["read_bytes"] == 3 * 48 + 24
    assert content["buffer_bytes"] <= content["memory_bytes"]
    assert len(content["digest"]) == 64
    merged, copied = sorted(content["tensors"], key=lambda tensor: bool(tensor["copied"]))
    assert merged["name"] == "layers.0.w"
    assert merged["parameters"]["density"] == [0.5, 1.0]
    assert copied == {"name": "ids", "dtype": "int64", "shape": [3], "copied": True, "parameters": None}


def test_what_is_in_a_checkpoint_in_json(run: Run, folder: Path) -> None:
    content = json.loads(run("inspect", "one", "--json").out)
    assert content["parameters"] == 15
    assert [tensor["name"] for tensor in content["tensors"]]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["merge", "nowhere.yml", "out"], 2),
        (["merge", "r.yml", "one"], 2),
        (["plan", "r.yml", "--set", "base_model=./nowhere"], 3),
        (["plan", "r.yml", "--memory", "1B"], 4),
        (["merge", "r.yml", "out", "--set", "parameters.lambda=1e6", "--set", "dtype=float16"], 5),
        (["inspect", "./nowhere"], 3),
        (["methods", "tie"], 2),
    ],
)
def test_a_failure_in_json(run: Run, folder: Path, arguments: list[str], code: int) -> None:
    done = run(*arguments, "--json")
    content = json.loads(done.out)
    assert set(content) == {"format", "error", "hint", "exit_code"}
    assert content["exit_code"] == done.code == code
    assert f"error: {content['error']}" in done.err


@pytest.mark.parametrize("asked", ["-j", "-qj", "-jv"])
def test_a_failure_in_json_that_is_asked_for_in_short(run: Run, folder: Path, asked: str) -> None:
    assert json.loads(run("merge", "nowhere.yml", "out", asked).out)["exit_code"] == 2
    assert run("merge", "nowhere.yml", "-fq", "out").out == ""


@pytest.mark.parametrize(
    ("arguments", "says", "where"),
    [
        (["--nonsense"], "--nonsense", "merge-cli"),
        (["marge", "r.yml"], "marge", "merge-cli"),
        (["merge", "r.yml"], "OUT", "merge-cli merge"),
        (["merge", "r.yml", "out", "--thread", "2"], "--thread", "merge-cli merge"),
        (["merge", "r.yml", "out", "--threads", "0"], "--threads", "merge-cli merge"),
        (["merge", "r.yml", "out", "--memory", "lots"], "'lots' is not a size", "merge-cli merge"),
        (["verify", "out", "--replay", "none"], "'none' is not a number of tensors", "merge-cli verify"),
        (["fisher", "base", "--draws", "0"], "--draws", "merge-cli fisher measure"),
    ],
)
def test_a_wrong_command_line_in_json(run: Run, folder: Path, arguments: list[str], says: str, where: str) -> None:
    done = run(*arguments, "--json")
    content = json.loads(done.out)
    assert says in content["error"]
    assert says in done.err
    assert content["hint"] == f"{where} --help shows what it takes"
    assert (content["format"], content["exit_code"], done.code) == (1, 2, 2)
    assert run(*arguments).out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["merge", "r.yml", "out"],
        ["merge", "r.yml", "out", "--dry-run"],
        ["plan", "r.yml"],
        ["plan", "r.yml", "--measure"],
        ["inspect", "one"],
        ["methods"],
        ["methods", "ties"],
        ["doctor"],
        ["verify", "one"],
    ],
)
def test_every_result_in_json_names_the_form_it_has(run: Run, folder: Path, arguments: list[str]) -> None:
    assert json.loads(run(*arguments, "--json").out)["format"] == 1


def test_the_schema_is_json_and_nothing_else(run: Run) -> None:
    assert json.loads(run("schema").out)["title"] == "merge-cli recipe"
