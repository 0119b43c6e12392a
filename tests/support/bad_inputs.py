"""Inputs that a person gets wrong, by kind: files, configs, overrides, own code, and the commands they are
given to. Each is refused with exit code 2 and the text that is listed with it."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

CONFIG = """\
model: {path: model, make: "hybridrl.models.tiny:qwen3_arithmetic"}
data: {train: prompts.jsonl, chat_template: none}
reward: exact_match
algorithm: {preset: grpo, samples_per_prompt: 4}
batch: {prompts_per_step: 4}
rollout: {max_prompt_tokens: 16, max_response_tokens: 4}
run: {name: first, folder: out, steps: 2}
"""
SFT = """\
model: {path: model, make: "hybridrl.models.tiny:qwen3_arithmetic"}
data: {train: examples.jsonl, response_field: response, chat_template: none}
run: {name: tuned, folder: out, steps: 2}
"""
GOOD = '{"prompt": "1+1=", "answer": "2"}'
DIGITS = "9" * 5000
DRY = ("launch", "my.yaml", "--dry-run")
Change = Callable[[Path], Any]


@dataclass(frozen=True, slots=True)
class Bad:
    said: str
    """Part of the error."""

    arguments: tuple[str, ...]
    change: Change


def bad(
    said: str, *overrides: str, change: Change = lambda folder: None, command: Sequence[str] = DRY
) -> Bad:
    return Bad(said, (*command, *overrides), change)


def write_folder(folder: Path, model: Path) -> None:
    """A working directory in which the commands would go well."""
    shutil.copytree(model, folder / "model")
    (folder / "my.yaml").write_text(CONFIG)
    (folder / "sft.yaml").write_text(SFT)
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(16)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "examples.jsonl").write_text('{"prompt": "1+1=", "response": "2"}\n' * 4)


def text(file: str, content: str | bytes) -> Change:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / file).write_bytes(content)


def instead(old: str, new: str) -> Change:
    return lambda folder: (folder / "my.yaml").write_text(CONFIG.replace(old, new))


def second_row(row: str) -> Change:
    return text("prompts.jsonl", f"{GOOD}\n{row}\n")


def own(code: str) -> Change:
    return text("own.py", code)


def returning(body: str) -> Change:
    return own(f"def f(answer, row):\n    {body}\n")


def without(*files: str) -> Change:
    return lambda folder: [(folder / file).unlink() for file in files]


def in_json(file: str, **keys: Any) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**found, **keys}))

    return change


def weights(**tensors: np.ndarray | None) -> Change:
    """Replaces tensors, named with _ for a dot; None: removes one."""

    def change(folder: Path) -> None:
        path = folder / "model/model.safetensors"
        found = {**load_file(path), **{name.replace("_", "."): tensor for name, tensor in tensors.items()}}
        kept = {name: tensor for name, tensor in found.items() if tensor is not None}
        save_file(kept, path, metadata={"format": "pt"})

    return change


def bytes_of(file: str, spoil: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / file).write_bytes(spoil((folder / file).read_bytes()))


def sharded(index: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model/model.safetensors").unlink()
        (folder / "model/model.safetensors.index.json").write_text(index)

    return change


def parquet(spoil: Callable[[bytes], bytes]) -> Change:
    def change(folder: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        numbers = [str(i) for i in range(1000, 3000)]
        table = pyarrow.table({"prompt": numbers, "answer": numbers})
        pyarrow.parquet.write_table(table, folder / "p.parquet", compression="none")
        bytes_of("p.parquet", spoil)(folder)

    return change


def a_run(folder: Path) -> None:
    (folder / "out/first").mkdir(parents=True)
    (folder / "out/first/metrics.jsonl").write_text('{"step": 2}\n')


CONFIGS = {
    "digits": bad("is no number  (my.yaml:7)", change=instead("steps: 2", f"steps: {DIGITS}")),
    "brackets": bad("values inside values", change=instead("steps: 2", f"steps: {'[' * 3000}")),
    "braces": bad("values inside values", change=instead("steps: 2", f"steps: {'{a: ' * 3000}")),
    "nested blocks": bad(
        "values inside values", change=text("my.yaml", "".join(f"{' ' * i}a{i}:\n" for i in range(1500)))
    ),
    "levels": bad("run.steps: values inside", change=instead("steps: 2", f"steps: {'[' * 99}{']' * 99}")),
    "aliases": bad(
        "aliases that write out to more",
        change=text(
            "my.yaml",
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")),
        ),
    ),
    "alias of itself": bad("an alias that contains itself", change=text("my.yaml", "a: &a [*a]\n")),
    "tag": bad("a value with the tag", change=text("my.yaml", 'a: !!python/name:os.system ""\n')),
    "binary": bad("my.yaml is not text", change=text("my.yaml", b"\0\1\2")),
    "utf-16": bad("my.yaml is not UTF-8 text", change=text("my.yaml", "model: a".encode("utf-16"))),
    "list": bad("holds a list, not a mapping", change=text("my.yaml", "- a\n")),
    "two documents": bad("but found another document", change=text("my.yaml", f"{CONFIG}---\n{CONFIG}")),
    "half a character": bad("run.name: character 1 is \\ud800", change=instead("first", '"\\ud800"')),
    "half of a key": bad("a key of run has \\ud800", change=instead("steps: 2", '"\\ud800": 2')),
    "NUL": bad("run.name: character 2 is NUL", change=instead("first", '"a\\0b"')),
    "variable in braces": bad("fills in no variables", change=instead("path: model", "path: ${HOME}/m")),
    "variable": bad("neither variables nor ~", change=instead("prompts.jsonl", '"$DATA/a.jsonl"')),
    "home": bad("neither variables nor ~", change=instead("folder: out", "folder: ~/runs")),
    "dotted key": bad("has a dot in it", change=instead("steps: 2", '"a.b": 2')),
    "keys of sft": bad("keys of a config of hybridrl sft", command=("launch", "sft.yaml", "--dry-run")),
    "keys of sft, verify": bad("keys of a config of hybridrl sft", command=("verify", "sft.yaml")),
    "keys of sft, data show": bad("keys of a config of hybridrl sft", command=("data", "show", "sft.yaml")),
    "keys of launch": bad("keys of a config of hybridrl launch", command=("sft", "my.yaml", "--dry-run")),
    "keys of launch, rm": bad("keys of a config of hybridrl launch", command=("rm", "my.yaml")),
    "folder": bad(". is a folder, not a file", command=("launch", ".", "--dry-run")),
    "pipe": bad(
        "c.yaml is a pipe, not a file",
        command=("launch", "c.yaml"),
        change=lambda folder: os.mkfifo(folder / "c.yaml"),
    ),
    "link to itself": bad(
        "a link to c.yaml, where no file is",
        command=("launch", "c.yaml"),
        change=lambda folder: (folder / "c.yaml").symlink_to("c.yaml"),
    ),
    "device": bad("/dev/null is a device", command=("launch", "/dev/null", "--dry-run")),
    "unreadable": bad("/proc/self/mem cannot be read", command=("launch", "/proc/self/mem")),
    "long name": bad("no config at", command=("launch", f"{'x' * 300}.yaml")),
    "below a file": bad("no config at", command=("config", "check", "my.yaml/my.yaml")),
    "missing": bad("there is my.yaml", command=("plan", "mi.yaml")),
}

OVERRIDES = {
    "digits": bad("is no number  (command line)", f"run.steps={DIGITS}"),
    "brackets": bad("values inside values", f"run.steps={'[' * 3000}"),
    "half a character": bad("run.name: character 1", 'run.name="\\udcff"'),
    "broken byte": bad("is not text", "run.name=\udcff"),
    "NUL in a path": bad("data.train.path: character 2 is NUL", 'data.train="a\\0.jsonl"'),
    "NUL in a model": bad("model.path: character 2 is NUL", 'model.path="a\\0"'),
    "deep option": bad("algorithm.estimator: values", f"algorithm.estimator={{eps: {'[' * 99}{']' * 99}}}"),
    "dashes": bad("no dashes, as in run.steps=VALUE", "--run.steps=3"),
    "dashes and a space": bad("no dashes, as in run.steps=VALUE", "--run.steps", "3"),
    "dashes, plan": bad("no dashes, as in", "--run.steps=3", command=("plan", "my.yaml")),
    "other option": bad("(see hybridrl launch --help)", "--nosuch"),
    "no value": bad("'run.steps' is not an override", "run.steps"),
    "colon": bad("is not an override", "run.steps: 3"),
    "plus": bad("did you mean run.steps?", "+run.steps=3"),
    "variable": bad("run.steps = ${STEPS}: a config fills in", "run.steps=${STEPS}"),
    "form": bad("is not of the form that it needs: Time limit", "cluster.slurm.time=banana"),
    "literal": bad(
        "part = nosuch is not one of train, heldout", "data.train={task: last_digit, part: nosuch}"
    ),
    "null literal": bad("part = null is not one of", "data.train={task: last_digit, part: null}"),
    "task": bad("use one of last_digit", "data.train={task: lastdigit}"),
    "too long for the model": bad("lower both to 1024 together", "rollout.max_response_tokens=100000000000"),
    "newline in a name": bad("is not a folder name", 'run.name="a\\nb"'),
    "blank name": bad("is not a folder name", 'run.name=" "'),
    "long run name": bad("is not a folder name", f"run.name={'x' * 300}"),
    "parent": bad("is not a folder name", "run.name=.."),
    "pattern": bad("unterminated subpattern", 'reward={name: regex, pattern: "("}'),
    "huge repetition": bad(
        "the repetition number is too large", 'reward={name: regex, pattern: "a{9999999999}"}'
    ),
    "deep pattern": bad("reward regex: ", f'reward={{name: regex, pattern: "{"(" * 3000}{")" * 3000}"}}'),
}

ROWS = {
    "digits": bad("a whole number with more digits", change=second_row(f'{{"answer": {DIGITS}}}')),
    "brackets": bad("values inside values", change=second_row("[" * 100_000)),
    "half a character": bad("prompt has \\ud800", change=second_row('{"prompt": "\\ud800"}')),
    "NaN": bad("is nan, not a finite", change=second_row('{"prompt": "1", "answer": NaN}')),
    "infinity": bad("is inf, not a finite", change=second_row('{"prompt": "1", "answer": 1e400}')),
    "null answer": bad("row 2 (index 1 in Python)", change=second_row('{"prompt": "1", "answer": null}')),
    "object answer": bad("is an object, not text", change=second_row('{"prompt": "1", "answer": {}}')),
    "list": bad("line 2 is a list, not", change=second_row("[]")),
    "text": bad("line 2 is text, not", change=second_row('"a"')),
    "number": bad("line 2 is a number, not", change=second_row("3")),
    "blank": bad("line 2 is not JSON", change=text("prompts.jsonl", f"{GOOD}\n\n{GOOD}\n")),
    "cut": bad("line 2 is not JSON: ", change=second_row('{"prompt":')),
    "bytes": bad("byte 13 is not UTF-8", change=text("prompts.jsonl", b'{"prompt": "\xff"}\n')),
    "NULs": bad("line 1 is not JSON", change=text("prompts.jsonl", b"\0" * 100)),
    "empty": bad("has no rows", change=text("prompts.jsonl", "\n")),
    "null prompt": bad("the prompt is null", change=second_row('{"prompt": null, "answer": "2"}')),
    "number prompt": bad("the prompt is a number", change=second_row('{"prompt": 1.5, "answer": "2"}')),
    "true prompt": bad("the prompt is true", change=second_row('{"prompt": true, "answer": "2"}')),
    "empty prompt": bad("the prompt is empty", change=second_row('{"prompt": " ", "answer": "2"}')),
    "no prompt": bad("has no column 'prompt'", change=second_row('{"answer": "2"}')),
    "long prompt": bad(
        "the longest, row 2", change=second_row(json.dumps({"prompt": "1" * 99, "answer": "2"}))
    ),
    "data_source, list": bad(
        "row 2 of prompts.jsonl: data_source is a list, not text",
        change=text(
            "prompts.jsonl", "".join(f'{GOOD[:-1]}, "data_source": {name}}}\n' for name in ('"a"', "[]"))
        ),
    ),
    "folder": bad("d.jsonl", "data.train=d.jsonl", change=lambda folder: (folder / "d.jsonl").mkdir()),
    "pipe": bad("d.jsonl", "data.train=d.jsonl", change=lambda folder: os.mkfifo(folder / "d.jsonl")),
    "device": bad("/dev/null", "data.train=/dev/null"),
    "long name": bad("File name too long", f"data.train={'x' * 300}.jsonl"),
    "parquet, zeros": bad(
        "p.parquet", "data.train=p.parquet", change=parquet(lambda b: b[:4] + bytes(9000) + b[9004:])
    ),
    "parquet, cut": bad("not a parquet", "data.train=p.parquet", change=parquet(lambda b: b[:500])),
    "parquet, empty": bad("not a parquet", "data.train=p.parquet", change=parquet(lambda b: b"")),
    "parquet, footer": bad(
        "not a parquet", "data.train=p.parquet", change=parquet(lambda b: b[:-60] + b"\xff" * 40 + b[-20:])
    ),
    "parquet, text": bad(
        "row 1500 of p.parquet has a text that is not UTF-8",
        "data.train=p.parquet",
        change=parquet(lambda b: b.replace(b"2499", b"\xff\xfe99")),
    ),
    "examples": bad(
        "row 2 of examples.jsonl: the answer is null",
        command=("sft", "sft.yaml", "--dry-run"),
        change=text(
            "examples.jsonl", '{"prompt": "1", "response": "2"}\n{"prompt": "1", "response": null}\n'
        ),
    ),
}
