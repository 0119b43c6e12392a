"""Memory of an engine rank: weights, key-value cache, and what it keeps for its computation."""

from hybridrl.estimate.setting import Setting
from hybridrl.estimate.weights import on_engine
from hybridrl.rollout.base import working_bytes

_CPU_CACHE_TOKENS = 65536
"""Default of rollout.kv_cache_tokens on CPU."""


def engine_weights(setting: Setting) -> float:
    """Bytes of the weights of one engine rank."""
    if not setting.num_engines:
        return 0.0
    return on_engine(setting.engine_layout(), setting.engine_bytes)


def kv_bytes_per_token(setting: Setting) -> float:
    """Bytes of one engine rank per token in its cache."""
    model, sharding = setting.model, setting.engine
    ranks = sharding.tp // sharding.attention_copies
    shared_by = 1 if model.latent else min(ranks, model.num_kv_heads)
    number_bytes = 1 if setting.fp8_cache else setting.engine_bytes
    return model.kv_cache_size * number_bytes / shared_by


def kv_bytes(setting: Setting) -> float:
    """Bytes of the KV cache of one engine rank; negative if the weights leave no room."""
    if setting.kv_cache_tokens is not None:
        return setting.kv_cache_tokens * kv_bytes_per_token(setting)
    if setting.gpu is None:
        return _CPU_CACHE_TOKENS * kv_bytes_per_token(setting)
    beside = 0.0 if setting.separate else setting.served
    share = setting.memory_fraction * (setting.gpu.memory_bytes - beside)
    return share - engine_weights(setting) - engine_work(setting)


def engine_work(setting: Setting) -> float:
    """Bytes that an engine rank keeps for its computation: on a GPU within its share of the memory, on a CPU
    the copies of its weights that hosts/matmul.py packs."""
    if not setting.num_engines or setting.engine_kind is None:
        return 0.0
    if setting.gpu is None:
        return engine_weights(setting)
    return working_bytes(setting.engine_kind, setting.model, setting.engine, setting.running_requests)


def kv_tokens(setting: Setting) -> int:
    """Number of tokens that the cache of one engine holds."""
    per_copy = max(0.0, kv_bytes(setting)) / kv_bytes_per_token(setting)
    return int(per_copy) * setting.engine.attention_copies
