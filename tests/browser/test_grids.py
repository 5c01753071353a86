"Browsing, the batch the loss gets, the balance, the rate and large confusion matrices in JupyterLab, with mouse and keyboard, in light and dark."
import json
import numpy as np
import pytest
from lab import Notebook, Seen, without_errors

START = """
import numpy as np, pandas as pd, torch
from dataclasses import replace
from torch import nn
from visionlab.all import *
from visionlab.widgets import confusion as explore
from visionlab.callbacks.lr_find import LRFound
from visionlab.interpret.interpretation import Interpretation
torch.set_num_threads(1)
rng = np.random.default_rng(0)
dm = ImageDataModule("FashionSample", batch_size=32)
learn = Learner(dm, nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), device="cpu", lr=1e-3, class_weights=[1]*6 + [3] + [1]*3, callbacks=[Mix(mixup=1.)])

def answers(n, classes, several=False):
    names = [f"a kind of thing no. {i}" for i in range(classes)]
    y = torch.as_tensor((rng.random((n, classes)) < .3).astype(np.float32)) if several else torch.as_tensor(rng.integers(0, classes, n))
    p = torch.as_tensor(rng.random((n, classes)).astype(np.float32))
    if several: p = (.35*p + .6*y).clamp(0, 1)
    else: p = (4*p + 4*nn.functional.one_hot(y, classes) + 3.5*nn.functional.one_hot((y + 1) % classes, classes)*(torch.rand(n, 1) < .3)).softmax(1)
    pixels = dm.catalog.pixels
    return Interpretation(p, y, torch.rand(n), names, [f"{i}.png" for i in range(n)], np.arange(n), pixels.__getitem__, "multilabel" if several else "multiclass")

labels = [f"species {i % 1000:03}" for i in range(3000)] + [f"species {i % 40:03}" for i in range(4000)]
thousand = replace(dm.catalog, frame=dm.catalog.frame.assign(label=labels), classes=sorted(set(labels)))
tags = np.array(["beach", "boat", "dog", "night", "people", "sea"])
has = rng.random((7000, 6)) < .25
has[:, 5] |= has[:, 1]; has[:, 0] &= ~has[:, 3]
tagged = replace(dm.catalog, frame=dm.catalog.frame.assign(label=[tuple(tags[o]) for o in has]), classes=list(tags), task="multilabel")
lrs = np.geomspace(1e-6, 10, 100)
curve = LRFound(list(lrs), list(2.3 - 1.2*np.exp(-(np.log10(lrs)+1.5)**2/2) + np.maximum(0, np.log10(lrs)+.5)**2*9), dict(valley=4e-3, steep=8e-3, minimum=2e-2))
"""
VIEWS = {"a": "dm.catalog.browse('index > 10')", "b": "learn.show_batch(12)", "c": "ImageDataModule(thousand).class_balance()", "d": "tagged.class_balance()",
         "e": "explore.ConfusionExplorer(answers(6000, 120))", "f": "explore.ConfusionExplorer(answers(400, 40, several=True))", "g": "learn.pick_lr(curve)"}
CELLS = [START] + [f"view = {code}\nview.widget.add_class('vl-test-{name}')\nview" for name, code in VIEWS.items()]


@pytest.fixture(scope="module")
def book(lab, tmp_path_factory):
    "One notebook with all of them."
    book = Notebook(*lab, tmp_path_factory.mktemp("grids"))
    book.open(*CELLS, name="grids.ipynb")
    yield book
    book.close()


class Grid(Seen):
    "A view with rows of figures, which may have another inside."
    @property
    def shown(self): return self.page.locator(self.picture).last
    def wait(self, text): self.page.wait_for_function("([s, t]) => document.querySelector(s).innerText.includes(t)", arg=[self.root, text])
    def count(self, selector, n): self.page.wait_for_function("([s, n]) => [...document.querySelectorAll(s)].filter(o => o.offsetParent).length === n", arg=[f"{self.root} {selector}", n])
    def titles(self): return self.page.evaluate("s => [...document.querySelectorAll(s + ' figure')].map(o => o.title)", self.root)


@pytest.fixture
def seen(book, request):
    with without_errors(book): yield Grid(book, f"vl-test-{request.param}")


def of(name): return pytest.mark.parametrize("seen", [name], indirect=True)


@of("a")
def test_browse(seen):
    assert "images 1–24 of 6,989" in seen.text() and all("28 × 28 px" in o for o in seen.titles())
    query = seen.all.get_by_label("query")
    query.fill("label == 'Bag' and split == 'test'"); query.press("Enter")
    seen.wait("1–24 of 100")
    assert len(seen.titles()) == 24 and all(" · Bag · test · " in o for o in seen.titles())
    query.fill("labell == 'Bag'"); query.press("Enter")
    seen.wait("Did you mean label")
    assert len(seen.titles()) == 24                                       # the pictures stay
    query.fill("label == 'Bag'"); query.press("Enter")
    seen.wait("of 700")
    page = seen.all.get_by_label("page")
    page.fill("30"); page.press("Enter")
    seen.wait("697–700 of 700")
    assert len(seen.titles()) == 4
    seen.button("previous").press("Enter")
    seen.wait("673–696 of 700")
    seen.shot("browse")


@of("b")
def test_mixed_batch(seen):
    captions = lambda: seen.all.locator("figcaption").all_inner_texts()
    assert "as the loss gets them" in seen.text() and any("%" in o for o in captions()) and all("×" in o for o in captions())
    assert any("counts" in o and "28 × 28 px" in o for o in seen.titles())
    seen.button("next").click()
    seen.wait("batch 2 of")
    seen.shot("mixed")
    seen.all.get_by_role("checkbox", name="mixed").uncheck()
    seen.wait("as the model sees them")
    assert not any("%" in o for o in captions())


