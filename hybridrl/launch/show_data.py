"""Shows one prompt of a run as the model is given it: its text, its tokens and their ids."""

from collections.abc import Iterator
from pathlib import Path

from hybridrl.config.load import LoadedConfig
from hybridrl.data.examined import Examined
from hybridrl.errors import AbsentModelError
from hybridrl.launch.model_folders import in_folders
from hybridrl.launch.prepare import open_train


def show(loaded: LoadedConfig) -> Iterator[tuple[str, str]]:
    """Headings and texts about the first training prompt.

    Raises:
        DataError, ConfigError, ModelError: data or tokenizer are not as the config says.
    """
    here = in_folders(loaded)
    with loaded.located():
        if not Path(here.config.model.path).is_dir():
            raise AbsentModelError(
                f"the model {loaded.config.model.path} is not here, nor is its tokenizer",
                where=loaded.where("model.path"),
                fix="make or download it first: hybridrl launch does",
            )
        found = open_train(here).examined()
        yield from _lines(found)


def _lines(found: Examined) -> Iterator[tuple[str, str]]:
    yield "prompt", found.text
    pairs = (f"{token} {name!r}" for token, name in zip(found.token_ids, found.tokens, strict=True))
    yield "tokens", ", ".join(pairs)
    yield "stops", f"an answer ends with {', '.join(found.stop_tokens)}"
    for warning in found.warnings:
        yield "warning", warning
