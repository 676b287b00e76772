"""Reports on merges and checkpoints, as data; rendered as text, Markdown and JSON."""

from merge_cli.report.findings import findings
from merge_cli.report.finished import finished
from merge_cli.report.fisher_summary import LayerSummary, summarize_fisher
from merge_cli.report.inspection import Inspection, inspect_checkpoint
from merge_cli.report.merge_report import MergeReport, Written, merge_report, unchanged_report
from merge_cli.report.mismatch import MismatchReport, mismatch_report
from merge_cli.report.model_card import model_card
from merge_cli.report.output_texts import digests_beside, output_texts
from merge_cli.report.verification import Verification

__all__ = [
    "Inspection",
    "LayerSummary",
    "MergeReport",
    "MismatchReport",
    "Verification",
    "Written",
    "digests_beside",
    "findings",
    "finished",
    "inspect_checkpoint",
    "merge_report",
    "mismatch_report",
    "model_card",
    "output_texts",
    "summarize_fisher",
    "unchanged_report",
]
