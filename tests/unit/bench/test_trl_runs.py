"""What TRL is given of a case, and how its steps are read; one slow test runs TRL itself."""

from pathlib import Path

import pytest

from hybridrl.bench.base import Case
from hybridrl.bench.peers import trl_runs
from hybridrl.bench.peers.reward import spread
from hybridrl.bench.run import Request, bench_of, run
from hybridrl.bench.workloads.e2e import of_machine, speeds
from hybridrl.bench.workloads.e2e_cases import QUICKSTART, SMOKE
from hybridrl.errors import ConfigError, ResourceError
from hybridrl.models.tiny import qwen3_arithmetic

ROOT = Path(__file__).parents[3]
STEP = {
    **{"step_s": 10.0, "gen_s": 4.0, "reward_s": 0.5, "adv_s": 0.0, "old_log_prob_s": 1.0},
    **{"update_actor_s": 4.0, "update_weights_s": 0.5},
    **{"tokens": 600.0, "response_tokens": 10.0, "answers": 32, "longest_response": 64},
}


def test_speeds_are_counts_over_the_time_of_their_phase() -> None:
    found = {name: value for name, [value] in speeds([STEP]).items()}
    assert found["tokens_s"] == 60.0 and found["response_tokens_s"] == 32.0 and found["samples_s"] == 3.2
    assert found["gen_tokens_s"] == 80.0 and found["train_s"] == 5.0 and found["train_tokens_s"] == 120.0
    assert found["other_share"] == pytest.approx(0.1)


def test_steps_are_put_beside_the_machine(tmp_path: Path) -> None:
    qwen3_arithmetic(tmp_path / "model", 0)
    batch = {"prompts_per_step": 4, "minibatch_prompts": 2}
    config = {"model": {"path": str(tmp_path / "model")}, "batch": batch}
    once, twice = (of_machine(c, [STEP]) for c in (config, config | {"batch": {**batch, "epochs": 2}}))
    assert 0 < once["mfu_actor"][0] < 1 and twice["mfu_actor"][0] == pytest.approx(2 * once["mfu_actor"][0])
    for phase, spent in (("gen", 4.0), ("train", 5.0), ("update_weights", 0.5)):
        assert once[f"{phase}_bound_s"][0] * once[f"{phase}_times_bound"][0] == pytest.approx(spent)
    assert of_machine({**config, "model": {"path": "nobody/nothing"}}, [STEP]) == {}


def test_the_rows_of_a_pass_divide_the_answers() -> None:
    assert [trl_runs.rows_at_once(32, most) for most in (0, 1, 24, 32, 99)] == [1, 1, 16, 32, 32]


def test_a_response_token_is_compared_beside_a_whole_step() -> None:
    ours, theirs = speeds([STEP]), speeds([{**STEP, "step_s": 30.0, "response_tokens": 5.0}])
    assert trl_runs.ratios(ours, theirs) == {
        "step_times_ours": [3.0],
        "token_times_ours": [pytest.approx(6.0)],
    }


def test_rewards_differ_for_different_answers() -> None:
    found = [spread(text) for text in ("", "1", "2", "12")]
    assert len(set(found)) == 4 and all(0 <= reward <= 1 for reward in found)


def test_trl_is_given_the_prompts_in_our_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    qwen3_arithmetic(tmp_path / "runs/models/arithmetic-0", 0)
    found = trl_runs.work(SMOKE[0], tmp_path, 2)
    assert [len(found[key]) for key in ("prompts",)] == [8] and found["answers"] == 16
    for prompt in found["prompts"]:
        assert prompt["text"].endswith("=") and len(prompt["text"]) == len(prompt["token_ids"])
    assert len({prompt["text"] for prompt in found["prompts"]}) == 8


def test_work_that_trl_counts_otherwise_is_refused() -> None:
    with pytest.raises(ConfigError, match="case quickstart takes several optimizer steps on one batch"):
        trl_runs.contest(bench_of("e2e"), Case(name="quickstart", config=QUICKSTART))


def test_an_environment_without_trl_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="TRL is not installed"):
        trl_runs.contest(bench_of("e2e"), SMOKE[0], tmp_path / "python")


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / trl_runs.PYTHON).exists(), reason="TRL is not installed: make setup-trl")
def test_trl_takes_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def contest(bench, case):
        return trl_runs.contest(bench, case, ROOT / trl_runs.PYTHON, turns=1)

    ours, theirs = run(bench_of("e2e"), Request(smoke=True), lambda *_: None, contest).rows
    assert theirs["contestant"] == "trl" and theirs["versions"]["trl"]
    assert theirs["config_hash"] == ours["config_hash"]
    shared = {"step_s", "gen_s", "train_s", "tokens_s", "response_tokens"}
    assert shared <= theirs["metrics"].keys() and shared <= ours["metrics"].keys()
    assert theirs["metrics"]["token_times_ours"]["median"] > 0
