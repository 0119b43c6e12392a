"""Keys of training on examples: supervised fine-tuning (SFT), and reward models (RM).

Both use the sections of reinforcement learning that they need: model, actor, run, cluster.
"""

from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from hybridrl.config.cluster import ClusterConfig
from hybridrl.config.observe import ObserveConfig
from hybridrl.config.schema import DataConfig, ModelConfig, SourceConfig, TrainingRun, with_model_of_the_seed
from hybridrl.config.section import Section
from hybridrl.config.training import ActorConfig


class ExamplesConfig(DataConfig):
    """The examples of a run, and how they become tokens."""

    train: SourceConfig
    """Examples to train on."""

    heldout: SourceConfig | None = None
    """Examples to evaluate on; None: no evaluation."""

    chat_template: Literal["model", "none"] = "model"
    """model: the tokenizer's chat template; none: the text as it is, the answer right after the prompt."""


class SFTDataConfig(ExamplesConfig):
    """The examples of `hybridrl sft`: prompts with the answers to train on, or whole conversations."""

    response_field: str = "response"
    """Column with the answer to train on."""

    messages_field: str | None = None
    """Column with a conversation, instead of prompt and answer: every turn of the assistant is trained on."""

    tools_field: str | None = None
    """Column with the tools of a conversation, a list of schemas in OpenAI's form or null. Conversations may
    then have calls of tools and their results, and are written turn by turn, as episodes are. Needs
    messages_field."""


class RMDataConfig(ExamplesConfig):
    """The examples of `hybridrl rm`: prompts with two answers, of which one is better."""

    chosen_field: str = "chosen"
    """Column with the better answer."""

    rejected_field: str = "rejected"
    """Column with the worse answer."""

    margin_field: str | None = None
    """Column with the margin, the least wanted difference of reward between the two. None: 0."""


class ExamplesBatchConfig(Section):
    """The size of an optimizer step."""

    examples_per_step: PositiveInt = 64
    """Examples of one optimizer step: conversations, or pairs of answers."""


class SupervisedConfig(Section):
    """What SFT and RM have in common."""

    model: ModelConfig
    run: TrainingRun
    batch: ExamplesBatchConfig = ExamplesBatchConfig()
    actor: ActorConfig = ActorConfig()
    cluster: ClusterConfig = ClusterConfig()
    observe: ObserveConfig = ObserveConfig()

    @model_validator(mode="after")
    def _model_of_the_seed(self) -> Self:
        return with_model_of_the_seed(self, self.model, self.run.seed)


class SFTConfig(SupervisedConfig):
    """`hybridrl sft`: the likelihood of given answers."""

    data: SFTDataConfig


class RMConfig(SupervisedConfig):
    """`hybridrl rm`: a reward for whole answers, from pairs of which one is better."""

    data: RMDataConfig
