"""Random generators: a torch one that follows from a numpy one, and their states as text for checkpoints."""

import json

import numpy as np
import torch


def torch_generator(rng: np.random.Generator, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator that follows from `rng`."""
    return torch.Generator(device).manual_seed(int(rng.integers(2**63)))


def generator_state(rng: np.random.Generator) -> str:
    """The state of a numpy generator as JSON."""
    return json.dumps(rng.bit_generator.state)


def restore_generator(rng: np.random.Generator, state: str) -> None:
    """Set a numpy generator to a state from `generator_state`.

    Raises:
        ValueError: when it is not one.
    """
    try:
        rng.bit_generator.state = json.loads(state)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the checkpoint's random state must be a numpy generator's, got {state!r:.80}") from error
