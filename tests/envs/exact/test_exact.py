"""Problems with exact answers: every closed form against sampling, loops over trajectories, or finite differences."""

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev

from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.engine import Engine
from metarl.envs import FunctionalDistribution, GaussianBandit, LinearGaussian, TabularMDP, make_distribution
from metarl.envs.exact.enumeration import (
    EnumeratedTaskBatch,
    probabilities,
    sampled_gradients,
    sampled_objective,
    sampled_product,
    trajectories,
)
from metarl.envs.exact.expected_update import product_form
from metarl.envs.exact.policies import GaussianMean, LinearPolicy, TabularSoftmax
from metarl.envs.exact.tabular import two_state_problem
from metarl.envs.functional import uniform
from metarl.outer import make_method
from metarl.rl import ReinforcementLearning
from metarl.rl.surrogates import SURROGATES, make_surrogate, reinforce
from metarl.types import Params, TaskParams


def hessian(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return jacrev(grad(function))


def tensors(task: TaskParams) -> dict[str, Tensor]:
    return {key: torch.as_tensor(value).double() for key, value in task.items()}


def returns_by_sampling(tasks: FunctionalDistribution, policy: nn.Module, task: TaskParams, episodes: int) -> Tensor:
    """Undiscounted returns of episodes in the real environments, acted by the policy."""
    source = ReinforcementLearning(tasks, policy, episodes=episodes)
    copies = {key: np.asarray(value)[None] for key, value in task.items()}
    params = {key: leaf[None] for key, leaf in source.initial_params().items()}
    return source.tasks(copies, np.random.default_rng(0)).rollout(params).episodes.rewards[0].sum(-1)


def assert_mean(samples: Tensor, wanted: Tensor) -> None:
    stderr = float(samples.std()) / math.sqrt(len(samples))
    assert 0 < stderr < 0.05
    assert abs(float(samples.mean() - wanted)) < 4 * stderr


def random_mdp(states: int, actions: int, horizon: int) -> tuple[TabularMDP, dict[str, Tensor], Params]:
    tasks, rng = TabularMDP(states, actions, horizon), np.random.default_rng(5)
    one = {key: value[0] for key, value in tasks.sample(1, rng).items()}
    return tasks, tensors(one), {"logits": torch.as_tensor(rng.normal(size=(states, actions)))}


def two_states() -> tuple[TabularMDP, dict[str, Tensor], Params]:
    problem = two_state_problem()
    return problem.tasks, tensors(problem.task), {"logits": torch.as_tensor(problem.logits)}


# The returns.


@pytest.mark.parametrize("name", ["gaussian_bandit", "tabular_mdp", "linear_gaussian"])
def test_the_return_is_what_episodes_give(name: str) -> None:
    problem = two_state_problem()
    tasks, policy, task = {
        "gaussian_bandit": (GaussianBandit(2, horizon=3), GaussianMean(2), {"centre": np.array([1.5, -0.5])}),
        "tabular_mdp": (problem.tasks, TabularSoftmax(2, 2), problem.task),
        "linear_gaussian": (LinearGaussian(6), LinearPolicy(-0.4, 0.2, -0.5), {"a": np.array(0.9), "b": np.array(0.7)}),
    }[name]
    with torch.no_grad():
        for leaf in policy.parameters():
            leaf += 0.3 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1))
    params = {key: leaf.detach().double() for key, leaf in policy.named_parameters()}
    exact = tasks.expected_return(params, tensors(task))
    assert_mean(returns_by_sampling(tasks, policy, task, 40_000), exact)


def test_gradients_of_the_returns_against_finite_differences() -> None:
    linear = {"gain": torch.tensor(-0.3), "offset": torch.tensor(0.2), "log_std": torch.tensor(-0.7)}
    for tasks, task, params in [
        (*random_mdp(3, 2, 4),),
        (LinearGaussian(5), {"a": torch.tensor(0.9), "b": torch.tensor(0.7)}, linear),
    ]:
        params = {key: leaf.double() for key, leaf in params.items()}
        task = {key: leaf.double() for key, leaf in task.items()}
        found = grad(tasks.expected_return)(params, task)
        for key, leaf in params.items():
            for i in range(leaf.numel()):
                bump = torch.zeros(leaf.numel(), dtype=torch.float64)
                bump[i] = 1e-5
                up, down = (
                    tasks.expected_return({**params, key: leaf + sign * bump.view_as(leaf)}, task) for sign in (1, -1)
                )
                assert float((up - down) / 2e-5) == pytest.approx(float(found[key].flatten()[i]), abs=1e-8)


