"""The notebook of docs/, cell by cell, in a kernel whose event loop runs."""

import ast
import os
from pathlib import Path
from typing import Any

import pytest

nbformat: Any = pytest.importorskip("nbformat", reason="nbclient and ipykernel are of requirements/dev.txt")
nbclient: Any = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "examples" / "own_loop.ipynb"


def test_the_notebook_is_kept_without_outputs() -> None:
    """So a change of it is readable, and no path of a machine is in it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()
    before, scores, rewards, after, files = [ast.literal_eval(result(cell)) for cell in code(notebook)]
    assert (
        before.keys()
        == after.keys()
        == {f"val-core/last_digit/reward/{name}_at_1" for name in ("mean", "best")}
    )
    assert len(scores) == len(rewards[:3]) + 1 == 4 and all(0 <= reward <= 1 for reward in rewards)
    assert {"metrics.jsonl", "report.html", "reward.png", "summary.json"} <= set(files)
    assert not os.environ.get("RAY_ADDRESS")


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def result(cell: Any) -> str:
    """What the last line of a cell is."""
    (found,) = (output for output in cell.outputs if output.output_type == "execute_result")
    return found.data["text/plain"]
