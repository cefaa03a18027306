"""The tables of all checks: in order, each with those that must have passed for it to make sense."""

from metarl.checker.agreement import make_vec_behaves_as_make, make_vec_is_as_random_as_make
from metarl.checker.declarations import (
    action_space_is_supported,
    horizon_is_a_positive_integer,
    methods_take_the_documented_arguments,
    observation_space_is_supported,
    space_is_a_dict,
)
from metarl.checker.pickling import survives_pickling
from metarl.checker.probe import Check
from metarl.checker.samples import (
    sample_draws_different_tasks,
    sample_has_the_form_of_the_space,
    sample_is_inside_the_space,
    sample_uses_only_the_generator_it_is_given,
)
from metarl.checker.single import (
    environments_share_nothing,
    make_ends_episodes_at_the_horizon,
    make_gives_an_environment,
    make_has_the_spaces_of_the_distribution,
    make_leaves_the_task_alone,
    make_repeats_itself_with_the_seed,
    make_returns_what_it_promises,
    tasks_make_a_difference,
)
from metarl.checker.vectorized import (
    make_vec_gives_a_vector_environment,
    make_vec_has_the_spaces_of_the_distribution,
    make_vec_leaves_ended_environments_alone,
    make_vec_leaves_the_task_alone,
    make_vec_repeats_itself_with_the_seed,
    make_vec_resets_where_the_mask_says,
    make_vec_returns_fresh_arrays,
    make_vec_returns_what_it_promises,
    make_vec_truncates_at_the_horizon,
    vector_environments_share_nothing,
)

SELF: tuple[Check, ...] = (
    space_is_a_dict,
    observation_space_is_supported,
    action_space_is_supported,
    horizon_is_a_positive_integer,
    methods_take_the_documented_arguments,
)
DRAWN: tuple[Check, ...] = (sample_has_the_form_of_the_space,)
MADE: tuple[Check, ...] = (make_gives_an_environment,)
VECTOR: tuple[Check, ...] = (make_vec_gives_a_vector_environment,)

CHECKS: dict[Check, tuple[Check, ...]] = {
    **dict.fromkeys(SELF, ()),
    sample_has_the_form_of_the_space: (space_is_a_dict, methods_take_the_documented_arguments),
    sample_is_inside_the_space: DRAWN,
    sample_uses_only_the_generator_it_is_given: DRAWN,
    sample_draws_different_tasks: DRAWN,
    make_gives_an_environment: SELF + DRAWN,
    make_has_the_spaces_of_the_distribution: MADE,
    make_returns_what_it_promises: MADE,
    make_ends_episodes_at_the_horizon: MADE,
    make_repeats_itself_with_the_seed: MADE,
    environments_share_nothing: (*MADE, make_repeats_itself_with_the_seed),
    make_leaves_the_task_alone: (*MADE, make_repeats_itself_with_the_seed),
    tasks_make_a_difference: (*MADE, make_repeats_itself_with_the_seed),
    make_vec_gives_a_vector_environment: SELF + DRAWN,
    make_vec_has_the_spaces_of_the_distribution: VECTOR,
    make_vec_returns_what_it_promises: VECTOR,
    make_vec_truncates_at_the_horizon: VECTOR,
    make_vec_leaves_ended_environments_alone: (*VECTOR, make_vec_truncates_at_the_horizon),
    make_vec_repeats_itself_with_the_seed: VECTOR,
    make_vec_returns_fresh_arrays: VECTOR,
    make_vec_resets_where_the_mask_says: (*MADE, *VECTOR, make_vec_leaves_ended_environments_alone),
    vector_environments_share_nothing: (*VECTOR, make_vec_repeats_itself_with_the_seed),
    make_vec_leaves_the_task_alone: (*VECTOR, make_vec_repeats_itself_with_the_seed),
    make_vec_is_as_random_as_make: (*MADE, *VECTOR, make_repeats_itself_with_the_seed),
    make_vec_behaves_as_make: (*MADE, *VECTOR, make_repeats_itself_with_the_seed, make_vec_is_as_random_as_make),
}
"""Every check, with those that must have passed for it to make sense."""

WORKER_CHECKS: dict[Check, tuple[Check, ...]] = {survives_pickling: (*MADE, make_repeats_itself_with_the_seed)}
