"File names that are no valid text go through every door that makes a table of paths"
import os, shutil
import numpy as np, torch
import pytest
from PIL import Image
from visionlab.all import *
from visionlab.runs.evaluate import evaluate
from visionlab.widgets.browse import find_rows

ODD = os.fsdecode(b"caf\xe9.png")

@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    "Folders of two classes in two splits, with a name in Latin-1 in each, and a learner"
    root = tmp_path_factory.mktemp("odd")
    for s in ("train", "val"):
        for k,c in enumerate(("cat", "dog")):
            (root/s/c).mkdir(parents=True)
            for i,name in enumerate((ODD, "b.png", "c.png")):
                pixels = np.random.default_rng([k, i, len(s)]).integers(0, 255, (16, 16, 3)).astype("uint8")
                Image.fromarray(pixels).save(root/s/c/name)
    learn = Learner(ImageDataModule(root, image_size=16, num_workers=0, batch_size=4, cache=None, on_leak="ignore"), "resnet9", pretrained=False)
    return root, learn

def has_odd(paths): return any(str(o).endswith(ODD) for o in paths)

def test_check(odd, tmp_path):
    report = check(odd[0], progress=False)
    repr(report), report._repr_html_(), report.edits()
    for kind in ("html", "json", "csv"): report.save(tmp_path/f"r.{kind}")

def test_check_of_copies(odd, tmp_path):
    for c in ("cat", "dog"):
        (tmp_path/c).mkdir()
        for n in (ODD, "b.png"): (tmp_path/c/n).write_bytes((odd[0]/"train"/c/n).read_bytes())
    (tmp_path/"cat"/os.fsdecode(b"copy\xe9.png")).write_bytes((tmp_path/"cat"/ODD).read_bytes())
    report = check(tmp_path, progress=False)
    assert len(report.pairs()) == 1 and len(report.catalog.apply_edits(report.edits())) == 4

def test_predictions(odd):
    root,learn = odd
    found = learn.predict(root/"val")
    assert has_odd(found.frame()["path"]) and len(found.frame()) == 6
    found._repr_html_(), repr(found)

def test_interpretation(odd):
    found = odd[1].interpret("val")
    assert has_odd(found.table(torch.arange(6))["path"]) and has_odd(found.label_errors()["path"])
    assert len(found.top_losses(6)) == 6 and found.images("cat", "dog") is not None and found.images("dog", "cat") is not None

def test_answers_keep_the_bytes(odd, tmp_path):
    root,learn = odd
    learn.export(tmp_path/"model")
    evaluate(tmp_path/"model", root, device="cpu").save(tmp_path/"a.csv")
    assert b"caf\xe9.png" in (tmp_path/"a.csv").read_bytes()

def test_views(odd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = odd[1]
    found = learn.interpret("val")
    for view in (found.explore(), learn.clean_labels("val"), learn.data.browse()): repr(view)
    assert len(find_rows(learn.data.catalog, query="path.str.contains('caf') and label == 'cat'")) == 2

def test_edits_and_labels(odd, tmp_path):
    learn = odd[1]
    cat = learn.data.catalog
    row = next(i for i,p in cat.frame["path"].items() if p.endswith(ODD))
    edits = [dict(path=cat.frame.at[row, "path"], action="exclude", value=None, note="", row=row)]
    assert len(cat.apply_edits(edits)) == len(cat) - 1
    probs = np.array([[.9, .1], [.1, .9]])[(1 - cat.targets())]
    assert has_odd(label_issues(cat, probs)["path"])

# ---- names that are odd in other ways, and what makes tables of its own

ODDITIES = [ODD, "two\nlines.png", "-rf.png", "x"*240 + ".png", "=1+1.png"]

def paint(path, *seed):
    "Write a small picture of noise"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3)).astype("uint8")).save(path)

def test_leaks(tmp_path):
    for k,name in enumerate(ODDITIES):
        for c in ("cat", "dog"):
            paint(tmp_path/"train"/c/name, k, len(c), ord(c[0]))
            (tmp_path/"val"/c).mkdir(parents=True, exist_ok=True)
            (tmp_path/"val"/c/name).write_bytes((tmp_path/"train"/c/name).read_bytes())
    cat = Catalog.from_folder(tmp_path)
    found = cat.leaks()
    repr(found), found._repr_html_()
    assert len(found) == 20 and has_odd(found["path"]) and found["copy"].nunique() == 10
    with pytest.warns(UserWarning, match="10 images of val are also in train") as said:
        dm = ImageDataModule(tmp_path, image_size=16, num_workers=0, batch_size=4, cache=None).setup()
    repr(dm)
    assert not any("\n" in str(o.message) or not str(o.message).isprintable() for o in said)

def test_clips(tmp_path):
    from visionlab.data.clips import avenue_catalog
    for k,name in enumerate((os.fsdecode(b"caf\xe9"), "two\nlines", "-rf", "x"*240)):
        for i in range(4): paint(tmp_path/"training_videos"/name/f"{i}.png", k, i)
    (tmp_path/"testing_videos").mkdir()
    cat,_ = avenue_catalog(tmp_path, test=False)
    repr(cat), cat._repr_html_()
    assert len(cat) == 12 and sum("caf" in o for o in cat.frame["path"]) == 3

def test_anomaly(tmp_path):
    from visionlab.models import ImageClassifier
    for k,name in enumerate(ODDITIES):
        for j,o in enumerate(("good", "good_test", "bad/scratch")): paint(tmp_path/o/name, k, j)
    dm = Folder("good", "bad", "good_test", root=tmp_path, image_size=(32, 32), train_batch_size=4, eval_batch_size=4, num_workers=0)
    scorer = AnomalyScorer(ImageClassifier("test_resnet", 2, pretrained=False), device="cpu", max_bank=100).fit(dm)
    result = scorer.evaluate()
    assert has_odd(result.table["path"]) and len(repr(result)) > 20
    assert result.plot() is not None

def test_runs_in_odd_folders(tmp_path, odd):
    names = [os.fsdecode(b"run\xe9"), "-rf", "two\nlines"]
    options = dict(data=str(odd[0]), model="resnet9", image_size=16, epochs=1, pretrained=False, num_workers=0, device="cpu", on_leak="ignore", say=None)
    train(out=str(tmp_path/"runs"/"plain"), **options)
    for name in names: shutil.copytree(tmp_path/"runs"/"plain", tmp_path/"runs"/name)
    found = list_runs(tmp_path/"runs")
    assert len(found.frame) == 4 and "\n-rf" not in repr(found).split("\n\n")[0]
    assert "visionlab" not in found._repr_html_()[:5] and {found[o].name for o in names} == set(names)
