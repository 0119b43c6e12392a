"""A number and its noun, rows, JSON's words."""

import json

import pytest

from hybridrl.wording import counted, json_fault, json_kind, row_place


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((1, "prompt"), "1 prompt"),
        ((2, "prompt"), "2 prompts"),
        ((0, "prompt"), "0 prompts"),
        ((1, "trajectory", "trajectories"), "1 trajectory"),
        ((2, "trajectory", "trajectories"), "2 trajectories"),
        ((1024, "token", "", ","), "1,024 tokens"),
        ((1024, "token"), "1024 tokens"),
    ],
)
def test_they_agree(given: tuple, said: str) -> None:
    assert counted(*given) == said


def test_rows_are_counted_from_one() -> None:
    assert row_place(0, "a.jsonl") == "row 1 of a.jsonl"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("null", "null"),
        ("true", "true"),
        ("false", "false"),
        ("3", "a number"),
        ("3.5", "a number"),
        ('"a"', "text"),
        ("[]", "a list"),
        ("{}", "an object"),
    ],
)
def test_a_value_has_the_name_that_json_gives_it(text: str, said: str) -> None:
    assert json_kind(json.loads(text)) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a":\n', "Expecting value, at character 7"),
        (b'{"a": "\xff"}', "byte 8 is not UTF-8"),
        (b"[" * 100_000, "values inside values, deeper than can be read"),
        (b"9" * 5000, "a whole number with more digits than can be read"),
    ],
)
def test_a_text_that_is_not_json_says_why(text: bytes, said: str) -> None:
    with pytest.raises((ValueError, RecursionError)) as raised:
        json.loads(text.decode())
    assert json_fault(raised.value) == said
