"""The live report: who gets it, and that it follows the files of the run."""

import http.client
import json
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from report_values import run_folder

from hybridrl.cli import main as command
from hybridrl.errors import ResourceError, RunFolderError
from hybridrl.report.live import LiveReport, open_server


class Live:
    """A server in a thread, and requests to it."""

    def __init__(self, folder: Path) -> None:
        self.server, self.address = open_server(folder)
        self.token = urlsplit(self.address).path.strip("/")
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def get(self, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str, dict[str, str]]:
        port = self.server.server_port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.putrequest(method, path, skip_host=True)
        if host != "":
            connection.putheader("Host", f"127.0.0.1:{port}" if host is None else host.format(port=port))
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return run_folder(tmp_path / "a")


@pytest.fixture
def live(folder: Path):
    served = Live(folder)
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_it_listens_on_loopback_alone_and_its_address_has_a_long_token(live: Live) -> None:
    assert live.server.server_address[0] == "127.0.0.1" and len(live.token) >= 32
    status, text, headers = live.get(f"/{live.token}/")
    assert status == 200 and "algorithm.estimator.name" in text and 'id="live"' in text
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    assert headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize(
    "path", ["/", "/version", "/{wrong}/", "/{wrong}/version", "/{token}x/", "/../{token}/"]
)
def test_nobody_without_the_token_gets_anything(live: Live, path: str) -> None:
    wrong = "x" * len(live.token)
    status, text, _ = live.get(path.format(wrong=wrong, token=live.token))
    assert status == 403 and live.token not in text and "algorithm" not in text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "", "127.0.0.1:{port}.evil"]
)
def test_another_name_of_the_machine_is_refused(live: Live, host: str) -> None:
    """A site whose name was made to lead to this machine sends its own name."""
    assert live.get(f"/{live.token}/", host)[0] in (400, 403)
    assert live.get(f"/{live.token}/", "localhost:{port}")[0] == 200


def test_files_of_the_machine_are_not_served(live: Live, folder: Path) -> None:
    for path in (
        "metrics.jsonl",
        "../a/metrics.jsonl",
        "%2e%2e/metrics.jsonl",
        str(folder / "metrics.jsonl"),
    ):
        assert live.get(f"/{live.token}/{path}")[0] == 404
    assert live.get(f"/{live.token}/", method="POST")[0] == 501


def test_the_page_follows_the_run(live: Live, folder: Path) -> None:
    def version() -> str:
        return live.get(f"/{live.token}/version")[1]

    before = version()
    assert f'data-version="{before}"' in live.get(f"/{live.token}/")[1] and version() == before
    record = {
        "kind": "evaluation",
        "step": 21,
        "time": 21.0,
        "wall_s": 21.0,
        "val-core/d/reward/mean_at_1": 0.75,
    }
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    after = version()
    assert after != before
    text = live.get(f"/{live.token}/")[1]
    assert "0.100 → 0.750" in text and f'data-version="{after}"' in text


def test_a_run_that_has_taken_no_step_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text("run:\n  name: a  # c.yaml:1\n")
    report = LiveReport(tmp_path)
    assert "has taken no step yet" in report.page()
    run_folder(tmp_path / "b")
    (tmp_path / "metrics.jsonl").write_text((tmp_path / "b" / "metrics.jsonl").read_text())
    assert "critic/score/mean" in report.page()


def test_what_cannot_be_served_is_refused(tmp_path: Path, live: Live, folder: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        open_server(tmp_path)
    with pytest.raises(ResourceError, match=r"cannot listen on 127.0.0.1:\d+: Address already in use"):
        open_server(folder, live.server.server_port)
    assert command(["report", str(folder), "--live", "--check"]) == 2


def test_a_page_that_is_kept_asks_nobody(folder: Path) -> None:
    assert command(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert "connect-src" not in text and "fetch(" not in text
