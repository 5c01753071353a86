"Doubts about labels: every labelled image, out of fold on features that are computed once, in the order of the loss."
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ConfigError, DataError
from visionlab.data.module import ImageDataModule
from visionlab.widgets.label_cleaner import LabelCleaner
from visionlab.catalog.label_issues import label_issues
from visionlab.catalog.doctor import wrong_labels
from visionlab.interpret.interpretation import interpret_probs, Interpretation
from visionlab.training.learner import Learner
from visionlab.interpret.label_opinions import _labelled_features
from visionlab.callbacks.transfer import fold_probs


@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv("VISIONLAB_PROGRESS", "off")


def spoiled(cat, share, seed=0):
    "Give some images of a catalog another label."
    rng = np.random.default_rng(seed)
    wrong = rng.choice(cat.frame.index.to_numpy(), round(share*len(cat)), replace=False)
    labels = cat.frame["label"].copy()
    for i in wrong: labels[i] = rng.choice([c for c in cat.classes if c != labels[i]])
    return replace(cat, frame=cat.frame.assign(label=labels)), wrong


def colours(n=60, groups=None, several=False, seed=0):
    "A catalog of noise in memory whose classes differ in colour."
    rng, k = np.random.default_rng(seed), np.arange(n) % 3
    pixels = (rng.integers(0, 100, (n, 8, 8, 3)) + 100*np.eye(3, dtype=int)[k][:, None, None]).astype(np.uint8)
    names = ["red", "green", "blue"]
    labels = [(names[i], "any") if several and i == 2 else (names[i],) if several else names[i] for i in k]
    frame = pd.DataFrame(dict(path=[f"{i:03}.png" for i in range(n)], label=pd.Series(labels, dtype=object), split=["val" if i % 5 == 0 else "test" if i % 5 == 1 else "train" for i in range(n)]))
    return Catalog(frame, ["any", *names] if several else names, source="colours", pixels=pixels, **(dict(task="multilabel") if several else {}))


def data(cat): return ImageDataModule(cat, image_size=8, batch_size=16, num_workers=0, augmentation_preset="none")


def plain(outputs=3): return nn.Sequential(nn.Flatten(), nn.Linear(192, outputs))


def learner(cat, model=None): return Learner(data(cat), model or plain(len(cat.classes)), device="cpu", lr=1e-3)


# ---- the default

def test_planted_flips_come_first_without_any_training(tmp_path):
    cat, wrong = spoiled(Catalog.from_builtin("FashionSample"), .05)
    learn = Learner(ImageDataModule(cat, batch_size=64), "resnet9", device="cpu")
    before, modes, seed = {k: v.clone() for k, v in learn.model.state_dict().items()}, [m.training for m in learn.model.modules()], torch.get_rng_state()
    cleaner = learn.clean_labels(path=tmp_path/"e.csv")
    first = lambda by: np.isin(wrong, cleaner.found.label_errors(by).index[:round(.08*len(cat))]).mean()
    assert cleaner.by == "loss" and first("loss") > .85 > .75 > first("confident")
    assert len(cleaner.rows) == len(cat) == 7000 and first("margin") > .85
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items()) and modes == [m.training for m in learn.model.modules()] and torch.equal(seed, torch.get_rng_state())


def test_the_head_has_no_say():
    cat, _ = spoiled(colours(), .1)
    learn = learner(cat)
    before = learn.fold_opinion().probs
    with torch.no_grad(): learn.model[-1].weight.normal_(std=10)
    assert torch.equal(learn.fold_opinion().probs, before)


def test_all_splits_are_looked_at_and_the_count_is_the_headline(tmp_path):
    cat, wrong = spoiled(colours(), .1)
    cleaner = learner(cat).clean_labels(path=tmp_path/"e.csv")
    assert set(cleaner.rows) == set(cat.frame.index) and set(cleaner.rows[:6]) == set(wrong)
    k = int(cleaner.table["suspect"].sum())
    assert repr(cleaner).startswith(f"LabelCleaner: 60 looked at, {k} look wrong; 0 of 60 decided") and f"60 looked at, {k} look wrong" in cleaner.to_html() and 5 <= k <= 7
    assert len(set(cleaner.table.index[cleaner.table["suspect"]]) ^ set(wrong)) <= 1


