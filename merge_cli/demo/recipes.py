"""The recipes that the demonstration writes and runs."""

from __future__ import annotations

from dataclasses import dataclass

EXPERTS = ("expert-1", "expert-2", "expert-3")
# Every method that has one number to choose may choose among this many values.
_WEIGHTS = (0.2, 0.4, 0.6, 0.8, 1.0)
_SCALES_OF_A_MEAN = (0.6, 1.2, 1.8, 2.4, 3.0)
_REMOVED = (-0.2, -0.4, -0.6, -0.8, -1.0)
_NEGATED = (-0.1, -0.2, -0.3, -0.4, -0.5)

_PLAIN = "".join(f"  - model: ./{expert}\n" for expert in EXPERTS)
_FISHERS = "".join(f"  - model: ./expert-{i}\n    fisher: ./fisher-{i}\n" for i in (1, 2, 3))
_GRADIENTS = "".join(
    f"  - model: ./expert-{i}\n    fisher: ./fisher-{i}\n    gradient: ./fisher-{i}/gradient\n" for i in (1, 2, 3)
)


@dataclass(frozen=True)
class Trial:
    """A recipe of the demonstration.

    Attributes:
        name: Of its file and of the merged checkpoint's folder.
        title: For tables.
        text: The YAML, with a usual value for what could be tuned.
        tuned: Place in the recipe of the number to choose; empty where there is none.
        grid: Values to choose it from.
    """

    name: str
    title: str
    text: str
    tuned: str = ""
    grid: tuple[float, ...] = ()


def _text(comment: str, method: str, models: str, *, base: str = "base_model: ./base\n", rest: str = "") -> str:
    return f"# {comment}\nmerge_method: {method}\n{base}models:\n{models}{rest}"


_WITH_FISHER = "base_model: ./base\nbase_fisher: ./fisher-base\n"

ADDITION = (
    Trial(
        "average",
        "averaging",
        _text("The mean of the three experts.", "linear", _PLAIN, base="", rest="parameters: {weight: 1.0}\n"),
    ),
    Trial(
        "task_arithmetic",
        "task arithmetic",
        _text("Task vectors added at a usual weight.", "task_arithmetic", _PLAIN, rest="parameters: {weight: 0.4}\n"),
        "parameters.weight",
        _WEIGHTS,
    ),
    Trial(
        "ties",
        "TIES",
        _text(
            "TIES as in its paper, at the values it gives for use without validation data.",
            "ties",
            _PLAIN,
            rest="parameters: {weight: 1.0, density: 0.2, lambda: 1.0, trim: model, zero_sum: none}\n",
        ),
        "parameters.lambda",
        _SCALES_OF_A_MEAN,
    ),
    Trial(
        "dare",
        "DARE",
        _text(
            "Half of each task vector dropped at random, the rest doubled, then task arithmetic.",
            "dare_linear",
            _PLAIN,
            rest="parameters: {weight: 0.4, density: 0.5}\nseed: 7\n",
        ),
        "parameters.weight",
        _WEIGHTS,
    ),
    Trial("fisher", "Fisher averaging", _text("Averaged by Fisher.", "fisher", _FISHERS, base="")),
    Trial(
        "gradient_matching",
        "gradient matching",
        _text(
            "Uncertainty-based gradient matching at its defaults.",
            "gradient_matching",
            _GRADIENTS,
            base=_WITH_FISHER,
            rest="parameters: {weight: 1.0}\n",
        ),
        "parameters.weight",
        _WEIGHTS,
    ),
)

REMOVAL = (
    Trial(
        "negation",
        "negation",
        _text(
            "The first expert's task vector, subtracted.",
            "task_arithmetic",
            "  - model: ./expert-1\n",
            rest="parameters: {weight: -0.5}\n",
        ),
        "parameters.weight",
        _NEGATED,
    ),
    Trial(
        "gradient_matching_removal",
        "gradient matching",
        _text(
            "The first expert's data, removed; its Fisher is measured at the base.",
            "gradient_matching",
            "  - model: ./expert-1\n    fisher: ./fisher-1-at-base\n",
            base=_WITH_FISHER,
            rest="parameters: {weight: -1.0}\n",
        ),
        "parameters.weight",
        _REMOVED,
    ),
)
