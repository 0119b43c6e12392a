"""What an estimate is asked about: a model, what is trained of it, how it is cut, and on what."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from hybridrl.algorithms.needs import Needs
from hybridrl.config.rollout import EngineParallel
from hybridrl.config.rules.reward_model_rules import reward_model_spec
from hybridrl.config.schema import Config
from hybridrl.config.sft_rm import RMConfig, SupervisedConfig
from hybridrl.config.training import ActorConfig, LoraConfig, TrainParallel
from hybridrl.errors import LayoutError
from hybridrl.estimate.batch import Batch
from hybridrl.estimate.gpus import GPUModel
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.base import Layout
from hybridrl.layout.trainers import TrainerLayout, layout_of
from hybridrl.models.spec import ModelSpec, without_vocabulary
from hybridrl.rollout.base import EngineKind, kind_of
from hybridrl.wording import counted

Role = Literal["actor", "critic", "process model", "reference", "teacher", "reward model"]
Recompute = Literal["none", "selective", "full"]

_TRAINED: tuple[Role, ...] = ("critic", "process model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    model: ModelSpec
    gpu: GPUModel | None
    """None: a machine without GPUs, in fp32 unless the config says otherwise."""

    nodes: int
    gpus_per_node: int
    trained: tuple[Role, ...]
    frozen: tuple[Role, ...]
    train: TrainParallel
    """With its dp."""

    backend: str
    """Of the trainer."""

    dedicated: tuple[tuple[Role, TrainParallel], ...]
    """Cuts of those that are not on the actor's ranks."""

    recompute: Recompute
    microbatch_tokens: int
    half: bool
    """The trainer's parameters are bf16 or fp16."""

    fused: bool
    """Layers of Transformer Engine, which keep fewer tensors than Megatron's own."""

    offload: Literal["none", "optimizer", "all"]
    engine_kind: EngineKind | None
    """None: there are no engines."""

    engine: EngineParallel
    num_engines: int
    """0: answers are given, as in training on examples."""

    memory_fraction: float
    kv_cache_tokens: int | None
    running_requests: int
    batch: Batch
    policy_passes: int
    """Forward passes of the policy over a whole batch before its first optimizer step."""

    reward_model: ModelSpec | None = None
    """None: there is none, or nothing is known of it."""

    dedicated_tokens: tuple[tuple[Role, int], ...] = ()
    """Sizes of the microbatches of those with a cut of their own."""

    lora: LoraConfig | None = None
    """What the actor trains; None: all weights."""

    fp8_share: float = 0.0
    """Of the layers, those that multiply in FP8."""

    @classmethod
    def of(
        cls, cfg: Config, model: ModelSpec, gpu: GPUModel | None, *, mean_response: float | None = None
    ) -> "Setting":
        """
        Args:
            gpu: of the cluster that the config names; None: there are none.
            mean_response: tokens of an answer. None: half of what is allowed.

        Raises:
            ConfigError, UserCodeError: an algorithm plug-in does not exist, or raises.
        """
        needs = Needs.of(cfg.algorithm)
        setting = cls(
            **_trainer(cfg, model, gpu),
            trained=("actor", *(role for role in needs.models if role in _TRAINED)),
            frozen=_frozen(cfg, needs),
            dedicated=_dedicated(cfg),
            offload=cfg.actor.offload,
            engine_kind=kind_of(cfg.rollout.engine),
            engine=cfg.rollout.parallel,
            num_engines=1,
            memory_fraction=cfg.rollout.memory_fraction,
            kv_cache_tokens=cfg.rollout.kv_cache_tokens,
            running_requests=cfg.rollout.max_running_requests,
            batch=Batch.of(cfg, mean_response),
            policy_passes=needs.policy_passes(cfg.batch.optimizer_steps),
            reward_model=reward_model_spec(cfg),
            dedicated_tokens=_dedicated_tokens(cfg),
            lora=cfg.actor.lora,
        )
        return setting.filled(dp=cfg.actor.parallel.dp, num_engines=cfg.rollout.num_engines)

    @classmethod
    def of_examples(
        cls,
        cfg: SupervisedConfig,
        model: ModelSpec,
        gpu: GPUModel | None,
        *,
        mean_length: float | None = None,
    ) -> "Setting":
        """Training on examples: without engines, one optimizer step a batch.

        Args:
            model: of the folder; a reward model that is made from it has another head.
            mean_length: tokens of one with its prompt. None: half of what is allowed.
        """
        longest, pairs = min(cfg.actor.microbatch_tokens, model.max_positions), isinstance(cfg, RMConfig)
        if pairs and not model.value_head:
            model = without_vocabulary(model, head="value")
        setting = cls(
            **_trainer(cfg, model, gpu),
            trained=("actor",),
            frozen=(),
            dedicated=(),
            offload="none",
            engine_kind=None,
            engine=EngineParallel(),
            num_engines=0,
            memory_fraction=0.0,
            kv_cache_tokens=None,
            running_requests=1,
            batch=Batch.of_examples(cfg.batch.examples_per_step, 2 if pairs else 1, longest, mean_length),
            policy_passes=0,
        )
        return setting.filled(dp=cfg.actor.parallel.dp)

    @property
    def num_gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def packed_tokens(self) -> float:
        """Of the fullest microbatch, over the ranks of a context: no more than a minibatch has."""
        batch = self.batch
        most = batch.trajectories_per_minibatch * batch.longest / (self.train.dp or 1)
        return min(self.microbatch_tokens, max(most, batch.longest))

    @property
    def weight_bytes(self) -> int:
        """Of a number of the trainer's parameters and activations."""
        return 2 if self.half else 4

    @property
    def engine_bytes(self) -> int:
        """Of a number of the engine's."""
        return 2 if self.gpu else 4

    @property
    def sequence_parallel(self) -> bool:
        wanted = self.train.sp
        automatic = self.gpu is not None or self.model.num_experts > 0
        return self.train.tp > 1 and (automatic if wanted is None else wanted)

    def model_of(self, role: Role) -> ModelSpec:
        """Only the reward model may be another one than the policy; a critic has another head."""
        if role == "critic":
            return without_vocabulary(self.model, head="value")
        return self.reward_model if role == "reward model" and self.reward_model else self.model

    def alone(self, role: Role) -> "Setting":
        """As if a role were the actor and there were no other."""
        if role == "actor":
            return replace(self, trained=("actor",), frozen=())
        return replace(
            self,
            model=self.model_of(role),
            trained=("actor",) if role in self.trained else (),
            frozen=() if role in self.trained else ("actor",),
            train=self.sharding_of(role),
            microbatch_tokens=dict(self.dedicated_tokens).get(role, self.microbatch_tokens),
            lora=None,
            fp8_share=0.0 if role == "reward model" else self.fp8_share,
        )

    def is_dedicated(self, role: Role) -> bool:
        """It has ranks of its own, on the same GPUs."""
        return role in dict(self.dedicated)

    def sharding_of(self, role: Role) -> TrainParallel:
        """With its dp."""
        sharding = dict(self.dedicated).get(role, self.train)
        if role == "reward model" and not self.model_of(role).num_experts:
            sharding = sharding.model_copy(update={"ep": 1, "etp": 1})
        return sharding.model_copy(
            update={"dp": sharding.dp or max(1, self.num_gpus // sharding.model_ranks)}
        )

    def filled(self, *, dp: int | None = None, num_engines: int | None = None) -> "Setting":
        """With as many replicas as the GPUs hold, where a number is not given."""
        dp = dp or max(1, self.num_gpus // self.train.model_ranks)
        engines = (num_engines or max(1, self.num_gpus // self.engine.tp)) if self.num_engines else 0
        return replace(self, train=self.train.model_copy(update={"dp": dp}), num_engines=engines)

    def with_sharding(self, **axes: Any) -> "Setting":
        """Another cut of the trainer over the same GPUs."""
        return replace(self, train=self.train.model_copy(update=axes)).filled(num_engines=self.num_engines)

    def layout(self) -> TrainerLayout:
        """Of the trainer.

        Raises:
            LayoutError: the model does not divide so.
        """
        return trainer_layout(self.backend, self.model, self.train, fused=self.fused)

    def adapters(self) -> AdapterLayout | None:
        """
        Raises:
            LayoutError: as `layout`, or the model lacks a linear layer that is to have one.
        """
        if (lora := self.lora) is None:
            return None
        return AdapterLayout.on(self.layout(), rank=lora.rank, alpha=lora.alpha, targets=lora.targets)

    def layout_of(self, role: Role) -> TrainerLayout:
        """
        Raises:
            LayoutError: its model does not divide so.
        """
        return trainer_layout(self.backend, self.model_of(role), self.sharding_of(role), fused=self.fused)

    def engine_layout(self) -> Layout:
        """
        Raises:
            LayoutError: the model does not divide so.
        """
        assert self.engine_kind is not None, "there are engines"
        return self.engine_kind.layout(self.model, self.engine)

    def divides(self) -> bool:
        """Trainer and engines can be cut so, and have the GPUs for it."""
        try:
            self.layout()
            if self.num_engines:
                self.engine_layout()
            if self.reward_model is not None:
                self.layout_of("reward model")
        except LayoutError:
            return False
        return not self.missing_gpus()

    def missing_gpus(self) -> str:
        """Which part needs more GPUs than there are, and how many; "": none."""
        if self.gpu is None:
            return ""
        engines = self.num_engines * self.engine.tp
        if self.train.num_ranks > self.num_gpus:
            return f"actor.parallel needs {counted(self.train.num_ranks, 'GPU')}"
        return f"rollout.parallel needs {counted(engines, 'GPU')}" if engines > self.num_gpus else ""


def trainer_layout(
    backend: str, model: ModelSpec, parallel: TrainParallel, *, fused: bool = False
) -> TrainerLayout:
    """
    Args:
        backend: actor.backend.
        parallel: with its dp.

    Raises:
        LayoutError: the model does not divide so.
    """
    return _layout(backend, model, fused, tuple(parallel.sizes.items()))


@cache
def _layout(backend: str, model: ModelSpec, fused: bool, sizes: tuple[tuple[str, Any], ...]) -> TrainerLayout:
    return layout_of(backend).of(model, on_gpu=fused, **dict(sizes))


def _frozen(cfg: Config, needs: Needs) -> tuple[Role, ...]:
    asked: tuple[Role, ...] = tuple(role for role in needs.models if role not in _TRAINED)
    return asked if reward_model_spec(cfg) is None else (*asked, "reward model")


def _dedicated(cfg: Config) -> tuple[tuple[Role, TrainParallel], ...]:
    critic, frozen = cfg.critic.parallel, cfg.reference.parallel
    reward_model = cfg.reward_model.parallel if cfg.reward_model else None
    roles: tuple[tuple[Role, TrainParallel | None], ...] = (
        ("critic", critic),
        ("reference", frozen),
        ("teacher", frozen),
        ("reward model", reward_model),
    )
    return tuple((role, sharding) for role, sharding in roles if sharding is not None)


def _dedicated_tokens(cfg: Config) -> tuple[tuple[Role, int], ...]:
    sizes: tuple[tuple[Role, int | None], ...] = (
        ("critic", cfg.critic.microbatch_tokens),
        ("reference", cfg.reference.microbatch_tokens),
        ("teacher", cfg.reference.microbatch_tokens),
        ("reward model", cfg.reward_model.microbatch_tokens if cfg.reward_model else None),
    )
    return tuple((role, size) for role, size in sizes if size is not None)


def _trainer(cfg: Config | SupervisedConfig, model: ModelSpec, gpu: GPUModel | None) -> dict[str, Any]:
    """Fields that follow from the actor and the cluster."""
    return {
        "model": model,
        "gpu": gpu,
        "nodes": cfg.cluster.nodes,
        "gpus_per_node": (cfg.cluster.gpus_per_node or 0) if gpu else 0,
        "train": cfg.actor.parallel,
        "backend": cfg.actor.backend,
        "recompute": cfg.actor.recompute,
        "microbatch_tokens": cfg.actor.microbatch_tokens,
        "half": (cfg.actor.precision or ("bf16" if gpu else "fp32")) != "fp32",
        "fused": gpu is not None,
        "fp8_share": _fp8_share(cfg.actor, model),
    }


def _fp8_share(actor: ActorConfig, model: ModelSpec) -> float:
    return 0.0 if actor.fp8 == "none" else 1 - 2 * actor.bf16_layers / model.num_layers
