"""Blocks through a method: the only package that knows workers and devices."""

from merge_cli.stream.device import choose_device
from merge_cli.stream.diagnose import diagnose
from merge_cli.stream.digests import RunningDigests
from merge_cli.stream.engine import stream
from merge_cli.stream.fisher_identity import check_fishers
from merge_cli.stream.input_digests import InputDigests
from merge_cli.stream.journal import JOURNAL_FILE, Journal, Past, Span
from merge_cli.stream.model_similarity import examined
from merge_cli.stream.progress import Listener, Quiet
from merge_cli.stream.result import Outcome, StreamResult
from merge_cli.stream.resume import bytes_of, can_go_on, decisions, find_past, sound_past

__all__ = [
    "JOURNAL_FILE",
    "InputDigests",
    "Journal",
    "Listener",
    "Outcome",
    "Past",
    "Quiet",
    "RunningDigests",
    "Span",
    "StreamResult",
    "bytes_of",
    "can_go_on",
    "check_fishers",
    "choose_device",
    "decisions",
    "diagnose",
    "examined",
    "find_past",
    "sound_past",
    "stream",
]
