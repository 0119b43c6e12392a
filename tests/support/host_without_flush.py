"""An engine's host that keeps its prefix cache when weights are swapped."""

from hybridrl.rollout.sglang import host


async def _keep(self: host.EngineHost) -> None:
    pass


def main(file_descriptor: int) -> None:
    host.EngineHost._flush_cache = _keep
    host.main(file_descriptor)
