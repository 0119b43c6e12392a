"""TRL's GRPOTrainer beside hybridrl: the same model, prompts, lengths, dtype and machine, in turn.

TRL has an environment of its own, which `make setup-trl` makes; its model generates with transformers on a
CPU, and with vLLM on a GPU where that is installed.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from hybridrl.bench.base import Bench, Case, Found, Samples
from hybridrl.bench.peers.work import refuse_several_updates, written
from hybridrl.bench.workloads.e2e import of_machine, speeds
from hybridrl.config.kinds import load_for
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.errors import ResourceError
from hybridrl.hosts.interpreter import environment_of, inspect
from hybridrl.hosts.machine import cores
from hybridrl.launch.model_folders import in_folders
from hybridrl.launch.prepare import open_train

PYTHON = Path(".venv-trl/bin/python")

_PACKAGES = ("trl", "transformers", "torch", "accelerate", "vllm")
_TURNS = 2

_PROGRAM = "hybridrl.bench.peers.trl_program"


def contest(bench: Bench, case: Case, python: Path = PYTHON, turns: int = _TURNS) -> Sequence[Found]:
    """hybridrl and TRL in turn; the samples of a contestant are those of all its turns.

    Raises:
        ConfigError: TRL takes one optimizer step for each generation, and the case takes more.
        ResourceError: TRL is not installed, or its run failed.
    """
    refuse_several_updates(case)
    versions = _versions(python)
    ours: list[Samples] = []
    theirs: list[Samples] = []
    for _ in range(turns):
        ours.append(bench.measure(case))
        steps = play(case, python)
        theirs.append({**speeds(steps), **of_machine(case.config, steps)})
    own, peer = _joined(ours), _joined(theirs)
    return [
        Found(case=case, samples=own),
        Found(case=case, samples={**peer, **ratios(own, peer)}, contestant="trl", versions=versions),
    ]


def play(case: Case, python: Path) -> Sequence[Mapping[str, float]]:
    """Seconds by phase and tokens of each step that counts, of TRL on the case."""
    steps = case.warm_up + case.repeats
    with tempfile.TemporaryDirectory(prefix="bench-trl-") as name:
        folder = Path(name)
        (folder / "work.json").write_text(json.dumps(work(case, folder, steps)))
        files = [str(folder / file) for file in ("work.json", "result.jsonl")]
        command = [str(python), "-m", _PROGRAM, *files]
        with (folder / "trl.log").open("w") as log:
            done = subprocess.run(command, env=_environment(python, name), stdout=log, stderr=log)
        if done.returncode:
            last = (folder / "trl.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise ResourceError(f"TRL ended with {done.returncode}: {' '.join(last)}")
        lines = (folder / "result.jsonl").read_text().splitlines()
    found = [{"adv_s": 0.0, "update_weights_s": 0.0, **json.loads(line)} for line in lines]
    return found[case.warm_up :]


def work(case: Case, folder: Path, steps: int) -> dict[str, Any]:
    """What the program reads: the prompts of all steps in the order of our run, and the sizes."""
    loaded = in_folders(load_for("launch", written(case.config, folder, steps), []))
    cfg = loaded.config
    tokenizer, source = load_tokenizer(cfg.model.path), open_train(loaded)
    prompts = [prompt for _ in range(steps) for prompt in source.take(cfg.batch.prompts_per_step)]
    answers = cfg.batch.prompts_per_step * cfg.algorithm.samples_per_prompt
    longest = max(len(prompt.token_ids) for prompt in prompts) + cfg.rollout.max_response_tokens
    return {
        "model": cfg.model.path,
        "prompts": [
            {
                "text": tokenizer.hf.decode(list(prompt.token_ids), skip_special_tokens=False),
                "token_ids": list(prompt.token_ids),
            }
            for prompt in prompts
        ],
        "steps": steps,
        "answers": answers,
        "samples": cfg.algorithm.samples_per_prompt,
        "rows": rows_at_once(answers, cfg.actor.microbatch_tokens // longest),
        "max_response_tokens": cfg.rollout.max_response_tokens,
        "temperature": cfg.rollout.temperature,
        "lr": cfg.actor.optimizer.lr,
    }


def rows_at_once(answers: int, most: int) -> int:
    """The largest divisor of the answers that is at most `most`, and at least 1: TRL pads rows, and takes
    the same number in every forward pass."""
    return max(n for n in range(1, answers + 1) if answers % n == 0 and n <= max(1, most))


def ratios(ours: Samples, theirs: Samples) -> dict[str, list[float]]:
    """Ratios of the medians of a whole step and of the time of a response token."""
    step = median(theirs["step_s"]) / median(ours["step_s"])
    token = median(ours["response_tokens_s"]) / median(theirs["response_tokens_s"])
    return {"step_times_ours": [step], "token_times_ours": [token]}


def _environment(python: Path, folder: str) -> dict[str, str]:
    """All cores for its one process, whatever hybridrl's own processes are given."""
    return environment_of(str(python), folder) | {"OMP_NUM_THREADS": str(cores())}


def _versions(python: Path) -> dict[str, str]:
    try:
        packages = inspect(str(python)).packages
    except ResourceError as error:
        raise ResourceError(f"TRL is not installed: {error}", fix="make setup-trl") from None
    if "trl" not in packages:
        raise ResourceError(f"{python} has no TRL", fix="make setup-trl")
    return {name: packages[name] for name in _PACKAGES if name in packages}


def _joined(turns: Sequence[Samples]) -> dict[str, list[float]]:
    return {name: [value for turn in turns for value in turn.get(name, ())] for name in turns[0]}
