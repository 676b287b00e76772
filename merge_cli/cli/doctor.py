"""The command ``doctor``."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merge_cli.cli.options import AsJson
from merge_cli.cli.results import print_json
from merge_cli.optional import is_installed

if TYPE_CHECKING:
    from merge_cli.checkpoint.leftovers import Leftover

_PACKAGES = ("merge-cli-nn", "torch", "numpy", "transformers", "datasets", "safetensors", "huggingface_hub")


def doctor(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look for what runs left.")] = Path(),
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove what stopped runs left in FOLDER; they cannot be continued then.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what merge-cli runs with: versions, compiled kernels, GPU, caches, and what stopped runs left in FOLDER."""
    from merge_cli.checkpoint.leftovers import find_leftovers, remove_leftover
    from merge_cli.errors import RecipeError

    if not folder.is_dir():
        raise RecipeError(f"{folder} is not a folder")
    left = find_leftovers(folder)
    found: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "compiled_kernels": _kernels(),
        "gpu": _gpu(),
        "processors": len(os.sched_getaffinity(0)),
        "caches": [_cache(name, path) for name, path in _caches()],
        "leftovers": [_described(each) for each in left],
    }
    if not as_json:
        _print(found)
    removed = [each.folder for each in left if clean and remove_leftover(each)]
    if as_json:
        print_json(found | {"removed": [str(path) for path in removed]})
        return
    for path in removed:
        typer.echo(f"removed {_shown(path)}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def environment_lines() -> Iterator[str]:
    """Yield what computes, and the versions of what it depends on, a line each."""
    yield f"python {platform.python_version()}"
    yield f"compiled kernels {_kernels()}"
    for name in ("numpy", "torch"):
        yield f"{name} {_version(name) or 'not installed'}"


def _kernels() -> str:
    """Say whether the compiled kernels are in use, and if not, why and what that costs."""
    from merge_cli.kernels.compiled import MISSING

    return f"{MISSING}: the output is the same, and merging takes two to three times as long" if MISSING else "in use"


def _gpu() -> str | None:
    if not is_installed("torch"):
        return None
    try:
        import torch
    # A broken installation of torch raises whatever its libraries stumble over.
    except Exception as error:
        return f"torch cannot be imported: {(str(error) or type(error).__name__).splitlines()[0]}"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _caches() -> list[tuple[str, Path]]:
    from huggingface_hub import constants

    from merge_cli.checkpoint.digest_cache import cache_file

    home = Path(constants.HF_HOME)
    own = cache_file()
    return [
        ("models from the hub", Path(constants.HF_HUB_CACHE)),
        ("data sets", Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")),
        *([("digests of inputs", own.parent)] if own is not None else []),
    ]


def _cache(name: str, folder: Path) -> dict[str, Any]:
    from merge_cli.checkpoint.leftovers import files_in

    return {"name": name, "folder": str(folder), "nbytes": sum(stat.st_size for stat in files_in(folder))}


def _described(left: Leftover) -> dict[str, Any]:
    age = max(time.time() - left.changed, 0.0)
    return {"folder": str(left.folder), "nbytes": left.nbytes, "age_seconds": round(age), "keep": left.keep or None}


def _print(found: dict[str, Any]) -> None:
    from merge_cli.cli.render.console import new_console, new_table
    from merge_cli.text import format_bytes

    console, table = new_console(), new_table("", "")
    for name, version in found["versions"].items():
        table.add_row(name, version or "not installed")
    table.add_row("compiled kernels", found["compiled_kernels"])
    table.add_row("GPU", found["gpu"] or "none that torch can use")
    table.add_row("processors", str(found["processors"]))
    for each in found["caches"]:
        table.add_row(each["name"], f"{format_bytes(each['nbytes'])} in {_shown(each['folder'])}")
    for each in found["leftovers"]:
        fate = f"kept: {each['keep']}" if each["keep"] else "--clean removes it"
        size, age = format_bytes(each["nbytes"]), _age(each["age_seconds"])
        table.add_row("left by a run", f"{_shown(each['folder'])}, {size}, {age} old; {fate}")
    console.print(table)


def _age(seconds: float) -> str:
    from merge_cli.text import format_seconds

    days = int(seconds // 86_400)
    return f"{days} days" if days > 1 else format_seconds(seconds)


def _shown(path: Path | str) -> str:
    from merge_cli.text import printable

    return printable(str(path))
