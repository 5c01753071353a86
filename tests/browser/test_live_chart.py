"What a person sees of a training in JupyterLab: the chart moves, the buttons and the interrupt key stop, and a picture stays."
import json, re

import pytest
from lab import Notebook, serious

START = """
import os, time, torch
os.environ["VISIONLAB_PROGRESS"] = "html"
from torch import nn
from visionlab.training.learner import Learner
from visionlab.widgets import live_chart as live
from visionlab.widgets.live_chart import LiveChart
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
tens = [(torch.randn(8, 20, generator=g), torch.arange(8) % 3) for i in range(20)]
class Slow:
    def __iter__(self):
        for b in tens: time.sleep(.02); yield b
    def __len__(self): return len(tens)
def new(): return Learner((Slow(), tens), nn.Linear(20, 3), lr=1e-2, metrics=["accuracy", "f1_macro"], device="cpu")
learn = new()
"""
ROOT = ".visionlab-livechart"
LIVE = f"{ROOT} .visionlab-picture .widget-html-content"
STILL = ".jp-OutputArea-output [role='img']"
LINES = "s => [...document.querySelectorAll(s + ' path')].map(o => o.getAttribute('d')).join()"
EXECUTE = """async code => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    let said = ''; const future = kernel.requestExecute({code, store_history: false});
    future.onIOPub = m => { if (m.content.text) said += m.content.text; if (m.content.evalue) said += m.content.evalue; };
    await future.done; return said; }"""
INTERRUPT = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.interrupt()"


class Training(Notebook):
    "A notebook with a training in it."
    def ask(self, code): return self.page.evaluate(EXECUTE, f"print({code})").strip()
    def lines(self): return self.page.evaluate(LINES, LIVE)

    def moves(self, pixels=True):
        "Wait until the chart has other lines, and see other pixels."
        self.page.locator(f"{LIVE} svg").first.wait_for()
        shot = self.page.locator(ROOT).first.screenshot if pixels else object
        before, seen = self.lines(), shot()
        for _ in range(20):                                              # a new line may differ by less than a pixel
            self.page.wait_for_function(f"([s, a]) => ({LINES})(s) !== a", arg=[LIVE, before])
            if not pixels or shot() != seen: return
            before = self.lines()
        raise AssertionError("the lines moved, and no pixel did")

    def button(self, name): return self.page.locator(ROOT).get_by_role("button", name=name, exact=True)

    def still(self, text):
        "Wait until the buttons are gone and a picture says how it ended."
        self.page.locator(ROOT).wait_for(state="detached")
        self.page.locator(".jp-OutputArea-output", has_text=text).first.wait_for()
        assert self.page.locator(STILL).count() >= 3

    def seen(self, name, what=".jp-OutputArea-output:has(svg)"):
        self.page.locator(what).last.screenshot(path=self.shots/f"{name}.png")


@pytest.fixture
def book(lab, tmp_path_factory):
    book = Training(*lab, tmp_path_factory.mktemp("screens"))
    yield book
    book.close()


def test_the_stop_button_while_it_trains(book):
    book.open(START, "run = learn.fit(1000, background=True)\nrun", name="stop.ipynb")
    assert book.page.locator(ROOT).count() == 1                          # one display, though the value is shown, too
    for _ in range(3): book.moves()
    book.seen("live")
    assert serious(book.page) == []
    book.dark()
    book.moves()
    assert serious(book.page) == []
    book.seen("live-dark")
    colour = book.page.evaluate("s => getComputedStyle(document.querySelector(s + ' svg text')).fill", LIVE)
    assert sum(map(int, re.findall(r"\d+", colour)[:3])) > 500     # letters are light on dark
    book.button("stop").click()
    book.still("stopped after")
    book.seen("stopped-dark")
    assert book.ask("learn.interrupted, run.running, run.error") == "True False None"
    saved = json.dumps(book.page.evaluate("async () => { const c = window.jupyterapp.shell.currentWidget.context; await c.save(); return c.model.toJSON() }"))
    assert "stopped after" in saved and "<svg" in saved and "widget-view" not in saved


def test_stop_after_the_epoch_and_a_reload_while_it_trains(book):
    book.open(START, "run = learn.fit(1000, background=True)", name="epoch.ipynb")
    book.moves()
    book.page.evaluate("window.jupyterapp.shell.currentWidget.context.save()")
    book.page.reload()
    book.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    book.moves()                                                         # it is there again, and moves
    book.seen("reloaded")
    book.button("stop after this epoch").press("Enter")                  # from the keyboard
    book.page.wait_for_function("s => document.querySelector(s).innerText.includes('epochs in')", arg=LIVE)
    assert book.page.locator(ROOT).get_by_role("button").count() == 0    # nothing to press any more
    assert book.ask("learn.interrupted, learn.step % 20, len(learn.history) == learn.step//20") == "False 0 True"


def test_the_interrupt_key_in_both_modes(book):
    book.open(START, "live._RENEW = 1.\nrun = learn.fit(1000, background=True)", name="keys.ipynb")
    for _ in range(6): book.moves(pixels=False)                                      # across still pictures put behind the live one
    assert book.page.locator(f"{ROOT} .visionlab-picture").count() == 1
    book.page.evaluate(INTERRUPT)                                        # no cell runs
    book.still("stopped after")
    page = book.page
    page.evaluate("code => { window.done = window.jupyterapp.commands.execute('notebook:insert-cell-below').then(() => { window.jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel.setSource(code); return window.jupyterapp.commands.execute('notebook:run-cell'); }); return true }", "other = new()\nother.fit(1000, callbacks=[LiveChart()])")
    page.locator(".jp-OutputArea-output progress").wait_for()
    page.wait_for_function("document.querySelectorAll('.jp-OutputArea-output table tr').length > 4")
    page.evaluate(INTERRUPT)                                             # a cell trains
    page.wait_for_function("!document.querySelector('.jp-OutputArea-output progress')")
    assert book.ask("other.interrupted, other.step > 0, learn.step > 0") == "True True True"
    book.seen("interrupted")
