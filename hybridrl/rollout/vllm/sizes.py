"""Parallel layout of a vLLM engine (section rollout.parallel), and the size of its key-value cache."""

from hybridrl.config.rollout import EngineParallel
from hybridrl.models.spec import ModelSpec

CPU_CACHE_TOKENS = 65536
"""Default size of the key-value cache on CPU, in tokens: there is no device memory to derive it from."""

CPU_BLOCK_TOKENS = 32
"""Tokens of a block of the cache on CPU. Prefixes are shared in whole blocks; vLLM's own default is 128."""

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of attention heads for which vLLM has kernels on CPU."""


GPU_BATCH_TOKENS = 8192
"""Tokens that an engine on a GPU computes in one step at most. vLLM computes as many at its start, and takes
the memory of that from the share that its cache could have."""

_LOGIT_BYTES = 2 + 4 * 4 + 3 * 8
"""Bytes per entry of the vocabulary and request at the sampler's peak: logits as computed, four fp32 copies,
and the order and cumulative sums of top-p."""

_BYTES = 2
"""Bytes of a number on a GPU."""


class VLLMParallel(EngineParallel):
    pass


def cache_blocks(tokens: int) -> int:
    """Blocks of a cache on CPU; vLLM keeps one of them for itself."""
    return -(-tokens // CPU_BLOCK_TOKENS) + 1


def working_bytes(model: ModelSpec, tp: int, requests: int) -> float:
    """Bytes of a rank on a GPU for one step of GPU_BATCH_TOKENS tokens, and to sample for all requests."""
    attention = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim / tp
    dense = 3 * model.ffn_size / tp
    chosen = model.experts_per_token if model.num_experts else 0
    experts = chosen * (3 * model.expert_ffn_size / tp + model.hidden_size) if chosen else 0.0
    layer = GPU_BATCH_TOKENS * _BYTES * (3 * model.hidden_size + max(attention, dense, experts))
    return max(layer, min(requests, GPU_BATCH_TOKENS) * model.vocab_size * _LOGIT_BYTES)
