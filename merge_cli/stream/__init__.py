"""Blocks through a method: the only package that knows threads and devices."""

from merge_cli.stream.device import choose_device
from merge_cli.stream.digests import RunningDigests, sha256_of_files
from merge_cli.stream.engine import stream
from merge_cli.stream.fishers import check_fishers
from merge_cli.stream.progress import Listener, Quiet
from merge_cli.stream.result import StreamResult
from merge_cli.stream.sanity import examine
from merge_cli.stream.worker import Discard

__all__ = [
    "Discard",
    "Listener",
    "Quiet",
    "RunningDigests",
    "StreamResult",
    "check_fishers",
    "choose_device",
    "examine",
    "sha256_of_files",
    "stream",
]
