"Out-of-fold answers: aligned, complete, honest, the same each time."
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from photos import photo_folder
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ConfigError
from visionlab.data.module import ImageDataModule
from visionlab.callbacks.kfold import out_of_fold
from visionlab.training.learner import Learner


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("VISIONLAB_PROGRESS", "off")
    monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos(tmp_path_factory): return photo_folder(tmp_path_factory.mktemp("folds"), n_train=8, n_val=4, size=40, classes=("brick", "chelsea", "coffee"))


def small(cat):
    torch.manual_seed(0)
    return Learner(ImageDataModule(cat, image_size=16, batch_size=6, num_workers=0), nn.Sequential(nn.Flatten(), nn.Linear(3*16*16, 3)), lr=1e-3)


def test_answers_stand_in_the_catalogs_order(photos):
    cat = Catalog.from_folder(photos)
    learners = []
    oof = out_of_fold(lambda c: learners.append(small(c)) or learners[-1], cat, n=3, epochs=2)
    assert oof.probs.shape == (36, 3) and oof.answered.all() and np.allclose(oof.probs.sum(1), 1, atol=1e-4)
    assert np.bincount(oof.fold).tolist() == [12, 12, 12] and len(oof.scores) == 3 and (oof.targets == cat.targets()).all()
    for k, learn in enumerate(learners):                                       # each row judged by the learner of its own fold
        at = np.flatnonzero(oof.fold == k)
        assert set(cat.frame.index[at]) == set(learn.data.loader("val").ids) and not set(cat.frame.index[at]) & set(learn.train_dl.ids)
        for i in at[:3]:
            row = int(cat.frame.index[i])
            place = learn.data.loader("val").ids.tolist().index(row)
            assert np.allclose(learn.get_preds("val")[0][place].numpy(), oof.probs[i])
    assert "36 of 36" in repr(oof) and oof.frame()["fold"].tolist() == oof.fold.tolist()


def test_the_same_each_time_and_rows_in_any_order(photos):
    cat = Catalog.from_folder(photos)
    one, two = (out_of_fold(small, cat, n=2, epochs=1) for _ in range(2))
    assert np.array_equal(one.probs, two.probs) and one.scores.equals(two.scores)


def test_rows_without_an_answer(photos, tmp_path):
    cat = Catalog.from_folder(photos)
    frame = cat.frame.copy()
    frame.loc[frame.index[:2], "split"] = "test"
    frame.loc[frame.index[2], "label"] = None
    oof = out_of_fold(small, replace(cat, frame=frame), n=2, fit=lambda learn: learn.fit(1))
    assert np.isnan(oof.probs[:3]).all() and (oof.fold[:3] == -1).all() and oof.answered.sum() == 33
    assert len(oof.frame()) == 33 and 0 <= oof.accuracy <= 1


def test_unreadable_images_have_no_answer(tmp_path):
    root = photo_folder(tmp_path/"photos", n_train=12, n_val=12, size=40, classes=("brick", "coffee"))
    bad = root/"train/brick/003.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    cat = Catalog.from_folder(root)
    oof = out_of_fold(lambda c: Learner(ImageDataModule(c, image_size=16, batch_size=8, num_workers=0), nn.Sequential(nn.Flatten(), nn.Linear(768, 2))), cat, n=2, epochs=1)
    assert (~oof.answered).tolist() == [p == "train/brick/003.jpg" for p in cat.frame["path"]]


def test_learners_of_other_data_are_refused(photos):
    dm = ImageDataModule(photos, image_size=16, num_workers=0)
    whole = Learner(dm, nn.Sequential(nn.Flatten(), nn.Linear(768, 3)))
    for make in (lambda c: whole, lambda c: Learner((dm.train_dataloader(), dm.val_dataloader()), nn.Sequential(nn.Flatten(), nn.Linear(768, 3)))):
        with pytest.raises(ConfigError, match="fold's catalog"): out_of_fold(make, dm, n=2, epochs=1)
