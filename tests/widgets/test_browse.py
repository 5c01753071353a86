"Looking at data without a browser: finding images, browsing files, training batches as the loss gets them, the balance of classes, second opinions."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from kernel import n_widgets
from torch import nn

from visionlab.interpret import label_opinions as opinions
from visionlab.widgets.class_balance import class_pairs, co_occurrence, even_counts
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ConfigError, DataError, UnknownOptionError
from visionlab.data.module import ImageDataModule
from visionlab.interpret.interpretation import interpret_probs
from visionlab.training.events import Callback
from visionlab.training.learner import Learner
from visionlab.training.losses import class_weights
from visionlab.callbacks.mixing import Mix
from visionlab.widgets.query import query_rows
from visionlab.widgets.browse import find_rows

pytestmark = pytest.mark.usefixtures("one_thread")


class Pictures:
    "A reader that draws image `i` when it is asked for, and counts."
    def __init__(self, n): self.n, self.asked = n, []
    def __len__(self): return self.n
    def __getitem__(self, i):
        self.asked.append(i)
        return np.full((8, 8, 3), i % 256, np.uint8)


def large(n=100_000, classes=1000):
    frame = pd.DataFrame(dict(path=[f"{i}.png" for i in range(n)], label=[f"class {i % classes:04}" for i in range(n)], split=np.where(np.arange(n) % 10, "train", "val"), width=np.arange(n) % 640))
    return Catalog(frame, sorted(set(frame["label"])), reader=Pictures(n), source="many")


def small(labels, several=False, n_val=4, **kw):
    "A data module of noise with these training labels."
    n = len(labels)
    classes = sorted({o for label in labels for o in (label if several else [label])})
    frame = pd.DataFrame(dict(path=[f"{i:04}.png" for i in range(n+n_val)], label=pd.Series([*labels, *labels[:n_val]], dtype=object), split=["train"]*n + ["val"]*n_val))
    pixels = np.random.default_rng(0).integers(0, 256, (n+n_val, 8, 8, 1), dtype=np.uint8)
    return ImageDataModule(Catalog(frame, classes, pixels=pixels, source="noise", **(dict(task="multilabel") if several else {})), **(dict(batch_size=8, num_workers=0) | kw))


def learner(dm, **kw): return Learner(dm, nn.Sequential(nn.Flatten(), nn.Linear(64, len(dm.classes))), device="cpu", lr=1e-2, **kw)


@pytest.fixture(scope="module")
def many(): return large()


# ---- finding

@pytest.mark.parametrize("query,n", [("width > 600", 6084), ("label == 'class 0007'", 100), ("split == 'val' and label in ['class 0010', 'class 0011']", 100),
                                     ("index < 5 or path == '99999.png'", 6), ("label.str.endswith('99') and width != 3", 1000)])
def test_queries_find(many, query, n):
    assert query_rows(many.frame, query).sum() == n == len(find_rows(many, query=query))


@pytest.mark.parametrize("query,text", [("widht > 3", "Did you mean width"), ("label = 'a'", "two compare"), ("width +", "cannot be answered"), ("width", "not yes or no"), ("@os.getcwd()", "cannot be answered"),
                                        ("label > 3", "cannot be answered"), ("nothing == 1", "Columns: path, label, split, width, index"), ("__import__('os')", "cannot be answered")])
def test_what_is_no_question_is_explained(query, text):
    cat = large(20, 3)
    with pytest.raises(ConfigError, match="(?s)" + text): query_rows(cat.frame, query)
    browser = cat.browse()
    with pytest.raises(ConfigError, match="(?s)" + text): browser.query = query
    assert browser.query == ""


@pytest.mark.parametrize("query", ["path.to_csv('{}')", "path.to_csv('{}') == 1", "width > 3 and path.to_pickle('{}') == 1", "label = path.to_csv('{}')", "width > 3\npath.to_csv('{}')",
                                   "index.to_series().to_csv('{}') == 1", "label == '`' + path.to_csv('{}') + '`'", "path.str.cat.__self__ == 1", "path.map(print) == 1", "path.apply('to_csv') == 1",
                                   "[o for o in path] == 1", "(lambda: 1)() == 1", "path.values.tofile('{}') == 1", "`path`.to_csv('{}') == 1", "@path.to_csv('{}')", "9**9**9**9 > width", "path.str.len.__globals__ == 1"])
