"""Scripts that read from top to bottom. Each is run as `metarl NAME`, and from a checkout as `python -m experiments.NAME`."""
