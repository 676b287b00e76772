"""Whatever stands in a manifest, checking it ends in findings or in one error, never in a stack trace."""

import hashlib
import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from merge_cli import Recipe, Replay, build_plan, load_recipe, merge, verify
from merge_cli.errors import RecipeError, VerificationError
from tests.cli.conftest import Run

Place = tuple[str | int, ...]

_NOTHING = object()
_DEEP: Any = json.loads("[" * 50 + "]" * 50)
_WRONG = [
    _NOTHING, 10**4000, None, True, float("nan"), "../x", "\x00\x1b[2J" * 1000, [None], {"../x": "0" * 64}, _DEEP
]  # fmt: skip
# What is read of a manifest; the rest of it is for people.
_READ = {"tool", "method", "recipe", "recipe_folder", "overrides", "inputs", "counts", "files"}


@pytest.fixture(autouse=True)
def out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a merged checkpoint; what a recipe names and is not there is not looked for in the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    merge(build_plan(load_recipe("r.yml")), "out", sync=False)
    return folder / "out"


def manifest(out: Path) -> Any:
    return json.loads((out / "merge_manifest.json").read_text())


def made_in_python() -> None:
    """Merge a recipe that has no text, so that the manifest records its data."""
    content = {
        "merge_method": "ties", "base_model": "base", "parameters": {"density": 0.5}, "exclude": ["ids"], "seed": 3,
        "models": [{"model": "one", "parameters": {"weight": 1}}, {"model": "two", "parameters": {"weight": 0.5}}],
        "prepare": {"dare": {"drop_rate": 0.5}}, "dtype": "float32",
    }  # fmt: skip
    merge(build_plan(Recipe.model_validate(content)), "out", force=True, sync=False)


def write(out: Path, made: object, *, sign: bool = False) -> None:
    """Write a manifest, or the text of one; signing it is what someone does who wants the change not to be noticed."""
    path, digests = out / "merge_manifest.json", out / "SHA256SUMS"
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(made if isinstance(made, str) else json.dumps(made))
    if sign:
        assert old in digests.read_text()
        digests.write_text(digests.read_text().replace(old, hashlib.sha256(path.read_bytes()).hexdigest()))


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Yield the place of everything in some JSON, of lists that of the first item."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*at, key)
        yield from places(item, (*at, key))


def changed(made: Any, place: Place, value: object) -> Any:
    """Return a copy of JSON in which something else stands at a place, or nothing."""
    copy = deepcopy(made)
    at = copy
    for key in place[:-1]:
        at = at[key]
    if value is _NOTHING:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return copy


@pytest.mark.parametrize("sign", [False, True])
@pytest.mark.parametrize("read", [_READ, {"recipe"}], ids=["manifest", "recipe"])
def test_whatever_stands_at_any_place_checking_ends_with_an_answer(
    run: Run, out: Path, read: set[str], sign: bool
) -> None:
    if read == {"recipe"}:
        made_in_python()
    sound = manifest(out)
    assert run("verify", "out", "--replay", "all").code == 0
    tried = 0
    for place in (place for place in places(sound) if place[0] in read):
        # A manifest that is not the one in the digests never passes; one that is may be harmless.
        for value in _WRONG if sign else _WRONG[:2]:
            write(out, changed(sound, place, value), sign=sign)
            done = run("verify", "out", "--replay", "1", "--seed", "0")
            assert done.code in ((0, 2, 3, 5) if sign else (5,)), (place, value, done)
            assert all(line.startswith(("error: ", "warning: ", "  ")) for line in done.err.splitlines()), done.err
            assert all(line.isprintable() for line in done.err.splitlines()), (place, value)
            assert len(done.err) < 5000, (place, value)
            tried += 1
    assert tried > 30


