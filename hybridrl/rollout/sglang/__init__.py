"""SGLang as a rollout engine.

kind.py        what is known of it without starting it: SGLang, the kind of engine
sizes.py       ranks and cache of an engine
engine.py      SGLangEngine, in its owner's process: state of the swap, deadlines, errors. Imports no sglang
channel.py     calls and replies between that process and
host.py        the process of one sglang.Engine; its children are schedulers, one a tensor-parallel rank
scheduler.py   what runs in those: our remote calls, and
receive.py     the export of parameters to shared memory, and their checksums
probe.py       SGLang's own loader compared with our layout of its parameters, which are
saved.py       put back bit for bit
hooks.py       SGLang's sampler and attention on CPU, replaced by
draw.py        sampling from counter-based seeds
attention.py   attention for many requests at a time
"""

from hybridrl.rollout.sglang.kind import SGLang

__all__ = ["SGLang"]
