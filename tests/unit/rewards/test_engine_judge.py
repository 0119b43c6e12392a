"""The rule of a language model that judges: what it is asked, and how its verdict is read."""

import asyncio

import pytest

from hybridrl.config.schema import RewardConfig
from hybridrl.errors import ConfigError, DataError
from hybridrl.rewards.judges.asked import Judges
from hybridrl.rewards.judges.replies import Reply
from hybridrl.rewards.plugin import load_reward
from hybridrl.rewards.rows import check_rows
from hybridrl.rewards.score import Score, Unjudged

PROMPT = "{question}: {response}; right is {answer}"


def judged(scorer, said, **options):
    """Scores of answers whose verdicts an engine gives in order, and what it was asked."""
    config = RewardConfig(name="judge", **{"prompt": PROMPT, **options})
    asked, given = [], iter(said)

    async def engine(messages):
        asked.append(messages)
        return next(given)

    rows = [{"question": f"q{i}", "answer": i} for i in range(len(said))]
    answers = [f"a{i}" for i in range(len(said))]
    filled = asyncio.run(Judges(config, engine).asked(answers, rows))
    uids = [f"train/{i}" for i in range(len(rows))]
    return scorer(**config.model_dump(exclude_unset=True)).judged(answers, filled, uids), asked


def test_the_model_is_asked_with_the_answer_and_columns_in_its_prompt(scorer):
    scores, asked = judged(scorer, [Reply("1"), Reply("0.5")], system="be strict")
    assert scores == [Score(1.0, {}), Score(0.5, {})]
    assert asked[1] == [
        {"role": "system", "content": "be strict"},
        {"role": "user", "content": "q1: a1; right is 1"},
    ]


def test_an_answer_cannot_fill_in_placeholders():
    rule = load_reward("judge", {"prompt": "{response}"}, where="reward").function
    assert rule.messages("{answer}", {"answer": "42"})[-1]["content"] == "{answer}"


@pytest.mark.parametrize(
    ("parse", "verdict", "reward"),
    [
        ("number", "I would say 3 of 10, no: 0.25", 0.25),
        (r"grade: (\w+)", "grade: 0 ... grade: 1", 1.0),
        (r"(?i)verdict\W+(yes|no)", "Verdict: YES", 1.0),
        (r"(?i)verdict\W+(yes|no)", "verdict: no", 0.0),
    ],
)
def test_a_verdict_is_read(scorer, parse, verdict, reward):
    ((score,), _) = judged(scorer, [Reply(verdict)], parse=parse, verdicts={"yes": 1.0, "no": 0.0})
    assert score == Score(reward, {})


@pytest.mark.parametrize(
    ("parse", "verdict"),
    [("number", "excellent"), ("number", "7"), (r"grade: (\w+)", "grade: good"), (r"grade: (\w+)", "")],
)
def test_what_is_no_verdict_is_no_reward(scorer, parse, verdict):
    ((score,), _) = judged(scorer, [Reply(verdict)], parse=parse)
    assert isinstance(score, Unjudged) and score.why.startswith("no_verdict: ")


def test_code_of_the_user_reads_verdicts_in_the_scoring_process(scorer, module):
    name = module(
        "def read(verdict, row): return len(verdict) / row['answer'] if row['answer'] else 'nothing'"
    )
    ((first, second), _) = judged(scorer, [Reply("ab"), Reply("x")], parse=f"{name}:read")
    assert isinstance(first, Unjudged) and second == Score(1.0, {})


def test_a_failure_of_the_engine_is_no_reward(scorer):
    ((score,), _) = judged(scorer, [Reply(failure="timeout: no verdict")])
    assert score == Unjudged("timeout: no verdict")


class Rows(list):
    def columns(self, names):
        return (tuple(row[name] for name in names) for row in self)

    def place(self, index):
        return f"row {index + 1}"


def test_a_row_without_a_column_of_the_prompt_is_refused():
    config = RewardConfig.model_validate({"name": "judge", "prompt": PROMPT})
    rows = Rows([{"question": "q", "answer": 1}, {"question": None, "answer": 2}])
    with pytest.raises(DataError, match="the row has no question"):
        check_rows(config, rows, data="d.jsonl", where="my.yaml:3")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prompt": "grade {answer}"}, "prompt has no {response}"),
        ({"prompt": PROMPT, "parse": "(a)(b)"}, "has 2 groups"),
        ({"prompt": PROMPT, "parse": "a"}, "has 0 groups"),
        ({"prompt": PROMPT, "least": 1.0}, "least = 1.0 is not below most = 1.0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        load_reward("judge", options, where="my.yaml:3")
