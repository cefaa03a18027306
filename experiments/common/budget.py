"""How many iterations of an update a budget pays for."""

from collections.abc import Callable, Mapping

from metarl import MetaLearner


def count_iterations(learner: MetaLearner, budget: int, cost: Callable[[Mapping[str, int]], int]) -> int:
    """The iterations that cost at most `budget`, of a learner that has not begun; small ones are enough.

    It trains one iteration, or as many as are annealed and one more: all later ones cost the same.

    Args:
        learner: see above.
        budget: in the unit of `cost`.
        cost: from the learner's counts, such as `gradients` and `samples`, to what they cost.

    Returns:
        Zero if the budget does not pay for the first iteration.
    """
    annealing = learner.method.annealing
    annealed, before = 0 if annealing is None else annealing.iterations, 0
    while (now := cost(learner.learn(1).counts)) <= budget and learner.iterations <= annealed:
        before = now
    return learner.iterations - 1 if now > budget else learner.iterations + (budget - now) // (now - before)
