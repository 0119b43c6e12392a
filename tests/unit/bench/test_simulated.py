"""Simulated engines count every token that they sample."""

from hybridrl.bench.workloads import fake_clock
from hybridrl.bench.workloads.simulated import Hardware, Lengths, SimulatedRun, config
from hybridrl.controller.loop import run


def test_no_token_of_an_aborted_group_is_in_flight() -> None:
    cfg = config(8, 4, 3, order="finished", oversample=1.5)
    hardware = Hardware(engines=4, running=12, token_s=0.02, prefill_tokens_s=5e4, train_s=1.0, swap_s=0.1)
    simulated = SimulatedRun(cfg, hardware, Lengths(mean=400, p99=1600, largest=4096), "drain")

    async def play() -> None:
        async with simulated.running():
            await run(cfg, simulated.roles())

    fake_clock.run(play())
    assert sum(metrics["rollout/tokens/aborted"] for metrics in simulated.metrics) > 0
    assert [metrics["rollout/tokens/in_flight"] for metrics in simulated.metrics] == [0.0] * 3
