"""The YAML of a config holds what a person means, and says where each key is."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hybridrl.config.strict_yaml import folded, inline, parse, parse_value
from hybridrl.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1.0e-6", 1e-6),
        (".5", 0.5),
        ("3.", 3.0),
        ("16_384", 16384),
        ("-7", -7),
        ("0x1f", 31),
        ("true", True),
        ("", None),
        ("~", None),
        ("null", None),
        ("on", "on"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        ("'5'", "5"),
        ("<<", "<<"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_scalars_are_what_they_look_like(text: str, value: object) -> None:
    read = parse_value(text, "here")
    assert read == value and type(read) is type(value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


@settings(max_examples=60, deadline=None)
@example("a\nb")
@example({"\x85": "\u2028"})
@given(VALUES)
def test_what_is_written_inline_is_read_back(value: object) -> None:
    text = inline(value)
    assert "\n" not in text
    assert parse_value(text, "here") == value


def test_every_key_has_its_line() -> None:
    document = parse("a: 1\nb:\n  c: {d: 2,\n    e: 3}\nf: [{g: 4}]\n", "x.yaml")
    assert document.tree == {"a": 1, "b": {"c": {"d": 2, "e": 3}}, "f": [{"g": 4}]}
    assert document.line == {
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "c", "d"): 3,
        ("b", "c", "e"): 4,
        ("f",): 5,
    }


def test_an_anchor_stands_for_its_value() -> None:
    assert parse("a: &x {b: 1}\nc: *x\n", "x.yaml").tree == {"a": {"b": 1}, "c": {"b": 1}}


def test_an_empty_file_holds_no_keys() -> None:
    assert parse("# nothing yet\n", "x.yaml").tree == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "duplicate key a  (x.yaml:3, first on line 1)"),
        ("a:\n  b: 1\n  b: 1\n", "duplicate key a.b  (x.yaml:3"),
        ("a:\n\tb: 1\n", "(x.yaml:2, column 1): indent with spaces"),
        ("a: [1,\n", "(x.yaml:2"),
        ("- a\n- b\n", "x.yaml holds a list, not a mapping"),
        ("hello", "x.yaml holds text, not a mapping"),
        ("1: a\n", "the key 1 is an integer  (x.yaml:1)"),
        ("a: &x [*x]\n", "an alias that contains itself  (x.yaml:1)"),
        ("a: *x\n", "undefined alias"),
        ("a: !!python/object:os.system {}\n", "a value with the tag"),
        ("a: \x07\n", "x.yaml is not text"),
    ],
)
def test_what_is_not_strict_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, "x.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        "'x: y #" + " word" * 40 + "  '",
        "[" + ", ".join(map(str, range(60))) + "]",
        "['--constraint=h100', {name: overlong, limit: 5}, '" + "a b " * 30 + "']",
        '"line\\nline ' + "w " * 60 + '"',
    ],
)
def test_a_folded_line_is_read_as_the_line(value: str) -> None:
    line = f"    key: {value}"
    lines = folded(line, 60)
    assert max(map(len, lines)) <= 60 and len(lines) > 1
    assert parse("\n".join(lines), "").tree == parse(line, "").tree


def test_a_word_is_not_broken() -> None:
    assert folded(f"  path: {'a' * 90}", 60) == [f"  path: {'a' * 90}"]


def laughs(depth: int) -> str:
    """Ten of ten of ten ...: 10^depth values."""
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, depth)]
    return "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x, x]", *levels])


@pytest.mark.parametrize(
    "text",
    [
        laughs(depth=9),
        f"a: &a {'x' * 10_000}\nb: [{', '.join(['*a'] * 1000)}]",
        f"a: &a {{k: [1, 2]}}\nb: [{', '.join(['*a'] * 40_000)}]",
    ],
    ids=["nested", "one long text", "many"],
)
def test_aliases_cannot_ask_for_billions(text: str) -> None:
    with pytest.raises(ConfigError, match="aliases that write out to more than 100,000 values") as error:
        parse(text, "x.yaml")
    assert error.value.where.startswith("x.yaml:")


def test_aliases_on_a_command_line_count_too() -> None:
    with pytest.raises(ConfigError, match="aliases"):
        parse_value(f"[&a [{', '.join(['x'] * 1000)}], {', '.join(['*a'] * 1000)}]", "command line")


def test_a_usual_number_of_aliases_is_taken() -> None:
    text = f"a: &a {{lr: 0.1, names: [x, y]}}\nb: [{', '.join(['*a'] * 1000)}]"
    assert parse(text, "x.yaml").tree["b"] == [{"lr": 0.1, "names": ["x", "y"]}] * 1000


def test_a_long_file_without_aliases_is_taken() -> None:
    assert len(parse(f"a: [{', '.join(['long_value'] * 20_000)}]", "x.yaml").tree["a"]) == 20_000


@pytest.mark.parametrize("text", ["[" * 3000 + "]" * 3000, "[" * 3000])
def test_brackets_without_end_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="deeper than can be read"):
        parse_value(text, "here")


def test_an_integer_that_python_does_not_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no number"):
        parse("a: " + "1" * 5000, "x.yaml")
