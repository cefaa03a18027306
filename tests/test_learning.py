"""Meta-training works: held-out returns after training, against thresholds with what was measured beside them.

Slow, a minute or so each: `make test-slow`. Random initialisation is far below every threshold.
"""

import pytest

from experiments.config import TrainConfig, build_learner
from experiments.run import step_sizes
from metarl import OUTER

pytestmark = pytest.mark.slow

THRESHOLDS = {  # (environment, update): iterations, then step: threshold
    ("navigation", "maml"): (60, {1: -18.0, 3: -8.0}),  # measured -14.6 and -5.5
    ("navigation", "fo_maml"): (120, {1: -18.0, 3: -8.0}),  # measured -12.7 and -4.9
    ("point_velocity", "maml"): (40, {1: -40.0}),  # measured -31.4
}


@pytest.mark.parametrize(("env", "outer"), THRESHOLDS)
def test_adapts_to_held_out_tasks(env: str, outer: str) -> None:
    iterations, thresholds = THRESHOLDS[env, outer]
    learner = build_learner(TrainConfig(env=env, outer=outer, iterations=iterations, anneal_iterations=iterations))
    before = learner.evaluate(num_tasks=40, steps=3, step_sizes=step_sizes(learner, 3, "halved")).mean
    after = learner.learn(iterations).evaluate(num_tasks=40, steps=3, step_sizes=step_sizes(learner, 3, "halved")).mean
    print(f"{env}, {outer}: {before} before training, {after} after")
    for step, threshold in thresholds.items():
        assert before[step] < threshold < after[step]


@pytest.mark.parametrize("outer", sorted(OUTER))
def test_every_update_improves_on_random_initialisation(outer: str) -> None:
    learner = build_learner(TrainConfig(outer=outer, meta_batch_size=10, episodes=10))
    before, after = learner.evaluate(steps=1).mean, learner.learn(30).evaluate(steps=1).mean
    print(f"{outer}: {before} before training, {after} after")
    assert after[1] > before[1] + 15  # measured: 22 (fo_maml, moreau, reptile) to 31 (sign_maml)
