"""Prompts and reward of a run, read and tried before any worker starts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybridrl.config import data_files
from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.reward_model_rules import no_rule
from hybridrl.config.schema import Config, SourceConfig
from hybridrl.controller.advantage import load_credit
from hybridrl.controller.judged_reward import judged_parts
from hybridrl.controller.sampling import row_limit
from hybridrl.data.hints import refuse_missing_hints
from hybridrl.data.prompts import PromptFormat, refuse_unfit_prompt
from hybridrl.data.source import (
    TablePrompts,
    load_source,
    open_rows,
    refuse_odd_sources,
    refuse_unread_pictures,
    split_prompts,
)
from hybridrl.data.tables import Table
from hybridrl.data.tokenize import ModelTokenizer, load_tokenizer
from hybridrl.dialogue.opened import open_dialogue, open_episode_dialogue
from hybridrl.errors import HybridRLError, ModelError
from hybridrl.launch.data_sets import describe_absent
from hybridrl.launch.data_warnings import suspicious
from hybridrl.launch.environment_setup import try_environments
from hybridrl.launch.model_folders import in_folders
from hybridrl.launch.pictures import picture_format
from hybridrl.models.weights import refuse_unfit_weights
from hybridrl.rewards.gold import GoldCheck, check_on_gold
from hybridrl.rewards.opened import check_patterns, opened_part
from hybridrl.rewards.pool import Scorer
from hybridrl.rewards.rows import check_rows
from hybridrl.types import HANG_PART, Prompt
from hybridrl.wording import counted


@dataclass(frozen=True, slots=True)
class Prepared:
    train: TablePrompts
    heldout: list[Prompt]
    gold: GoldCheck
    warnings: tuple[str, ...]
    """What is odd about the data, the reward, or the text that template and tokenizer make of a prompt."""

    tokenizer: ModelTokenizer
    environments: str = ""
    """Environments and their tools; "" if there are none."""

    def describe(self) -> str:
        """One line that describes the data and the reward."""
        return _described(len(self.train), len(self.heldout), self.gold, self.environments)


def prepare(loaded: LoadedConfig) -> Prepared:
    """Open the data and try the reward on the reference answers. The model folder has to exist.

    Raises:
        DataError, ConfigError, ModelError: data or tokenizer are not as the config says.
        RewardError: the reward cannot be loaded, raises, or rejects the data's own answers.
        DeadlineError: the reward hangs.
    """
    cfg = loaded.config
    _refuse_unfit_weights(loaded)
    tokenizer = load_tokenizer(cfg.model.path)
    _refuse_other_tokenizer(loaded, tokenizer)
    train = _open(loaded, cfg.data.train, tokenizer, "train")
    heldout = _open(loaded, cfg.data.heldout, tokenizer, "heldout") if cfg.data.heldout else None
    _refuse_odd_limits(loaded, [train.rows, *([heldout.rows] if heldout else [])])
    gold = _judged(loaded, *_tables(cfg, train.rows, heldout.rows if heldout else None))
    environments = try_environments(loaded, [train.rows, *([heldout.rows] if heldout else [])])
    _refuse_unfit_dialogue(loaded, tokenizer, with_tools=environments.calls_by_template)
    check_patterns(cfg.reward, _opened(cfg, tokenizer, train.rows), where=loaded.where("reward"))
    odd = _suspicious(cfg, gold, train.rows, heldout.rows if heldout else None)
    warnings = (*odd, *train.examined().warnings)
    described = environments.described
    return Prepared(train, heldout.all() if heldout else [], gold, warnings, tokenizer, described)


def prepare_heldout(loaded: LoadedConfig) -> tuple[list[Prompt], str]:
    """The held-out prompts of a config that has some, and a line about them and the reward; otherwise as
    prepare().

    A reward that rejects the data's own answers is no error here: the line says how many it accepts.
    """
    cfg, source = loaded.config, loaded.config.data.heldout
    assert source is not None, "the caller has refused a config without held-out data"
    refuse_unfit_weights(cfg.model.path, where=loaded.where("model.path"))
    tokenizer = load_tokenizer(cfg.model.path)
    heldout = _open(loaded, source, tokenizer, "heldout")
    _refuse_odd_limits(loaded, [heldout.rows])
    any_gold = cfg.reward.model_copy(update={"min_gold": 0.0})
    measured = replace(loaded, config=cfg.model_copy(update={"reward": any_gold}))
    gold = _judged(measured, (source, heldout.rows))
    environments = try_environments(loaded, [heldout.rows])
    _refuse_unfit_dialogue(loaded, tokenizer, with_tools=environments.calls_by_template)
    check_patterns(cfg.reward, _opened(cfg, tokenizer, heldout.rows), where=loaded.where("reward"))
    played = f"; environment {environments.described}" if environments.described else ""
    return heldout.all(), f"{counted(len(heldout), 'prompt', form=',')}{_accepted(gold)}{played}"


def open_train(loaded: LoadedConfig) -> TablePrompts:
    """The training prompts; the errors are those of prepare(). The model folder has to exist."""
    return _open(loaded, loaded.config.data.train, load_tokenizer(loaded.config.model.path), "train")


def try_data(loaded: LoadedConfig, say: Callable[[str, str], None]) -> None:
    """Read the data and try the reward; say what was found, and what could not be looked at.

    Where the model is not here, neither is its tokenizer: then the length of prompts is not looked at. Where
    the data are not here, the reward is loaded and not tried.

    Raises: as prepare(), with the line of the config.
    """
    here = in_folders(loaded)
    with loaded.located():
        if missing := describe_absent(loaded) or _describe_absent_files(loaded):
            with Scorer(loaded.config.reward, where=loaded.where("reward.name")):
                say("data", missing)
            try_environments(loaded, [])
            return
        is_here = Path(here.config.model.path).is_dir()
        if not is_here:
            for heading, text in _without_tokenizer(here):
                say(heading, text)
            return
        found = prepare(here)
        say("data", found.describe())
        for warning in found.warnings:
            say("warning", warning)


def _describe_absent_files(loaded: LoadedConfig) -> str:
    """One line: the data files that are not on this machine; "" if all are."""
    data = loaded.config.data
    paths = [*data.train.paths, *(data.heldout.paths if data.heldout else ())]
    names = ", ".join(path for path in paths if not data_files.matched(path))
    return f"{names} not here: the rows, and the reward on them, were not looked at" if names else ""


def _refuse_unfit_weights(loaded: LoadedConfig) -> None:
    """Compare the weights of every model of a run with its config.json; a critic begins as the policy."""
    cfg, teacher = loaded.config, loaded.config.algorithm.teacher
    refuse_unfit_weights(cfg.model.path, where=loaded.where("model.path"))
    if teacher and Path(teacher).is_dir():
        refuse_unfit_weights(teacher, where=loaded.where("algorithm.teacher"))
    if cfg.reward_model and Path(cfg.reward_model.path).is_dir():
        refuse_unfit_weights(cfg.reward_model.path, where=loaded.where("reward_model.path"))


def _without_tokenizer(loaded: LoadedConfig) -> Iterator[tuple[str, str]]:
    """Try what can be tried without a model; yields headings and lines about it.

    Raises:
        DataError, ConfigError, RewardError, DeadlineError: as prepare().
    """
    data = loaded.config.data
    train = _rows(loaded, data.train, "train")
    heldout = _rows(loaded, data.heldout, "heldout") if data.heldout else None
    gold = _judged(loaded, *_tables(loaded.config, train, heldout))
    environments = try_environments(loaded, [train, *([heldout] if heldout else [])])
    found = _described(len(train), len(heldout) if heldout else 0, gold, environments.described)
    yield "data", f"{found}; prompts are measured, and weights inspected, once the model is here"
    yield from (("warning", text) for text in _suspicious(loaded.config, gold, train, heldout))


def _suspicious(cfg: Config, gold: GoldCheck, train: Table, heldout: Table | None) -> list[str]:
    key, per_step = "batch.prompts_per_step", cfg.batch.prompts_per_step
    # The prompt of a game is often the same: what differs is in other columns.
    # So it is if they are questions about pictures.
    alike = cfg.has_episodes or cfg.data.images is not None
    columns = sorted(train[0]) if alike else [cfg.data.prompt_field]
    found = suspicious(train, heldout, columns, noun="prompt", key=key, per_step=per_step)
    return [*filter(None, [gold.warning]), *found]


def _rows(loaded: LoadedConfig, source: SourceConfig, split: str) -> Table:
    """The rows of a split, after a check of every prompt's form."""
    cfg, where = loaded.config, loaded.where(f"data.{split}")
    table = open_rows(source, split=split, seed=cfg.run.seed, where=where)[1]
    refuse_unread_pictures(table, cfg.data)
    for index, (prompt, _) in enumerate(split_prompts(table, cfg.data)):
        refuse_unfit_prompt(cfg.data, prompt, table.place(index))
    refuse_odd_sources(table)
    if cfg.algorithm.hint is not None and split == "train":
        refuse_missing_hints(cfg.algorithm.hint, table)
    return table


