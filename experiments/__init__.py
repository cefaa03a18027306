"""Scripts that read from top to bottom. Run one as `metarl NAME`, or `python -m experiments.NAME` in a checkout."""
