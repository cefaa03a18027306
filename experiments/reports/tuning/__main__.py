"""`metarl tuning`."""

from metarl.experiments.reports.tuning import main

if __name__ == "__main__":
    main()