def test_bad_arguments_of_the_ids() -> None:
    with pytest.raises(ValueError, match=r"task\['centre'\] must be finite"):
        gymnasium.make("metarl/GaussianBandit-v0", centre=(0.0, math.inf))
    with pytest.raises(ValueError, match="task_seed must be given with 3 states"):
        gymnasium.make("metarl/TabularMDP-v0", num_states=3)
    with pytest.raises(ValueError, match=r"task\['a'\] must"):
        gymnasium.make("metarl/LinearGaussian-v0", a="steep")


@pytest.mark.parametrize("name", ["gaussian_bandit", "tabular_mdp", "linear_gaussian"])
def test_the_ordinary_policy_trains_on_them(name: str) -> None:
    tasks = make_distribution(name, horizon=4)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [8]})
    source = ReinforcementLearning(tasks, policy, episodes=4, baseline="none")
    learner = MetaLearner(source, "maml", meta_batch_size=2)
    before = learner.params
    learner.learn(1)
    assert any(not torch.equal(before[key], leaf) for key, leaf in learner.params.items())


# The bandit.


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_the_sampled_objective_is_the_mean_loss_after_a_step(dimension: int) -> None:
    tasks, rng = GaussianBandit(dimension), np.random.default_rng(dimension)
    w, c = 0.5 * rng.normal(size=dimension), rng.normal(size=dimension)
    actions = w + rng.normal(size=(400_000, 4, dimension))
    costs = ((actions - c) ** 2).sum(-1)  # [n, 4]
    moved = w - 0.1 * ((actions - w) * costs[..., None]).mean(1)
    losses = torch.as_tensor(((moved - c) ** 2).sum(-1) + dimension)
    exact = tasks.sampled_objective({"mean": torch.as_tensor(w)}, {"centre": torch.as_tensor(c)}, 0.1, 4)
    assert_mean(losses, exact)


def test_the_sampled_objective_in_one_dimension_by_hand() -> None:
    params, task = ({key: torch.tensor([x], dtype=torch.float64)} for key, x in (("mean", 0.3), ("centre", 1.5)))
    d, alpha = 1.2, 0.2
    by_hand = (d - 2 * alpha * d) ** 2 + alpha**2 * (15 + 14 * d**2 + d**4) / 4 + 1
    assert float(GaussianBandit().sampled_objective(params, task, alpha, 4)) == pytest.approx(by_hand, rel=1e-12)
    with pytest.raises(ValueError, match="horizon must be 1"):
        GaussianBandit(horizon=2).sampled_objective(params, task, alpha, 4)


# The tabular MDP.


def test_the_two_state_problem_is_drawn_in_its_documented_order() -> None:
    tasks, task, params = two_states()
    rng = np.random.default_rng(1)
    for got, wanted in [
        (task["transitions"], rng.dirichlet([1.0, 1.0], size=(2, 2))),
        (task["rewards"], rng.normal(size=(2, 2))),
        (params["logits"].flatten(), 0.5 * rng.normal(size=4)),
    ]:
        np.testing.assert_array_equal(got.numpy(), wanted)
    assert (tasks.num_states, tasks.num_actions, tasks.horizon) == (2, 2, 3)


@pytest.mark.parametrize("sizes", [(2, 2, 3), (3, 2, 3), (2, 3, 1), (1, 2, 3)])
def test_trajectories_have_the_return_of_dynamic_programming(sizes: tuple[int, int, int]) -> None:
    tasks, task, params = random_mdp(*sizes)
    known = trajectories(tasks, task)
    states, actions, horizon = sizes
    assert len(known.states) == actions**horizon * states ** (horizon - 1)
    assert len({(*s, *a) for s, a in zip(known.states.tolist(), known.actions.tolist(), strict=True)}) == len(
        known.states
    )
    chance = probabilities(params, known)
    assert float(chance.sum()) == pytest.approx(1, abs=1e-12)
    assert float(chance @ known.rewards.sum(-1)) == pytest.approx(float(tasks.expected_return(params, task)), abs=1e-12)


