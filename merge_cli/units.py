"""Bytes, durations and rates, read from and written for people."""

import re

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str) -> int:
    """Read a size such as ``512MiB``, ``5GB``, ``5G`` or ``1000000`` in bytes.

    Decimal units are powers of 1000 and binary units powers of 1024; case does not matter.

    Raises:
        ValueError: If the text is not a positive number with such a unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"'{text}' is not a size; expected a number with a unit, such as 512MiB or 5GB")
    return int(float(match[1]) * _FACTORS[match[2] or ""])


def format_bytes(size: float) -> str:
    """Write a number of bytes in the decimal unit that leaves one to three digits before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def format_count(count: int) -> str:
    """Write a count the way people say it: 494.0M, 7.6B."""
    for limit, divisor, unit in ((10**3, 1, ""), (10**6, 10**3, "K"), (10**9, 10**6, "M"), (10**12, 10**9, "B")):
        if count < limit:
            return str(count) if divisor == 1 else f"{count / divisor:.1f}{unit}"
    return f"{count / 10**12:.1f}T"


def format_seconds(seconds: float) -> str:
    """Write a duration: 0.84 s, 12.3 s, 4 min 5 s, 2 h 3 min."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
