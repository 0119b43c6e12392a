"""A host of vLLM that keeps its caches, and takes prefixes of older versions for its own, when weights are
swapped. It runs in vLLM's environment."""

# pyright: reportMissingImports=false

from hybridrl.rollout.vllm import core, host
from hybridrl.types import PolicyVersion


def _pause(self: core.Core, keep_cache: bool) -> None:
    self._paused = self._keeps_cache = True


def _set_version(self: core.Core, version: PolicyVersion) -> None:
    self._version = version
    for sampled in self._running.values():
        sampled.since.append((len(sampled.tokens), version))


def _without_salt(**given: object) -> core.EngineCoreRequest:
    return _Request(**given | {"cache_salt": None})


_Request = core.EngineCoreRequest


def main(file_descriptor: int) -> None:
    core.Core._pause, core.Core._set_version = _pause, _set_version
    core.EngineCoreRequest = _without_salt
    host.main(file_descriptor)
