"""Action distributions against `torch.distributions`, and their randomness."""

import pytest
import torch
from gymnasium import spaces
from torch import distributions

from metarl.rl.distributions import (
    ActionDistribution,
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    SquashedGaussian,
    distribution_for,
)


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


def test_multi_categorical_is_a_product() -> None:
    sizes, logits = [2, 3, 4], 2 * torch.randn(6, 5, 9, dtype=torch.float64)
    distribution, parts = MultiCategorical(sizes), torch.split(logits, sizes, -1)
    actions = torch.stack([torch.randint(size, (6, 5)) for size in sizes], -1)
    each = [distributions.Categorical(logits=part) for part in parts]
    wanted = torch.stack([one.log_prob(actions[..., k]) for k, one in enumerate(each)]).sum(0)
    torch.testing.assert_close(distribution.log_prob((logits,), actions), wanted)
    torch.testing.assert_close(distribution.entropy((logits,)), torch.stack([one.entropy() for one in each]).sum(0))
    wanted_mode = torch.stack([one.probs.argmax(-1) for one in each], -1)
    assert torch.equal(distribution.mode((logits,)), wanted_mode)


def test_bernoulli() -> None:
    logits = 2 * torch.randn(6, 5, 3, dtype=torch.float64)
    actions, wanted = torch.randint(2, (6, 5, 3)), distributions.Bernoulli(logits=logits)
    distribution = Bernoulli(3)
    log_probs = wanted.log_prob(actions.double()).sum(-1)
    torch.testing.assert_close(distribution.log_prob((logits,), actions), log_probs)
    assert not torch.allclose(distribution.log_prob((logits,), 1 - actions), log_probs, rtol=0.01)
    torch.testing.assert_close(distribution.entropy((logits,)), wanted.entropy().sum(-1))
    assert torch.equal(distribution.mode((logits,)), (wanted.probs > 0.5).long())


@pytest.mark.parametrize("number", [(MultiCategorical([2, 3]), 5), (Bernoulli(3), 3)])
def test_frequencies_of_products(number: tuple[ActionDistribution, int]) -> None:
    """Every combination comes as often as its log-probability says, so the numbers are independent."""
    distribution, width = number
    logits, draws = torch.linspace(-1.0, 1.5, width, dtype=torch.float64), 100_000
    noise = distribution.noise((draws,), torch.Generator().manual_seed(0), torch.float64)
    actions = distribution.sample((logits.expand(draws, -1),), noise)
    combinations, counts = actions.unique(dim=0, return_counts=True)
    probs = distribution.log_prob((logits.expand(len(combinations), -1),), combinations).exp()
    assert probs.sum() == pytest.approx(1.0)  # all combinations came
    stderr = (probs * (1 - probs) / draws).sqrt()
    assert ((counts / draws - probs).abs() < 4 * stderr).all()
    assert not ((counts / draws - 1 / len(counts)).abs() < 4 * stderr).all()


def test_entropies() -> None:
    loc, scale = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64) + 0.2
    wanted = distributions.Normal(loc, scale).entropy().sum(-1)
    torch.testing.assert_close(DiagonalGaussian(3).entropy((loc, scale)), wanted)
    logits = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(Categorical(4).entropy((logits,)), distributions.Categorical(logits=logits).entropy())


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 0.5), (1.5, 1.0), (-0.3, 0.05)])
def test_entropy_of_squashed_actions_is_minus_their_mean_log_probability(loc: float, scale: float) -> None:
    squashed, draws = SquashedGaussian(1), 200_000
    params = (torch.full((draws, 1), loc, dtype=torch.float64), torch.full((draws, 1), scale, dtype=torch.float64))
    noise = squashed.noise((draws,), torch.Generator().manual_seed(0), torch.float64)
    log_probs = squashed.log_prob(params, squashed.sample(params, noise))
    stderr = float(log_probs.std()) / draws**0.5
    entropy = float(squashed.entropy(tuple(x[:1] for x in params))[0])
    assert abs(entropy + float(log_probs.mean())) < 4 * stderr < 0.02
    assert abs(entropy - float(DiagonalGaussian(1).entropy(tuple(x[:1] for x in params))[0])) > 8 * stderr  # of u


@pytest.mark.parametrize("distribution", [DiagonalGaussian(3), Categorical(3), MultiCategorical([1, 2]), Bernoulli(3)])
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
    [
        (spaces.Box(-1, 1, (3,)), DiagonalGaussian, (3,)),
        (spaces.Discrete(5), Categorical, ()),
        (spaces.MultiDiscrete([2, 4]), MultiCategorical, (2,)),
        (spaces.MultiBinary(3), Bernoulli, (3,)),
    ],
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
        spaces.MultiDiscrete([[2, 3]]),
        spaces.MultiDiscrete([2, 3], start=[0, 1]),
        spaces.MultiBinary((2, 2)),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Dict({"a": spaces.Discrete(2)}),
    ],
)
def test_other_spaces(space: spaces.Space[object]) -> None:
    with pytest.raises(ValueError, match="action_space must be a one-dimensional Box"):
        distribution_for(space)
