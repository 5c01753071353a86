"What a person sees of the pad and of labelling in JupyterLab: a file is dropped or chosen, a key is pressed, and the page and the file change."
import base64, csv, io
import numpy as np, pytest
from lab import Notebook, Seen, serious
from PIL import Image
from skimage import data as photos

KINDS = dict(cat=photos.chelsea, coffee=photos.coffee, rocket=photos.rocket)
START = """
import torch
from visionlab.all import *
from visionlab.widgets.predict_pad import PredictPad
from visionlab.widgets.active_labels import ActiveLabels
torch.set_num_threads(1)
learn = Learner(ImageDataModule("photos", image_size=64, batch_size=8, val_split=.25), "resnet9", lr=4e-3, device="cpu").fit(3)
"""
CELLS = START, "pad = learn.predict_pad()\npad", 'active = learn.label_active("heap", path="heap.csv")\nactive'


def cut(photo, i, side=160): return Image.fromarray(np.ascontiguousarray(photo[(37*i) % (photo.shape[0]-side):][:side, (53*i) % (photo.shape[1]-side):][:, :side]))

def pictures(root):
    "Write a folder of three classes, and a heap without labels, with a file that is none."
    for name, photo in KINDS.items():
        (root/"photos"/name).mkdir(parents=True); (root/"heap").mkdir(exist_ok=True)
        for i in range(9): cut(photo(), i).save(root/"photos"/name/f"{i}.jpg")
        for i in range(4): cut(photo(), 30+i).save(root/"heap"/f"{name}{i}.jpg")
    (root/"heap"/"broken.jpg").write_bytes(b"\xff\xd8\xff nothing")

def png(photo):
    cut(photo, 5).save(out := io.BytesIO(), "PNG")
    return out.getvalue()

DROP = """([root, name, data]) => { const v = document.querySelector(root), t = new DataTransfer(), raw = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    t.items.add(new File([raw], name, {type: 'image/png'}));
    for (const kind of ['dragenter', 'dragover', 'drop']) v.dispatchEvent(new DragEvent(kind, {dataTransfer: t, bubbles: true, cancelable: true})); }"""


@pytest.fixture(scope="module")
def book(lab, tmp_path_factory):
    "One notebook with both views."
    book = Notebook(*lab, tmp_path_factory.mktemp("screens"))
    pictures(book.server.root)
    book.open(*CELLS, name="answers.ipynb")
    yield book
    book.close()


def test_predict_pad(book):
    pad = Seen(book, "visionlab-predictpad")
    assert "Nothing here yet" in pad.text()
    with book.page.expect_file_chooser() as chooser: pad.find("button.visionlab-upload, .visionlab-upload button").first.click()
    chooser.value.set_files([dict(name="mug.png", mimeType="image/png", buffer=png(photos.coffee()))])
    pad.wait("mug.png")
    assert pad.alts()[0] == "mug.png" and "what speaks for" in pad.alts()[1] and "%" in pad.text()
    book.page.evaluate(DROP, [pad.root, "dropped.png", base64.b64encode(png(photos.chelsea())).decode()])
    pad.wait("dropped.png")
    book.page.evaluate(DROP, [pad.root, "notes.png", base64.b64encode(b"eggs, milk").decode()])
    pad.wait("notes.png")
    assert "Not an image" in pad.text() or "no image" in pad.text().lower() or "not a" in pad.text().lower()
    pad.shot("pad")
    assert serious(book.page) == []                                        # of this view and the next, with pictures and an error in it
    pad.find("button", ).filter(has_text="clear").click()
    pad.wait("Nothing here yet")


def test_active_labels(book):
    active = Seen(book, "visionlab-activelabels")
    assert "0 of 12 labelled" in active.text() and "1 file cannot be read" in active.text()
    assert active.find("button").filter(has_text="cat (1)").count() == 1 and active.find("button").filter(has_text="rocket (3)").count() == 1
    active.find(".visionlab-keys input").press_sequentially("1", delay=20)
    active.wait("1 of 12 labelled")
    active.find("button").filter(has_text="rocket (3)").click()
    active.wait("2 of 12 labelled")
    active.find(".visionlab-keys input").press_sequentially("x", delay=20)
    active.wait("3 of 12 labelled")
    active.find("button").filter(has_text="undo").click()
    active.wait("2 of 12 labelled")
    active.shot("active")
    given = [o["value"] for o in csv.DictReader((book.server.root/"heap.csv").open())]
    assert sorted(given) == ["cat", "rocket"]
    book.restart()
    Seen(book, "visionlab-activelabels").wait("2 of 12 labelled")          # kept over a new kernel
    assert not book.errors