# ---- the number

@pytest.fixture(scope="module")
def fashion_features():
    "Features of Fashion-MNIST's sample by an untrained network, and its classes."
    learn = Learner(ImageDataModule(Catalog.from_builtin("FashionSample"), batch_size=64, num_workers=0), "resnet9", device="cpu")
    return _labelled_features(learn), learn.data.catalog.targets()


def look_wrong(features, targets, share, seed=1):
    "Set a share of the labels wrong; count how many are, how many look so, and how many of these are."
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(targets), round(share*len(targets)), replace=False)
    targets = np.array(targets)
    targets[wrong] = (targets[wrong] + rng.integers(1, 10, len(wrong))) % 10
    probs = fold_probs(torch.as_tensor(features), torch.as_tensor(targets), rng.permutation(np.arange(len(targets)) % 5), 10)
    frame = pd.DataFrame(dict(path=[f"{i}.png" for i in range(len(targets))], label=[str(i) for i in targets], split="train"))
    table = interpret_probs(Catalog(frame, [str(i) for i in range(10)]), probs).label_errors()
    assert np.array_equal(table["suspect"], table["p_wrong"] > .5) and table["p_wrong"].between(0, 1).all()
    assert table["loss"].is_monotonic_decreasing
    doubted = table.index[table["suspect"]]
    return len(wrong), len(doubted), np.isin(doubted, wrong).sum()


@pytest.mark.parametrize("share", [.02, .05, .1, .2])
def test_as_many_look_wrong_as_are_wrong_fashion(fashion_features, share):
    wrong, doubted, truly = look_wrong(*fashion_features, share)
    assert abs(doubted - wrong) <= .25*wrong and truly > .6*doubted


@pytest.mark.parametrize("share", [.02, .05, .1, .2])
def test_as_many_look_wrong_as_are_wrong_digits(share):
    from sklearn.datasets import load_digits
    digits = load_digits()
    wrong, doubted, truly = look_wrong(digits.data.astype(np.float32), digits.target, share)
    assert abs(doubted - wrong) <= .25*wrong and truly > .75*doubted


def test_few_look_wrong_where_none_is(fashion_features):
    from sklearn.datasets import load_digits
    digits = load_digits()
    assert look_wrong(*fashion_features, 0)[1] <= .004*7000              # some of Fashion-MNIST's own labels are doubtful
    assert look_wrong(digits.data.astype(np.float32), digits.target, 0)[1] <= .004*1797


def test_one_class_called_another_is_counted_too():
    from sklearn.datasets import load_digits
    digits, rng = load_digits(), np.random.default_rng(1)
    wrong = rng.choice(1797, 180, replace=False)
    targets = digits.target.copy()
    targets[wrong] = (targets[wrong] + 1) % 10
    probs = fold_probs(torch.as_tensor(digits.data.astype(np.float32)), torch.as_tensor(targets), rng.permutation(np.arange(1797) % 5), 10)
    assert abs((wrong_labels(targets, probs) > .5).sum() - 180) <= 45


def test_the_headline_is_the_number_of_wrong_labels(tmp_path):
    cat, wrong = spoiled(Catalog.from_builtin("FashionSample"), .05)
    cleaner = Learner(ImageDataModule(cat, batch_size=64, num_workers=0), "resnet9", device="cpu").clean_labels(path=tmp_path/"e.csv")
    said = int(re.search(r"7,000 looked at, (\d+) look wrong", repr(cleaner)).group(1))
    assert abs(said - len(wrong)) <= .25*len(wrong) and len(wrong) == 350
    cleaner.suspects = "suspects"
    assert len(cleaner.rows) == said


