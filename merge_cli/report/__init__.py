"""What happened and what is there, as data; rendered as text, Markdown and JSON."""

from merge_cli.report.card import model_card
from merge_cli.report.inspection import Inspection, inspect_checkpoint
from merge_cli.report.manifest import manifest, sha256_lines
from merge_cli.report.model import MergeReport

__all__ = ["Inspection", "MergeReport", "inspect_checkpoint", "manifest", "model_card", "sha256_lines"]
