"""Rules about the run's folder, its model folder and its data files."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridrl.config import data_files
from hybridrl.config.files import file_kind, is_there
from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext
from hybridrl.config.schema import Config, SourceConfig
from hybridrl.config.sft_rm import RMConfig, SFTConfig
from hybridrl.errors import AbsentDataError, AbsentModelError, ConfigError, DataError, HybridRLError
from hybridrl.models import hub
from hybridrl.models.published import published_names

_LONGEST_NAME = 255
"""Bytes of a name on the file systems of Linux."""


def run_name_is_one_folder(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    name = loaded.config.run.name
    wrong = Path(name).name != name or name in {"", ".."} or name != name.strip() or not name.isprintable()
    if wrong or len(os.fsencode(name)) > _LONGEST_NAME:
        yield ConfigError(
            f"run.name = {name!r:.60} is not a folder name",
            where=loaded.where("run.name"),
            fix="use letters, digits, - and _; run.folder is the folder that it stands in",
        )


def model_exists(loaded: LoadedConfig[Any], context: RuleContext) -> Iterator[HybridRLError]:
    path = loaded.config.model.path
    if is_there(Path(path)) and not Path(path).is_dir():
        yield ConfigError(
            f"model.path = {path} is {file_kind(Path(path))}, not a folder",
            where=loaded.where("model.path"),
            fix="give the folder of a model in Hugging Face format",
        )
        return
    downloadable = hub.is_name(path) and (context.spec is not None or context.unreadable)
    if loaded.config.model.make is None and hub.find_folder(path) is None and not downloadable:
        yield AbsentModelError(
            f"no model folder at model.path = {path}",
            where=loaded.where("model.path"),
            fix=_near_model(path),
        )


def data_exists(loaded: LoadedConfig[Any], context: RuleContext) -> Iterator[HybridRLError]:
    for key, source in _sources(loaded.config):
        where = loaded.where(f"{key}.path")
        for path in source.paths:
            files = data_files.matched(path)
            if not files and (data_files.kind_of(path) or Path(path).is_dir()):
                fix = data_files.nearest(path)
                yield AbsentDataError(f"no file at {key} = {path}", where=where, fix=fix)
            elif wrong := [file for file in files or [path] if data_files.kind_of(file) is None]:
                yield _no_prompt_file(key, path, wrong[0], where)


def _no_prompt_file(key: str, path: str, file: str, where: str) -> DataError:
    what = f"{key} = {path}{'' if file == path else f': {file}'} is no prompt file"
    name = hub.is_name(file) and not Path(file).exists()
    from_hub = f", or {{hub: {file}}} for a data set of the hub" if name else ""
    return DataError(what, where=where, fix=f"give {data_files.NAMED}{from_hub}")


def chat_template_is_there(loaded: LoadedConfig[Any], context: RuleContext) -> Iterator[HybridRLError]:
    data, folder = loaded.config.data, hub.find_folder(loaded.config.model.path)
    if data.chat_template == "none" and data.system_prompt is not None:
        yield ConfigError(
            "data.system_prompt needs a chat template, data.chat_template = none",
            where=loaded.where("data.system_prompt"),
            fix="set data.chat_template: model, or put the text into the prompts",
        )
    if data.chat_template == "model" and folder and not has_chat_template(folder):
        yield ConfigError(
            f"data.chat_template = model, but the tokenizer of {folder} has no chat template",
            where=loaded.where("data.chat_template", "model.path"),
            fix="data.chat_template: none takes the prompts as they are",
        )


def has_chat_template(folder: Path) -> bool:
    """Whether transformers finds one: as a file, or under a key of the tokenizer's config."""
    written = folder / "tokenizer_config.json"
    own_file = any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json"))
    return own_file or (written.exists() and '"chat_template"' in written.read_text("utf-8", "replace"))


def _near_model(path: str) -> str:
    known = [str(found.parent) for found in Path(path).parent.glob("*/config.json")]
    if near := difflib.get_close_matches(path, known, n=1, cutoff=0.5):
        return f"there is {near[0]}"
    if not hub.is_name(path):
        return "download it in Hugging Face format and give its folder"
    near = difflib.get_close_matches(path, published_names(), n=1, cutoff=0.8)
    mean = f"did you mean {near[0]}? Otherwise " if near else ""
    return f"{mean}hf download {path} config.json gets what can be checked before a launch"


def _sources(config: Config | SFTConfig | RMConfig) -> Iterator[tuple[str, SourceConfig]]:
    yield "data.train", config.data.train
    if config.data.heldout is not None:
        yield "data.heldout", config.data.heldout
