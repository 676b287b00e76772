"""A rule of the contract that a method, a step or another extension does not keep."""

from __future__ import annotations


class RuleBroken(AssertionError):
    """Says which rule was broken, with what, and what to do.

    Args:
        message: What the rule is, and what arrived instead.
        hint: What to try.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(f"{message}\n  hint: {hint}")


def require(kept: object, message: str, *, hint: str) -> None:
    """Raise :class:`RuleBroken` unless a rule is kept."""
    if not kept:
        raise RuleBroken(message, hint=hint)
