"""Four kinds of text that come with every Python, so that nothing has to be downloaded."""

from __future__ import annotations

import dis
import io
import json
import random
import re
import sysconfig
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from merge_cli.errors import CheckpointError

# Characters per example; each is a token.
PIECE = 64
# The modules that the code is taken from, in alphabetical order, and those that are disassembled.
_CODE_MODULES = slice(0, 60)
_DISASSEMBLED = slice(60, 90)
_ENOUGH = 600_000


@dataclass(frozen=True)
class Sizes:
    """Numbers of examples of each kind of text.

    Attributes:
        own: To train the base on, of its own domain.
        train: To train an expert on.
        validation: To choose hyper-parameters by.
        test: To report on.
    """

    own: int
    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Domain:
    """One kind of text, in pieces of equal length, in random order; no piece is in two parts.

    Attributes:
        name: One word.
        what: For the reader.
        train: To train on.
        validation: To choose hyper-parameters by.
        test: To report on.
    """

    name: str
    what: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def load_domains(sizes: Sizes, *, seed: int) -> tuple[Domain, ...]:
    """Return the base's domain, code, and the three of the experts.

    Args:
        sizes: How many pieces of each.
        seed: Of the choice and order of the pieces.

    Raises:
        CheckpointError: If this Python lacks one of the texts.
    """
    return tuple(
        _cut(name, what, text(), sizes.train if number else sizes.own, sizes, seed)
        for number, (name, what, text) in enumerate(_TEXTS)
    )


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    """Write one row per text, ``{"text": ...}``, as ``merge-cli fisher --data`` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def _cut(name: str, what: str, text: str, train: int, sizes: Sizes, seed: int) -> Domain:
    pieces = [text[start : start + PIECE] for start in range(0, len(text) - PIECE, PIECE)]
    # Blank pieces teach nothing, and are no examples for a Fisher.
    pieces = [piece for piece in pieces if piece.strip()]
    wanted = train + sizes.validation + sizes.test
    if len(pieces) < wanted:
        raise CheckpointError(
            f"this Python comes with {len(pieces)} pieces of {what}, the demonstration takes {wanted}",
            hint="use a Python that was installed with the sources of its standard library",
        )
    random.Random(seed).shuffle(pieces)
    held_out = sizes.validation + sizes.test
    parts = pieces[held_out:wanted], pieces[sizes.test : held_out], pieces[: sizes.test]
    return Domain(name, what, *map(tuple, parts))


def _plain(text: str) -> str:
    """Keep printable ASCII and line ends: one byte, one character, one token."""
    return re.sub(r"[^\x20-\x7e\n]", "", text)


def _modules(which: slice) -> list[Path]:
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[which]


def _code() -> str:
    sources = (path.read_text(encoding="utf-8", errors="ignore") for path in _modules(_CODE_MODULES))
    return _plain("\n".join(sources))


def _prose() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return ""
    return _plain("\n".join(topics[key] for key in sorted(topics)))


def _names() -> str:
    every = (unicodedata.name(chr(code), "") for code in range(0x20000))
    # Those of ideographs and syllables are numbers and spellings made by a rule.
    return "\n".join(name for name in every if name and not name.startswith(("CJK", "HANGUL")))


def _bytecode() -> str:
    listing = io.StringIO()
    for path in _modules(_DISASSEMBLED):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dis.dis(compile(path.read_bytes(), path.name, "exec"), file=listing)
        if listing.tell() > _ENOUGH:
            break
    # Where objects lie in memory differs from run to run.
    return _plain(re.sub(r' at 0x[0-9a-f]+, file "[^"]*"', "", listing.getvalue()))


_TEXTS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("code", "Python code (the standard library)", _code),
    ("prose", "English prose (the Python reference)", _prose),
    ("names", "names of Unicode characters", _names),
    ("bytecode", "disassembled bytecode", _bytecode),
)
