"""Writes a first config for an algorithm, a model and data: short, with a comment where a newcomer would
ask."""

from dataclasses import dataclass
from pathlib import Path

from hybridrl.config import strict_yaml
from hybridrl.config.presets import PRESETS, instead_of
from hybridrl.config.rules.data import has_chat_template
from hybridrl.errors import ConfigError, ModelError
from hybridrl.models import hub

_COMMENT_AT = 52


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a first config depends on."""

    algorithm: str
    """Name of a preset."""

    model: str
    data: str
    """A .jsonl or .parquet file, or reasoning_gym:DATASET."""

    heldout: str | None = None
    reward: str | None = None
    """Name of the reward. None: reasoning_gym for its data, else math_verify."""

    prompt_field: str = "prompt"
    answer_field: str = "answer"
    teacher: str | None = None
    """Folder of the teacher, for a preset that needs one."""


def check_algorithm(name: str) -> None:
    """
    Raises:
        ConfigError: there is no preset of this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no algorithm {name!r}", fix=instead_of(name, 3))


def starter(answers: Answers, run_name: str) -> str:
    """The config as a file of at most 25 lines.

    Raises:
        ConfigError: there is no such algorithm, or it needs an answer that is not given.
    """
    check_algorithm(answers.algorithm)
    if PRESETS[answers.algorithm].has_teacher and answers.teacher is None:
        raise ConfigError(f"algorithm {answers.algorithm} learns from a teacher", fix="--teacher FOLDER")
    hinted = "hint" in PRESETS[answers.algorithm].algorithm
    longest = min(1024, _positions(answers.model) // (3 if hinted else 2))
    rows = [
        (f"# {PRESETS[answers.algorithm].about}", ""),
        (f"model: {_text(answers.model)}", "folder, or name on the Hugging Face hub"),
        ("data:", ""),
        *_data(answers),
        *_template(Path(answers.model)),
        (f"reward: {_reward(answers)}", "or my_module:my_function"),
        *_algorithm(answers),
        *_hint(longest if hinted else 0),
        ("batch: {prompts_per_step: 64, minibatch_prompts: 32}", "2 optimizer steps a policy update"),
        ("actor:", ""),
        ("  parallel: {tp: 1}", "GPUs that share a layer"),
        ("  microbatch_tokens: 16384", "when memory runs out, lower this first"),
        ("  optimizer: {lr: 1.0e-6}", ""),
        ("rollout:", ""),
        (f"  max_prompt_tokens: {longest}", "longer prompts are refused"),
        (f"  max_response_tokens: {longest}", "longer answers are truncated"),
        (f"run: {{name: {_text(run_name)}, steps: 100, save_every: 20}}", "in runs/; --resume continues it"),
    ]
    return "".join(f"{row:<{_COMMENT_AT}}  # {about}\n" if about else f"{row}\n" for row, about in rows)


Rows = list[tuple[str, str]]
"""Lines of a config and their comments."""


def _algorithm(answers: Answers) -> Rows:
    samples = PRESETS[answers.algorithm].samples_per_prompt
    teacher = [(f"  teacher: {_text(answers.teacher)}", "of the same sizes")] if answers.teacher else []
    return [
        ("algorithm:", ""),
        (f"  preset: {answers.algorithm}", f"hybridrl algo explain {answers.algorithm}"),
        (f"  samples_per_prompt: {samples}", "answers to each prompt"),
        *teacher,
    ]


def _hint(longest: int) -> Rows:
    if not longest:
        return []
    return [(f"  hint: {{field: demonstration, max_tokens: {longest}}}", "column that the teacher reads")]


def _data(answers: Answers) -> Rows:
    if dataset := _gym_dataset(answers):
        source = f"task: reasoning_gym, dataset: {_text(dataset)}"
        return [
            (f"  train: {{{source}, size: 2000, part: train}}", ""),
            (f"  heldout: {{{source}, size: 100, part: heldout}}", "never trained on"),
        ]
    heldout = f"  heldout: {_text(answers.heldout)}" if answers.heldout else "  # heldout: FILE"
    return [
        (f"  train: {_text(answers.data)}", "one prompt a row"),
        (heldout, "evaluated on, never trained on"),
        (f"  prompt_field: {_text(answers.prompt_field)}", "column: text, or chat messages"),
    ]


def _positions(model: str) -> int:
    """Context length of the model in tokens; 2**20 if nothing is known of it yet."""
    try:
        spec = hub.find_spec(model)
    except ModelError:  # the verdict reports what is wrong with it
        spec = None
    return spec.max_positions if spec else 2**20


def _template(model: Path) -> Rows:
    has_none = model.is_dir() and not has_chat_template(model)
    return [("  chat_template: none", "its tokenizer has none")] if has_none else []


def _reward(answers: Answers) -> str:
    if _gym_dataset(answers):
        return _text(answers.reward or "reasoning_gym")
    return f"{{name: {_text(answers.reward or 'math_verify')}, answer_field: {_text(answers.answer_field)}}}"


def _gym_dataset(answers: Answers) -> str:
    """DATASET in reasoning_gym:DATASET; empty for a file."""
    task, _, dataset = answers.data.partition(":")
    return dataset if task == "reasoning_gym" else ""


def _text(text: str) -> str:
    return strict_yaml.inline(text)
