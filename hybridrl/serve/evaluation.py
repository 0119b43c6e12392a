"""Evaluates a config's model, a run or a model on held-out sets, as an evaluation during a run does.

The seed of every answer follows from run.seed and from the number of policy updates, so the evaluation of a
run's last checkpoint repeats the last one of the run.
"""

import asyncio
import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.reward_model_rules import no_rule
from hybridrl.config.schema import Config
from hybridrl.controller.evaluate import Evaluator
from hybridrl.errors import ConfigError, refuse
from hybridrl.hosts.machine import Machine
from hybridrl.launch import data_sets, model_folders
from hybridrl.launch.preflight import say_absent
from hybridrl.launch.prepare import prepare_heldout
from hybridrl.launch.shape import RunFiles, with_gpus
from hybridrl.launch.verdict import SCOPES, verdict
from hybridrl.observe.progress import progress
from hybridrl.serve.engines import Serving, open_cluster, serving
from hybridrl.serve.estimates import Estimate, mean_at_k, pass_at_k
from hybridrl.serve.named import Named, Say, of_folder, weights, write_made
from hybridrl.serve.sets import heldout_override
from hybridrl.types import Group, Prompt, Trajectory, mean

EVALUATIONS = "evaluations"
"""Folder of the evaluations of a run in its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of an evaluation."""

    sets: Sequence[str] = ()
    """Held-out sets; empty: data.heldout of the config."""

    samples: int | None = None
    """Answers to each prompt; None: evaluate.samples_per_prompt."""

    passes: Sequence[int] = ()
    """k of every pass@k; empty: 1, 2, 4, ... and the number of answers."""

    solved_above: float | None = None
    """An answer is solved if its reward is above this. None: as algorithm.dynamic_sampling says, else 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answers to the prompts of one source of a held-out set."""

    source: str
    num_prompts: int
    num_answers: int
    mean: Estimate
    passes: Mapping[int, Estimate]
    """k -> pass@k."""

    mean_tokens: float
    """Length of an answer."""

    truncated: float
    """Share of the answers that were cut at the most tokens."""

    truncated_reward: float
    """Mean reward of those; NaN: there are none. High: the reward does not ask for the end token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResult:
    """What came out on one held-out set."""

    name: str
    samples: int
    """Answers to each prompt."""

    metrics: Mapping[str, float]
    """What an evaluation during a run publishes, by the same names."""

    sources: Sequence[Answered]
    examples: Sequence[Mapping[str, object]]
    """Some answers with their prompts and rewards."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    of: Named
    model: str
    """Folder or name of the model that was asked for."""

    step: int
    """Policy updates of the weights."""

    solved_above: float
    temperature: float
    sets: Sequence[SetResult] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Set:
    name: str
    loaded: LoadedConfig[Config]
    prompts: list[Prompt]


def evaluate(of: Named, request: Request, say: Say) -> Evaluation:
    """Answer the prompts of every set, score the answers, and estimate.

    Raises:
        ConfigError: there is no held-out set, or the options do not fit each other.
        HybridRLError: what `hybridrl launch` refuses or fails at.
    """
    configs = list(_configs(of, request))
    for _, loaded in configs:
        _refuse(loaded, request)
    checked = [(name, _checked(loaded, say)) for name, loaded in configs]
    first = checked[0][1]
    with contextlib.ExitStack() as opened:
        here, step = opened.enter_context(weights(of, first, say))
        sets = list(_opened(checked, Path(here.config.model.path), say))
        folder = opened.enter_context(_logs(of))
        found = asyncio.run(_run(sets, step, request, RunFiles(folder), opened))
    return Evaluation(
        of=of,
        model=first.config.model.path,
        step=step,
        solved_above=_solved_above(first.config, request),
        temperature=first.config.evaluate.temperature,
        sets=found,
    )


def _configs(of: Named, request: Request) -> Iterator[tuple[str, LoadedConfig[Config]]]:
    """A config for each held-out set, and the name of the set."""
    more = [] if request.samples is None else [f"evaluate.samples_per_prompt={request.samples}"]
    texts: Sequence[str | None] = request.sets or [None]
    for text in texts:
        loaded = of.load(*more, *([] if text is None else [heldout_override(text)]))
        source = loaded.config.data.heldout
        if source is None:
            raise ConfigError(
                f"{of.text} has no held-out set",
                where=loaded.where("data.heldout"),
                fix="--data FILE, or data.heldout",
            )
        yield source.name, loaded


def _refuse(loaded: LoadedConfig[Config], request: Request) -> None:
    cfg = loaded.config
    samples = cfg.evaluate.samples_per_prompt
    if (most := max(request.passes, default=0)) > samples:
        raise ConfigError(
            f"pass@{most} needs {most} answers to a prompt, evaluate.samples_per_prompt = {samples}",
            where=loaded.where("evaluate.samples_per_prompt"),
            fix=f"--samples {most} evaluate.temperature=1.0",
        )
    if no_rule(cfg):
        raise ConfigError(
            "reward = none judges no answer: there is no rule to evaluate by",
            where=loaded.where("reward.name"),
            fix="reward=NAME, as in reward=math_verify; or --config",
        )


