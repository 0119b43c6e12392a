"""Keys about a language model of the run that judges answers."""

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from hybridrl.config.section import Section


class JudgeConfig(Section):
    """A language model in engines of the run, which the reward `judge` asks. It is never trained.

    Its engines start with the run, on devices that the policy's engines and the trainer use too, and stay
    awake. Their weights do not change.
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

    max_prompt_tokens: PositiveInt = 4096
    """A longer question is not asked: its answer stays without a reward, and is counted."""

    max_response_tokens: PositiveInt = 512
    """A verdict ends at this length."""

    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of verdicts; 0: the likeliest one."""

    chat_template: Literal["model", "none"] = "model"
    """model: the judge's own chat template with a generation prompt; none: the prompt as it is."""

    kv_cache_tokens: PositiveInt | None = None
    """Tokens that the key-value cache of an engine holds. None: as many as memory_fraction allows on GPUs,
    65536 on CPU."""

    memory_fraction: PositiveFloat = Field(default=0.2, le=1.0)
    """Share of a GPU's memory for weights and key-value cache; rollout.memory_fraction is of what is left."""

    max_running_requests: PositiveInt = 64
    """Questions that one engine answers together; others wait in it."""

    timeout_s: PositiveFloat = 120.0
    """A verdict may take this long, waiting included; then the answer stays without a reward."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value
