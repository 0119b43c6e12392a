"""Memory of every phase, of a GPU or of one trainer rank: weights, gradients, optimizer, activations, engine.

Trainer and engines share each GPU and take turns. The engine's weights stay where they are, since a swap
writes into them; its key-value cache comes and goes. What the trainer leaves on the GPU while engines
generate is actor.offload's to say. Activations are those of the fullest microbatch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hybridrl.config.training import TrainParallel
from hybridrl.estimate.activations import in_flight, layer, loss_bytes
from hybridrl.estimate.setting import Role, Setting, trainer_layout
from hybridrl.estimate.weights import Share, on_engine, on_stage

GRADIENT_BYTES = 4
"""Accumulated in fp32 whatever the weights are."""

_MOMENT_BYTES = 8
_MASTER_BYTES = 4
"""The fp32 weights of a bf16 model, in the optimizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Bytes at the fullest moment of a phase."""

    name: str
    weights: float
    """Of the trainer's models."""

    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    engine: float = 0.0
    """Its weights."""

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
    """Weights of critic, process model, reference, teacher."""

    gradients: float
    optimizer: float

    @property
    def all(self) -> float:
        return self.policy + self.others + self.gradients + self.optimizer

    def after_offload(self, setting: Setting) -> "Resident":
        """What of it stays while engines generate."""
        if setting.offload == "none":
            return self
        all_ = setting.offload == "all"
        return Resident(
            policy=self.policy,
            others=0.0 if all_ else self.others,
            gradients=0.0 if all_ else self.gradients,
            optimizer=0.0,
        )


def resident(setting: Setting, stage: int) -> Resident:
    """Of a rank of a pipeline stage."""
    shares = {role: _share(setting, stage, role) for role in (*setting.trained, *setting.frozen)}
    width = setting.weight_bytes
    return Resident(
        policy=shares["actor"].all * width,
        others=sum(share.all for role, share in shares.items() if role != "actor") * width,
        gradients=sum(shares[role].all for role in setting.trained) * GRADIENT_BYTES,
        optimizer=sum(_optimizer(setting, role, shares[role]) for role in setting.trained),
    )


def training(setting: Setting, stage: int) -> Phase:
    """Forward and backward of the fullest microbatch, and the optimizer step."""
    held = resident(setting, stage)
    scratch = 0.0 if setting.fused else _optimizer_scratch(setting, stage)
    kept = activations(setting, stage)
    return _trainer_phase(setting, f"train, stage {stage}", held, max(kept, scratch))


def logprobs(setting: Setting, stage: int) -> Phase:
    """A forward pass without gradients."""
    model, tokens = setting.model, setting.packed_tokens / setting.train.cp
    moe = len(model.layers("moe")) > 0
    at_once = layer(setting, moe=moe).forward * tokens * setting.weight_bytes
    last = stage == setting.train.pp - 1
    loss = loss_bytes(setting, tokens * setting.batch.trained_share, backward=False) if last else 0.0
    return _trainer_phase(setting, f"logprobs, stage {stage}", resident(setting, stage), max(at_once, loss))


def activations(setting: Setting, stage: int) -> float:
    """Bytes that a stage holds of its microbatches in flight, at most."""
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
    entry = layer(setting, moe=False).input  # of the first layer, from the embedding or the stage before
    held = flying * (kept + (0.0 if full else entry)) * width
    if stage != setting.train.pp - 1:
        return held + (again + backward) * width
    final = entry * (1 if setting.fused else 2) * width
    loss = loss_bytes(setting, tokens * setting.batch.trained_share, backward=True)
    return held + max(final + loss, (again + backward) * width)


def rollout(setting: Setting, stage: int) -> Phase:
    """While engines generate: beside what the trainer leaves on the GPU."""
    stays = resident(setting, stage).after_offload(setting)
    weights = engine_weights(setting)
    return Phase(
        name=f"rollout, stage {stage}",
        weights=stays.policy + stays.others,
        gradients=stays.gradients,
        optimizer=stays.optimizer,
        engine=weights,
        kv=kv_bytes(setting),
    )


def engine_weights(setting: Setting) -> float:
    """Of one rank of an engine."""
    return on_engine(setting.engine_layout()) * setting.engine_bytes


def kv_bytes_per_token(setting: Setting) -> float:
    """Of one rank of an engine, for every token in its cache."""
    model, cut = setting.model, setting.engine
    ranks = cut.tp // cut.dp_attention
    shared_by = 1 if model.latent else min(ranks, model.num_kv_heads)
    return model.kv_cache_size * setting.engine_bytes / shared_by