def test_wrong_labels_of_several_classes():
    rng = np.random.default_rng(0)
    true = rng.uniform(size=(3000, 4)) < [.5, .3, .1, .02]
    probs = 1/(1 + np.exp(-rng.normal(np.where(true, 4, -4), 1.5)))
    flip = rng.uniform(size=true.shape) < .01
    found = Interpretation(torch.tensor(probs), torch.tensor((true ^ flip).astype(np.float32)), torch.zeros(3000), list("abcd"), ["p"]*3000, np.arange(3000), task="multilabel")
    wrong, table = flip.any(1).sum(), found.label_errors()
    assert abs(table["suspect"].sum() - wrong) <= .25*wrong


def test_wrong_labels_bear_what_is_missing():
    probs = np.array([[.9, .1, 0], [.1, .9, 0], [.2, .8, 0], [np.nan]*3])
    assert (wrong_labels([0, 1, -1, 2], probs)[2:] == 0).all()
    assert wrong_labels([0, 0], np.ones((2, 1))).tolist() == [0, 0] and len(wrong_labels([], np.zeros((0, 3)))) == 0


# ---- which model

@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_model_itself_is_asked_about_a_split_by_its_name(tmp_path, split):
    learn = learner(colours())
    cleaner = learn.clean_labels(split, path=tmp_path/"e.csv")
    assert set(cleaner.rows) == set(learn.data.catalog.subset(split).frame.index)
    assert torch.equal(cleaner.found.probs, learn.interpret(split).probs)


def test_what_has_no_label_or_no_other_of_its_class_is_not_judged(tmp_path):
    cat = colours()
    labels = cat.frame["label"].copy()
    labels[2] = None; labels[7] = "once"
    cat = replace(cat, frame=cat.frame.assign(label=labels), classes=[*cat.classes, "once"])
    cleaner = learner(cat).clean_labels(path=tmp_path/"e.csv")
    assert set(range(60)) - set(cleaner.rows) == {2, 7} and "58 looked at" in repr(cleaner)


@pytest.mark.parametrize("model", [lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)), lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), lambda: "resnet9"])
def test_any_network_will_do(model, tmp_path):
    cat, wrong = spoiled(colours(), .1)
    cleaner = learner(cat, model()).clean_labels(path=tmp_path/"e.csv")
    assert len(np.intersect1d(cleaner.rows[:9], wrong)) >= 5


def test_several_classes_to_an_image(tmp_path):
    cat = colours(several=True)
    labels = cat.frame["label"].copy()
    labels[4] = ("red", "any")                                  # it is green
    cleaner = learner(replace(cat, frame=cat.frame.assign(label=labels))).clean_labels(path=tmp_path/"e.csv")
    assert cleaner.rows[0] == 4 and cleaner.found.task == "multilabel" and len(cleaner.rows) == 60


# ---- folds

def copies(column):
    "A catalog in which every picture stands six times, one set of copies under a wrong label."
    cat = colours(30)
    frame = pd.concat([cat.frame]*6, ignore_index=True)
    frame["path"] = [f"{i:03}.png" for i in range(180)]
    frame["split"] = ["val" if i % 6 == 0 else "train" for i in range(180)]
    frame["patient"] = np.tile(np.arange(30), 6)
    frame.loc[frame["patient"] == 3, "label"] = "blue"          # it is red
    return replace(cat, frame=frame, pixels=np.concatenate([cat.pixels]*6), info=dict(split=dict(group_col=column)) if column else {})


def test_groups_stay_in_one_fold():
    torn, whole = (learner(copies(o)).fold_opinion() for o in (None, "patient"))
    of = lambda found: found.probs[torch.as_tensor(np.isin(found.ids, np.arange(3, 180, 30))), 2]
    assert of(whole).max() < .5 < of(torn).min()
    assert torch.equal(learner(copies(None)).fold_opinion(group_col="patient").probs, whole.probs)
    with pytest.raises(ConfigError, match="patient"): learner(copies(None)).fold_opinion(group_col="patent")


def test_rows_of_one_file_stay_together():
    cat = copies(None)
    same = cat.frame.assign(path=[f"{i:03}.png" for i in cat.frame["patient"]])
    found = learner(replace(cat, frame=same)).fold_opinion()
    assert found.probs[torch.as_tensor(np.isin(found.ids, np.arange(3, 180, 30))), 2].max() < .5


