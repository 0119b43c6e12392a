"""Shell scripts are read as bash expands them, without running anything."""

import subprocess
from pathlib import Path

import pytest

from hybridrl.importer.shell import commands


def words(script: str, **variables: str) -> list[str]:
    """Of the last command."""
    return [word.text for word in commands(script, variables)[-1].words]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo a b", ["echo", "a", "b"]),
        ("echo a \\\n  b", ["echo", "a", "b"]),
        ("echo 'a b' \"c d\" e\\ f", ["echo", "a b", "c d", "e f"]),
        ("A=1\necho $A ${A} x${A}y", ["echo", "1", "1", "x1y"]),
        ("A=1\necho '$A' \"$A\"", ["echo", "$A", "1"]),
        ("A=${B:-c}\necho $A", ["echo", "c"]),
        ("B=b; A=${B:-c}; echo $A", ["echo", "b"]),
        ("A=${B:-${C:-d}}\necho $A", ["echo", "d"]),
        ("A='x'\"y\"z\necho $A", ["echo", "xyz"]),
        ("A=4; echo $((A * 1024)) $((1024*(2+$A)))", ["echo", "4096", "6144"]),
        ("echo $((7 / 2))", ["echo", "3"]),
        ("export A=1 B=2; echo $A$B", ["echo", "12"]),
        ("A=(x 'y z' # why\n w)\necho \"${A[@]}\"", ["echo", "x", "y z", "w"]),
        ("A=(x)\nA+=(y)\necho ${A[@]}", ["echo", "x", "y"]),
        ("A=x\nA+=y\necho $A", ["echo", "xy"]),
        ("# comment\necho a # more\n", ["echo", "a"]),
        ("echo a#b", ["echo", "a#b"]),
        ('echo a "$@"', ["echo", "a"]),
        ("echo ~/x", ["echo", "/home/me/x"]),
        ("A=1 echo a", ["echo", "a"]),
        ("A=['a','b']\necho $A", ["echo", "[a,b]"]),
        ("A=\"['a','b']\"\necho $A", ["echo", "['a','b']"]),
    ],
)
def test_words_are_those_of_bash(script: str, expected: list[str]) -> None:
    assert words(script, HOME="/home/me") == expected
    shown = script.replace("echo", "printf '%s\\n'")
    bash = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, env={"HOME": "/home/me"})
    assert bash.stdout.splitlines() == expected[1:]


def test_a_branch_that_the_script_decides_is_taken() -> None:
    assert words("if [ x = y ]; then\n A=1\nelse\n A=2\nfi\necho $A") == ["echo", "2"]


def test_a_pipe_ends_a_command() -> None:
    found = commands("echo a 2>&1 | tee log", {})
    assert [[word.text for word in command.words] for command in found] == [["echo", "a"], ["tee", "log"]]


@pytest.mark.parametrize(
    ("script", "blame"),
    [
        ("A=$(date)\necho x=$A", "$(date)"),
        ("echo x=`date`", "`date`"),
        ("echo x=$1", "$1"),
        ("echo x=$NOBODY", "$NOBODY"),
        ("echo x=${A%.*}", "${A%.*}"),
        ("echo x=$((2 ** 3.5))", "$((2 ** 3.5))"),
    ],
)
def test_what_only_a_run_could_tell_is_said(script: str, blame: str) -> None:
    assert commands(script, {})[-1].words[-1].unknown == blame


def test_a_command_knows_its_line() -> None:
    script = "A=1\n\n# more\necho \\\n  a\necho b\n"
    assert [found.words[0].line for found in commands(script, {})] == [4, 6]


@pytest.mark.parametrize("script", ["echo a b \\", "echo a b\\", "echo a \\\n  b \\\n"])
def test_a_backslash_that_ends_a_file_continues_its_line_with_nothing(script: str, tmp_path: Path) -> None:
    file = tmp_path / "run.sh"
    file.write_text(script)
    said = subprocess.run(["bash", str(file)], capture_output=True, text=True, check=True).stdout
    assert said == "a b\n" and words(script) == ["echo", "a", "b"]
