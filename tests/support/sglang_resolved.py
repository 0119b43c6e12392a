"""SGLang's arguments as it resolves them on a GPU that is not there: `sglang_resolved.py GPU FOLDER...`.

Its last line is JSON: for the model in each folder, all arguments without and with EngineSetup.deterministic.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from gpu_packages import Finder

GPUS = {
    "H100": ((9, 0), 80 << 30, 132),
    "H200": ((9, 0), 141 << 30, 132),
    "B200": ((10, 0), 180 << 30, 148),
}
"""Compute capability, bytes of memory, multiprocessors."""


def pretend(name: str) -> None:
    """Tell whoever asks torch in this process that it has one such GPU."""
    (major, minor), memory, processors = GPUS[name]
    properties = SimpleNamespace(
        name=f"NVIDIA {name}", major=major, minor=minor, total_memory=memory, multi_processor_count=processors
    )
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": properties.name,
        "get_device_capability": (major, minor),
        "get_device_properties": properties,
        "mem_get_info": (memory - (1 << 30), memory),
        "init": None,
        "_lazy_init": None,
    }
    for function, answer in answers.items():
        setattr(torch.cuda, function, lambda *of, answer=answer, **named: answer)
    torch.version.cuda = "13.0"
    for package in ("sgl_kernel", "flashinfer"):
        sys.meta_path.insert(0, Finder(package))


def resolved(folder: str, deterministic: bool) -> dict[str, Any]:
    from sglang.srt.server_args import ServerArgs

    from hybridrl.rollout.base import EngineSetup
    from hybridrl.rollout.sglang.sizes import SGLangParallel
    from hybridrl.rollout.sglang.start import _arguments

    setup = EngineSetup(
        model_folder=folder,
        parallel=SGLangParallel(tp=1),
        max_prompt_tokens=64,
        max_response_tokens=64,
        log_path="engine.log",
        memory_fraction=0.5,
        kv_cache_tokens=1000,
        deterministic=deterministic,
    )
    arguments = ServerArgs(**_arguments(setup))
    arguments.resolve_once()
    return arguments.resolved_dict()


if __name__ == "__main__":
    pretend(sys.argv[1])
    found = {Path(folder).name: [resolved(folder, by) for by in (False, True)] for folder in sys.argv[2:]}
    print(json.dumps(found, default=str))
