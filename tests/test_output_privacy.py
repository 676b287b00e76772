"""What an output lets others do with it, and what it tells them."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from merge_cli.plan import build_plan
from merge_cli.recipe import load_recipe
from merge_cli.run import merge
from tests.checkpoints import LLAMA, write_checkpoint

SECRET = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz"
RECIPE = """merge_method: gradient_matching
base_model: ~/base
base_fisher: ~/fisher
models:
  - {model: org/fine-tune, fisher: ~/fisher, parameters: {weight: 1}}
save_precision: true
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home directory with a base, a Fisher, and a fine-tune in the hub's cache."""
    home = tmp_path / "home-of-alice"
    tensors = {"a": [1.0, 2.0], "b": [3.0]}
    write_checkpoint(home / "base", tensors, config={**LLAMA, "_name_or_path": str(home / "training" / "run7")})
    write_checkpoint(home / "fisher", {"a": [5.0, 6.0], "b": [7.0]}, config=None, metadata={"train_examples": "3"})
    cache = home / ".cache" / "huggingface" / "hub" / "models--org--fine-tune"
    revision = cache / "snapshots" / ("0" * 40)
    write_checkpoint(cache / "blobs", tensors)
    revision.mkdir(parents=True)
    for path in (cache / "blobs").iterdir():
        (revision / path.name).symlink_to(f"../../blobs/{path.name}")
    (home / ".cache" / "huggingface" / "token").write_text(SECRET)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *given, **options: str(revision))
    return home


def output(home: Path, umask: int) -> Path:
    """Merge under a umask into a folder whose parents are not there yet."""
    (home / "r.yml").write_text(RECIPE)
    before = os.umask(umask)
    try:
        merge(build_plan(load_recipe(home / "r.yml"), shard_size=8), home / "new" / "deep" / "out", sync=False)
    finally:
        os.umask(before)
    return home / "new"


@pytest.mark.parametrize(
    ("umask", "files", "folders"),
    [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o027, 0o640, 0o750), (0o002, 0o664, 0o775), (0, 0o664, 0o775)],
)
def test_the_umask_is_honoured_and_nothing_is_writable_for_everyone(
    umask: int, files: int, folders: int, home: Path
) -> None:
    (home / "base" / "tokenizer.json").write_text("{}")
    (home / "base" / "tokenizer.json").chmod(0o777)
    new = output(home, umask)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (new, *new.rglob("*"))}
    assert {mode for path, mode in found.items() if path.is_file()} == {files}
    assert {mode for path, mode in found.items() if path.is_dir()} == {folders}
    names = {path.name for path in found}
    assert {"precision", "tokenizer.json", "merge_manifest.json", "SHA256SUMS"} <= names


def texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.name, path.read_bytes()


def test_no_file_of_the_output_tells_the_home_directory_or_a_token(home: Path) -> None:
    for name, content in texts(output(home, 0o022)):
        assert b"home-of-alice" not in content, name
        assert SECRET.encode() not in content, name
        assert b".cache" not in content, name


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("home-of-alice/out", ".."),
        ("home-of-alice/new/deep/out", "../../.."),
        # Through the folder of all homes, or through the root, the way would name whose home it is.
        ("out", None),
        ("home-of-bob/out", None),
    ],
)
def test_where_the_recipe_lay_is_told_as_seen_from_the_output_and_names_no_home(
    home: Path, out: str, told: str | None
) -> None:
    (home / "r.yml").write_text("merge_method: passthrough\nmodels: [{model: ~/base}]\n")
    merge(build_plan(load_recipe(home / "r.yml")), home.parent / out, sync=False)
    text = (home.parent / out / "merge_manifest.json").read_text()
    assert json.loads(text)["recipe_folder"] == told
    assert "home-of-alice" not in text


def test_inputs_are_recorded_as_the_recipe_names_them(home: Path) -> None:
    manifest = json.loads((output(home, 0o022) / "deep" / "out" / "merge_manifest.json").read_text())
    assert [each["reference"] for each in manifest["inputs"]] == ["~/base", "org/fine-tune", "~/fisher", "~/fisher"]


def test_where_a_model_was_loaded_from_is_kept_where_it_is_the_name_of_one(home: Path) -> None:
    for name in ("org/name", "gpt2"):
        (home / "base" / "config.json").write_text(json.dumps({**LLAMA, "_name_or_path": name}))
        (home / "r.yml").write_text("merge_method: passthrough\nmodels: [{model: ~/base}]\n")
        assert build_plan(load_recipe(home / "r.yml")).config["_name_or_path"] == name


@pytest.mark.parametrize("place", ["/home/alice/x", "~/x", "./x/y", "../x", "C:\\Users\\alice\\x", "a/b/c", 3, None])
def test_where_a_model_was_loaded_from_is_left_out_where_it_is_a_place(place: object, home: Path) -> None:
    (home / "base" / "config.json").write_text(json.dumps({**LLAMA, "_name_or_path": place}))
    (home / "r.yml").write_text("merge_method: passthrough\nmodels: [{model: ~/base}]\n")
    assert "_name_or_path" not in build_plan(load_recipe(home / "r.yml")).config
