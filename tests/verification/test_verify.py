"""What a merge has made can be checked, and computed again from what it was made of."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_cli import CheckpointError, Replay, build_plan, load_recipe, merge, verify
from merge_cli.errors import VerificationError
from merge_cli.recipe import parse_recipe
from tests.checkpoints import write_checkpoint, write_recipe

# Four tensors in three shards: a large one of its own, and small ones.
_NAMES = ["a", "b", "c", "d"]


def _tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(40, 5 + i, generator=generator) for i, name in enumerate(_NAMES)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a base, two models, and ``out``, merged from them."""
    base = _tensors(0)
    write_checkpoint(tmp_path / "base", base)
    for i, name in enumerate(("one", "two"), start=1):
        write_checkpoint(tmp_path / name, {k: v + 0.1 * _tensors(i)[k] for k, v in base.items()})
    monkeypatch.chdir(tmp_path)
    make("ties", density=0.5)
    return tmp_path


def make(method: str, out: str = "out", **parameters: Any) -> None:
    names = ("one",) if method == "slerp" else ("one", "two")
    models = [{"model": name, "parameters": {"weight": 1}} for name in names]
    content = {"merge_method": method, "base_model": "base", "models": models, "parameters": parameters}
    write_recipe(Path("recipe.yml"), content)
    merge(build_plan(load_recipe("recipe.yml"), shard_size=1300), out, sync=False)


def damage(path: Path, offset: int = -1, *, value: int = 0x40) -> None:
    """Change one byte of a file, counted from its end."""
    content = bytearray(path.read_bytes())
    content[offset] ^= value
    path.write_bytes(content)


def signed(path: Path, text: str) -> None:
    """Change a file of ``out``, and its digest wherever it is, as someone does who wants it not to be noticed."""
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(text)
    new = hashlib.sha256(text.encode()).hexdigest()
    listing = path.with_name("merge_manifest.json")
    if path != listing:
        signed(listing, listing.read_text().replace(old, new))
    digests = path.with_name("SHA256SUMS")
    digests.write_text(digests.read_text().replace(old, new))


def test_what_was_merged_is_sound(folder: Path) -> None:
    found = verify("out")
    assert found.sound
    assert (found.tensors, found.replayed, found.seed, found.notes) == (4, (), None, ())
    assert found.tool == f"merge-cli {__import__('merge_cli').__version__}"
    # Shards, index, config, card and manifest; the digests themselves are not among the digests.
    assert found.files == len(list(Path("out").iterdir())) - 1


def test_the_digests_are_those_of_sha256sum(folder: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd="out", capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK\n") == verify("out").files


@pytest.mark.parametrize("what", ["model-00001-of-00004.safetensors", "config.json", "merge_manifest.json"])
def test_a_changed_byte_is_found(folder: Path, what: str) -> None:
    path = folder / "out" / what
    if what.endswith(".json"):
        path.write_text(path.read_text().replace("\n", " \n", 1))
    else:
        damage(path)
    found = verify("out")
    assert found.problems == (f"{what} has changed: its SHA-256 is not the recorded one",)


def test_a_missing_shard_is_found(folder: Path) -> None:
    (folder / "out" / "model-00002-of-00004.safetensors").unlink()
    problems = verify("out").problems
    assert problems[0] == "model-00002-of-00004.safetensors is missing"
    assert len(problems) == 2


def test_missing_digests_are_a_problem_and_those_of_the_manifest_count(folder: Path) -> None:
    (folder / "out" / "SHA256SUMS").unlink()
    found = verify("out")
    assert found.problems == ("SHA256SUMS is missing",)
    # Four shards, index, config, card, recipe.
    assert found.files == 8


@pytest.mark.parametrize("what", ["README.md", "model.safetensors.index.json", "merge_manifest.json"])
def test_a_file_whose_line_is_gone_from_the_digests_is_found_and_so_is_its_change(folder: Path, what: str) -> None:
    path, digests = folder / "out" / what, folder / "out" / "SHA256SUMS"
    path.write_text(path.read_text().replace("\n", " \n", 1))
    digests.write_text(
        "".join(line for line in digests.read_text().splitlines(True) if not line.endswith(f" {what}\n"))
    )
    problems = verify("out").problems
    assert problems[0] == f"SHA256SUMS does not list {what}"
    # Nothing else holds the digest of the manifest.
    assert len(problems) == (1 if what == "merge_manifest.json" else 2)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "adapter_config.json", "adapter_model.safetensors", "modeling_evil.py", "tokenizer.json",
        "generation_config.json", "chat_template.jinja", "vocab.txt", "1_Pooling/config.json",
        "precision/x.safetensors",
    ],
)  # fmt: skip
def test_an_added_file_that_would_be_loaded_is_a_problem(folder: Path, name: str) -> None:
    path = folder / "out" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    assert verify("out").problems == (f"{name} is not a file of the merge, and would be loaded with it",)


