"""The real loop, on fakes, watched by the real observer."""

import asyncio
import io
import json
import re
from dataclasses import replace

import controller_fakes as fakes

from hybridrl.controller.evaluate import Evaluator
from hybridrl.controller.loop import run
from hybridrl.observe.jsonl import read
from hybridrl.observe.observer import RunObserver
from hybridrl.observe.terminal import Terminal

PHASES = {"wait_for_batch", "gen", "reward", "adv", "old_log_prob", "update_actor", "update_weights", "step"}


def test_a_run_is_recorded_whole(tmp_path) -> None:
    (tmp_path / "test").mkdir()
    cfg, world, seen = (
        fakes.config(run={"folder": str(tmp_path)}, observe={"sinks": []}),
        fakes.World(),
        io.StringIO(),
    )
    prompts = [fakes.Prompt("held/0", (1,), {"answer": "7"}, "held")]
    with RunObserver(cfg, Terminal(seen), resume_step=None, num_devices=1) as observe:
        evaluator = Evaluator(cfg, prompts, world, world, observe.heldout)
        asyncio.run(run(cfg, replace(world.roles(evaluator), observe=observe)))
        observe.finish({}, [])

    records = read(tmp_path / "test" / "metrics.jsonl")
    assert [r.step for r in records if r.kind == "step"] == [1, 2, 3, 4, 5, 6]
    assert [r.step for r in records if r.kind == "evaluation"] == [0, 2, 4, 6]
    for record in records:
        if record.kind == "step":
            spent = {name: s for name, s in record.metrics.items() if name.startswith("timing_s/")}
            assert {f"timing_s/{name}" for name in PHASES} <= spent.keys()
            assert spent["timing_s/step"] >= spent["timing_s/update_actor"] + spent["timing_s/update_weights"]
    summary = json.loads((tmp_path / "test" / "summary.json").read_text())
    assert summary["seconds_by_phase"].keys() == PHASES | {"testing", "save_checkpoint", "inspect"}
    assert "6 steps" in seen.getvalue()
    samples = (tmp_path / "test" / "samples.txt").read_text()
    assert [int(step) for step in re.findall(r"step (\d+)   held/0", samples)] == [0, 2, 4, 6]
    assert samples.count("  gold   | 7") >= 4
