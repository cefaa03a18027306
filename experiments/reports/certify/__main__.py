"""`metarl certify`."""

from metarl.experiments.reports.certify import main

if __name__ == "__main__":
    main()