def test_a_folder_that_is_added_by_a_link_is_looked_at_as_a_file_is(folder: Path) -> None:
    (folder / "out" / "more.json").symlink_to(folder / "base", target_is_directory=True)
    assert verify("out").problems == ("more.json is not a file of the merge, and would be loaded with it",)


def test_what_else_is_added_is_noted_and_the_merge_is_sound(folder: Path) -> None:
    (folder / "out" / "notes.md").write_text("mine")
    (folder / "out" / ".git").mkdir()
    (folder / "out" / ".git" / "config.json").write_text("{}")
    found = verify("out")
    assert found.sound
    assert found.notes == ("not of the merge, and not read with the weights: .git/config.json, notes.md",)


def test_manifests_that_list_weights_only_are_read(folder: Path) -> None:
    path = folder / "out" / "merge_manifest.json"
    made = json.loads(path.read_text())
    made["format"] = 1
    made["files"] = {name: digest for name, digest in made["files"].items() if name.startswith("model-")}
    signed(path, json.dumps(made))
    assert verify("out").sound


def test_digests_and_manifest_must_agree(folder: Path) -> None:
    path = folder / "out" / "SHA256SUMS"
    line = next(line for line in path.read_text().splitlines() if "00001" in line)
    path.write_text(path.read_text().replace(line[:64], "0" * 64))
    assert any("disagree about model-00001-of-00004.safetensors" in problem for problem in verify("out").problems)


@pytest.mark.parametrize(
    "name", ["../base/config.json", "precision/../../base/config.json", "/etc/passwd", "", "x" * 5000]
)
def test_digests_of_files_elsewhere_are_not_read(folder: Path, name: str) -> None:
    path = folder / "out" / "SHA256SUMS"
    path.write_text(path.read_text() + f"{'0' * 64}  {name}\n")
    assert len(verify("out").problems) == 1
    assert "holds a line that is none" in verify("out").problems[0]


def test_a_name_that_no_file_can_have_is_a_problem_and_the_other_files_are_looked_at(folder: Path) -> None:
    path = folder / "out" / "SHA256SUMS"
    path.write_text(f"{'0' * 64}  {'x' * 500}\n" + path.read_text())
    found = verify("out")
    assert found.problems == (f"cannot read out/{'x' * 500}: File name too long",)
    assert found.files == len(list(Path("out").iterdir())) - 1


def test_an_index_that_names_another_shard_is_found(folder: Path) -> None:
    path = folder / "out" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["a"], index["weight_map"]["d"] = index["weight_map"]["d"], index["weight_map"]["a"]
    path.write_text(json.dumps(index))
    problems = verify("out").problems
    assert problems[0].startswith("model.safetensors.index.json has changed")
    assert "which the shard named there does not hold" in problems[1]


def test_nan_is_found(folder: Path) -> None:
    path = folder / "out" / "model-00004-of-00004.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"
    path.write_bytes(content)
    assert verify("out").problems[1] == "d: NaN or infinity"


def test_what_has_no_manifest_cannot_be_verified(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="base has no merge_manifest"):
        verify("base")
    with pytest.raises(CheckpointError, match=r"^nothing does not exist$"):
        verify("nothing")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"tool": 1}', "\udcff", "[" * 100_000])
def test_a_damaged_manifest_is_an_error_that_says_so(folder: Path, content: str) -> None:
    (folder / "out" / "merge_manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(VerificationError, match=r"merge_manifest\.json is (damaged|not)"):
        verify("out")


# Computing it again


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_beside_the_weights_that_was_changed_with_all_its_digests_is_found_by_the_replay(
    folder: Path, name: str
) -> None:
    (folder / "base" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "base" / "tokenizer.json").write_text("{}")
    make("ties", out="other", density=0.5)
    assert verify("other", replay=Replay(1)).sound
    signed(folder / "other" / name, '{"bos_token_id": 7}')
    assert verify("other").sound
    assert verify("other", replay=Replay(1)).problems == (f"{name} differs, when it is written again",)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {}),
        ("task_arithmetic", {}),
        ("ties", {"density": 0.3, "trim": "model"}),
        ("dare_ties", {"density": 0.5}),
        ("slerp", {"t": 0.3}),
    ],
)
def test_every_tensor_is_the_same_when_it_is_computed_again(
    folder: Path, method: str, parameters: dict[str, Any]
) -> None:
    make(method, "again", **parameters)
    found = verify("again", replay=Replay(None))
    assert found.problems == ()
    assert sorted(found.replayed) == _NAMES


