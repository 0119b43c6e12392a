"""A user's own code that does not import, raises, or ends the process: named, placed, and exit code 2."""

import asyncio
import pickle
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from textwrap import dedent

import pytest

from hybridrl import cli
from hybridrl.doctor import findings
from hybridrl.errors import UserCodeError
from hybridrl.models import tiny
from hybridrl.outside import Guarded, user_code

CONFIG = """\
model: model
data: {train: rows.jsonl, chat_template: none}
reward: exact_match
rollout: {max_prompt_tokens: 16, max_response_tokens: 16}
run: {name: first}
"""

KEYS = {
    "algorithm.estimator": "{}",
    "algorithm.loss": "{}",
    "algorithm.kl.estimator": "{}",
    "algorithm.aggregate": "{}",
    "algorithm.shaping": "[{}]",
    "algorithm.correction": "[{}]",
    "reward": "{}",
    "data.train": "{{task: '{}'}}",
    "data.heldout": "{{task: '{}'}}",
    "model": "{{path: gone, make: '{}'}}",
    "actor.backend": "{}",
    "rollout.engine": "{}",
}
"""Keys that name code, and how it is written under them."""

NAMED = {"reward": "reward.name", "model": "model.make", "data.train": "data.train.task"}
NAMED |= {"data.heldout": "data.heldout.task"}