def test_images_without_a_group_are_groups_of_their_own():
    cat = copies("patient")
    cat.frame.loc[cat.frame["patient"] > 20, "patient"] = np.nan
    assert len(learner(cat).fold_opinion()) == 180


def test_few_images_make_fewer_folds():
    assert len(learner(colours(9)).fold_opinion(n=20)) == 9
    with pytest.raises(ConfigError, match="whole number|folds"): learner(colours()).fold_opinion(n=0)


def test_probabilities_are_those_of_a_regularised_classifier():
    from sklearn.linear_model import LogisticRegression
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (90,), generator=g)
    x = torch.randn(90, 4, generator=g) + 2*nn.functional.one_hot(y, 4)
    fold = np.arange(90) % 3
    got = fold_probs(x, y, fold, 3)
    z = ((x - x.mean(0))/x.std(0, correction=0)).numpy()
    def sk(decay):
        out = np.zeros((90, 3))
        for k in range(3): out[fold == k] = LogisticRegression(C=1/(decay*(fold != k).sum()), max_iter=2000, tol=1e-8).fit(z[fold != k], y[fold != k]).predict_proba(z[fold == k])
        return out
    loss = lambda p: -np.log(p[np.arange(90), y]).mean()
    best = min((sk(o) for o in (1., .1, .01, .001)), key=loss)
    assert np.abs(got.numpy() - best).max() < 5e-3


# ---- the order

def answers(probs, targets):
    probs, targets = torch.tensor(probs), torch.tensor(targets)
    return Interpretation(probs, targets, -probs.gather(1, targets[:, None])[:, 0].log(), list("abc"), [f"{i}.png" for i in range(len(probs))], np.arange(len(probs)))


def test_margins_are_of_log_probabilities():
    found = answers([[.3, .7, 0.], [.2, .5, .3], [.05, .9, .05], [.6, .2, .2]], [0, 0, 0, 0])
    assert found.label_errors("margin").index.tolist() == [2, 1, 0, 3]       # 18, 2.5, 2.3 and a third times as likely
    issues = label_issues(np.array([0, 0, 0, 0, 1]), np.array([*found.probs.tolist(), [.1, .45, .45]]))
    assert issues["row"].tolist() == [2, 1, 0]


def test_the_loss_is_the_order_unless_another_is_asked_for(tmp_path):
    found = answers([[.3, .6, .1], [.01, .5, .49], [.9, .05, .05]], [0, 0, 0])
    assert found.label_errors().index.tolist() == found.label_errors("loss").index.tolist() == [1, 0, 2]
    cat = Catalog(pd.DataFrame(dict(path=found.paths, label=["a"]*3, split=["train"]*3)), list("abc"), pixels=np.zeros((3, 8, 8, 3), np.uint8))
    assert LabelCleaner(cat, found, path=tmp_path/"e.csv").by == "loss"


# ---- more opinions

def test_neighbours_and_other_learners_look_at_everything_too(tmp_path):
    cat, wrong = spoiled(colours(), .1)
    learn, other = learner(cat), learner(cat)
    for cleaner in (learn.clean_labels(by="disagreement", path=tmp_path/"e.csv"), learn.clean_labels(by="disagreement", others=[other], path=tmp_path/"e.csv")):
        assert len(cleaner.rows) == 60 and len(cleaner.found.members) == 2 and set(cleaner.rows[:6]) == set(wrong)
    assert len(learn.second_opinion("val")) == 12


def test_without_files_or_labels_it_says_so():
    bare = Learner(([(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))],)*2, plain(), device="cpu")
    for ask in (bare.fold_opinion, bare.second_opinion, bare.clean_labels):
        with pytest.raises(ConfigError, match="data module"): ask()
    learn = learner(colours())
    learn.data.catalog = replace(learn.data.catalog, frame=learn.data.catalog.frame.assign(label=None))
    with pytest.raises(DataError, match="No image has a label"): learn.fold_opinion()
