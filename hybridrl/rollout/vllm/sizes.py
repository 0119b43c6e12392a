"""Parallel layout of a vLLM engine (section rollout.parallel), and the size of its key-value cache."""

from hybridrl.config.rollout import EngineParallel

CPU_CACHE_TOKENS = 65536
"""Default size of the key-value cache on CPU, in tokens: there is no device memory to derive it from."""

CPU_BLOCK_TOKENS = 32
"""Tokens of a block of the cache on CPU. Prefixes are shared in whole blocks; vLLM's own default is 128."""

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of attention heads for which vLLM has kernels on CPU."""


class VLLMParallel(EngineParallel):
    pass


def cache_blocks(tokens: int) -> int:
    """Blocks of a cache on CPU; vLLM keeps one of them for itself."""
    return -(-tokens // CPU_BLOCK_TOKENS) + 1
