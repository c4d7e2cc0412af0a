"""The example notebook runs as committed, on fewer images, and shows what it says it shows."""

from html import unescape
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from vitscope import AuditResult
from vitscope.weights.embedded import embedded_available

NOTEBOOK = Path(__file__).parents[2] / "examples" / "audit_in_a_notebook.ipynb"
NUM_IMAGES = 20


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs_of(notebook, source):
    """What the cells with this source showed, by MIME type."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    cells = [cell for cell in code if source in cell.source]
    assert cells, source
    return [output["data"] for cell in cells for output in cell.outputs if "data" in output]


def test_it_is_committed_without_output(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.real_weights
@pytest.mark.skipif(not embedded_available(), reason="the packages of the demo extra are absent")
def test_it_runs_and_results_and_figures_show_themselves(notebook, tmp_path, monkeypatch):
    # Nothing of the reader's own set-up, and no waiting for a hub that is not there.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for cell in notebook.cells:
        cell.source = cell.source.replace("[:40]", f"[:{NUM_IMAGES}]")
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    saved = AuditResult.load(tmp_path / "results" / "dinov2-small").summary
    assert saved.data.num_images == NUM_IMAGES
    (shown,) = outputs_of(notebook, "result = audit")
    assert saved.last.verdict.text in unescape(shown["text/html"])
    (explained,) = outputs_of(notebook, "explanation = explain")
    assert f"means over {NUM_IMAGES} images of the audit" in explained["text/html"]
    for source in ('plot("variance_share")', 'plot("layer_similarity")', 'plot("maps")'):
        (figure,) = outputs_of(notebook, source)
        assert "image/png" in figure
    (last,) = outputs_of(notebook, "AuditResult.load")
    assert last["text/plain"].strip("'\"") == saved.last.verdict.text
