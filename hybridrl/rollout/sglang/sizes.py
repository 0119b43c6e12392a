"""Parallel layout of an SGLang engine (section rollout.parallel), and the size of its key-value cache."""

from pydantic import PositiveInt

from hybridrl.config.rollout import EngineParallel

CPU_CACHE_TOKENS = 65536
"""Default size of the key-value cache on CPU, in tokens: there is no device memory to derive it from."""

SPARE_TOKENS = 8
"""SGLang silently truncates answers that come closer than this to the end of the context or the cache."""


class SGLangParallel(EngineParallel):
    ep: PositiveInt = 1
    """Expert-parallel size: the experts of a layer are partitioned over this many groups; divides tp."""

    dp_attention: PositiveInt = 1
    """Replicas of the attention inside an engine, each over tp / dp_attention devices; divides tp."""

    @property
    def attention_copies(self) -> int:
        return self.dp_attention


def sizes_of(parallel: EngineParallel) -> SGLangParallel:
    assert isinstance(parallel, SGLangParallel), f"sizes of another kind of engine: {parallel}"
    return parallel
