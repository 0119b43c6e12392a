"""vLLM as a rollout engine, in a Python environment of its own.

kind.py        the EngineKind: everything that needs no running engine
sizes.py       parallel layout and cache size of an engine
arguments.py   arguments and environment variables of an engine on this machine
start.py       how the host process is started (rollout/process.py is the Engine). Imports no vllm
host.py        the process that hosts vLLM, in the interpreter of rollout.python
core.py        the loop around vLLM's scheduler and executor
worker.py      what runs in the workers, one per tensor-parallel rank: our remote calls and replacements
sampler.py     sampling from counter-based seeds, with log-probabilities of the whole vocabulary

At tp = 1 the host, the scheduler and the worker are one process.
"""

from hybridrl.rollout.vllm.kind import VLLM

__all__ = ["VLLM"]
