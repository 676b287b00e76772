"""Fisher diagonals: sums of squared per-example gradients, measured, written as checkpoints, imported."""

from merge_cli.fisher.data import Source
from merge_cli.fisher.estimate import FisherReport, estimate_fisher, resume_folder
from merge_cli.fisher.from_optimizer import ImportSettings, Kind, import_fisher
from merge_cli.fisher.likelihood import Estimator, Task
from merge_cli.fisher.loss_gradient import Probe, load_for, make_probe, write_gradient
from merge_cli.fisher.settings import Columns, FisherSettings
from merge_cli.fisher.storage import read_all, read_tensor

__all__ = [
    "Columns",
    "Estimator",
    "FisherReport",
    "FisherSettings",
    "ImportSettings",
    "Kind",
    "Probe",
    "Source",
    "Task",
    "estimate_fisher",
    "import_fisher",
    "load_for",
    "make_probe",
    "read_all",
    "read_tensor",
    "resume_folder",
    "write_gradient",
]