def test_queries_only_compare(query, tmp_path):
    cat,target = large(20, 3), tmp_path/"out"
    with pytest.raises(ConfigError, match="cannot be answered"): find_rows(cat, query=query.format(target))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("query", ["path.str.lower().str.endswith('.png')", "path.str.contains('`@') == False", "not (width < 0) and ~(width + 1 < 0)", "label.isin(['class 0000', 'class 0001', 'class 0002'])",
                                   "`width` >= 0", "label.notna() & (width >= 0)", "width.between(0, 1000000)", "path.str.len() > 1 and\nwidth >= 0", "0 <= width"])
def test_queries_that_compare_are_answered(query):
    assert len(find_rows(large(20, 3), query=query)) == 20


def test_missing_labels_and_several_classes_in_queries():
    cat = Catalog(pd.DataFrame(dict(path=["a", "b", "c"], label=[("x", "y"), (), None])), ["x", "y"], task="multilabel", pixels=np.zeros((3, 4, 4, 3), np.uint8))
    assert query_rows(cat.frame, "label.str.contains('y')").tolist() == [True, False, False]
    assert find_rows(cat, label="y").tolist() == [0] and find_rows(cat, query="label == 'none'").tolist() == [1]


# ---- browsing

def test_only_the_page_is_opened(many):
    asked = many.reader.asked
    browser = many.browse("width > 600", by="width", down=True, n=16)
    assert not asked
    browser.to_html()
    assert len(asked) == 16 and set(asked) == set(browser.shown.index) and browser.shown["width"].min() == 639
    asked.clear()
    browser.page = len(browser.rows)//16
    assert len(browser.tiles()[0]) == len(asked) == len(browser.rows) % 16
    browser.next()
    assert browser.page == len(browser.rows)//16               # the last page stays
    asked.clear()
    browser.label, browser.split = "class 0640", "val"
    assert browser.page == 0 and not asked and set(browser.shown["label"]) <= {"class 0640"}


def test_orders():
    cat = large(50, 7)
    assert cat.browse(by="width", down=True).shown.index[0] == 49 and cat.browse().shown.index[0] == 0 and cat.browse(down=True).shown.index[0] == 49
    shuffled = [cat.browse(by="shuffled", n=50).rows.tolist() for _ in range(2)]
    assert shuffled[0] == shuffled[1] != sorted(shuffled[0]) == list(range(50))
    assert cat.browse(by="label").shown["label"].is_monotonic_increasing
    with pytest.raises(UnknownOptionError, match="width"): cat.browse(by="widht")
    with pytest.raises(UnknownOptionError): cat.browse(split="test")
    with pytest.raises(UnknownOptionError): cat.browse(label="class 9")
    with pytest.raises(ConfigError): cat.browse(n=0)


def test_files_show_their_size_and_what_cannot_be_read_has_a_place(tmp_path):
    for i in range(3):
        (tmp_path/f"{'ab'[i % 2]}").mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(tmp_path/f"{'ab'[i % 2]}/{i}.jpg")
    (tmp_path/"b/broken.jpg").write_bytes((tmp_path/"b/1.jpg").read_bytes()[:900])
    browser = Catalog.from_folder(tmp_path).browse()
    images, captions, titles = browser.tiles()
    assert captions == ["a", "a", "b", "cannot be read: truncated"] and "400 × 300 px" in titles[0] and " kB" in titles[0] and "index 0" in titles[0]
    assert browser.to_html().count("<img") == 4 and "a/0.jpg" in browser.to_html()


def test_looking_at_some_and_nothing():
    browser = large(50, 7).browse(n=5)
    browser.look([3, 10, 17, 4], "sevens")
    assert browser.rows.tolist() == [3, 10, 17, 4] and "sevens" in browser.to_html()
    browser.label = "class 0003"
    assert browser.rows.tolist() == [3, 10, 17]
    browser.query = "width > 1000"
    assert "no image is like this" in browser.to_html() and browser.to_html().count("<img") == 0
    browser.figure()
    browser.look()
    browser.query, browser.label = "", ""
    assert len(browser.rows) == 50


