"""Tokens a second of our vLLM engine and of bare vLLM (its class LLM), by the number of requests, in turns.

The bare one has the same model, cache, limits and threads, and none of our replacements: its scheduler and
its worker are processes of their own, and it packs matrices for oneDNN. They wait for one another by polling,
so they are suspended while our engine answers. Each answers the same prompts; the best of several calls
counts, since other programs only ever slow a call down. It needs the environment of `make setup-vllm`.
"""

import asyncio
import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks._report import arguments, publish
from hybridrl.bench.trajectories import chosen
from hybridrl.hosts.interpreter import environment_of
from hybridrl.models import spec
from hybridrl.models.tiny import qwen3_arithmetic, random_model
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.vllm.arguments import engine_arguments, environment
from hybridrl.rollout.vllm.sizes import VLLMParallel
from hybridrl.rollout.vllm.start import VLLMEngine, end_tokens
from hybridrl.types import Prompt, Sampling

RESULT = {
    "models": "by model (tiny: 0.4 M weights; smollm2: the sizes of SmolLM2-135M) and number of requests: "
    "tokens a second of our engine and of vLLM's own, and their ratio",
}
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
}
MODELS = {
    "tiny": partial(qwen3_arithmetic, seed=0),
    "smollm2": partial(random_model, family="llama", seed=0, tied=True, **SMOLLM2),
}

_PROMPT_TOKENS = 24
_MAX_RUNNING = 256
_ROOT = Path(__file__).parents[1]
_PYTHON = str(_ROOT / ".venv-vllm/bin/python")

Call = Callable[[int], int]
"""Answers so many prompts; returns the number of tokens."""


def main() -> None:
    options = arguments(
        __doc__,
        smoke={"tokens": 4, "calls": 1, "largest": 8, "shapes": "tiny"},
        tokens=64,
        calls=8,
        largest=128,
        shapes="tiny,smollm2",
    )
    found = {name: _batches(MODELS[name], options) for name in chosen(options.shapes, MODELS)}
    publish({"models": found}, options.json)


def _batches(make: Callable[[Path], None], options: Any) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        make(model)
        setup = _setup(model, options.tokens)
        with _ours(setup) as ours, _bare(setup) as bare:
            counts = [count for count in (1, 8, 32, 128) if count <= options.largest]
            return {str(count): _compare(ours, bare, count, options.calls) for count in counts}


def _compare(ours: Call, bare: Call, count: int, calls: int) -> dict[str, float]:
    best = {"ours": 0.0, "bare": 0.0}
    for _ in range(calls):
        for name, call in (("ours", ours), ("bare", bare)):
            start = time.perf_counter()
            best[name] = max(best[name], call(count) / (time.perf_counter() - start))
    return best | {"ratio": best["ours"] / best["bare"]}


@contextmanager
def _ours(setup: EngineSetup) -> Iterator[Call]:
    engine = VLLMEngine(setup)
    sampling = Sampling(num_samples=1, max_response_tokens=setup.max_response_tokens, seed=0)

    def call(count: int) -> int:
        asked = [Prompt(str(i), ids, {}) for i, ids in enumerate(_prompts(count))]
        _, block = asyncio.run(engine.generate(asked, sampling))
        return int(block.loss_mask_T.sum())

    try:
        yield call
    finally:
        engine.shutdown()


@contextmanager
def _bare(setup: EngineSetup) -> Iterator[Call]:
    """vLLM's LLM in a process of its own, which answers a line for each line."""
    given = engine_arguments(setup, spec.read(setup.model_folder), False)
    ours = ("worker_cls", "distributed_executor_backend", "async_scheduling")
    message = {
        "engine": {key: value for key, value in given.items() if key not in ours},
        "tokens": setup.max_response_tokens,
        "stops": end_tokens(setup.model_folder),
    }
    with tempfile.TemporaryDirectory(prefix="bare-") as own:
        variables = environment_of(_PYTHON, own) | environment(1, False, own)
        variables |= {"PYTHONPATH": str(_ROOT), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        process = subprocess.Popen(
            [_PYTHON, "-m", "benchmarks._bare_vllm"],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

        def ask(line: Any) -> Any:
            assert process.stdin is not None and process.stdout is not None, "they are pipes"
            print(json.dumps(line), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        def call(count: int) -> int:
            _signal(process.pid, signal.SIGCONT)
            found = ask(_prompts(count))
            _signal(process.pid, signal.SIGSTOP)
            return found

        try:
            ask(message)
            _signal(process.pid, signal.SIGSTOP)
            yield call
        finally:
            _signal(process.pid, signal.SIGCONT)
            process.communicate()  # the end of its input ends it


def _signal(pid: int, number: int) -> None:
    process = psutil.Process(pid)
    for one in (process, *process.children(recursive=True)):
        one.send_signal(number)


def _setup(model: Path, tokens: int) -> EngineSetup:
    return EngineSetup(
        model_folder=str(model),
        log_path=str(model.parent / "engine.log"),
        parallel=VLLMParallel(),
        python=_PYTHON,
        max_prompt_tokens=_PROMPT_TOKENS,
        max_response_tokens=tokens,
        max_running_requests=_MAX_RUNNING,
    )


def _prompts(count: int) -> Sequence[tuple[int, ...]]:
    return [tuple((i * 7 + j * 3) % 13 for j in range(_PROMPT_TOKENS)) for i in range(count)]


if __name__ == "__main__":
    main()
