"""What is known of SGLang without starting it. Imports neither torch nor sglang."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version

from pydantic import PositiveInt

from hybridrl.config.rollout import EngineParallel
from hybridrl.config.schema import Config
from hybridrl.errors import HybridRLError, ResourceError
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import ModelSpec
from hybridrl.registry import register
from hybridrl.rollout.base import Engine, EngineSetup

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


@register("engine", "sglang")
class SGLang:
    """EngineKind."""

    name = "sglang"
    parallel = SGLangParallel

    def layout(self, model: ModelSpec, parallel: EngineParallel) -> SGLangLayout:
        sizes: SGLangParallel = sizes_of(parallel)
        return SGLangLayout(model, tp=sizes.tp, ep=sizes.ep, dp_attention=sizes.dp_attention)

    def sizes(self, model: ModelSpec, most: int) -> Iterator[SGLangParallel]:
        for tp in (1 << n for n in range(most.bit_length())):
            yield SGLangParallel(tp=tp)
            if model.num_experts and tp > 1:
                yield SGLangParallel(tp=tp, ep=tp)

    def refuse(self, cfg: Config, model: ModelSpec) -> Iterator[HybridRLError]:
        rollout = cfg.rollout
        tokens = rollout.kv_cache_tokens or (None if cfg.cluster.gpus_per_node else CPU_CACHE_TOKENS)
        try:
            context_tokens(rollout.max_prompt_tokens, rollout.max_response_tokens, tokens)
        except ResourceError as error:
            yield error

    def versions(self) -> Mapping[str, str]:
        return {"sglang": version("sglang")}

    def open(self, setup: EngineSetup) -> Engine:
        from hybridrl.rollout.sglang.engine import SGLangEngine

        return SGLangEngine(setup)


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
