"""Sizes of an SGLang engine: the section rollout.parallel, and what its key-value cache must hold."""

from pydantic import PositiveInt

from hybridrl.config.rollout import EngineParallel
from hybridrl.errors import ResourceError

CPU_CACHE_TOKENS = 65536
"""Slots of the key-value cache on CPU when the config leaves them open: there is no memory of its own to
divide.
"""

_SPARE_TOKENS = 8
"""SGLang cuts answers, silently, that come closer than this to the end of the context or of the cache."""


class SGLangParallel(EngineParallel):
    ep: PositiveInt = 1
    """Parts that the experts of a layer are dealt into; divides tp."""

    dp_attention: PositiveInt = 1
    """Copies of the attention inside an engine, each over tp / dp_attention devices; divides tp."""

    @property
    def attention_copies(self) -> int:
        return self.dp_attention


def sizes_of(parallel: EngineParallel) -> SGLangParallel:
    assert isinstance(parallel, SGLangParallel), f"sizes of another kind of engine: {parallel}"
    return parallel


def context_tokens(max_prompt: int, max_response: int, cache: int | None) -> int:
    """What SGLang is told a request may have.

    Args:
        cache: tokens that the key-value cache holds; None: nobody knows yet.

    Raises:
        ResourceError: the cache cannot hold one request.
    """
    tokens = max_prompt + max_response + _SPARE_TOKENS
    if cache is not None and cache < tokens:
        raise ResourceError(
            f"a cache of {cache} tokens cannot hold a prompt of {max_prompt} and an answer of {max_response}",
            where="rollout.kv_cache_tokens",
            fix=f"rollout.kv_cache_tokens = {tokens} or more",
        )
    return tokens