def test_controls_of_the_browser_and_their_slips():
    browser = large(3000, 200).browse(n=6)
    browser.widget
    (split, label, query, by, down), (previous, following, page) = (o.children for o in browser.widget.children[:2])
    assert len(label.options) == 200 and type(label).__name__ == "Combobox"
    label.value = "class 0042"
    assert browser.label == "class 0042" and len(browser.rows) == 15
    query.value = "widht > 3"
    assert "Did you mean width" in browser._picture.value and "role='alert'" in browser._picture.value and "<img" in browser._picture.value and browser.query == ""
    query.value = "width > 3"
    assert "role='alert'" not in browser._picture.value and browser.query == "width > 3"
    label.value = "nobody"
    assert "nobody" in browser._picture.value and browser.label == "class 0042"
    label.value = ""
    by.value, down.value = "width", True
    assert browser.shown["width"].max() == 639
    page.value = 3; assert browser.page == 2
    following.click(); assert page.value == 4
    before = n_widgets()
    for i in range(60): following.click(); query.value = f"width > {i}"; down.value = i % 2 == 0
    assert n_widgets() == before


# ---- batches

class Watch(Callback):
    "Keep what the loss gets, batch by batch of one epoch."
    order = 50
    def __init__(self): self.seen = []
    def before_batch(self, learn): self.seen.append((learn.xb.clone(), learn.yb.clone()))


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_mixed_batches_are_those_of_the_next_fit(several, each):
    labels = ["ab"[i % 2] if not several else tuple("abc"[: i % 4]) for i in range(30)]
    learn = learner(small(labels, several), callbacks=[Mix(mixup=1., each=each)])
    learn.fit(1)                                              # what is shown begins where training is
    grid = learn.show_batch(n=8)
    shown = []
    for grid.page in range(len(learn.train_dl)): shown.append((grid.batch.image, grid.batch.target))
    learn.fit(1, callbacks=[watch := Watch()])
    for (x, y), (x2, y2) in zip(shown, watch.seen, strict=True): assert torch.equal(x, x2) and torch.equal(y, y2)
    assert "as the loss gets them" in grid.to_html()
    grid.mixed = False
    assert "as the model sees them" in grid.to_html() and "%" not in "".join(grid.tiles()[1])


def test_shares_and_weights_are_written():
    learn = learner(small(["a"]*30 + ["b"]*10), class_weights=[1., 3.])
    grid = learn.show_batch(n=40)
    assert set(grid.tiles()[1]) == {"a ×1", "b ×3"} and any("counts 3 times in the loss" in o for o in grid.tiles()[2])
    mixed = learn.show_batch(n=8, callbacks=[Mix(mixup=1., cutmix=0)])
    target = mixed.batch.target
    weights = target @ torch.tensor([1., 3.])
    for caption, w, y in zip(mixed.tiles()[1], weights, target):
        assert caption.endswith(f"×{w:.2g}") and all(f"{p:.0%} {c}" in caption for p, c in zip(y.tolist(), "ab") if .02 < p < 1)
    with pytest.raises(ConfigError, match="Nothing mixes"): grid.mixed = True


def test_a_class_or_a_query_leaves_its_images_as_training_has_them():
    dm = small(["a", "b", "c"]*10, augmentation_preset="default", image_size=8)
    own = {int(i):x for b in dm.train_dataloader().batches(0) for i, x in zip(b.index, b.image)}
    grid = dm.show_batch(n=6)
    grid.label = "b"
    assert set(grid.tiles()[1]) == {"b"} and all(torch.equal(x, own[int(i)]) for i, x in zip(grid.batch.index, grid.batch.image))
    grid.query = "index < 9"
    assert sorted(grid.batch.index.tolist()) == [1, 4, 7]
    grid.query = "index < 0"
    assert grid.batch is None and "no image is like this" in grid.to_html()


def test_balanced_batches_say_how_often_an_image_comes():
    grid = small(["a"]*30 + ["b"]*10, balanced_sampling=True).show_batch(n=16)
    assert {o.split(" · ")[3] for o in grid.tiles()[2]} <= {"drawn 0.67 times an epoch", "drawn 2 times an epoch"}


def test_learners_without_a_data_module_say_so():
    bare = Learner(([(torch.randn(4, 6), torch.arange(4) % 3)],)*2, nn.Linear(6, 3), device="cpu")
    for act in (bare.show_batch, bare.class_balance, bare.second_opinion):
        with pytest.raises(ConfigError): act()


# ---- balance

