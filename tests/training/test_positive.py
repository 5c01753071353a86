"Two classes from training to evaluation: which of them is scored, by what name, and evening them out once."
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import visionlab.callbacks.one_cycle
from visionlab.callbacks.one_cycle import Schedule
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ConfigError
from visionlab.data.module import ImageDataModule
from visionlab.runs.evaluate import evaluate
from visionlab.training.learner import Learner
from visionlab.training.schedules import Plateau
from visionlab.callbacks.stopping import EarlyStopping, KeepBest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv("VISIONLAB_PROGRESS", "off")


def two(n=40, rare=10):
    "A catalog of two classes of noise, one brighter than the other."
    labels = ["abnormal" if i % n < rare else "normal" for i in range(n)]
    pixels = np.random.default_rng(0).integers(0, 128, (n, 8, 8, 3), dtype=np.uint8)
    pixels[np.array(labels) == "normal"] += 60
    frame = pd.DataFrame(dict(path=[f"{i:02}.png" for i in range(n)], label=labels, split=["val" if i % 2 else "train" for i in range(n)]))
    return Catalog(frame, ["abnormal", "normal"], source="two", pixels=pixels)


def data(**kw): return ImageDataModule(two(), image_size=8, batch_size=8, num_workers=0, **kw)


def net(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))


def learner(dm=None, **kw): return Learner(dm or data(), net(), metrics=["f1_binary", "recall_binary"], lr=1e-3, device="cpu", **kw)


@pytest.mark.parametrize("positive,k", [(None, 1), ("abnormal", 0)])
def test_the_column_and_the_start_of_a_fit_name_the_class(positive, k, monkeypatch, capsys):
    monkeypatch.setenv("VISIONLAB_PROGRESS", "plain")
    learn = learner(positive=positive)
    name = learn.classes[k]
    learn.fit(1)
    assert {f"f1/{name}", f"recall/{name}"} <= set(learn.history[0])
    probs, y = learn.get_preds("val")
    hit = (probs.argmax(1) == k) & (y == k)
    assert learn.validate()[f"recall/{name}"] == pytest.approx((hit.sum()/(y == k).sum()).item())
    shown = capsys.readouterr()
    assert f"f1/{name}" in shown.out + shown.err
    assert any("'normal' is scored" in o and "positive='abnormal'" in o for o in learn.notes) == (positive is None)


def test_whoever_watches_finds_the_column():
    learn = learner(positive="abnormal")
    learn.fit(2, callbacks=[KeepBest("f1_binary"), EarlyStopping("f1_binary", patience=5), Schedule(Plateau(monitor="recall_binary"))])
    keep = next(o for o in learn.bound if isinstance(o, KeepBest))
    assert keep.best == max(o["f1/abnormal"] for o in learn.history)


@pytest.mark.parametrize("name,column", [("average_precision", "average_precision/normal"), ("f1_binary", "f1/normal"), ("f1/normal", "f1/normal"), ("auroc", "auroc"), ("f1score", "f1score/normal")])
def test_any_name_of_a_column_can_be_watched(name, column):
    learn = Learner(data(), net(), metrics=["average_precision", "f1_binary", "auroc", "BinaryF1Score"], lr=1e-3, device="cpu")
    learn.fit(1, callbacks=[keep := KeepBest(name)])
    assert keep.best == learn.history[0][column]


def test_the_choice_stays_with_the_model(tmp_path):
    learn = Learner(data(), "resnet9", metrics="autotrain", positive="abnormal", device="cpu", lr=1e-3).fit(1)
    assert "f1/abnormal" in learn.history[0]
    learn.export(tmp_path/"m")
    rows = learn.data.catalog
    for found in (evaluate(learn, rows, "val"), evaluate(tmp_path/"m", rows, "val"), evaluate(tmp_path/"m", rows, "val", positive="normal")):
        each = found.report()["f1"]
        name = next(o for o in found.scores if o.startswith("f1/")).removeprefix("f1/")
        assert found.scores[f"f1/{name}"] == pytest.approx(each[name], abs=1e-6)
        assert found.misses({"f1_binary": 2.})[0].split()[1:] == found.misses({f"f1/{name}": 2.})[0].split()[1:]
    assert name == "normal" and "f1/abnormal" in evaluate(tmp_path/"m", rows, "val").scores


def test_a_configuration_says_it(tmp_path):
    from visionlab.runs.config import TrainConfig
    from visionlab.runs.making import make_learner
    learn = make_learner(TrainConfig(data=str(tmp_path), metrics=["f1_binary"], positive="abnormal", device="cpu", model="resnet9", pretrained=False), data())
    assert [m.name for m in learn.metrics] == ["f1/abnormal"]
    with pytest.raises(ConfigError, match="abnormal"): learner(positive="abnorml")


@pytest.mark.parametrize("how", ["option", "module", "loss", "own"])
def test_evening_out_twice_is_warned_of(how):
    dm = data(balanced_sampling=True)
    if how == "module": dm.class_weights = "auto"
    own = dict(option=dict(class_weights="auto"), module={}, loss=dict(class_weights=[1., 3.]), own=dict(loss=nn.CrossEntropyLoss(weight=torch.tensor([1., 3.]))))[how]
    with pytest.warns(UserWarning, match="Balanced sampling and class weights"): learner(dm, **own)


def test_evening_out_once_is_not(recwarn):
    learner(data(balanced_sampling=True)); learner(class_weights="auto"); learner(data(balanced_sampling=True), class_weights=[1., 1.])
    assert not [o for o in recwarn if "Balanced" in str(o.message)]
