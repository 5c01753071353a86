"Interpretation: the numbers against scikit-learn, the images against the loader, figures that always draw, names that cannot inject."
import subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from sklearn import metrics as sk
from torch import nn
from visionlab.interpret import interpretation as interpret
from visionlab.core.errors import ConfigError, DataError, UnknownOptionError
from visionlab.catalog.catalog import Catalog
from visionlab.data.module import ImageDataModule
from visionlab.interpret.confusion import Confusion, count_pairs, most_confused_block
from visionlab.interpret.interpretation import Interpretation
from visionlab.training.learner import Learner
from visionlab.training.metrics import make_metric

def answers(n=400, classes=7, never=(), seed=0):
    "Make up answers in which the classes `never` do not occur"
    g = torch.Generator().manual_seed(seed)
    left = [i for i in range(classes) if i not in never]
    y = torch.tensor(left)[torch.randint(0, len(left), (n,), generator=g)]
    logits = torch.randn(n, classes, generator=g) + 2*torch.nn.functional.one_hot(y, classes)
    if never: logits[:,list(never)] = -50
    probs = logits.softmax(1)
    return Interpretation(probs, y, -probs.gather(1, y[:,None])[:,0].log(), [f"class {i}" for i in range(classes)], [f"{i}.png" for i in range(n)], np.arange(n)*3), logits

# numbers

@pytest.mark.parametrize("classes,never", [(2, ()), (7, ()), (7, (0, 4)), (40, (3,))])
def test_against_sklearn(classes, never):
    it,logits = answers(classes=classes, never=never)
    y,said,ids = it.targets.numpy(), it.predicted.numpy(), list(range(classes))
    assert (it.confusion().matrix.to_numpy() == sk.confusion_matrix(y, said, labels=ids)).all()
    table = it.report()
    p,r,f,s = sk.precision_recall_fscore_support(y, said, labels=ids, zero_division=0)
    met = [i for i in ids if i in y or i in said]
    np.testing.assert_allclose(table.iloc[met, :4], np.stack([p, r, f, s], 1)[met])
    assert table.iloc[sorted(never), :3].isna().all().all() and (table.iloc[sorted(never)].support == 0).all()
    for row,average in (("macro", "macro"), ("weighted", "weighted")):
        np.testing.assert_allclose(table.loc[row, ["precision", "recall", "f1"]].astype(float), sk.precision_recall_fscore_support(y, said, average=average, zero_division=0)[:3])
    assert table.loc["accuracy", "f1"] == pytest.approx(sk.accuracy_score(y, said)) and table.loc["accuracy", "support"] == len(y)
    assert list(table.index) == [*it.classes, "macro", "weighted", "accuracy"]
    m = make_metric("f1_macro"); m.reset(); m.update(logits, it.targets)
    assert table.loc["macro", "f1"] == pytest.approx(m.compute())          # what training reported

def test_classes_that_are_predicted_but_not_met():
    it = Interpretation(torch.eye(3)[[0, 1, 2, 2]], torch.tensor([0, 1, 1, 0]), torch.zeros(4), list("abc"), [""]*4, np.arange(4))
    table = it.report()
    assert list(table.loc["c", ["precision", "recall", "f1", "support"]]) == [0, 0, 0, 0]
    assert table.loc["macro", "f1"] == pytest.approx(sk.f1_score([0, 1, 1, 0], [0, 1, 2, 2], average="macro"))

def test_most_confused():
    it,_ = answers(classes=5)
    m = it.confusion().matrix
    want = sorted(((m.iloc[i, j], -i, -j) for i in range(5) for j in range(5) if i != j and m.iloc[i, j]), reverse=True)
    got = it.most_confused()
    assert list(got.columns) == ["true", "predicted", "count"]
    assert [tuple(o) for o in got.to_numpy()] == [(f"class {-i}", f"class {-j}", n) for n,i,j in want]
    assert (it.most_confused(min_count=4)["count"] >= 4).all() and len(it.most_confused(min_count=4)) == sum(n >= 4 for n,_,_ in want)
    assert len(it.most_confused(min_count=0)) == len(want)                   # pairs that never happened are no confusion

