"""`python -m metarl` is the command `metarl`."""

from importlib import import_module

if __name__ == "__main__":
    import_module("metarl.experiments.command").main()  # by name: the core imports none of the scripts
