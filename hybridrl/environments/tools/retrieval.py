"""A search over passages as a tool, by a retrieval server that speaks Search-R1's protocol.

{retrieval: {url: "http://127.0.0.1:8000/retrieve", top_k: 3}} posts {"queries": [...], "topk": 3} and reads
{"result": [[{"document": {"contents": ...}}, ...]]}; a document's first line is its title. The server is
search_r1/search/retrieval_server.py of github.com/PeterGriffinJin/Search-R1.
"""

import json
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.environments.threads import called
from hybridrl.environments.tools.base import (
    LostToolError,
    SharedTools,
    Tool,
    WrongCallError,
    function_schema,
)

_MOST_BYTES = 16 * 2**20

_SCHEMA = function_schema(
    "search",
    "Search for passages about a question.",
    {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "what to look for."}},
        "required": ["query"],
        "additionalProperties": False,
    },
)


@dataclass(frozen=True, kw_only=True)
class RetrievalTool:
    """An item {retrieval: {...}} of environment.tools."""

    url: str
    """Address that queries are posted to."""

    top_k: int = 3
    """Passages of a result."""

    timeout_s: float = 20.0
    """The server may take this long."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url = {self.url}, which is no address: write http://host:port/retrieve")

    async def source(self, *, where: str) -> SharedTools:
        return SharedTools((Tool(_SCHEMA, self._call),))

    async def _call(self, arguments: Mapping[str, Any]) -> str:
        query = arguments.get("query")
        if not isinstance(query, str) or len(arguments) != 1:
            raise WrongCallError(f"{sorted(arguments)}, not query, a string")
        return await called(self._search, query)

    def _search(self, query: str) -> str:
        body = json.dumps({"queries": [query], "topk": self.top_k, "return_scores": True}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                (found,) = json.loads(answer.read(_MOST_BYTES))["result"]
            passages = [item["document"]["contents"] for item in found]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LostToolError(
                f"the retrieval server {self.url}: {type(error).__name__}: {error}"
            ) from error
        return "\n".join(_passage(number, text) for number, text in enumerate(passages, 1))


def _passage(number: int, contents: str) -> str:
    title, _, text = contents.partition("\n")
    return f"Doc {number}(Title: {title}) {text}"