def test_pairs_of_classes_against_counting():
    rng = np.random.default_rng(0)
    labels = [tuple(np.array(list("abcde"))[rng.random(5) < .4]) for _ in range(300)]
    cat = small(labels, several=True).catalog
    both = co_occurrence(cat)
    for x in "abcde":
        for y in "abcde": assert both.loc[x, y] == sum(x in o and y in o for o in labels)
    pairs = class_pairs(cat, least=0)
    assert len(pairs) == 10
    for o in pairs.itertuples():
        n = {c: sum(c in label for label in labels) for c in "abcde"}
        assert o.expected == pytest.approx(n[o.first]*n[o.second]/300) and o.lift == pytest.approx(o.together/o.expected) and o.of_first == pytest.approx(o.together/n[o.first])
    with pytest.raises(ConfigError, match="several"): co_occurrence(small(["a", "b"]*8).catalog)


def test_a_thousand_classes_are_searched_and_paged():
    view = large(20_000).class_balance()
    assert len(view.shown) == 20
    view.widget
    buttons = [b for _, b in view._lines]
    assert len(buttons) == 20 and buttons[0].description == "class 0001"         # those of `train` are more
    view.search = "99"
    assert len(view._found()) == 19 and all("99" in o for o in view.shown.index) and sum(b.layout.display is None for b in buttons) == 19
    view.search = "no such"
    assert not len(view.shown) and "no class has &#x27;no such&#x27;" in view._picture.value and all(b.layout.display == "none" for b in buttons)
    view.search = ""
    view.next(); assert view.page == 1 and buttons[0].description == view.shown.index[0]
    before = n_widgets()
    for i in range(40): view.search = str(i); view.next(); view.by = ("count", "name")[i % 2]
    assert n_widgets() == before


def test_a_bar_opens_its_images():
    view = small(["a"]*20 + ["b"]*6).class_balance()
    view.widget
    assert not view._images.children
    view._lines[1][1].click()
    assert view.selected == "b" and set(view.browser.shown["label"]) == {"b"} and view._images.children and view._lines[1][1].description == "▸ b"
    before = n_widgets()
    view._lines[0][1].click()
    assert set(view.browser.shown["label"]) == {"a"} and view._lines[1][1].description == "b" and n_widgets() == before
    view.show("a", "val"); assert set(view.browser.shown["split"]) == {"val"}
    with pytest.raises(UnknownOptionError): view.show("c")


def test_pairs_open_their_images():
    rng = np.random.default_rng(0)
    view = small([tuple(np.array(list("abc"))[rng.random(3) < .5]) for _ in range(60)], several=True).class_balance()
    view.widget
    view.what = "pairs"
    name = view.shown.index[0]
    view._lines[0][1].click()
    assert view.selected == name and all(set(name.split(" + ")) <= set(o) for o in view.browser.shown["label"]) and "lift" in view._head.value
    with pytest.raises(UnknownOptionError): view.what = "triples"
    with pytest.raises(UnknownOptionError): small(["a", "b"]*8).class_balance().__setattr__("what", "pairs")


def test_use_switches_the_data_module():
    dm = small(["a"]*60 + ["b"]*12)
    view = dm.class_balance()
    view.even = "sampling"; view.use()
    y = torch.cat([b.target for b in dm.train_dataloader().batches(0)])
    assert dm.balanced_sampling and abs((y == 0).float().mean() - .5) < .15 and "balanced sampling from its next fit" in view.note and dm.class_balance().even == "sampling"
    view.even = "weights"; view.use()
    assert not dm.balanced_sampling and torch.allclose(learner(dm).loss_func.weight, class_weights([60, 12])) and dm.class_balance().even == "weights"
    assert learner(dm, loss=nn.CrossEntropyLoss()).loss_func.weight is None                 # a loss of one's own stays as it is
    assert learner(dm, class_weights=[1, 1.]).loss_func.weight.tolist() == [1, 1]           # what is given goes first
    view.even = "none"; view.use()
    assert learner(dm).loss_func.weight is None


def test_use_switches_a_learner():
    dm = small(["a"]*60 + ["b"]*12)
    learn = learner(dm)
    view = learn.class_balance()
    view.even = "weights"; view.use()
    assert torch.allclose(learn.loss_func.weight, class_weights([60, 12])) and learn.valid_loss_func.weight is None
    learn.fit(1)
    view.even = "sampling"; view.use()
    assert learn.loss_func.weight is None and learn.train_dl.weights is not None and not dm.balanced_sampling
    learn.fit(1, callbacks=[watch := Watch()])
    assert abs((torch.cat([y for _, y in watch.seen]) == 0).float().mean() - .5) < .2
    own = learner(dm, loss=nn.CrossEntropyLoss()).class_balance()
    own.even = "weights"
    own.widget
    own._try(own.use)
    assert "loss of your own" in own._picture.value
    with pytest.raises(ConfigError, match="catalog"): dm.catalog.class_balance().use()


