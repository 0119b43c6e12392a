"""More inputs that a person gets wrong: model folders, own code, rewards, run folders, and commands without a
config. Each is refused as those of bad_inputs are."""

import numpy as np
from bad_inputs import (
    DRY,
    Bad,
    a_run,
    bad,
    bytes_of,
    in_json,
    own,
    returning,
    sharded,
    text,
    weights,
    without,
)

SAFETENSORS = "model/model.safetensors"

MODELS = {
    "no weights": bad("no safetensors files in model", change=without(SAFETENSORS)),
    "half": bad("by its header", change=bytes_of(SAFETENSORS, lambda b: b[: len(b) // 2])),
    "empty": bad("cut short, or no safetensors file", change=text(SAFETENSORS, "")),
    "garbage": bad("cut short, or no safetensors file", change=text(SAFETENSORS, "garbage" * 99)),
    "seven bytes": bad("cut short", change=bytes_of(SAFETENSORS, lambda b: b[:7])),
    "header": bad(
        "its header cannot be read", change=bytes_of(SAFETENSORS, lambda b: b[:8] + b"x" * len(b[8:]))
    ),
    "missing tensor": bad("lack model.norm.weight", change=weights(model_norm_weight=None)),
    "unused tensor": bad(
        "for which its config.json has no place", change=weights(model_layers_2_b=np.zeros(3, np.float32))
    ),
    "shape": bad("model.norm.weight is [3]", change=weights(model_norm_weight=np.zeros(3, np.float32))),
    "int8": bad("is I8 in", change=weights(model_norm_weight=np.zeros(128, np.int8))),
    "NaN": bad("holds NaN or inf", change=weights(model_norm_weight=np.full(128, np.nan, np.float32))),
    "fewer layers": bad("has no place", change=in_json("model/config.json", num_hidden_layers=1)),
    "more layers": bad("the weights in model lack", change=in_json("model/config.json", num_hidden_layers=3)),
    "vocabulary": bad("by its config.json", change=in_json("model/config.json", vocab_size=20)),
    "index": bad("index.json is not JSON", change=sharded("{")),
    "index, list": bad("not an object with keys", change=sharded("[]")),
    "index, numbers": bad("has no weight_map", change=sharded('{"weight_map": {"a": 1}}')),
    "shard": bad(
        "model-1.safetensors is missing", change=sharded('{"weight_map": {"a": "model-1.safetensors"}}')
    ),
    "config, list": bad("config.json is [], not", change=text("model/config.json", "[]")),
    "config, brackets": bad("deeper than can be read", change=text("model/config.json", "[" * 100_000)),
    "config, digits": bad("more digits than", change=text("model/config.json", f'{{"a": {"9" * 5000}}}')),
    "config, bytes": bad("byte 1 is not UTF-8", change=text("model/config.json", b"\xff")),
    "text size": bad('hidden_size = "128"', change=in_json("model/config.json", hidden_size="128")),
    "half a layer": bad(
        "num_hidden_layers = 2.5", change=in_json("model/config.json", num_hidden_layers=2.5)
    ),
    "no heads": bad("num_attention_heads = 0", change=in_json("model/config.json", num_attention_heads=0)),
    "three of four": bad("no multiple of", change=in_json("model/config.json", num_key_value_heads=3)),
    "text architecture": bad("a list of texts", change=in_json("model/config.json", architectures="Q")),
    "eos": bad("eos_token_id", change=in_json("model/generation_config.json", eos_token_id="x")),
    "generation list": bad("not an object", change=text("model/generation_config.json", "[]")),
    "no tokenizer": bad(
        "no tokenizer can be read", change=without("model/tokenizer.json", "model/tokenizer_config.json")
    ),
    "tokenizer": bad("no tokenizer can be read", change=text("model/tokenizer.json", "garbage")),
    "tokenizer, list": bad("no tokenizer can be read", change=text("model/tokenizer.json", "[]")),
    "tokenizer, null": bad("no tokenizer can be read", change=in_json("model/tokenizer.json", model=None)),
    "tokenizer config, list": bad("no tokenizer can", change=text("model/tokenizer_config.json", "[]")),
    "tokenizer config, eos": bad(
        "no tokenizer can", change=in_json("model/tokenizer_config.json", eos_token=5)
    ),
    "template": bad(
        "the chat template fails",
        "data.chat_template=model",
        change=in_json("model/tokenizer_config.json", chat_template="{% for"),
    ),
    "a file": bad("prompts.jsonl is a file, not a folder", "model.path=prompts.jsonl"),
    "a link": bad("loop", "model=loop", change=lambda folder: (folder / "loop").symlink_to("loop")),
    "long name": bad("File name too long", f"model.path={'x' * 300}"),
}

FAULTS = {
    "exits": ("ends the program by SystemExit", "import sys; sys.exit(0)"),
    "syntax": ("raises SyntaxError", "def (:"),
    "raises": ("raises ZeroDivisionError", "1/0"),
    "base": ("raises Mine", "class Mine(BaseException): pass\nraise Mine"),
    "recursion": ("raises RecursionError", "def g(): g()\ng()"),
    "import": ("'no_such_library'", "import no_such_library"),
    "NUL": ("source code string cannot contain null bytes", "\0"),
    "nothing": ("own has no 'f'", ""),
    "number": ("own:f is 3, which cannot be called", "f = 3"),
    "null": ("own:f is None, which cannot be called", "f = None"),
}
KEYS = {
    "algorithm.estimator": "own:f",
    "algorithm.loss": "own:f",
    "data.train": "{task: 'own:f'}",
    "model": "{path: gone, make: 'own:f'}",
    "reward": "own:f",
}
CODE = {
    f"{key}, {name}": bad(said, f"{key}={value}", change=own(code))
    for key, value in KEYS.items()
    for name, (said, code) in FAULTS.items()
}
CODE |= {
    f"{key}, {name}": bad("is not module:Name", f"{key}={value.replace('own:f', name)}")
    for key, value in KEYS.items()
    for name in ("own:f:g", "own:f.g", ":f", "..own:f")
    if key != "model"
}
CODE["task, no rows"] = bad(
    "did not return", "data.train={task: 'own:f'}", change=own("def f(seed): return 3")
)

RETURNED = {
    "a huge number": ("too large for a float", "return 10**400"),
    "a huge part": ("x = a whole number that is too large", "return {'reward': 1, 'x': 10**5000}"),
    "NaN": ("which is not finite", "return float('nan')"),
    "infinity": ("which is not finite", "return float('inf')"),
    "None": ("None, which is not a number", "return None"),
    "text": ("'1', which is not a number", "return '1'"),
    "a complex number": ("1j, which is not a number", "return 1j"),
    "a list": ("[1], which is not a number", "return [1]"),
    "nothing": ("a mapping without 'reward'", "return {}"),
    "an array": ("which is not one number", "import numpy; return numpy.zeros(2)"),
    "a generator": ("generator", "yield 1"),
    "an exit": ("raised SystemExit", "raise SystemExit(0)"),
    "an end": ("its process exited with code 0", "import os; os._exit(0)"),
    "a crash": ("SIGSEGV", "import ctypes; ctypes.string_at(0)"),
    "a kill": ("SIGKILL", "import os; os.kill(os.getpid(), 9)"),
    "an error": ("raised ZeroDivisionError", "1/0"),
    "an interrupt": ("raised KeyboardInterrupt", "raise KeyboardInterrupt"),
    "memory": ("needed more than reward.memory_gb", "raise MemoryError"),
    "recursion": ("raised RecursionError", "return f(answer, row)"),
    "half a character": ("raised ValueError", "raise ValueError('\\ud800')"),
    "a value that raises": (
        "returned raised ZeroDivisionError",
        "return type('A', (), {'item': lambda self: 1/0})()",
    ),
    "a silent error": ("raised A", "raise type('A', (Exception,), {'__str__': lambda self: 1/0})"),
}
REWARDS = {name: bad(said, "reward=own:f", change=returning(body)) for name, (said, body) in RETURNED.items()}
REWARDS |= {
    name: bad(said, "reward=own:f", change=own(code))
    for name, said, code in [
        ("no parameters", "cannot be called", "def f(): return 1"),
        (
            "verl's",
            "as a reward of verl does",
            "def f(data_source, solution_str, ground_truth, info=None): 1",
        ),
        ("verl's, short", "as a reward of verl does", "def f(solution_str, ground_truth): return 1"),
        ("TRL's", "as a reward of TRL does", "def f(completions, **columns): return [1]"),
        ("awaited", "is async", "async def f(answer, row): return 1"),
        ("names only", "cannot be called", "def f(*, answer, row): return 1"),
    ]
}
REWARDS["no file"] = bad("there is no file", "reward=./gone.py:f")

PLACES = {
    "run": bad("out/first already holds a run at step 2", change=a_run),
    "run, check": bad("already holds a run", change=a_run, command=("config", "check", "my.yaml")),
    "run, slurm": bad("already holds a run", "--on", "slurm", change=a_run),
    "file": bad("cannot write out: Not a directory", "run.folder=.", "run.name=out", change=text("out", "x")),
    "below a file": bad("cannot write prompts.jsonl/first", "run.folder=prompts.jsonl"),
    "proc": bad("cannot write /proc/first", "run.folder=/proc"),
    "device": bad("cannot write /dev/null/first", "run.folder=/dev/null"),
    "nothing to resume": bad("holds no run to resume", "--resume"),
    "no Ray": bad("no Ray to join", "--on", "ray"),
    "no address": bad("is not host:port", "--on", "ray", "cluster.ray.address=nonsense"),
    "no dashboard": bad("no Ray dashboard", "--on", "ray", "--submit"),
    "reward, slurm": bad("cannot import 'gone'", "--on", "slurm", "reward=gone:f"),
    "rows, slurm": bad("line 1 is not JSON", "--on", "slurm", change=text("prompts.jsonl", "x\n")),
}

NUMBERS = {
    f"{key} = {value:.9}": bad(said, f"{key}={value}")
    for key, value, said in [
        ("batch.prompts_per_step", "4000000000000", "more than any run has"),
        ("batch.prompts_per_step", "4e12", "is not an integer above 0"),
        ("batch.epochs", "9" * 20, "more than any run has"),
        ("run.steps", "1" + "0" * 29, "more than any run has"),
        ("run.steps", "0", "is not an integer above 0"),
        ("run.seed", "1" + "0" * 29, "more than any run has"),
        ("run.seed", "-1", "is not an integer of at least 0"),
        ("algorithm.samples_per_prompt", "9" * 20, "more than any run has"),
        ("actor.microbatch_tokens", "9" * 20, "more than any run has"),
        ("actor.parallel.tp", "3", "does not divide the 4 attention heads"),
        ("actor.optimizer.lr", ".nan", "is not a number above 0"),
        ("reward.num_workers", "100000000", "more than any run has"),
        ("run.keep_checkpoints", "9" * 20, "more than any run has"),
        ("algorithm.estimator", "{name: grpo, eps: .nan}", "not a number that can be computed with"),
        ("algorithm.estimator", "{name: grpo, eps: .inf}", "makes every advantage 0"),
        ("algorithm.loss", "{name: ppo_clip, clip_low: .nan}", "not a number that can be computed with"),
    ]
}

SCRIPT = "python3 -m verl.trainer.main_ppo data.train_files=a.parquet actor_rollout_ref.model.path=q\n"

COMMANDS: dict[str, Bad] = {
    "no GPUs": bad("greater than or equal to 1", "--gpus", "0", command=("plan", "my.yaml")),
    "negative GPUs": bad("greater than", "--gpus", "-3", "--search", command=("plan", "my.yaml")),
    "negative tokens": bad("greater than", "--mean-response", "-5", command=("plan", "my.yaml")),
    "negative rows": bad(
        "greater than", command=("import", "verl", "run.sh", "--prompts", "-5"), change=text("run.sh", SCRIPT)
    ),
    "other command": bad("Did you mean 'launch'", command=("lunch",)),
    "other sub-command": bad("(see hybridrl config --help)", command=("config", "chek")),
    "no config": bad("(see hybridrl launch --help)", command=("launch",)),
    "other place": bad("'mars' is not one of", "--on", "mars"),
    "other key": bad("did you mean run.steps?", command=("config", "explain", "run.step")),
    "other algorithm": bad("there is no algorithm 'nosuch'", command=("algo", "explain", "nosuch")),
    "columns that nothing gives": bad(
        "which only a run with an environment has",
        command=("init", "gigpo", "--model", "model", "--data", "prompts.jsonl"),
    ),
    "unwritable": bad(
        "cannot write /proc/x.yaml",
        command=("init", "grpo", "--model", "model", "--data", "prompts.jsonl", "-o", "/proc/x.yaml"),
    ),
    "overwritten": bad(
        "my.yaml exists",
        command=("init", "grpo", "--model", "model", "--data", "prompts.jsonl", "-o", "my.yaml"),
    ),
    "no run": bad("nosuch holds no run", command=("export", "nosuch")),
    "no script": bad("no file at nosuch.sh", command=("import", "verl", "nosuch.sh")),
    "binary script": bad(
        "is not UTF-8 text", command=("import", "verl", "b.sh"), change=text("b.sh", b"\xff\xfe\0")
    ),
    "NUL": bad("embedded null byte", command=("launch", "a\0b")),
    "resume with another option": bad("No such option", *DRY[1:], "--resumee", command=("launch",)),
}
