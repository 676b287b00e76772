"""Bytes, durations and rates, read from and written for people."""

import re
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
