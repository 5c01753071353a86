"Images with several classes: the catalog, the split, the loader, metrics and losses, and a model from table to answer and back."
import json
from dataclasses import replace
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score
from visionlab.catalog.labels import label_text
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import CheckpointError, ClassMismatchError, ConfigError, DataError, TooManyBadFilesError
from visionlab.data.audit import remove_bad
from visionlab.data.module import ImageDataModule
from visionlab.export.folder import seal_of
from visionlab.export.load import load_model
from visionlab.training.learner import Learner
from visionlab.data.sampling import balanced_weights
from visionlab.training.losses import BinaryCrossEntropy, make_loss
from visionlab.training.metrics import make_metric, MULTILABEL_METRICS
from visionlab.data.multilabel import MultiLabelImageDataModule
import visionlab.widgets.class_balance
import visionlab.callbacks.one_cycle
import visionlab.interpret.interpretation
import visionlab.widgets.augmentation
import visionlab.widgets.view

NAMES = ["disc", "square", "bar"]

pytestmark = pytest.mark.usefixtures("one_thread")

def draw(has, rng):
    "Draw a red disc, a green square and a blue bar, each if the picture has it"
    image = Image.fromarray(rng.integers(90, 160, (32, 32, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(image)
    for k,shape,colour in ((0, pen.ellipse, "red"), (1, pen.rectangle, "green"), (2, pen.rectangle, "blue")):
        x,y = rng.integers(0, 20, 2).tolist()
        if has[k]: shape((x, y, x+10, y+(10 if k < 2 else 4)), fill=colour)
    return image

@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root,rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    has = rng.random((240, 3)) < (.5, .4, .2)
    for i,o in enumerate(has): draw(o, rng).save(root/f"{i}.png")
    (root/"t.csv").write_text("image_path,disc,square,bar\n" + "".join(f"{i}.png,{','.join(map(str, o.astype(int)))}\n" for i,o in enumerate(has)))
    return root

@pytest.fixture(scope="module")
def dm(shapes): return MultiLabelImageDataModule(shapes/"t.csv", image_size=32, batch_size=32, val_split=.2, augmentation_preset="none", num_workers=1)

@pytest.fixture(scope="module")
def learn(dm): return Learner(dm, "resnet9", lr=4e-3, device="cpu").fit_one_cycle(6)

def catalog(labels, classes=None, **kw):
    classes = classes or sorted({c for o in labels for c in o or ()})
    return Catalog(pd.DataFrame(dict(path=[f"{i}.png" for i in range(len(labels))], label=labels, split="train")), classes, task="multilabel", **kw)

# --- catalog

def test_targets_counts_and_text():
    cat = catalog([("a", "b"), ["b"], (), None], ["a", "b", "c"])
    assert cat.targets().dtype == np.float32 and cat.targets()[:3].tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]] and np.isnan(cat.targets()[3]).all()
    assert cat.counts()["train"].tolist() == [1, 2, 0]
    assert cat.frame["label"].tolist() == [("a", "b"), ("b",), (), None]
    assert "(none of them)" in repr(cat) and "(no label)" in cat._repr_html_() and "any number" in repr(cat)
    assert list(map(label_text, [("a", "b"), (), None, "a"])) == ["a, b", "none", "unlabelled", "a"]
    with pytest.raises(ClassMismatchError, match="'z'"): catalog([("z",)], ["a"])
    with pytest.raises(ConfigError, match="task"): Catalog(cat.frame, ["a", "b"], task="several")

def test_save_and_load(tmp_path):
    odd = ['a,b|;"\n', "=1+1", "NA", "ünïcode", "[]"]
    cat = catalog([tuple(odd), (), None, ("NA",), ("=1+1", "[]")], odd)
    again = Catalog.load(cat.save(tmp_path/"c"))
    assert (again.task, again.classes, again.frame["label"].tolist()) == ("multilabel", odd, cat.frame["label"].tolist())
    assert np.array_equal(again.targets(), cat.targets(), equal_nan=True)
    path = tmp_path/"c"/"catalog.csv"
    path.write_text(path.read_text().replace('"[""NA""]"', "NA"))
    with pytest.raises(DataError, match="no list of names"): Catalog.load(tmp_path/"c")

@pytest.mark.parametrize("task", ["both", 3, None])
def test_a_task_that_does_not_exist(tmp_path, task):
    folder = catalog([("a",)]).save(tmp_path/"c")
    meta = json.loads((folder/"catalog.json").read_text()) | dict(task=task)
    (folder/"catalog.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match="task"): Catalog.load(folder)

# --- split

def many(n=2000, seed=0):
    "Make labels of ten classes from common to rare, some of which come together"
    rng = np.random.default_rng(seed)
    has = rng.random((n, 10)) < np.geomspace(.5, .01, 10)
    has[:,9] |= has[:,8] & (rng.random(n) < .5)
    return [tuple(f"c{k}" for k in np.flatnonzero(o)) for o in has]

@pytest.mark.parametrize("share", [.1, .2, .5])
def test_every_class_keeps_its_share(share):
    cat = catalog(many()).split(share)
    counts = cat.counts()
    want = counts.sum(axis=1)*share
    assert ((counts["val"]-want).abs() <= np.maximum(1.5, .04*want)).all()
    assert abs(len(cat.subset("val"))-2000*share) <= 20
    worst = lambda o: ((o-want).abs()/want).max()
    rng = np.random.default_rng(0)
    chance = [worst(pd.Series(cat.targets()[rng.permutation(2000)[:int(2000*share)]].sum(0), counts.index)) for _ in range(20)]
    assert worst(counts["val"]) < min(chance)

def test_split_does_not_depend_on_the_order_of_rows():
    cat = catalog(many(400))
    shuffled = replace(cat, frame=cat.frame.sample(frac=1, random_state=1))
    val = lambda o, **kw: set(o.split(.2, **kw).subset("val").frame["path"])
    assert val(cat) == val(shuffled) == val(cat) != val(cat, seed=1)

def test_rare_classes_are_on_both_sides():
    counts = catalog([("a",)]*50 + [("a", "b")]*2 + [("a", "c")] + [()]*7).split(.1).counts()
    assert counts.loc["b"].tolist() == [1, 1] and counts.loc["c"].tolist() == [1, 0]

def test_groups_stay_whole():
    cat = catalog(many(400))
    cat = replace(cat, frame=cat.frame.assign(person=cat.frame.index//4))
    split = cat.split(.2, group_col="person")
    assert split.frame.groupby("person")["split"].nunique().max() == 1
    assert .15 < len(split.subset("val"))/400 < .25
    twice = replace(cat, frame=cat.frame.assign(path=[f"{i//2}.png" for i in range(400)], label=[("c0",), ("c0",)]*200))
    assert twice.split(.2).frame.groupby("path")["split"].nunique().max() == 1

def test_no_image_has_a_class(): assert len(catalog([()]*20, ["a"]).split(.2).subset("val")) == 4
def test_unlabelled_rows_stay():
    cat = catalog([("a",), ("b",)]*10 + [None]*5).split(.2)
    assert cat.subset("val").frame["label"].notna().all() and len(cat) == 25

def test_an_existing_split_is_kept(): assert (o := catalog(many(50)).split(.2)).split(.5) is o

# --- loader, metrics, losses

def test_balanced_weights():
    y = np.array([[1, 0]]*8 + [[1, 1]]*2 + [[0, 0]]*4 + [[np.nan]*2], np.float32)
    assert balanced_weights(y).tolist() == pytest.approx([.1]*8 + [.5]*2 + [.25]*4 + [0])

def test_loader(dm):
    batch = next(iter(dm.train_dataloader()))
    assert batch.target.shape == (32, 3) and batch.target.dtype == torch.float32
    want = dm.catalog.targets()[dm.catalog.frame.index.get_indexer(batch.index.numpy())]
    assert np.array_equal(batch.target.numpy(), want)

def test_balanced_sampling(shapes):
    drawn = lambda **kw: np.concatenate([b.target.numpy() for b in MultiLabelImageDataModule(shapes/"t.csv", image_size=8, num_workers=0, augmentation_preset="none", **kw).train_dataloader()]).mean(0)
    assert drawn(balanced_sampling=True)[2] > 1.4*drawn()[2]

def test_a_class_that_loses_every_file(shapes):
    cat = ImageDataModule(shapes/"t.csv").catalog
    bars = cat.frame.index[[("bar" in o) for o in cat.frame["label"]]]
    with pytest.raises(TooManyBadFilesError, match="'bar'"): remove_bad(cat, [(i, "truncated") for i in bars], limit=1)
    assert len(remove_bad(cat, [(bars[0], "truncated")])) == len(cat)-1

@pytest.fixture
def answers():
    g = torch.Generator().manual_seed(0)
    y = (torch.rand(203, 6, generator=g) < .3).float()
    return torch.randn(203, 6, generator=g) + 2*y - 1, y

def score(name, logits, y, **kw):
    m = make_metric(name, "multilabel", **kw); m.reset()
    for i in range(0, len(y), 50): m.update(logits[i:i+50], y[i:i+50])
    return m.compute()

@pytest.mark.parametrize("threshold", [.5, .3])
def test_metrics_against_sklearn(answers, threshold):
    logits,y = answers
    p = logits.sigmoid().numpy(); said = p > threshold
    for average in ("macro", "micro", "weighted"):
        for name,want in zip(("precision", "recall", "f1"), precision_recall_fscore_support(y, said, average=average, zero_division=0)):
            assert score(f"{name}_{average}", logits, y, threshold=threshold) == pytest.approx(want, abs=1e-6)
    right = said == (y.numpy() > 0)
    assert score("accuracy", logits, y, threshold=threshold) == pytest.approx(right.mean(), abs=1e-6)
    assert score("hamming_distance", logits, y, threshold=threshold) == pytest.approx(1-right.mean(), abs=1e-6)
    assert score("exact_match", logits, y, threshold=threshold) == pytest.approx(right.all(1).mean(), abs=1e-6)
    assert score("mAP", logits, y) == pytest.approx(average_precision_score(y, p, average="macro"), abs=1e-5)
    assert score("auroc", logits, y) == pytest.approx(roc_auc_score(y, p, average="macro"), abs=1e-5)

def test_metrics_start_afresh(answers):
    for name in MULTILABEL_METRICS:
        m = make_metric(name, "multilabel")
        for _ in range(2): m.reset(); m.update(*answers); value = m.compute()
        assert value == pytest.approx(score(name, *answers), abs=1e-6), name

def test_other_metrics_get_probabilities(answers):
    from torchmetrics.classification import MultilabelAccuracy, MultilabelF1Score, MultilabelAUROC
    for m in (MultilabelAccuracy(6), MultilabelF1Score(6), MultilabelAUROC(6)): assert 0 < score(m, *answers) <= 1
    assert score(MultilabelF1Score(6), *answers) == pytest.approx(score("f1_macro", *answers), abs=1e-6)
    seen = {}
    def mine(p, t): seen.update(p=p, t=t); return p.mean()
    score(mine, *answers)
    assert torch.allclose(seen["p"], answers[0].sigmoid()) and seen["t"].shape == (203, 6)
    with pytest.raises(ConfigError, match="mAP"): make_metric("mapp", "multilabel")
    with pytest.raises(ConfigError): make_metric("top5", "multilabel")

def test_losses(answers):
    want = torch.nn.functional.binary_cross_entropy_with_logits(*answers)
    loss = make_loss(task="multilabel")
    assert isinstance(loss, BinaryCrossEntropy) and torch.allclose(loss(*answers), want) and torch.allclose(loss(*answers, reduction="none").mean(), want)
    weighed = make_loss("bce", "multilabel", weight=torch.full((6,), 3.))
    assert weighed(*answers) > want and torch.allclose(weighed.plain()(*answers), want)
    for bad in (dict(loss="cross_entropy", task="multilabel"), dict(task="multilabel", label_smoothing=.1)):
        with pytest.raises(ConfigError) as e: make_loss(**bad)
        assert e.value.fix

# --- from a table to an answer

def test_data_module(dm, shapes):
    assert (dm.num_labels, dm.label_names, dm.task, dm.catalog.splits) == (3, NAMES, "multilabel", ["train", "val"])
    assert "any number" in str(dm)
    two = MultiLabelImageDataModule(shapes/"t.csv", shapes, label_columns=["bar", "disc"], image_column="image_path", num_workers=0)
    assert two.label_names == ["bar", "disc"]

def test_it_learns(learn, dm):
    assert learn.task == "multilabel" and learn.metrics[0].name == "f1_macro"
    assert learn.history[-1]["f1_macro"] > .9
    probs,y = learn.get_preds()
    assert probs.shape == y.shape == (len(dm.catalog.subset("val")), 3) and (probs.sum(1) > 1.2).any()
    assert score("f1_macro", probs.logit(), y) == pytest.approx(learn.validate()["f1_macro"], abs=1e-6)

def test_export_and_load(learn, tmp_path, shapes):
    model = load_model(learn.export(tmp_path/"m"), "cpu")
    assert (model.task, model.threshold) == ("multilabel", .5)
    files = [shapes/f"{i}.png" for i in range(12)]
    a,b = learn.predict(files), model.predict(files)
    assert [o.labels for o in a] == [o.labels for o in b] and torch.allclose(a[0].probs, b[0].probs, atol=1e-5)
    assert [o.labels for o in a] == [[NAMES[k] for k in o.probs.argsort(descending=True).tolist() if o.probs[k] > .5] for o in a]
    assert list(b.frame().columns) == ["path", "labels", "scores"] and b._repr_html_()
    assert all(len(o.top) == 2 for o in model.predict(files, topk=2)) and all(len(o.top) == 3 for o in model.predict(files, threshold=0.))
    config = json.loads((tmp_path/"m"/"config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"

def test_none_of_the_classes(learn):
    said = learn.predict(draw((0, 0, 0), np.random.default_rng(5)))
    assert said.labels == [] and said.label is None and "none of the classes" in repr(said) and "none of the classes" in said._repr_html_()

def test_a_threshold_of_ones_own(dm, tmp_path):
    learn = Learner(dm, "resnet9", threshold=.01, device="cpu")
    model = load_model(learn.export(tmp_path/"m"), "cpu")
    assert model.threshold == .01 and learn.metrics[0].threshold == .01
    assert len(model.predict(np.zeros((32, 32, 3), np.uint8)).labels) >= len(model.predict(np.zeros((32, 32, 3), np.uint8), threshold=.5).labels)
    path = tmp_path/"m"/"visionlab.json"
    for change in (dict(task="both"), dict(threshold=7), dict(threshold="x")):
        d = json.loads(path.read_text()) | change
        path.write_text(json.dumps(d | dict(sha256=seal_of(d))))
        with pytest.raises(CheckpointError): load_model(tmp_path/"m", "cpu")

def test_label_smoothing_is_refused_with_the_reason(dm):
    with pytest.raises(ConfigError, match="one label") as e: Learner(dm, "resnet9", label_smoothing=.1)
    assert "Leave it at 0" in e.value.fix
    with pytest.raises(ConfigError, match="any number"): Learner(dm, "resnet9", loss="cross_entropy")

def test_bare_loaders_by_their_loss():
    g = torch.Generator().manual_seed(0)
    data = [(x := torch.randn(16, 8, generator=g), (x[:,:3] > 0).float()) for _ in range(20)]
    learn = Learner((data, data), torch.nn.Linear(8, 3), loss="bce", lr=.05, device="cpu").fit(3)
    assert learn.task == "multilabel" and learn.history[-1]["f1_macro"] > .9
    assert learn.interpret().report().loc["macro", "f1"] > .9

def test_interpretation(learn):
    found = learn.interpret()
    for ask in (found.confusion, found.most_confused):
        with pytest.raises(ConfigError, match="report"): ask()
    report = found.report()
    want = precision_recall_fscore_support(found.targets, found.predicted, zero_division=0)
    assert np.allclose(report.iloc[:3].to_numpy(), np.stack(want, 1)) and list(report.index) == [*NAMES, "macro", "weighted", "accuracy"]
    assert report.loc["macro", "f1"] == pytest.approx(learn.validate()["f1_macro"], abs=1e-6)
    worst = found.top_losses(5)
    assert worst.loss.is_monotonic_decreasing and set(", ".join(worst.true).split(", ")) <= {*NAMES, "none"}
    assert found.losses.mean().item() == pytest.approx(learn.validate()["valid_loss"], abs=1e-5)
    assert "answers right" in repr(found)
    found.plot_top_losses(4)

@pytest.mark.parametrize("balanced", [False, True])
def test_widgets(shapes, balanced):
    dm = MultiLabelImageDataModule(shapes/"t.csv", image_size=32, batch_size=32, num_workers=0, balanced_sampling=balanced)
    balance = dm.class_balance()
    assert balance.counts["train"].tolist() == dm.catalog.counts()["train"].tolist() and balance.to_html() and repr(balance)
    assert balance.frame["share"].max() < .7
    if balanced:
        drawn = balance.frame["drawn"]
        seen = sum(b.target.sum(0) for e in range(20) for b in dm.train_dataloader().batches(e))/20
        assert np.allclose(drawn[NAMES], seen, rtol=.15)
    shown = dm.show_batch()
    assert any("disc" in o for o in shown.tiles()[1]) and shown.to_html()
    assert dm.preview_augmentations().to_html()
    balance.figure()

# --- from a DataFrame

def test_a_frame_of_lists(shapes):
    df = pd.DataFrame(dict(path=[f"{i}.png" for i in range(6)], label=[["a", "b"], ("b",), np.array(["a"]), [], {"b", "a"}, " a "]))
    cat = Catalog.from_frame(df, root=shapes)
    assert (cat.task, cat.classes, cat.frame["label"].tolist()) == ("multilabel", ["a", "b"], [("a", "b"), ("b",), ("a",), (), ("a", "b"), ("a",)])
    assert ImageDataModule(cat, image_size=8, val_split=2).task == "multilabel"
    df.loc[1, "label"] = None
    with pytest.raises(DataError, match="missing label"): Catalog.from_frame(df, root=shapes)
    assert Catalog.from_frame(df, root=shapes, on_bad="skip").skipped["reason"].tolist() == ["missing label"]
    with pytest.raises(DataError, match="'b' is not a class"): Catalog.from_frame(df.drop(1), root=shapes, classes=["a"])
    assert Catalog.from_lists([shapes/"1.png", shapes/"2.png"], [["x"], []]).targets().tolist() == [[1], [0]]

# --- one call

def test_train_from_a_table(shapes, tmp_path):
    from visionlab.runs.train import train
    learn = train(data=str(shapes/"t.csv"), out=str(tmp_path/"run"), model="resnet9", image_size=32, epochs=1, batch_size=64, augmentation_preset="none", num_workers=0, device="cpu", say=None)
    assert learn.task == "multilabel" and {"accuracy", "f1_macro"} <= set(learn.history[-1])
    assert Catalog.load(tmp_path/"run"/"catalog").task == "multilabel" and not (tmp_path/"run"/"figures"/"confusion.png").exists()
    assert load_model(tmp_path/"run"/"exported_models"/"exported_last", "cpu").task == "multilabel"

def test_a_transform_of_ones_own(shapes):
    import albumentations as A
    dm = MultiLabelImageDataModule(shapes/"t.csv", image_size=16, batch_size=16, num_workers=0, train_transforms=A.Compose([A.Resize(16, 16), A.HorizontalFlip()]))
    batch = next(iter(dm.train_dataloader()))
    assert batch.image.shape == (16, 3, 16, 16) and batch.target.shape == (16, 3)
