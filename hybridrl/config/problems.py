"""Everything that is wrong with a config, shown at once: a person repairs it in one go."""

from collections.abc import Sequence

from hybridrl.errors import ConfigError, HybridRLError


class ConfigErrors(ConfigError):
    """Several mistakes of one config."""

    def __init__(self, errors: Sequence[HybridRLError]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = tuple(errors)

    def __reduce__(self) -> tuple:
        return type(self), (self.errors,)


def refuse(errors: Sequence[HybridRLError]) -> None:
    """Raise what was found; nothing when nothing was.

    Raises:
        ConfigErrors: there are errors.
    """
    if errors:
        raise ConfigErrors(errors)
