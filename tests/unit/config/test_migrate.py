"""Old spellings are refused everywhere, and rewritten with everything around them left alone."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hybridrl import cli
from hybridrl.config import keys, renamed
from hybridrl.config.load import parse_as
from hybridrl.config.migrate import replace_file, rewritten
from hybridrl.config.renamed import Renamed
from hybridrl.config.schema import Config
from hybridrl.config.strict_yaml import parse
from hybridrl.errors import ConfigError, ConfigErrors

Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[3]


def sinks(value: Any) -> Mapping[str, Any]:
    return {} if value else {"watch.sinks": ["jsonl", "a, b"], "watch.deep.on": False}


TABLE = (
    Renamed("run.updates", "run.steps", "0.1.0"),
    Renamed("run.log", sinks, "0.1.0"),
    Renamed("training.layout", "actor.parallel", "0.1.0"),
    Renamed("batch.size", lambda size: {"batch.prompts_per_step": size * 2}, "0.1.0"),
)
SMALLEST = "model: m\ndata: {train: d.jsonl}\nreward: exact_match\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "# head\nrun:\n  name: r   # a name\n  updates: 0x10  # how long\n\n# tail\n",
            "# head\nrun:\n  name: r   # a name\n  steps: 0x10  # how long\n\n# tail\n",
        ),
        ("run: {name: r, updates: 5}", "run: {name: r, steps: 5}"),
        ("batch: {size: 4, epochs: 1} # b\n", "batch: {prompts_per_step: 8, epochs: 1} # b\n"),
        ("batch:\n  size: 4    # pairs\n", "batch:\n  prompts_per_step: 8    # pairs\n"),
        (
            "run:\n  log: false  # no log\n  name: r\n",
            "run:\n  name: r\nwatch:\n  sinks: [jsonl, 'a, b']  # no log\n  deep:\n    on: false\n",
        ),
        (
            "watch:\n    # beside\n    every: 3\n\nrun: {log: false, name: r}\n",
            "watch:\n    # beside\n    every: 3\n    sinks: [jsonl, 'a, b']\n    deep:\n      on: false\n\n"
            "run: {name: r}\n",
        ),
        (
            "run: {name: r, log: false}\nwatch: {every: 3}\n",
            "run: {name: r}\nwatch: {every: 3, sinks: [jsonl, 'a, b'], deep: {on: false}}\n",
        ),
        (
            "watch: {}\nrun: {log: false}\n",
            "watch: {sinks: [jsonl, 'a, b'], deep: {on: false}}\nrun: {}\n",
        ),
        (
            "watch:\nrun: {name: r, log: false}\n",
            "watch:\n  sinks: [jsonl, 'a, b']\n  deep:\n    on: false\nrun: {name: r}\n",
        ),
        ("run: {log: true, name: r}\n", "run: {name: r}\n"),
        ("run:\n  name: r\n  log: true", "run:\n  name: r\n"),
        (
            "training:\n  layout: {tp: 2, pp: 4}  # sizes\nactor: {overlap: true}\n",
            "training:\nactor: {overlap: true, parallel: {tp: 2, pp: 4}}\n",
        ),
        (
            "data:\n  system_prompt: |\n    One.\n\n    Two.\nrun: {updates: 1}\n",
            "data:\n  system_prompt: |\n    One.\n\n    Two.\nrun: {steps: 1}\n",
        ),
        (
            "watch:\n  text: |\n    One.\n\nrun: {log: false}\n",
            "watch:\n  text: |\n    One.\n  sinks: [jsonl, 'a, b']\n  deep:\n    on: false\n\nrun: {}\n",
        ),
        ("run:\r\n  updates: 5\r\n", "run:\r\n  steps: 5\r\n"),
        ("run: {steps: 3}\n", "run: {steps: 3}\n"),
    ],
)
def test_a_text_is_rewritten(
    before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renamed, "RENAMED", TABLE)
    path = tmp_path / "my.yaml"
    path.write_bytes(before.encode())
    assert cli.main(["config", "migrate", str(path)]) == 0
    assert path.read_bytes().decode() == after
    assert cli.main(["config", "migrate", "--check", str(path)]) == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("run: {updates: 5, steps: 6}\n", "both steps and its old spelling are set"),
        ("watch: quick\nrun: {log: false}\n", "watch = quick has no keys"),
        ("run: &r\n  updates: 5\nold: *r\n", "special way"),
        ("training:\n  layout:\n    tp: 2  # two\n    pp: 4\n", "there are comments inside it"),
        ("run: {\n  log: false,  # no log\n  name: r}\n", "there are comments inside it"),
    ],
)
def test_what_cannot_be_rewritten_is_said_with_its_line(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rewritten(text, "my.yaml", TABLE)
    assert why in str(caught.value) and "edit it by hand" in caught.value.fix
    assert caught.value.where.startswith("my.yaml:")


def test_mixed_line_ends_stay_and_are_edited_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(renamed, "RENAMED", TABLE)
    path = tmp_path / "my.yaml"
    for text, code in ((b"run:\r\n  updates: 5\n", 2), (b"run:\r\n  steps: 5\n", 0)):
        path.write_bytes(text)
        assert cli.main(["config", "migrate", str(path)]) == code
        assert path.read_bytes() == text
    assert "edit it by hand: its line ends are mixed" in capsys.readouterr().err


def test_a_block_under_an_old_key_moves_whole() -> None:
    text = "training:\n  layout:\n    tp: 2\n    pp: 4  # four\n  other: 1\nactor:\n  overlap: true\n"
    found = parse(rewritten(text, "my.yaml", TABLE).text, "my.yaml").tree
    assert found == {"training": {"other": 1}, "actor": {"overlap": True, "parallel": {"tp": 2, "pp": 4}}}


def test_check_says_what_would_change_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(renamed, "RENAMED", TABLE)
    (tmp_path / "old.yaml").write_text("run: {updates: 5}\n")
    assert cli.main(["config", "migrate", "--check", str(tmp_path / "old.yaml")]) == 1
    assert "run.updates = 5 is now run.steps = 5" in capsys.readouterr().out
    assert (tmp_path / "old.yaml").read_text() == "run: {updates: 5}\n"


def test_a_file_is_replaced_in_one_step_with_its_mode(tmp_path: Path) -> None:
    path, link = tmp_path / "my.yaml", tmp_path / "link.yaml"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    inode = path.stat().st_ino
    replace_file(link, "new")
    assert path.read_text() == "new" and link.is_symlink() and path.stat().st_ino != inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link.yaml", "my.yaml"]


def test_an_old_spelling_in_a_file_names_the_new_one_and_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(renamed, "RENAMED", TABLE)
    with pytest.raises(ConfigErrors) as caught:
        parse_as(Config, SMALLEST + "run: {name: r, updates: 5, stepps: 3}\n", "my.yaml")
    first, second = map(str, caught.value.errors)
    assert first == (
        "run.updates = 5 is now run.steps = 5  (my.yaml:4): hybridrl config migrate my.yaml rewrites it"
    )
    assert "unknown key run.stepps" in second


def test_an_old_spelling_on_the_command_line_names_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renamed, "RENAMED", TABLE)
    with pytest.raises(ConfigErrors) as caught:
        parse_as(Config, SMALLEST + "run: {name: r}\n", "my.yaml", ["run.updates=7", "batch={size: 4}"])
    assert sorted(map(str, caught.value.errors)) == [
        "batch.size = 4 is now batch.prompts_per_step = 8  (command line): write batch.prompts_per_step=8",
        "run.updates = 7 is now run.steps = 7  (command line): write run.steps=7",
    ]


@pytest.mark.parametrize("entry", renamed.RENAMED, ids=lambda entry: entry.old)
def test_the_table_leads_from_no_key_to_a_key(entry: Renamed) -> None:
    assert keys.root_of(entry.old) is None
    for value in (True, False):
        assert all(keys.root_of(key) for key in entry.spelled(value))
    assert entry.old in (ROOT / "CHANGELOG.md").read_text("utf-8")