Refusal = Callable[..., str]


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """What a command says that the module `lab` with this text was named in; its exit code is 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two texts of one size and second are two modules
    (tmp_path / "my.yaml").write_text(CONFIG)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    tiny.qwen3_arithmetic(tmp_path / "model", 0)

    def run(text: str, key: str, *command: str, name: str = "f") -> str:
        (tmp_path / "lab.py").write_text(dedent(text))
        sys.modules.pop("lab", None)
        named = f"{key}={KEYS[key].format(f'lab:{name}')}"
        code = cli.main([*(command or ("config", "check")), "my.yaml", named])
        said = capsys.readouterr().err
        assert code == 2 and "hybridrl itself" not in said, said
        assert NAMED.get(key, key) in said or key == "reward"
        return said

    yield run
    sys.modules.pop("lab", None)


@pytest.mark.parametrize("key", KEYS)
def test_code_that_ends_the_process_while_it_is_imported_is_no_success(refusal: Refusal, key: str) -> None:
    said = refusal("import sys\nsys.exit(0)\n", key)
    assert "lab:f ends the program by SystemExit: 0, at " in said
    assert "lab.py:2 in <module>: sys.exit(0)" in said


@pytest.mark.parametrize(
    "key", ["algorithm.estimator", "reward", "data.train", "model", "actor.backend", "rollout.engine"]
)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = {}\nx['a']\n", "raises KeyError: 'a', at {}:2 in <module>: x['a']"),
        ("def f(:\n", "raises SyntaxError: invalid syntax (lab.py, line 1), at {}:1: def f(:"),
        (
            "import no_such_library\n",
            "'no_such_library', at {}:1 in <module>: import no_such_library",
        ),
        ("from json import nothing\n", "raises ImportError: cannot import name 'nothing'"),
    ],
)
def test_code_that_does_not_import_names_its_line(
    refusal: Refusal, tmp_path: Path, key: str, text: str, said: str
) -> None:
    assert said.format(tmp_path / "lab.py") in refusal(text, key)


@pytest.mark.parametrize(
    ("key", "command", "inside"),
    [
        ("data.train", ("launch", "--dry-run"), True),
        ("reward", ("launch", "--dry-run"), True),
        ("model", ("plan",), True),
        ("algorithm.estimator", ("config", "check"), False),
        ("algorithm.loss", ("config", "check"), False),
        ("algorithm.shaping", ("config", "check"), False),
        ("algorithm.correction", ("config", "check"), False),
    ],
)
def test_code_that_fails_when_it_is_called_names_its_line(
    refusal: Refusal, key: str, command: tuple[str, ...], inside: bool
) -> None:
    text = "def f(*args, **columns):\n    {}\nf.needs = frozenset()\n"
    assert "lab.py:2 in f: undefined" in refusal(text.format("undefined"), key, *command)
    assert "SystemExit" in refusal(text.format("raise SystemExit"), key, *command)
    assert not inside or "RuntimeError" in refusal(text.format("raise RuntimeError('mine')"), key, *command)


@pytest.mark.parametrize(
    ("key", "returned", "said"),
    [
        ("algorithm.estimator", "None", "it returned NoneType, not a tensor"),
        ("algorithm.shaping", "reward_N[:1]", "it returned Tensor of shape (1,), not a tensor"),
        ("algorithm.loss", "None", "'NoneType' object has no attribute 'loss_T'"),
    ],
)
def test_code_that_returns_something_else_is_to_blame(
    refusal: Refusal, key: str, returned: str, said: str
) -> None:
    arguments = "logp_T, **columns" if key == "algorithm.loss" else "reward_N, group_N"
    assert said in refusal(f"def f({arguments}):\n    return {returned}\nf.needs = frozenset()\n", key)


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("actor.backend", "rollout.engine")])
def test_a_name_that_cannot_be_called_is_refused(refusal: Refusal, key: str) -> None:
    value = {"reward": "None", "data.train": "'text'"}.get(key, "3")
    assert f"lab:f is {value}, which cannot be called" in refusal(f"f = {value}\n", key)


@pytest.mark.parametrize("name", ["f:g", "f.g", "f-g"])
def test_a_name_of_another_form_is_refused(refusal: Refusal, name: str) -> None:
    said = refusal("def f(): pass\n", "algorithm.loss", name=name)
    assert f"'lab:{name}' is not module:Name" in said


def test_an_error_of_the_user_that_is_no_exception_is_refused(refusal: Refusal) -> None:
    said = refusal("class Mine(BaseException): pass\nraise Mine('x')\n", "algorithm.estimator")
    assert "raises Mine: x, at " in said


def test_a_call_that_is_not_taken_names_the_definition(refusal: Refusal) -> None:
    text = "class Mine:\n    needs = frozenset()\n    def __call__(self):\n        pass\n"
    said = refusal(text, "algorithm.estimator", name="Mine")
    assert "unexpected keyword argument 'reward_N', at " in said and "lab.py:1: class Mine:" in said


@pytest.mark.usefixtures("refusal")
def test_a_module_that_is_not_there_is_told_apart(capsys: pytest.CaptureFixture) -> None:
    assert cli_says(capsys, "algorithm.estimator=no_such_lab:f") == "cannot import 'no_such_lab'"
    assert cli_says(capsys, "algorithm.estimator=hybridrl.no_such:f") == "cannot import 'hybridrl.no_such'"


def cli_says(capsys: pytest.CaptureFixture, override: str) -> str:
    assert cli.main(["config", "check", "my.yaml", override]) == 2
    return capsys.readouterr().err.removeprefix("error: ").partition(":")[0]


def test_the_persons_interrupt_is_not_the_codes_failure() -> None:
    with pytest.raises(KeyboardInterrupt), user_code("lab:f", key="reward.name", where="my.yaml:3"):
        raise KeyboardInterrupt


def test_the_projects_own_code_is_not_blamed_on_a_person() -> None:
    with pytest.raises(ZeroDivisionError), user_code("hybridrl.models.tiny:f", key="model.make", where=""):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), user_code("grpo", key="algorithm.estimator", where=""):
        raise ZeroDivisionError


def test_what_a_guarded_plugin_has_and_has_not_is_seen_through_it() -> None:
    class Mine:
        needs = frozenset({"length"})

        def state_dict(self):
            raise RuntimeError("mine")

        @property
        def centred(self):
            return 1 / 0

    guarded = Guarded(Mine(), "lab:Mine", where="algorithm.estimator")
    assert guarded.needs == {"length"} and not hasattr(guarded, "makes")
    with pytest.raises(UserCodeError, match=r"RuntimeError: mine, at .*outside.py:\d+ in state_dict"):
        guarded.state_dict()
    with pytest.raises(UserCodeError, match="in centred: return 1 / 0"):
        _ = guarded.centred


def test_a_guarded_plugin_is_guarded_while_it_is_awaited_and_iterated_over_and_in_what_it_makes() -> None:
    class Made:
        async def answer(self):
            raise RuntimeError("mine")

        def each(self):
            yield 1
            raise RuntimeError("mine")

    class Mine:
        def open(self):
            return Made()

        def other(self):
            return Made()

    guarded = Guarded(Mine(), "lab:Mine", where="rollout.engine", makes=("open",))
    with pytest.raises(UserCodeError, match="RuntimeError: mine, at .* in answer"):
        asyncio.run(guarded.open().answer())
    with pytest.raises(UserCodeError, match="RuntimeError: mine, at .* in each"):
        list(guarded.open().each())
    assert isinstance(guarded.other(), Made)
    assert isinstance(pickle.loads(pickle.dumps(Guarded(Fraction(1), "lab:f", where=""))), Guarded)


KIND = "class Kind:\n    {}\n"


@pytest.mark.parametrize(
    ("key", "body", "said"),
    [
        (
            "actor.backend",
            "layout = None",
            "lab:Kind has no open (command line): actor.backend names a class with these",
        ),
        ("rollout.engine", "layout = None", "rollout.engine: lab:Kind has no parallel"),
        (
            "rollout.engine",
            "parallel = dict",
            "rollout.engine: parallel of lab:Kind is <class 'dict'>, not a class derived from EngineParallel",
        ),
        ("rollout.engine", "parallel = property(dict)", "parallel of lab:Kind is <property object at"),
        (
            "actor.backend",
            "layout = open = None\n    def __init__(self): undefined",
            "lab:Kind raises NameError: name 'undefined' is not defined, at {}:3 in __init__",
        ),
        (
            "actor.backend",
            "from hybridrl.layout.trainers import TrainerLayout\n    class layout(TrainerLayout):\n"
            "        @classmethod\n        def refuse_unbuildable(cls, model, *, where): 1 / 0"
            "\n    def open(self, setup): ...",
            "lab:Kind raises ZeroDivisionError: division by zero, at {}:5 in refuse_unbuildable",
        ),
        (
            "actor.backend",
            "layout = dict\n    def open(self, setup): ...",
            "layout of lab:Kind is <class 'dict'>, not a class derived from TrainerLayout",
        ),
    ],
)
def test_a_backend_or_engine_that_is_none_is_refused_before_the_run(
    refusal: Refusal, tmp_path: Path, key: str, body: str, said: str
) -> None:
    found = " ".join(refusal(KIND.format(body), key, "launch", "--dry-run", name="Kind").split())
    assert said.format(tmp_path / "lab.py") in found


def test_a_process_end_from_elsewhere_is_no_success(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "examine", lambda: sys.exit(0))
    assert cli.main(["doctor"]) == 1
    assert "something ended the command before it was done, by SystemExit: 0" in capsys.readouterr().err
