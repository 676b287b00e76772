"""Plans, reports, methods and checkpoints as tables."""

from merge_cli.cli.render.catalogue import method, methods
from merge_cli.cli.render.checkpoints import inspection, verification
from merge_cli.cli.render.comparisons import demo, mismatch
from merge_cli.cli.render.console import notes, warnings
from merge_cli.cli.render.merges import plan, report

__all__ = ["demo", "inspection", "method", "methods", "mismatch", "notes", "plan", "report", "verification", "warnings"]
