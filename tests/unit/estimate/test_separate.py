"""Memory and time of runs whose engines have GPUs of their own."""

from dataclasses import replace

import pytest
from plan_values import make_setting

from hybridrl.config.training import TrainParallel
from hybridrl.estimate.divisions import divisions
from hybridrl.estimate.fit import cheapest_change, fits
from hybridrl.estimate.memory import phases
from hybridrl.estimate.search import search
from hybridrl.estimate.setting import Setting
from hybridrl.estimate.time import generate_s, logprobs_s, step_time, stream_s, train_s

MODEL = "Qwen/Qwen2.5-7B-Instruct"


def separate(engines: int = 8, lag: int = 2, swap: str = "in_flight", nodes: int = 2) -> Setting:
    setting = make_setting(MODEL, nodes=nodes, lag=lag, swap=swap, separate_engines=engines)
    return replace(setting, microbatch_tokens=8192).with_sharding(tp=4)


def test_engines_and_trainer_divide_the_gpus() -> None:
    setting = separate(engines=4)
    assert (setting.engine_gpus, setting.trainer_gpus, setting.train.dp) == (4, 12, 3)
    assert not setting.engines_sleep and setting.divides()
    assert separate(engines=14).missing_gpus() == "actor.parallel needs 4 GPUs beside 14 of the engines"


def test_a_gpu_has_an_engine_or_the_trainer() -> None:
    found = {phase.name: phase for phase in phases(separate())}
    engines = found.pop("engines")
    assert engines.engine > 0 < engines.kv and engines.weights == engines.optimizer == 0
    assert found and all(phase.engine == phase.kv == 0 for phase in found.values())
    colocated = {phase.name: phase for phase in phases(make_setting(MODEL, nodes=2, lag=2, swap="in_flight"))}
    assert colocated["train, stage 0"].engine == pytest.approx(engines.engine)


def test_with_a_lag_the_slower_side_is_the_step() -> None:
    setting = separate()
    time, work = step_time(setting), logprobs_s(setting) + train_s(setting)
    assert time.generate == stream_s(setting)
    assert time.total == pytest.approx(max(time.generate, work) + time.swap)
    waiting = step_time(replace(setting, max_lag=0))
    assert waiting.overlap == 0 and waiting.total == pytest.approx(
        generate_s(setting) + work + waiting.swap + waiting.offload
    )


def test_swaps_in_flight_do_not_wait_for_the_longest_answers() -> None:
    """All 146 answers of an engine run at once, so that most of them wait for the longest."""
    drain, in_flight = (separate(engines=56, nodes=8, swap=swap) for swap in ("drain", "in_flight"))
    assert stream_s(in_flight) < stream_s(drain) == generate_s(drain)


def test_more_nodes_of_engines_take_longer_to_reach() -> None:
    few, many = separate(engines=8, nodes=2), separate(engines=56, nodes=8)
    times = [step_time(setting).swap for setting in (few, many)]
    assert few.trainer_gpus == many.trainer_gpus and times[1] > 2 * times[0]


def test_a_search_keeps_the_division_of_the_gpus_of_an_on_policy_run() -> None:
    found = search(replace(separate(), max_lag=0))
    assert found
    for proposal in found:
        setting = proposal.setting
        assert setting.separate and setting.engine_gpus == 8 and setting.train.num_ranks == 8
        assert setting.offload == "none"


def test_a_search_divides_the_gpus_if_answers_may_be_old() -> None:
    """On nodes it gives engines whole ones; all GPUs have a trainer rank or an engine."""
    colocated = make_setting("Qwen/Qwen2.5-0.5B", nodes=2, lag=2, swap="in_flight")
    found = [proposal.setting for proposal in search(colocated, count=1000)]
    assert {setting.engine_gpus for setting in found if setting.separate} == {8}
    assert any(not setting.separate for setting in found)
    for setting in found:
        assert setting.train.num_ranks == setting.trainer_gpus
        assert setting.separate + setting.engines_sleep == 1
    on_four_nodes = divisions(separate(nodes=4))
    assert [s.engine_gpus * s.separate for s in on_four_nodes] == [8, 0, 16, 24]
    kept = divisions(separate(nodes=4, swap="drain"))
    assert all(s.separate for s in kept), "a cache that is kept cannot be colocated"


def test_a_change_of_one_key_keeps_the_number_of_engines() -> None:
    large = replace(separate(), train=TrainParallel(tp=4, dp=2), microbatch_tokens=131072)
    assert not fits(large)
    change = cheapest_change(large)
    assert change is not None
    assert change.setting.num_engines == 8 and change.key not in ("actor.offload", "rollout.parallel.tp")
