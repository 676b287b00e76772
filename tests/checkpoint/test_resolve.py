import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from merge_cli.checkpoint import SIDE_PATTERNS, locate
from merge_cli.errors import CheckpointError, RecipeError


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up on the hub is a failure of the test that did not ask for one."""

    def reached(repository: str, **options: Any) -> str:
        pytest.fail(f"the hub was asked for {repository}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", reached)


def test_an_existing_path_is_taken_before_a_hub_id_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "gpt2").touch()
    assert locate("org/name", (tmp_path,)) == tmp_path / "org" / "name"
    assert locate("gpt2", (tmp_path,)) == tmp_path / "gpt2"


def test_a_relative_path_starts_in_the_first_folder_that_has_it(tmp_path: Path) -> None:
    for name in ("first/only-first", "first/both", "second/both", "second/only-second"):
        (tmp_path / name).mkdir(parents=True)
    folders = (tmp_path / "first", tmp_path / "second")
    assert locate("both", folders) == tmp_path / "first" / "both"
    assert locate("both", folders[::-1]) == tmp_path / "second" / "both"
    assert locate("only-first", folders) == tmp_path / "first" / "only-first"
    assert locate("./only-second", folders) == tmp_path / "second" / "only-second"
    assert locate("../second/only-second", folders) == tmp_path / "first" / "../second/only-second"


def test_an_absolute_path_starts_in_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert locate(str(tmp_path / "model"), ()) == tmp_path / "model"


def test_a_path_may_have_what_a_hub_id_means_by_other_signs(tmp_path: Path) -> None:
    for name in ("a+b", "a@main", "größe"):
        (tmp_path / name).mkdir()
        assert locate(name, (tmp_path,)) == tmp_path / name


def test_the_home_folder_is_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "x").mkdir(parents=True)
    assert locate("~/models/x", ()) == tmp_path / "models" / "x"
    with pytest.raises(CheckpointError) as caught:
        locate("~/models/y", ())
    assert caught.value.message == "'~/models/y' does not exist"
    assert caught.value.hint == f"looked for {tmp_path / 'models' / 'y'}"


def test_a_variable_in_a_path_is_what_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", str(tmp_path))
    monkeypatch.delenv("NO_SUCH", raising=False)
    (tmp_path / "x").mkdir()
    (tmp_path / "$MODELS").mkdir()
    assert locate("$MODELS/x", ()) == locate("${MODELS}/x", ()) == tmp_path / "x"
    assert locate("$MODELS", (tmp_path,)) == tmp_path / "$MODELS"
    with pytest.raises(CheckpointError, match="a variable in it is not set"):
        locate("$NO_SUCH/x", (tmp_path,))


def test_what_a_variable_holds_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "token")
    with pytest.raises(CheckpointError, match="does not exist"):
        locate("org/$SECRET", (tmp_path,))


def test_the_home_of_a_user_that_there_is_not_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"^'~no-such-user/x' does not exist: there is no such user's"):
        locate("~no-such-user/x", (Path("/"),))


@pytest.mark.parametrize("reference", ["llama+lora", "org/llama+org/lora", "./llama+./lora", "/abs/llama+/abs/lora"])
def test_a_model_with_an_adapter_is_refused_with_a_hint(reference: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"is not supported yet\n  hint: merge the adapter into its base") as caught:
        locate(reference, (tmp_path,))
    assert caught.value.message.startswith(f"'{reference}': ")


@pytest.mark.parametrize("reference", ["./no", "../no", "a/b/c", "no such", "", "/no", "a//b", "org/", ".hid", "a\0b"])
def test_what_can_be_a_path_only_does_not_exist(reference: str, tmp_path: Path) -> None:
    folders = (tmp_path / "one", tmp_path / "two")
    with pytest.raises(CheckpointError) as caught:
        locate(reference, folders)
    assert caught.value.message == f"'{reference}' does not exist"
    tried = "/no" if reference == "/no" else " and ".join(str(folder / reference) for folder in folders)
    assert caught.value.hint == f"looked for {tried}"


def test_a_place_is_named_once_however_often_it_was_looked_at(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        locate("./no", (tmp_path, tmp_path / ".", tmp_path))
    assert caught.value.hint == f"looked for {tmp_path / 'no'}"


def test_a_name_longer_than_the_system_allows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="File name too long"):
        locate("a" * 300, (tmp_path,))


class Hub:
    """Stands in for snapshot_download; a repository is a list of files."""

    def __init__(self, folder: Path, *files: str) -> None:
        self.folder, self.files = folder, files
        self.asked: list[tuple[str, str | None]] = []
        self.fetched: set[str] = set()

    def __call__(self, repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append((repository, revision))
        for file in self.files:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                self.fetched.add(file)
                (self.folder / file).touch()
        return str(self.folder)


SIDE = ["config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "modeling_x.py",
        "LICENSE", "NOTICE.txt", "qwen.tiktoken"]  # fmt: skip


def test_weights_are_fetched_as_safetensors_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path, *SIDE, "model.safetensors", "pytorch_model.bin", "model.gguf", "flax_model.msgpack", "x.h5")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert locate("org/name", (tmp_path / "no",)) == tmp_path
    assert hub.fetched == {*SIDE, "model.safetensors"}
    assert hub.asked == [("org/name", None)]


def test_weights_are_fetched_as_pickles_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path, *SIDE, "pytorch_model.bin", "model.gguf")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert locate("org/name@refs/pr/3", (tmp_path / "no",)) == tmp_path
    assert hub.fetched == {*SIDE, "pytorch_model.bin"}
    assert hub.asked == [("org/name", "refs/pr/3")] * 2


@pytest.mark.parametrize(
    ("reference", "asked"),
    [
        ("gpt2", ("gpt2", None)),
        ("org/name.v-1_0", ("org/name.v-1_0", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("org/name@", ("org/name", None)),
    ],
)
def test_a_hub_id_may_have_a_revision(
    reference: str, asked: tuple[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path, "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    locate(reference, (tmp_path / "no",))
    assert hub.asked == [asked]


class TransportError(Exception):
    """What httpx raises is neither an OSError nor anything that requests raises."""


@pytest.mark.parametrize(
    "error",
    [TransportError("proxy refused\nand more"), OSError("proxy refused"), ValueError("proxy refused"), KeyError()],
    ids=lambda error: type(error).__name__,
)
def test_whatever_the_hub_library_raises_is_an_error_in_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*positional: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    with pytest.raises(CheckpointError) as caught:
        locate("org/name", (tmp_path,))
    why = "KeyError" if isinstance(error, KeyError) else "proxy refused"
    assert caught.value.message == f"'org/name' is not a local path, and the hub did not give it: {why}"
    assert caught.value.__cause__ is error


def test_the_user_can_interrupt_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*positional: Any, **options: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "snapshot_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        locate("org/name", (tmp_path,))


def cache(folder: Path) -> dict[str, Path]:
    """A cache of the hub library: one repository of safetensors in two revisions, one of a pickle."""
    snapshots = {}
    for repository, commit, reference, file in [
        ("org--name", "a" * 40, "main", "model.safetensors"),
        ("org--name", "b" * 40, "v1.0", "model.safetensors"),
        ("org--old", "c" * 40, "main", "pytorch_model.bin"),
    ]:
        root = folder / f"models--{repository}"
        snapshot = root / "snapshots" / commit
        for path in (root / "refs", root / "blobs", snapshot):
            path.mkdir(parents=True, exist_ok=True)
        (root / "refs" / reference).write_text(commit)
        (root / "blobs" / f"{commit}-w").write_bytes(b"weights")
        (snapshot / file).symlink_to(Path("../../blobs") / f"{commit}-w")
        snapshots[commit[0]] = snapshot
    return snapshots


LOOK_UP = """
import json, sys
from pathlib import Path
from merge_cli.checkpoint import locate
from merge_cli.errors import MergeError

