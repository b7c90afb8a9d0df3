"""The notebooks of examples/ run from top to bottom, on drawn data and with a training of a few updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# The values of the cell with the tag `parameters`, for a run of seconds.
PARAMETERS = {
    "train_on_your_own_pictures": """
DATA = None
TRAIN_PICTURES, VAL_PICTURES = 8, 2
SETTINGS = {"max_steps": 2, "batch_size": 2, "num_workers": 0, "image_size": 64, "max_size": 96,
            "train_sizes": (64,), "backbone_weights": None, "evaluate_every": 99}
""",
    "what_did_the_model_look_at": """MODEL, PICTURE, THRESHOLD = "demo", "demo", 0.3""",
}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(PARAMETERS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in cells) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's client, which is not ours
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    work = tmp_path / "work"
    work.mkdir()
    notebook = read(path)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = PARAMETERS[path.stem]
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(work)}}
    )
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    kinds = {kind for output in shown for kind in output.get("data", ())}
    texts = [output["data"]["text/plain"] for output in shown if "text/plain" in output.get("data", {})]
    assert any(text.startswith("Detector(") for text in texts)
    assert any(text.startswith("Detections(") for text in texts)
    assert "text/html" in kinds
    assert not [output for output in shown if output.output_type == "error"]
    if path.stem == "what_did_the_model_look_at":
        assert "image/png" in kinds
        assert any(text.startswith("Explanation(") for text in texts)
        assert (work / "look.html").is_file()
    else:
        assert (work / "run" / "report.html").is_file()
