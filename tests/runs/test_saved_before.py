"What was saved before opens for ever: an export and a stopped run in tests/saved, written on 2026-12-01, before the pages moved into wings."
import shutil
from pathlib import Path

import pytest
import torch

from visionlab.export.load import load_model
from visionlab.models.classifier import ImageClassifier
from visionlab.runs.compare import list_runs
from visionlab.runs.config import TrainConfig
from visionlab.runs.evaluate import evaluate
from visionlab.runs.folder import exported
from visionlab.runs.train import train

pytestmark = pytest.mark.usefixtures("one_thread")
SAVED = Path(__file__).resolve().parents[1]/"saved"
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
PROBS = [.103887, .097289, .109120, .095364, .101849, .095353, .103037, .094470, .104813, .094818]
# what the third epoch gave in the training that was not stopped
THIRD = dict(train_loss=2.285688, valid_loss=2.274665, accuracy=.2, f1_macro=.114935)


def ramp(): return torch.arange(3*32*32, dtype=torch.float32).reshape(3, 32, 32)/3072


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONLAB_PROGRESS", "off")
    return Path(shutil.copytree(SAVED/"run", tmp_path/"run"))


def test_an_export_opens_and_gives_the_same_answer():
    answer = load_model(SAVED/"export", "cpu").predict(ramp())
    assert answer.label == "Pullover"
    assert answer.probs.tolist() == pytest.approx(PROBS, abs=1e-5)


def test_an_export_is_a_network_to_go_on_from():
    model = ImageClassifier(SAVED/"export", classes=CLASSES)
    assert (model.config.num_classes, model.config.in_chans, model.config.image_size) == (10, 1, (32, 32))


def test_a_stopped_run_is_listed(run):
    found = list_runs(run.parent)["run"]
    assert found.state == "stopped" and found.values("accuracy")[-1] == (2, pytest.approx(.1333, abs=1e-3))


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(run):
    config = TrainConfig.load(run/"config.yaml", out=str(run), resume_interrupted=True)
    learn = train(config, say=None)
    assert [row["epoch"] for row in learn.history] == [1, 2, 3]
    assert {k: learn.history[-1][k] for k in THIRD} == pytest.approx(THIRD, abs=1e-4)
    assert load_model(exported(run), "cpu").predict(ramp()).probs.tolist() == pytest.approx(PROBS, abs=1e-4)
    assert evaluate(run, split="test").scores["accuracy"] == pytest.approx(learn.validate("test")["accuracy"], abs=1e-6)
