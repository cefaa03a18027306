"""The two ways to run a list of calls."""

import pytest

from metarl.engine import calls


@pytest.fixture(params=["torchscript", "call list"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lists of calls are compiled by TorchScript, or made from Python one by one."""
    monkeypatch.setattr(calls, "use_torchscript", request.param == "torchscript")
    return str(request.param)
