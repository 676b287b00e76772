"""Help texts for 80 columns: plain, with examples, and in the same form for every command."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

_EXAMPLES = {
    "init": (
        "merge-cli init base math code",
        "merge-cli init base math code --base base -o ties.yml --method ties",
        "merge-cli init --method slerp -o -",
    ),
    "merge": (
        "merge-cli merge recipe.yml merged",
        "merge-cli merge recipe.yml merged --set parameters.lambda=0.8 --force",
        "merge-cli merge - merged --dry-run < recipe.yml",
    ),
    "plan": ("merge-cli plan recipe.yml", "merge-cli plan recipe.yml --strict --json"),
    "verify": ("merge-cli verify merged", "merge-cli verify merged --replay 5", "merge-cli verify merged --replay all"),
    "mismatch": ("merge-cli mismatch recipe.yml", "merge-cli mismatch recipe.yml --data math.jsonl --data code.jsonl"),
    "methods": ("merge-cli methods", "merge-cli methods ties"),
    "inspect": ("merge-cli inspect merged", "merge-cli inspect merged/model.safetensors -v"),
    "schema": ("merge-cli schema > recipe.schema.json",),
    "demo": ("merge-cli demo demo", "merge-cli demo demo --quick"),
    "doctor": ("merge-cli doctor", "merge-cli doctor results --clean"),
    "measure": (
        "merge-cli fisher ./math --data math.jsonl --out fisher-math",
        "merge-cli fisher ./nli --data nli.csv --text-column premise --text-column hypothesis --out fisher-nli",
        "merge-cli fisher import ./math checkpoint-500 --out fisher-math    (fisher import --help says more)",
    ),
    "import": ("merge-cli fisher import ./math checkpoint-500 --out fisher-math --train-examples 20000",),
}
_ENVIRONMENT = (
    "HF_HOME, HF_HUB_OFFLINE    where models of the hub are kept, and 1 for no network",
    "XDG_CACHE_HOME             where digests of inputs are remembered; ~/.cache by default",
    "NO_COLOR                   no colours",
    "MERGE_CLI_COMPILED=0       work without the compiled kernels",
)


def epilog(command: str) -> str:
    """Return what stands at the end of a command's help: examples to copy."""
    return _verbatim("Examples:", _EXAMPLES[command])


def root_epilog() -> str:
    """Return what stands at the end of the program's help."""
    return "\n\n".join(
        (
            _verbatim("A first merge:", ("merge-cli demo demo", "merge-cli merge demo/ties.yml mine")),
            _verbatim("Environment variables:", _ENVIRONMENT),
        )
    )


def _verbatim(title: str, lines: tuple[str, ...]) -> str:
    # Without \b, click joins lines and breaks them anew.
    return "\n".join(("\b", title, *(f"  {line}" for line in lines)))


class Command(TyperCommand):
    """A command whose usage names its arguments without braces, as they stand in the text."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]