def test_top_losses():
    it,logits = answers()
    want = nn.functional.cross_entropy(logits, it.targets, reduction="none")
    table = it.top_losses(20)
    assert list(table.columns) == ["path", "true", "predicted", "prob", "loss"]
    np.testing.assert_allclose(table.loss, want.topk(20).values, rtol=1e-4)
    row = table.iloc[0]; i = table.index[0]//3
    assert row.path == f"{i}.png" and row.true == it.classes[it.targets[i]] and row.predicted == it.classes[it.predicted[i]] and row.prob == pytest.approx(it.probs[i].max().item())
    assert len(it.top_losses(10**6)) == len(it)
    assert want.mean().item() == pytest.approx(sk.log_loss(it.targets, nn.functional.normalize(it.probs.double(), p=1)), abs=1e-4)

def test_repr():
    assert repr(answers()[0]).startswith("Interpretation: 400 images of 7 classes, ")
    perfect = Interpretation(torch.eye(2), torch.arange(2), torch.zeros(2), ["a", "b"], ["", ""], np.arange(2))
    assert repr(perfect) == "Interpretation: 2 images of 2 classes, 100.0% right" and len(perfect.most_confused()) == 0

# the block of large matrices

def test_block_has_the_worst_pairs():
    counts = np.diag(np.full(500, 90))
    for k in range(10): counts[40*k+30, 40*k+5] = 10+k
    ids = most_confused_block(counts, 20)
    assert sorted(ids) == list(ids) == sorted(o for k in range(10) for o in (40*k+5, 40*k+30))
    assert list(most_confused_block(counts, 4)) == [325, 350, 365, 390]

@pytest.mark.parametrize("n", [1, 2, 20, 31, 60])
def test_block_is_never_short(n):
    for counts in (np.diag(np.full(n, 5)), np.ones((n, n), int), np.zeros((n, n), int)):
        ids = most_confused_block(counts, 20)
        assert len(ids) == min(n, 20) == len(set(ids)) and ids.max(initial=0) < n

# figures and HTML

class Table(HTMLParser):
    "Collect tags and text, to see what a browser would"
    def __init__(self, html): super().__init__(); self.tags,self.text = [], ""; self.feed(html)
    def handle_starttag(self, tag, attrs): self.tags.append(tag)
    def handle_data(self, data): self.text += data

@pytest.mark.parametrize("n,drawn", [(1, 1), (2, 2), (10, 10), (30, 30), (31, 20), (1000, 20)])
def test_figures_of_any_size(n, drawn):
    rng = np.random.default_rng(0)
    y = rng.integers(0, n, 3000)
    c = Confusion(count_pairs(y, np.where(rng.random(3000) < .3, rng.integers(0, n, 3000), y), n), [f"name of class {i}" for i in range(n)])
    fig = c.plot()
    labels = [o.get_text() for o in fig.axes[0].get_yticklabels()]
    assert len(labels) == drawn and c._repr_png_().startswith(b"\x89PNG")
    assert Table(c._repr_html_()).tags.count("tr") == drawn+1
    assert (f"{drawn} of {n}" in fig.axes[0].get_title()) == (f"{drawn} of {n}" in c._repr_html_()) == (n > 30)
    assert c.matrix.shape == (n, n)

def test_hostile_names():
    names = ["<script>alert(1)</script>", "'\"><img src=x onerror=alert(1)>", "$\\frac{", "new\nline", "\udcff"]
    c = Confusion(np.arange(25).reshape(5, 5), names)
    page = Table(c._repr_html_())
    assert set(page.tags) <= {"table", "caption", "thead", "tbody", "tr", "th", "td"} and "<script>alert(1)" in page.text
    c._repr_html_().encode()                                                # a notebook is written as UTF-8
    assert c._repr_png_()

def test_counts_stand_in_the_figure():
    texts = lambda c: sorted(o.get_text() for o in c.plot().axes[0].texts)
    assert texts(Confusion([[1234, 0], [5, 0]], ["a", "b"])) == ["1,234", "5"]

# from a learner

@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for c,name in enumerate(["kite", "lamp", "moth"]):
        (root/name).mkdir()
        for i in range(8): Image.fromarray(np.random.default_rng(8*c+i).integers(0, 256, (40+i, 50, 3), dtype=np.uint8)).save(root/name/f"{i}.png")
    return root

def make_learner(data, **kwargs):
    dm = ImageDataModule(data, image_size=32, batch_size=4, val_split=.3, num_workers=1, **kwargs)
    return Learner(dm, "resnet9", device="cpu")

