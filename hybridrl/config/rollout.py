"""Keys about the engines that answer prompts."""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
)

from hybridrl.config.section import Section, SectionOf
from hybridrl.errors import HybridRLError


class EngineParallel(Section):
    """Sizes of one engine. A kind of engine may have further ones."""

    tp: PositiveInt = 1
    """Tensor parallel size of one engine: its devices."""

    @property
    def attention_copies(self) -> int:
        """Number of groups of ranks that each hold the whole attention and a key-value cache."""
        return 1


ENGINE_SIZES = SectionOf("hybridrl.rollout", key="engine", attribute="parallel", common=EngineParallel)
"""The kind of engine declares its sizes. Its folder is opened through the registry: nothing in it is imported
before a config names it, and that import pulls in neither torch nor the engine."""


class RolloutConfig(Section):
    """The engines that sample answers: how many, their parallel layout, limits of lengths, and memory."""

    engine: str = "sglang"
    """What answers the prompts: a folder of hybridrl/rollout, or module:Kind for code outside."""

    python: str | None = None
    """Interpreter of the environment in which the engines run, as .venv-vllm/bin/python. None: the one of
    hybridrl."""

    parallel: Annotated[SerializeAsAny[EngineParallel], ENGINE_SIZES] = Field(
        default_factory=EngineParallel, validate_default=True
    )

    precision: Literal["bf16", "fp8"] | None = None
    """In what linear layers and experts compute. fp8: in e4m3, with a scale for each 128 x 128 of a weight,
    which the weight swap quantises; half the bytes of a swap, on Hopper GPUs. None: bf16 on GPUs, fp32 on a
    CPU."""

    kv_cache_precision: Literal["bf16", "fp8"] | None = None
    """In what the key-value cache holds a number. fp8: e4m3 without scales, half the bytes of a token. None:
    bf16 on GPUs, fp32 on a CPU."""

    num_engines: PositiveInt | None = None
    """Engines in data parallel. None: as many as fit on the devices; 1 on a machine without GPUs."""

    max_prompt_tokens: PositiveInt = 1024
    """A longer prompt is refused before the run starts."""

    max_response_tokens: PositiveInt = 1024
    """An answer is truncated at this length; with an environment, the answer of a single turn."""

    max_context_tokens: PositiveInt | None = None
    """Most tokens of an episode with an environment: its opening, all answers, and what lies between them. An
    episode that fills it ends with what it has. None: there is no environment."""

    limit_field: str | None = None
    """Column of the data with the most tokens of an answer to this prompt, at most max_response_tokens; null:
    max_response_tokens. None: all prompts have the same limit."""

    temperature: PositiveFloat = 1.0
    """Sampling temperature; the trainer divides its logits by it too."""

    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides its end token. They are part of the answer, and trained on."""

    stop_token_ids: tuple[NonNegativeInt, ...] = ()
    """Tokens that end an answer, besides the end tokens of the model."""

    kv_cache_tokens: PositiveInt | None = None
    """Tokens that the key-value cache of an engine holds. None: as many as memory_fraction allows on GPUs,
    65536 on CPU."""

    memory_fraction: PositiveFloat = Field(default=0.8, le=1.0)
    """Share of a GPU's memory for weights and key-value cache while the engine is awake."""

    max_running_requests: PositiveInt = 256
    """Requests that one engine decodes together."""

    max_restarts: NonNegativeInt = 3
    """How often an engine that ended, does not answer or has wrong weights is replaced between two policy
    updates, while the run goes on; then it is left out until the next one, and the run ends when no engine is
    left. 0: the first such engine ends the run. Engines that span several nodes are not replaced."""

    alive_timeout_s: PositiveFloat = 300.0
    """An engine that answers no call for so long is replaced. It has to be longer than the longest forward
    pass of an engine whose calls wait for one."""

    swap: Literal["drain", "in_flight", "in_flight_keep_cache"] = "drain"
    """How engines take new weights. drain: once running requests have ended. in_flight: requests are paused,
    their key-value cache is computed again with the new weights, and every token has the probability of the
    version that it names. in_flight_keep_cache: the old cache stays, which is faster, but tokens after a
    swap are of no policy exactly. The last two need batch.max_lag."""

    weight_path: Literal["auto", "in_place", "engine_api"] = "auto"
    """in_place: weights are written straight into the engine's parameters; the run ends if the engine's own
    loader would put them elsewhere. engine_api: they go through that loader, which is slower. auto: in_place,
    or engine_api with a warning."""

    @property
    def longest_tokens(self) -> int:
        """Most tokens of a trajectory, prompt included."""
        return self.max_context_tokens or self.max_prompt_tokens + self.max_response_tokens

    @property
    def longest_history_tokens(self) -> int:
        """Most tokens before an answer of max_response_tokens."""
        return self.longest_tokens - self.max_response_tokens

    @field_validator("engine")
    @classmethod
    def _engine_is_known(cls, name: str) -> str:
        try:
            ENGINE_SIZES.named(name)
        except HybridRLError as error:
            raise ValueError("; ".join(filter(None, (error.what, error.fix)))) from error
        return name

    @field_validator("parallel", mode="plain")
    @classmethod
    def _sizes_are_the_engines(cls, given: Any, info: ValidationInfo) -> EngineParallel:
        if "engine" not in info.data:  # the engine was refused
            return EngineParallel()
        sizes = given.model_dump() if isinstance(given, EngineParallel) else given
        kind = ENGINE_SIZES.named(info.data["engine"])
        return kind.model_validate_json(json.dumps(sizes), strict=True)
