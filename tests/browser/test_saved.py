"What is left of the views in a saved notebook: the picture, and no line about a widget that is missing."
import json, subprocess, sys
import nbformat, pytest
from lab import DONE, Notebook, chromium, jupyter, lab_command

START = """
import os; os.environ["VISIONLAB_PROGRESS"] = "html"
import ipywidgets as W, torch
from IPython.display import display
from visionlab.all import *
torch.set_num_threads(1)
dm = ImageDataModule("FashionSample", batch_size=32)
learn = Learner(ImageDataModule(dm.catalog.sample(600), batch_size=32), "resnet9", device="cpu", lr=4e-3)
"""
VIEWS = {"grid": "grid = dm.show_batch(n=4)\ngrid", "balance": "dm.class_balance()", "studio": "dm.preview_augmentations(n_images=1, n_draws=3)",
         "again": "grid", "two": "display(dm.catalog.browse(n=2))\ndm.catalog.browse(n=3)", "box": "W.VBox([W.Label('in a box'), dm.show_batch(n=2).widget])",
         "output": "out = W.Output()\ndisplay(out)\nwith out: display(dm.show_batch(n=5))", "picker": "learn.pick_lr(learn.lr_find(start=1e-5, end=1, steps=12))",
         "training": "run = learn.fit(1, background=True)\n_ = run.wait(120)"}
FILLERS = 50                                                             # cells between, so that most are off the screen
PICTURES = dict(grid=4, balance=0, studio=4, again=4, two=5, box=2, output=5, picker=0, training=0)

# of the cell that begins with a text, what can be seen: images, drawings, tables and rows with any size, and the lines that say a widget is missing
SHOWN = """start => { const seen = o => { const r = o.getBoundingClientRect(); return r.width > 0 && r.height > 0 };
    const cell = [...document.querySelectorAll('.jp-CodeCell')].find(o => o.querySelector('.jp-InputArea')?.innerText.includes(start));
    if (!cell) return null;
    const area = cell.querySelector('.jp-OutputArea');
    return {images: [...area.querySelectorAll('img')].filter(seen).length, drawn: [...area.querySelectorAll('img, svg[role=img], table, .vl-rowbutton')].filter(seen).length,
            controls: [...area.querySelectorAll('.visionlab-view')].filter(seen).length, text: area.innerText} }"""
SCROLL = """async name => { const nb = window.jupyterapp.shell.currentWidget.content;
    const at = [...nb.model.cells].findIndex(o => o.sharedModel.getSource().includes(name));
    nb.activeCellIndex = at; await nb.scrollToItem(at, 'start'); }"""


class Saved(Notebook):
    "A notebook that is saved, left and opened again."
    def run(self):
        "Run all cells, and wait for the last one, which may be off the page."
        self.start()
        self.page.wait_for_function("""done => [...window.jupyterapp.shell.currentWidget.content.model.cells].some(
            o => o.type === 'code' && JSON.stringify(o.outputs.toJSON()).includes(done))""", arg=DONE, timeout=180_000)

    def opened(self, place, name):
        self.place = place
        self.page = page = self.context.new_page()
        page.goto(f"{self.server.url}/{place}/{name}?reset&token={self.server.token}")
        page.wait_for_selector(self.cell, timeout=90_000)
        page.wait_for_function("window.jupyterapp !== undefined", timeout=60_000)
        page.evaluate("async () => { await window.jupyterapp.restored; const p = window.jupyterapp.shell.currentWidget; await p.context.ready; await p.revealed; await p.sessionContext.ready; }")

    def saved(self, name):
        "Save, leave, and end the kernel; give what the file holds."
        self.page.wait_for_timeout(1500)                                 # pictures are renewed a second after the last change
        self.page.evaluate("window.jupyterapp.shell.currentWidget.context.save()")
        self.page.close()
        self.server.stop_kernels()
        return nbformat.read(self.server.root/name, 4)

    def shown(self, name, **expected):
        "Scroll to a view's cell, and wait until it shows what it should."
        mark = f"# the {name}\n"
        for _ in range(100):
            self.page.evaluate(SCROLL, mark)
            self.page.wait_for_timeout(100)
            got = self.page.evaluate(SHOWN, mark.strip())
            if got and got["drawn"] and all(got[k] == v for k, v in expected.items()): return got
        raise AssertionError(f"{name}: {got}")


