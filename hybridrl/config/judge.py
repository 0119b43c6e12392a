"""Keys about language models of the run that are never trained: one judges, one plays."""

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from hybridrl.config.section import Section


class ServedModelConfig(Section):
    """A language model in engines of its own, whose weights do not change.

    Its engines start with the run, on devices that the policy's engines and the trainer use too, and stay
    awake.
    """

    path: str
    """Folder or name on the hub, as model.path: any model that the engine serves, with a tokenizer of its
    own."""

    engine: str | None = None
    """What runs it, as rollout.engine. None: the same as there."""

    python: str | None = None
    """Interpreter of the environment in which its engines run. None: the one of hybridrl."""

    num_engines: PositiveInt = 1
    """Engines, which share the questions."""

    tp: PositiveInt = 1
    """Tensor parallel size of one engine: its devices."""

    kv_cache_tokens: PositiveInt | None = None
    """Tokens that the key-value cache of an engine holds. None: as many as memory_fraction allows on GPUs,
    65536 on CPU."""

    memory_fraction: PositiveFloat = Field(default=0.2, le=1.0)
    """Share of a GPU's memory for weights and key-value cache; rollout.memory_fraction is of what is left."""

    max_running_requests: PositiveInt = 64
    """Requests that one engine answers together; others wait in it."""

    max_restarts: NonNegativeInt = 3
    """How often an engine that was lost is started again; after that what it is asked fails."""

    timeout_s: PositiveFloat = 120.0
    """An answer may take this long, waiting included; then it has failed."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class JudgeConfig(ServedModelConfig):
    """A language model in engines of the run, which the reward `judge` asks. An answer whose question fails
    stays without a reward, and is counted."""

    chat_template: Literal["model", "none"] = "model"
    """model: the judge's own chat template with a generation prompt; none: the prompt as it is."""

    max_prompt_tokens: PositiveInt = 4096
    """A longer question is not asked: its answer stays without a reward, and is counted."""

    max_response_tokens: PositiveInt = 512
    """A verdict ends at this length."""

    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of verdicts; 0: the likeliest one."""


class FrozenConfig(ServedModelConfig):
    """A language model in engines of the run that plays some roles of the environment in the policy's place.
    What it says is not trained on."""

    agents: tuple[NonNegativeInt, ...] = Field(default=(1,), min_length=1)
    """The roles that it plays, as numbered by the environment. The policy plays the others."""

    chat_template: Literal["model", "none"] | None = None
    """model: its own chat template; none: the contents of messages as they are. None: as
    data.chat_template."""

    temperature: NonNegativeFloat = 1.0
    """Sampling temperature of its answers; 0: the likeliest one."""

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        """After a short form the section is Python, no longer JSON, in which a list may become a tuple."""
        if isinstance(value, dict) and isinstance(value.get("agents"), list):
            return {**value, "agents": tuple(value["agents"])}
        return value
