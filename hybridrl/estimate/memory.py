"""Memory of every phase, per GPU or per trainer rank: weights, gradients, optimizer, activations, engine.

Colocated trainer and engines share each GPU. The engine's weights stay on the GPU, since a swap writes into
them; its KV cache is freed while the trainer runs, unless the engine answers meanwhile. actor.offload decides
what the trainer keeps on the GPU while engines generate. With dedicated GPUs each side has its own phases.
Activations are those of the largest microbatch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from hybridrl.config.training import TrainParallel
from hybridrl.estimate.activations import in_flight, layer, loss_bytes, norm_outputs
from hybridrl.estimate.engine import engine_weights, engine_work, kv_bytes
from hybridrl.estimate.gathered import GRADIENT_BYTES, gathered
from hybridrl.estimate.pictures import pixel_bytes, tower_forward, tower_kept
from hybridrl.estimate.setting import Role, Setting
from hybridrl.estimate.trainer_layouts import trainer_layout
from hybridrl.estimate.weights import Share, on_stage

_MOMENT_BYTES = 8
_RECEIVER_BYTES = float(512 << 20)
"""Most bytes of the buffers of a receiver, which is on the GPU of an engine rank."""

_MASTER_BYTES = 4
"""Bytes per weight of the optimizer's fp32 master weights, which a half-precision model has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Bytes at the memory peak of a phase."""

    name: str
    weights: float
    """Weights of the trainer's models."""

    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    engine: float = 0.0
    """The engine's weights, and the engines of models that are never trained."""

    kv: float = 0.0
    staging: float = 0.0

    @property
    def peak(self) -> float:
        held = self.weights + self.gradients + self.optimizer + self.activations
        return held + self.engine + self.kv + self.staging


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """Bytes that a trainer rank keeps from step to step."""

    policy: float
    others: float
    """Weights of critic, process model, reference, teacher and reward model."""

    gradients: float
    optimizer: float
    fp8: float = 0.0
    """FP8 copies of weights, which Transformer Engine makes at the first microbatch of a pass and keeps."""

    @property
    def all(self) -> float:
        return self.policy + self.others + self.gradients + self.optimizer + self.fp8

    def after_offload(self, setting: Setting) -> "Resident":
        """What stays on the GPU while engines generate."""
        if setting.offload == "none":
            return self
        all_ = setting.offload == "all"
        return Resident(
            policy=self.policy,
            others=0.0 if all_ else self.others,
            gradients=0.0 if all_ else self.gradients,
            optimizer=0.0,
            fp8=self.fp8,
        )


def resident(setting: Setting, stage: int) -> Resident:
    """What a rank of a pipeline stage keeps on its GPU."""
    whole = state(setting, stage)
    if setting.on_host == "all":
        return Resident(policy=0.0, others=0.0, gradients=0.0, optimizer=0.0)
    return replace(whole, optimizer=0.0) if setting.on_host == "optimizer" else whole


def state(setting: Setting, stage: int) -> Resident:
    """What a rank of a pipeline stage keeps, on its GPU and in host memory."""
    whole: dict[Role, Share] = {role: _share(setting, stage, role) for role in _held(setting)}
    changed: dict[Role, Share] = {role: _trained_share(setting, stage, role) for role in setting.trained}
    weights = {role: share.all * _weight_bytes(setting, role) for role, share in whole.items()}
    adapters = changed["actor"].all if setting.lora and "actor" in changed else 0.0
    return Resident(
        policy=weights["actor"] + adapters * _weight_bytes(setting, "actor"),
        others=sum(held for role, held in weights.items() if role != "actor"),
        gradients=sum(share.all for share in changed.values()) * GRADIENT_BYTES,
        optimizer=sum(_optimizer(setting, role, share) for role, share in changed.items()),
        fp8=sum(_fp8_weights(setting, stage, role) for role in whole),
    )


def training(setting: Setting, stage: int) -> Phase:
    """The phase of forward, backward and optimizer step, with the largest microbatch."""
    held = resident(setting, stage)
    scratch = 0.0 if setting.fused or setting.shards_weights else _optimizer_scratch(setting, stage)
    here = [setting.alone(role) for role in setting.trained if not setting.is_dedicated(role)]
    kept = max(_step_bytes(own, stage) for own in here)
    kept += sum(
        _fullest(setting, role, _step_bytes) for role in setting.trained if setting.is_dedicated(role)
    )
    return _trainer_phase(setting, f"train, stage {stage}", held, max(kept, scratch))


