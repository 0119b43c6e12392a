"""Code that a config names by its file: rewards, tasks, and every other plug-in."""

import sys
from pathlib import Path

import pytest

from hybridrl import registry
from hybridrl.config.schema import RewardConfig, SourceConfig
from hybridrl.data.source import open_rows
from hybridrl.errors import ConfigError, UserCodeError
from hybridrl.outside import imported
from hybridrl.rewards.pool import Scorer

CODE = """\
import neighbour_of_lab
made = []
made.append(1)
def right(answer, row, *, worth: float = neighbour_of_lab.WORTH):
    return worth * (answer == row["answer"])
def rows(*, seed: int, count: int):
    return [{"prompt": str(n), "answer": str(n)} for n in range(count)]
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("lab").mkdir()
    Path("lab/my-code.py").write_text(CODE)  # a name that no import statement could have
    Path("lab/neighbour_of_lab.py").write_text("WORTH = 2.0\n")
    return tmp_path


@pytest.mark.parametrize("file", ["lab/my-code.py", "./lab/my-code.py", "{}/lab/my-code.py"])
def test_a_reward_is_found_by_its_file(lab: Path, file: str) -> None:
    name = f"{file.format(lab)}:right"
    with Scorer(RewardConfig(name=name)) as scorer:
        assert scorer.score(["1"], [{"answer": "1"}], ["a"])[0].reward == 2.0
    with Scorer(RewardConfig.model_validate({"name": name, "worth": 0.5})) as scorer:
        assert scorer.score(["1"], [{"answer": "1"}], ["a"])[0].reward == 0.5


def test_a_task_is_found_by_its_file(lab: Path) -> None:
    source = SourceConfig.model_validate({"task": "lab/my-code.py:rows", "count": 3})
    assert len(open_rows(source, split="train", seed=0, where="data")[1]) == 3


def test_a_file_is_run_once_however_it_is_written(lab: Path) -> None:
    first, second = imported("lab/my-code.py"), imported(f"{lab}/lab/../lab/my-code.py")
    assert first is second and first.made == [1]


WRONG = {
    "lab/my_code.py:right": "there is no file lab/my_code.py .*did you mean lab/my-code.py",
    "gone/a.py:right": "there is no file gone/a.py .*it is looked for in .*gone",
    "lab/my-code.py": "names a file and nothing in it .*: write lab/my-code.py:NAME",
    "lab/my-code.py:rihgt": "has no 'rihgt' .*did you mean right",
}


@pytest.mark.parametrize(("name", "said"), WRONG.items())
def test_a_wrong_file_is_refused(lab: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        registry.find("hybridrl.rewards.rules", name, where="my.yaml:3", key="reward.name")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_file_that_fails_is_named_with_its_line_and_can_be_mended(lab: Path, text: str, said: str) -> None:
    Path("broken.py").write_text(text + "\n")
    with pytest.raises(UserCodeError, match=rf"reward.name = broken.py:f raises {said}.*broken.py:1"):
        registry.find("hybridrl.rewards.rules", "broken.py:f", where="my.yaml:3", key="reward.name")
    Path("broken.py").write_text("def f(answer, row):\n    return 1\n")
    assert registry.find("hybridrl.rewards.rules", "broken.py:f", where="my.yaml:3")("", {}) == 1
