"""A log mentions a phase that takes long, at ages that double."""

import time

from hybridrl.observe import slow_phases
from hybridrl.observe.slow_phases import SlowPhases


def test_a_phase_is_mentioned_at_ages_that_double(monkeypatch) -> None:
    ages = [*range(0, 50), *range(0, 12)]
    left, lines = iter(ages), []

    def current() -> tuple[str, float, str]:
        age = next(left, None)
        return ("", 0.0, "") if age is None else ("gen", float(age), f"generating {age} s")

    watched = SlowPhases(current, lines.append, every_s=0.0005)
    deadline = time.monotonic() + 60
    while next(iter(lines[-1:]), "") != "generating 10 s" or len(lines) < 4:
        assert time.monotonic() < deadline, lines
        time.sleep(0.001)
    watched.close()
    assert lines == [f"generating {age} s" for age in (10, 20, 40, 10)]
    assert slow_phases.FIRST_S == 10.0
