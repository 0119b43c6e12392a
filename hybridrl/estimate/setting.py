"""What an estimate is asked about: a model, what is trained of it, how it is cut, and on what."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from hybridrl.config.check import optimizer_steps
from hybridrl.config.schema import AlgorithmConfig, Config, EngineParallel
from hybridrl.config.training import TrainParallel
from hybridrl.errors import LayoutError
from hybridrl.estimate.gpus import GPUModel
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import ModelSpec

Role = Literal["actor", "critic", "process model", "reference", "teacher"]
Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Of one policy update."""

    prompts: int
    samples: int
    """Answers to each prompt."""

    prompt_tokens: int
    """At most."""

    response_tokens: int
    """At most."""

    mean_prompt: float
    mean_response: float
    optimizer_steps: int
    epochs: int

    @property
    def trajectories(self) -> int:
        return self.prompts * self.samples

    @property
    def longest(self) -> int:
        return self.prompt_tokens + self.response_tokens

    @property
    def mean_length(self) -> float:
        return self.mean_prompt + self.mean_response

    @property
    def trained_share(self) -> float:
        """Of the tokens of a microbatch of the longest trajectories."""
        return self.response_tokens / self.longest

    @property
    def trajectories_per_minibatch(self) -> float:
        return self.trajectories * self.epochs / self.optimizer_steps


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

    apart: tuple[tuple[Role, TrainParallel], ...]
    """Cuts of those that are not on the actor's ranks."""

    recompute: Recompute
    microbatch_tokens: int
    bf16: bool
    fused: bool
    """Layers of Transformer Engine, which keep fewer tensors than Megatron's own."""

    offload: Literal["none", "optimizer", "all"]
    engine: EngineParallel
    num_engines: int
    memory_fraction: float
    kv_cache_tokens: int | None
    running_requests: int
    batch: Batch
    scores_first: bool
    """The policy scores its own answers before the first optimizer step."""

    @classmethod
    def of(
        cls, cfg: Config, model: ModelSpec, gpu: GPUModel | None, *, mean_response: float | None = None
    ) -> "Setting":
        """
        Args:
            gpu: of the cluster that the config names; None: there are none.
            mean_response: tokens of an answer. None: half of what is allowed.
        """
        gpus_per_node = (cfg.cluster.gpus_per_node or 0) if gpu else 0
        setting = cls(
            model=model,
            gpu=gpu,
            nodes=cfg.cluster.nodes,
            gpus_per_node=gpus_per_node,
            trained=_trained(cfg.algorithm),
            frozen=_frozen(cfg.algorithm),
            train=cfg.actor.parallel,
            apart=_apart(cfg),
            recompute=cfg.actor.recompute,
            microbatch_tokens=cfg.actor.microbatch_tokens,
            bf16=(cfg.actor.precision or ("bf16" if gpu else "fp32")) == "bf16",
            fused=gpu is not None,
            offload=cfg.actor.offload,
            engine=cfg.rollout.parallel,
            num_engines=1,
            memory_fraction=cfg.rollout.memory_fraction,
            kv_cache_tokens=cfg.rollout.kv_cache_tokens,
            running_requests=cfg.rollout.max_running_requests,
            batch=_batch(cfg, mean_response),
            scores_first=optimizer_steps(cfg) > 1,
        )
        return setting.filled(dp=cfg.actor.parallel.dp, num_engines=cfg.rollout.num_engines)

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
        return 2 if self.bf16 else 4

    @property
    def engine_bytes(self) -> int:
        """Of a number of the engine's."""
        return 2 if self.gpu else 4

    @property
    def sequence_parallel(self) -> bool:
        wanted = self.train.sp
        automatic = self.gpu is not None or self.model.num_experts > 0
        return self.train.tp > 1 and (automatic if wanted is None else wanted)

    def cut_of(self, role: Role) -> TrainParallel:
        """With its dp."""
        cut = dict(self.apart).get(role, self.train)
        return cut.model_copy(update={"dp": cut.dp or max(1, self.num_gpus // cut.model_ranks)})

    def filled(self, *, dp: int | None = None, num_engines: int | None = None) -> "Setting":
        """With as many replicas as the GPUs hold, where a number is not given."""
        dp = dp or max(1, self.num_gpus // self.train.model_ranks)
        engines = num_engines or max(1, self.num_gpus // self.engine.tp)
        return replace(self, train=self.train.model_copy(update={"dp": dp}), num_engines=engines)

    def recut(self, **axes: Any) -> "Setting":
        """Another cut of the trainer over the same GPUs."""
        return replace(self, train=self.train.model_copy(update=axes)).filled(num_engines=self.num_engines)

    def layout(self) -> MegatronLayout:
        """Of the trainer.

        Raises:
            LayoutError: the model does not divide so.
        """
        return trainer_layout(self.model, self.train, fused=self.fused)

    def engine_layout(self) -> SGLangLayout:
        """
        Raises:
            LayoutError: the model does not divide so.
        """
        cut = self.engine
        return SGLangLayout(self.model, tp=cut.tp, ep=cut.ep, dp_attention=cut.dp_attention)

    def divides(self) -> bool:
        """Trainer and engines can be cut so, and have the GPUs for it."""
        try:
            self.layout()
            self.engine_layout()
        except LayoutError:
            return False
        return not self.missing_gpus()

    def missing_gpus(self) -> str:
        """Which part needs more GPUs than there are, and how many; "": none."""
        if self.gpu is None:
            return ""
        engines = self.num_engines * self.engine.tp
        if self.train.num_ranks > self.num_gpus:
            return f"actor.parallel needs {self.train.num_ranks} GPUs"
        return f"rollout.parallel needs {engines} GPUs" if engines > self.num_gpus else ""


def trainer_layout(model: ModelSpec, cut: TrainParallel, *, fused: bool = False) -> MegatronLayout:
    """
    Args:
        cut: with its dp.

    Raises:
        LayoutError: the model does not divide so.
    """
    dp, chunks = cut.dp or 1, (cut.vpp, cut.stage_layers)
    return _layout(model, cut.tp, cut.pp, dp, cut.cp, cut.ep, cut.etp, *chunks, fused)


@cache
def _layout(
    model: ModelSpec,
    tp: int,
    pp: int,
    dp: int,
    cp: int,
    ep: int,
    etp: int,
    vpp: int,
    stage_layers: tuple[int, ...],
    fused: bool,
) -> MegatronLayout:
    axes = {"tp": tp, "pp": pp, "dp": dp, "cp": cp, "ep": ep, "etp": etp, "vpp": vpp}
    return MegatronLayout(
        model, stage_layers=stage_layers, vocab_multiple=1, transformer_engine=fused, **axes
    )


def _trained(algorithm: AlgorithmConfig) -> tuple[Role, ...]:
    beside: dict[str, tuple[Role, ...]] = {"gae": ("critic",), "prime": ("process model",)}
    return ("actor", *beside.get(algorithm.estimator.name, ()))


def _frozen(algorithm: AlgorithmConfig) -> tuple[Role, ...]:
    reference = algorithm.kl.coefficient > 0 or algorithm.estimator.name == "prime"
    roles: tuple[tuple[Role, bool], ...] = (
        ("reference", reference),
        ("teacher", algorithm.teacher is not None),
    )
    return tuple(role for role, held in roles if held)


def _apart(cfg: Config) -> tuple[tuple[Role, TrainParallel], ...]:
    critic, frozen = cfg.critic.parallel, cfg.reference.parallel
    roles: tuple[tuple[Role, TrainParallel | None], ...] = (
        ("critic", critic),
        ("reference", frozen),
        ("teacher", frozen),
    )
    return tuple((role, cut) for role, cut in roles if cut is not None)


def _batch(cfg: Config, mean_response: float | None) -> Batch:
    rollout = cfg.rollout
    return Batch(
        prompts=cfg.batch.prompts_per_step,
        samples=cfg.algorithm.samples_per_prompt,
        prompt_tokens=rollout.max_prompt_tokens,
        response_tokens=rollout.max_response_tokens,
        mean_prompt=rollout.max_prompt_tokens / 2,
        mean_response=rollout.max_response_tokens / 2 if mean_response is None else mean_response,
        optimizer_steps=optimizer_steps(cfg),
        epochs=cfg.batch.epochs,
    )
