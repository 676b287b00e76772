"""Text for people: sizes, durations, counts, lists, spelling hints, safe printing."""

import difflib
import re
from collections.abc import Iterable
from fractions import Fraction

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str) -> int:
    """Read a size such as ``512MiB``, ``5GB``, ``5G`` or ``1000000`` in bytes.

    Decimal units are powers of 1000 and binary units powers of 1024; case does not matter.

    Raises:
        ValueError: If the text is not a number with such a unit, of at least one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower(), re.ASCII)
    size = int(Fraction(match[1]) * _FACTORS[match[2] or ""]) if match else 0
    if size < 1:
        raise ValueError(f"'{text}' is not a size; expected a number with a unit, such as 512MiB or 5GB")
    return size


def format_bytes(size: float) -> str:
    """Write a number of bytes in the decimal unit that leaves one to three digits before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        shown = f"{size:.0f}" if unit == "B" else f"{size:.1f}"
        # Rounded first: 999,960 bytes are 1.0 MB and not 1000.0 kB.
        if abs(float(shown)) < 1000:
            return f"{shown} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def format_count(count: int) -> str:
    """Write a count the way people say it: 494.0M, 7.6B."""
    if count < 1000:
        return str(count)
    for divisor, unit in ((10**3, "K"), (10**6, "M"), (10**9, "B")):
        shown = f"{count / divisor:.1f}"
        if float(shown) < 1000:
            return f"{shown}{unit}"
    return f"{count / 10**12:.1f}T"


def format_seconds(seconds: float) -> str:
    """Write a duration: 0.84 s, 12.3 s, 4 min 5 s, 2 h 3 min."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


_MOST_LINE = 2000


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return ``did you mean 'x'?`` for the closest of ``known``, or None where nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else None


def printable(text: str) -> str:
    """Write what a terminal would obey instead of showing it, and what no encoding can hold, as escapes.

    Names and paths come from whoever made a file; an escape sequence in one could rewrite what a user reads.
    """
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)


def shown(text: str) -> list[str]:
    """Return the lines of a message as a terminal may be given them: printable, and none of them without an end.

    What a hostile file calls itself may be longer than all that is said of it.
    """
    lines = printable(text).splitlines()
    return [line if len(line) <= _MOST_LINE else f"{line[:_MOST_LINE]}..." for line in lines]


def listed(names: Iterable[str], *, most: int = 8) -> str:
    """Join names for a message: all of them up to ``most``, then how many more there are."""
    everything = list(names)
    shown = ", ".join(everything[:most])
    return shown if len(everything) <= most else f"{shown} and {len(everything) - most} more"


def count_of(count: int, what: str) -> str:
    """Write a count with its noun: ``1 tensor``, ``3 tensors``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
