"""Chat templates: found beside each model, and chosen for the output."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merge_cli.checkpoint import Checkpoint, Files
from merge_cli.checkpoint.bounded_json import read_json
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.checkpoint.resolve import check_link_stays_inside
from merge_cli.errors import CheckpointError
from merge_cli.plan.side_file_set import SideFiles
from merge_cli.text import listed

_MAIN, _FOLDER = "chat_template.jinja", "additional_chat_templates"
_DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9_][\w-]{0,99}")
_MOST_BYTES = 10_000_000

# Name -> template; the one that is used where none is asked for is called default.
Templates = Mapping[str, str]


def chat_templates(models: Sequence[Checkpoint], donor: Checkpoint) -> SideFiles:
    """Decide whose chat templates the output gets: the donor's, else those that the models have in common.

    Raises:
        CheckpointError: If a file is a link out of its checkpoint, or cannot be read.
    """
    own = templates_of(donor.root)
    others = {each.label: found for each in models if each.root != donor.root and (found := templates_of(each.root))}
    if own:
        differing = [label for label, found in others.items() if found != own]
        verb = "has" if len(differing) == 1 else "have"
        said = f"{listed(differing, most=3)} {verb} another chat template than {donor.label}, whose the output gets"
        return SideFiles(files=_further(donor.root), warnings=(said,) if differing else ())
    if not others:
        return SideFiles()
    label, first = next(iter(others.items()))
    differing = [other for other, found in others.items() if found != first]
    if differing:
        said = f"{donor.label} has no chat template, and {label} another one than {listed(differing, most=3)}"
        return SideFiles(warnings=(f"{said}: the output gets none, copy the one that fits",))
    texts = {_MAIN if name == _DEFAULT else f"{_FOLDER}/{name}.jinja": text for name, text in first.items()}
    note = f"the chat template is that of {listed(others, most=3)}: {donor.label} has none"
    return SideFiles(texts=texts, notes=(note,))


def templates_of(root: Path) -> Templates:
    """Return the chat templates of a checkpoint, from the first place where each stands, as transformers looks."""
    with read_errors(root):
        if not root.is_dir():
            return {}
    found: dict[str, str] = {}
    places = {_DEFAULT: root / _MAIN} | {Path(name).stem: path for name, path in _further(root).items()}
    for name, path in places.items():
        with read_errors(path):
            there = path.is_file()
        if there:
            check_link_stays_inside(path, root)
            found[name] = Files().read_whole(path, most=_MOST_BYTES).decode("utf-8", errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        for key, text in _named(_settings(root / name, root).get("chat_template")).items():
            found.setdefault(key, text)
    return {name: text for name, text in found.items() if text.strip()}


def _further(root: Path) -> dict[str, Path]:
    """Return name in the output -> path of the templates beside the main one."""
    folder = root / _FOLDER
    with read_errors(folder):
        paths = sorted(folder.glob("*.jinja")) if folder.is_dir() else []
    for path in (folder, *paths):
        check_link_stays_inside(path, root)
    return {f"{_FOLDER}/{path.name}": path for path in paths if _NAME.fullmatch(path.stem) and path.is_file()}


def _named(given: Any) -> dict[str, str]:
    if isinstance(given, str):
        return {_DEFAULT: given}
    pairs: list[tuple[Any, Any]] = []
    if isinstance(given, dict):
        pairs = list(given.items())
    elif isinstance(given, list):
        pairs = [(each.get("name"), each.get("template")) for each in given if isinstance(each, dict)]
    return {
        name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str) and _NAME.fullmatch(name)
    }


def _settings(path: Path, root: Path) -> Mapping[str, Any]:
    """Return what stands in a JSON file; nothing where it is not understood, as whoever loads it will say."""
    with read_errors(path):
        if not path.is_file():
            return {}
    check_link_stays_inside(path, root)
    try:
        return read_json(path, Files())
    except CheckpointError:
        return {}
