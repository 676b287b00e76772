"""The tests that break things break what they say."""

import inspect

from merge_cli.checkpoint import Files
from tests.crash.faults import FAULTS
from tests.crash.seam import BUILT, PRIMITIVES


def test_every_system_call_passes_through_and_has_its_faults() -> None:
    public = {name for name, _ in inspect.getmembers(Files, inspect.isfunction) if not name.startswith("_")}
    assert public == {*PRIMITIVES, *BUILT}
    assert FAULTS.keys() == set(PRIMITIVES)