@pytest.mark.parametrize("which", ["val", "train", "shuffled"])
def test_rows_belong_to_their_images(photos, which):
    learn = make_learner(photos)
    it = learn.interpret(learn.train_dl if which == "shuffled" else which)
    frame,split = learn.data.catalog.frame, "val" if which == "val" else "train"
    assert sorted(it.ids) == sorted(frame.index[frame["split"] == split]) and (list(it.ids) != sorted(it.ids)) == (which == "shuffled")
    assert it.paths == frame.loc[it.ids, "path"].tolist()
    assert [it.classes[i] for i in it.targets] == frame.loc[it.ids, "label"].tolist()
    if which != "shuffled":
        want = torch.stack([o.probs for o in learn.predict([photos/o for o in it.paths])])
        torch.testing.assert_close(it.probs, want, atol=1e-5, rtol=0)

def test_pictures_are_what_the_model_saw(photos):
    learn = make_learner(photos)
    batch = next(iter(learn.data.val_dataloader()))
    it = learn.interpret()
    seen = (learn.data.denormalize(batch.image)*255).round().byte().permute(0, 2, 3, 1).numpy()
    for i,x in zip(batch.index.tolist(), seen): assert (it.picture(i) == x).all()
    fig = it.plot_top_losses(5)
    assert len(fig.axes) == 5
    worst = it.top_losses(5)
    assert (fig.axes[0].images[0].get_array() == it.picture(worst.index[0])).all()
    title = fig.axes[0].get_title()
    assert all(o in title for o in (worst.true.iloc[0], worst.predicted.iloc[0], f"{worst.loss.iloc[0]:.2f}", f"{worst.prob.iloc[0]:.0%}"))

def test_pictures_of_a_transform_of_ones_own(photos):
    learn = make_learner(photos, eval_transforms=lambda im: np.array(im.resize((32, 32))))
    it = learn.interpret()
    assert it.picture(it.ids[0]).shape[:2] == Image.open(photos/it.paths[0]).size[::-1] and it.plot_top_losses(2)

def test_defaults_and_numbers_agree_with_validation(photos):
    learn = make_learner(photos)
    it,scores = learn.interpret(), learn.validate()
    assert it.losses.mean().item() == pytest.approx(scores["valid_loss"], abs=1e-5)
    assert it.report().loc["accuracy", "f1"] == pytest.approx(scores["accuracy"])

def test_sure_and_wrong_is_a_finite_loss():
    class Sure(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.tensor(1.))
        def forward(self, x): return self.w*torch.tensor([[1e4, -1e4, 0.]]).expand(len(x), 3)
    data = [(torch.zeros(2, 3, 4, 4), torch.tensor([1, 0]))]
    it = Learner((data, data), Sure(), device="cpu").interpret()
    assert it.losses.tolist() == [2e4, 0.] and it.classes == ["0", "1", "2"]

def test_images_without_a_label_are_left_out(photos):
    learn = make_learner(photos)
    frame = learn.data.catalog.subset("val").frame.copy()
    frame.iloc[:2, frame.columns.get_loc("label")] = None
    part = learn.data.predict_dataloader(Catalog(frame, learn.data.classes, photos))
    it = learn.interpret(part)
    assert list(it.ids) == frame.index[2:].tolist() and (it.targets >= 0).all()
    with pytest.raises(ConfigError, match="no labels"): learn.interpret(learn.data.predict_dataloader(photos))

def test_errors(photos):
    learn = make_learner(photos)
    with pytest.raises(DataError, match="test"): learn.interpret("test")
    data = [(torch.zeros(2, 3, 32, 32), torch.arange(2))]
    with pytest.raises(ConfigError, match="validation"): Learner(data, learn.model, device="cpu").interpret()
    with pytest.raises(ConfigError, match="ImageDataModule"): Learner((data, data), learn.model, device="cpu").interpret().plot_top_losses()

def test_import_is_light():
    code = "import sys, visionlab.interpret.interpretation; print([o for o in ('matplotlib', 'sklearn', 'timm', 'torchvision') if o in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(interpret.__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    assert "sklearn" not in Path(interpret.__file__).read_text()

# ---- labels that are likely wrong, and the images behind a number

