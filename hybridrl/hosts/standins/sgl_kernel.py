"""A stand-in for SGLang's CUDA kernel package on a machine without CUDA, with the one operation that is used.

SGLang imports further CPU operations by name at its start, and calls them only for speculative decoding. Here
they raise an error.
"""

from collections.abc import Callable

from torch import Tensor


def assign_req_to_token_pool_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """Assign new cache slots to each request, in place.

    req_to_token[request, start:end] gets the next end - start elements of out_cache_loc.
    """
    taken = 0
    for request, start, end in zip(
        req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True
    ):
        req_to_token[request, start:end] = out_cache_loc[taken : taken + end - start]
        taken += end - start


def __getattr__(name: str) -> Callable[..., None]:
    if not name.endswith("_cpu"):
        raise AttributeError(f"the CPU stand-in for sgl_kernel has no {name!r}")

    def absent(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"sgl_kernel.{name} has no CPU stand-in")

    return absent