@of("c")
def test_balance_of_a_thousand_classes(seen):
    rows = seen.all.locator(".vl-rowbutton:visible")
    assert rows.count() == 20 and "classes 1–20 of 1,000" in seen.text()
    rows.nth(3).click()                                                   # on the bar
    name = rows.nth(3).inner_text().strip("▸ \n")
    seen.page.wait_for_function("s => document.querySelectorAll(s + ' figure').length > 0", arg=seen.root)
    assert all(f" · {name} · " in o for o in seen.titles())
    rows.nth(3).press("Tab")                                              # the next class, from the keyboard
    style = seen.page.evaluate("() => [document.activeElement.innerText, getComputedStyle(document.activeElement).outlineStyle, parseFloat(getComputedStyle(document.activeElement).outlineWidth)]")
    assert style[0].strip() == rows.nth(4).inner_text().strip() and style[1] == "solid" and style[2] >= 2
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_function("([s, t]) => document.querySelector(s + ' figure').title.includes(t)", arg=[seen.root, f" · {style[0].strip()} · "])
    seen.all.get_by_label("search").fill("species 99")
    seen.wait("classes 1–10 of 10")
    seen.count(".vl-rowbutton", 10)
    seen.button("balanced sampling").click()
    seen.wait("drawn an epoch")
    seen.button("use for training").click()
    seen.wait("trains with balanced sampling from its next fit on")
    seen.shot("balance-thousand")


@of("d")
def test_pairs(seen):
    seen.button("pairs").click()
    seen.wait("by chance")
    rows = seen.all.locator(".vl-rowbutton:visible")
    seen.wait("boat + sea")
    seen.count(".vl-rowbutton", 15)                                       # all pairs of six classes
    assert {rows.nth(k).inner_text().strip() for k in (0, 1)} == {"boat + sea", "beach + night"}
    rows.filter(has_text="boat + sea").click()
    seen.page.wait_for_function("s => document.querySelectorAll(s + ' figure').length > 0", arg=seen.root)
    assert all("boat" in o and "sea" in o for o in seen.titles())
    seen.shot("pairs")


@of("e")
def test_confusion_of_many_classes(seen):
    cells = seen.all.locator("button[title*='taken for']")
    assert 20 <= cells.count() <= 400
    seen.shot("confusion-120")
    seen.all.get_by_label("classes").fill("no. 117")
    seen.page.wait_for_function("s => [...document.querySelectorAll(s + \" button[title*='taken for']\")].every(o => /no\\. 11[678]|no\\. 0|no\\. \\d+/.test(o.title)) && document.querySelectorAll(s + \" button[title^='a kind of thing no. 117 taken for']\").length > 0", arg=seen.root)
    cell = seen.all.locator("button[title='a kind of thing no. 117 taken for a kind of thing no. 118']")
    n = int(cell.inner_text())
    cell.click()
    seen.wait(f"thing no. 118: {n:,} image")
    assert len(seen.titles()) == min(n, 24) and all("right" in o for o in seen.all.locator("figcaption").all_inner_texts())
    seen.shot("confusion-search")


@of("f")
def test_confusion_of_several_classes(seen):
    cell = seen.all.locator("button[title$=', found']").first
    n, name = int(cell.inner_text()), cell.get_attribute("title").split(",")[0]
    cell.click()
    seen.wait(f"found: {n:,} images")
    first = seen.titles()
    seen.button("next images").click()
    seen.wait("25–")
    assert not set(first) & set(seen.titles()) and all(name in o for o in seen.titles())
    seen.shot("confusion-several")


@of("g")
def test_click_on_the_curve(seen):
    svg = seen.all.locator("svg")
    svg.scroll_into_view_if_needed()
    box, mark = svg.bounding_box(), lambda: float(seen.all.locator("circle").get_attribute("cx"))
    assert box["width"] == 620 and {"valley", "steep", "minimum"} <= set(svg.locator("text").all_text_contents())
    for x, y in ((200, 60), (430, 150), (52, 100), (600, 30)):
        before = mark()
        seen.page.mouse.click(box["x"] + x, box["y"] + y)
        seen.page.wait_for_function("([s, a]) => document.querySelector(s + ' circle').getAttribute('cx') !== a", arg=[seen.root, f"{before:.1f}"])
        assert abs(mark() - x) <= 4, (x, mark())
    over = seen.page.evaluate("([x, y]) => document.elementFromPoint(x, y).title", [box["x"] + 430, box["y"] + 150])
    assert ": loss " in over
    rate = 10**(-6 + 7*(mark() - 46)/560)
    seen.button("use for training").press("Enter")
    seen.wait("The next fit begins at")
    assert float(seen.text().split("The next fit begins at ")[1].split()[0].rstrip(".")) == pytest.approx(rate, rel=.02)
    seen.shot("picker")


def test_dark(book):
    "Names and numbers are light on dark; the pictures are looked at."
    book.dark()
    grey = lambda rule: np.mean(json.loads("[" + rule.split("(")[1].rstrip(")") + "]")[:3])
    ground = grey(book.page.evaluate("getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor"))
    for name, what in dict(a="figcaption", b="figcaption", c=".vl-rowbutton", d=".vl-bars span:last-child", e="figcaption", g="svg text").items():
        seen = Grid(book, f"vl-test-{name}")
        colour = "fill" if name == "g" else "color"
        assert grey(seen.page.evaluate(f"s => getComputedStyle(document.querySelector(s)).{colour}", f"{seen.root} {what}")) - ground > 100, name
    for name in VIEWS: Grid(book, f"vl-test-{name}").shot(f"dark-{name}")
