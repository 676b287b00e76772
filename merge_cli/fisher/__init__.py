"""Fisher diagonals: sums of squared per-example gradients, measured, written as checkpoints, imported."""

from merge_cli.fisher.data import Source
from merge_cli.fisher.encoding import Columns
from merge_cli.fisher.estimate import FisherReport, estimate_fisher
from merge_cli.fisher.imports import ImportSettings, Kind, import_fisher
from merge_cli.fisher.losses import Estimator, Task
from merge_cli.fisher.settings import FisherSettings
from merge_cli.fisher.storage import read_any

__all__ = [
    "Columns",
    "Estimator",
    "FisherReport",
    "FisherSettings",
    "ImportSettings",
    "Kind",
    "Source",
    "Task",
    "estimate_fisher",
    "import_fisher",
    "read_any",
]
