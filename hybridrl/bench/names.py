"""Names of the benchmarks, for the command line: nothing else is imported with them."""

from typing import Literal, get_args

NameOfBench = Literal["step", "rollout", "swap", "e2e", "plan", "controller", "streaming"]
BENCHES: tuple[NameOfBench, ...] = get_args(NameOfBench)
Peer = Literal["trl", "verl", "openrlhf"]
