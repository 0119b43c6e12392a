"""`hybridrl reward check` asks the judges that it can ask, and says which it cannot."""

import asyncio
from pathlib import Path

import pytest
from judge_service import first, lengths, says, served

from hybridrl import cli
from hybridrl.config.schema import RewardConfig
from hybridrl.rewards.judges.trial import try_judges

ROWS = [{"question": f"q{i}", "kind": "a" if i else "b"} for i in range(4)]
ANSWERS = ["one", "three", "four", "fivefive"]


def tried(behave, reward):
    """Findings about a reward in which URL is the service's address."""

    async def run():
        async with served(behave) as service:
            given = RewardConfig.model_validate(reward(service.url))
            return await asyncio.to_thread(lambda: list(try_judges(given, ROWS, ANSWERS)))

    return asyncio.run(run())


def alone(url):
    return {"name": "http", "url": url, "retries": 0, "max_unjudged": 0.25}


def test_a_service_is_asked_about_each_answer():
    (finding,) = tried(lengths, alone)
    assert (finding.verdict, finding.kind) == ("ok", "judge")
    assert finding.text.startswith("reward judged 4 of 4 answers in ")
    assert finding.text.endswith("the first reply is 3")


@pytest.mark.parametrize(("failing", "verdict"), [(1, "warning"), (2, "no")])
def test_failures_are_counted_and_too_many_would_end_a_run(failing, verdict):
    (finding,) = tried(first(failing, says("boom", 500)), alone)
    assert finding.verdict == verdict
    assert f"judged {4 - failing} of 4 answers" in finding.text and "http_500" in finding.text


def test_a_model_of_the_run_is_named_and_not_asked():
    def both(url):
        parts = {
            "style": {"name": "http", "weight": 0.5, "url": url},
            "clear": {"name": "judge", "weight": 0.5, "prompt": "{response}"},
        }
        return {"name": "weighted_sum", "parts": parts}

    service, model = tried(lengths, both)
    assert service.verdict == "ok" and service.text.startswith("reward.parts.style judged 4 of 4")
    assert model.verdict == "warning" and "reward.parts.clear asks the language model" in model.text


def test_a_service_is_asked_about_its_own_rows_alone():
    def by_kind(url):
        several = {"a": {"name": "http", "url": url}, "b": "exact_match"}
        return {"name": "by_field", "field": "kind", "several": several}

    (finding,) = tried(lengths, by_kind)
    assert "reward.several.a judged 3 of 3 answers" in finding.text


def test_a_reward_without_a_judge_has_no_such_finding():
    assert tried(lengths, lambda url: {"name": "exact_match"}) == []


def test_the_command_ends_with_exit_code_2_if_nobody_judges(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    Path("my.yaml").write_text(
        "model: nowhere\ndata: {train: rows.jsonl}\nrun: {name: first}\n"
        "reward: {name: http, url: 'http://127.0.0.1:9/score', retries: 0}\n"
    )
    assert cli.main(["reward", "check", "my.yaml"]) == 2
    assert "no        judge      reward judged 0 of 1 answer" in capsys.readouterr().out
