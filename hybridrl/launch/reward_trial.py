"""Tries the reward of a config on its data, without a model: `hybridrl reward check`."""

from collections.abc import Iterator

from hybridrl.config.load import LoadedConfig
from hybridrl.data.source import open_rows
from hybridrl.findings import Finding
from hybridrl.rewards.rows import check_rows
from hybridrl.rewards.trial import try_reward
from hybridrl.wording import counted


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
        yield from try_reward(cfg.reward, table, where=where, sample=sample)