def test_as_many_tensors_are_computed_again_as_asked_for_and_the_seed_says_which(folder: Path) -> None:
    found = verify("out", replay=Replay(2, seed=5))
    assert len(found.replayed) == 2
    assert found.seed == 5
    assert verify("out", replay=Replay(2, seed=5)).replayed == found.replayed
    others = {verify("out", replay=Replay(2, seed=seed)).replayed for seed in range(12)}
    assert len(others) > 1
    drawn = verify("out", replay=Replay(2))
    assert drawn.seed is not None
    assert verify("out", replay=Replay(2, seed=drawn.seed)).replayed == drawn.replayed
    assert len(verify("out", replay=Replay(99)).replayed) == 4


def test_a_tensor_that_is_not_what_its_inputs_give_is_named(folder: Path) -> None:
    # 40 rows of 8 float32 stand in d: the last byte is that of element 319.
    damage(folder / "out" / "model-00004-of-00004.safetensors")
    found = verify("out", replay=Replay(None))
    assert found.problems[-1] == "'d' differs from element 319 on, when it is computed again"
    assert sorted(found.replayed) == ["a", "b", "c"]


def replayed_in_vain(*changed: str) -> None:
    """Check that it is the inputs that are said to have changed, and not the output."""
    with pytest.raises(CheckpointError) as caught:
        verify("out", replay=Replay(None))
    files = f"{len(changed)} input file{'s' if len(changed) > 1 else ''}"
    says = f"{files} changed since the merge, so that computing it again says nothing about the output: "
    assert caught.value.message == says + ", ".join(changed)
    assert verify("out").sound


@pytest.mark.parametrize("kept", [False, True])
def test_an_input_that_has_changed_is_named_and_the_output_is_not_blamed(folder: Path, kept: bool) -> None:
    path = folder / "one" / "model.safetensors"
    before = path.stat().st_mtime_ns
    damage(path)
    os.utime(path, ns=(before, before + 10**9 * (not kept)))
    replayed_in_vain("one/model.safetensors")


