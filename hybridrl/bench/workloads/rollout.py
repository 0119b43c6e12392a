"""Many short answers: tokens a second of our engine and of the bare SGLang engine called directly, in turn.

The bare engine has the same arguments and none of our replacements. Each answers the same requests.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridrl.bench.base import Bench, Case, Metric
from hybridrl.hosts.interpreter import environment_of
from hybridrl.models.tiny import qwen3_arithmetic
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.sglang.arguments import engine_arguments, environment
from hybridrl.rollout.sglang.sizes import SGLangParallel
from hybridrl.rollout.sglang.start import SGLangEngine, remove_leftovers
from hybridrl.types import Prompt, Sampling

_PROMPT_TOKENS = 5
_MAX_RUNNING = 256

_METRICS = {
    "tokens_s": Metric("tokens/s/device", "response tokens of a call over its time", "higher", gated=True),
    "call_s": Metric("s", "a call that answers all prompts", "lower"),
    "start_s": Metric("s", "from nothing to an engine that answers", "lower"),
    "bare_tokens_s": Metric("tokens/s/device", "tokens_s of SGLang's own engine, called directly"),
    "bare_start_s": Metric("s", "start_s of SGLang's own engine"),
    "times_bare": Metric(
        "x",
        "tokens_s over bare_tokens_s, of the best call of each",
        "higher",
        gated=True,
        headline="Response tokens a second, over those of the bare SGLang engine",
    ),
}


def measure(case: Case) -> Mapping[str, list[float]]:
    sizes = dict(case.config) | {"calls": case.warm_up + case.repeats}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        qwen3_arithmetic(model, 0)
        ours = _ours(model, sizes)
        theirs = _theirs(model, sizes) if sizes["bare"] else None
    found = {
        "tokens_s": ours["tokens_s"][case.warm_up :],
        "call_s": ours["call_s"][case.warm_up :],
        "start_s": ours["start_s"],
    }
    if theirs is None:
        return found
    speed = theirs["tokens_s"][case.warm_up :]
    ratio = max(found["tokens_s"]) / max(speed)
    return found | {"bare_tokens_s": speed, "bare_start_s": theirs["start_s"], "times_bare": [ratio]}


def _theirs(model: Path, sizes: Mapping[str, Any]) -> dict[str, list[float]]:
    program = f"from hybridrl.bench.workloads.rollout import bare; bare({str(model)!r}, {sizes!r})"
    with tempfile.TemporaryDirectory(prefix="bare-") as own:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment_of(sys.executable, own) | environment(1, 1, own),
            stdout=subprocess.PIPE,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def _ours(model: Path, sizes: Mapping[str, Any]) -> dict[str, list[float]]:
    start = time.perf_counter()
    engine = SGLangEngine(_setup(model, sizes["tokens"]))
    start_s = time.perf_counter() - start
    asked = [Prompt(str(i), ids, {}) for i, ids in enumerate(_prompts(sizes["prompts"]))]
    sampling = Sampling(num_samples=sizes["samples"], max_response_tokens=sizes["tokens"], seed=0)

    def call() -> int:
        _, block = asyncio.run(engine.generate(asked, sampling))
        return int(block.loss_mask_T.sum())

    try:
        found = _calls(sizes["calls"], call)
    finally:
        engine.shutdown()
    return found | {"start_s": [start_s]}


def bare(model: str, sizes: Mapping[str, Any]) -> None:
    """In a process of its own, with the environment of an engine: prints one line of JSON."""
    from sglang import Engine

    start = time.perf_counter()
    engine = Engine(
        model_path=model,
        **engine_arguments(_setup(Path(model), sizes["tokens"])),
    )
    start_s = time.perf_counter() - start
    repeated = [list(ids) for ids in _prompts(sizes["prompts"]) for _ in range(sizes["samples"])]
    sampling = {"max_new_tokens": sizes["tokens"], "temperature": 1.0}

    def call() -> int:
        answers = engine.generate(input_ids=repeated, sampling_params=sampling, return_logprob=True)
        return sum(len(answer["output_ids"]) for answer in answers)

    found = _calls(sizes["calls"], call)
    engine.shutdown()
    remove_leftovers(engine.get_all_child_pids(), engine.port_args.instance_id)
    print(json.dumps(found | {"start_s": [start_s]}))


def _setup(model: Path, tokens: int) -> EngineSetup:
    return EngineSetup(
        model_folder=str(model),
        log_path=str(model.parent / "engine.log"),
        parallel=SGLangParallel(),
        max_prompt_tokens=_PROMPT_TOKENS,
        max_response_tokens=tokens,
        max_running_requests=_MAX_RUNNING,
    )


def _prompts(count: int) -> Sequence[tuple[int, ...]]:
    return [tuple((i * 7 + j * 3) % 13 for j in range(_PROMPT_TOKENS)) for i in range(count)]


def _calls(count: int, call: Callable[[], int]) -> dict[str, list[float]]:
    tokens_s, call_s = [], []
    for _ in range(count):
        start = time.perf_counter()
        tokens = call()
        call_s.append(time.perf_counter() - start)
        tokens_s.append(tokens / call_s[-1])
    return {"tokens_s": tokens_s, "call_s": call_s}


BENCH = Bench(
    name="rollout",
    about="Many short answers of one engine",
    metrics=_METRICS,
    cases=[Case(name="short", config={"prompts": 64, "samples": 16, "tokens": 8, "bare": True}, repeats=5)],
    smoke=[
        Case(
            name="smoke",
            config={"prompts": 2, "samples": 2, "tokens": 2, "bare": False},
            warm_up=0,
            repeats=1,
        )
    ],
    measure=measure,
)
