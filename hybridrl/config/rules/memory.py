"""The least memory that a run takes, by arithmetic: weights, gradients, optimizer, engine. Activations and
the processes themselves come on top, so a run that this refuses cannot work, and one that it lets pass still
may not.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import World, model_name
from hybridrl.config.rules.reward_model import reward_model_spec
from hybridrl.config.schema import Config
from hybridrl.errors import HybridRLError, ResourceError
from hybridrl.models import spec as models

GIB = 2**30

_GRADIENT_BYTES = 4  # accumulated in fp32 whatever the weights are
_ADAM_BYTES = 8
_MASTER_BYTES = 4  # the fp32 weights of a bf16 model


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes, of the whole machine on CPU and of one GPU otherwise."""

    training: int
    """Weights, gradients and optimizers of what is trained, and the weights of reference, teacher and reward
    model."""

    engines: int
    """Weights, and the key-value cache where its size is set."""

    together: bool
    """Both at the same time; on a GPU they take turns."""

    @property
    def peak_bytes(self) -> int:
        return self.training + self.engines if self.together else max(self.training, self.engines)

    def describe(self) -> str:
        return f"training {self.training / GIB:.1f}, engines {self.engines / GIB:.1f}"

    @classmethod
    def of(cls, config: Config, spec: models.ModelSpec, *, on_gpu: bool) -> "Need":
        training, engine = _training(config, spec, on_gpu), _engine(config, spec, on_gpu)
        if on_gpu:
            parallel = config.actor.parallel
            return cls(
                training // (parallel.tp * parallel.pp), engine // config.rollout.parallel.tp, together=False
            )
        return cls(training, engine * (config.rollout.num_engines or 1), together=True)


def memory_is_enough(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    if world.spec is None or not world.here:
        return
    need = Need.of(loaded.config, world.spec, on_gpu=world.num_gpus > 0)
    if need.peak_bytes > world.available_bytes:
        what, has = ("a GPU", "has") if world.num_gpus else ("the machine", "has available")
        yield ResourceError(
            f"{model_name(loaded)} needs at least {need.peak_bytes / GIB:.1f} GiB ({need.describe()}), "
            f"{what} {has} {world.available_bytes / GIB:.1f} GiB",
            where=loaded.where("model.path"),
            fix="use a smaller model"
            if not world.num_gpus
            else "use a smaller model, or raise actor.parallel.tp or pp",
        )


def _training(config: Config, spec: models.ModelSpec, on_gpu: bool) -> int:
    """Of one replica on a GPU, where more replicas share its optimizer; of all replicas on CPU."""
    precision = config.actor.precision or ("bf16" if on_gpu else "fp32")
    weight_bytes, master_bytes = (2, _MASTER_BYTES) if precision == "bf16" else (4, 0)
    dp = config.actor.parallel.dp or 1
    algorithm, trained = config.algorithm, 1
    frozen = [bool(algorithm.kl.coefficient), algorithm.teacher is not None]
    if algorithm.estimator.name == "prime":
        trained, frozen[0] = 2, True
    if algorithm.estimator.name == "gae":
        trained = 2
    adapters = config.actor.lora is not None
    if adapters:  # too small to count; the model without them is the reference
        trained, frozen[0] = trained - 1, False
    held = trained * (weight_bytes + _GRADIENT_BYTES) + (sum(frozen) + adapters) * weight_bytes
    shared = trained * (_ADAM_BYTES + master_bytes)
    per_weight = held + shared / dp if on_gpu else held * dp + shared
    return int(models.count(spec) * per_weight) + _reward_model(config, weight_bytes, on_gpu)


def _reward_model(config: Config, weight_bytes: int, on_gpu: bool) -> int:
    spec, own = reward_model_spec(config), config.reward_model
    if spec is None or own is None:
        return 0
    replicas = 1 if on_gpu else (own.parallel or config.actor.parallel).dp or 1
    return models.count(spec) * weight_bytes * replicas


def _engine(config: Config, spec: models.ModelSpec, on_gpu: bool) -> int:
    number_bytes = 2 if on_gpu else 4
    cached = (config.rollout.kv_cache_tokens or 0) * spec.kv_cache_size
    return (models.count(spec) + cached) * number_bytes
