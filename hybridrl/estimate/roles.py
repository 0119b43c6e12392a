"""The models of a run by their roles, which of them are trained, and which have dedicated ranks."""

from typing import Literal

from hybridrl.algorithms.needs import Needs
from hybridrl.config.rules.reward_model_rules import reward_model_spec
from hybridrl.config.schema import Config
from hybridrl.config.training import TrainParallel

Role = Literal["actor", "critic", "process model", "reference", "teacher", "reward model"]

TRAINED: tuple[Role, ...] = ("critic", "process model")
"""Roles that are trained beside the actor."""


def frozen_roles(cfg: Config, needs: Needs) -> tuple[Role, ...]:
    asked: tuple[Role, ...] = tuple(role for role in needs.models if role not in TRAINED)
    return asked if reward_model_spec(cfg) is None else (*asked, "reward model")


def dedicated_shardings(cfg: Config) -> tuple[tuple[Role, TrainParallel], ...]:
    critic, frozen = cfg.critic.parallel, cfg.reference.parallel
    reward_model = cfg.reward_model.parallel if cfg.reward_model else None
    roles: tuple[tuple[Role, TrainParallel | None], ...] = (
        ("critic", critic),
        ("reference", frozen),
        ("teacher", frozen),
        ("reward model", reward_model),
    )
    return tuple((role, sharding) for role, sharding in roles if sharding is not None)


def dedicated_tokens(cfg: Config) -> tuple[tuple[Role, int], ...]:
    sizes: tuple[tuple[Role, int | None], ...] = (
        ("critic", cfg.critic.microbatch_tokens),
        ("reference", cfg.reference.microbatch_tokens),
        ("teacher", cfg.reference.microbatch_tokens),
        ("reward model", cfg.reward_model.microbatch_tokens if cfg.reward_model else None),
    )
    return tuple((role, size) for role, size in sizes if size is not None)
