"""How the host process of an SGLang engine is started, and what it leaves behind. Imports no sglang."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from hybridrl.models.spec import read
from hybridrl.rollout import process
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.process import EngineProcess, HostProgram, Ready, refuse_too_long
from hybridrl.rollout.sglang.arguments import engine_arguments, environment

_OF_PROCESS = "sgl_shm_*_{pid}_*"
_OF_ENGINE = "sglang_loads_{name}_*"


class SGLangEngine(EngineProcess):
    """Starts in 10 to 20 seconds with a small model."""

    def __init__(self, setup: EngineSetup) -> None:
        refuse_too_long(setup)
        program = HostProgram(
            module="hybridrl.rollout.sglang.host",
            arguments=_arguments(setup),
            environment=partial(environment, setup.parallel.tp, setup.parts),
            noise="Ignore import error when loading",  # for every model without CUDA kernels
        )
        super().__init__(setup, program)

    def _remove_leftovers(self, ready: Ready) -> None:
        remove_leftovers(ready.pids, ready.name)


def remove_leftovers(pids: Iterable[int], name: str) -> None:
    """Unlink the shared memory that killed processes of an engine leave behind.

    Args:
        pids: ids of processes that have ended.
        name: SGLang's name of the engine; "" if the engine did not get that far.
    """
    ids = list(pids)
    patterns = [*process.leftovers_of(ids), *(_OF_PROCESS.format(pid=pid) for pid in ids)]
    process.remove_leftovers([*patterns, *([_OF_ENGINE.format(name=name)] if name else ())])


def _reads_pictures(setup: EngineSetup) -> bool:
    """Whether the model has a vision tower. Every rank has all of it then, and encodes some pictures."""
    return read(setup.model_folder).vision is not None


def _arguments(setup: EngineSetup) -> dict[str, Any]:
    several = {"nnodes": setup.parts, "node_rank": setup.part, "dist_init_addr": setup.rendezvous}
    return {
        **engine_arguments(setup),
        "model_path": setup.model_folder,
        "weight_version": str(setup.version),
        "enable_return_routed_experts": setup.returns_experts,
        **({"mm_enable_dp_encoder": True} if setup.parallel.tp > 1 and _reads_pictures(setup) else {}),
        **(several if setup.parts > 1 else {}),
    }
