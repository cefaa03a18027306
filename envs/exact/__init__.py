"""Problems with exact answers, to compare meta-gradient estimators with.

- `gaussian_bandit`, `tabular`, `linear_gaussian`: environments whose expected return has a closed form;
- `policies`: policies with few parameters, for which these closed forms hold;
- `enumeration`: a tabular MDP without sampling: all trajectories with their probabilities, and an oracle made of them;
- `expected_update`: the product form that MAML's meta-gradient should have, and the mean of any update by Monte Carlo.
"""
