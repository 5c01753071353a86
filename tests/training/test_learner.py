"The loop beyond the page: signals, odd data, other people's loaders, the frozen body."
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import visionlab.callbacks.one_cycle
from visionlab.core.errors import ClassMismatchError, ConfigError, TrainingError, UnknownOptionError
from visionlab.data.module import ImageDataModule
from visionlab.training.events import Callback, CancelBatch, CancelEpoch, CancelFit
from visionlab.training.learner import Learner


@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv("VISIONLAB_PROGRESS", "off")


@pytest.fixture(scope="module")
def dm(): return ImageDataModule("FashionSample", batch_size=64)


def net(): return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def toy(n=40, batch=8, **kw):
    g = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(n, 1, 4, 4, generator=g), torch.randint(0, 3, (n,), generator=g)), batch, **kw)


def state(model): return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b): return all(torch.equal(v, b[k]) for k, v in a.items())


def test_plain_dataloaders_work():
    learn = Learner((toy(), toy()), net(), lr=1e-2)
    learn.fit(2)
    assert [r["epoch"] for r in learn.history] == [1, 2]
    assert set(learn.history[0]) == {"epoch", "train_loss", "valid_loss", "accuracy", "lr", "time"}


def test_training_alone_has_no_validation_columns():
    learn = Learner(toy(), net(), lr=1e-2).fit(1)
    assert "valid_loss" not in learn.history[0]
    with pytest.raises(ConfigError, match="no validation set"): learn.validate()


@pytest.mark.parametrize("opt", ["adamw", "adam", "sgd", "rmsprop", lambda groups: torch.optim.Adagrad(groups)])
def test_every_optimizer_learns(opt):
    learn = Learner((toy(), toy()), net(), opt=opt, lr=1e-2).fit(5)
    assert learn.history[-1]["train_loss"] < learn.history[0]["train_loss"]


@pytest.mark.parametrize("stop,steps,epochs", [(CancelBatch, 5, 1), (CancelEpoch, 0, 1), (CancelFit, 0, 0)])
def test_cancelling(stop, steps, epochs):
    class Stop(Callback):
        def before_batch(self, learn): raise stop
    learn = Learner((toy(), toy()), net(), lr=1e-2)
    before = state(learn.model)
    learn.fit(1, callbacks=[Stop()])
    assert (learn.step, len(learn.history)) == (steps, epochs)
    assert all(torch.equal(before[k], v) for k, v in learn.model.named_parameters())


def test_cleanup_runs_for_all_even_if_one_fails():
    ran = []
    class Bad(Callback):
        order = 1
        def cleanup_fit(self, learn): raise ZeroDivisionError
    class Good(Callback):
        order = 2
        def cleanup_fit(self, learn): ran.append(1)
    learn = Learner((toy(), toy()), net(), lr=1e-2)
    with pytest.raises(ZeroDivisionError): learn.fit(1, callbacks=[Bad(), Good()])
    assert ran == [1]
    learn.fit(1)


def test_frozen_layers_keep_weights_and_statistics(dm):
    learn = Learner(dm, "resnet9", lr=1e-2).freeze()
    before = state(learn.model)
    learn.fit(1)
    changed = {k for k, v in learn.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"net.head.weight", "net.head.bias"}
    assert all(p.requires_grad for p in learn.unfreeze().model.parameters())


def test_global_randomness_is_left_alone(dm):
    import random

    import numpy as np
    learn = Learner(dm, "resnet9", lr=1e-3)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    want = torch.rand(2), np.random.rand(2), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    learn.lr_find(steps=5)
    got = torch.rand(2), np.random.rand(2), random.random()
    assert torch.equal(want[0], got[0]) and (want[1] == got[1]).all() and want[2] == got[2]


def test_lr_find_restores_after_an_error_in_a_frozen_model(dm):
    learn = Learner(dm, "resnet9", lr=1e-3).freeze()
    learn.fit(1)
    before, history, wanted = state(learn.model), list(learn.history), [p.requires_grad for p in learn.model.parameters()]
    loss = learn.loss_func
    def broken(out, y):
        if learn.step == learn_step + 4: raise RuntimeError("boom")
        return loss(out, y)
    learn_step, learn.loss_func = learn.step, broken
    with pytest.raises(RuntimeError, match="boom"): learn.lr_find()
    learn.loss_func = loss
    assert same(before, state(learn.model)) and history == learn.history
    assert wanted == [p.requires_grad for p in learn.model.parameters()]
    found = learn.lr_find(steps=20)
    assert len(found.suggestions) >= 3 and found.best > 0
    assert same(before, state(learn.model))


def test_same_seed_same_weights_whatever_ran_before(dm):
    def run():
        torch.rand(7)
        return state(Learner(dm, "resnet9", lr=2e-3, seed=3).fit(1).model)
    assert same(run(), run())


@pytest.mark.parametrize("bad,error,text", [
    (dict(opt="adamww"), UnknownOptionError, "adamw"), (dict(metrics=["acuracy"]), UnknownOptionError, "accuracy"), (dict(loss="cross_entrpy"), UnknownOptionError, "cross_entropy"),
    (dict(precision="fp17"), UnknownOptionError, "fp16"), (dict(model="resnet5O"), UnknownOptionError, "resnet50")])
def test_wrong_names_name_the_right_ones(dm, bad, error, text):
    with pytest.raises(error, match=text): Learner(dm, **{"model": "resnet9", **bad}).fit(1)


def test_a_model_for_other_classes_is_refused(dm):
    from visionlab.models.classifier import ImageClassifier
    with pytest.raises(ClassMismatchError, match="7 classes.*10"): Learner(dm, ImageClassifier("resnet9", 7, in_chans=1))