def doubts(n=400, several=False):
    "Answers of a good model, and which labels were set wrong."
    rng = np.random.default_rng(0)
    wrong = np.sort(rng.choice(n, 20, replace=False))
    if several:
        true = (rng.random((n, 5)) < .3).astype(np.float32)
        probs = np.abs(true - rng.uniform(.02, .3, true.shape)).astype(np.float32)
        true[wrong, 2] = 1 - true[wrong, 2]
    else:
        true = rng.integers(0, 5, n)
        probs = rng.dirichlet(np.ones(5), n)*.4 + .6*np.eye(5)[true]
        true[wrong] = (true[wrong] + 1) % 5
    y = torch.as_tensor(true)
    p = torch.as_tensor(probs).float()
    losses = torch.nn.functional.binary_cross_entropy(p, y, reduction="none").mean(1) if several else -p.gather(1, y[:, None])[:, 0].log()
    return Interpretation(p, y, losses, list("abcde"), [f"{i}.png" for i in range(n)], np.arange(n)*3, task="multilabel" if several else "multiclass"), wrong*3

@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("by", ["confident", "loss", "margin"])
def test_wrong_labels_come_first(by, several):
    found, wrong = doubts(several=several)
    table = found.label_errors(by)
    assert np.isin(wrong, table.index[:24]).all() and len(table) == len(found) and set(table.index) == set(found.ids)
    assert np.isin(wrong, table.index[table.suspect]).mean() > .3
    first = table.loc[wrong[0]]
    assert first.suggested != first.label and first.p_suggested > first.p_label and first.path == f"{wrong[0]//3}.png"
    if several: assert set(first.label) ^ set(first.suggested) == {"c"}

def test_confident_learning_begins_with_what_the_doctor_lists():
    from visionlab.catalog.label_issues import label_issues
    found, _ = doubts()
    table, other = found.label_errors("confident"), label_issues(found.targets.numpy(), found.probs.numpy())
    same = table.head(len(other))
    assert len(other) > 5
    assert list(same.index) == [3*i for i in other["row"]] and [found.classes.index(o) for o in same.suggested] == list(other["value"])

@pytest.mark.parametrize("several", [False, True])
def test_the_images_of_all_cells_are_all_images(several):
    found, _ = doubts(several=several)
    cells = [found.images(a, b) for a in found.classes for b in (("found", "missed", "false alarm") if several else found.classes)]
    if not several: assert sorted(i for o in cells for i in o.index) == sorted(found.ids)
    else: assert [len(o) for o in cells] == found.outcomes().to_numpy().ravel().tolist()
    assert all(o.prob.is_monotonic_decreasing and len(o.columns) == 5 for o in cells)
    with pytest.raises(UnknownOptionError): found.images("a", "z")
    with pytest.raises(UnknownOptionError): found.label_errors("worst")

@pytest.mark.parametrize("several", [False, True])
def test_answers_of_all_folds(several):
    import pandas as pd
    from visionlab.callbacks.kfold import OutOfFold
    known, wrong = doubts(40, several)
    labels = [tuple("abcde"[j] for j in o.nonzero()[:, 0].tolist()) for o in known.targets] if several else ["abcde"[i] for i in known.targets.tolist()]
    frame = pd.DataFrame(dict(path=[f"{i}.png" for i in range(40)], label=pd.Series(labels, dtype=object), split=["train"]*30 + ["val"]*6 + ["test"]*4)).set_axis(np.arange(40)*3)
    pixels = {i:np.full((4, 4, 3), i, np.uint8) for i in frame.index}
    class Reader:
        def __getitem__(self, i): return pixels[i]
    cat = Catalog(frame, list("abcde"), reader=Reader(), **(dict(task="multilabel") if several else {}))
    fold = np.arange(40) % 2
    fold[-4:] = -1                                              # test images are not asked about
    probs = known.probs.numpy().copy(); probs[-4:] = np.nan
    found = interpret.interpret_folds(OutOfFold(probs, cat.targets(), fold, pd.DataFrame(), cat))
    assert len(found) == 36 and found.ids.tolist() == frame.index[:36].tolist() and found.task == known.task
    assert torch.allclose(found.losses, known.losses[:36], atol=1e-4)
    assert found.picture(9)[0, 0, 0] == 9 and set(found.label_errors().index) == set(frame.index[:36])
