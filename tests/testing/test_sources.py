"""The battery of sources names the rule that a source breaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from merge_cli.checkpoint import Reader, Source, open_checkpoint
from merge_cli.stream import decode
from merge_cli.testing import RuleBroken, check_source
from tests.checkpoints import write_checkpoint

NUMBERS = torch.arange(1.0, 1001.0).reshape(50, 20)


@pytest.fixture
def stored(tmp_path: Path) -> Source:
    write_checkpoint(tmp_path / "model", {"w": NUMBERS})
    return open_checkpoint(tmp_path / "model").tensors["w"]


def check(source: Source) -> None:
    """Check a source whose file is the only one of its folder."""
    with Reader(open_checkpoint(source.file.parent).files) as reader:
        check_source(source, reader, expected=NUMBERS.double().numpy())


def test_what_a_file_holds_passes(stored: Source) -> None:
    check(stored)


def test_other_numbers_than_those_of_the_definition_are_named(stored: Source) -> None:
    with pytest.raises(RuleBroken, match="are not those of its definition"):
        check(replace(stored, offset=stored.offset - 4))


def test_bytes_beyond_the_file_are_named(stored: Source) -> None:
    with pytest.raises(RuleBroken, match=r"lies at .* which has"):
        check(replace(stored, offset=stored.offset + 4))


def test_numbers_that_depend_on_the_run_are_named(stored: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = decode._fill

    def by_run(source: Source, start: int, out: np.ndarray, reader: Reader) -> None:
        fill(source, start, out, reader)
        if len(out) == 5:
            out[-1] = np.nextafter(out[-1], out.dtype.type(np.inf))

    monkeypatch.setattr(decode, "_fill", by_run)
    with pytest.raises(RuleBroken, match="differ from those of the whole") as caught:
        check(stored)
    assert "every number depend on its own place alone" in str(caught.value)
