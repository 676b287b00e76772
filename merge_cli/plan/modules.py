"""Module folders of sentence-transformers beside a model's weights, such as 1_Pooling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from merge_cli.checkpoint import SIDE_PATTERNS, Checkpoint, Files
from merge_cli.checkpoint.bounded_json import parse_json
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.checkpoint.resolve import check_link_stays_inside
from merge_cli.errors import CheckpointError
from merge_cli.plan.side_file_set import SideFiles
from merge_cli.text import listed

MODULES_FILE = "modules.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_BESIDE = ("config_sentence_transformers.json", "sentence_bert_config.json")
_MOST_BYTES = 10_000_000
_MOST_PARTS = 3


def module_files(root: Path) -> dict[str, Path]:
    """Return name in the output -> path of each file in the folders that a ``modules.json`` names.

    The model itself is the module whose folder is the checkpoint's; a folder that is not there holds a module without
    settings, which version control does not keep.

    Raises:
        CheckpointError: If a folder is not inside the checkpoint, or a file is a link that leads out of it.
    """
    listing = root / MODULES_FILE
    with read_errors(listing):
        if not listing.is_file():
            return {}
    check_link_stays_inside(listing, root)
    found: dict[str, Path] = {}
    for name in _folders(listing):
        with read_errors(root / name):
            inside = sorted((root / name).iterdir()) if (root / name).is_dir() else []
        for way in (root / name, *inside):
            check_link_stays_inside(way, root)
        found |= {f"{name}/{path.name}": path for path in inside if path.is_file() and _comes_along(path)}
    return found


def borrowed_modules(models: Sequence[Checkpoint], donor: Checkpoint) -> SideFiles:
    """Return the models' modules where the donor, such as a model before such training, has none, and they agree."""
    if not donor.root.is_dir() or (donor.root / MODULES_FILE).is_file():
        return SideFiles()
    found = {each.label: _settings(each.root) for each in models if (each.root / MODULES_FILE).is_file()}
    if not found:
        return SideFiles()
    label, first = next(iter(found.items()))
    differing = [other for other, files in found.items() if not _agree(first, files)]
    if differing:
        said = f"{donor.label} has no {MODULES_FILE}, and {label} others than {listed(differing, most=3)}"
        return SideFiles(warnings=(f"{said}: the output gets none",))
    note = f"{MODULES_FILE} and what it names are those of {listed(found, most=3)}: {donor.label} has none"
    return SideFiles(files=first, notes=(note,))


def _settings(root: Path) -> dict[str, Path]:
    files = {name: root / name for name in (MODULES_FILE, *_BESIDE)}
    for path in files.values():
        check_link_stays_inside(path, root)
    return {name: path for name, path in files.items() if path.is_file()} | module_files(root)


def _agree(one: Mapping[str, Path], other: Mapping[str, Path]) -> bool:
    named = [name for name in one if name.endswith(".json") and name not in _BESIDE]
    return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in named)


def _folders(listing: Path) -> Iterator[str]:
    try:
        named = parse_json(Files().read_whole(listing, most=_MOST_BYTES))
        paths = [each["path"] for each in named]
    except (ValueError, TypeError, KeyError):
        return
    for path in paths:
        if path in ("", "."):
            continue
        parts = path.split("/") if isinstance(path, str) else [""]
        parts = parts[:-1] if not parts[-1] else parts
        if not parts or len(parts) > _MOST_PARTS or not all(_is_name(part) for part in parts):
            raise CheckpointError(
                f"{listing} names {repr(path)[:100]}, which is not a folder inside the checkpoint",
                hint="fix or remove it",
            )
        yield "/".join(parts)


def _is_name(part: str) -> bool:
    return bool(part) and not part.startswith(".") and part.isprintable() and "\\" not in part


def _comes_along(path: Path) -> bool:
    wanted = path.name in _WEIGHTS or any(path.match(pattern) for pattern in SIDE_PATTERNS)
    return wanted and not path.name.startswith(".")


def module_notes(models: Sequence[Checkpoint], donor: Checkpoint) -> Iterator[str]:
    """Say which of these files a model has otherwise: they are copied, and not merged."""
    own = module_files(donor.root) if donor.root.is_dir() else {}
    for model in {each.root: each for each in models if own and each.root != donor.root}.values():
        others = module_files(model.root) if model.root.is_dir() else {}
        wrong = [name for name in own if name in others and not _same(own[name], others[name])]
        if wrong:
            said = f"{listed(wrong, most=3)} of {model.label} is not that of {donor.label}"
            yield f"{said}, which the output gets unmerged"


def _same(one: Path, other: Path) -> bool:
    files = Files()
    with read_errors(one), read_errors(other):
        return one.stat().st_size == other.stat().st_size and files.sha256(one) == files.sha256(other)
