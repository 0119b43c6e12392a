"""Secrets are masked by key, by looks and by the environment; everything else stays as it is."""

from typing import Any

import pytest

from hybridrl.config.secrets import MASK, masked, masked_text


@pytest.mark.parametrize(
    "key",
    [
        "api_key",
        "apiKey",
        "judge.api_key",
        "openai_api_key",
        "password",
        "db_password",
        "hf_token",
        "token",
        "access_token",
        "client_secret",
        "aws_secret_access_key",
        "Authorization",
    ],
)
def test_a_value_is_a_secret_by_its_key(key: str) -> None:
    assert masked("anything", key) == MASK
    assert masked({key: "anything"}) == {key: MASK}
    assert masked([{"name": "judge", key: ["anything"]}]) == [{"name": "judge", key: [MASK]}]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_response_tokens", 4096),
        ("eos_token", "</s>"),
        ("pad_token", "<pad>"),
        ("answer_key", "answer"),
        ("key", "prompt"),
        ("tokenizer", "Qwen/Qwen3-8B"),
        ("api_key", None),
        ("api_key", ""),
        ("path", "runs/sk-short/model"),
        ("path", "models/sk-my-long-experiment"),
        ("path", "/data/hf_mirror_of_everything/task-of-a-long-name"),
        ("url", "https://judge.example:8000/v1?model=a&top=3"),
        ("note", "me@lab.example"),
        ("image", "docker://nvcr.io/nvidia/pytorch:26.01"),
    ],
)
def test_what_is_no_secret_stays(key: str, value: Any) -> None:
    assert masked(value, key) == value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host/x", "https://***@host/x"),
        ("postgresql://me:p%40w@db:5432/x", "postgresql://***@db:5432/x"),
        ("https://ghtoken@github.com/a/b", "https://***@github.com/a/b"),
        ("https://h/x?a=1&api_key=abc&b=2", "https://h/x?a=1&api_key=***&b=2"),
        ("https://s3/x?X-Amz-Signature=abc", "https://s3/x?X-Amz-Signature=***"),
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer ***"),
        ("use hf_abcdefghijklmnopqrst now", "use *** now"),
        ("sk-proj-abcdefghijklmnop1234", "***"),
        ("ghp_abcdefghijklmnopqrst1234", "***"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("key=sk-proj-abcdefghijklmnop1234, sk-proj-abcdefghijklmnop1234", "key=***, ***"),
        ("https://hooks.example/v1/ghp_abcdefghijklmnopqrst1234/x", "https://hooks.example/v1/***/x"),
    ],
)
def test_a_text_is_a_secret_by_its_looks(text: str, shown: str) -> None:
    assert masked_text(text) == shown


def test_values_of_secret_variables_are_masked_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_JUDGE_API_KEY", "quite-an-odd-value")
    monkeypatch.setenv("HF_TOKEN_PATH", "a-place-of-files")
    monkeypatch.setenv("SHORT_TOKEN", "x")
    found = masked({"note": "it is quite-an-odd-value", "path": "a-place-of-files", "x": ("x", 1, True)})
    assert found == {"note": f"it is {MASK}", "path": "a-place-of-files", "x": ("x", 1, True)}
