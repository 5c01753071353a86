"The same views in Notebook 7, and in what stands in for Colab: ipywidgets 7.7.1, IPython 7.34 and the classic notebook, in an environment of their own."
import csv, os, site, subprocess, sys, venv
import pytest
from lab import Notebook, chromium, jupyter, lab_command

OLD = ["ipywidgets==7.7.1", "notebook==6.5.7", "ipython==7.34.0", "ipykernel==6.17.1", "jupyter_client==7.4.9", "traitlets==5.7.1", "widgetsnbextension==3.6.10", "setuptools<81"]
START = """
import os; os.environ["VISIONLAB_PROGRESS"] = "html"
import ipywidgets, IPython, numpy as np, torch
from visionlab.all import *
from visionlab.interpret.interpretation import Interpretation
torch.set_num_threads(1)
dm = ImageDataModule("FashionSample", batch_size=32)
val = dm.catalog.subset("val")
y = torch.tensor(val.targets())
p = torch.tensor(np.random.default_rng(0).random((len(y), 10)) + 2*np.eye(10)[val.targets()]).float(); p /= p.sum(1, keepdim=True)
found = Interpretation(p, y, -p.gather(1, y[:,None])[:,0].log(), dm.classes, val.frame["path"].tolist(), val.frame.index.to_numpy(), dm.catalog.pixels.__getitem__)
learn = Learner(ImageDataModule(dm.catalog.sample(600), batch_size=32), "resnet9", device="cpu", lr=4e-3)
print("versions", ipywidgets.__version__, IPython.__version__)
"""
CELLS = (START, "dm.show_batch()", "dm.class_balance()", "dm.preview_augmentations(n_images=2, n_draws=3)", 'LabelCleaner(dm.catalog, found, path="labels.csv")', "ConfusionExplorer(found)",
         "learn.pick_lr(learn.lr_find(start=1e-5, end=1, steps=12))", "learn.predict_pad()", "run = learn.fit(200, background=True)")
VIEWS = ("BatchGrid", "ClassBalance", "AugmentationStudio", "LabelCleaner", "ConfusionExplorer", "LRPicker")


class Notebook7(Notebook):
    "A notebook in Notebook 7."
    place = "notebooks"


class Classic(Notebook):
    "A notebook in the classic front end."
    place, cell, output = "notebooks", ".cell", ".output_area"

    def start(self):
        self.page.wait_for_function("window.Jupyter && Jupyter.notebook && Jupyter.notebook.kernel && Jupyter.notebook.kernel.is_connected()", timeout=60_000)
        self.page.wait_for_timeout(1000)
        self.page.evaluate("Jupyter.notebook.execute_all_cells()")


def old_python(folder):
    "Make an environment with what Colab has installed; everything else comes from this one."
    venv.create(folder, with_pip=True)
    python = folder/("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([python, "-m", "pip", "install", "-q", *OLD], check=True, capture_output=True, text=True)
    own = subprocess.run([python, "-c", "import site; print(site.getsitepackages()[-1])"], check=True, capture_output=True, text=True).stdout.strip()
    with open(f"{own}/visionlab-tests.pth", "w") as f: f.write("".join(f"import site; site.addsitedir({o!r})\n" for o in site.getsitepackages()))
    return python


def errors_of_nothing(empty):
    "List what the front end itself complains about: Notebook 7.6 misses a schema on any page."
    empty.open("1 + 1", name="empty.ipynb")
    empty.page.wait_for_timeout(1500)
    empty.page.close()
    empty.server.stop_kernels()
    return set(empty.errors)


def unusual(book): return [o for o in book.errors if o not in book.usual]


@pytest.fixture(scope="module", params=["notebook 7", "colab's versions"])
def book(request, tmp_path_factory):
    "One notebook with the views."
    folder = tmp_path_factory.mktemp("elsewhere")
    if request.param == "notebook 7": kind, command = Notebook7, lambda *o: lab_command(*o, "notebook", "JupyterNotebookApp")
    else:
        python, kind = old_python(tmp_path_factory.mktemp("old")/"venv"), Classic
        command = lambda root, port, token: [python, "-m", "notebook", "--allow-root", "--no-browser", "--ip=127.0.0.1", f"--port={port}", f"--NotebookApp.token={token}", f"--NotebookApp.notebook_dir={root}"]
    with jupyter(folder, command) as server, chromium() as browser:
        book = kind(server, browser, tmp_path_factory.mktemp("screens"))
        book.usual = errors_of_nothing(kind(server, browser, book.shots))
        book.open(*CELLS, name="views.ipynb")
        yield book
        book.errors = unusual(book)
        book.close()


def picture(name): return f".visionlab-{name.lower()} .visionlab-picture .widget-html-content"


def test_the_versions_are_those_meant(book):
    said = book.page.locator(book.output, has_text="versions").first.inner_text().split()
    assert (said[1:3] == ["7.7.1", "7.34.0"]) == isinstance(book, Classic)


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_is_drawn(book, name):
    page = book.page
    page.locator(picture(name)).first.wait_for()
    empty = page.evaluate("s => [...document.querySelectorAll(s + ' img')].filter(o => !o.complete || !o.naturalWidth || !o.alt).length", picture(name))
    assert not empty and page.locator(picture(name)).first.inner_text().strip()
    if name not in ("ClassBalance", "LRPicker"): assert page.locator(f"{picture(name)} img").count() or name == "ConfusionExplorer"


def test_a_button_turns_the_page(book):
    book.changes(lambda: book.page.locator(".visionlab-batchgrid").get_by_role("button", name="next").click(), picture("BatchGrid"))
    assert "images 17–32" in book.page.locator(picture("BatchGrid")).inner_text()


def test_a_choice_changes_the_augmentation(book):
    book.changes(lambda: book.page.locator(".visionlab-augmentationstudio select").first.select_option("strong"), picture("AugmentationStudio"))


def test_a_decision_is_written(book):
    book.changes(lambda: book.page.locator(".visionlab-labelcleaner").get_by_role("button", name="keep").first.click(), picture("LabelCleaner"))
    with open(book.server.root/"labels.csv", newline="") as f: assert len(list(csv.DictReader(f))) == 1


def test_a_training_is_watched_and_stopped(book):
    chart = ".visionlab-livechart"
    book.page.locator(chart).first.scroll_into_view_if_needed()
    before = book.page.locator(chart).first.inner_html()
    book.page.wait_for_function("([s, a]) => document.querySelector(s).innerHTML !== a", arg=[chart, before])
    book.page.locator(chart).get_by_role("button", name="stop", exact=True).click()
    book.page.locator(book.output, has_text="stopped").first.wait_for()


def test_it_is_as_it_should_be_seen(book):
    "A picture to look at, and no script error."
    book.page.screenshot(path=book.shots/f"{type(book).__name__.lower()}.png", full_page=True)
    assert not unusual(book) and not book.page.get_by_text("Click to show javascript error").count()
