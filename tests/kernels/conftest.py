"""Every test of a kernel runs three times: compiled, in numpy, and in torch as on a GPU."""

from collections.abc import Iterator

import pytest

from merge_cli.kernels import backend, torch_backend
from merge_cli.kernels.compiled import LIBRARY, CompiledBackend
from merge_cli.kernels.numpy_backend import NumpyBackend


@pytest.fixture(scope="module", autouse=True, params=["compiled", "numpy", "torch"])
def which(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(torch_backend, "_is_shared", lambda tensor: False)
        elif request.param == "numpy":
            patch.setattr(backend, "CPU", NumpyBackend())
        elif LIBRARY is None:
            pytest.skip("the kernels were not compiled")
        else:
            patch.setattr(backend, "CPU", CompiledBackend(LIBRARY))
        yield request.param
