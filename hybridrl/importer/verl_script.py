"""The overrides of a verl launch, read key by key: a key that is never read was not translated."""

from collections.abc import Iterator, Mapping
from typing import Any

from hybridrl.errors import ConfigError
from hybridrl.importer.overrides import Launch, Override
from hybridrl.importer.translation import Line, Remark
from hybridrl.importer.verl_keys import FULLY_ASYNC, A

Found = Iterator[Line | Remark]
"""Lines are translated keys, remarks are keys without a counterpart."""


class Script:
    """The overrides of a launch, and which of them have been translated."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.by_key: Mapping[str, Override] = {one.key: one for one in launch.overrides}
        self.used: set[str] = set()
        self._defaults: Mapping[str, Any] = FULLY_ASYNC if self.is_fully_async else {}

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or verl's default; the key counts as translated.

        Args:
            default: the default of ppo_trainer.yaml; fully asynchronous training has some others.
        """
        default = self._defaults.get(key, default)
        found = self.by_key.get(key)
        if found is None:
            return default
        self.used.add(key)
        return default if found.unknown or found.value is None else found.value

    def number(self, key: str, default: float | None = None) -> Any:
        """A value that has to be a number.

        Raises:
            ConfigError: it is not.
        """
        value = self.get(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(
                f"{key}={value} is not a number", where=f"line {self.by_key[key].line}", fix="give one"
            )
        return value

    def count(self, key: str, default: int) -> int:
        """A value that has to be a whole number above 0.

        Raises:
            ConfigError: it is not.
        """
        value = self.number(key, default)
        if value != int(value) or value < 1:
            where = f"line {self.by_key[key].line}"
            raise ConfigError(f"{key}={value} is not 1 or more", where=where, fix="give a whole number")
        return int(value)

    def source(self, key: str) -> str:
        """The script's setting of the key, or that it is the default."""
        found = self.by_key.get(key)
        return found.text if found and not found.unknown and found.value is not None else f"default of {key}"

    @property
    def is_fully_async(self) -> bool:
        """Whether prompts are sampled all the time, and data.train_batch_size is without a meaning."""
        named = self.launch.module + self.launch.config_name
        sizes = self.by_key.get("data.train_batch_size")
        return "fully_async" in named or (sizes is not None and sizes.value == 0)

    @property
    def is_megatron(self) -> bool:
        named = (
            self.launch.config_name + str(self.get("model_engine", "")) + str(self.get(f"{A}.strategy", ""))
        )
        return "megatron" in named or any(".megatron." in key for key in self.by_key)