def change_between_samples(path: Path) -> None:
    """Change a number of a large file of which no sample is taken, and set the time back."""
    before = path.stat()
    damage(path, -100_000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a merge of two large models."""
    for i, name in enumerate(("base", "one", "two")):
        write_checkpoint(tmp_path / name, {"w": torch.full((100_000,), 1.0 + i)})
    monkeypatch.chdir(tmp_path)
    make("linear")
    return tmp_path


def test_an_input_whose_sample_does_not_show_it_has_changed_by_its_digest(large: Path) -> None:
    change_between_samples(large / "two" / "model.safetensors")
    replayed_in_vain("two/model.safetensors")


def test_without_recorded_digests_a_change_that_no_sample_shows_is_not_told_from_one_of_the_output(large: Path) -> None:
    merge(build_plan(load_recipe("recipe.yml")), "out", sync=False, force=True, input_digests=False)
    change_between_samples(large / "two" / "model.safetensors")
    assert [problem.split()[0] for problem in verify("out", replay=Replay(None)).problems] == ["'w'"]


def test_what_is_wrong_with_the_output_is_said_too_where_an_input_has_changed(folder: Path) -> None:
    damage(folder / "one" / "model.safetensors")
    damage(folder / "out" / "model-00004-of-00004.safetensors")
    problems = verify("out", replay=Replay(None)).problems
    assert problems[0] == "model-00004-of-00004.safetensors has changed: its SHA-256 is not the recorded one"
    assert problems[1].startswith("it cannot be computed again: 1 input file changed since the merge")


def test_inputs_that_were_written_again_with_the_same_content_are_noted(folder: Path) -> None:
    os.utime(folder / "one" / "model.safetensors", ns=(1, 1))
    found = verify("out", replay=Replay(None))
    assert found.sound
    what = "written again since the merge, with the same size, header and sample of numbers"
    assert found.notes == (f"1 input file {what}: one/model.safetensors",)


def test_inputs_that_changed_and_give_the_same_are_noted(folder: Path) -> None:
    state = {name: value + 0.1 * _tensors(1)[name] for name, value in _tensors(0).items()}
    write_checkpoint(folder / "one", state, metadata={"said": "more"})
    found = verify("out", replay=Replay(None))
    assert found.sound
    assert found.notes == ("1 input file changed since the merge: one/model.safetensors",)


def test_inputs_of_another_shape_are_named_as_changed(folder: Path) -> None:
    for name in ("base", "one", "two"):
        write_checkpoint(folder / name, {**_tensors(0), "d": torch.ones(2, 2), "e": torch.ones(3)})
    replayed_in_vain(*(f"{name}/model.safetensors" for name in ("base", "one", "two")))


# Where the inputs are


@pytest.mark.parametrize("out", ["mine", "recipes/mine", "deep/er/mine"])
def test_inputs_are_found_from_where_the_recipe_lay_wherever_one_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (folder / "all" / "recipes").mkdir(parents=True)
    for name in ("base", "one", "two", "recipe.yml"):
        (folder / name).rename(folder / "all" / "recipes" / name)
    monkeypatch.chdir(folder / "all")
    merge(build_plan(load_recipe("recipes/recipe.yml")), out, sync=False)
    assert verify(out, replay=Replay(None)).sound
    monkeypatch.chdir(folder)
    assert verify(f"all/{out}", replay=Replay(None)).sound
    # The whole of it may move.
    (folder / "all").rename(folder / "moved")
    monkeypatch.chdir("/")
    assert verify(folder / "moved" / out, replay=Replay(None)).sound


def test_each_place_that_was_looked_at_is_named_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = "models: [{model: ./one, parameters: {weight: 1}}]\n"
    (folder / "r.yml").write_text("merge_method: linear\n" + models)
    merge(build_plan(load_recipe("r.yml")), "linear", sync=False)
    (folder / "one").rename(folder / "gone")
    with pytest.raises(CheckpointError) as caught:
        verify("linear", replay=Replay(1))
    assert caught.value.message == "'./one' does not exist"
    assert str(caught.value.hint).startswith(f"looked for {folder / 'one'}; paths in the recipe start from where")


def test_of_a_recipe_that_is_no_file_paths_start_beside_the_output(folder: Path) -> None:
    merge(build_plan(parse_recipe((folder / "recipe.yml").read_text())), "typed", sync=False)
    assert json.loads((folder / "typed" / "merge_manifest.json").read_text())["recipe_folder"] is None
    assert verify("typed", replay=Replay(None)).sound


def test_an_input_that_is_gone_is_an_error_that_says_where_paths_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "elsewhere").mkdir()
    (folder / "out").rename(folder / "elsewhere" / "out")
    monkeypatch.chdir(folder / "elsewhere")
    with pytest.raises(CheckpointError) as caught:
        verify("out", replay=Replay(1))
    assert "--from FOLDER" in str(caught.value.hint)
    assert verify("out", replay=Replay(None, folder=folder)).problems == ()


def test_the_posterior_precision_is_computed_again_too(folder: Path) -> None:
    for name, seed in (("base", 7), ("one", 8), ("two", 9)):
        squares = {key: value.square() for key, value in _tensors(seed).items()}
        write_checkpoint(folder / f"fisher-{name}", squares, config=None, metadata={"train_examples": "10"})
    models = [{"model": name, "fisher": f"fisher-{name}"} for name in ("one", "two")]
    content = {
        "merge_method": "gradient_matching", "base_model": "base", "base_fisher": "fisher-base", "models": models,
        "save_precision": True,
    }  # fmt: skip
    write_recipe(folder / "recipe.yml", content)
    merge(build_plan(load_recipe("recipe.yml")), "matched", sync=False)
    assert verify("matched", replay=Replay(None)).problems == ()
    damage(folder / "matched" / "precision" / "model.safetensors", value=1)
    problems = verify("matched", replay=Replay(None)).problems
    assert problems[0] == "precision/model.safetensors has changed: its SHA-256 is not the recorded one"
    assert problems[1] == "'precision/d' differs from element 319 on, when it is computed again"


def test_another_version_of_the_program_is_noted(folder: Path) -> None:
    path = folder / "out" / "merge_manifest.json"
    made = json.loads(path.read_text())
    made |= {"tool": "merge-cli 0.0.1", "method": {**made["method"], "version": 77}}
    path.write_text(json.dumps(made))
    notes = verify("out", replay=Replay(1)).notes
    assert notes[0].startswith("made by merge-cli 0.0.1, computed again by merge-cli ")
    assert notes[1].startswith("ties was version 77 and is ")


class Watching:
    """Keeps which phases there were, with their bytes, and how many were told of."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []
        self.told = 0

    def phase(self, name: str, nbytes: int) -> None:
        self.phases.append((name, nbytes))

    def advance(self, tensor: str, nbytes: int) -> None:
        self.told += nbytes


def test_hashing_shows_its_progress_too(folder: Path) -> None:
    watching = Watching()
    assert verify("out", listener=watching).sound
    listed = [path for path in (folder / "out").iterdir() if path.name != "SHA256SUMS"]
    weights = sum(tensor.numel() * 4 for tensor in _tensors(0).values())
    assert watching.phases == [("hashing", sum(path.stat().st_size for path in listed)), ("looking for NaN", weights)]
    assert watching.told == sum(nbytes for _, nbytes in watching.phases)
