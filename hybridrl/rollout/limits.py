"""What a request may ask of an engine of any kind. It imports neither numpy nor torch."""

from collections.abc import Collection

from hybridrl.errors import EngineError, ResourceError
from hybridrl.rollout.base import Request


def context_tokens(max_prompt: int, max_response: int, cache: int | None, *, spare: int = 0) -> int:
    """Context length of an engine: the most tokens of a request, and those that it keeps free.

    Args:
        cache: size of the key-value cache in tokens; None if it is not known yet.
        spare: tokens at the end of context and cache that no answer may reach.

    Raises:
        ResourceError: the cache cannot hold one request.
    """
    tokens = max_prompt + max_response + spare
    if cache is not None and cache < tokens:
        raise ResourceError(
            f"a cache of {cache} tokens cannot hold a prompt of {max_prompt} and an answer of {max_response}",
            where="rollout.kv_cache_tokens",
            fix=f"rollout.kv_cache_tokens = {tokens} or more",
        )
    return tokens


def refusal(
    request: Request, engine: str, *, vocab_size: int, longest: int, takes: Collection[str] = ()
) -> EngineError | None:
    """Why an engine cannot answer a request; None if it can.

    Args:
        engine: name of the kind of engine.
        longest: most tokens of prompt and answer together.
        takes: names of the arrays that the engine's model takes in addition to tokens.
    """
    ids, sampling = request.token_ids, request.sampling
    if sampling.num_samples != 1:
        return EngineError(
            f"request {request.id!r} asks for {sampling.num_samples} answers",
            fix="one request an answer, or generate()",
        )
    if other := sorted(request.arrays.keys() - set(takes)):
        return EngineError(
            f"request {request.id!r} brings {', '.join(other)}: {engine} is given token ids"
            f"{''.join(f', {name}' for name in takes)} only",
            fix="leave its arrays out",
        )
    if not ids or not 0 <= min(ids) <= max(ids) < vocab_size:
        return EngineError(
            f"a prompt is empty or has a token outside the model's {vocab_size}: {list(ids)[:16]}"
        )
    if len(ids) + sampling.max_response_tokens > longest:
        return EngineError(
            f"request {request.id!r} of {len(ids)} tokens and an answer of "
            f"{sampling.max_response_tokens} are longer than the engine's {longest}"
        )
    return None
