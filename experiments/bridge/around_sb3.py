"""Reptile and FO-MAML around an unchanged algorithm of Stable-Baselines3, on 2-D navigation.

    python -m metarl.experiments.bridge.around_sb3 fo_maml

Only the algorithm's `learn` and its parameters are used. A call of `learn` is an inner step; its displacement is along
the gradient at the parameters before it, because the optimiser is SGD.

    Reptile    w <- w + beta mean_i (u_i - w)        u_i: after one call of `learn` from w on task i
    FO-MAML    w <- w + beta mean_i (v_i - u_i)      v_i: after one more call, from u_i
"""

import math
import sys
from typing import Any

import numpy as np
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.evaluation import evaluate_policy
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from metarl.agents import TaskVecEnv
from metarl.envs import Navigation

EPISODES, HORIZON = 20, 100  # episodes side by side: one call of `learn`, one gradient step
TASKS, ITERATIONS, OUTER_LR, HELD_OUT = 10, 40, 1e-2, 20
SETTINGS: Any = {"learning_rate": 0.1, "gamma": 0.9, "gae_lambda": 1.0, "vf_coef": 0.01, "max_grad_norm": math.inf}
OPTIMIZER: Any = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}, "log_std_init": -0.5}

tasks = Navigation(HORIZON)
model = A2C(
    "MlpPolicy",
    TaskVecEnv(tasks, tasks.example(), EPISODES),
    n_steps=HORIZON,
    normalize_advantage=True,
    use_rms_prop=False,
    policy_kwargs=OPTIMIZER,
    seed=0,
    **SETTINGS,
)
policy = list(model.policy.parameters())


def learn(goal: object, start: Tensor, steps: int) -> list[Tensor]:
    """The parameters before and after each of `steps` calls of `learn` on one goal."""
    vector_to_parameters(start.clone(), policy)
    model.set_env(TaskVecEnv(tasks, {"goal": goal}, EPISODES))
    path = [start]
    for _ in range(steps):
        model.learn(EPISODES * HORIZON)
        path.append(parameters_to_vector(policy).detach().clone())
    return path


def main(method: str) -> None:
    """Meta-train, then adapt to held-out goals."""
    # The mean displacement takes the place of the gradient in Adam.
    rng, w = np.random.default_rng(0), parameters_to_vector(policy).detach().clone()
    adam = torch.optim.Adam([w], lr=OUTER_LR)
    for iteration in range(ITERATIONS):
        goals = tasks.sample(TASKS, rng)["goal"]
        paths = [learn(goal, w.clone(), {"reptile": 1, "fo_maml": 2}[method]) for goal in goals]
        w.grad = torch.stack([path[-2] - path[-1] for path in paths]).mean(0)
        adam.step()
        print(f"iteration {iteration + 1} of {ITERATIONS}", end="\r", flush=True)

    scores = []  # [goals x (calls of learn + 1)]
    for goal in tasks.sample(HELD_OUT, np.random.default_rng(1000))["goal"]:
        env = TaskVecEnv(tasks, {"goal": goal}, EPISODES)
        for params in learn(goal, w.clone(), 3):
            vector_to_parameters(params.clone(), policy)
            scores.append(evaluate_policy(model, env, EPISODES, deterministic=False)[0])
    curve = np.reshape(scores, (HELD_OUT, 4)).mean(0).round(1)
    print(f"{method}: return on {HELD_OUT} held-out goals after 0, 1, 2, 3 calls of learn: {curve.tolist()}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "fo_maml")