def test_transitions_have_their_probabilities() -> None:
    tasks, task, _ = random_mdp(3, 2, 4)
    number = 10_000
    many = {key: value.expand(number, *value.shape) for key, value in task.items()}
    generator = torch.Generator().manual_seed(0)
    for s in range(3):
        for a in range(2):
            state, action = torch.full((number, 1), float(s)), torch.full((number,), a)
            moved = tasks.env.transition(state, action, many, uniform((number, 1), generator))
            seen = torch.bincount(moved[:, 0].long(), minlength=3).double() / number
            p = task["transitions"][s, a]
            assert (seen - p).abs().le(4 * (p * (1 - p) / number).sqrt()).all()


def test_sampled_gradients_are_autograds() -> None:
    tasks, task, params = random_mdp(3, 2, 3)
    known = trajectories(tasks, task)
    found = sampled_gradients(params, known)["logits"]
    for i in range(0, len(known.states), 7):

        def loss(w: Params, i: int = i) -> Tensor:
            log_probs = w["logits"].log_softmax(-1)[known.states[i], known.actions[i]]
            to_go = known.rewards[i].flip(0).cumsum(0).flip(0)
            return reinforce(log_probs[None], log_probs[None], to_go[None], torch.ones(1, 3))

        torch.testing.assert_close(found[i], grad(loss)(params)["logits"])


def test_too_much_to_enumerate() -> None:
    tasks, task, _ = two_states()
    with pytest.raises(ValueError, match="must give at most 1000000 trajectories, got 2147483648"):
        trajectories(TabularMDP(horizon=16), task)
    with pytest.raises(ValueError, match=r"at most 1000000 outcomes, got 32 \*\* 4"):
        EnumeratedTaskBatch(tasks, task, TabularSoftmax(2, 2), reinforce, steps=4)


# Estimators, exactly. The references loop over trajectories one by one.

Value = Callable[[Params], Tensor]


def over_paths(
    tasks: TabularMDP, task: dict[str, Tensor], w: Tensor, alpha: float, steps: int, end: Callable[[Tensor], Tensor]
) -> Tensor:
    """`E end(w_N)`, where `end` may be replaced on the way by what is multiplied to it: see `looped_product`."""
    if steps == 0:
        return end(w)
    known = trajectories(tasks, task)
    total = torch.zeros(())
    for s, a, move in zip(known.states, known.actions, known.moves, strict=True):
        log_probs = w.log_softmax(-1)[s, a]
        to_go = task["rewards"][s, a].flip(0).cumsum(0).flip(0)
        (g,) = torch.autograd.grad(-(log_probs * to_go).sum() / tasks.horizon, w, create_graph=True)
        rest = over_paths(tasks, task, w - alpha * g, alpha, steps - 1, end)
        total = total + move * log_probs.sum().exp() * rest
    return total


def loss_of(tasks: TabularMDP, task: dict[str, Tensor], flat: Tensor) -> Tensor:
    shape = (tasks.num_states, tasks.num_actions)
    return -tasks.expected_return({"logits": flat.view(shape)}, task) / tasks.horizon


def looped_objective(tasks: TabularMDP, task: dict[str, Tensor], w: Tensor, alpha: float, steps: int) -> Tensor:
    return over_paths(tasks, task, w, alpha, steps, lambda v: loss_of(tasks, task, v.flatten()))


def looped_product(tasks: TabularMDP, task: dict[str, Tensor], w: Tensor, alpha: float, steps: int) -> Tensor:
    """`sum_tau p(tau; w) (I - alpha H(w)) [the same one step later]`, dense and by recursion."""

    def f(flat: Tensor) -> Tensor:
        return loss_of(tasks, task, flat)

    if steps == 0:
        return grad(f)(w.flatten())
    known = trajectories(tasks, task)
    moved = w - alpha * sampled_gradients({"logits": w}, known)["logits"]
    later = torch.stack([looped_product(tasks, task, v, alpha, steps - 1) for v in moved])
    vector = probabilities({"logits": w}, known) @ later
    return vector - alpha * hessian(f)(w.flatten()) @ vector


