"""`python -m metarl.experiments.compare`."""

from metarl.experiments.compare import main

if __name__ == "__main__":
    main()
