"""Answers that a policy finds by chance and a reward may not expect: long, nested, malformed, or code."""

from collections.abc import Mapping

_LONG = 100_000
"""Characters of a long answer: more than 32k tokens of most tokenizers."""

HOSTILE: Mapping[str, str] = {
    "spaces": " " * _LONG,
    "one letter": "a" * _LONG,
    "one letter, then another": "a" * _LONG + "!",
    "digits": "9" * _LONG,
    "minus signs": "-" * _LONG,
    "lines": "\n" * _LONG,
    "words": "the answer is " * (_LONG // 14),
    "every number": " ".join(map(str, range(18_000))),
    "open brackets": "(" * _LONG,
    "nested brackets": "(" * 5_000 + "1" + ")" * 5_000,
    "open braces": "{" * _LONG,
    "nested JSON": "[" * 50_000 + "]" * 50_000,
    "boxes": r"\boxed{" * 10_000,
    "empty boxes": r"\boxed{}" * 10_000,
    "nested fractions": r"\frac{1}{" * 5_000 + "2" + "}" * 5_000,
    "open tags": "<answer>" * 10_000,
    "empty tags": "<answer></answer>" * 5_000,
    "thinking without an end": "<think>" + "hm " * 30_000,
    "tower of powers": "9^9^9^9^9",
    "tower of powers in Python": "9**9**9**9",
    "factorial": "9999999!",
    "long product": "*".join(["99999"] * 15_000),
    "large exponent": "1e999999999",
    "small exponent": "1e-999999999",
    "division by 0": "1/0",
    "not a number": "nan",
    "infinity": "-inf",
    "fraction of infinities": r"\frac{\infty}{\infty}",
    "NUL": "\x00" * 100,
    "control characters": "".join(map(chr, range(32))) * 100,
    "emoji": "\U0001f600" * 25_000,
    "joined accents": "e" + "\u0301" * 50_000,
    "right to left": "\u202e17\u202c" * 1_000,
    "digits of another script": "\u0661\u0662\u0663",
    "a character beyond UTF-16": "\U0010fffd" * 100,
    "replacement characters": "\ufffd" * 10_000,
    "pattern that backtracks": "a" * 40 + "\u00e9",
    "format string": "%s%n{0}{0.__class__}{}" * 100,
    "Python code": "__import__('os')._exit(0)",
    "endless Python code": "while True: pass",
    "shell code": "$(sleep 60); `sleep 60`",
    "SQL": "' OR 1=1; --",
    "True": "True",
    "asterisk": "*",
    "everything": ".*",
}
"""Label -> answer."""


def around(right: str) -> dict[str, str]:
    """Long answers that hold a right one; whether they earn anything is for the reward to say."""
    filler = "word " * (_LONG // 5)
    return {
        "right answer after 100 kB": filler + right,
        "right answer before 100 kB": f"{right} {filler}",
        "right answer many times": f"{right} " * max(1, min(5_000, _LONG // (len(right) + 1))),
    }
