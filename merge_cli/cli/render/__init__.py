"""Plans, reports, methods and checkpoints as tables."""

from merge_cli.cli.render.checkpoints import inspection, verification
from merge_cli.cli.render.console import notes, warnings
from merge_cli.cli.render.demo import demo
from merge_cli.cli.render.merge import plan, report
from merge_cli.cli.render.methods import method, methods
from merge_cli.cli.render.mismatch import mismatch

__all__ = ["demo", "inspection", "method", "methods", "mismatch", "notes", "plan", "report", "verification", "warnings"]