def test_weights_of_several_classes_are_those_of_the_loss():
    dm = small([("a",)]*40 + [("a", "b")]*5 + [()]*3, several=True)
    table = even_counts(dm.catalog, "weights")
    assert table["weight"].tolist() == pytest.approx(learner(dm, class_weights="auto").loss_func.weight.tolist(), rel=1e-4)


# ---- second opinions

def blobs(n=240, seed=0):
    "Three heaps of points, a twelfth of the labels wrong."
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    x = np.eye(3)[truth]*4 + rng.normal(size=(n, 3))*.4
    wrong = rng.choice(n, n//12, replace=False)
    y = truth.copy(); y[wrong] = (y[wrong] + 1) % 3
    frame = pd.DataFrame(dict(path=[f"{i}.png" for i in range(n)], label=[f"class {i}" for i in y], split="train"))
    return Catalog(frame, ["class 0", "class 1", "class 2"], pixels=np.zeros((n, 4, 4, 1), np.uint8), source="heaps"), x, truth, wrong


def test_neighbours_contradict_wrong_labels():
    cat, x, truth, wrong = blobs()
    near = opinions.neighbours(cat, x)
    assert (near.predicted.numpy() == truth).all() and torch.allclose(near.probs.sum(1), torch.ones(len(cat)))
    assert set(near.label_errors("confident").index[:len(wrong)]) == set(wrong)
    with pytest.raises(ConfigError): opinions.neighbours(cat, x[:5])
    with pytest.raises(DataError): opinions.neighbours(cat, x, k=500)
    x[7] = 0                                                   # an image that could not be read
    assert 7 not in opinions.neighbours(cat, x).ids
    unlabelled = replace(cat, frame=cat.frame.assign(label=[None if i < 5 else o for i, o in enumerate(cat.frame["label"])]))
    assert set(range(5)).isdisjoint(opinions.neighbours(unlabelled, x).ids)


def test_nobody_votes_for_itself():
    cat = Catalog(pd.DataFrame(dict(path=list("abcd"), label=["x", "y", "y", "y"], split="train")), ["x", "y"], pixels=np.zeros((4, 4, 4, 1), np.uint8))
    assert opinions.neighbours(cat, np.ones((4, 2)), k=2).predicted[0] == 1


def test_disagreement_counts_opinions():
    cat, x, truth, wrong = blobs()
    right = np.eye(3)[truth]*.7 + .1
    stubborn = np.eye(3)[cat.targets()]*.7 + .1               # has learned the labels by heart
    both = opinions.combine(interpret_probs(cat, right), interpret_probs(cat, stubborn), opinions.neighbours(cat, x))
    table = both.label_errors("disagreement")
    assert set(table.index[:len(wrong)]) == set(wrong) and table["against"].iloc[0] == pytest.approx(2/3) and table["against"].iloc[-1] == 0
    assert set(table["suggested"].head(3)) <= set(cat.classes)
    assert len(opinions.combine(both, interpret_probs(cat, right)).members) == 4
    part = right.copy(); part[::2] = np.nan
    assert len(opinions.combine(interpret_probs(cat, right), interpret_probs(cat, part))) == len(cat)//2
    with pytest.raises(ConfigError): opinions.combine(both)
    other = replace(cat, frame=cat.frame.assign(label="a"), classes=["a", "b", "c"])
    with pytest.raises(DataError, match="different classes"): opinions.combine(both, interpret_probs(other, right))


def test_opinions_about_several_classes():
    rng = np.random.default_rng(0)
    labels = [tuple(np.array(list("abc"))[rng.random(3) < .5]) for _ in range(60)]
    cat = small(labels, several=True, n_val=0).catalog
    y = torch.as_tensor(cat.targets())
    one, two = y*.8 + .1, y*.8 + .1
    one[4, 1], two[4, 1], two[9, 0] = 1-one[4, 1], 1-two[4, 1], 1-two[9, 0]
    table = opinions.combine(interpret_probs(cat, one), interpret_probs(cat, two)).label_errors("disagreement")
    assert table.index[:2].tolist() == [4, 9] and table["against"].head(3).tolist() == [1, .5, 0]
    near = opinions.neighbours(cat, np.random.default_rng(1).normal(size=(len(cat), 5)))
    assert near.probs.shape == (len(cat), 3) and near.probs.min() > 0 and near.probs.max() < 1
