"""A conversation with a run's policy or a model, on a terminal or through a pipe.

Who waits for whom: chat() waits for the lines of its input, and for the engine.
"""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.data import has_chat_template
from hybridrl.config.run_shape import RunShape
from hybridrl.config.schema import Config
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.dialogue.opened import open_dialogue
from hybridrl.dialogue.plain import PlainDialogue
from hybridrl.errors import ConfigError, UserError, refuse
from hybridrl.hosts.machine import Machine
from hybridrl.launch import model_folders
from hybridrl.launch.shape import with_gpus
from hybridrl.models import spec
from hybridrl.observe.progress import progress
from hybridrl.rollout.base import Engine, EngineSetup, kind_of
from hybridrl.serve.conversation import Conversation
from hybridrl.serve.named import Named, Say, weights, write_made
from hybridrl.types import Sampling

_LONGEST_TOKENS = 32768
"""Longest conversation: a larger key-value cache would be reserved for tokens that hardly any has."""

_SPARE_TOKENS = 64

HELP = (
    "/reset           forget the conversation",
    "/system TEXT     another system prompt, and /reset",
    "/temperature X   0: greedy",
    "/tokens N        most tokens of an answer",
    "/quit            as the end of the input does",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of a conversation; None: as the config says."""

    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


def chat(of: Named, request: Request, lines: Iterator[str], write: TextIO, say: Say) -> None:
    """Talk until the lines end.

    Args:
        lines: what is said, one message a line; a line that begins with / is a command.
        write: gets the answers as they grow.
        say: gets all else, as a heading and a text.

    Raises:
        HybridRLError: what an engine refuses or fails at.
    """
    loaded = _checked(of, say)
    with contextlib.ExitStack() as opened, asyncio.Runner() as runner:
        here, _ = opened.enter_context(weights(of, loaded, say))
        cfg = _with_template(here.config, of, request)
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="hybridrl-chat-"))
        with progress("engine", "start"):
            engine = kind_of(cfg.rollout.engine).open(_setup(cfg, folder))
        opened.callback(engine.shutdown)
        talk = _conversation(cfg, engine, request)
        alone = "" if talk.keeps else "; without a chat template, each message stands alone"
        say("chat", f"with {of.text}, up to {talk.most_tokens:,} tokens{alone}; /help lists the commands")
        for line in lines:
            if line.startswith("/"):
                if not _obey(talk, line, say):
                    return
            elif line.strip():
                _answer(runner, talk, line, write, say)


def _checked(of: Named, say: Say) -> LoadedConfig[Config]:
    """The config, with the model on this machine."""
    loaded = with_gpus(of.load(), Machine.here())
    write_made(loaded, say)
    model_folders.fetch(loaded, say)
    loaded = model_folders.in_folders(loaded)
    kind = kind_of(loaded.config.rollout.engine)
    with loaded.located():
        spec.read(loaded.config.model.path)
    refuse([loaded.locate(error) for error in kind.missing(loaded.config)])
    return loaded


def _with_template(cfg: Config, of: Named, request: Request) -> Config:
    """The config with a chat format that the model has, and the system prompt."""
    data, changed = cfg.data, {}
    if of.document is not None and not has_chat_template(Path(cfg.model.path)):
        changed["chat_template"] = "none"
    system = request.system if request.system is not None else data.system_prompt
    template = changed.get("chat_template", data.chat_template)
    if system and template == "none":
        raise ConfigError(
            "a system prompt needs a chat template, and data.chat_template is none",
            where="--system",
            fix="leave out --system",
        )
    data = data.model_copy(update={**changed, "system_prompt": system or None})
    return cfg.model_copy(update={"data": data})


def _setup(cfg: Config, folder: str) -> EngineSetup:
    rollout, shape = cfg.rollout, RunShape.of(cfg)
    answer = min(_positions(cfg) // 2, max(1, rollout.max_response_tokens))
    return EngineSetup(
        model_folder=cfg.model.path,
        log_path=str(Path(folder, "engine.log")),
        parallel=shape.engine,
        seed=cfg.run.seed,
        max_prompt_tokens=_positions(cfg) - answer - _SPARE_TOKENS,
        max_response_tokens=answer,
        memory_fraction=rollout.memory_fraction,
        max_running_requests=1,
        version=0,
        python=rollout.python and str(Path(rollout.python).absolute()),
        start_timeout_s=cfg.cluster.start_timeout_s,
    )


def _conversation(cfg: Config, engine: Engine, request: Request) -> Conversation:
    tokenizer = load_tokenizer(cfg.model.path)
    dialogue, rollout = open_dialogue(tokenizer, cfg.model.path, cfg.data), cfg.rollout
    temperature = rollout.temperature if request.temperature is None else request.temperature
    return Conversation(
        engine=engine,
        dialogue=dialogue,
        keeps=not isinstance(dialogue, PlainDialogue),
        tokenizer=tokenizer,
        sampling=Sampling(
            num_samples=1,
            max_response_tokens=request.max_tokens or rollout.max_response_tokens,
            temperature=temperature,
            seed=cfg.run.seed,
        ),
        most_tokens=_positions(cfg) - _SPARE_TOKENS,
        system=cfg.data.system_prompt,
    )


def _positions(cfg: Config) -> int:
    return min(spec.read(cfg.model.path).max_positions, _LONGEST_TOKENS)


def _answer(runner: asyncio.Runner, talk: Conversation, line: str, write: TextIO, say: Say) -> None:
    """Print an answer as it grows; Ctrl-C ends the answer, and not the conversation."""

    async def stream() -> None:
        async for piece in talk.say(line):
            write.write(piece)
            write.flush()

    try:
        runner.run(stream())
    except UserError as error:
        say("error", str(error))
        return
    except KeyboardInterrupt:
        write.write(" ...\n")
        return
    write.write("\n")
    write.flush()
    if talk.ended == "length":
        say("cut", f"after {talk.sampling.max_response_tokens:,} tokens; /tokens N allows more")


def _obey(talk: Conversation, line: str, say: Say) -> bool:
    """Do what a command says; False: the conversation is over."""
    command, _, value = line.strip().partition(" ")
    if command == "/quit":
        return False
    done = _COMMANDS.get(command)
    if done is None:
        if command != "/help":
            say("error", f"there is no command {command}")
        for i, told in enumerate(HELP):
            say("" if i else "commands", told)
        return True
    try:
        say("chat", done(talk, value.strip()))
    except ValueError as error:
        say("error", str(error))
    return True


def _reset(talk: Conversation, _: str) -> str:
    talk.reset()
    return "the conversation is forgotten"


def _system(talk: Conversation, value: str) -> str:
    if isinstance(talk.dialogue, PlainDialogue):
        raise ValueError("a system prompt needs a chat template, and data.chat_template is none")
    talk.system = value or None
    talk.reset()
    return f"{'another' if value else 'no'} system prompt; the conversation is forgotten"


def _temperature(talk: Conversation, value: str) -> str:
    temperature = float(value)
    if not 0.0 <= temperature < 100.0:
        raise ValueError(f"temperature {value} is not between 0 and 100")
    talk.sampling = replace(talk.sampling, temperature=temperature)
    return f"temperature {temperature:g}"


def _tokens(talk: Conversation, value: str) -> str:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"/tokens {value}: a whole number of 1 or more")
    talk.sampling = replace(talk.sampling, max_response_tokens=int(value))
    return f"answers of up to {int(value):,} tokens"


_COMMANDS: dict[str, Callable[[Conversation, str], str]] = {
    "/reset": _reset,
    "/system": _system,
    "/temperature": _temperature,
    "/tokens": _tokens,
}


def typed(prompt: str) -> Iterator[str]:
    """The lines of standard input: asked for on a terminal, read from a pipe."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\r\n")
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() a history and arrow keys
    while True:
        try:
            yield input(prompt)
        except EOFError:
            return