def test_no_batches_is_an_error():
    with pytest.raises(TrainingError, match="no batch"): Learner(toy(4, 8, drop_last=True), net()).fit(1)
    with pytest.raises(ConfigError, match="epochs"): Learner(toy(), net()).fit(0)


def test_a_last_batch_of_one_trains(dm):
    import dataclasses
    few = dm.catalog
    keep = few.frame[few.frame["split"] == "train"].index[:33]
    small = dataclasses.replace(few, frame=few.frame[few.frame.index.isin(keep) | (few.frame["split"] == "val")])
    learn = Learner(ImageDataModule(small, batch_size=32), "resnet9", lr=1e-3).fit(1)
    assert (len(learn.train_dl), learn.step) == (1, 1)      # 33 images in one batch, none left out


def test_a_batch_larger_than_the_set_warns_and_trains(dm):
    import dataclasses
    few = dm.catalog
    small = dataclasses.replace(few, frame=few.frame.groupby("split").head(20))
    with pytest.warns(UserWarning, match="batch of 64 is larger than the 20"): learn = Learner(ImageDataModule(small, batch_size=64), "resnet9", lr=1e-3)
    learn.fit(1)
    assert learn.step == 1


def test_bfloat16_on_cpu_learns(dm):
    learn = Learner(dm, "resnet9", lr=4e-3, precision="bf16").fit(1)
    assert learn.history[0]["accuracy"] > .5


SCRIPT = """
import os, signal, torch
signal.signal(signal.SIGINT, signal.default_int_handler)      # a background job starts with the signal ignored
os.environ["VISIONLAB_PROGRESS"] = "plain"
from torch import nn
from visionlab.training.events import Callback
from visionlab.training.learner import Learner
class Press(Callback):
    def after_loss(self, learn):
        if learn.step == 7: os.kill(os.getpid(), signal.SIGINT)
data = [(torch.randn(8, 20), torch.arange(8) % 3) for _ in range(20)]
learn = Learner((data, data), nn.Linear(20, 3), lr=1e-2)
try: learn.fit(3, callbacks=[Press()])
except KeyboardInterrupt: print("interrupted after", learn.step, learn.interrupted)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
learn.validate()
learn.callbacks = learn.callbacks[:1]
learn.fit(1)
print("goes on", learn.step)
"""


def test_the_interrupt_key_finishes_the_step_and_the_learner_goes_on():
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    assert "interrupted after 8 True" in out.stdout and "goes on 28" in out.stdout
    assert "Interrupted: the learner is as it was" in out.stdout


def test_two_learners_on_one_module_keep_their_own_pipelines(tmp_path):
    from photos import photo_folder
    from visionlab.models.classifier import ImageClassifier
    dm = ImageDataModule(photo_folder(tmp_path/"d", n_train=8, n_val=4, size=40, classes=("brick", "coffee")), batch_size=4)
    a = Learner(dm, ImageClassifier("test_resnet", 2, pretrained=False, image_size=48))
    scores, size = a.validate("val"), a.data.image_size
    Learner(dm, ImageClassifier("test_vit", 2, pretrained=False))
    assert a.data.image_size == size == (48, 48) and a.validate("val") == scores == a.validate()
    assert a.predictor().pipeline.size == (48, 48)


def test_a_loss_that_is_no_number_stops_before_the_weights_take_harm(dm):
    learn = Learner(dm, "resnet9", lr=1e-3)
    learn.loss_func = lambda out, y: out.sum()*float("nan") if learn.step == 3 else nn.functional.cross_entropy(out, y)
    with pytest.raises(TrainingError, match="lower learning rate"): learn.fit(1)
    assert learn.step == 3 and all(torch.isfinite(p).all() for p in learn.model.parameters())


@pytest.mark.parametrize("lr", [0, -1, float("nan")])
def test_learning_rates_are_above_zero(lr):
    with pytest.raises(ConfigError, match="above 0"): Learner(toy(), net()).fit(1, lr=lr)


def test_lr_find_after_training_stays_inside_the_range(dm):
    learn = Learner(dm, "resnet9").fit(1)
    for _ in range(2):
        found = learn.lr_find(steps=40)
        assert 1e-5 < found.best < .3 and len(found.suggestions) >= 3 and len(found.lrs) > 10
        learn.freeze()


def test_metrics_of_one_name_are_told_apart():
    from torchmetrics.classification import MulticlassF1Score
    learn = Learner((toy(), toy()), net(), lr=1e-2, metrics=[MulticlassF1Score(3), MulticlassF1Score(3, average="micro"), "accuracy", "error_rate"])
    scores = learn.validate()
    assert set(scores) == {"valid_loss", "f1score", "f1score_2", "accuracy", "error_rate"}
    assert scores["accuracy"] == pytest.approx(1-scores["error_rate"])


def test_a_learner_can_be_copied_and_pickled_after_a_fit():
    import copy
    import pickle
    learn = Learner((toy(), toy()), net(), lr=1e-2).fit(1)
    for other in (copy.deepcopy(learn), pickle.loads(pickle.dumps(learn))): assert other.validate() == learn.validate()


def test_loaders_of_unknown_length_and_empty_ones():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self): return iter([(torch.randn(1, 4, 4), 1) for _ in range(12)])
    learn = Learner((DataLoader(Endless(), 4), toy()), net(), lr=1e-2).fit(1)
    assert learn.step == 3 and "batches" in repr(learn)
    with pytest.raises(ConfigError, match="no image"): learn.validate([])
    with pytest.raises(ConfigError, match="no image"): learn.get_preds([])


def test_an_unusable_device_is_a_typed_error():
    with pytest.raises(ConfigError, match="gpu"): Learner(toy(), net(), device="gpu")
