"""Streaming of blocks through a method: the only package that knows workers and devices."""

from merge_cli.stream.device import choose_device
from merge_cli.stream.diagnose import diagnose
from merge_cli.stream.digests import RunningDigests
from merge_cli.stream.engine import measure_all, stream
from merge_cli.stream.fisher_identity import check_fishers
from merge_cli.stream.input_digests import InputDigests
from merge_cli.stream.journal import JOURNAL_FILE, Journal, JournalState
from merge_cli.stream.model_similarity import with_sample_warnings
from merge_cli.stream.pipeline import Measurements
from merge_cli.stream.progress import Listener, NullListener
from merge_cli.stream.records import Span
from merge_cli.stream.result import Outcome, StreamResult
from merge_cli.stream.resume import bytes_of, can_go_on, decisions, read_state, verified_state

__all__ = [
    "JOURNAL_FILE",
    "InputDigests",
    "Journal",
    "JournalState",
    "Listener",
    "Measurements",
    "NullListener",
    "Outcome",
    "RunningDigests",
    "Span",
    "StreamResult",
    "bytes_of",
    "can_go_on",
    "check_fishers",
    "choose_device",
    "decisions",
    "diagnose",
    "measure_all",
    "read_state",
    "stream",
    "verified_state",
    "with_sample_warnings",
]
