"""`python -m metarl` is the command `metarl`."""

from importlib import import_module

import_module("metarl.experiments.command").main()  # by name: the core imports none of the scripts
