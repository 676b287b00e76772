"""Every test of a kernel runs twice: with the compiled kernels, and without."""

from collections.abc import Iterator

import pytest

from merge_cli.kernels import compiled


@pytest.fixture(scope="module", autouse=True, params=["compiled", "not compiled"])
def _either(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "compiled":
        if compiled.LIBRARY is None:
            pytest.skip("the kernels were not compiled")
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "LIBRARY", None)
        yield
