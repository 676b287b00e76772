"""The family of checkpoints that the tests of streaming share."""

from pathlib import Path

import pytest

from tests.stream.families import write_family


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with base, models, Fishers and gradients; nobody writes into it."""
    return write_family(tmp_path_factory.mktemp("family"))
