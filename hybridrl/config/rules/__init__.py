"""Everything that a config is refused for: keys against each other, against the model and the machine.

The rules are one list, so that the user sees all mistakes at once. Nothing here imports torch.
"""

from collections.abc import Sequence
from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import Rule, RuleContext
from hybridrl.config.rules.data import (
    chat_template_is_there,
    data_exists,
    model_exists,
    run_name_is_one_folder,
)
from hybridrl.config.rules.fp8 import fp8_fits_the_run
from hybridrl.config.rules.gpus import (
    environments_have_nodes,
    gpus_are_there,
    machines_are_started,
    nodes_have_ranks,
    roles_share_the_gpus,
)
from hybridrl.config.rules.lora import (
    adapters_fit_the_model,
    examples_train_all_weights,
    gpus_train_no_adapters,
)
from hybridrl.config.rules.model import (
    a_trajectory_fits_a_microbatch,
    a_trajectory_fits_the_cache,
    a_trajectory_fits_the_model,
    precision_suits_the_model,
    teacher_is_of_the_policys_kind,
)
from hybridrl.config.rules.parallel import (
    actor_parallel_divides_the_model,
    engine_parallel_divides_the_model,
    other_trainers_divide_the_model,
)
from hybridrl.config.rules.pictures import pictures_fit_the_model, pictures_fit_the_run
from hybridrl.config.rules.reward_model_rules import reward_model_fits_the_run
from hybridrl.config.rules.roles import roles_fit_the_run
from hybridrl.config.rules.rollout_precision import rollout_precision_fits_the_run
from hybridrl.config.rules.separate import (
    engines_have_their_own_devices,
    nodes_that_come_late_have_engines_only,
)
from hybridrl.config.rules.shared_prompts import shared_prompts_fit_the_run
from hybridrl.config.rules.sizes import numbers_are_of_this_world
from hybridrl.config.rules.steps import (
    greedy_answers_once,
    lag_is_shorter_than_the_run,
    minibatches_divide_the_step,
    ranks_have_examples,
    ranks_have_work,
    schedule_fits_the_run,
)
from hybridrl.config.rules.streaming import groups_can_be_trained_in_time
from hybridrl.config.rules.swaps import a_kept_cache_stays_in_memory, swaps_keep_what_is_replayed
from hybridrl.config.rules.turns import (
    heldout_answers_fit_the_engine,
    one_plays_the_episodes,
    turns_fit_the_context,
)
from hybridrl.config.schema import Config
from hybridrl.errors import HybridRLError


def check(loaded: LoadedConfig[Any], context: RuleContext) -> list[HybridRLError]:
    """Everything that the rules for a config of its kind find wrong, in their order."""
    rules = RULES if isinstance(loaded.config, Config) else EXAMPLE_RULES
    return [error for rule in rules for error in rule(loaded, context)]


RULES: Sequence[Rule] = (
    run_name_is_one_folder,
    numbers_are_of_this_world,
    model_exists,
    data_exists,
    chat_template_is_there,
    teacher_is_of_the_policys_kind,
    reward_model_fits_the_run,
    minibatches_divide_the_step,
    ranks_have_work,
    actor_parallel_divides_the_model,
    other_trainers_divide_the_model,
    precision_suits_the_model,
    pictures_fit_the_model,
    pictures_fit_the_run,
    fp8_fits_the_run,
    shared_prompts_fit_the_run,
    adapters_fit_the_model,
    gpus_train_no_adapters,
    engine_parallel_divides_the_model,
    rollout_precision_fits_the_run,
    one_plays_the_episodes,
    turns_fit_the_context,
    heldout_answers_fit_the_engine,
    a_trajectory_fits_a_microbatch,
    roles_fit_the_run,
    a_trajectory_fits_the_model,
    a_trajectory_fits_the_cache,
    lag_is_shorter_than_the_run,
    swaps_keep_what_is_replayed,
    a_kept_cache_stays_in_memory,
    groups_can_be_trained_in_time,
    schedule_fits_the_run,
    greedy_answers_once,
    machines_are_started,
    environments_have_nodes,
    gpus_are_there,
    nodes_have_ranks,
    roles_share_the_gpus,
    engines_have_their_own_devices,
    nodes_that_come_late_have_engines_only,
)


EXAMPLE_RULES: Sequence[Rule] = (
    examples_train_all_weights,
    run_name_is_one_folder,
    numbers_are_of_this_world,
    model_exists,
    data_exists,
    chat_template_is_there,
    ranks_have_examples,
    actor_parallel_divides_the_model,
    precision_suits_the_model,
    pictures_fit_the_model,
    fp8_fits_the_run,
    shared_prompts_fit_the_run,
    schedule_fits_the_run,
    machines_are_started,
    gpus_are_there,
)
"""Rules for training on examples: its own, and those of reinforcement learning that hold for it too."""
