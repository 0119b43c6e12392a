"""Held-out sets that a command line names."""

import json
from pathlib import Path

from hybridrl.config import data_files
from hybridrl.models import hub


def heldout_override(text: str) -> str:
    """--data as a value of the key data.heldout.

    Args:
        text: a data file or a pattern, ORGANISATION/DATASET of the hub, reasoning_gym:DATASET, the name of a
            task, or the whole section in braces, as {task: last_digit, part: heldout}.
    """
    if text.lstrip().startswith(("{", "[")):
        return f"data.heldout={text}"
    task, colon, dataset = text.partition(":")
    if task == "reasoning_gym" and colon:
        return _section(task=task, dataset=dataset, size=100, part="heldout")
    if data_files.kind_of(text) is not None or data_files.matched(text):
        return f"data.heldout={json.dumps(text)}"
    if hub.is_name(text):
        return _section(hub=text)
    if Path(text).suffix or "/" in text:
        return f"data.heldout={json.dumps(text)}"  # whose error names the files that are there
    return _section(task=text)


def _section(**values: object) -> str:
    return f"data.heldout={json.dumps(values)}"
