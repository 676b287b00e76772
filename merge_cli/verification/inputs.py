"""Comparison of a merge's inputs with those that its manifest records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from merge_cli.checkpoint import FileIdentity, Files
from merge_cli.checkpoint.digest_cache import known_digests
from merge_cli.errors import CheckpointError
from merge_cli.plan import MergePlan
from merge_cli.report.manifest import InputFile, Manifest
from merge_cli.text import count_of, listed


@dataclass(frozen=True)
class Compared:
    """An input file, as it was recorded and as it is now; None where there is no such file."""

    name: str
    recorded: InputFile | None
    now: FileIdentity | None

    @property
    def is_changed(self) -> bool:
        """Tell whether size, header or the sample of numbers show that it is another file."""
        old, new = self.recorded, self.now
        if old is None or new is None:
            return True
        return (old.size, old.header_sha256, old.sample or new.sample) != (new.size, new.sha256, new.sample)

    @property
    def is_touched(self) -> bool:
        """Tell whether it has another time, and nothing else shows a change."""
        if self.recorded is None or self.now is None or self.is_changed:
            return False
        return self.recorded.mtime_ns != self.now.mtime_ns

    def has_other_digest(self, files: Files) -> bool:
        """Tell whether its SHA-256 is not the recorded one; reads the file, unless it was hashed before."""
        if self.recorded is None or self.now is None or self.recorded.sha256 is None:
            return False
        path = self.now.path
        return (known_digests([self.now]).get(path) or files.sha256(path)) != self.recorded.sha256


def compare_inputs(made: Manifest, plan: MergePlan) -> list[Compared]:
    """Return every input file of a merge, beside what is planned again."""
    recorded = {(each.role, file.name): file for each in made.inputs for file in each.files}
    now = {(str(each.role), file.path.name): file for each in plan.inputs for file in each.files}
    labels = {str(each.role): each.label for each in plan.inputs}
    keys = dict.fromkeys((*recorded, *now))
    return [Compared(f"{labels.get(key[0], key[0])}/{key[1]}", recorded.get(key), now.get(key)) for key in keys]


def input_notes(inputs: list[Compared]) -> Iterator[str]:
    """Say which inputs are not what they were."""
    changed = dict.fromkeys(each.name for each in inputs if each.is_changed)
    touched = dict.fromkeys(each.name for each in inputs if each.is_touched)
    if changed:
        yield f"{count_of(len(changed), 'input file')} changed since the merge: {listed(changed)}"
    if touched:
        what = "written again since the merge, with the same size, header and sample of numbers"
        yield f"{count_of(len(touched), 'input file')} {what}: {listed(touched)}"


def blame_inputs(inputs: list[Compared], files: Files) -> None:
    """Refuse to blame an output for what is computed otherwise now, where an input is not what it was.

    Raises:
        CheckpointError: Naming the input files that have changed.
    """
    changed = dict.fromkeys(each.name for each in inputs if each.is_changed or each.has_other_digest(files))
    if changed:
        raise CheckpointError(
            f"{count_of(len(changed), 'input file')} changed since the merge, so that computing it again says nothing "
            f"about the output: {listed(changed)}",
            hint="put back what was merged (the manifest has its SHA-256), or verify without --replay",
        )
