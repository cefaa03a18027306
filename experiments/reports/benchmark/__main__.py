"""`metarl benchmark`."""

from metarl.experiments.reports.benchmark import main

if __name__ == "__main__":
    main()
