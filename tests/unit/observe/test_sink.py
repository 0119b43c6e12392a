"""Sinks by name: their options are checked, what is missing is refused, and your own are taken."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from hybridrl import registry
from hybridrl.errors import ConfigError, ResourceError, UserCodeError
from hybridrl.observe.record import Record
from hybridrl.observe.sink import SINKS, Sink, load_sinks, refuse_missing_sinks
from hybridrl.observe.sinks.wandb import WandbSink


class Mine(Sink):
    """A sink of one's own."""

    def __init__(self, *, file: str = "mine.csv") -> None:
        self.file = file

    def write(self, records: Sequence[Record]) -> None:
        pass


class Refusing(Sink):
    """A sink of one's own with a mistake in its `refuse`."""

    def refuse(self) -> None:
        raise KeyError("port")


class Unlabelled:
    """A class that is not derived from Sink, and has all of it but the label."""

    refuse = open = write = keep = close = abandon = view = Sink.refuse


def entry(name: str, **options: object) -> dict[str, object]:
    return {"name": name, **options}


def test_the_sinks_there_are() -> None:
    assert registry.names(SINKS) == ["mlflow", "tensorboard", "wandb"]
    made = load_sinks(registry.names(SINKS))
    assert [sink.label for sink in made.values()] == ["MLflow", "TensorBoard", "W&B"]


def test_one_of_your_own_is_made_with_its_options() -> None:
    name = f"{__name__}:Mine"
    made = load_sinks([entry(name, file="other.csv")])[name]
    assert made.file == "other.csv"


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("wandbb", {}, "sinks has no 'wandbb'"),
        ("wandb", {"mode": "disabled"}, "mode = disabled is not one of offline, online"),
        ("wandb", {"projet": "x"}, "sink wandb has no option 'projet'"),
        ("mlflow", {"uri": "x"}, "sink mlflow has no option 'uri'"),
        (f"{__name__}:Path", {}, "has no label, refuse"),
        (f"{__name__}:Unlabelled", {}, "has no label"),
    ],
)
def test_a_mistake_is_refused(name: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_sinks([entry(name, **options)])


def test_a_missing_package_is_refused_with_the_command_that_installs_it() -> None:
    with pytest.raises(ResourceError, match="no_such_package_here is not installed") as error:
        refuse_missing_sinks([entry("sink_values:NotInstalled")])
    assert error.value.fix == "pip install 'no-such-package>=2', or leave it out of observe.sinks"
    assert error.value.where == "observe.sinks"


def test_a_mistake_in_the_refusal_of_your_own_is_said_with_its_line() -> None:
    with pytest.raises(UserCodeError, match=r"Refusing raises KeyError: 'port', at .*test_sink.py:") as error:
        refuse_missing_sinks([entry(f"{__name__}:Refusing")])
    assert error.value.where == "observe.sinks"


def test_wandb_online_needs_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    WandbSink().refuse()
    with pytest.raises(ResourceError, match="no API key"):
        WandbSink(mode="online").refuse()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password abc\n")
    WandbSink(mode="online").refuse()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.lab.example")
    with pytest.raises(ResourceError, match="no API key"):
        WandbSink(mode="online").refuse()
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    WandbSink(mode="online").refuse()
