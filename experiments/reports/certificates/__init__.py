"""Certificates of the meta-gradient estimators: exact problems, every estimator, its verdict, and the page on them."""
