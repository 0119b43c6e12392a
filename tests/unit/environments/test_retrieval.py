"""The tool {retrieval: ...} against a server that speaks Search-R1's protocol."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from environment_values import with_environments

from hybridrl.environments.base import EnvironmentFailedError, EnvironmentSource, Turn
from hybridrl.errors import ConfigError

TEXT = {
    "text_calls": {"search": "<search>(?P<query>.*?)</search>"},
    "text_result": "<information>{result}</information>",
}


class Server(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        documents = [
            {"document": {"contents": f'"{query} {i}"\nabout {query}'}, "score": 1.0}
            for query in asked["queries"]
            for i in range(asked["topk"])
        ]
        body = json.dumps({"result": [documents]} if asked["queries"] != ["bad"] else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/retrieve"
    server.shutdown()


async def answered(source: EnvironmentSource, text: str) -> Any:
    opened = source.open({})
    try:
        await opened.reset(0)
        return await opened.step(Turn(text))
    finally:
        await opened.close()


def test_a_search_in_plain_text_is_answered(address: str) -> None:
    section = {"tools": [{"retrieval": {"url": address, "top_k": 2}}], **TEXT}
    seen = with_environments(section, lambda source: answered(source, "I look <search> who </search>"))
    (message,) = seen.messages
    assert message["role"] == "user" and not seen.done
    assert message["content"] == (
        '<information>Doc 1(Title: " who  0") about  who \nDoc 2(Title: " who  1") about  who </information>'
    )


def test_a_server_that_answers_nonsense_is_the_worlds_fault(address: str) -> None:
    section = {"tools": [{"retrieval": {"url": address}}], **TEXT}
    with pytest.raises(EnvironmentFailedError, match="the retrieval server .* KeyError"):
        with_environments(section, lambda source: answered(source, "<search>bad</search>"))


def test_an_address_is_checked() -> None:
    with pytest.raises(ConfigError, match="url = localhost, which is no address"):
        with_environments({"tools": [{"retrieval": {"url": "localhost"}}]}, lambda s: answered(s, ""))
