"""Quantiles of Student's t distribution, without SciPy."""

import functools
import math

import numpy as np


@functools.cache
def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution for a whole number of degrees of freedom, by bisection.

    Args:
        probability: in [0.5, 1).
        degrees: of freedom, at least 1.

    Example:
        >>> f"{t_quantile(0.975, 2):.4f}"
        '4.3027'
    """
    low, high = 0.0, math.pi / 2  # theta = atan(t / sqrt(degrees)), in which the distribution is a finite sum
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _t_within(middle, degrees) < 2 * probability - 1 else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _t_within(theta: float, degrees: int) -> float:
    """P(|t| < tan(theta) sqrt(degrees)) (Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    first = 3 if degrees % 2 else 2  # the factors are 2/3, 4/5, ... for odd degrees and 1/2, 3/4, ... for even ones
    factors = [(k - 1) / k * cosine**2 for k in range(first, degrees, 2)]
    series = float(np.cumprod([1.0, *factors]).sum())
    if degrees % 2 == 0:
        return sine * series
    return 2 / math.pi * (theta + (sine * cosine * series if degrees > 1 else 0.0))
