"""The fastest ways to lay a run over its GPUs, by the model of memory and time.

The auto-mapping of Sheng et al. 2024, "HybridFlow", arXiv:2409.19256, section 6, for roles that share all
GPUs: trainer and engines take turns, so their cuts are searched apart and joined where memory allows both.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from hybridrl.config.training import TrainParallel
from hybridrl.errors import LayoutError
from hybridrl.estimate.fit import fits, fullest
from hybridrl.estimate.memory import engine_weights, kv_tokens, resident, training
from hybridrl.estimate.setting import Setting
from hybridrl.estimate.time import StepTime, generate_s, logprobs_s, step_time, train_s

_KEPT = 60
"""Best cuts of the trainer, and of the engines."""

_JOINED = 20
"""Pairs of both that fit, before the search ends."""

_MOST_ENGINE_RANKS = 64

_FRACTIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    setting: Setting
    time: StepTime
    spare_bytes: float
    """Of the GPU's memory, at the fullest moment."""

    @classmethod
    def of(cls, setting: Setting) -> "Proposal":
        assert setting.gpu is not None
        spare = setting.gpu.memory_bytes - fullest(setting).peak
        return cls(setting=setting, time=step_time(setting), spare_bytes=spare)


def search(setting: Setting, count: int = 5) -> list[Proposal]:
    """The fastest that fit, fastest first; never slower than the setting itself, if that fits.

    Batch, model and GPUs stay; cuts, recomputation, size of a microbatch, offload and the engines' share of
    memory are free.
    """
    engines = _fastest(_engines(setting), generate_s)
    if not engines:
        return []
    lightest = min((engine for _, engine in engines), key=engine_weights)
    beside = replace(setting, engine=lightest.engine, num_engines=lightest.num_engines)
    trainers = _fastest(_trainers(beside), lambda s: train_s(s) + logprobs_s(s))
    found = [Proposal.of(setting)] if fits(setting) else []
    pairs = sorted(product(trainers, engines), key=lambda pair: pair[0][0] + pair[1][0])
    for (_, trainer), (_, engine) in pairs:
        if len(found) > _JOINED:
            break
        found += _joined(trainer, engine)
    found.sort(key=lambda proposal: proposal.time.total)
    best: dict[tuple[int, ...], Proposal] = {}
    for proposal in found:
        best.setdefault(_outline(proposal.setting), proposal)
    return list(best.values())[:count]


def _fastest(settings: Iterable[Setting], seconds: Callable[[Setting], float]) -> list[tuple[float, Setting]]:
    return sorted(((seconds(s), s) for s in settings), key=lambda pair: pair[0])[:_KEPT]


def _trainers(setting: Setting) -> Iterator[Setting]:
    """Every cut whose training fits, with the least recomputation that does and the largest microbatch."""
    assert setting.gpu is not None
    for sharding in _shardings(setting):
        sharded_so = replace(setting, train=sharding, offload="all")
        if sharded_so.divides():
            yield from _fitting(sharded_so)


def _fitting(setting: Setting) -> Iterator[Setting]:
    assert setting.gpu is not None
    longest = setting.batch.longest
    for recompute, times in product(("none", "selective", "full"), (4, 2, 1)):
        tried = replace(setting, recompute=recompute, microbatch_tokens=longest * times)
        if all(training(tried, stage).peak <= setting.gpu.memory_bytes for stage in {0, tried.train.pp - 1}):
            yield tried


def _shardings(setting: Setting) -> Iterator[TrainParallel]:
    model, gpus = setting.model, setting.num_gpus
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
        for ep, (vpp, layers) in product([e for e in experts if (tp * cp * dp) % e == 0], chunks):
            yield TrainParallel(tp=tp, cp=cp, pp=pp, dp=dp, ep=ep, vpp=vpp, stage_layers=layers, sp=own.sp)


def _uneven(layers: int, chunks: int) -> tuple[int, ...]:
    """Layers of each chunk, the last ones shorter; (): they are equal."""
    most, over = divmod(layers, chunks)
    return (most + 1,) * over + (most,) * (chunks - over) if over else ()


def _engines(setting: Setting) -> Iterator[Setting]:
    """Every cut of an engine with room for its longest answer."""
    model, gpus = setting.model, setting.num_gpus
    assert setting.engine_kind is not None, "there are engines"
    for sizes in setting.engine_kind.sizes(model, min(gpus, _MOST_ENGINE_RANKS)):
        engines = gpus // sizes.tp
        tried = replace(setting, engine=sizes, num_engines=engines, memory_fraction=_FRACTIONS[0])
        try:
            tried.engine_layout()
        except LayoutError:
            continue
        if kv_tokens(tried) >= setting.batch.longest:
            yield tried


def _joined(trainer: Setting, engine: Setting) -> list[Proposal]:
    """With the offload that is fastest, and the largest share of memory for the engines beside it; [] where
    memory does not allow both.
    """
    both = replace(trainer, engine=engine.engine, num_engines=engine.num_engines)
    tries = [_roomiest(replace(both, offload=offload)) for offload in ("none", "optimizer", "all")]
    found = [Proposal.of(tried) for tried in tries if tried and fits(tried)]
    return [min(found, key=lambda proposal: proposal.time.total)] if found else []


def _roomiest(setting: Setting) -> Setting | None:
    """With the largest share of memory for the engines that the trainer's leftovers allow."""
    assert setting.gpu is not None
    stays = max(resident(setting, stage).after_offload(setting).all for stage in {0, setting.train.pp - 1})
    room = 1 - stays / setting.gpu.memory_bytes
    share = next((fraction for fraction in _FRACTIONS if fraction <= room), None)
    return None if share is None else replace(setting, memory_fraction=share)


def _outline(setting: Setting) -> tuple[int, ...]:
    """Of those that are alike in this, the best is told."""
    sharding = setting.train
    return sharding.tp, sharding.pp, sharding.cp, sharding.ep, setting.engine.tp


def _powers(last: int) -> list[int]:
    return [2**i for i in range(last.bit_length()) if 2**i <= last]
