"""What verl and OpenRLHF print of a step, with the prefixes and the noise of Ray around it."""

from pathlib import Path

import pytest

from hybridrl.bench.base import Case
from hybridrl.bench.peers import logs
from hybridrl.errors import DataError

CASE = Case(
    name="small",
    config={"batch": {"prompts_per_step": 4}, "algorithm": {"samples_per_prompt": 8}},
    warm_up=1,
    gpus=2,
)

VERL = """\
versions: torch==2.9.0 verl==0.9.1
\x1b[36m(TaskRunner pid=7)\x1b[0m step:0 - val-core/x/mean@1:0.5
\x1b[36m(TaskRunner pid=7)\x1b[0m step:1 - timing_s/gen:20.0 - timing_s/reward:1.0\
 - timing_s/old_log_prob:2.0\
 - timing_s/adv:0.1 - timing_s/update_actor:6.0 - timing_s/update_weights:1.0 - timing_s/step:30.0\
 - perf/total_num_tokens:6000 - response_length/mean:100.0 - actor/kl:nan
(WorkerDict pid=8) INFO step: loading
(TaskRunner pid=7) step:2 - actor/pg_loss:np.float64(-1.2e-05) - timing_s/gen:4.0 - timing_s/reward:0.5\
 - timing_s/old_log_prob:1.0 - timing_s/adv:0.1 - timing_s/update_actor:4.0 - timing_s/update_weights:0.4\
 - timing_s/step:np.float64(10.0) - perf/total_num_tokens:600 - response_length/mean:10.0 - actor/lr:1e-06
"""

_STATUS = (
    "{'policy_loss': nan, 'timing/make_experience': 1.0, 'timing/ppo_train': 4.0, 'timing/broadcast': 0.5,"
    " 'rollout/response_length_mean': %s, 'kl': np.float64(0.1), 'timing/generation': 4.0,"
    " 'timing/step_total': 10.0}"
)
OPENRLHF = "\n".join(
    f"(PPOTrainer pid=7) 2026-01-01 INFO ✨ Global step {step}: {_STATUS % length}"
    for step, length in ((1, 99.0), (2, 10.0))
)


@pytest.mark.parametrize(("peer", "text"), [("verl", VERL), ("openrlhf", OPENRLHF)])
def test_steps_after_the_warm_up_are_read(peer: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(text)
    found = logs.read(peer, tmp_path / "run.log", CASE)
    values = {name: value for name, [value] in found.samples.items()}
    assert found.contestant == peer
    assert (values["step_s"], values["gen_s"], values["train_s"]) == (10.0, 4.0, 5.0)
    assert values["response_tokens_s"] == 10 * 32 / 10 / 2 and values["samples_s"] == 1.6
    assert values.get("tokens_s") == (30.0 if peer == "verl" else None)
    assert found.versions == (
        {"torch": "2.9.0", "verl": "0.9.1"} if peer == "verl" else {peer: "not printed"}
    )


def test_a_log_without_the_steps_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.log"
    with pytest.raises(DataError, match=r"cannot read .*run\.log: No such file"):
        logs.read("verl", file, CASE)
    file.write_text("\n".join(VERL.splitlines()[:3]))
    with pytest.raises(DataError, match="no step of verl after the 1 of the warm-up"):
        logs.read("verl", file, CASE)
    file.write_text(VERL.replace("timing_s/gen", "timing_s/other"))
    with pytest.raises(DataError, match=r"a step of verl has no timing_s/gen"):
        logs.read("verl", file, CASE)
