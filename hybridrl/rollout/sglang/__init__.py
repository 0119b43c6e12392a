"""SGLang as a rollout engine.

kind.py        the EngineKind: everything that needs no running engine
sizes.py       parallel layout and cache size of an engine
arguments.py   arguments and environment variables of an engine on this machine
start.py       how the host process is started (rollout/process.py is the Engine). Imports no sglang
host.py        the process of one sglang.Engine; its children are schedulers, one per tensor-parallel rank
serve.py       requests in that process: lots of them in, answers out as they end
scheduler.py   what runs in the schedulers: our remote calls
receive.py     export of parameters to other processes, their checksums, and loading of buckets
probe.py       comparison of SGLang's own loader with our layout of its parameters
hooks.py       replacements for SGLang's sampler and attention on CPU
attention.py   attention for many requests at a time
"""

from hybridrl.rollout.sglang.kind import SGLang

__all__ = ["SGLang"]