def _checked(loaded: LoadedConfig[Config], say: Say) -> LoadedConfig[Config]:
    """The config after every check, with its models on this machine."""
    machine, scope = Machine.here(), SCOPES["eval"]
    loaded = with_gpus(loaded, machine)
    if model_folders.absent(loaded):
        model_folders.fetch_specs(loaded)
    found = verdict(loaded, scope, machine)
    refuse(found.errors)
    say_absent(found, say)
    write_made(loaded, say)
    model_folders.fetch(loaded, say)
    data_sets.fetch(loaded, say, splits=("heldout",))
    return model_folders.in_folders(loaded)


def _opened(checked: Sequence[tuple[str, LoadedConfig[Config]]], folder: Path, say: Say) -> Iterator[_Set]:
    """The sets with their prompts, all for the model of a folder."""
    for name, loaded in checked:
        own = of_folder(loaded, folder)
        prompts, described = prepare_heldout(own)
        say("data", f"{name}: {described}")
        yield _Set(name, own, prompts)


@contextlib.contextmanager
def _logs(of: Named) -> Iterator[Path]:
    """The folder of the engines' logs."""
    if of.run is not None:
        yield of.run / EVALUATIONS
        return
    with tempfile.TemporaryDirectory(prefix="hybridrl-eval-") as folder:
        yield Path(folder)


async def _run(
    sets: Sequence[_Set], step: int, request: Request, files: RunFiles, opened: contextlib.ExitStack
) -> list[SetResult]:
    cfg = sets[0].loaded.config
    with progress("engines", "start"):
        cluster = opened.enter_context(open_cluster(cfg, Machine.here()))
        running = contextlib.AsyncExitStack()
        served = await running.enter_async_context(serving(cfg, cluster, files))
    async with running:
        return [await _answered(one, step, request, served) for one in sets]


async def _answered(one: _Set, step: int, request: Request, served: Serving) -> SetResult:
    groups: list[Group] = []
    cfg, began = one.loaded.config, time.perf_counter()
    with progress("answers", one.name, "prompts") as advance:
        evaluator = Evaluator(
            cfg, one.prompts, served.rollout, served.reward, lambda _, found: groups.extend(found), advance
        )
        metrics = await evaluator.run(step)
    seconds, samples = time.perf_counter() - began, cfg.evaluate.samples_per_prompt
    passes = request.passes or _powers(samples)
    return SetResult(
        name=one.name,
        samples=samples,
        metrics=metrics,
        sources=list(answered(groups, passes, _solved_above(cfg, request))),
        examples=list(_examples(groups, cfg)),
        seconds=seconds,
    )


def answered(groups: Sequence[Group], passes: Sequence[int], solved_above: float) -> Iterator[Answered]:
    """What was answered to the prompts of each source; a reward above `solved_above` is a solved answer."""
    by_source: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        if group.trajectories:
            by_source[group.prompt.source].append(group)
    for source, own in by_source.items():
        rewards = [[float(t.reward or 0.0) for t in group.trajectories] for group in own]
        firsts = [[float(t.reward or 0.0) for t in _firsts(group)] for group in own]
        fewest = min(map(len, firsts))
        answers = [t for group in own for t in group.trajectories]
        cut = [float(t.reward or 0.0) for t in answers if t.finish == "length"]
        yield Answered(
            source=source,
            num_prompts=len(own),
            num_answers=len(answers),
            mean=mean_at_k(rewards),
            passes={k: pass_at_k(firsts, k, solved_above=solved_above) for k in passes if k <= fewest},
            mean_tokens=mean([float(t.response_tokens) for t in answers]),
            truncated=len(cut) / len(answers),
            truncated_reward=mean(cut) if cut else nan,
        )


def _firsts(group: Group) -> list[Trajectory]:
    """One trajectory of each episode."""
    return [t for t in group.trajectories if t.agent == 0 and t.branch == 0]


def _examples(groups: Sequence[Group], cfg: Config) -> Iterator[Mapping[str, object]]:
    for group in groups:
        for t in group.trajectories:
            if t.text is not None:
                prompt = group.prompt.row.get(cfg.data.prompt_field)
                yield {"prompt": prompt, "answer": t.text, "reward": t.reward}


def _powers(samples: int) -> list[int]:
    """1, 2, 4, ... and the number of answers."""
    return sorted({samples, *(1 << n for n in range(samples.bit_length()))} & set(range(1, samples + 1)))


def _solved_above(cfg: Config, request: Request) -> float:
    own = cfg.algorithm.dynamic_sampling
    return request.solved_above if request.solved_above is not None else own.solved_above if own else 0.0
