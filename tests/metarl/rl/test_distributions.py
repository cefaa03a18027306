"""Action distributions against `torch.distributions`, and their randomness."""

import pytest
import torch
from gymnasium import spaces
from torch import distributions

from metarl.rl.distributions import ActionDistribution, Categorical, DiagonalGaussian, distribution_for


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_gaussian_log_prob_is_the_sum_over_action_dimensions() -> None:
    loc, scale, actions = torch.randn(3, 5, 4), torch.rand(3, 5, 4) + 0.1, torch.randn(3, 5, 4)
    each = distributions.Normal(loc, scale).log_prob(actions)  # [3, 5, 4]
    got = DiagonalGaussian(4).log_prob((loc, scale), actions)
    torch.testing.assert_close(got, each.sum(-1))
    assert not torch.allclose(got, each.mean(-1), rtol=0.01)  # learn2learn's mean would be found out


def test_categorical_log_prob() -> None:
    logits, actions = 3 * torch.randn(6, 5, 4), torch.randint(4, (6, 5))
    got = Categorical(4).log_prob((logits,), actions)
    torch.testing.assert_close(got, distributions.Categorical(logits=logits).log_prob(actions))


def test_gaussian_sample_is_loc_plus_scale_times_noise() -> None:
    loc, scale, noise = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]), torch.tensor([2.0, -1.0])
    assert DiagonalGaussian(2).sample((loc, scale), noise).tolist() == [2.0, -5.0]


def test_categorical_frequencies() -> None:
    probs, number = torch.tensor([0.05, 0.15, 0.3, 0.5], dtype=torch.float64), 100_000
    noise = Categorical(4).noise((number,), torch.Generator().manual_seed(0), torch.float64)
    actions = Categorical(4).sample((probs.log() + 7.0,), noise)  # logits need not be normalised
    frequencies = actions.bincount(minlength=4) / number
    stderr = (probs * (1 - probs) / number).sqrt()
    assert ((frequencies - probs).abs() < 4 * stderr).all()
    assert ((frequencies - 0.25).abs() > 4 * stderr).all()


@pytest.mark.parametrize("distribution", [DiagonalGaussian(3), Categorical(3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_follows_from_the_generator_alone(distribution: ActionDistribution, dtype: torch.dtype) -> None:
    before = torch.get_rng_state()
    a, b, c = (distribution.noise((7, 2), torch.Generator().manual_seed(seed), dtype) for seed in (0, 0, 1))
    assert a.shape == (7, 2, 3)
    assert a.dtype == dtype
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("space", "kind", "shape"),
    [(spaces.Box(-1, 1, (3,)), DiagonalGaussian, (3,)), (spaces.Discrete(5), Categorical, ())],
)
def test_spaces(space: spaces.Space[object], kind: type, shape: tuple[int, ...]) -> None:
    distribution = distribution_for(space)
    assert isinstance(distribution, kind)
    assert distribution.action_shape == shape


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2, 2)),
        spaces.Box(-1, 1, ()),
        spaces.Discrete(3, start=1),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(3),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Dict({"a": spaces.Discrete(2)}),
    ],
)
def test_other_spaces(space: spaces.Space[object]) -> None:
    with pytest.raises(ValueError, match="action_space must be a one-dimensional Box"):
        distribution_for(space)
