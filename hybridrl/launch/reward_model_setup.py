"""The reward model of a run before its ranks start: its checks, and the setup of a rank."""

from dataclasses import fields
from pathlib import Path

from hybridrl.config.rules.reward_model_rules import HEAD, reward_model_spec
from hybridrl.config.run_shape import RunShape
from hybridrl.config.schema import Config, RewardModelConfig
from hybridrl.config.training import MoEConfig, TrainParallel
from hybridrl.errors import ModelError
from hybridrl.launch.shape import trainer_layout
from hybridrl.layout.trainers import TrainerLayout, layout_of
from hybridrl.models import hub, spec
from hybridrl.models.config_json import read_config
from hybridrl.models.spec import ModelSpec
from hybridrl.models.weights import headers
from hybridrl.trainer.setup import RankSetup, refuse_untried

_ACTOR_ONLY = {"moe": MoEConfig(), "lora": None, "fp8": "none", "bf16_layers": 0}
"""Keys of the actor that do not apply to the reward model, whose sizes and experts may differ, at their
defaults."""


def refuse_unfit_reward_model(cfg: Config) -> None:
    """
    Raises:
        ModelError: the trainer has no layers for a part of the reward model, or its files lack the head
            or cannot be read.
    """
    model, own = reward_model_spec(cfg), cfg.reward_model
    if model is None or own is None:
        return
    layout_of(cfg.actor.backend).refuse_unbuildable(model, where="reward_model.path")
    folder = hub.find_folder(own.path)
    if folder is not None and not model.has_table:
        refuse_untried(cfg.actor.backend, read_config(folder), where="reward_model.path")
    if folder is None or not model.value_head:
        return
    try:
        names = headers(folder).keys()
    except ModelError as error:
        raise ModelError(error.what, where="reward_model.path", fix=error.fix) from error
    if HEAD not in names:
        raise ModelError(
            f"the files of {own.path} have no tensor {HEAD}, which its config.json promises",
            where="reward_model.path",
            fix="give the export of a `hybridrl rm` run",
        )


def reward_model_layout(cfg: Config) -> TrainerLayout | None:
    """Layout of the reward model over its ranks; None: there is no reward model, or it is not here.

    Raises:
        LayoutError: it does not divide over its ranks.
    """
    model, shape = reward_model_spec(cfg), RunShape.of(cfg)
    if model is None:
        return None
    sharding = _without_experts(shape.reward_model or shape.parallel, model)
    return trainer_layout(cfg, model, sharding)


def scoring(setup: RankSetup, reward_model: RewardModelConfig) -> RankSetup:
    """Setup of a rank of the reward model, from that of a rank at the same place of the policy's parallel
    layout."""
    model = spec.read(reward_model.path)
    changes = {
        "model": model,
        "model_folder": Path(reward_model.path),
        "parallel": _without_experts(setup.parallel, model),
        "actor": setup.actor.model_copy(update=_ACTOR_ONLY),
    }
    return RankSetup(**{field.name: getattr(setup, field.name) for field in fields(RankSetup)} | changes)


def _without_experts(sharding: TrainParallel, model: ModelSpec) -> TrainParallel:
    """The sharding, with ep and etp set to 1 if the model has no experts."""
    return sharding if model.num_experts else sharding.model_copy(update={"ep": 1, "etp": 1})
