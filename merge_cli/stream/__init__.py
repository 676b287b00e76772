"""Blocks through a method: the only package that knows threads and devices."""

from merge_cli.stream.digests import sha256_of_files
from merge_cli.stream.engine import StreamResult, stream
from merge_cli.stream.progress import Listener, Quiet

__all__ = ["Listener", "Quiet", "StreamResult", "sha256_of_files", "stream"]
