"""The command line that all benchmarks share."""

import pytest

from benchmarks._report import arguments

SIZES = {"steps": 80, "presets": "grpo,rloo"}


def test_smoke_makes_it_small_and_what_is_given_goes_first() -> None:
    def steps(*given: str) -> tuple[int, str]:
        options = arguments("", smoke={"steps": 3}, given=given, **SIZES)
        return options.steps, options.presets

    assert steps() == (80, "grpo,rloo")
    assert steps("--smoke") == (3, "grpo,rloo")
    assert steps("--steps", "5", "--smoke") == steps("--smoke", "--steps", "5") == (5, "grpo,rloo")


def test_a_size_that_there_is_not_cannot_be_made_small() -> None:
    with pytest.raises(ValueError, match="setps"):
        arguments("", smoke={"setps": 3}, given=(), **SIZES)


def test_places_may_be_left_out() -> None:
    def found(*given: str) -> tuple[str, str]:
        options = arguments("", smoke={}, places={"old": "a", "new": "b"}, given=given, **SIZES)
        return options.old, options.new

    assert found() == ("a", "b") and found("c") == ("c", "b") and found("c", "d") == ("c", "d")
