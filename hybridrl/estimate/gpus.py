"""Memory and speed of datacenter GPUs, by their names in a config.

The sources are NVIDIA's data sheets of A100 (SXM4), H100 and H200 (SXM5), and HGX B200, for bf16 and FP8
without sparsity and for links in one direction. Memory is in GB as in the product name. The driver shows 5 to
7 % more. The difference is for the CUDA context, NCCL's buffers and fragmentation, which no formula here
counts.
"""

from dataclasses import dataclass

from hybridrl.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class GPUModel:
    name: str
    memory_bytes: int
    flops: float
    """Peak operations per second in bf16."""

    fp8_flops: float
    """Peak operations per second in FP8; 0: the GPU has no FP8."""

    hbm_bytes_s: float
    nvlink_bytes_s: float
    """Bandwidth from one GPU to all others of its node together."""

    network_bytes_s: float
    """Bandwidth from one GPU to other nodes, which is its share of the node's InfiniBand."""

    host_bytes_s: float
    """Bandwidth between a GPU and host memory over PCIe."""


_A100 = GPUModel(
    name="A100",
    memory_bytes=80 * 10**9,
    flops=312e12,
    fp8_flops=0.0,
    hbm_bytes_s=2.039e12,
    nvlink_bytes_s=300e9,
    network_bytes_s=25e9,
    host_bytes_s=25e9,
)
_A100_40 = GPUModel(
    name="A100 40 GB",
    memory_bytes=40 * 10**9,
    flops=312e12,
    fp8_flops=0.0,
    hbm_bytes_s=1.555e12,
    nvlink_bytes_s=300e9,
    network_bytes_s=25e9,
    host_bytes_s=25e9,
)
_H100 = GPUModel(
    name="H100",
    memory_bytes=80 * 10**9,
    flops=989e12,
    fp8_flops=1979e12,
    hbm_bytes_s=3.35e12,
    nvlink_bytes_s=450e9,
    network_bytes_s=50e9,
    host_bytes_s=50e9,
)
_H200 = GPUModel(
    name="H200",
    memory_bytes=141 * 10**9,
    flops=989e12,
    fp8_flops=1979e12,
    hbm_bytes_s=4.8e12,
    nvlink_bytes_s=450e9,
    network_bytes_s=50e9,
    host_bytes_s=50e9,
)
_B200 = GPUModel(
    name="B200",
    memory_bytes=180 * 10**9,
    flops=2250e12,
    fp8_flops=4500e12,
    hbm_bytes_s=7.7e12,
    nvlink_bytes_s=900e9,
    network_bytes_s=50e9,
    host_bytes_s=50e9,
)

GPUS = {"a100-40": _A100_40, "a100": _A100, "h100": _H100, "h200": _H200, "b200": _B200}


def only_memory(name: str, memory_bytes: int) -> GPUModel:
    """A GPU of which only the memory is known. There is no time estimate for it."""
    rates = ("flops", "fp8_flops", "hbm_bytes_s", "nvlink_bytes_s", "network_bytes_s", "host_bytes_s")
    return GPUModel(name=name, memory_bytes=memory_bytes, **dict.fromkeys(rates, 0.0))


def recognise(name: str, memory_bytes: int) -> GPUModel:
    """The model of a GPU by its driver name, such as "NVIDIA H100 80GB HBM3".

    Raises:
        ConfigError: the GPU is not in GPUS.
    """
    known = name_of(name, memory_bytes)
    if known is None:
        raise ConfigError(
            f"no data for GPU {name}", where="cluster.gpu", fix=f"set cluster.gpu to one of {', '.join(GPUS)}"
        )
    return GPUS[known]


def name_of(name: str, memory_bytes: int) -> str | None:
    """The GPU's key in GPUS; None: it is not there. The arguments are those of `recognise`."""
    named = {key: gpu for key, gpu in GPUS.items() if key.partition("-")[0].upper() in name.upper()}
    fitting = [key for key, gpu in named.items() if gpu.memory_bytes <= memory_bytes]
    return max(fitting, key=lambda key: GPUS[key].memory_bytes, default=None)
