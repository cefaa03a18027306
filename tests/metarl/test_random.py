"""The streams of a seed."""

import numpy as np

from metarl.random import Stream, stream_generator


def test_every_stream_of_a_seed_differs_from_training_and_from_the_others() -> None:
    """`default_rng([seed, 0])` would not: numpy pads a seed with zeros."""
    drawn = {np.random.default_rng(seed).random() for seed in (0, 5)}
    assert np.random.default_rng([5, 0]).random() in drawn
    drawn |= {stream_generator(seed, stream).random() for stream in Stream for seed in (0, 5)}
    assert len(drawn) == 2 * (1 + len(Stream))