def logprobs(setting: Setting, stage: int) -> Phase:
    """The phase of forward passes without gradients. Dedicated ranks of other roles run at the same time."""
    others: list[Role] = [role for role in (*setting.trained, *setting.frozen) if setting.is_dedicated(role)]
    at_once = _forward_bytes(setting, stage) + sum(_fullest(setting, role, _forward_bytes) for role in others)
    return _trainer_phase(setting, f"logprobs, stage {stage}", resident(setting, stage), at_once)


def _step_bytes(setting: Setting, stage: int) -> float:
    tower = in_flight(setting, 0, num_microbatches(setting)) * tower_kept(setting) if stage == 0 else 0.0
    return activations(setting, stage) + tower + gathered(setting, num_microbatches(setting))


def _forward_bytes(setting: Setting, stage: int) -> float:
    tokens, last = setting.packed_tokens / setting.train.cp, stage == setting.train.pp - 1
    loss = loss_bytes(setting, tokens * setting.batch.trained_share, backward=False) if last else 0.0
    tower = tower_forward(setting) if stage == 0 else 0.0
    return max(_layer_bytes(setting), loss, tower) + gathered(setting)


def _layer_bytes(setting: Setting) -> float:
    """Peak bytes of a forward pass through one layer."""
    tokens, moe = setting.packed_tokens / setting.train.cp, len(setting.model.layers("moe")) > 0
    return layer(setting, moe=moe).forward * tokens * setting.weight_bytes


def _fullest(setting: Setting, role: Role, size: Callable[[Setting, int], float]) -> float:
    """Bytes of a role with dedicated ranks, on its largest stage: any of its stages may be on a GPU."""
    own = setting.alone(role)
    return max(size(own, stage) for stage in {0, own.train.pp - 1})


def activations(setting: Setting, stage: int) -> float:
    """Peak bytes of activations that a stage holds for its microbatches in flight."""
    tokens = setting.packed_tokens / setting.train.cp
    full = setting.recompute == "full"
    kept = again = backward = 0.0
    for moe, count in _layers(setting, stage):
        one = layer(setting, moe=moe)
        kept += count * (one.input if full else one.kept)
        again = max(again, one.kept if full else 0.0)
        backward = max(backward, one.backward)
    width = setting.weight_bytes * tokens
    flying = in_flight(setting, stage, num_microbatches(setting))
    # Input of the first layer, from the embedding or the previous stage
    entry = layer(setting, moe=False).input
    held = flying * (kept + (0.0 if full else entry)) * width
    if setting.train.vpp > 1:  # An interleaved pipeline keeps what each chunk sent.
        held += flying * setting.train.vpp * entry * width
    if stage != setting.train.pp - 1:
        return held + (again + backward) * width
    final = entry * norm_outputs(setting) * width
    loss = loss_bytes(setting, tokens * setting.batch.trained_share, backward=True)
    return held + max(final + loss, (again + backward) * width)


def rollout(setting: Setting, stage: int) -> Phase:
    """The phase in which engines generate, with what the trainer leaves on the GPU."""
    if setting.separate:
        weights, work = engine_weights(setting), engine_work(setting)
        held = {"activations": work, "engine": weights, "kv": kv_bytes(setting)}
        return Phase(name="engines", weights=0.0, staging=_RECEIVER_BYTES, **held)
    stays = resident(setting, stage).after_offload(setting)
    weights = engine_weights(setting)
    return Phase(
        name=f"rollout, stage {stage}",
        weights=stays.policy + stays.others + stays.fp8,
        gradients=stays.gradients,
        optimizer=stays.optimizer,
        activations=engine_work(setting),
        engine=weights + setting.served,
        kv=kv_bytes(setting),
    )


def scoring(setting: Setting, stage: int) -> Phase:
    """The phase in which the reward model scores. Engines keep their cache for further requests."""
    own = setting.alone("reward model")
    answering = _beside_engines(setting, stage) if setting.separate else rollout(setting, stage)
    reloaded = (
        _share(setting, stage, "reward model").all * _weight_bytes(setting, "reward model")
        if setting.offload == "all" and setting.on_host != "all"
        else 0.0
    )
    return replace(
        answering,
        name=f"score, stage {stage}",
        weights=answering.weights + reloaded,
        activations=answering.activations + _layer_bytes(own) + gathered(own),
    )


