"""Settings of all tests."""

import os

# Before MKL is first used. Many tests compare bits; without this, how MKL rounds a batch of products depends on their
# number on some processors. `tests/metarl/test_neighbours.py` looks at what holds without it.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
