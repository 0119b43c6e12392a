"""Names of the three kinds of config. The command line imports this file at its start, so it stays light."""

from typing import Literal

KindOfConfig = Literal["launch", "sft", "rm"]
"""The command that a config is for."""
