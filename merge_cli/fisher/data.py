"""Rows of data, from a file, a folder or the hub, in a fixed order."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from merge_cli.errors import CheckpointError, RecipeError, ResourceError
from merge_cli.fisher.optional_imports import libraries_silenced
from merge_cli.optional import import_optional
from merge_cli.text import did_you_mean, listed

_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}
_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
# A stream is shuffled through a buffer of this many rows.
_SHUFFLE_BUFFER = 10_000


@dataclass(frozen=True)
class Source:
    """Source of rows.

    Attributes:
        name: A file (json, jsonl, csv, tsv, parquet, txt), a folder of such files or of images, a folder written by
            ``save_to_disk``, or a hub id.
        subset: Configuration of a hub data set, or None.
        split: Which part; None for ``train``, or the only one.
        shuffle: Whether to shuffle by ``seed``; data that is sorted by class gives a biased estimate.
        seed: Of the shuffle.
    """

    name: str
    subset: str | None = None
    split: str | None = None
    shuffle: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Rows:
    """Opened data.

    Attributes:
        columns: Their names.
        count: How many rows there are; None where a stream does not say.
        data: The data set; iterating gives dictionaries, each time the same ones in the same order. Images are not
            decoded.
        classes: Column of labels -> the names that its numbers stand for, where the data says so.
        scratch: Holds the files behind the data as long as it is held itself.
    """

    columns: tuple[str, ...]
    count: int | None
    data: Any
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    scratch: object = None

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.data)


def open_rows(source: Source) -> Rows:
    """Open the data and shuffle it.

    Raises:
        RecipeError: If the ``datasets`` library is missing or the source is of no known kind.
        CheckpointError: If the data cannot be read or is empty.
    """
    datasets = import_optional("datasets", "reading data")
    path = Path(source.name).expanduser()
    # The library keeps its own form of what it reads, in a cache. Copies of somebody's files are not left there.
    scratch = _Scratch() if path.exists() else None
    try:
        with libraries_silenced():
            data = _open_local(datasets, path, source, scratch.path) if scratch else _open_hub(datasets, source)
    except StopIteration:
        # What the library raises for an empty file.
        data = []
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        where = "set HF_HOME to a folder that can be written: what is fetched is kept there"
        raise CheckpointError(
            f"{source.name}: the data cannot be read: {_reason(error)}",
            hint=where if isinstance(error, PermissionError) and scratch is None else None,
        ) from error
    data, classes = _with_raw_images(datasets, data), _class_names(datasets, data)
    if next(iter(data), None) is None:
        raise CheckpointError(f"{source.name} has no rows", hint="give a file with data, or another split")
    count = len(data) if isinstance(data, datasets.Dataset) else _promised_count(data)
    columns = tuple(data.column_names or next(iter(data)).keys())
    if source.shuffle:
        data = (
            data.shuffle(source.seed, indices_cache_file_name=str(scratch.path / "order.arrow"))
            if scratch is not None
            else data.shuffle(seed=source.seed, buffer_size=_SHUFFLE_BUFFER)
        )
    return Rows(columns, count, data, classes, scratch)


class _Scratch:
    """A temporary folder that goes when nobody holds this any more, or the program ends."""

    def __init__(self) -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix="merge-cli-data-"))
        except OSError as error:
            raise ResourceError(
                f"no temporary folder can be made: {_reason(error)}", hint="set TMPDIR to a folder that can be written"
            ) from error
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong; the library hides it behind errors that say nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _with_raw_images(datasets: Any, data: Any) -> Any:
    """Leave the decoding of images to whoever reads a row, so that a broken one does not end the reading."""
    for name, feature in (getattr(data, "features", None) or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return data


def _class_names(datasets: Any, data: Any) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, feature in (getattr(data, "features", None) or {}).items():
        # A label for each word is a list of labels.
        kind = getattr(feature, "feature", feature)
        if isinstance(kind, datasets.ClassLabel):
            found[name] = tuple(kind.names)
    return found


def _open_local(datasets: Any, path: Path, source: Source, scratch: Path) -> Any:
    """Open a file or folder; its rows stay on disk, memory-mapped, so that they can be counted and shuffled in full."""
    load = partial(datasets.load_dataset, cache_dir=str(scratch))
    if path.is_file():
        kind = _FORMATS.get(path.suffix.lower())
        if kind is None:
            raise RecipeError(f"{path} is of no known kind; expected one of {', '.join(_FORMATS)}")
        options = {"delimiter": "\t"} if path.suffix.lower() == ".tsv" else {}
        return load(kind, data_files=str(path), split="train", **options)
    if (path / "dataset_dict.json").is_file():
        return _choose_split(datasets.load_from_disk(str(path)), source)
    if (path / "state.json").is_file():
        return datasets.load_from_disk(str(path))
    suffixes = {file.suffix.lower() for file in path.rglob("*") if file.is_file()}
    if suffixes & _IMAGES:
        return _choose_split(load("imagefolder", data_dir=str(path)), source)
    kinds = {_FORMATS[suffix] for suffix in suffixes if suffix in _FORMATS}
    if len(kinds) != 1:
        raise RecipeError(f"{path} holds {'no data' if not kinds else 'data of several kinds'}; name one file of it")
    return _choose_split(load(kinds.pop(), data_dir=str(path)), source)


def _open_hub(datasets: Any, source: Source) -> Any:
    like_a_path = source.name.startswith((".", "/", "~")) or source.name.count("/") > 1
    if like_a_path or Path(source.name).suffix.lower() in _FORMATS:
        raise CheckpointError(f"{source.name} does not exist")
    return datasets.load_dataset(source.name, source.subset, split=source.split or "train", streaming=True)


def _choose_split(splits: Mapping[str, Any], source: Source) -> Any:
    wanted = source.split or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits)))
    if wanted not in splits:
        raise RecipeError(f"{source.name} has no split '{wanted}'; there are {listed(splits)}")
    return splits[wanted]


def _promised_count(stream: Any) -> int | None:
    splits = getattr(stream.info, "splits", None) or {}
    found = splits.get(str(stream.split)) if stream.split is not None else None
    return found.num_examples if found is not None else None


def find_column(
    columns: Sequence[str], given: str | None, usual: Sequence[str], *, what: str, required: bool
) -> str | None:
    """Choose a column: the one given, else the first of the usual names that exists.

    Raises:
        RecipeError: If the given one does not exist, or a required one is not found.
    """
    if given is not None:
        if given not in columns:
            raise RecipeError(
                f"--{what}-column: the data has no column '{given}'",
                hint=did_you_mean(given, columns) or f"there are {listed(columns)}",
            )
        return given
    found = next((name for name in usual if name in columns), None)
    if found is None and required:
        raise RecipeError(
            f"no column holds the {what}: the data has {listed(columns)}", hint=f"name it with --{what}-column"
        )
    return found