DAMAGED = "out/merge_manifest.json is damaged: "
FILE: Place = ("inputs", 0, "files", 0)
SHARD: Place = ("files", "model.safetensors")


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("tool",), _NOTHING, f"{DAMAGED}tool: is missing"),
        (("tool",), 3, f"{DAMAGED}tool: expected text, got 3"),
        (("tool",), "x" * 1001, f"{DAMAGED}tool: expected 1000 characters at most, got 'xxx"),
        (("method",), "ties", f"{DAMAGED}method: expected an object, got 'ties'"),
        (("method", "version"), "1", f"{DAMAGED}method.version: expected a whole number, got '1'"),
        (("recipe",), 3, f"{DAMAGED}recipe: expected text or an object, got 3"),
        (("overrides",), {}, f"{DAMAGED}overrides: expected a list, got {{}}"),
        (("overrides",), [3, 4], f"{DAMAGED}overrides.0: expected text, got 3"),
        (("recipe_folder",), "/etc", f"{DAMAGED}recipe_folder: expected a folder as seen from the output, got '/etc'"),
        ((*FILE, "sha256"), "0" * 65, f"{DAMAGED}inputs.0.files.0.sha256: expected a SHA-256 in hexadecimal, got '000"),
        (("inputs",), [3] * 9, f"{DAMAGED}inputs.0: expected an object, got 3\n  hint"),
        (("inputs", 0, "role"), None, f"{DAMAGED}inputs.0.role: expected text, got None"),
        (FILE, {}, f"{DAMAGED}inputs.0.files.0.name: is missing, and 3 findings more"),
        ((*FILE, "size"), True, f"{DAMAGED}inputs.0.files.0.size: expected a whole number, got True"),
        ((*FILE, "mtime_ns"), 1.5, f"{DAMAGED}inputs.0.files.0.mtime_ns: expected a whole number, got 1.5"),
        ((*FILE, "mtime_ns"), float("nan"), f"{DAMAGED}inputs.0.files.0.mtime_ns: expected a whole number, got nan"),
        ((*FILE, "name"), "../x", "name: expected the name of a file below the folder, got '../x'"),
        (("files",), {"/etc/passwd": "0" * 64}, "expected the name of a file below the folder, got '/etc/passwd'"),
        (("files",), {"a/../../x": "0" * 64}, "expected the name of a file below the folder, got 'a/../../x'"),
        (("files",), {"": "0" * 64}, "expected the name of a file below the folder, got ''"),
        (SHARD, "0" * 63, f"{DAMAGED}files.model.safetensors: expected a SHA-256 in hexadecimal, got '000"),
        (("files",), dict.fromkeys(map(str, range(100_001)), 0), f"{DAMAGED}files: expected 100000 entries at most"),
        (("counts",), {"nonfinite": "no"}, f"{DAMAGED}counts.nonfinite: expected a whole number, got 'no'"),
    ],
)
def test_what_is_no_manifest_is_an_error_that_names_the_place(
    out: Path, place: Place, value: object, says: str
) -> None:
    write(out, changed(manifest(out), place, value), sign=True)
    for replay in (None, Replay(1)):
        with pytest.raises(VerificationError) as caught:
            verify("out", replay=replay)
        assert says in f"{caught.value}"
        assert "hint: merge again, or put back the manifest from a copy; `sha256sum -c" in f"{caught.value}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "is not a JSON object"),
        ("3", "is not a JSON object"),
        ("", "is not valid JSON"),
        ('{"tool": ' + "9" * 5000 + "}", "is not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"tool": ' + "[" * 500 + "]" * 500 + "}", "nested too deeply"),
        ('{"tool": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_what_is_no_object_of_json_is_an_error_that_says_so(out: Path, text: str, says: str) -> None:
    write(out, text)
    with pytest.raises(VerificationError, match=r"^out/merge_manifest\.json ") as caught:
        verify("out", replay=Replay(1))
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("", "the recipe in out/merge_manifest.json is not a recipe"),
        ("a: [", "the recipe in out/merge_manifest.json:1: not valid YAML"),
        ("a: " + "[" * 5000, "the recipe in out/merge_manifest.json is nested too deeply"),
        ("merge_method: ties\nmodels: 3", "the recipe in out/merge_manifest.json:2: models: expected a list, got 3"),
        ("# " + "x" * 2_000_000, "has 2000002 characters, expected 2000000 at most"),
        ({"models": [0] * 700_000}, "has 2100012 characters, expected 2000000 at most"),
        ({}, "the recipe in out/merge_manifest.json: merge_method: is missing, and 1 finding more"),
        (
            {"merge_method": "ties", "models": [{"model": "one"}], "exclude": [3]},
            "exclude.0: expected an object, got 3",
        ),
        ({"merge_method": "tie", "models": [{"model": "one"}]}, "did you mean 'ties'?"),
        ({"merge_method": "ties", "models": "one"}, "models: expected a list, got 'one'"),
    ],
)
def test_a_recorded_recipe_that_is_none_is_an_error_of_the_recipe(out: Path, recipe: object, says: str) -> None:
    write(out, {**manifest(out), "recipe": recipe}, sign=True)
    assert verify("out").sound
    with pytest.raises(RecipeError) as caught:
        verify("out", replay=Replay(1))
    assert says in f"{caught.value}"
    assert "the manifest is damaged, or what merge-cli" in f"{caught.value}"


def test_what_else_is_wrong_is_said_where_the_replay_is_impossible(run: Run, out: Path) -> None:
    write(out, {**manifest(out), "recipe": "a: ["})
    done = run("verify", "out", "--replay", "1")
    assert done.code == 5
    assert done.err.splitlines()[0] == "error: merge_manifest.json has changed: its SHA-256 is not the recorded one"
    assert done.err.splitlines()[1].startswith("error: it cannot be computed again: the recipe in out/merge_manifest")
    assert done.out == "out: NOT what the merge has made; 4 files as recorded, 2 tensors looked through\n"


def test_what_later_versions_may_add_is_no_damage(run: Run, out: Path) -> None:
    made = manifest(out)
    for place in ((), ("method",), ("inputs", 0), FILE):
        made = changed(made, (*place, "more"), ["of", {"it": None}])
    write(out, made, sign=True)
    assert run("verify", "out", "--replay", "all").code == 0


def test_a_folder_without_a_manifest_is_three_and_a_damaged_manifest_five(run: Run, out: Path) -> None:
    assert run("verify", "base").code == 3
    assert run("verify", "x" * 500).code == 3
    write(out, "{}")
    for more in ([], ["--replay", "1"]):
        done = run("verify", "out", *more)
        assert (done.code, done.out) == (5, "")
        assert done.err.startswith("error: out/merge_manifest.json is damaged: tool: is missing, and 6 findings more\n")
