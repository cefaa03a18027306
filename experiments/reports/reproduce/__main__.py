"""`python -m metarl.experiments.reports.reproduce`."""

from metarl.experiments.reports.reproduce import main

if __name__ == "__main__":
    main()