def _tables(cfg: Config, train: Table, heldout: Table | None) -> Iterator[tuple[SourceConfig, Table]]:
    yield cfg.data.train, train
    if cfg.data.heldout is not None and heldout is not None:
        yield cfg.data.heldout, heldout


def _judged(loaded: LoadedConfig, *tables: tuple[SourceConfig, Table]) -> GoldCheck:
    """Look at what the reward needs in every row, and try it on the own answers of the first table; a reward
    that rejects too many is refused."""
    cfg, (source, rows) = loaded.config, tables[0]
    with Scorer(cfg.reward, where=loaded.where("reward.name")) as scorer:
        for each, table in tables:
            where = loaded.where("reward.answer_field", "reward.name")
            check_rows(cfg.reward, table, data=each.name, where=where, scorer=scorer)
        gold = check_on_gold(scorer, rows, where=source.name)
        _refuse_missing_parts(cfg, scorer, rows[0])
    return gold


def _opened(cfg: Config, tokenizer: ModelTokenizer, rows: Table) -> str:
    """The part of an answer's form that the prompt holds already, such as the tag that opens its thinking."""
    if cfg.data.chat_template == "none":
        return opened_part(rows[0][cfg.data.prompt_field], by_template=False)
    messages = PromptFormat(cfg.data, tokenizer, "data.chat_template").messages("a")
    whole, asked = tokenizer.render(messages), tokenizer.render(messages, answered=True)
    is_suffix = whole.startswith(asked)
    return opened_part(whole.removeprefix(asked), by_template=is_suffix)


