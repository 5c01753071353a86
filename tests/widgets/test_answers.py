"The pad answers whatever it is given, and the labelling asks for what is useful and keeps what it is told."
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from visionlab.widgets.predict_pad import PredictPad, uploaded
from visionlab.widgets.active_labels import ActiveLabels, doubt, spread_order
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ConfigError, UnknownOptionError
from visionlab.data.module import ImageDataModule
from visionlab.training.learner import Learner

pytestmark = pytest.mark.usefixtures("one_thread")
COLOURS = dict(blue=(20, 40, 220), green=(30, 200, 40), red=(220, 30, 20))


@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv("VISIONLAB_PROGRESS", "off")

def plain(colour, i=0): return Image.fromarray(np.clip(np.random.default_rng(i).normal(0, 12, (24, 24, 3)) + colour, 0, 255).astype(np.uint8))
def png(image, kind="PNG"):
    image.save(out := BytesIO(), kind)
    return out.getvalue()

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("answers")
    for name,colour in COLOURS.items():
        (root/"photos"/name).mkdir(parents=True)
        for i in range(10): plain(colour, i).save(root/"photos"/name/f"{i}.png")
    (root/"heap").mkdir()
    for i,colour in enumerate([*COLOURS.values(), (120, 120, 120)]*3): plain(colour, 50+i).save(root/"heap"/f"{i:02}.png")
    (root/"heap"/"notes.jpg").write_bytes(b"\xff\xd8\xff eggs, milk")
    return root

@pytest.fixture(scope="module")
def learn(place):
    dm = ImageDataModule(place/"photos", image_size=24, batch_size=10, val_split=.3)
    return Learner(dm, nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)), lr=2e-2, device="cpu").fit(30)


def test_uploads_of_both_ipywidgets():
    assert uploaded({"a.png":dict(metadata={}, content=b"x")}) == uploaded((dict(name="a.png", content=memoryview(b"x")),)) == [("a.png", b"x")]
    assert uploaded({}) == uploaded(()) == []

@pytest.mark.parametrize("source,words", [(b"eggs, milk", "not an image"), (b"", "empty"), (png(plain((1, 2, 3)))[:60], "Cannot read"), ("nowhere/x.png", "nowhere"), (np.zeros((3, 0, 3), np.uint8), ""), (7, "int")])
def test_what_is_no_picture_is_said(learn, source, words):
    pad = learn.predict_pad()
    pad.show(source)
    answer, = pad.answers
    assert answer.error and not answer.top and (words in answer.error or "read" in answer.error or "empty" in answer.error.lower()), answer.error
    assert "role='alert'" in pad.to_html() and pad.figure() is not None

def test_the_pad_says_what_the_learner_says(learn, place):
    pad = learn.predict_pad(2)
    pad.show([str(place/"photos"/"red"/"1.png"), png(plain((20, 40, 220), 3)), plain((30, 200, 40), 5)], ["a", None, "<b>"])
    assert [o.top for o in pad.answers][0] == learn.predict(place/"photos"/"red"/"1.png", topk=2).top and [len(o.top) for o in pad.answers] == [2]*3
    assert [o.top[0][0] for o in pad.answers] == ["red", "blue", "green"] and all(o.heat is not None for o in pad.answers)
    page = pad.to_html()
    assert "&lt;b&gt;" in page and "<b>" not in page and page.count("<img") == 6
    pad.clear()
    assert "Nothing here yet" in pad.to_html()

def test_a_pad_of_a_predictor_and_of_a_folder(learn, place, tmp_path):
    picture = plain((220, 30, 20), 9)
    assert PredictPad(learn.predictor()).show(picture).answers[0].top == learn.predict_pad().show(picture).answers[0].top

def test_a_model_without_maps(learn):
    flat = Learner(learn.data, nn.Sequential(nn.Flatten(), nn.Linear(24*24*3, 3)), device="cpu")
    answer, = flat.predict_pad().show(plain((9, 9, 9))).answers
    assert answer.heat is None and len(answer.top) == 3 and "for " not in flat.predict_pad().show(plain((9, 9, 9))).to_html()

def test_the_upload_control(learn):
    pad = learn.predict_pad()
    pad.widget
    pad._take(dict(new=(dict(name="x.png", content=memoryview(png(plain((220, 30, 20), 4)))),)))
    assert pad.answers[0].name == "x.png" and "x.png" in pad._picture.value
    assert {o for o in pad._repr_mimebundle_()} >= {"text/plain", "text/html"}


