"""Settings of all tests."""

import os
from collections.abc import Iterator

import pytest

# Before MKL is first used. Many tests compare bits; without this, how MKL rounds a batch of products depends on their
# number on some processors. `tests/metarl/test_neighbours.py` looks at what holds without it.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


@pytest.fixture
def unrecorded() -> Iterator[None]:
    """Spare the seconds that an engine's records take."""
    from metarl.engine import Engine

    with Engine(record=False).current():
        yield
