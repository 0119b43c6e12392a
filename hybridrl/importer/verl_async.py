"""verl's asynchronous training: how old an answer may be, and what a swap does with running requests."""

import math

from hybridrl.importer.translation import Line, Remark
from hybridrl.importer.verl_script import Found, Script

_STALENESS = "async_training.staleness_threshold"
_PARTIAL = "async_training.partial_rollout"


def asynchronous(script: Script) -> Found:
    """Yields batch.max_lag and rollout.swap; other keys of async_training are reported as untranslated."""
    if not {_STALENESS, _PARTIAL} & script.by_key.keys():
        return
    lag = math.ceil(script.number(_STALENESS, 1))
    note = "policy updates; verl counts the share of a batch that may be older than its weights"
    yield Line("batch.max_lag", lag, script.source(_STALENESS), note)
    partial = script.get(_PARTIAL, False)
    if partial is True and lag:
        yield Line("rollout.swap", "in_flight", script.source(_PARTIAL))
    elif partial is True:
        yield Remark(script.source(_PARTIAL), "rollout.swap=in_flight needs batch.max_lag above 0")
