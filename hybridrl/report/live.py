"""Serves the report of a run that goes on, on this machine alone.

Only who has the token of the address gets anything, and only under the names of this machine: a page of
another site that a browser shows can neither read the report nor guess its address. The page asks every two
seconds whether the files of the run have changed, and replaces its contents if so.

Who waits for whom: serve() waits until it is interrupted; each request waits for the report that is made for
all of them.
"""

import hmac
import secrets
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from hybridrl.errors import ResourceError, RunFolderError
from hybridrl.observe.rollouts import ROLLOUTS_FILE
from hybridrl.observe.run_session import METRICS_FILE
from hybridrl.observe.summary import SUMMARY_FILE
from hybridrl.report.page import render, render_waiting
from hybridrl.report.run_data import CONFIG_FILE, read_run

LOOPBACK = "127.0.0.1"

_FILES = (METRICS_FILE, ROLLOUTS_FILE, SUMMARY_FILE, CONFIG_FILE, "doing.json")

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class LiveReport:
    """The page of a run, made anew when the files of its folder change."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._made: tuple[str, str] = ("", "")

    @property
    def version(self) -> str:
        """A text that changes with the files."""
        found = []
        for name in _FILES:
            path = self._folder / name
            try:
                stat = path.stat()
            except OSError:
                continue
            # doing.json is written again every few seconds, and tells little but that the run lives.
            found.append(
                f"{stat.st_size:x}" if name == "doing.json" else f"{stat.st_mtime_ns:x}.{stat.st_size:x}"
            )
        return "-".join(found)

    def page(self) -> str:
        with self._lock:
            version = self.version
            if version != self._made[0] or not self._made[1]:
                self._made = version, self._render(version)
            return self._made[1]

    def _render(self, version: str) -> str:
        try:
            return render(read_run(self._folder), live=version)
        except RunFolderError:
            return render_waiting(self._folder.resolve().name, version)


def open_server(folder: Path, port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """A server for the report of a run folder, and its address with the token.

    Args:
        port: 0: any free one.

    Raises:
        RunFolderError: the folder holds no run.
        ResourceError: the port is taken.
    """
    if not any((folder / name).exists() for name in (CONFIG_FILE, METRICS_FILE)):
        raise RunFolderError(f"{folder} holds no run", fix="name a folder of runs/")
    token = secrets.token_urlsafe(24)
    handler = partial(_Handler, LiveReport(folder), token)
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), handler)
    except OSError as error:
        what = f"cannot listen on {LOOPBACK}:{port}: {error.strerror}"
        raise ResourceError(what, where="--port", fix="another --port, or none") from error
    server.daemon_threads = True
    return server, f"http://{LOOPBACK}:{server.server_port}/{token}/"


def serve(folder: Path, port: int, told: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        told: gets the address.
    """
    server, address = open_server(folder, port)
    told(address)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "hybridrl", ""
    timeout = 30.0
    """Seconds after which a connection that says nothing is closed."""

    def __init__(self, report: LiveReport, token: str, *given: object) -> None:
        self._report, self._token = report, token
        super().__init__(*given)  # pyright: ignore[reportArgumentType]  # what the server gives

    def do_GET(self) -> None:
        host = self.headers.get_all("Host") or []
        if len(host) != 1 or host[0] not in self._names():
            return self._refuse(HTTPStatus.FORBIDDEN, "this address is not served under that name")
        token, _, rest = urlsplit(self.path).path.lstrip("/").partition("/")
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return self._refuse(HTTPStatus.FORBIDDEN, "the address lacks the token of this report")
        if rest == "":
            return self._answer(self._report.page(), "text/html; charset=utf-8")
        if rest == "version":
            return self._answer(self._report.version, "text/plain; charset=utf-8")
        self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a line of the log would hold the token."""

    def _names(self) -> tuple[str, ...]:
        port = self.connection.getsockname()[1]
        return (f"{LOOPBACK}:{port}", f"localhost:{port}")

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._answer(f"{why}\n", "text/plain; charset=utf-8", status)

    def _answer(self, text: str, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = text.encode("utf-8")
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
