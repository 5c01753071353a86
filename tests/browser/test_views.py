"What a person sees of the views in JupyterLab: a control is used, and the picture, the text or a file changes."
import csv, json
import numpy as np, pytest
from lab import Notebook, Seen, serious, without_errors
from PIL import Image
from skimage import data as photos

VIEWS = ("BatchGrid", "ClassBalance", "AugmentationStudio", "LabelCleaner", "DataDoctor", "ConfusionExplorer", "LRPicker")
START = """
import numpy as np, torch
from dataclasses import replace
from visionlab.all import *
from visionlab.widgets import label_cleaner as decisions
from visionlab.widgets import confusion as explore
from visionlab.interpret.interpretation import Interpretation
torch.set_num_threads(1)
dm = ImageDataModule("FashionSample", batch_size=32)
val = dm.catalog.subset("val")
rng = np.random.default_rng(0)
y = val.targets().copy(); wrong = rng.choice(len(y), 30, replace=False); y[wrong] = (y[wrong] + 3) % 10
p = rng.random((len(y), 10)) + 9*np.eye(10)[val.targets()]; p /= p.sum(1, keepdims=True)
pixels = dm.catalog.pixels
found = Interpretation(torch.tensor(p).float(), torch.tensor(y), -torch.tensor(p).gather(1, torch.tensor(y)[:,None])[:,0].log().float(), dm.classes, val.frame["path"].tolist(), val.frame.index.to_numpy(), pixels.__getitem__)
labelled = dm.catalog.frame.copy(); labelled.loc[val.frame.index, "label"] = [dm.classes[i] for i in y]
spoiled = replace(dm.catalog, frame=labelled)
learn = Learner(ImageDataModule(dm.catalog.sample(1200), batch_size=32), "resnet9", device="cpu", lr=4e-3).fit(1)
"""
CLEANER = 'cleaner = decisions.LabelCleaner(spoiled, found, path="labels.csv")\ncleaner'
CELLS = (START, "dm.show_batch()", "uneven = replace(dm.catalog, frame=dm.catalog.frame.query('label != \"Bag\" or index % 9 == 0'))\nImageDataModule(uneven).class_balance()",
         "dm.preview_augmentations(n_images=3, n_draws=4)", CLEANER, 'check("pictures", progress=False, workers=1).mend("pictures.csv")',
         "explore.ConfusionExplorer(found, lambda ids, name: (o := learn.grad_cam(ids, [name]*len(ids))) and [o.over(i) for i in range(len(o))])",
         "learn.pick_lr(learn.lr_find(start=1e-5, end=1, steps=12))")