def cells():
    "Write the cells; a comment names each."
    views = [f"# the {name}\n{code}" for name, code in VIEWS.items()]
    return [START, *views[:4], *(f"{i} + 1" for i in range(FILLERS)), *views[4:]]


def both_fronts(*place): return [*lab_command(*place, "notebook", "JupyterNotebookApp"), "--LabApp.expose_app_in_browser=True"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    "JupyterLab, which shows Notebook 7's pages too: both windowed, as they come."
    with jupyter(tmp_path_factory.mktemp("saved"), both_fronts, windowing="full") as server, chromium() as browser:
        yield server, browser


@pytest.fixture(scope="module")
def book(server, tmp_path_factory):
    "A notebook that was run, used, saved and left."
    book = Saved(*server, tmp_path_factory.mktemp("screens"))
    book.place = "lab/tree"
    book.open(*cells(), name="saved.ipynb")
    book.live = {name: book.shown(name, images=n) for name, n in PICTURES.items()}
    book.shown("grid")
    book.shot("live")
    before = book.page.evaluate(SHOWN, "# the grid")["text"]
    book.page.locator(".visionlab-batchgrid").first.get_by_role("button", name="next").click()
    book.page.wait_for_function("a => [...document.querySelectorAll('.visionlab-batchgrid')].some(o => o.innerText.includes('images 5–8'))", arg=before)
    book.file = book.saved("saved.ipynb")
    return book


def test_live_each_view_is_seen_once_with_its_controls(book):
    "Scrolled to through a notebook of which only a part is on the page."
    counts = dict.fromkeys(PICTURES, 1) | dict(two=2, training=0)
    assert {name: o["controls"] for name, o in book.live.items()} == counts


def test_the_file_holds_pictures_and_no_state_of_widgets(book):
    assert "widgets" not in book.file.metadata
    grid = [o for o in book.file.cells if o.source.startswith("# the grid")][0].outputs
    assert len(grid) == 2 and "images 5–8" in grid[0].data["text/html"]        # as it was left, not as it was made


@pytest.mark.parametrize("place", ["lab/tree", "notebooks"])
def test_reopened_without_its_kernel(book, place):
    "JupyterLab and Notebook 7: every picture, nothing about models that were not found."
    again = Saved(book.server, book.context, book.shots)
    again.opened(place, "saved.ipynb")
    try:
        for name, n in PICTURES.items():
            got = again.shown(name, images=n, controls=0)
            assert not any(o in got["text"] for o in ("not found", "Error", "Loading widget")), (name, got)
            again.shot(f"reopened-{place.split('/')[0]}-{name}")
        assert "images 5–8" in again.shown("grid")["text"]
    finally:
        again.page.close()
        again.server.stop_kernels()


def test_converted_without_network(book):
    "`jupyter nbconvert --execute` runs it, and the page shows every picture without a line of script from elsewhere."
    root = book.server.root
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in cells()], metadata=dict(kernelspec=dict(name="python3", display_name="python3")))
    nbformat.write(nb, root/"plain.ipynb")
    subprocess.run([sys.executable, "-m", "jupyter", "nbconvert", "--execute", "--to", "html", "plain.ipynb"], cwd=root, check=True, capture_output=True, timeout=300)
    page = book.context.new_page()
    page.route("**/*", lambda o: o.continue_() if o.request.url.startswith(("file:", "data:")) else o.abort())
    try:
        page.goto((root/"plain.html").as_uri())
        for name, n in PICTURES.items():
            got = page.evaluate(SHOWN.replace(".jp-OutputArea'", ".jp-Cell-outputWrapper'"), f"# the {name}")
            assert got and got["drawn"] and got["images"] == n and "Error" not in got["text"], (name, got)
        page.screenshot(path=book.shots/"converted.png", full_page=True)
    finally: page.close()
