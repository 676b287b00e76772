"""A merge's place on disk: checks before, files written, and leftovers of an interrupted merge."""

from merge_cli.output.place import check_out, check_weights, keep_or_discard
from merge_cli.output.rehearse import Rehearsal, rehearse
from merge_cli.output.write import Options, write_output

__all__ = ["Options", "Rehearsal", "check_out", "check_weights", "keep_or_discard", "rehearse", "write_output"]
