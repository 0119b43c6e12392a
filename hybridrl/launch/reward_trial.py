"""Tries the reward of a config on its data, without a model: `hybridrl reward check`."""

from collections.abc import Iterator

from hybridrl.config.load import LoadedConfig
from hybridrl.data.source import open_rows
from hybridrl.findings import Finding
from hybridrl.rewards.judges.asked import JUDGES
from hybridrl.rewards.judges.trial import try_judges
from hybridrl.rewards.rows import check_rows
from hybridrl.rewards.trial import gold_answers, try_reward
from hybridrl.wording import counted

_ASKED = 8
"""Answers that a judge is asked about."""


def trial(loaded: LoadedConfig, *, sample: int) -> Iterator[Finding]:
    """What the answers of every kind showed; the first finding is about the rows.

    Args:
        sample: rows whose right answers are tried.

    Raises:
        DataError, ConfigError, RewardError, DeadlineError: data and reward cannot be tried at all.
    """
    cfg, where = loaded.config, loaded.where("reward.name")
    with loaded.located():
        source, seed, place = cfg.data.train, cfg.run.seed, loaded.where("data.train")
        name, table = open_rows(source, split="train", seed=seed, where=place)
        answers = loaded.where("reward.answer_field", "reward.name")
        check_rows(cfg.reward, table, data=name, where=answers)
        found = f"{counted(len(table), 'row', form=',')} of {name}, each with what the reward needs"
        yield Finding("ok", "rows", found)
        rows, right = gold_answers(cfg.reward, table, where=where, sample=_ASKED)
        yield from try_judges(cfg.reward, rows, right)
        if cfg.reward.name not in JUDGES:
            yield from try_reward(cfg.reward, table, where=where, sample=sample)