def pictures(root):
    "Write a folder with a leak and a dark photograph."
    for split, n in dict(train=4, test=2).items():
        for label, photo in dict(cat=photos.chelsea(), coffee=photos.coffee()).items():
            (root/split/label).mkdir(parents=True)
            for i in range(n): Image.fromarray(np.rot90(photo[20*i:20*i+200, 40*i+100*(split == "test"):][:, :260], i % 4).copy()).save(root/split/label/f"{i}.jpg")
    (root/"test/coffee/copy.jpg").write_bytes((root/"train/coffee/1.jpg").read_bytes())
    Image.fromarray(photos.chelsea()[:200, :260]//8).save(root/"train/cat/night.jpg")


@pytest.fixture(scope="module")
def book(lab, tmp_path_factory):
    "One notebook with all views."
    book = Notebook(*lab, tmp_path_factory.mktemp("screens"))
    pictures(book.server.root/"pictures")
    book.open(*CELLS, name="views.ipynb")
    yield book
    book.close()

REDNESS = """s => Math.max(...[...document.querySelectorAll(s + ' img')].map(o => {
    const c = document.createElement('canvas'), g = c.getContext('2d'); c.width = o.naturalWidth; c.height = o.naturalHeight; g.drawImage(o, 0, 0);
    const p = g.getImageData(0, 0, c.width, c.height).data; let most = 0;
    for (let i = 0; i < p.length; i += 4) most = Math.max(most, p[i] - p[i+2]);
    return most; }))"""


@pytest.fixture
def seen(book, request):
    "Find the view a test is about."
    with without_errors(book): yield Seen(book, f"visionlab-{request.param.lower()}")


def of(name): return pytest.mark.parametrize("seen", [name], indirect=True)


@of("BatchGrid")
def test_batch_grid(seen):
    assert len(seen.images()) == 16 and "images 1–16" in seen.text()
    first = seen.images()
    seen.changes(lambda: seen.button("next").click())
    assert "images 17–32" in seen.text() and not set(first) & set(seen.images())
    seen.changes(lambda: seen.find("select").first.select_option("val"))
    assert seen.text().startswith("val, epoch 1, images 1–16")
    seen.changes(lambda: seen.button("raw images").press("Enter"))       # from the keyboard
    assert "as decoded" in seen.text()
    seen.shot("grid")


@of("ClassBalance")
def test_class_balance(seen):
    names = lambda: [o.strip() for o in seen.find(".vl-rowbutton").all_inner_texts()]
    by_count = names()
    assert by_count[-1] == "Bag" and len(by_count) == 10
    seen.button("by name").click()
    seen.page.wait_for_function("([s, t]) => [...document.querySelectorAll(s)].at(-1).innerText.trim() === t", arg=[f"{seen.root} .vl-rowbutton", sorted(by_count)[-1]])
    assert names() == sorted(by_count) != by_count
    widths = seen.page.evaluate("s => [...document.querySelectorAll(s + ' .vl-bars:not(.h)')].map(o => o.querySelector('i').offsetWidth)", seen.root)
    assert widths[1] < widths[0]/4                                        # the bar of Bag is a short one
    seen.shot("balance")


@of("AugmentationStudio")
def test_augmentation_studio(seen):
    def code(condition):
        "The pictures come first; wait until the code follows."
        seen.page.wait_for_function("([s, c]) => eval('t => ' + c)(document.querySelector(s + ' pre').innerText)", arg=[seen.root, condition])
    first = seen.images()
    assert len(first) == 15
    seen.changes(lambda: seen.find("select").first.select_option("strong"))
    strong = seen.images()
    assert strong[0] == first[0] and strong[1] != first[1]               # the image as in validation stays
    code("t.includes(\"preset('strong'\")")
    seen.changes(lambda: seen.find("select", has=seen.page.locator("option", has_text="add an operation")).select_option("VerticalFlip"))
    code("t.includes('VerticalFlip()')")
    seen.page.locator(seen.root).get_by_text("with probability p. ").last.wait_for()
    assert " ms, on the batch" in seen.page.locator(seen.root).inner_text() and seen.images() != strong
    seen.changes(lambda: seen.page.locator(seen.root).get_by_role("slider", name="draws").press("PageDown"))       # a slider from the keyboard, found by its name
    seen.changes(lambda: seen.page.locator(seen.root).get_by_role("checkbox", name="HorizontalFlip").uncheck())
    code("!t.includes('HorizontalFlip')")
    seen.shot("studio")
    seen.find("button[title='Move Affine later']").press("Enter")                      # a step moves, and the keyboard's place with it
    code("t.lastIndexOf('Affine(') > t.lastIndexOf('OneOf(')")
    seen.page.wait_for_function("document.activeElement.title === 'Move Affine later'")
    seen.button("torchvision").press("Enter")
    code("t.includes('v2.Compose')")
    seen.book.context.grant_permissions(["clipboard-read", "clipboard-write"])
    seen.button("copy").click()
    seen.page.wait_for_function("navigator.clipboard.readText().then(o => o.includes('v2.Compose'))")
    seen.changes(lambda: seen.button("whole pictures").click())
    assert "cuts out" in seen.text()
    seen.shot("studio-whole")


@of("LabelCleaner")
def test_label_cleaner(seen):
    assert "0 of 600 decided" in seen.text()
    front = seen.images()[0]
    seen.changes(lambda: seen.find(".visionlab-keys input").press_sequentially("1", delay=20))
    seen.wait("1 of 600 decided")
    assert seen.images()[0] != front
    seen.find(".visionlab-keys input").press_sequentially("kx", delay=20)
    seen.wait("3 of 600 decided")
    file = seen.book.server.root/"labels.csv"
    assert [o["action"] for o in csv.DictReader(file.open())] == ["relabel", "keep", "exclude"]
    seen.button("undo").click()
    seen.wait("2 of 600 decided")
    seen.find("input[list]").fill("Trouser")
    seen.find("input[list]").press("Enter")
    seen.wait("3 of 600 decided")
    assert [o["value"] for o in csv.DictReader(file.open())][-1] == "Trouser"
    seen.changes(lambda: seen.find("select").nth(0).select_option("Coat"))
    seen.shot("cleaner")


@of("DataDoctor")
def test_data_doctor(seen):
    assert "leak" in seen.text() and len(seen.images()) == 2             # a pair side by side
    seen.changes(lambda: seen.button("as proposed (a)").click())
    assert "exclude" in [o["action"] for o in csv.DictReader((seen.book.server.root/"pictures.csv").open())]
    seen.changes(lambda: seen.find("select").first.select_option(label="dark (1)"))
    assert "night.jpg" in seen.text()
    seen.shot("doctor")


@of("ConfusionExplorer")
def test_confusion_explorer(seen):
    before = seen.text()
    cell = seen.find("button[title*='taken for']").nth(1)
    name = cell.get_attribute("title")
    seen.changes(cell.click)
    assert seen.text() != before and name.split(" taken for ")[0] in seen.text()
    plain = seen.images()
    assert plain
    seen.changes(lambda: seen.button("Grad-CAM").press("Enter"))
    assert seen.images() != plain and "bright is where" in seen.text()
    assert seen.page.evaluate(REDNESS, seen.picture) > 20                # of grey pictures
    seen.shot("confusion")


@of("LRPicker")
def test_lr_picker(seen):
    assert "is marked" in seen.text()
    mark = lambda: seen.page.locator(f"{seen.picture} circle").get_attribute("cx")
    before = mark()
    seen.changes(lambda: seen.find(".noUi-handle").press("PageDown"))
    assert mark() != before
    seen.changes(lambda: seen.button("use for training").click())
    assert "The next fit begins at" in seen.text()
    seen.shot("picker")


@pytest.mark.parametrize("seen", ["LabelCleaner"], indirect=True)
def test_dark_theme_and_reload(seen):
    "Text is light on dark, and a decision is there after the kernel was started again."
    book = seen.book
    book.dark()
    grey = lambda rule: np.mean(json.loads("[" + rule.split("(")[1].rstrip(")") + "]")[:3])
    style = seen.page.evaluate("s => {const o = document.querySelector(s); return [getComputedStyle(o).color, getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor]}", f"{seen.picture} figcaption")
    assert grey(style[0]) - grey(style[1]) > 100
    for name in VIEWS: Seen(book, f"visionlab-{name.lower()}").shot(f"dark-{name.lower()}")
    file = book.server.root/"labels.csv"
    said = file.read_bytes()
    book.restart()
    view = Seen(book, "visionlab-labelcleaner")
    view.wait("3 of 600 decided")
    assert file.read_bytes() == said


def test_no_serious_barrier_in_dark_and_light(book):
    "axe-core looks at all views on one page, in both themes; it would see a picture without a text and a slider without a name."
    assert serious(book.page) == []                                        # dark, as the test before left it
    book.page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
    book.page.wait_for_function("document.body.dataset.jpThemeLight === 'true'")
    assert serious(book.page) == []
    book.page.evaluate("document.querySelector('.visionlab-view img').removeAttribute('alt')")
    assert any("image-alt" in o for o in serious(book.page))


def test_decisions_survive_a_reloaded_page(book):
    "The kernel lives on, the page is another: what was decided in the doctor and the cleaner is there."
    root, page = book.server.root, book.page
    said = {name: (root/name).read_bytes() for name in ("labels.csv", "pictures.csv")}
    page.reload()
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    page.wait_for_function("window.jupyterapp !== undefined", timeout=60_000)
    book.run()
    assert "3 of 600 decided" in Seen(book, "visionlab-labelcleaner").text()
    doctor = Seen(book, "visionlab-datadoctor")
    doctor.find("select").first.select_option(label="leak (1)")
    assert "1 of " in doctor.text() or "decided" in doctor.text()
    assert {name: (root/name).read_bytes() for name in said} == said and b"exclude" in said["pictures.csv"]
