"""The model's tokenizer: chat template, ids of prompts, text of answers, tokens that end an answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridrl.errors import ConfigError, DataError, ModelError
from hybridrl.models.config_json import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
"""{"role": ..., "content": ...}, and what conversations with tools have besides."""


@dataclass(frozen=True, slots=True)
class ModelTokenizer:
    """A tokenizer with what its model folder says about the end of an answer."""

    hf: "PreTrainedTokenizerBase"
    stop_token_ids: tuple[int, ...]
    """Tokens that end an answer, ascending; from generation_config.json, config.json and the tokenizer."""

    def require_template(self, where: str) -> None:
        """
        Raises:
            ConfigError: the tokenizer has no chat template.
        """
        if not self.hf.chat_template:
            raise ConfigError(
                f"the tokenizer of {self.hf.name_or_path} has no chat template",
                where=where,
                fix="data.chat_template=none",
            )

    def render(
        self,
        messages: Sequence[Message],
        *,
        answered: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """A conversation in the model's chat template, up to where the next answer begins.

        Args:
            answered: the last message is the answer, and the text ends with it.
            tools: tools of the conversation, in OpenAI's form.

        Raises:
            DataError: the template fails on the conversation; the message has the template's own reason.
        """
        given = [dict(m) for m in messages]
        try:
            text = self.hf.apply_chat_template(
                given,
                tokenize=False,
                add_generation_prompt=not answered,
                tools=[dict(tool) for tool in tools] or None,
            )
        except Exception as error:  # a template is code of the model's folder, and may raise anything
            raise DataError(
                f"the chat template fails: {type(error).__name__}: {error}",
                where=f"the template of {self.hf.name_or_path}",
                fix="correct the messages, or the template in the model's folder",
            ) from error
        assert isinstance(text, str)
        return text

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Token ids of each text.

        Args:
            add_special_tokens: add those that the tokenizer puts around plain text; a chat template has
                written its own.
        """
        return self.hf(list(texts), add_special_tokens=add_special_tokens)["input_ids"] if texts else []

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Text of each token, special tokens too. A character whose bytes are in several tokens is with the
        first of them; the others are empty."""
        found: list[str] = []
        while len(found) < len(token_ids):
            at = len(found)
            for width in range(1, _TOKENS_PER_CHARACTER + 1):
                text = self._decode(token_ids[at : at + width])
                if not text.endswith("\ufffd"):
                    break
            else:
                text, width = self._decode(token_ids[at : at + 1]), 1
            found += [text, *[""] * (len(token_ids[at : at + width]) - 1)]
        return found

    def _decode(self, token_ids: Sequence[int]) -> str:
        text = self.hf.decode(list(token_ids), clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        first = self.hf.convert_ids_to_tokens(int(token_ids[0]))
        spaced = isinstance(first, str) and first.startswith(_SPACE) and not text.startswith(" ")
        return f" {text}" if spaced else text  # SentencePiece drops it at the beginning of a text

    def decode_answers(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each answer, exactly as generated but without special tokens."""
        ids = [list(answer) for answer in token_ids]
        backend: Any = getattr(self.hf, "backend_tokenizer", None)
        if backend is not None:  # all answers in one call, without Python's lock
            return backend.decode_batch(ids, skip_special_tokens=True)
        return self.hf.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


_TOKENS_PER_CHARACTER = 4
"""A character has at most four bytes, each of which may be a token."""

_SPACE = "\u2581"
"""The mark of a space in tokens of SentencePiece."""


def load_tokenizer(folder: str) -> ModelTokenizer:
    """The tokenizer of a model.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    # Imported here: it takes seconds, for which modules that only name the type need not wait.
    from transformers import PreTrainedTokenizerFast

    if Path(folder).is_dir() and not any(Path(folder, name).is_file() for name in _VOCABULARIES):
        # Without this transformers makes a tokenizer without a vocabulary, which makes no token of any text.
        raise ModelError(
            f"no tokenizer can be read from {folder}: it has none of {', '.join(_VOCABULARIES)}",
            where="model.path",
            fix="the folder needs a tokenizer.json",
        )
    if Path(folder, "tokenizer.json").is_file():
        # The file holds all of the tokenizer, and AutoTokenizer imports torch and scikit-learn: 8 s more.
        kind = PreTrainedTokenizerFast
    else:
        from transformers import AutoTokenizer as kind
    try:
        tokenizer = kind.from_pretrained(folder)
    except Exception as error:  # the libraries raise whatever the files of the folder lead to
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"no tokenizer can be read from {folder}: {reason}",
            where="model.path",
            fix="the folder needs a tokenizer.json",
        ) from error
    return ModelTokenizer(tokenizer, _stop_token_ids(folder, tokenizer.eos_token_id))


_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files of which a tokenizer has one."""


def _stop_token_ids(folder: str, eos_token_id: int | None) -> tuple[int, ...]:
    found = {eos_token_id}
    for name in ("generation_config.json", "config.json"):
        found |= set(_listed_eos(Path(folder, name)))
    return tuple(sorted(token for token in found if token is not None))


def _listed_eos(path: Path) -> list[int]:
    """The eos_token_id of a file, which may be absent, as a list."""
    listed = read_object(path).get("eos_token_id") if path.is_file() else None
    tokens = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in tokens):
        return tokens
    raise ModelError(
        f"eos_token_id = {json.dumps(listed)} in {path.name} is neither a token id nor a list of them",
        where=str(path),
        fix="correct eos_token_id, or download the model again",
    )