def small(steps: int) -> tuple[TabularMDP, dict[str, Tensor], Params]:
    """32 trajectories for one step, 8 for more: a loop must get through all of their combinations."""
    return two_states() if steps == 1 else random_mdp(2, 2, 2)


def expectation_of(
    outer: str, surrogate: str, problem: tuple[TabularMDP, dict[str, Tensor], Params], steps: int, **options: Any
) -> tuple[Tensor, EnumeratedTaskBatch]:
    """The update's exact expectation through its own code."""
    tasks, task, params = problem
    method = make_method(outer, 0.5 * tasks.horizon, steps, **options)
    policy = TabularSoftmax(tasks.num_states, tasks.num_actions).double()
    loss = make_surrogate(surrogate, 0.5 if surrogate == "loaded_dice" else None)
    ways = EnumeratedTaskBatch(tasks, task, policy, loss, steps)
    with Engine(record=False, chunk_size=200).current():
        return ways.expectation(method.update(params, ways, method.inner).grads)["logits"], ways


@pytest.mark.parametrize("surrogate", sorted(SURROGATES))
@pytest.mark.parametrize("steps", [1, 2])
def test_e_maml_is_the_gradient_of_the_sampled_objective(surrogate: str, steps: int) -> None:
    tasks, task, params = two_states()
    found, ways = expectation_of("e_maml", surrogate, (tasks, task, params), steps, baseline="none")
    assert float(ways.weights.sum()) == pytest.approx(1, abs=1e-12)
    wanted = grad(lambda w: sampled_objective(tasks, task, w, 0.5 * tasks.horizon, steps))(params)["logits"]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_sampled_objective_by_a_loop(steps: int) -> None:
    tasks, task, params = small(steps)
    w, alpha = params["logits"].clone().requires_grad_(), 0.5 * tasks.horizon
    looped = looped_objective(tasks, task, w, alpha, steps)
    torch.testing.assert_close(
        sampled_objective(tasks, task, params, alpha, steps), looped.detach(), rtol=1e-12, atol=0
    )
    wanted = torch.autograd.grad(looped, w)[0]
    found = grad(lambda v: sampled_objective(tasks, task, v, alpha, steps))(params)["logits"]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_multi_step_maml_with_fresh_dice_is_the_sampled_product(steps: int) -> None:
    problem = small(steps)
    tasks, task, params = problem
    wanted = looped_product(tasks, task, params["logits"], 0.5 * tasks.horizon, steps).view_as(params["logits"])
    found = expectation_of("multi_step_maml", "dice", problem, steps)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-14)
    vectorised = sampled_product(tasks, task, params, 0.5 * tasks.horizon, steps)["logits"]
    torch.testing.assert_close(vectorised, wanted, rtol=1e-9, atol=1e-14)
    biased = expectation_of("multi_step_maml", "reinforce", problem, steps)[0]
    assert float((biased - wanted).norm() / wanted.norm()) > 1e-3  # the same check sees a wrong Hessian


@pytest.mark.parametrize(
    ("outer", "surrogate", "options", "to_objective", "to_product"),
    [
        ("e_maml", "ratio", {"baseline": "none"}, 0.000, 0.019),
        ("fo_maml", "ratio", {}, 0.018, 0.032),
        ("maml", "ratio", {"hessian_data": "reuse"}, 0.029, 0.044),
        ("maml", "reinforce", {"hessian_data": "reuse"}, 0.154, 0.170),
    ],
)
def test_known_errors_of_one_inner_trajectory(
    outer: str, surrogate: str, options: dict[str, Any], to_objective: float, to_product: float
) -> None:
    """Reusing D_in, as published code does; the outer gradient is exact."""
    tasks, task, params = two_states()
    alpha = 0.5 * tasks.horizon
    found = expectation_of(outer, surrogate, (tasks, task, params), 1, **options)[0]
    objective = grad(lambda w: sampled_objective(tasks, task, w, alpha))(params)["logits"]
    product = product_form(lambda w: -tasks.expected_return(w, task) / tasks.horizon, params, alpha)["logits"]
    for target, error in ((objective, to_objective), (product, to_product)):
        assert float((found - target).norm() / target.norm()) == pytest.approx(error, abs=5e-4)


