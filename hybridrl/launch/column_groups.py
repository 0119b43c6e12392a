"""The dedicated groups of ranks that a run has in addition to the actor's, and the columns that each
computes."""

from hybridrl.algorithms.needs import GROUP_COLUMNS, Needs
from hybridrl.config.schema import Config


def dedicated_columns(cfg: Config) -> dict[str, tuple[str, ...]]:
    """Columns that the algorithm needs and dedicated ranks compute, by the config section of those ranks.

    Raises:
        ConfigError: an algorithm plug-in does not exist.
    """
    dedicated = {"critic": cfg.critic.parallel, "reference": cfg.reference.parallel}
    groups = [group for group, parallel in dedicated.items() if parallel is not None]
    needs = Needs.of(cfg.algorithm).own_columns if groups else frozenset()
    return {group: tuple(column for column in GROUP_COLUMNS[group] if column in needs) for group in groups}
