"""Keys about the engines that answer prompts."""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
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
        """Groups of ranks that each have all of the attention, and a cache of their own."""
        return 1


ENGINE_SIZES = SectionOf("hybridrl.rollout", key="engine", attribute="parallel", common=EngineParallel)
"""The kind of engine says which sizes one has. The door to its folder is the registry: nothing of it is
imported before a config names it, and what is then imported has neither torch nor the engine."""


class RolloutConfig(Section):
    """The engines that sample answers: how many, their parallel layout, limits of lengths, and memory."""

    engine: str = "sglang"
    """What answers the prompts: a folder of hybridrl/rollout, or module:Kind for code outside."""

    parallel: Annotated[SerializeAsAny[EngineParallel], ENGINE_SIZES] = Field(
        default_factory=EngineParallel, validate_default=True
    )

    num_engines: PositiveInt | None = None
    """Engines in data parallel. None: as many as the devices hold; 1 on a machine without GPUs."""

    max_prompt_tokens: PositiveInt = 1024
    """A longer prompt is refused before the run starts."""

    max_response_tokens: PositiveInt = 1024
    """An answer is cut here."""

    temperature: PositiveFloat = 1.0
    """Of sampling; the trainer divides its logits by it too."""

    kv_cache_tokens: PositiveInt | None = None
    """Tokens that the key-value cache of an engine holds. None: by memory_fraction on GPUs, 65536 on CPU."""

    memory_fraction: PositiveFloat = Field(default=0.8, le=1.0)
    """Share of a GPU's memory for weights and key-value cache while the engine is awake."""

    max_running_requests: PositiveInt = 256
    """Requests that one engine decodes together."""

    weight_path: Literal["auto", "in_place", "engine_api"] = "auto"
    """in_place: straight into the engine's parameters; the run ends if its own loader puts weights elsewhere.
    engine_api: through that loader, which is slower. auto: in_place, or engine_api with a warning."""

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
        if "engine" not in info.data:  # refused
            return EngineParallel()
        sizes = given.model_dump() if isinstance(given, EngineParallel) else given
        kind = ENGINE_SIZES.named(info.data["engine"])
        return kind.model_validate_json(json.dumps(sizes), strict=True)
