"""The EngineKind of SGLang. This module imports neither torch nor sglang."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version

from hybridrl.config.rollout import EngineParallel
from hybridrl.config.schema import Config
from hybridrl.errors import ConfigError, HybridRLError, ResourceError
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import ModelSpec
from hybridrl.registry import register
from hybridrl.rollout.base import Engine, EngineSetup
from hybridrl.rollout.limits import context_tokens
from hybridrl.rollout.sglang.sizes import CPU_CACHE_TOKENS, SPARE_TOKENS, SGLangParallel, sizes_of

_DEEP_LAYERS = 3
"""Text layers to whose outputs SGLang adds features of a Qwen3-VL with experts, whatever its config says."""


@register("engine", "sglang")
class SGLang:
    """Implements EngineKind of rollout/base.py."""

    name = "sglang"
    parallel = SGLangParallel
    reports_heads = True
    computes_fp8 = True

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
        if model.family == "qwen3_vl_moe" and model.vision and len(model.vision.deep_layers) != _DEEP_LAYERS:
            yield ConfigError(
                f"deepstack_visual_indexes names {len(model.vision.deep_layers)} layers, and SGLang adds the "
                f"features of {_DEEP_LAYERS} in a model of family qwen3_vl_moe",
                where="model",
                fix="use a published Qwen3-VL with experts, which has 3",
            )
        tokens = rollout.kv_cache_tokens or (None if cfg.cluster.gpus_per_node else CPU_CACHE_TOKENS)
        try:
            context_tokens(
                rollout.longest_history_tokens, rollout.max_response_tokens, tokens, spare=SPARE_TOKENS
            )
        except ResourceError as error:
            yield error
        if rollout.python is not None:
            yield ConfigError(
                f"rollout.python = {rollout.python}: SGLang runs in the environment of hybridrl",
                where="rollout.python",
                fix="leave it out, or rollout.engine: vllm",
            )

    def missing(self, cfg: Config) -> Iterator[HybridRLError]:
        yield from ()

    def versions(self, cfg: Config) -> Mapping[str, str]:
        return {"sglang": version("sglang")}

    def open(self, setup: EngineSetup) -> Engine:
        from hybridrl.rollout.sglang.start import SGLangEngine

        return SGLangEngine(setup)
