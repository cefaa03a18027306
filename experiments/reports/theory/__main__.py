"""`metarl theory`."""

from metarl.experiments.reports.theory import main

if __name__ == "__main__":
    main()
