"""Ways to divide the GPUs of a run between trainer and engines."""

from collections.abc import Iterator
from dataclasses import replace

from hybridrl.estimate.setting import Setting

_SHARES = (0.25, 0.5, 0.75)
"""Shares of the GPUs that engines get for themselves, in whole nodes if there are several."""


def divisions(setting: Setting) -> Iterator[Setting]:
    """The setting, then others that divide its GPUs differently. There are others only if answers may be
    older than one policy update: otherwise trainer and engines never work at the same time."""
    yield setting
    if setting.gpu is None or not setting.num_engines or not setting.max_lag:
        return
    if setting.separate and setting.swaps_in_flight:  # a kept cache, and only that, needs dedicated GPUs
        yield replace(setting, separate=False, engines_sleep=True).filled()
    if setting.nodes == 1 and setting.served:
        return  # engines of judges and frozen players take the last GPUs of the node
    for gpus in sorted({_of_engines(setting, share) for share in _SHARES} - {0, setting.num_gpus}):
        if not (setting.separate and setting.engine_gpus == gpus):
            own = setting.engine.model_copy(update={"tp": 1})
            yield replace(
                setting, separate=True, engines_sleep=False, offload="none", engine=own, num_engines=gpus
            ).filled(num_engines=gpus)


def _of_engines(setting: Setting, share: float) -> int:
    unit = setting.gpus_per_node if setting.nodes > 1 else 1
    return round(share * setting.num_gpus / unit) * unit
