"""SGLang as a rollout engine.

engine.py     SGLangEngine, in the process of its caller: state of the swap, deadlines, errors. Imports no sglang.
channel.py    calls and replies between that process and
host.py       the process that hosts one sglang.Engine; scheduler processes are its children, one per tensor-parallel rank
scheduler.py  what runs inside them: our hooks,
receive.py    the export of parameters to shared memory and their checksums, and
draw.py       sampling from counter-based seeds
"""