@pytest.mark.parametrize("by", ["margin", "entropy", "least"])
def test_doubts(by):
    p = np.array([[1, 0, 0], [.34, .33, .33], [.6, .3, .1]])
    d = doubt(p, by)
    assert d.argmax() == 1 and d.argmin() == 0 and (d >= -1e-9).all() and (d <= 1+1e-9).all()
    with pytest.raises(UnknownOptionError, match="margin"): doubt(p, "margins")

def test_copies_come_late():
    rng = np.random.default_rng(0)
    doubts = np.r_[np.full(200, .9), rng.uniform(.3, .8, 300)]
    vectors = np.r_[np.ones((200, 8)) + rng.normal(0, 1e-3, (200, 8)), rng.normal(0, 1, (300, 8))]
    order = spread_order(doubts, vectors)
    assert sorted(order) == list(range(500)) and (order[:16] < 200).sum() <= 2 and order[0] < 200
    assert (np.argsort(-doubts, kind="stable")[:16] < 200).all()                    # by doubt alone all sixteen were copies

def test_many_are_ordered_soon():
    import time
    rng = np.random.default_rng(0)
    began = time.process_time()
    assert len(spread_order(rng.random(100_000), rng.random((100_000, 64), np.float32))) == 100_000
    assert time.process_time()-began < 10

def test_labels_of_a_folder(learn, place, tmp_path):
    active = ActiveLabels(learn, place/"heap", path=tmp_path/"labels.csv")
    assert active.progress == (0, 12) and len(active.unreadable) == 1 and "1 file cannot be read" in active.to_html()
    front = active.rows[:4].tolist()
    active.press("1"); active.press("2"); active.press("x"); active.press("u"); active.press("z")
    assert active.edits.set_index("row")["value"].to_dict() == {front[0]:"blue", front[1]:"green"} and active.current == front[2]
    again = ActiveLabels(learn, place/"heap", "entropy", tmp_path/"labels.csv")
    assert again.progress == (2, 12) and again.current not in front[:2]
    grown = again.mended()
    assert len(Learner(grown, nn.Sequential(nn.Flatten(), nn.Linear(1728, 3)), device="cpu").fit(1).train_dl.ids) == len(learn.train_dl.ids) + 2
    table = Catalog.from_csv(again.write(tmp_path/"new.csv"), allow_outside=True)
    assert dict(zip((Path(o).name for o in table.frame["path"]), table.frame["label"])) == dict(zip((Path(o).name for o in again.labels["path"]), again.labels["label"]))
    assert len(learn.data.catalog) == 30                                             # the learner's own data are as they were

def test_keys_typed_anywhere_in_the_field(learn, place, tmp_path):
    "A click into the field may leave the cursor before what was typed."
    active = ActiveLabels(learn, place/"heap", path=tmp_path/"labels.csv")
    active.widget
    for text in ("1", "x1", "xu1", "xu12"): active._keys.value = text
    assert active.edits["value"].tolist() and sorted(active.edits["value"]) == ["blue", "green"]

def test_many_classes_have_the_likeliest_on_the_keys(learn, place, tmp_path, monkeypatch):
    active = ActiveLabels(learn, place/"heap", path=tmp_path/"labels.csv")
    monkeypatch.setattr(ActiveLabels, "_fixed", property(lambda self: False))
    row = active.current
    assert active.offered() == [c for c,_ in active.suggestions(row)]
    active.widget
    active._other.value = "green"
    assert active.edits["value"].tolist() == ["green"]

def test_what_cannot_be_labelled_here(learn, place, tmp_path):
    with pytest.raises(ConfigError, match="no image without a label"): ActiveLabels(learn)
    with pytest.raises(UnknownOptionError, match="margin"): ActiveLabels(learn, place/"heap", by="margins")
    sample = Learner(ImageDataModule("FashionSample", max_samples=100, batch_size=50), nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), device="cpu")
    with pytest.raises(ConfigError, match="cannot be joined"): ActiveLabels(sample, place/"heap")
    active = ActiveLabels(learn, place/"heap", path=tmp_path/"labels.csv")
    with pytest.raises(UnknownOptionError, match="green"): active.label("gren")

def test_unlabelled_rows_of_the_learners_own_data(place, tmp_path):
    catalog = Catalog.from_folder(place/"photos")
    frame = catalog.frame.copy()
    frame.loc[frame.index[::5], "label"] = None
    from dataclasses import replace
    learn = Learner(ImageDataModule(replace(catalog, frame=frame), image_size=24, batch_size=10, val_split=.3), nn.Sequential(nn.Flatten(), nn.Linear(1728, 3)), device="cpu")
    active = learn.label_active(path=tmp_path/"labels.csv")
    assert active.progress == (0, 6)
    active.press("1")
    assert active.mended().catalog.frame["label"].isna().sum() == 5
