"""Scripts: meta-train, evaluate, compare and time. Each is run as `python -m experiments.NAME`; see `--help`."""
