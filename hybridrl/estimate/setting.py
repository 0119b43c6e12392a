"""The input of an estimate: the model, what is trained, the parallel layouts, and the hardware."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from hybridrl.algorithms.needs import Needs
from hybridrl.config.rollout import EngineParallel
from hybridrl.config.rules.reward_model_rules import reward_model_spec
from hybridrl.config.run_shape import engines_sleep
from hybridrl.config.schema import Config
from hybridrl.config.sft_rm import RMConfig, SupervisedConfig
from hybridrl.config.training import ActorConfig, LoraConfig, TrainParallel
from hybridrl.errors import LayoutError
from hybridrl.estimate.batch import Batch
from hybridrl.estimate.gpus import GPUModel
from hybridrl.estimate.roles import TRAINED, Role, dedicated_shardings, dedicated_tokens, frozen_roles
from hybridrl.estimate.served import served_bytes
from hybridrl.estimate.trainer_layouts import trainer_layout
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.base import Layout
from hybridrl.layout.fsdp import exchange_of
from hybridrl.layout.trainers import TrainerLayout, layout_of
from hybridrl.models.spec import ModelSpec, without_vocabulary
from hybridrl.reshard.divided import refuse_divided_blocks
from hybridrl.rollout.base import EngineKind, kind_of, layout_in
from hybridrl.wording import counted

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    model: ModelSpec
    gpu: GPUModel | None
    """None: the machine has no GPUs. Precision is then fp32 unless the config sets another."""

    nodes: int
    gpus_per_node: int
    trained: tuple[Role, ...]
    frozen: tuple[Role, ...]
    train: TrainParallel
    """Parallel layout of the actor; dp is set."""

    backend: str
    """Trainer backend."""

    actor: ActorConfig
    """The section of the config: a backend may lack one of its options."""

    dedicated: tuple[tuple[Role, TrainParallel], ...]
    """Parallel layouts of the roles with dedicated ranks."""

    recompute: Recompute
    microbatch_tokens: int
    half: bool
    """Whether the trainer's parameters are bf16 or fp16."""

    fused: bool
    """Whether layers are Transformer Engine's, which keep fewer tensors than Megatron's own."""

    offload: Literal["none", "optimizer", "all"]
    engine_kind: EngineKind | None
    """None: there are no engines."""

    engine: EngineParallel
    num_engines: int
    """Number of engines; 0 for SFT and reward models, whose responses are given."""

    memory_fraction: float
    kv_cache_tokens: int | None
    running_requests: int
    batch: Batch
    policy_passes: int
    """Forward passes of the policy over a whole batch before its first optimizer step."""

    reward_model: ModelSpec | None = None
    """None: there is no reward model, or its sizes are unknown."""

    dedicated_tokens: tuple[tuple[Role, int], ...] = ()
    """Microbatch sizes of the roles with dedicated ranks."""

    lora: LoraConfig | None = None
    """The adapters that the actor trains; None: it trains all weights."""

    fp8_share: float = 0.0
    """Share of the layers that multiply in FP8."""

    engines_sleep: bool = True
    """Whether engines free their key-value cache while the trainer works."""

    precision: str | None = None
    """rollout.precision: "fp8" if engines have block-FP8 weights."""

    fp8_cache: bool = False
    """Whether a number of the engines' key-value cache is a byte."""

    swaps_in_flight: bool = False
    """Whether a swap drops the key-value cache of running requests, which compute it again."""

    served: float = 0.0
    """Bytes of engines whose models are never trained: on the fullest GPU, or on the machine without GPUs."""

    separate: bool = False
    """Whether engines have dedicated devices: as many GPUs as they fill, and the trainer the others."""

    max_lag: int = 0
    """Policy updates by which an answer may be older than what it is trained into. Above 0, engines with
    dedicated devices generate while the trainer works."""

    @classmethod
    def of(
        cls, cfg: Config, model: ModelSpec, gpu: GPUModel | None, *, mean_response: float | None = None
    ) -> "Setting":
        """The setting of an RL config.

        Args:
            gpu: GPU model of the cluster; None: it has no GPUs.
            mean_response: mean response length in tokens; None: half of the longest.

        Raises:
            ConfigError, UserCodeError: an algorithm plug-in does not exist, or raises.
        """
        needs = Needs.of(cfg.algorithm)
        setting = cls(
            **_trainer(cfg, model, gpu),
            trained=("actor", *(role for role in needs.models if role in TRAINED)),
            frozen=frozen_roles(cfg, needs),
            dedicated=dedicated_shardings(cfg),
            offload=cfg.actor.offload,
            engine_kind=kind_of(cfg.rollout.engine),
            engine=cfg.rollout.parallel,
            num_engines=1,
            memory_fraction=cfg.rollout.memory_fraction,
            kv_cache_tokens=cfg.rollout.kv_cache_tokens,
            running_requests=cfg.rollout.max_running_requests,
            batch=Batch.of(cfg, mean_response),
            policy_passes=needs.policy_passes(
                cfg.batch.optimizer_steps,
                replays_experts=cfg.actor.moe.router_replay == "old_logp",
            ),
            reward_model=reward_model_spec(cfg),
            dedicated_tokens=dedicated_tokens(cfg),
            lora=cfg.actor.lora,
            engines_sleep=engines_sleep(cfg),
            precision=cfg.rollout.precision,
            fp8_cache=cfg.rollout.kv_cache_precision == "fp8",
            swaps_in_flight=cfg.rollout.swap == "in_flight",
            served=served_bytes(cfg, gpu),
            separate=cfg.cluster.placement == "separate",
            max_lag=cfg.batch.max_lag,
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
        """The setting of an SFT or reward-model config: no engines, and one optimizer step per batch.

        Args:
            model: spec of the model folder; a reward model gets a value head.
            mean_length: mean length of an example with its prompt in tokens; None: half of the longest.
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
    def engine_gpus(self) -> int:
        """GPUs of the engines."""
        return self.num_engines * self.engine.tp

    @property
    def trainer_gpus(self) -> int:
        """GPUs that trainer ranks can use."""
        return max(0, self.num_gpus - self.engine_gpus * self.separate)

    @property
    def engines_share(self) -> bool:
        """Whether a GPU has trainer ranks and engines."""
        return self.gpu is not None and self.num_engines > 0 and not self.separate

    @property
    def packed_tokens(self) -> float:
        """Tokens of the largest microbatch over all context-parallel ranks, at most those of a minibatch."""
        batch = self.batch
        most = batch.trajectories_per_minibatch * batch.longest / (self.train.dp or 1)
        return min(self.microbatch_tokens, max(most, batch.longest))

    @property
    def weight_bytes(self) -> int:
        """Bytes per element of the trainer's parameters and activations."""
        return 2 if self.half else 4

    @property
    def engine_bytes(self) -> int:
        """Bytes per element of the engine's parameters and cache that are not FP8."""
        return 2 if self.gpu else 4

    @property
    def num_shards(self) -> int:
        """Ranks that share one copy of a tensor-parallel part of the weights, if `shards_weights`."""
        return self.train.shard or self.train.cp * (self.train.dp or 1)

    @property
    def exchanges_heads(self) -> bool:
        """Context-parallel ranks exchange tokens for heads and do not gather keys and values."""
        if self.backend != "fsdp" or self.train.cp == 1:
            return False
        return exchange_of(self.model, self.train) == "heads"

    @property
    def sequence_parallel(self) -> bool:
        if self.shards_weights:
            return False
        wanted = self.train.sp
        automatic = self.gpu is not None or self.model.num_experts > 0
        return self.train.tp > 1 and (automatic if wanted is None else wanted)

    def model_of(self, role: Role) -> ModelSpec:
        """Model of a role. The reward model may differ from the policy, and a critic has a value head."""
        if role == "critic":
            return without_vocabulary(self.model, head="value")
        return self.reward_model if role == "reward model" and self.reward_model else self.model

    def alone(self, role: Role) -> "Setting":
        """The setting of one role's ranks alone, with that role in place of the actor."""
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
        """Whether a role has dedicated ranks on the same GPUs."""
        return role in dict(self.dedicated)

    def sharding_of(self, role: Role) -> TrainParallel:
        """Parallel layout of a role; dp is set."""
        sharding = dict(self.dedicated).get(role, self.train)
        if role == "reward model" and not self.model_of(role).num_experts:
            sharding = sharding.model_copy(update={"ep": 1, "etp": 1})
        return sharding.model_copy(
            update={"dp": sharding.dp or max(1, self.trainer_gpus // sharding.model_ranks)}
        )

    def filled(self, *, dp: int | None = None, num_engines: int | None = None) -> "Setting":
        """This setting with as many trainer replicas and engines as the GPUs hold, or the given numbers.
        Engines with dedicated GPUs keep their number."""
        fill = self.num_engines if self.separate else self.num_gpus // self.engine.tp
        engines = (num_engines or max(1, fill)) if self.num_engines else 0
        filled = replace(self, num_engines=engines)
        dp = dp or max(1, filled.trainer_gpus // self.train.model_ranks)
        return replace(filled, train=self.train.model_copy(update={"dp": dp}))

    def with_sharding(self, **axes: Any) -> "Setting":
        """This setting with other parallel sizes of the trainer on the same GPUs."""
        return replace(self, train=self.train.model_copy(update=axes)).filled(num_engines=self.num_engines)

    @property
    def is_outside(self) -> bool:
        """The backend is code outside the project."""
        return ":" in self.backend

    @property
    def shards_weights(self) -> bool:
        """Data-parallel ranks hold different parts of a model, and gather it layer by layer to compute."""
        return layout_of(self.backend).shards_weights

    @property
    def gathers_once(self) -> bool:
        """Shards are gathered once for all microbatches of an optimizer step, or of an evaluation."""
        return self.shards_weights and self.actor.gather == "once"

    @property
    def on_host(self) -> Literal["none", "optimizer", "all"]:
        """What the trainer keeps in host memory while it trains too; without GPUs, all is there anyway."""
        return self.actor.keep_on_host if self.shards_weights and self.gpu is not None else "none"

    @property
    def master_weights(self) -> bool:
        """The optimizer keeps fp32 copies of the trained weights, which are not fp32 themselves."""
        return self.half and not self.shards_weights

    def layout(self) -> TrainerLayout:
        """Layout of the trainer.

        Raises:
            LayoutError: the model does not divide over the ranks.
        """
        return trainer_layout(self.backend, self.model, self.train, fused=self.fused)

    def adapters(self) -> AdapterLayout | None:
        """
        Raises:
            LayoutError: as `layout`, or the model lacks a linear layer that should have an adapter.
        """
        if (lora := self.lora) is None:
            return None
        return AdapterLayout.on(self.layout(), rank=lora.rank, alpha=lora.alpha, targets=lora.targets)

    def layout_of(self, role: Role) -> TrainerLayout:
        """
        Raises:
            LayoutError: the role's model does not divide over its ranks.
        """
        return trainer_layout(self.backend, self.model_of(role), self.sharding_of(role), fused=self.fused)

    def engine_layout(self) -> Layout:
        """
        Raises:
            LayoutError: the model does not divide over the ranks, or not into FP8 blocks.
        """
        assert self.engine_kind is not None, "there are engines"
        return layout_in(self.engine_kind, self.model, self.engine, self.precision)

    def divides(self) -> bool:
        """Whether the models divide over trainer and engine ranks, and there are enough GPUs."""
        try:
            trainer = self.layout()
            if self.num_engines:
                refuse_divided_blocks(trainer, self.engine_layout())
            if self.reward_model is not None:
                self.layout_of("reward model")
        except LayoutError:
            return False
        return not self.missing_gpus()

    def missing_gpus(self) -> str:
        """Which part needs more GPUs than there are, and how many; "" if there are enough."""
        if self.gpu is None:
            return ""
        engines, ranks = self.engine_gpus, self.train.num_ranks
        if self.trainer_gpus < ranks:
            beside = f" beside {engines} of the engines" if self.separate else ""
            return f"actor.parallel needs {counted(ranks, 'GPU')}{beside}"
        return f"rollout.parallel needs {counted(engines, 'GPU')}" if engines > self.num_gpus else ""


def _trainer(cfg: Config | SupervisedConfig, model: ModelSpec, gpu: GPUModel | None) -> dict[str, Any]:
    """The fields of a setting that follow from the actor and the cluster."""
    return {
        "model": model,
        "gpu": gpu,
        "nodes": cfg.cluster.nodes,
        "gpus_per_node": (cfg.cluster.gpus_per_node or 0) if gpu else 0,
        "train": cfg.actor.parallel,
        "backend": cfg.actor.backend,
        "actor": cfg.actor,
        "recompute": cfg.actor.recompute,
        "microbatch_tokens": cfg.actor.microbatch_tokens,
        "half": (cfg.actor.precision or ("bf16" if gpu else "fp32")) != "fp32",
        "fused": gpu is not None,
        "fp8_share": 0.0 if cfg.actor.fp8 == "none" else 1 - 2 * cfg.actor.bf16_layers / model.num_layers,
    }
