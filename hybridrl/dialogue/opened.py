"""The dialogue of a model, and the messages that a row of the data begins with."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridrl.config.schema import DataConfig
from hybridrl.data.prompts import PromptFormat, placeholder
from hybridrl.data.tokenize import ModelTokenizer
from hybridrl.dialogue.base import Dialogue
from hybridrl.dialogue.calls import FOR_TOOLS, no_call_format
from hybridrl.dialogue.check import check_dialogue
from hybridrl.dialogue.plain import PlainDialogue
from hybridrl.dialogue.rendered import rendered_dialogue
from hybridrl.dialogue.template import TemplateDialogue
from hybridrl.environments.base import Message
from hybridrl.errors import ConfigError
from hybridrl.models.config_json import read_object
from hybridrl.models.spec import read

Opening = Callable[[Mapping[str, Any]], Sequence[Message]]
"""The messages of a row's prompt."""


def open_dialogue(
    tokenizer: ModelTokenizer, folder: str, data: DataConfig, *, with_tools: bool = False
) -> Dialogue:
    """The dialogue of a model, tested on short conversations.

    Args:
        folder: the model's folder.
        with_tools: the policy calls tools in the format of the chat template.

    Raises:
        ConfigError: the chat template cannot be used for several turns, or has no format of calls that is
            understood.
    """
    if data.chat_template == "none":
        if with_tools:
            raise no_call_format("data.chat_template = none has no format for calls of tools")
        vision = None if data.images is None else read(folder).vision
        return PlainDialogue(tokenizer, "" if vision is None else placeholder(tokenizer, vision))
    tokenizer.require_template("data.chat_template")
    model_type = str(read_object(Path(folder, "config.json")).get("model_type", ""))
    dialogue = rendered_dialogue(tokenizer, model_type) or TemplateDialogue(tokenizer)
    check_dialogue(dialogue, tokenizer, with_tools=with_tools)
    return dialogue


def open_episode_dialogue(
    tokenizer: ModelTokenizer, folder: str, data: DataConfig, *, with_tools: bool
) -> Dialogue:
    """The dialogue of a run with an environment, whose config can also describe calls as plain text.

    The arguments and errors are those of open_dialogue().
    """
    try:
        return open_dialogue(tokenizer, folder, data, with_tools=with_tools)
    except ConfigError as error:
        if error.fix == FOR_TOOLS:
            error.fix += ", or environment.text_calls"
        raise


def opening_of(tokenizer: ModelTokenizer, data: DataConfig) -> Opening:
    """The function that makes the messages of a row's prompt, system prompt included."""
    prompts = PromptFormat(data, tokenizer, "data.chat_template")
    return lambda row: prompts.messages(row[data.prompt_field])
