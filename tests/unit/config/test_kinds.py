"""Which command a config is for, and that every section of every kind is explained."""

from pathlib import Path

import pytest

from hybridrl import cli
from hybridrl.config import keys
from hybridrl.config.explain import about, explain, sections
from hybridrl.config.kinds import KINDS, command_of
from hybridrl.errors import ConfigError

ROOT = Path(__file__).parents[3]
Captured = pytest.CaptureFixture[str]
RM = "configs/rm_arithmetic.yaml"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    "config", [path.name for path in sorted((ROOT / "configs").glob("*.yaml")) if path.name[:2] != "rm"]
)
def test_a_recipe_is_told_by_its_keys(config: str) -> None:
    assert command_of(Path("configs") / config) == ("sft" if config.startswith("sft") else "launch")


def test_a_key_of_the_command_line_tells_too() -> None:
    assert command_of(Path(RM), ["data.chosen_field=a"]) == "rm"
    assert command_of(Path(RM), ["data.response_field=a"]) == "sft"


def test_what_could_be_both_is_asked() -> None:
    with pytest.raises(ConfigError, match="keys of both hybridrl sft and hybridrl rm: add --for sft, or"):
        command_of(Path(RM))


def test_show_and_check_know_the_three_kinds(capsys: Captured) -> None:
    assert cli.main(["config", "show", "configs/sft_arithmetic.yaml"]) == 0
    assert "response_field: answer" in capsys.readouterr().out
    assert cli.main(["config", "show", RM, "--for", "rm"]) == 0
    assert "chosen_field: chosen" in capsys.readouterr().out
    assert cli.main(["config", "check", "configs/sft_arithmetic.yaml"]) == 0
    assert "hybridrl sft configs/sft_arithmetic.yaml would start" in capsys.readouterr().out
    assert cli.main(["config", "check", RM, "--for", "rm"]) == 0
    assert f"hybridrl rm {RM} would start" in capsys.readouterr().out


@pytest.mark.parametrize("command", KINDS)
def test_every_key_is_explained(command: str) -> None:
    assert [key.name for key in keys.all_keys(KINDS[command]) if not about(key)] == []


def test_without_a_key_the_sections_are_listed(capsys: Captured) -> None:
    assert cli.main(["config", "explain"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}  " in said for name in keys.fields_of(KINDS["launch"]))
    assert [name for name, _ in sections()][: len(dict(sections(KINDS["launch"])))] == [
        name for name, _ in sections(KINDS["launch"])
    ]


def test_a_section_is_explained_for_its_kind() -> None:
    of_run, of_rm = dict(explain("data")), dict(explain("data", KINDS["rm"]))
    assert "prompts" in of_run["data"].lower() and "better" in of_rm["data"]
    assert "data.chosen_field" in of_rm and "data.chosen_field" not in of_run


def test_a_key_of_another_kind_is_found_without_naming_the_kind() -> None:
    assert next(explain("data.chosen_field"))[0] == "data.chosen_field"
    with pytest.raises(ConfigError, match=r"no key data\.chosen_field"):
        list(explain("data.chosen_field", KINDS["sft"]))