found = {}
for reference in sys.argv[1:]:
    try:
        found[reference] = ["path", str(locate(reference, (Path("nowhere"),)))]
    except MergeError as error:
        found[reference] = [type(error).__name__, error.message, error.hint]
print(json.dumps(found))
"""


def test_hub_ids_are_resolved_from_the_cache_without_a_network(tmp_path: Path) -> None:
    snapshots = cache(tmp_path / "hub")
    references = ["org/name", "org/name@main", "org/name@v1.0", "org/name@" + "b" * 40, "org/old"]
    missing = ["org/missing", "org/name@v9", "org/name@" + "d" * 40, "a--b/c"]
    # The library reads these when it is imported, hence a process of its own.
    environment = {
        "PATH": os.environ["PATH"],
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOOK_UP, *references, *missing],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert {reference: found[reference] for reference in references} == {
        reference: ["path", str(snapshots[commit])] for reference, commit in zip(references, "aabbc", strict=True)
    }
    for reference in missing:
        kind, message, hint = found[reference]
        assert kind == "CheckpointError"
        assert message.startswith(f"'{reference}' is not a local path, and the hub did not give it: ")
        assert "\n" not in message
        assert hint.startswith("check the spelling, the network")
    assert "HF_HUB_OFFLINE" in found["org/missing"][1]
    assert "Traceback" not in done.stderr


def test_what_stands_beside_the_weights_does_not_match_weights() -> None:
    weights = ["model.safetensors", "pytorch_model.bin", "model.gguf", "tf_model.h5", "training_args.bin", "x.pt"]
    assert [name for name in weights for pattern in SIDE_PATTERNS if fnmatch.fnmatch(name, pattern)] == []
