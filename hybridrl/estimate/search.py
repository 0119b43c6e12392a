"""Searches the fastest parallel layouts of a run on its GPUs, by the estimates of memory and time.

This is the auto-mapping of Sheng et al. 2024, "HybridFlow", arXiv:2409.19256, section 6. Trainer and engines
take turns or have GPUs of their own, so their parallel layouts are searched separately, and pairs are kept if
memory allows both.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product

from hybridrl import registry
from hybridrl.config.training import ActorConfig, TrainParallel
from hybridrl.errors import ConfigError, LayoutError, ModelError
from hybridrl.estimate.divisions import divisions
from hybridrl.estimate.engine import engine_weights, kv_tokens
from hybridrl.estimate.fit import fits, fullest
from hybridrl.estimate.memory import resident, training
from hybridrl.estimate.setting import Recompute, Setting
from hybridrl.estimate.time import StepTime, generate_s, logprobs_s, step_time, train_s
from hybridrl.layout.trainers import layout_of

_KEPT = 60
"""Number of best parallel layouts that are kept for the trainer, and for the engines."""

_JOINED = 20
"""Number of fitting pairs after which the search ends."""

_MOST_ENGINE_RANKS = 64

_OF_FSDP = {"gather": "each_pass", "keep_on_host": "none"}
"""Keys of the section actor that only FSDP has, with the values that change nothing."""

_FRACTIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    setting: Setting
    time: StepTime
    spare_bytes: float
    """GPU memory that is free at the peak."""

    @classmethod
    def of(cls, setting: Setting) -> "Proposal":
        assert setting.gpu is not None
        spare = setting.gpu.memory_bytes - fullest(setting).peak
        return cls(setting=setting, time=step_time(setting), spare_bytes=spare)


def search(setting: Setting, count: int = 5) -> list[Proposal]:
    """The settings that fit, fastest first. The first is never slower than the given one, if that fits.

    Batch, model and GPUs are fixed. The search varies the trainer backend, parallel layouts, recomputation,
    microbatch size, offload and the engines' share of memory; and if answers may be older than one policy
    update, how the GPUs are divided between trainer and engines. The fastest setting of every backend and of
    every placement that has one is among those returned.
    """
    divided = list(divisions(setting))
    of_backends = [_of_backend(tried, divided) for tried in _backends(setting)]
    every = sorted(chain(*of_backends), key=_total)
    leaders: dict[tuple[str, object], Proposal] = {}
    for proposal in every:
        leaders.setdefault(("backend", proposal.setting.backend), proposal)
        leaders.setdefault(("placement", proposal.setting.separate), proposal)
    first = {id(proposal) for proposal in leaders.values()}
    others = [proposal for proposal in every if id(proposal) not in first][: max(0, count - len(first))]
    chosen = first | {id(proposal) for proposal in others}
    return [proposal for proposal in every if id(proposal) in chosen]


def overlapped(setting: Setting) -> Proposal | None:
    """What the search would find if answers could be one policy update old, on the run's own backend with
    GPUs for the engines alone. None: they can be older already, or nothing fits."""
    if setting.max_lag:
        return None
    older = replace(setting, max_lag=1, swaps_in_flight=True)
    own = [division for division in divisions(older) if division.separate]
    found = [proposal for division in own for proposal in _of_division(division)]
    return min(found, key=_total, default=None)


def _total(proposal: Proposal) -> float:
    return proposal.time.total


def _backends(setting: Setting) -> Iterator[Setting]:
    """The setting on its own backend, then on others that have layers for its models and its options."""
    yield setting
    if setting.is_outside:
        return
    for backend in registry.folders("hybridrl.trainer", "backend"):
        if backend == setting.backend:
            continue
        found: Recompute | None = next(
            (how for how in (setting.recompute, "none") if _has(backend, setting, how)), None
        )
        if found is not None:
            actor = setting.actor.model_copy(update=_OF_FSDP)
            yield replace(setting, backend=backend, recompute=found, actor=actor)


def _has(backend: str, setting: Setting, recompute: str) -> bool:
    """Whether a backend can train with the options of the config, and this recomputation."""
    if setting.lora is not None and backend == ActorConfig().backend:
        return False  # a search is for GPUs, where Transformer Engine's layers take no adapters
    layout, changes = layout_of(backend), {"recompute": recompute, **_OF_FSDP}
    actor = setting.actor.model_copy(update=changes)
    models = [setting.model, *([setting.reward_model] if setting.reward_model else [])]
    try:
        layout.refuse_options(actor)
        for model in models:
            layout.refuse_unbuildable(model, where="")
    except (ConfigError, ModelError):
        return False
    return True


def _of_backend(setting: Setting, divided: Sequence[Setting]) -> list[Proposal]:
    """The settings of one backend that fit, fastest first, one for each outline.

    Args:
        divided: divisions of the GPUs, of any backend.
    """
    of_backend = {"backend": setting.backend, "recompute": setting.recompute, "actor": setting.actor}
    found = [Proposal.of(setting)] if fits(setting) else []
    for division in divided:
        found += _of_division(replace(division, **of_backend))
    found.sort(key=_total)
    best: dict[tuple[int, ...], Proposal] = {}
    for proposal in found:
        best.setdefault(_outline(proposal.setting), proposal)
    return list(best.values())


def _of_division(setting: Setting) -> list[Proposal]:
    """The settings with one division of the GPUs that fit; not all, but the fastest."""
    engines = _fastest(_engines(setting), generate_s)
    if not engines:
        return []
    lightest = min((engine for _, engine in engines), key=engine_weights)
    with_lightest = replace(setting, engine=lightest.engine, num_engines=lightest.num_engines)
    trainers = _fastest(_trainers(with_lightest), lambda s: train_s(s) + logprobs_s(s))
    found: list[Proposal] = []
    pairs = sorted(product(trainers, engines), key=lambda pair: pair[0][0] + pair[1][0])
    for (_, trainer), (_, engine) in pairs:
        if len(found) > _JOINED:
            break
        found += _joined(trainer, engine)
    return found


def _fastest(settings: Iterable[Setting], seconds: Callable[[Setting], float]) -> list[tuple[float, Setting]]:
    return sorted(((seconds(s), s) for s in settings), key=lambda pair: pair[0])[:_KEPT]


def _trainers(setting: Setting) -> Iterator[Setting]:
    """Every parallel layout, recomputation and microbatch size of the trainer whose training fits."""
    assert setting.gpu is not None
    for sharding in _shardings(setting):
        sharded = replace(setting, train=sharding, offload="all")
        if sharded.divides():
            yield from (fitting for tried in _gathering(sharded) for fitting in _fitting(tried))


def _gathering(setting: Setting) -> Iterator[Setting]:
    """The setting with every choice of when shards are gathered; as it is where ranks share no weights."""
    if not setting.shards_weights:
        yield setting
        return
    for gather in ("each_pass", "once"):
        yield replace(setting, actor=setting.actor.model_copy(update={"gather": gather}))


def _fitting(setting: Setting) -> Iterator[Setting]:
    assert setting.gpu is not None
    longest = setting.batch.longest
    kinds = [kind for kind in ("none", "selective", "full") if _has(setting.backend, setting, kind)]
    for recompute, times in product(kinds, (4, 2, 1)):
        tried = replace(setting, recompute=recompute, microbatch_tokens=longest * times)
        if all(training(tried, stage).peak <= setting.gpu.memory_bytes for stage in {0, tried.train.pp - 1}):
            yield tried


def _shardings(setting: Setting) -> Iterator[TrainParallel]:
    model, gpus = setting.model, setting.trainer_gpus
    tensor = [tp for tp in _powers(16) if model.heads_divide(tp)]
    experts = _powers(256) if model.num_experts else [1]
    own = setting.train
    for tp, cp, pp in product(tensor, _powers(8), _powers(64)):
        ranks = tp * cp * pp
        if gpus % ranks or pp > model.num_layers:
            continue
        dp = gpus // ranks
        if dp > setting.batch.trajectories_per_minibatch:
            continue
        depths = [v for v in ((1, 2, 4) if pp > 1 else (1,)) if pp * v <= model.num_layers]
        chunks = [(vpp, _uneven(model.num_layers, pp * vpp)) for vpp in depths]
        kinds = product(
            [e for e in experts if (tp * cp * dp) % e == 0], chunks, _copies(setting, tp, cp * dp)
        )
        for ep, (vpp, layers), shard in kinds:
            sizes = {"tp": tp, "cp": cp, "pp": pp, "dp": dp, "ep": ep, "vpp": vpp, "shard": shard}
            yield TrainParallel(**sizes, stage_layers=layers, sp=own.sp, cp_exchange=own.cp_exchange)


def _copies(setting: Setting, tp: int, ranks: int) -> list[int | None]:
    """Sizes of the groups that share the weights: all ranks together, or one copy of the weights a node."""
    inside = setting.gpus_per_node // tp
    several = setting.shards_weights and 1 < inside < ranks and ranks % inside == 0
    return [None, inside] if several else [None]


def _uneven(layers: int, chunks: int) -> tuple[int, ...]:
    """Layers of each chunk, with shorter ones at the end; (): all chunks are equal."""
    most, over = divmod(layers, chunks)
    return (most + 1,) * over + (most,) * (chunks - over) if over else ()


def _engines(setting: Setting) -> Iterator[Setting]:
    """Every parallel layout of an engine whose cache holds the longest trajectory."""
    model, gpus = setting.model, setting.engine_gpus if setting.separate else setting.num_gpus
    assert setting.engine_kind is not None, "there are engines"
    for sizes in setting.engine_kind.sizes(model, min(gpus, _MOST_ENGINE_RANKS)):
        engines = gpus // sizes.tp
        if setting.separate and engines * sizes.tp != gpus:
            continue  # the trainer has no ranks for the rest
        tried = replace(setting, engine=sizes, num_engines=engines, memory_fraction=_FRACTIONS[0])
        try:
            tried.engine_layout()
        except LayoutError:
            continue
        if kv_tokens(tried) >= setting.batch.longest:
            yield tried


def _joined(trainer: Setting, engine: Setting) -> list[Proposal]:
    """The pair with the fastest offload and the largest memory share of the engines; [] if none fits."""
    both = replace(trainer, engine=engine.engine, num_engines=engine.num_engines)
    offloads = ("none", "optimizer", "all") if both.engines_sleep else ("none",)
    tries = [_roomiest(replace(both, offload=offload)) for offload in offloads]
    found = [Proposal.of(tried) for tried in tries if tried and fits(tried)]
    return [min(found, key=_total)] if found else []


def _roomiest(setting: Setting) -> Setting | None:
    """The setting with the largest memory share for the engines, given what the trainer keeps on the GPU."""
    assert setting.gpu is not None
    # The trainer keeps nothing on GPUs that engines have for themselves.
    stays = 0.0 if setting.separate else _stays(setting)
    room = 1 - stays / setting.gpu.memory_bytes
    shares = (replace(setting, memory_fraction=share) for share in _FRACTIONS if share <= room)
    return next((tried for tried in shares if setting.engines_sleep or fits(tried)), None)


def _stays(setting: Setting) -> float:
    """Bytes that the trainer keeps on the fullest GPU while engines work."""
    return max(resident(setting, stage).after_offload(setting).all for stage in {0, setting.train.pp - 1})


def _outline(setting: Setting) -> tuple[int, ...]:
    """The sizes that identify a proposal; of proposals with equal sizes only the fastest is reported."""
    sharding = setting.train
    own = setting.engine_gpus * setting.separate
    return sharding.tp, sharding.pp, sharding.cp, sharding.ep, sharding.shard or 0, setting.engine.tp, own


def _powers(last: int) -> list[int]:
    return [2**i for i in range(last.bit_length()) if 2**i <= last]
