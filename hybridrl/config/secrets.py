"""Secrets stay out of what a run writes and sends: a value that is one, or may be one, becomes `***`.

A text is a secret by the name of its key (api_key, password, hf_token), by what it looks like (a URL with a
password, a Bearer header, a token of Hugging Face, GitHub, AWS or OpenAI), or because an environment variable
with the name of a secret has it as its value.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"

_KEYS = re.compile(
    r"(?:^|[_.\-])(?:pass(?:word|wd|phrase)|secrets?|credentials?|authorization|api_?key"
    r"|(?:access|secret|private|auth|signing)_?key|(?:api|access|auth|bearer|session|refresh|hf|hub|github)_?token)$"
    r"|^token$|^cookie$",
    re.IGNORECASE,
)
"""Names of keys; `max_tokens` and `eos_token` are no secrets."""

_VARIABLES = re.compile(
    r"(?:API_?KEY|(?:ACCESS|SECRET|PRIVATE|AUTH)_KEY(?:_ID)?|(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD))$",
    re.IGNORECASE,
)
"""Names of environment variables; HF_TOKEN_PATH and GOOGLE_APPLICATION_CREDENTIALS hold paths."""

_SHORTEST = 8
"""Characters of an environment variable's value; a shorter one would hide words that mean something else."""

_TOKEN = r"(?:(?:hf_|sk-|gh[opsur]_|github_pat_|glpat-|xox[abps]-)[\w-]{16,}|AKIA[0-9A-Z]{16}\b)"

_PATTERNS = (
    (re.compile(r"(?<=://)[^/@\s]+(?=@)"), MASK),
    (re.compile(r"(?i)([?&](?:[\w-]*(?:token|key|secret|password|signature)|sig)=)[^&\s'\"]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), rf"\1 {MASK}"),
    (re.compile(rf"(?<![\w/]){_TOKEN}"), MASK),  # models/sk-my-long-experiment is a path
    (re.compile(rf"(?i:(https?://[^\s'\"]*/)){_TOKEN}"), rf"\1{MASK}"),
)


def masked(value: Any, key: str = "") -> Any:
    """A value of a config without the secrets in it; mappings and lists keep their form.

    Args:
        key: the name that the value stands under; a dotted one counts by its last word.
    """
    return _masked(value, key, _of_the_environment())


def masked_text(text: str) -> str:
    """A text without the secrets that can be told by their looks, or that the environment has."""
    return _masked_text(text, _of_the_environment())


def _masked(value: Any, key: str, secrets: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _masked(inner, str(name), secrets) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_masked(inner, key, secrets) for inner in value)
    if not isinstance(value, str):
        return value
    return MASK if value and _KEYS.search(key.rpartition(".")[2]) else _masked_text(value, secrets)


def _masked_text(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def _of_the_environment() -> list[str]:
    """Values of variables whose names are those of secrets; the longest first, for one may hold another."""
    found = {v for name, v in os.environ.items() if _VARIABLES.search(name) and len(v) >= _SHORTEST}
    return sorted(found, key=len, reverse=True)
