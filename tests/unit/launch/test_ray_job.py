"""A run handed to Ray's job server: the line that it runs, and what is asked of the server."""

import json
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hybridrl.cluster import ray_jobs
from hybridrl.errors import ResourceError
from hybridrl.launch.ray_job import command, entrypoint


def test_the_job_runs_the_launch_that_was_typed_in_its_folder() -> None:
    line = entrypoint(
        "my run.yaml", ["run.steps=3", "reward={name: a}"], resume="required", folder=Path("/a b")
    )
    inside = shlex.split(line)
    assert inside[:3] == ["cd", "/a b", "&&"]
    typed = ["launch", "my run.yaml", "run.steps=3", "reward={name: a}", "--on", "ray", "--resume"]
    assert inside[3:] == ["python", "-m", "hybridrl", *typed]
    assert (
        entrypoint("a.yaml", [], resume="never", folder=None) == "python -m hybridrl launch a.yaml --on ray"
    )
    assert entrypoint("a.yaml", [], resume="if_possible", folder=None).endswith(" --on ray --continue")


def test_the_command_that_is_shown_runs_the_same_line() -> None:
    line = entrypoint("a.yaml", ["reward={name: a}"], resume="never", folder=None)
    words = shlex.split(command("http://head:8265", "/up", line))
    assert words[:6] == ["ray", "job", "submit", "--address", "http://head:8265", "--working-dir"]
    assert words[-4:] == ["--", "bash", "-c", line]


class JobServer(BaseHTTPRequestHandler):
    """The part of Ray's job API that a submission talks to."""

    taken: list[dict] = []

    def do_GET(self) -> None:
        self._answer({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.taken.append(request)
        self._answer({"job_id": "raysubmit_1", "submission_id": "raysubmit_1"})

    def log_message(self, *_: object) -> None: ...

    def _answer(self, body: dict) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def server() -> Iterator[str]:
    JobServer.taken.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), JobServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_submission_hands_over_the_line(server: str) -> None:
    assert ray_jobs.submit(server, "python -m hybridrl", None) == "raysubmit_1"
    (taken,) = JobServer.taken
    assert taken["entrypoint"] == "python -m hybridrl" and not taken["runtime_env"].get("working_dir")


def test_no_server_is_one_error() -> None:
    with pytest.raises(ResourceError, match="job server at http://127.0.0.1:9 does not take the run"):
        ray_jobs.submit("http://127.0.0.1:9", "x", None)
