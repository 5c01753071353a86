"All views together: a saved page without any stored state shows each, and views that are made again and again leave nothing behind."
import nbformat, pytest
from kernel import send_cell

SETUP = """
import os; os.environ["VISIONLAB_PROGRESS"] = "off"
import numpy as np, torch
torch.set_num_threads(1)
from dataclasses import replace
from visionlab.all import *
from visionlab.interpret.interpretation import Interpretation
dm = ImageDataModule("FashionSample", batch_size=32)
val = dm.catalog.subset("val")
rng = np.random.default_rng(0)
p = torch.tensor(rng.random((len(val), 10)) + 2*np.eye(10)[val.targets()]).float(); p /= p.sum(1, keepdim=True)
y = torch.tensor(val.targets())
found = Interpretation(p, y, -p.gather(1, y[:,None])[:,0].log(), dm.classes, val.frame["path"].tolist(), val.frame.index.to_numpy(), dm.catalog.pixels.__getitem__)
report = check(dm.catalog.sample(600), progress=False, workers=1)
from PIL import Image
for i in range(36):
    os.makedirs(place := f"photos/{dm.classes[i % 3]}" if i < 30 else "heap", exist_ok=True)
    Image.fromarray(np.repeat(dm.catalog.pixels[i], 3, -1)).save(f"{place}/{i}.png")
small = Learner(ImageDataModule("photos", image_size=28, batch_size=8, val_split=.3), "resnet9", device="cpu", lr=4e-3)
searched = small.lr_find(start=1e-5, end=1, steps=8)
"""
VIEWS = dict(BatchGrid="dm.show_batch()", ClassBalance="dm.class_balance()", AugmentationStudio="dm.preview_augmentations(n_images=2, n_draws=3)",
             LabelCleaner='LabelCleaner(dm.catalog, found, path="labels.csv")', DataDoctor='report.mend("edits.csv")', ConfusionExplorer="ConfusionExplorer(found)",
             Browser="dm.browse()", LRPicker="LRPicker(small, searched)", PredictPad="pad = small.predict_pad(); pad.show(dm.catalog.pixels[0]); pad", ActiveLabels='small.label_active("heap", path="heap.csv")')
CHART = "os.environ['VISIONLAB_PROGRESS'] = 'html'; run = small.fit(2, background=True); run.wait(); os.environ['VISIONLAB_PROGRESS'] = 'off'; run.chart"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    "A notebook kernel with a data module."
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path_factory.mktemp("kernel")))
    try:
        asked(client, SETUP)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def asked(client, code, cell=None):
    "Run code the way a notebook's cell does, and give its outputs."
    request = send_cell(client, code, cell)
    outputs = []
    while True:
        got = client.get_iopub_msg(timeout=120)
        if got["parent_header"].get("msg_id") != request: continue
        if got["msg_type"] == "error": raise AssertionError("\n".join(got["content"]["traceback"]))
        if got["msg_type"] in ("execute_result", "display_data", "stream"): outputs.append(got["content"])
        if got["msg_type"] == "status" and got["content"]["execution_state"] == "idle": return outputs


def printed(client, code): return "".join(o["text"] for o in asked(client, f"print({code})"))


def number(client, code): return float(printed(client, code))


def test_a_saved_page_shows_every_view(kernel, tmp_path):
    "What nbconvert makes of the outputs, without a kernel and without stored state."
    from nbconvert import HTMLExporter
    cells = []
    for name, code in VIEWS.items():
        outs = [nbformat.v4.new_output("display_data", data=o["data"]) for o in asked(kernel, code, name)]
        cells.append(nbformat.v4.new_code_cell(code, outputs=outs))
    nb = nbformat.v4.new_notebook(cells=cells)
    assert all("widget-view" not in str(o.outputs[0].data) and "widget-view" in str(o.outputs[1].data) for o in cells) and "widgets" not in nb.metadata
    page, _ = HTMLExporter(template_name="lab").from_notebook_node(nb)
    parts = dict(zip(VIEWS, page.split('class="jp-Cell-outputWrapper"')[1:]))
    assert set(parts) == set(VIEWS)
    drawn = dict(ClassBalance=("<table", "Sneaker"), LRPicker=("<svg", "is marked"))
    for name, part in parts.items():
        assert all(o in part for o in drawn.get(name, ("data:image/jpeg;base64,",))), name
        assert "VBox(" not in part and len(part) < 500_000, name


def test_a_saved_page_shows_the_chart_of_a_training(kernel):
    "The buttons are gone when it is over; the curves stay."
    data = asked(kernel, CHART, "chart")[-1]["data"]
    assert "<svg" in data["text/html"] and "2 epochs" in data["text/html"] and "application/vnd.jupyter.widget-view+json" not in data


def test_a_cell_run_again_leaves_nothing_of_the_view_before(kernel):
    "50 creations: as many widgets as after a few, and no more memory."
    asked(kernel, "import resource, gc\nfrom ipywidgets.widgets import widget\nalive = lambda: len(widget._instances if hasattr(widget, '_instances') else widget.Widget.widgets)\n"
                  "def resident(): gc.collect(); return int(open('/proc/self/statm').read().split()[1])*4096/2**20 if os.path.exists('/proc/self/statm') else 0.")
    each = list(VIEWS.items())
    for name, code in each*2: asked(kernel, code, name)
    widgets, before = number(kernel, "alive()"), number(kernel, "resident()")
    for k in range(50):
        name, code = each[k % len(each)]
        asked(kernel, code, name)
    assert number(kernel, "alive()") <= widgets + 2, printed(kernel, "__import__('collections').Counter(type(o).__name__ for o in (widget._instances if hasattr(widget, '_instances') else widget.Widget.widgets).values()).most_common(8)")
    assert number(kernel, "resident()") - before < 40


def test_five_hundred_updates_keep_memory_flat(kernel):
    code = "view = dm.preview_augmentations(n_images=2, n_draws=2); view.widget; grid = dm.show_batch(8); grid.widget\ndef play(n):\n    for k in range(n): view.seed = k; grid.page = k % 40; view.strength = .5 + .01*(k % 50)"
    asked(kernel, code)
    asked(kernel, "play(60)")
    before, widgets = number(kernel, "resident()"), number(kernel, "alive()")
    asked(kernel, "play(167)")                                             # three updates each
    assert number(kernel, "alive()") == widgets and number(kernel, "resident()") - before < 25


def test_a_view_shown_twice_stays_open(kernel):
    "Another cell that still shows it keeps it."
    asked(kernel, "grid = dm.show_batch(4)\ngrid", "first")
    asked(kernel, "grid", "second")
    asked(kernel, "dm.class_balance()", "first")
    assert printed(kernel, "grid._widget is not None").strip() == "True"
    asked(kernel, "1", "second")
    asked(kernel, "dm.class_balance()", "second")
    assert printed(kernel, "grid._widget is None").strip() == "True"
    assert asked(kernel, "grid", "third")[0]["data"]["text/html"].count("<img") == 4      # shown again, it is made anew
