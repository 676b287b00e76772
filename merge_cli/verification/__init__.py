"""Verification of a merged checkpoint, by its digests and by computing parts of it again."""

from merge_cli.verification.replay import Replay
from merge_cli.verification.verify import verify

__all__ = ["Replay", "verify"]
