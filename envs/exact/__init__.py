"""Problems with exact answers, to hold meta-gradient estimators against.

- `gaussian_bandit`, `tabular`, `linear_gaussian`: environments whose expected return has a closed form;
- `policies`: the policies with few parameters under which it has;
- `enumeration`: a tabular MDP without sampling: all trajectories with their probabilities, and an oracle made of them;
- `expected_update`: the product form that MAML's meta-gradient should have, and the mean of any update by Monte Carlo.
"""
