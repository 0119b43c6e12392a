"""Prompts and reward of a run, read and tried before any worker starts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hybridrl.config.load import LoadedConfig
from hybridrl.config.schema import SourceConfig
from hybridrl.data.source import TablePrompts, load_source
from hybridrl.data.tokenize import ModelTokenizer, load_tokenizer
from hybridrl.errors import HybridRLError, ModelError
from hybridrl.launch.model_folders import in_folders
from hybridrl.rewards.gold import GoldCheck, check_on_gold
from hybridrl.rewards.pool import Scorer
from hybridrl.types import Prompt


@dataclass(frozen=True, slots=True)
class Prepared:
    train: TablePrompts
    heldout: list[Prompt]
    gold: GoldCheck

    def describe(self) -> str:
        """One line for a person."""
        heldout = f", {len(self.heldout):,} held out" if self.heldout else ", none held out"
        gold = (
            f"; the reward accepts {1 - self.gold.rejected_share:.0%} of {self.gold.num_checked} gold answers"
        )
        return f"{len(self.train):,} prompts{heldout}{gold if self.gold.num_checked else ''}"


def prepare(loaded: LoadedConfig) -> Prepared:
    """Open the data and try the reward on its reference answers; the model folder exists.

    Raises:
        DataError, ConfigError, ModelError: data or tokenizer are not as the config says.
        RewardError: the reward cannot be loaded, raises, or rejects the data's own answers.
        DeadlineError: it hangs.
    """
    cfg = loaded.config
    tokenizer = load_tokenizer(cfg.model.path)
    _refuse_other_tokenizer(loaded, tokenizer)
    train = _open(loaded, cfg.data.train, tokenizer, "train")
    heldout = _open(loaded, cfg.data.heldout, tokenizer, "heldout").all() if cfg.data.heldout else []
    with Scorer(cfg.reward, where=loaded.where("reward.name")) as scorer:
        gold = check_on_gold(scorer, train.rows, where=cfg.data.train.path or str(cfg.data.train.task))
    return Prepared(train, heldout, gold)


def try_data(loaded: LoadedConfig, say: Callable[[str, str], None]) -> None:
    """Read the data and try the reward, if there is a model whose tokenizer can be used; say what was found.

    Raises: as prepare(), with the line of the config.
    """
    here = in_folders(loaded)
    if Path(here.config.model.path).is_dir():
        try:
            say("data", prepare(here).describe())
        except HybridRLError as error:
            raise loaded.locate(error) from error


def _refuse_other_tokenizer(loaded: LoadedConfig, tokenizer: ModelTokenizer) -> None:
    """The reward model reads the policy's tokens as they are."""
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
        where=loaded.where(f"data.{split}.path", f"data.{split}.task"),
    )
