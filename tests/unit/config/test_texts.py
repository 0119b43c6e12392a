"""Values that no config can mean are refused with their key and line."""

from pathlib import Path

import pytest

from hybridrl.config.kinds import load_for
from hybridrl.config.load import load, parse_as
from hybridrl.config.schema import Config
from hybridrl.config.texts import is_variable
from hybridrl.errors import ConfigError, ConfigErrors

CONFIG = """\
model: model
data: {train: prompts.jsonl}
reward: {name: regex, pattern: "a"}
run: {name: first}
"""


def refused(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigErrors) as raised:
        parse_as(Config, text, "my.yaml", overrides)
    return [str(error) for error in raised.value.errors]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: first", 'name: "a\\0b"', "run.name: character 2 is NUL (\\0), which no path and no text has"),
        (
            "name: first",
            'name: "\\ud800"',
            "run.name: character 1 is \\ud800 without its other half, which is no text",
        ),
        ('pattern: "a"', 'pattern: "\\udc00"', "reward.pattern: character 1 is \\udc00"),
        ("name: first", '"\\ud800": first', "a key of run has \\ud800"),
        ("name: first", "name: " + "[" * 60 + "]" * 60, "run.name: values inside values, more than 50"),
    ],
)
def test_a_text_that_cannot_be_written_is_placed(old: str, new: str, said: str) -> None:
    text = CONFIG.replace(old, new)
    number = text[: text.index(new)].count("\n") + 1
    (error,) = refused(text)
    assert error.startswith(said) and error.endswith(f"(my.yaml:{number})")


def test_a_text_of_the_command_line_is_placed_there() -> None:
    assert refused(CONFIG, 'data.prompt_field="a\\0"')[0].endswith("(command line)")


@pytest.mark.parametrize(
    "override",
    [
        "model.path=${HOME}/m",
        "data.train=$DATA/a.jsonl",
        "data.train=data/${USER}/a.jsonl",
        "run.folder=~/runs",
        "run.folder=~me/runs",
        "run.steps=${STEPS}",
        "data.train=${oc.env:DATA}/a.jsonl",
    ],
)
def test_a_variable_that_nothing_fills_in_is_refused(override: str) -> None:
    key, _, value = override.partition("=")
    (error,) = refused(CONFIG, override)
    assert error.startswith(key) and f"= {value}: a config fills in neither variables nor ~" in error


@pytest.mark.parametrize(
    "text", ["the cost is $x", "$5", "a$", "a~b", "runs/~old", "^a$", "costs ${x}$ each"]
)
def test_other_texts_with_such_signs_are_none(text: str) -> None:
    assert not is_variable(text)


def test_prose_and_options_keep_their_dollars() -> None:
    loaded = parse_as(Config, CONFIG, "my.yaml", ["data.system_prompt=$x", "reward.pattern=$HOME"])
    assert loaded.config.data.system_prompt == "$x"


def test_a_variable_in_braces_names_the_reason() -> None:
    with pytest.raises(ConfigError, match="my.yaml:1, column .*: a config fills in no variables"):
        parse_as(Config, CONFIG.replace("model: model", "model: {path: ${HOME}/m}"), "my.yaml")


def test_half_a_sentence_of_the_parser_is_completed() -> None:
    with pytest.raises(ConfigError, match="expected a single document in the stream, but found another"):
        parse_as(Config, f"{CONFIG}---\n{CONFIG}", "my.yaml")


def test_what_is_no_file_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for path, said in (
        (tmp_path, "a folder, not a file"),
        (Path("/dev/null"), "a device, not a file"),
        (tmp_path / "loop.yaml", "it is a link to loop.yaml, where no file is"),
        (tmp_path / ("x" * 300), "no config at"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(path)


@pytest.mark.parametrize(
    ("command", "keys", "meant"),
    [
        ("launch", "data: {train: a.jsonl, response_field: b}", "hybridrl sft,"),
        ("launch", "data: {train: a.jsonl, chosen_field: b}", "hybridrl rm,"),
        ("sft", "data: {train: a.jsonl}\nreward: none\nrollout: {}", "hybridrl launch,"),
        ("rm", "data: {train: a.jsonl, response_field: b}", "hybridrl sft,"),
        ("launch", "data: {train: a.jsonl}\nbatch: {examples_per_step: 4}", "hybridrl sft or hybridrl rm,"),
    ],
)
def test_a_config_of_another_command_is_named_as_such(tmp_path: Path, command, keys: str, meant: str) -> None:
    (tmp_path / "my.yaml").write_text(f"model: m\n{keys}\nrun: {{name: a}}\n")
    with pytest.raises(ConfigError, match=f"has the keys of a config of {meant} not of hybridrl {command}"):
        load_for(command, tmp_path / "my.yaml")
