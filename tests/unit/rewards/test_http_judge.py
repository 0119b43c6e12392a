"""A service that judges over HTTP: what it is sent, and what becomes of an answer when it fails."""

import asyncio

import judge_service as services
import pytest

from hybridrl.config.schema import RewardConfig
from hybridrl.errors import ConfigError
from hybridrl.rewards.judges.asked import Judges
from hybridrl.rewards.judges.replies import Reply
from hybridrl.rewards.judges.service import HttpService, Item
from hybridrl.rewards.plugin import load_reward
from hybridrl.rewards.rules.http import HttpJudge
from hybridrl.rewards.score import Score, Unjudged


def ask(behave, answers, *, bearer="", row=None, **options):
    """Replies to some answers, and the service with what it was sent."""

    async def run():
        async with services.served(behave) as service:
            given = {"request_timeout_s": 5.0, "retries": 0, **options}
            client = HttpService(HttpJudge(url=service.url, **given), bearer)
            try:
                return await client.ask([Item(a, row or {}) for a in answers]), service, client.counts
            finally:
                await client.close()

    return asyncio.run(run())


def test_answers_are_judged_in_order_and_in_batches():
    replies, service, counts = ask(services.lengths, ["a", "bbb", "cc", "", "dddd"], batch=2)
    assert [reply.value for reply in replies] == [1, 3, 2, 0, 4]
    assert sorted(len(request["items"]) for request in service.requests) == [1, 2, 2]
    assert counts == {"requests": 3}


def test_a_request_has_the_columns_that_are_listed_and_a_bearer_token():
    row = {"question": "1 + 1", "answer": 2, "secret": "x"}
    _, service, _ = ask(services.lengths, ["2"], bearer="k1", row=row, fields=("question", "absent"))
    assert service.requests == [{"items": [{"answer": "2", "row": {"question": "1 + 1", "absent": None}}]}]
    assert service.headers[0]["Authorization"] == "Bearer k1"


def test_no_more_requests_run_than_the_config_allows():
    async def slow(number, body):
        await asyncio.sleep(0.02)
        return await services.lengths(number, body)

    replies, service, _ = ask(slow, ["a"] * 12, concurrency=3)
    assert [reply.value for reply in replies] == [1] * 12
    assert service.most_running == 3


@pytest.mark.parametrize(
    ("behave", "kind"),
    [
        (services.hang, "timeout"),
        (services.says("boom", 500), "http_500"),
        (services.says("no", 429, Retry_After="0"), "http_429"),
        (services.says("not json"), "garbage"),
        (services.results([1, 2]), "garbage"),
        (services.says("[1]"), "garbage"),
    ],
)
def test_a_failure_is_tried_again_and_then_named(behave, kind):
    (reply,), service, counts = ask(behave, ["a"], retries=2, request_timeout_s=0.2)
    assert reply.value is None and reply.failure.startswith(f"{kind}: ") and service.url in reply.failure
    assert counts == {"requests": 3, "retries": 2, "failed": 1}


@pytest.mark.parametrize(
    ("behave", "kind"),
    [
        (services.says("no", 401), "http_401"),
        (services.says("", 302, Location="http://elsewhere/"), "http_302"),
        (services.says(b"x" * (3 << 20)), "garbage"),
    ],
)
def test_what_cannot_get_better_is_not_tried_again(behave, kind):
    (reply,), service, _ = ask(behave, ["a"], retries=3)
    assert reply.failure.startswith(kind) and len(service.requests) == 1


@pytest.mark.parametrize("once", [services.says("", 503), services.says("{"), services.hang])
def test_a_service_that_comes_back_judges(once):
    (reply,), _, counts = ask(services.first(1, once), ["abc"], retries=1, request_timeout_s=0.3)
    assert reply == Reply(3) and counts["failed"] == 0


def test_a_service_that_is_not_there_is_a_failure():
    async def run():
        client = HttpService(HttpJudge(url="http://127.0.0.1:9/score", retries=0))
        try:
            return await client.ask([Item("a", {})])
        finally:
            await client.close()

    (reply,) = asyncio.run(run())
    assert reply.failure.startswith("connection: ")


def judged(scorer, behave, answers, **reward):
    """Scores of answers through the service, in a scoring process."""

    async def run():
        async with services.served(behave) as service:
            config = RewardConfig.model_validate(fill(reward, service.url))
            judges = Judges(config)
            rows = await judges.asked(answers, [{"answer": "right"} for _ in answers])
            counts = judges.take_counts()
            await judges.close()
            return config, rows, counts

    config, rows, counts = asyncio.run(run())
    options = config.model_dump(exclude_unset=True)
    return scorer(**options).judged(answers, rows, [f"train/{i}" for i in range(len(rows))]), counts


def fill(values, url):
    """The values with the service's address in place of "URL"."""
    if isinstance(values, dict):
        return {key: fill(value, url) for key, value in values.items()}
    return url if values == "URL" else values


def test_a_rule_and_a_service_add_up_by_weight(scorer):
    parts = {
        "exact": {"name": "exact_match", "weight": 1.0},
        "helpful": {"name": "http", "weight": 0.1, "url": "URL", "retries": 0},
    }
    broken = services.by_answer(broken=services.says("", 500))
    scores, counts = judged(scorer, broken, ["right", "wrong!", "broken"], name="weighted_sum", parts=parts)
    assert scores[0] == Score(1.5, {"exact": 1.0, "helpful": 5.0})
    assert scores[1] == Score(0.6000000000000001, {"exact": 0.0, "helpful": 6.0})
    assert isinstance(scores[2], Unjudged) and scores[2].why.startswith("http_500")
    assert counts == {"judge/helpful/requests": 3.0, "judge/helpful/failed": 1.0}


@pytest.mark.parametrize("value", ["high", None, True, [1], {"score": 1}])
def test_what_is_no_number_is_no_reward(scorer, value):
    (score,), _ = judged(scorer, services.results([value]), ["a"], name="http", url="URL", retries=0)
    if value is True:  # a comparison is a number, as in every reward
        assert score == Score(1.0, {})
    else:
        assert isinstance(score, Unjudged) and score.why.startswith("garbage: ")


def test_a_number_that_is_not_finite_is_no_reward(scorer):
    nan = services.says('{"results": [NaN, {"reward": 1, "form": Infinity}]}')
    scores, _ = judged(scorer, nan, ["a", "b"], name="http", url="URL", retries=0, batch=2)
    assert [score.why.split(":")[0] for score in scores] == ["garbage", "garbage"]


def test_parts_of_a_service_are_parts_of_the_reward(scorer):
    (score,), _ = judged(
        scorer, services.results([{"reward": 0.5, "form": 1}]), ["a"], name="http", url="URL"
    )
    assert score == Score(0.5, {"form": 1.0})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "judge:80"}, "url = judge:80, which is no address"),
        ({"url": "http://j", "batch": 0}, "batch = 0 is below 1"),
        ({"url": "http://j", "retries": -1}, "retries = -1 is below 0"),
        ({"url": "http://j", "request_timeout_s": 0.0}, "request_timeout_s = 0.0 is not above 0"),
        ({"url": "http://j", "headers": 1}, "headers"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        load_reward("http", options, where="my.yaml:3")