def _described(num_train: int, num_heldout: int, gold: GoldCheck, environments: str) -> str:
    heldout = f", {num_heldout:,} held out" if num_heldout else ", none held out"
    played = f"; environment {environments}" if environments else ""
    return f"{counted(num_train, 'prompt', form=',')}{heldout}{_accepted(gold)}{played}"


def _accepted(gold: GoldCheck) -> str:
    answers = counted(gold.num_checked, "gold answer")
    return f"; the reward accepts {gold.accepted_share:.0%} of {answers}" if gold.num_checked else ""


def _refuse_missing_parts(cfg: Config, scorer: Scorer, row: Mapping[str, Any]) -> None:
    """If the algorithm needs the parts of the reward, score one answer: the row's reference, or else an empty
    one.

    Raises:
        ConfigError: the reward has too few parts.
        RewardError, DeadlineError: as Scorer.score.
    """
    credit = load_credit(cfg.algorithm)
    if not credit.needs_reward_parts:
        return
    score = scorer.score_gold([row], ["the gold answer of the first row"])[0]
    score = score or scorer.score([""], [row], ["an empty answer to the first row"])[0]
    parts = score.parts
    if cfg.reward_model is not None:
        parts = judged_parts(parts, score.reward, 0.0, alone=no_rule(cfg))
    credit.check_parts(sorted(parts.keys() - {HANG_PART}))


def _refuse_odd_limits(loaded: LoadedConfig, tables: Sequence[Table]) -> None:
    """Refuse a row whose column rollout.limit_field is no number of tokens."""
    field = loaded.config.rollout.limit_field
    for table in tables if field is not None else ():
        for i in range(len(table)):
            row_limit(field, table[i], table.place(i))


def _refuse_unfit_dialogue(loaded: LoadedConfig, tokenizer: ModelTokenizer, *, with_tools: bool) -> None:
    """Refuse a chat template that cannot be used for the turns of an environment."""
    cfg = loaded.config
    if cfg.has_episodes:
        try:
            if cfg.program is not None:
                open_dialogue(tokenizer, cfg.model.path, cfg.data, with_tools=cfg.program.tools)
            else:
                open_episode_dialogue(tokenizer, cfg.model.path, cfg.data, with_tools=with_tools)
        except HybridRLError as error:
            raise loaded.locate(error) from error


def _refuse_other_tokenizer(loaded: LoadedConfig, tokenizer: ModelTokenizer) -> None:
    """Refuse a reward model with another tokenizer: it reads the policy's token ids as they are."""
    own = loaded.config.reward_model
    if own is None:
        return
    ids, other = tokenizer.hf.get_vocab(), load_tokenizer(own.path).hf.get_vocab()
    if ids == other:
        return
    token = min(text for text, _ in ids.items() ^ other.items())
    raise ModelError(
        f"the tokenizer of the reward model {own.path} is not that of {loaded.config.model.path}: "
        f"{token!r} is token {ids.get(token, 'none')} of the policy and {other.get(token, 'none')} of it",
        where=loaded.where("reward_model.path"),
        fix="train one on a model with the policy's tokenizer: hybridrl rm",
    )


def _open(loaded: LoadedConfig, source: SourceConfig, tokenizer: ModelTokenizer, split: str) -> TablePrompts:
    cfg = loaded.config
    return load_source(
        source,
        cfg.data,
        tokenizer,
        split=split,
        seed=cfg.run.seed,
        max_prompt_tokens=cfg.rollout.max_prompt_tokens,
        where=loaded.where(f"data.{split}"),
        hint=cfg.algorithm.hint if split == "train" else None,
        pictures=picture_format(cfg),
    )