def _beside_engines(setting: Setting, stage: int) -> Phase:
    """What a GPU of the trainer holds while engines with dedicated GPUs generate."""
    return _trainer_phase(setting, "", resident(setting, stage), 0.0)


def num_microbatches(setting: Setting) -> int:
    """Microbatches per optimizer step of one data-parallel rank, by mean lengths."""
    batch = setting.batch
    tokens = batch.trajectories_per_minibatch * batch.computed_length / (setting.train.dp or 1)
    return max(1, -(-int(tokens) // setting.microbatch_tokens))


def phases(setting: Setting) -> Iterator[Phase]:
    """All phases, for the GPUs of each pipeline stage."""
    for stage in range(setting.train.pp):
        yield training(setting, stage)
        if not setting.num_engines:
            continue
        yield logprobs(setting, stage)
        if setting.gpu is not None:
            if stage == 0 or not setting.separate:
                yield rollout(setting, stage)
            if setting.reward_model is not None:
                yield scoring(setting, stage)


def on_cpu(setting: Setting) -> Phase:
    """The memory of a machine without GPUs, which all ranks and engines share at the same time."""
    engines = setting.num_engines * setting.engine.tp
    groups = [_all_ranks(group) for group in _groups(setting)]
    parts = {part: sum(getattr(group, part) for group in groups) for part in _OF_RANKS}
    parts |= {"activations": parts["activations"] + engines * engine_work(setting)}
    return Phase(
        **parts,
        name="the machine",
        engine=engines * engine_weights(setting) + setting.served,
        kv=engines * kv_bytes(setting),
    )


def least(setting: Setting) -> Phase:
    """A lower bound of the memory peak of a GPU, or of a machine without GPUs.

    Activations, and a KV cache whose size is not set, come on top.
    """
    whole = [on_cpu(setting)] if setting.gpu is None else phases(setting)
    cache = {} if setting.kv_cache_tokens is not None else {"kv": 0.0}
    return max(
        (replace(phase, activations=0.0, staging=0.0, **cache) for phase in whole),
        key=lambda phase: phase.peak,
    )


def host_bytes(setting: Setting) -> float:
    """Host memory of a node besides its processes: state that is kept or offloaded there, and the tokens and
    pixels of a step."""
    away = state(setting, 0).all - resident(setting, 0).after_offload(setting).all
    if setting.on_host == "optimizer":
        away += state(setting, 0).policy  # the optimizer steps on a copy of the weights
    tokens = setting.batch.trajectories * setting.batch.longest * _TOKEN_BYTES
    pixels = pixel_bytes(setting, setting.batch.prompts * setting.batch.prompt_tokens)
    return away * max(1, setting.gpus_per_node) + tokens + pixels


def checkpoint_bytes(setting: Setting) -> float:
    """Bytes of a checkpoint on disk: the trained models and their optimizers."""
    per_weight = _weight_bytes(setting, "actor") + _state_bytes(setting)
    return sum(_trained_weights(setting, role) for role in setting.trained) * per_weight


def least_training(setting: Setting) -> float:
    """Bytes of the trainer's state on all GPUs together, if nothing were replicated."""
    per_weight = GRADIENT_BYTES + _state_bytes(setting)
    state = sum(_trained_weights(setting, role) for role in setting.trained) * per_weight
    return state + sum(_weights(setting, role) * _weight_bytes(setting, role) for role in _held(setting))


def _weight_bytes(setting: Setting, role: Role) -> int:
    """Bytes of a weight from step to step. Shards of a trained model and of its frozen copies are fp32; a
    model that is only evaluated is built in the dtype that it computes in."""
    copied = role in ("reference", "teacher") and not setting.is_dedicated(role)
    fp32 = setting.shards_weights and (copied or role in setting.trained)
    return 4 if fp32 else setting.weight_bytes


def _state_bytes(setting: Setting) -> int:
    """Bytes of optimizer state for a weight."""
    return _MOMENT_BYTES + (_MASTER_BYTES if setting.master_weights else 0)


_OF_RANKS = ("weights", "gradients", "optimizer", "activations")
"""The fields of a phase that trainer ranks hold."""

_TOKEN_BYTES = 4 + 4 + 1 + 4
"""Bytes per token of a trajectory: token, rollout_logp, loss mask and version."""


def _trainer_phase(setting: Setting, name: str, held: Resident, activations: float) -> Phase:
    return Phase(
        name=name,
        weights=held.policy + held.others + held.fp8,
        gradients=held.gradients,
        optimizer=held.optimizer,
        activations=activations,
        engine=(engine_weights(setting) * setting.engines_share + setting.served) if setting.gpu else 0.0,
        kv=kv_bytes(setting) if setting.engines_share and not setting.engines_sleep else 0.0,
    )


def _groups(setting: Setting) -> Iterator[Setting]:
    """One setting for the actor's ranks with all models on them, and one per group of dedicated ranks."""
    trained = tuple(role for role in setting.trained if not setting.is_dedicated(role))
    frozen = tuple(role for role in setting.frozen if not setting.is_dedicated(role))
    yield replace(setting, trained=trained, frozen=frozen)
    yield from (setting.alone(role) for role in _held(setting) if setting.is_dedicated(role))


def _all_ranks(setting: Setting) -> Phase:
    """Sum of the memory peaks of all ranks of one group."""
    fullest = training if setting.trained else logprobs
    stages = [fullest(setting, stage) for stage in range(setting.train.pp)]
    ranks = setting.train.num_ranks // setting.train.pp
    return Phase(name="ranks", **{part: ranks * sum(getattr(s, part) for s in stages) for part in _OF_RANKS})


def _held(setting: Setting) -> list[Role]:
    """Roles that have weights of their own. With LoRA the base model serves as the reference."""
    shares = setting.lora is not None and not setting.is_dedicated("reference")
    return [role for role in (*setting.trained, *setting.frozen) if not (shares and role == "reference")]


def _stage_of(setting: Setting, stage: int, role: Role) -> int:
    """The stage of a role. With a different sharding its largest stage, the first, may be on any GPU."""
    return stage if not setting.is_dedicated(role) or setting.sharding_of(role) == setting.train else 0


def _share(setting: Setting, stage: int, role: Role) -> Share:
    return on_stage(setting.layout_of(role), _stage_of(setting, stage, role))


def _trained_share(setting: Setting, stage: int, role: Role) -> Share:
    """What a role trains on a stage."""
    adapters = setting.adapters() if role == "actor" else None
    return on_stage(adapters, stage) if adapters else _share(setting, stage, role)


def _fp8_weights(setting: Setting, stage: int, role: Role) -> float:
    """Bytes of FP8 copies: one per layer weight for the forward pass and one for the backward pass.

    A frozen role on the actor's ranks has none, because its weights run in the actor's modules.
    """
    if not setting.fp8_share or role == "reward model":
        return 0.0
    passes = 2 if role in setting.trained else int(setting.is_dedicated(role))
    layers = on_stage(setting.layout_of(role), _stage_of(setting, stage, role), layers_only=True)
    return passes * setting.fp8_share * layers.all


def _optimizer(setting: Setting, role: Role, share: Share) -> float:
    """Bytes of optimizer state on one rank; it is split over the ranks that hold the same parameters."""
    sharding, per_weight = setting.sharding_of(role), _state_bytes(setting)
    if setting.shards_weights:
        return per_weight * share.all
    replicas = sharding.cp * (sharding.dp or 1)
    expert_replicas = sharding.tp * replicas / (sharding.ep * sharding.etp)
    return per_weight * (share.dense / replicas + share.expert / expert_replicas)


def _optimizer_scratch(setting: Setting, stage: int) -> float:
    """Temporaries of torch's Adam in bytes: it takes roots of all parameters at once. Fused Adam has none."""
    replicas = setting.train.cp * (setting.train.dp or 1)
    return 4 * max(_trained_share(setting, stage, role).all for role in setting.trained) / replicas


def _layers(setting: Setting, stage: int) -> list[tuple[bool, int]]:
    """(whether they have experts, number) of the layers on a stage."""
    mine = setting.layout().chunks(stage)
    plain = setting.model.layers("dense")
    dense = sum(max(0, min(c.stop, plain.stop) - c.start) for c in mine)
    total = sum(len(chunk) for chunk in mine)
    return [(moe, count) for moe, count in ((False, dense), (True, total - dense)) if count]


def _weights(setting: Setting, role: Role) -> float:
    """Number of weights of a role's whole model."""
    return on_stage(trainer_layout(setting.backend, setting.model_of(role), TrainParallel()), 0).all


def _trained_weights(setting: Setting, role: Role) -> float:
    """Number of trained weights of a role's whole model."""
    adapters = replace(setting, train=TrainParallel()).adapters() if role == "actor" else None
    return on_stage(adapters, 0).all if adapters else _weights(setting, role)