def kv_bytes(setting: Setting) -> float:
    """The key-value cache of one rank of an engine; below 0 where its weights leave no room."""
    if setting.kv_cache_tokens is not None:
        return setting.kv_cache_tokens * kv_bytes_per_token(setting)
    if setting.gpu is None:
        return _CPU_CACHE_TOKENS * kv_bytes_per_token(setting)
    return setting.memory_fraction * setting.gpu.memory_bytes - engine_weights(setting)


def kv_tokens(setting: Setting) -> int:
    """Tokens that the cache of one engine holds."""
    per_copy = max(0.0, kv_bytes(setting)) / kv_bytes_per_token(setting)
    return int(per_copy) * setting.engine.dp_attention


def num_microbatches(setting: Setting) -> int:
    """Of one optimizer step on one data-parallel rank, by mean lengths."""
    batch = setting.batch
    tokens = batch.trajectories_per_minibatch * batch.mean_length / (setting.train.dp or 1)
    return max(1, -(-int(tokens) // setting.microbatch_tokens))


def phases(setting: Setting) -> Iterator[Phase]:
    """Of the GPUs of each pipeline stage."""
    for stage in range(setting.train.pp):
        yield training(setting, stage)
        yield logprobs(setting, stage)
        if setting.gpu is not None:
            yield rollout(setting, stage)


def host_bytes(setting: Setting) -> float:
    """Of a node, beside its processes: what leaves its GPUs while engines generate, the tokens of a step."""
    held = resident(setting, 0)
    away = held.all - held.after_offload(setting).all
    tokens = setting.batch.trajectories * setting.batch.longest * _TOKEN_BYTES
    return away * max(1, setting.gpus_per_node) + tokens


def checkpoint_bytes(setting: Setting) -> float:
    """On disk: the trained models and their optimizers."""
    per_weight = setting.weight_bytes + _MOMENT_BYTES + (_MASTER_BYTES if setting.bf16 else 0)
    return sum(_whole(setting, role) for role in setting.trained) * per_weight


def least_training(setting: Setting) -> float:
    """Bytes of the trainer's state on all GPUs together, cut without any repetition."""
    per_weight = (
        setting.weight_bytes + GRADIENT_BYTES + _MOMENT_BYTES + (_MASTER_BYTES if setting.bf16 else 0)
    )
    trained = sum(_whole(setting, role) for role in setting.trained) * per_weight
    return trained + sum(_whole(setting, role) for role in setting.frozen) * setting.weight_bytes


_CPU_CACHE_TOKENS = 65536
"""What rollout.kv_cache_tokens is on CPU where nobody sets it."""

_TOKEN_BYTES = 4 + 4 + 1 + 4
"""Token, rollout_logp, loss mask and version."""


def _trainer_phase(setting: Setting, name: str, held: Resident, activations: float) -> Phase:
    return Phase(
        name=name,
        weights=held.policy + held.others,
        gradients=held.gradients,
        optimizer=held.optimizer,
        activations=activations,
        engine=engine_weights(setting) if setting.gpu else 0.0,
    )


def _share(setting: Setting, stage: int, role: Role) -> Share:
    """Where a role has a cut of its own, its fullest stage may be on any GPU."""
    cut = setting.cut_of(role)
    mine = stage if cut == setting.train else 0
    return on_stage(
        trainer_layout(setting.model, cut, fused=setting.fused), mine, value_head=role == "critic"
    )


def _optimizer(setting: Setting, role: Role, share: Share) -> float:
    """Bytes on one rank: split over the ranks that hold the same parameters."""
    cut = setting.cut_of(role)
    per_weight = _MOMENT_BYTES + (_MASTER_BYTES if setting.bf16 else 0)
    replicas = cut.cp * (cut.dp or 1)
    expert_replicas = cut.tp * replicas / (cut.ep * cut.etp)
    return per_weight * (share.dense / replicas + share.expert / expert_replicas)


def _optimizer_scratch(setting: Setting, stage: int) -> float:
    """Torch's own Adam makes a root and a quotient of every parameter at once; fused ones do not."""
    replicas = setting.train.cp * (setting.train.dp or 1)
    return 4 * max(_share(setting, stage, role).all for role in setting.trained) / replicas


def _layers(setting: Setting, stage: int) -> list[tuple[bool, int]]:
    """(with experts, how many) on a stage."""
    mine = setting.layout().chunks(stage)
    plain = setting.model.layers("dense")
    dense = sum(max(0, min(c.stop, plain.stop) - c.start) for c in mine)
    total = sum(len(chunk) for chunk in mine)
    return [(moe, count) for moe, count in ((False, dense), (True, total - dense)) if count]


def _whole(setting: Setting, role: Role) -> float:
    return on_stage(trainer_layout(setting.model, TrainParallel()), 0, value_head=role == "critic").all
