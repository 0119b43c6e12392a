"""How the host process of a vLLM engine is started. Imports no vllm."""

import json
import sys
from functools import partial
from pathlib import Path

import torch

from hybridrl.models import spec
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.process import EngineProcess, HostProgram, refuse_too_long
from hybridrl.rollout.vllm.arguments import engine_arguments, environment


class VLLMEngine(EngineProcess):
    """Starts in about 20 seconds with a small model, most of them for the import of vLLM."""

    def __init__(self, setup: EngineSetup) -> None:
        refuse_too_long(setup)
        cuda = torch.cuda.is_available()
        arguments = {
            "engine": engine_arguments(setup, spec.read(setup.model_folder), cuda),
            "end_tokens": end_tokens(setup.model_folder),
            "version": setup.version,
        }
        program = HostProgram(
            module="hybridrl.rollout.vllm.host",
            arguments=arguments,
            environment=partial(environment, setup.parallel.tp, cuda),
            python=setup.python or sys.executable,
        )
        super().__init__(setup, program)


def end_tokens(folder: str) -> list[int]:
    """The tokens that end an answer by the model's config.json and generation_config.json."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        path = Path(folder, name)
        given = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.exists() else None
        found.update([given] if isinstance(given, int) else given or [])
    return sorted(found)
