"""The quickstart with a trainer backend and an engine from outside the project: the config names a folder of
tests/support for each. Everything between them is the project's own.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from hybridrl.config.load import load
from hybridrl.controller import loop
from hybridrl.hosts.machine import Machine
from hybridrl.launch.local import RLRun
from hybridrl.launch.preflight import preflight
from hybridrl.launch.stop import StopRequest
from hybridrl.launch.verdict import SCOPES
from hybridrl.observe.terminal import Terminal
from hybridrl.rollout.base import Answer, Request
from hybridrl.types import PolicyVersion, Sampling, SwapReport

ROOT = Path(__file__).parents[2]
QUICKSTART, SUPPORT = ROOT / "configs/quickstart.yaml", ROOT / "tests/support"
STEPS, LONG = 4, 180
REQUESTS, ABORTED = 16, 4
TEMPERATURE = 20.0
"""High, so that answers to single requests are long although the policy learns to stop."""

OVERRIDES = [
    "actor.backend=plain_backend:Plain",
    "rollout.engine=tiny_engine:TinyTransformer",
    "actor.parallel.tp=1",
    "actor.optimizer={lr: 3.0e-3, schedule: linear, warmup_steps: 0}",
    "cluster.gpus_per_node=0",
    "batch={prompts_per_step: 16, minibatch_prompts: 8, epochs: 2}",
    f"rollout.max_prompt_tokens={LONG + 10}",
    f"run={{name: quickstart, steps: {STEPS}, export_every: 1}}",
    "observe.sinks=[]",
]


@dataclass
class Interrupted:
    """Engine and sync of a run. Single requests are under way when the last batch is trained on: some are
    aborted in a pause, the others go on after the swap.
    """

    rollout: Any
    sync: Any
    sleeps: int = 0
    running: dict[str, asyncio.Task[Answer]] = field(default_factory=dict)
    aborted: Sequence[str] = ()
    answers: Mapping[str, Answer] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rollout, name)

    async def sleep(self) -> None:
        self.sleeps += 1
        if self.sleeps == STEPS:
            await self._interrupt()
        await self.rollout.sleep()

    async def push(self, version: PolicyVersion) -> SwapReport:
        report = await self.sync.push(version)
        if self.running:
            await self.rollout.continue_()
            answers = await asyncio.gather(*self.running.values())
            self.answers = {answer.id: answer for answer in answers}
        return report

    async def _interrupt(self) -> None:
        """On a busy machine every request may end before the pause comes: others are sent then."""
        for first in range(0, 20 * REQUESTS, REQUESTS):
            asked = [_request(first + i) for i in range(REQUESTS)]
            self.running = {one.id: asyncio.create_task(self.rollout.request(0, one)) for one in asked}
            # Requests take turns: when some have ended, the others have begun.
            while sum(task.done() for task in self.running.values()) < ABORTED:
                await asyncio.sleep(0.001)
            await self.rollout.pause()
            await asyncio.sleep(0.2)  # answers of those that ended before the pause arrive
            waiting = [name for name, task in self.running.items() if not task.done()]
            if len(waiting) > ABORTED:
                break
            await self.rollout.continue_()
            await asyncio.gather(*self.running.values())
        self.aborted = waiting[:ABORTED]
        await self.rollout.abort(0, self.aborted)


def _request(index: int) -> Request:
    sampling = Sampling(num_samples=1, max_response_tokens=LONG, temperature=TEMPERATURE, seed=index)
    return Request(id=str(index), token_ids=(1, 2, 3), sampling=sampling)


class InterruptedRun(RLRun):
    def train(self, roles: Any) -> Any:
        self.between = Interrupted(roles.engine, roles.sync)
        return loop.run(self.cfg, replace(roles, engine=self.between, sync=self.between))


@dataclass
class Played:
    folder: Path
    between: Interrupted

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", f"{SUPPORT}:{ROOT}")  # where workers find what the config names
        loaded = load(QUICKSTART, OVERRIDES)
        preflight(loaded, SCOPES["launch"], Machine.here(), lambda *_: None, make_model=True)
        terminal = Terminal()
        with (
            StopRequest(terminal.warn) as stop,
            InterruptedRun(loaded, terminal, stop, on="local", resume="never") as run,
        ):
            asyncio.run(run.play())
            run.finish()
        assert stop.exit_code == 0
    return Played(folder / "runs/quickstart", run.between)


def test_the_run_is_whole(played: Played) -> None:
    lines = [json.loads(line) for line in (played.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [*range(1, STEPS + 1)]
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [0, STEPS]
    for name in ("resolved.yaml", "samples.txt", "reward.png", "export/model.safetensors"):
        assert (played.folder / name).stat().st_size > 0, name
    assert (played.folder / f"checkpoints/step_{STEPS:06d}").is_dir()


def test_trainer_and_engine_agree_and_the_policy_learns(played: Played) -> None:
    summary = played.summary
    assert summary["steps"] == summary["swaps"] == STEPS and summary["swap_checksums_ok"] is True
    assert summary["logprob_max_abs_diff"] <= 1e-5 and summary["first_ratio_max_abs_err"] == 0.0
    assert summary["heldout_after"] != summary["heldout_before"]
    assert summary["engine"] == {"torch": torch.__version__}


def test_requests_outlast_a_swap_of_the_run_and_every_token_names_its_weights(played: Played) -> None:
    answers, aborted = played.between.answers, played.between.aborted
    assert len(answers) == REQUESTS and len(aborted) == ABORTED
    for name in aborted:
        assert answers[name].finish == "abort" and set(answers[name].version_T) <= {STEPS - 1}
    assert any(len(answers[name].token_T) for name in aborted)
    both = [answer for answer in answers.values() if {*answer.version_T} == {STEPS - 1, STEPS}]
    assert both and all(answer.finish in ("stop", "length") for answer in both)
    expected = {v: _logp(played.folder / f"exports/step_{v:06d}", both) for v in (STEPS - 1, STEPS)}
    for i, answer in enumerate(both):
        logp = np.where(answer.version_T == STEPS, expected[STEPS][i], expected[STEPS - 1][i])
        assert np.abs(answer.logp_T - logp).max() <= 1e-5
    changed = max(np.abs(a - b).max() for a, b in zip(*expected.values(), strict=True))
    assert changed > 1e-3, "another version's weights would be noticed"


def _logp(model: Path, answers: Sequence[Answer]) -> list[np.ndarray]:
    """Log-probability of the tokens of each answer, as transformers computes it."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = []
    for answer in answers:
        token_S = torch.tensor([1, 2, 3, *answer.token_T])
        with torch.no_grad():
            logp_SV = (network(token_S[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        found.append(logp_SV[2:-1].gather(1, token_S[3:, None])[:, 0].numpy())
    return found


@pytest.mark.slow
def test_the_command_line_launches_resumes_and_exports_the_same(played: Played, tmp_path: Path) -> None:
    run = tmp_path / "runs/quickstart"

    def hybridrl(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "hybridrl", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{SUPPORT}:{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    hybridrl("launch", str(QUICKSTART), *OVERRIDES)
    shutil.rmtree(run / f"checkpoints/step_{STEPS:06d}")
    shutil.rmtree(run / "export")
    hybridrl("launch", str(QUICKSTART), *OVERRIDES, "--resume")
    assert "verified" in hybridrl("export", "runs/quickstart", "--to", "again", "--verify")
    expected = (played.folder / "export/model.safetensors").read_bytes()
    for made in (run / "export", tmp_path / "again"):
        assert (made / "model.safetensors").read_bytes() == expected
