"""The manifest of a merged checkpoint: what it was made from and how, so that it can be checked and made again.

One model writes and reads it. By the time it is read anyone may have changed it; damage is a failed verification, as
damage of any other file of the output is.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    SerializerFunctionWrapHandler,
    StrictInt,
    ValidationError,
    model_serializer,
)

from merge_cli.checkpoint import Files
from merge_cli.checkpoint.bounded_json import read_json
from merge_cli.checkpoint.digest_file import DIGEST_FILE, is_below
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.errors import CheckpointError, VerificationError
from merge_cli.text import count_of

MANIFEST_FILE = "merge_manifest.json"
# From 2 on the manifest lists every file but itself and the digests file, 1 lists weights.
FORMAT = 2
# More than any merge writes; what is wrong with each of millions would take gigabytes to say.
_MOST_KEYS = 100_000
# Longest text that a message may quote.
_MOST_CHARACTERS = 1000
_MOST_SHOWN = 100
# What pydantic says in the terms of Python, in those of JSON.
_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "string_too_long": f"{_MOST_CHARACTERS} characters at most",
    "string_pattern_mismatch": "a SHA-256 in hexadecimal",
}


def _below(name: str) -> str:
    if not is_below(name):
        raise ValueError("expected the name of a file below the folder")
    return name


def _relative(folder: str) -> str:
    if Path(folder).is_absolute() or "\0" in folder:
        raise ValueError("expected a folder as seen from the output")
    return folder


def _few(raw: Any) -> Any:
    if isinstance(raw, dict) and len(raw) > _MOST_KEYS:
        raise ValueError(f"expected {_MOST_KEYS} entries at most")
    return raw


def _text_or_object(raw: Any) -> Any:
    if not isinstance(raw, (str, dict)):
        raise ValueError("expected text or an object")
    return raw


Text = Annotated[str, Field(max_length=_MOST_CHARACTERS)]
FileName = Annotated[str, AfterValidator(_below)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    # Later versions may write more.
    model_config = ConfigDict(frozen=True, extra="ignore")


class InputFile(_Part):
    """A weight file of an input, as it was when the merge read it."""

    name: FileName
    size: StrictInt
    mtime_ns: StrictInt
    header_sha256: Text
    sample: Text | None = None
    sha256: Digest | None = None

    @model_serializer(mode="wrap")
    def _without_unknown_digest(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the digest of a file that was not hashed."""
        content: dict[str, Any] = dump(self)
        return {key: value for key, value in content.items() if key != "sha256" or value is not None}


class InputRecord(_Part):
    """A checkpoint that was merged."""

    role: Text
    reference: Text = ""
    files: Annotated[tuple[InputFile, ...], FailFast()]


class MethodRecord(_Part):
    """The method that was used; name and source are written for people and not read."""

    name: Any = None
    version: StrictInt
    source: Any = None


class VariantRecord(_Part):
    """One of several merged models: what it was given in place of the recipe's parameters, and what came of it."""

    given: Annotated[dict[str, Any], BeforeValidator(_few)]
    parameters: Any = None
    counts: Any = None


class Manifest(_Part):
    """The manifest; fields of type Any are written for people and not read.

    Attributes:
        format: Of the manifest itself; from 2 on ``files`` are all but itself and the digests file.
        tool: Name and version of the program that wrote it.
        plan_sha256: The plan's digest.
        method: The method.
        seed: The recipe's seed.
        recipe: The recipe's text, or its data where it was made in Python.
        recipe_folder: Where its file lay, from the output.
        overrides: What ``--set`` changed in it.
        inputs: What was merged.
        steps: The preparing steps, with their parameters.
        parameters: Each set of resolved parameters, with its tensors; of variants, each has its own.
        tensors: How many are merged, and which are copied.
        counts: What the method counted.
        diagnostics: What the method diagnosed.
        warnings: Warnings of the plan and of the method.
        notes: Notes of the plan.
        files: File -> SHA-256.
        variants: Merged model, which is also its folder -> what is its own; empty where the only one is in no folder.
    """

    format: StrictInt = 1
    tool: Text
    plan_sha256: Any = None
    method: MethodRecord
    seed: Any = None
    recipe: Annotated[str | dict[str, Any], BeforeValidator(_text_or_object)]
    recipe_folder: Annotated[Text, AfterValidator(_relative)] | None = None
    overrides: Annotated[tuple[str, ...], FailFast()]
    inputs: Annotated[tuple[InputRecord, ...], FailFast()]
    steps: Any = None
    parameters: Any = None
    tensors: Any = None
    counts: Annotated[Mapping[str, StrictInt], BeforeValidator(_few)]
    diagnostics: Any = None
    warnings: Any = None
    notes: Any = None
    files: Annotated[Mapping[FileName, Digest], BeforeValidator(_few)]
    variants: Annotated[Mapping[FileName, VariantRecord], BeforeValidator(_few)] = Field(default_factory=dict)

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of the merged models, as seen from the output."""
        return tuple(self.variants) or ("",)

    @model_serializer(mode="wrap")
    def _without_no_variants(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the variants where there are none."""
        content: dict[str, Any] = dump(self)
        return {key: value for key, value in content.items() if key != "variants" or value}

    @property
    def allows_nonfinite(self) -> bool:
        """Tell whether the merge has met NaN or infinity, which it was then allowed to."""
        return bool(self.counts.get("nonfinite"))


def read_manifest(out: Path, files: Files) -> Manifest:
    """Return the manifest of a merged checkpoint.

    Raises:
        CheckpointError: If there is none, or the system does not let it be read.
        VerificationError: If it is damaged.
    """
    path = out / MANIFEST_FILE
    with read_errors(path):
        there = path.is_file()
        if not there and not out.exists():
            raise CheckpointError(f"{out} does not exist")
    if not there:
        raise CheckpointError(
            f"{out} has no {MANIFEST_FILE}, so there is nothing to check it against",
            hint="only what `merge-cli merge` has made can be verified; `merge-cli inspect` shows any checkpoint",
        )
    hint = f"merge again, or put back the manifest from a copy; `sha256sum -c {DIGEST_FILE}` in {out} checks the others"
    try:
        return Manifest.model_validate(read_json(path, files))
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise VerificationError(error.message, hint=hint) from error
    except ValidationError as error:
        raise VerificationError(f"{path} is damaged: {first_finding(error)}", hint=hint) from error


def first_finding(error: ValidationError) -> str:
    """Say where the first thing is wrong, what was expected and what arrived, and how much more is."""
    findings = error.errors(include_url=False, include_context=False)
    first = findings[0]
    parts = [str(part)[:_MOST_SHOWN] for part in first["loc"]]
    # Some say how pydantic came there, and are no keys of the file.
    place = ".".join(part for part in parts if part != "[key]" and not part.startswith("function-"))
    if first["type"] == "missing":
        said = "is missing"
    else:
        expected = _EXPECTED.get(first["type"])
        what = f"expected {expected}" if expected else first["msg"].removeprefix("Value error, ")
        said = f"{what}, got {reprlib.repr(first['input'])[:_MOST_SHOWN]}"
    more = f", and {count_of(len(findings) - 1, 'finding')} more" if len(findings) > 1 else ""
    return f"{place}: {said}{more}" if place else f"{said}{more}"
