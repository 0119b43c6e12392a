"""Which groups of ranks a run has beside the actor's, and the columns that each computes."""

from collections.abc import Mapping

from hybridrl.algorithms.needs import Needs
from hybridrl.config.schema import Config
from hybridrl.config.training import TrainParallel
from hybridrl.errors import ConfigError

_COLUMNS = {"critic": ("value",), "reference": ("ref_logp", "teacher_logp")}


def columns_elsewhere(cfg: Config) -> dict[str, tuple[str, ...]]:
    """Columns that the algorithm needs, by the section of the config whose ranks compute them: those with
    ranks of their own.

    Raises:
        ConfigError: ranks of their own that nobody asks; an algorithm plug-in that does not exist.
    """
    apart: Mapping[str, TrainParallel | None] = {
        "critic": cfg.critic.parallel,
        "reference": cfg.reference.parallel,
    }
    groups = [group for group, parallel in apart.items() if parallel is not None]
    needs = Needs.of(cfg.algorithm).columns if groups else frozenset()
    found = {group: tuple(column for column in _COLUMNS[group] if column in needs) for group in groups}
    for group, columns in found.items():
        if not columns:
            estimator = cfg.algorithm.estimator.name
            raise ConfigError(
                f"{group}.parallel is set, but estimator {estimator} with algorithm.kl.coefficient = "
                f"{cfg.algorithm.kl.coefficient:g} needs no {' and no '.join(_COLUMNS[group])}",
                where=f"{group}.parallel",
                fix=f"leave {group}.parallel out",
            )
    return found
