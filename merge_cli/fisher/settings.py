"""Settings of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from merge_cli.errors import RecipeError
from merge_cli.fisher.data import Source
from merge_cli.fisher.likelihood import Estimator, Task

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Columns:
    """The columns that the user named, None to look for the usual ones.

    Attributes:
        text: Of the text; several are given to the model together, two as a pair.
        label: Of the label, or of the text that is to follow.
        image: Of the image.
    """

    text: str | Sequence[str] | None = None
    label: str | None = None
    image: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of the text, in order."""
        return (self.text,) if isinstance(self.text, str) else tuple(self.text or ())


@dataclass(frozen=True)
class FisherSettings:
    """Settings of a measurement; the fields are the options of ``merge-cli fisher``.

    Attributes:
        model: Path or hub id.
        source: The data.
        columns: Of the data.
        task: None to tell it from the architecture.
        estimator: None for exact where there are at most 32 classes, else sampled.
        draws: Labels drawn per example or token by the sampled estimator.
        examples: How many to use at most; None for all.
        batch_size: Examples that go through the model together; changes speed and memory, not the result.
        max_length: Tokens at which texts are cut off.
        seed: Of the drawn labels and masked tokens.
        device: Where the model runs.
        dtype: In which it computes; sums are float32 in any case.
        train_examples: Size of the training set that the Fisher stands for; None for the size of the data.
        gradient: Whether to store the sum gradient at the true labels too.
        only: Patterns of tensor names, as in the shell; empty for all.
        parts: Into how many parts the parameters are split, each with a pass over the data of its own.
        checkpoint_every: Batches after which the sums are saved, so that the same command resumes; 0 for never, None
            for every minute or less often, so that it takes no more than a fiftieth of the time. Unless it is 0, they
            are saved too where a signal ends the program.
        trust_remote_code: Whether Python code that lies beside the model may run.
        threads: Of torch on the processor; None to leave them as they are.
    """

    model: str
    source: Source
    columns: Columns = field(default_factory=Columns)
    task: Task | None = None
    estimator: Estimator | None = None
    draws: int = 1
    examples: int | None = 1024
    batch_size: int = 8
    max_length: int = 512
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    train_examples: int | None = None
    gradient: bool = False
    only: tuple[str, ...] = ()
    parts: int = 1
    checkpoint_every: int | None = None
    trust_remote_code: bool = False
    threads: int | None = None

    @property
    def labelled(self) -> bool:
        """Tell whether true labels are needed."""
        return self.gradient or self.estimator is Estimator.EMPIRICAL

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            RecipeError: With the option concerned.
        """
        for name in ("draws", "batch_size", "max_length", "parts", "examples", "train_examples", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"--{name.replace('_', '-')} is {value}; expected 1 or more")
        if self.draws > 1 and self.estimator not in {None, Estimator.SAMPLED}:
            raise RecipeError(f"--draws has no meaning for the {self.estimator} estimator")
