"""Resolution of a recipe's checkpoint reference to a path on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.errors import CheckpointError, RecipeError

# What stands beside the weights and belongs to the model: configuration, tokenizer, templates, remote code, licences.
SIDE_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken", "*.spm", "*.bpe", "LICENSE*", "NOTICE*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate(reference: str, folders: tuple[Path, ...]) -> Path:
    """Find a checkpoint: an existing path, else a hub id with an optional ``@revision``.

    In a path ``~`` and ``$NAME`` mean what they mean to a shell.

    A hub id is looked up through huggingface_hub, which honours its cache, ``HF_HOME`` and ``HF_HUB_OFFLINE``.

    Args:
        reference: A path or hub id as the recipe has it.
        folders: Where a relative path may start, in order.

    Raises:
        RecipeError: If it is in a form that is not supported.
        CheckpointError: If nothing is there.
    """
    try:
        path = Path(os.path.expandvars(reference)).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"'{reference}' does not exist: there is no such user's home folder") from error
    places = [path] if path.is_absolute() else [folder / path for folder in folders]
    # A dollar sign in a name need not be a variable.
    for candidate in dict.fromkeys([*(folder / reference for folder in folders), *places]):
        with read_errors(candidate):
            if candidate.exists():
                return candidate
    if "+" in reference:
        raise RecipeError(
            f"'{reference}': a model with a LoRA adapter (model+lora) is not supported yet",
            hint="merge the adapter into its base first: peft's merge_and_unload, then save_pretrained",
        )
    repository, _, revision = reference.partition("@")
    # What a variable holds goes to no other machine: the text of the recipe decides whether it is a hub id.
    if path.is_absolute() or reference.startswith((".", "~")) or not _HUB_ID.fullmatch(repository):
        tried = path if path.is_absolute() else " and ".join(dict.fromkeys(str(folder / path) for folder in folders))
        unset = "; a variable in it is not set" if "$" in str(path) else ""
        raise CheckpointError(f"'{reference}' does not exist", hint=f"looked for {tried}{unset}")
    return _snapshot(repository, revision or None, reference)


def check_link_stays_inside(path: Path, root: Path) -> None:
    """Refuse a link by which a file of the checkpoint folder ``root`` is one that lies elsewhere.

    Whoever made a folder could otherwise have private files of this machine copied into an output. The links that
    huggingface_hub makes in its cache, from ``snapshots/REVISION`` into ``blobs`` beside it, are as good as files.

    Raises:
        CheckpointError: If it is such a link, or one that leads nowhere.
    """
    if not path.is_symlink():
        return
    try:
        target, home = path.resolve(strict=True), root.resolve()
    # Links that lead to themselves are a RuntimeError before Python 3.13.
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is a link that leads nowhere", hint="fetch the file again") from error
    caches = [each.parent.parent / "blobs" for each in (home, *home.parents) if each.parent.name == "snapshots"]
    if not any(target.is_relative_to(folder) for folder in (home, *caches)):
        raise CheckpointError(
            f"{path} is a link to {target}, outside of the checkpoint",
            hint="put the file itself there; a link to a whole checkpoint folder is fine",
        )


def _snapshot(repository: str, revision: str | None, reference: str) -> Path:
    """Return the folder of a hub repository's files, fetched where the cache lacks them."""
    from huggingface_hub import snapshot_download

    def fetch(weights: str) -> Path:
        patterns = [*SIDE_PATTERNS, weights]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))

    try:
        folder = fetch("*.safetensors")
        return folder if any(folder.glob("*.safetensors")) else fetch("*.bin")
    # What a failed look-up raises depends on the HTTP library that this huggingface_hub uses; there is no common base.
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"'{reference}' is not a local path, and the hub did not give it: {first_line[:300]}",
            hint="check the spelling, the network, and for private models that you are logged in (hf auth login)",
        ) from error
