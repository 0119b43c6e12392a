"""Names of the benchmarks, for the command line: nothing else is imported with them."""

from typing import Literal

NameOfBench = Literal["step", "rollout", "swap", "e2e", "plan", "controller", "streaming"]
Peer = Literal["trl"]
