"""What can be a reward, and every mistake in naming one."""

import pytest

from hybridrl.errors import ConfigError, RewardError, UserCodeError
from hybridrl.rewards.score import Score

ROW = {"answer": "7", "solution": "8"}


def score(scorer, answer="7"):
    return scorer.score([answer], [ROW], ["train/0"])[0].reward


def test_functions_and_classes_with_and_without_answer_field(scorer, module):
    name = module("""\
        def plain(answer, row): return answer == row['answer']

        def field(answer, row, answer_field): return answer == row[answer_field]

        def options(answer, row, *, answer_field, weight: float = 1.0):
            return weight * (answer == row[answer_field])

        def anything(answer, row, **options): return options == {'answer_field': 'answer', 'extra': 3}

        class Made:
            def __init__(self, bonus=0): self.bonus = bonus
            def __call__(self, answer, row, answer_field): return self.bonus + (answer == row[answer_field])

        made = Made(5)
    """)
    assert score(scorer(f"{name}:plain")) == 1
    assert score(scorer(f"{name}:field", answer_field="solution")) == 0
    assert score(scorer(f"{name}:options", weight=0.5)) == 0.5
    assert score(scorer(f"{name}:anything", extra=3)) == 1
    assert score(scorer(f"{name}:Made", bonus=2)) == 3
    assert score(scorer(f"{name}:made")) == 6


FOREIGN = [
    (
        "def reward(data_source, solution_str, ground_truth, extra_info=None): return 1.0",
        "takes (data_source, solution_str, ground_truth, extra_info), as a reward of verl does",
    ),
    (
        "def reward(prompts, completions, **kwargs): return 1.0",
        "takes (prompts, completions), as a reward of TRL does",
    ),
    ("def reward(args, sample, **kwargs): return 1.0", "takes (args, sample), as a reward of slime does"),
    ("async def reward(answer, row): return 1.0", "is async, and nothing awaits it"),
    (
        "class reward:\n    async def __call__(self, answer, row): return 1.0",
        "is async, and nothing awaits it",
    ),
    (
        "class reward:\n    def __call__(self, data_source, solution_str): return 1.0",
        "takes (data_source, solution_str), as a reward of verl does",
    ),
]


@pytest.mark.parametrize(("source", "message"), FOREIGN)
def test_a_reward_of_another_framework_is_refused_before_it_scores(scorer, module, source, message):
    name = module(source)
    with pytest.raises(ConfigError) as caught:
        scorer(f"{name}:reward")
    assert f"reward {name}:reward {message}  (my.yaml:9)" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"name": "exact_mach"},
            "rules has no 'exact_mach'  (my.yaml:9): use one of exact_match, qa_match, or module:Name",
        ),
        (
            {"name": "exact_match", "casefolds": True},
            "reward exact_match has no option 'casefolds'  (my.yaml:9): did you mean casefold?",
        ),
        (
            {"name": "exact_match", "timeout": 3},
            "reward exact_match has no option 'timeout'  (my.yaml:9): did you mean timeout_s?",
        ),
        (
            {"name": "exact_match", "strip": "no"},
            "reward exact_match: strip = no is not true or false  (my.yaml:9): give strip true or false",
        ),
        ({"name": "regex"}, "reward regex needs the option pattern  (my.yaml:9): add pattern: ..."),
        (
            {"name": "math_verify", "cpu_limit_s": 0.0},
            "reward math_verify: cpu_limit_s = 0.0 is not a positive",
        ),
        ({"name": "regex", "pattern": "("}, "reward regex: missing ), unterminated subpattern at position 0"),
        ({"name": "regex", "pattern": "a", "group": 1}, "pattern 'a' has 0 groups, group = 1"),
        ({"name": "regex", "pattern": "a", "group": "n"}, "pattern 'a' has no group 'n'"),
        ({"name": "weighted_sum", "parts": {}}, "weighted_sum has no parts"),
        ({"name": "weighted_sum", "parts": {"a": {"name": "regex"}}}, "part 'a' needs a name and a weight"),
        (
            {"name": "weighted_sum", "parts": {"a": {"name": "regx", "weight": 1}}},
            "rules has no 'regx'  (reward.parts.a): use one of regex",
        ),
        ({"name": "no_such_module:f"}, "cannot import 'no_such_module'"),
        ({"name": "json:loads"}, "cannot be called: too many positional arguments"),
    ],
)
def test_a_mistake_in_the_config_is_named_before_anything_is_scored(scorer, config, message):
    with pytest.raises(ConfigError) as caught:
        scorer(**config)
    assert message in str(caught.value)


def test_a_module_that_raises_while_it_is_imported_names_the_line(scorer, module):
    name = module("import os\n\nx = 1 / 0\n")
    with pytest.raises(UserCodeError) as caught:
        scorer(f"{name}:f")
    assert f"reward.name = {name}:f raises ZeroDivisionError: division by zero, at " in caught.value.what
    assert caught.value.what.endswith(f"{name}.py:3 in <module>: x = 1 / 0")


def test_a_module_that_ends_the_process_while_it_is_imported_is_reported(scorer, module):
    name = module("import os\nos._exit(5)\n")
    with pytest.raises(RewardError, match="cannot be loaded: its process exited with code 5"):
        scorer(f"{name}:f")


def test_a_function_that_is_not_there_names_the_nearest(scorer, module):
    name = module("def accuracy(answer, row): return 1")
    with pytest.raises(ConfigError, match="did you mean accuracy?"):
        scorer(f"{name}:acuracy")


def test_a_parameter_without_default_is_an_option_that_must_be_given(scorer, module):
    name = module("def f(answer, row, *, scale): return scale")
    with pytest.raises(ConfigError, match="needs the option scale"):
        scorer(f"{name}:f")
    assert scorer(f"{name}:f", scale=2).score(["x"], [{}], ["u"]) == [Score(2.0, {})]
