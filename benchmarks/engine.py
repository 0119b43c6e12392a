"""Many short answers: tokens a second of our engine and of the bare SGLang engine called directly, in turns.

The bare engine has the same arguments and none of our replacements. Each answers the same requests; the best
of several calls counts, since other programs only ever slow a call down.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._report import arguments, publish
from hybridrl.hosts.interpreter import environment_of
from hybridrl.models.tiny import qwen3_arithmetic
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.sglang.arguments import engine_arguments, environment
from hybridrl.rollout.sglang.sizes import SGLangParallel
from hybridrl.rollout.sglang.start import SGLangEngine, remove_leftovers
from hybridrl.types import Prompt, Sampling

RESULT = {
    "engine": "tokens a second of our engine, seconds of its best call and of its start",
    "bare": "the same of SGLang's own",
    "share": "tokens a second of ours over those of the bare one",
}

_PROMPT_TOKENS = 5
_MAX_RUNNING = 256


def main() -> None:
    options = arguments(
        __doc__,
        smoke={"prompts": 2, "samples": 2, "tokens": 2, "calls": 1},
        prompts=64,
        samples=16,
        tokens=8,
        calls=6,
    )
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        qwen3_arithmetic(model, 0)
        ours = _ours(model, options)
        program = (
            f"from benchmarks.engine import bare; bare({str(model)!r}, {vars(options) | {'json': None}!r})"
        )
        with tempfile.TemporaryDirectory(prefix="bare-") as own:
            done = subprocess.run(
                [sys.executable, "-c", program],
                env=environment_of(sys.executable, own) | environment(1, 1, own),
                stdout=subprocess.PIPE,
                check=True,
            )
    theirs = json.loads(done.stdout.splitlines()[-1])
    publish({"engine": ours, "bare": theirs, "share": ours["tokens_s"] / theirs["tokens_s"]}, options.json)


def _ours(model: Path, options: Any) -> dict[str, float]:
    start = time.perf_counter()
    engine = SGLangEngine(_setup(model, options.tokens))
    start_s = time.perf_counter() - start
    asked = [Prompt(str(i), ids, {}) for i, ids in enumerate(_prompts(options.prompts))]
    sampling = Sampling(num_samples=options.samples, max_response_tokens=options.tokens, seed=0)

    def call() -> int:
        _, block = asyncio.run(engine.generate(asked, sampling))
        return int(block.loss_mask_T.sum())

    try:
        found = _best(options.calls, call)
    finally:
        engine.shutdown()
    return found | {"start_s": start_s}


def bare(model: str, options: dict[str, Any]) -> None:
    """In a process of its own, with the environment of an engine: prints one line of JSON."""
    from sglang import Engine

    start = time.perf_counter()
    engine = Engine(
        model_path=model,
        **engine_arguments(_setup(Path(model), options["tokens"])),
    )
    start_s = time.perf_counter() - start
    repeated = [list(ids) for ids in _prompts(options["prompts"]) for _ in range(options["samples"])]
    sampling = {"max_new_tokens": options["tokens"], "temperature": 1.0}

    def call() -> int:
        answers = engine.generate(input_ids=repeated, sampling_params=sampling, return_logprob=True)
        return sum(len(answer["output_ids"]) for answer in answers)

    found = _best(options["calls"], call)
    engine.shutdown()
    remove_leftovers(engine.get_all_child_pids(), engine.port_args.instance_id)
    print(json.dumps(found | {"start_s": start_s}))


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


def _best(calls: int, call: Callable[[], int]) -> dict[str, float]:
    speeds = []
    for _ in range(calls):
        start = time.perf_counter()
        speeds.append((call() / (time.perf_counter() - start), time.perf_counter() - start))
    tokens_s, seconds = max(speeds)
    return {"tokens_s": tokens_s, "call_s": seconds}


if __name__ == "__main__":
    main()
