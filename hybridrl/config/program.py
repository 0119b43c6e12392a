"""Keys about an agent that is a program of its own, and the endpoint that it talks to."""

from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from hybridrl.config.section import Names, Section


class TLSConfig(Section):
    """A certificate for the endpoint of programs on other hosts."""

    certificate: str
    """File with the certificate and those above it, in PEM."""

    key: str
    """File with its key, in PEM."""


class ProgramBoxConfig(Section):
    """A box of the sandbox for each episode of a program; true: with these defaults. The program reads
    `folder` and Python's packages, writes to /tmp, and reaches nothing of the network but its endpoint."""

    memory_mb: PositiveInt = 2048
    """MiB that a box may take, and address space of each of its processes."""

    disk_mb: PositiveInt = 256
    """MiB of all files in a box, which are in memory."""

    processes: PositiveInt = 64
    """Processes and threads that may run in a box at the same time."""

    cpu_s: PositiveInt = 600
    """Seconds of processor time of each process."""

    ahead: PositiveInt = 2
    """Boxes that an engine starts before they are needed."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {} if value is True else value


class ProgramConfig(Section):
    """An agent that is any program: in each episode it gets the address and the key of an endpoint in
    OpenAI's and Anthropic's form, behind which the policy answers. docs/gateway.md has the details."""

    command: Names
    """The program and its arguments. It reads one line of JSON for each episode from its standard input:
    base_url, key, model, messages, row, seed."""

    folder: str | None = None
    """Folder in which it runs. None: the one in which the run was started."""

    box: ProgramBoxConfig | None = None
    """None: the program runs with the rights of the run."""

    episodes_per_process: PositiveInt = 1
    """1: a process for each episode, which ends with its exit. More: a process reads episode after episode,
    plays so many at the same time, and ends each by a call of `done`."""

    processes_per_engine: PositiveInt = 32
    """Most processes of an engine; further episodes wait."""

    timeout_s: PositiveFloat = 600.0
    """An episode ends after this time with what it has."""

    max_requests: PositiveInt = 32
    """Most answers of the policy in an episode."""

    max_sessions: PositiveInt = 512
    """Most episodes of an engine at the same time; further ones wait."""

    max_running_requests: PositiveInt = 1024
    """Requests to an engine's endpoint at the same time; further ones get status 429, and come again."""

    max_body_kb: PositiveInt = 1024
    """Most KiB of a request."""

    branches: Literal["train", "refuse"] = "train"
    """What happens to a request whose conversation does not go on from the last answer. train: it opens a
    branch of the episode, which is trained on too. refuse: it gets status 400, so that every episode is one
    conversation."""

    tools: bool = False
    """Whether the program gives the policy tools: then the chat template has to have a format for calls."""

    variables: Names = ()
    """Variables of the shell that the program sees, besides those about folders, language and numbers of
    threads, as PATH, HOME and LANG."""

    host: str = "127.0.0.1"
    """Address that the endpoint listens on. If it is not loopback, tls or trusted_network has to be set."""

    tls: TLSConfig | None = None
    """Certificate of the endpoint. None: plain HTTP."""

    trusted_network: bool = False
    """Says that nobody else can read or reach the network of `host`, so that plain HTTP will do."""

    @model_validator(mode="before")
    @classmethod
    def _from_a_list(cls, value: Any) -> Any:
        given = {"command": value} if isinstance(value, (list, tuple)) else value
        return {**given, "box": None} if isinstance(given, dict) and given.get("box") is False else given

    @model_validator(mode="after")
    def _has_a_command(self) -> "ProgramConfig":
        if not self.command:
            raise ValueError("command is empty: name the program and its arguments")
        return self

    @property
    def is_loopback(self) -> bool:
        return self.host in ("127.0.0.1", "localhost", "::1")
