"What a person sees in a real Jupyter kernel, and what stays in the saved notebook."
import nbformat
import pytest
from nbclient import NotebookClient

CELLS = ["""
import torch
from torch import nn
from visionlab.training.learner import Learner
import visionlab.callbacks.one_cycle
g = torch.Generator().manual_seed(0)
data = [(torch.randn(8, 20, generator=g), torch.arange(8) % 3) for _ in range(20)]
learn = Learner((data, data), nn.Linear(20, 3), lr=1e-2, device="cpu")
""", "learn.fit_one_cycle(3)", "learn.recorder.plot()", "learn.lr_find()", """
from visionlab.data.module import ImageDataModule
import visionlab.widgets.view
dm = ImageDataModule("FashionSample")
dm
""", "dm.show_batch()", "learn", "learn.fine_tune(2)", "raise KeyboardInterrupt"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS], metadata=dict(kernelspec=dict(name="python3", display_name="python3")))
    NotebookClient(nb, timeout=120, allow_errors=True, resources=dict(metadata=dict(path=str(tmp_path_factory.mktemp("nb"))))).execute()
    return [c.outputs for c in nb.cells]


def rich(outputs, kind): return ["".join(o["data"][kind]) for o in outputs if kind in o.get("data", {})]


def test_the_saved_table_is_whole_and_alone(outputs):
    fit = outputs[1]
    assert len(fit) == 1 and not any(o.output_type in ("stream", "error") for o in fit)       # the table, and no learner as the cell's value
    table = rich(fit, "text/html")[0]
    assert table.count("<tr>") == 4 and "valid_loss" in table and "<progress" not in table


def test_a_learner_is_told_of_when_it_is_asked_for(outputs):
    assert [o.output_type for o in outputs[6]] == ["execute_result"] and outputs[6][0].data["text/plain"].startswith("Learner: ")


def test_fine_tuning_is_one_table_whose_epochs_go_on(outputs):
    table, = rich(outputs[7], "text/html")
    rows = [o.split("</td>")[0].split(">")[-1] for o in table.split("<tr>")[2:]]
    assert rows == ["4", "5", "6"] and not any(o.output_type == "stream" for o in outputs[7])


def test_figures_show_themselves_without_pyplot(outputs):
    for cell in (2, 3): assert len(rich(outputs[cell], "image/png")) == 1


def test_data_and_views_have_tables_and_still_pictures(outputs):
    assert "5,400" in rich(outputs[4], "text/html")[0]
    assert len(outputs[5]) == 1                          # what runs a notebook without a page gets no controls
    view = outputs[5][0]["data"]
    assert set(view) == {"text/plain", "text/html"} and "data:image/jpeg" in "".join(view["text/html"])


def test_nothing_failed_on_the_way(outputs):
    assert [i for i, o in enumerate(outputs) if any(x.output_type == "error" for x in o)] == [8]
