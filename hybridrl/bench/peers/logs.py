"""What verl and OpenRLHF print of each step, as seconds by phase and tokens."""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from hybridrl.bench.base import Case, Found
from hybridrl.bench.workloads.e2e import speeds
from hybridrl.errors import DataError

Step = Mapping[str, float]

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_VERSION = re.compile(r"([\w-]+)==(\S+)")
_NUMBER = r"-?(?:\d+\.?\d*(?:e[+-]?\d+)?|nan|inf)"
_VERL_STEP = re.compile(r"\bstep:(\d+) - (.*)")
_VERL_VALUE = re.compile(rf"([^\s:]+):(?:np\.\w+\()?({_NUMBER})\)?(?: - |$)")
_OPENRLHF_STEP = re.compile(r"Global step (\d+): (\{.*\})")
_NOT_FINITE = re.compile(r"(?<=: )-?(nan|inf)(?=[,}])")
_OF_NUMPY = re.compile(r"np\.\w+\(([^()]*)\)")


class Log(NamedTuple):
    steps: Callable[[str], Iterator[Step]]
    """What each step printed, by the peer's own names."""

    names: Mapping[str, str]
    """Our name of a phase or count -> the peer's."""


LOGS: Mapping[str, Log] = {
    "verl": Log(
        lambda text: _verl(text),
        {
            "step_s": "timing_s/step",
            "gen_s": "timing_s/gen",
            "reward_s": "timing_s/reward",
            "adv_s": "timing_s/adv",
            "old_log_prob_s": "timing_s/old_log_prob",
            "update_actor_s": "timing_s/update_actor",
            "update_weights_s": "timing_s/update_weights",
            "tokens": "perf/total_num_tokens",
            "response_tokens": "response_length/mean",
        },
    ),
    "openrlhf": Log(
        lambda text: _openrlhf(text),
        {
            "step_s": "timing/step_total",
            "gen_s": "timing/generation",
            "old_log_prob_s": "timing/make_experience",
            "update_actor_s": "timing/ppo_train",
            "update_weights_s": "timing/broadcast",
            "response_tokens": "rollout/response_length_mean",
        },
    ),
}
"""A phase that a peer does not time is a part of another one there, and counts as 0 s."""

_NEEDED = ("step_s", "gen_s", "old_log_prob_s", "update_actor_s", "response_tokens")


def read(peer: str, file: Path, case: Case) -> Found:
    """The steps of a log that come after the warm-up.

    Raises:
        DataError: there is no such file, or it has no step after the warm-up, or a step lacks a phase.
    """
    try:
        text = _COLOURS.sub("", file.read_text("utf-8", errors="replace"))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}", where="--log") from error
    printed = list(LOGS[peer].steps(text))[case.warm_up :]
    if not printed:
        raise DataError(
            f"{file} has no step of {peer} after the {case.warm_up} of the warm-up",
            where="--log",
            fix="give what launch.sh wrote: run.log",
        )
    steps = [_ours(peer, one, case, file) for one in printed]
    versions = dict(_VERSION.findall(next((x for x in text.splitlines() if x.startswith("versions:")), "")))
    return Found(
        case=case,
        samples=speeds(steps, max(1, case.gpus)),
        contestant=peer,
        versions=versions or {peer: "not printed"},
    )


def _ours(peer: str, printed: Step, case: Case, file: Path) -> Step:
    names = LOGS[peer].names
    if missing := [names[name] for name in _NEEDED if names[name] not in printed]:
        raise DataError(f"{file}: a step of {peer} has no {', '.join(missing)}", where="--log")
    batch, algorithm = case.config["batch"], case.config["algorithm"]
    found = {name: printed[theirs] for name, theirs in names.items() if theirs in printed}
    phases = dict.fromkeys(("reward_s", "adv_s", "update_weights_s"), 0.0)
    return {**phases, **found, "answers": batch["prompts_per_step"] * algorithm["samples_per_prompt"]}


def _verl(text: str) -> Iterator[Step]:
    """Lines as "step:3 - timing_s/gen:12.5 - perf/total_num_tokens:4096", after a prefix of Ray's; a
    validation has no times."""
    for line in text.splitlines():
        if (found := _VERL_STEP.search(line)) and "timing_s/" in line:
            yield {name: float(value) for name, value in _VERL_VALUE.findall(found[2])}


def _openrlhf(text: str) -> Iterator[Step]:
    """Lines as "Global step 3: {'timing/generation': 12.5}", after a prefix of Ray's."""
    for line in text.splitlines():
        if found := _OPENRLHF_STEP.search(line):
            plain = _NOT_FINITE.sub("None", _OF_NUMPY.sub(r"\1", found[2]))
            try:
                values = ast.literal_eval(plain)
            except (ValueError, SyntaxError):
                continue  # two processes printed into one line
            yield {name: float(v) for name, v in values.items() if isinstance(v, int | float)}
