"""RL^2 (Duan et al., 2016; Wang et al., 2016): a recurrent policy that learns to adapt within a trial of K episodes.

Its hidden state is kept between the episodes of a trial, and is zero at the start of every trial. PPO trains it on the
return of whole trials. Adaptation needs no gradients: it happens in the hidden state.

| file | what it has |
| --- | --- |
| `policy` | the recurrent policy, in plain products |
| `trials` | the source of trials: rollouts, advantages, the loss of PPO |
| `ppo` | the outer step: epochs of minibatches of whole trials |
"""

from metarl.agents.rl2.policy import RecurrentPolicy
from metarl.agents.rl2.ppo import RecurrentPPO
from metarl.agents.rl2.trials import RecurrentTrials, TrialBatch, Trials

__all__ = ["RecurrentPPO", "RecurrentPolicy", "RecurrentTrials", "TrialBatch", "Trials"]