@pytest.mark.parametrize(
    ("outer", "options", "deviation"),
    [("e_maml", {"baseline": "none"}, 0.5745), ("maml", {"hessian_data": "reuse"}, 0.0567)],
)
def test_known_deviations_of_one_inner_trajectory(outer: str, options: dict[str, Any], deviation: float) -> None:
    tasks, task, params = two_states()
    method = make_method(outer, 0.5 * tasks.horizon, 1, **options)
    ways = EnumeratedTaskBatch(tasks, task, TabularSoftmax(2, 2).double(), reinforce)
    found = tasks.horizon * ways.deviation(method.update(params, ways, method.inner).grads)
    assert float(found) == pytest.approx(deviation, abs=5e-5)


def test_an_enumeration_is_for_one_update() -> None:
    tasks, task, params = two_states()
    ways = EnumeratedTaskBatch(tasks, task, TabularSoftmax(2, 2).double(), reinforce)
    method = make_method("fo_maml", 0.5, 1)
    assert float(method.update(params, ways, method.inner).score[0]) != 0
    with pytest.raises(LookupError, match="more inner draws than steps"):
        method.update(params, ways, method.inner)


def test_product_form_is_the_dense_product() -> None:
    tasks, task, params = two_states()
    w = params["logits"].flatten()
    points = [w]
    for _ in range(3):
        points.append(points[-1] - 1.5 * grad(lambda v: loss_of(tasks, task, v))(points[-1]))
    wanted = grad(lambda v: loss_of(tasks, task, v))(points[-1])
    for v in points[-2::-1]:
        wanted = wanted - 1.5 * hessian(lambda u: loss_of(tasks, task, u))(v) @ wanted
    found = product_form(lambda v: -tasks.expected_return(v, task) / tasks.horizon, params, 1.5, 3)["logits"]
    torch.testing.assert_close(found.flatten(), wanted)


# The linear-quadratic regulator.


def test_without_noise_the_return_is_a_loops() -> None:
    tasks = LinearGaussian(4, state_cost=1.5, action_cost=0.3, noise=0.0, start=-2.0)
    params = {"gain": torch.tensor(-0.5), "offset": torch.tensor(0.25), "log_std": torch.tensor(-torch.inf)}
    x, total = -2.0, 0.0
    for _ in range(4):
        u = -0.5 * x + 0.25
        total -= 1.5 * x * x + 0.3 * u * u
        x = 0.9 * x + 0.7 * u
    task = {"a": torch.tensor(0.9), "b": torch.tensor(0.7)}
    assert float(tasks.expected_return(params, task)) == pytest.approx(total, rel=1e-6)


def test_the_best_gain_is_riccatis() -> None:
    """In a long episode the best constant gain tends to that of the infinite horizon, with an error in 1 / H."""
    a, b, q, r = 1.05, 0.8, 1.0, 0.5
    p = q
    for _ in range(500):
        p = q + a * a * p - (a * b * p) ** 2 / (r + b * b * p)
    riccati = -a * b * p / (r + b * b * p)
    task = {"a": torch.tensor(a).double(), "b": torch.tensor(b).double()}

    def best(horizon: int) -> float:
        tasks = LinearGaussian(horizon, q, r, noise=0.5)
        gain = torch.tensor(riccati).double()
        fixed = {"offset": torch.tensor(0.0).double(), "log_std": torch.tensor(-1.0).double()}
        for _ in range(3):  # Newton
            slope, bend = (d(lambda k: tasks.expected_return({"gain": k, **fixed}, task)) for d in (grad, hessian))
            gain = gain - slope(gain) / bend(gain)
        return float(gain)

    near, nearer = best(40) - riccati, best(80) - riccati
    assert abs(nearer) < 5e-3
    assert near / nearer == pytest.approx(2, rel=0.1)
