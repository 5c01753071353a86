"What everyone meets on the way from data to training: options that are the same everywhere, doors, leaks, labels of any type, reports instead of errors."
import inspect
import json
import os
import threading
import time
import warnings
from dataclasses import fields, replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from nbclient import NotebookClient
from photos import photo_folder
from visionlab.catalog.catalog import Catalog
from visionlab.cli import main
from visionlab.core.errors import (
    ClassMismatchError, ConfigError, DataError, EmptyDatasetError, TooManyBadFilesError, UnknownOptionError,
    VisionlabError)
from visionlab.data.audit import audit
from visionlab.data.module import ImageDataModule
from visionlab.catalog.looks import counted, Counting
from visionlab.catalog.doctor import check
from visionlab.data.images import Images, luminance
from visionlab.images.decode import load_image
from visionlab.data.multilabel import MultiLabelImageDataModule
from visionlab.catalog.leaks import LeakError
from visionlab.runs.config import TrainConfig
from visionlab.runs.making import make_data
from visionlab.runs.train import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path): monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return photo_folder(tmp_path_factory.mktemp("road"), n_train=10, n_val=4, size=40, classes=("brick", "chelsea", "coffee"))


@pytest.fixture(scope="module")
def frame(folder):
    paths = sorted(folder.rglob("*.jpg"))
    return pd.DataFrame(dict(image_path=map(str, paths), label=[o.parent.name for o in paths], split=[o.parts[-3] for o in paths]))


def quiet(**kw): return dict(image_size=16, batch_size=8, num_workers=0) | kw
def three_lines(e): assert all((e.value.what, e.value.fix)) and str(e.value).count("\n") == 1 + bool(e.value.where), str(e.value)


def table(root, frame, name="t.csv", sep=","):
    frame.to_csv(root/name, index=False, sep=sep)
    return root/name


# ---- one set of options

PYTHON_ONLY = {"train_transforms", "eval_transforms"}      # functions
OTHER_NAMES = {"self": None, "data_dir": "data", "train_csv": "data"}


def test_every_option_of_the_module_is_one_of_train_and_the_command(capsys):
    module = set(inspect.signature(ImageDataModule.__init__).parameters) - PYTHON_ONLY - set(OTHER_NAMES)
    assert module <= {f.name for f in fields(TrainConfig)}, module - {f.name for f in fields(TrainConfig)}
    with pytest.raises(SystemExit): main(["train", "--help"])
    said = capsys.readouterr().out.replace("--[no-]", "--")
    for name in module: assert f"--{name.replace('_', '-')}" in said


def test_options_reach_the_module(folder, frame, tmp_path):
    table(tmp_path, frame.assign(label=frame["label"].str[0], person=range(len(frame)), note="x").rename(columns=dict(image_path="photo")))
    config = TrainConfig(str(tmp_path/"t.csv"), image_column="photo", label_column="label", classes=["c", "b"], group_col="person", max_samples=8, max_pixels=10**4, on_bad="skip", on_leak="ignore",
                         eval_batch_size=3, cache="none", csv_options=dict(task="multiclass"), timeout=9.)
    dm = make_data(config)
    assert dm.classes == ["c", "b"] and len(dm.catalog.subset("train")) == 8 and dm.catalog.info["max_pixels"] == 10**4
    assert dm.on_leak == "ignore" and dm.eval_batch_size == 3 and dm.cache is None and dm.loading["timeout"] == 9
    assert make_data(TrainConfig(str(folder), classes=["3=coffee", "7=brick"])).catalog.info["class_ids"] == [3, 7]
    assert len(make_data(TrainConfig(str(folder), val_split=5.)).catalog.subset("val")) == 12      # the folder's own


def test_the_command_takes_lists_pairs_and_json(frame, tmp_path, capsys):
    path = table(tmp_path, frame.rename(columns=dict(image_path="photo", label="what")).assign(note="x"), sep="|")
    argv = ["train", "--data", path, "--epochs", 1, "--model", "resnet9", "--image-size", 16, "--label-column", "what", "--image-column", "photo", "--csv-options", "delimiter=|", "--classes", "coffee", "brick",
            "--ignore-classes", "chelsea", "--normalize", "[[.4,.4,.4],[.3,.3,.3]]", "--on-leak", "ignore", "--num-workers", 0, "--out", tmp_path/"run"]
    assert main(list(map(str, argv))) == 0
    said = capsys.readouterr().out
    assert "'coffee'" in said or "coffee, brick" in said
    config = TrainConfig.load(tmp_path/"run/config.yaml")
    assert config.classes == ["coffee", "brick"] and config.csv_options == dict(delimiter="|") and config.normalize == ([.4]*3, [.3]*3)
    with pytest.raises(SystemExit): main(["train", "--data", "x", "--csv-options", "delimiter"])
    assert main(["train", "--data", "x", "--normalize", "{"]) == 2


def test_a_run_of_a_catalog_writes_its_configuration(folder, tmp_path):
    cat = Catalog.from_folder(folder)
    learn = train(data=cat, epochs=1, model="resnet9", image_size=16, num_workers=0, out=tmp_path/"run", say=None)
    assert TrainConfig.load(tmp_path/"run/config.yaml").data == cat.source and len(learn.history) == 1


# ---- bad rows

def test_on_bad_reaches_the_rows_of_tables(frame, tmp_path):
    bad = pd.concat([frame, pd.DataFrame(dict(image_path=["gone.jpg", frame["image_path"][0]], label=["brick", ""], split="train"))])
    for data in (bad, table(tmp_path, bad)):
        with pytest.raises(DataError, match="2 of 44 rows"): ImageDataModule(data, **quiet())
        with pytest.raises(DataError, match="2 of 44 rows"): ImageDataModule(data, on_bad="error", **quiet())
        dm = ImageDataModule(data, on_bad="skip", **quiet())
        assert len(dm.catalog) == 42 and dm.catalog.skipped["reason"].tolist() == ["missing", "missing label"]
    out = tmp_path/"run"
    learn = train(data=str(tmp_path/"t.csv"), on_bad="skip", epochs=1, model="resnet9", image_size=16, num_workers=0, out=out, say=None)
    assert len(learn.history) == 1 and "gone.jpg" in (out/"catalog/catalog.json").read_text()
    assert main(["train", "--data", str(tmp_path/"t.csv"), "--epochs", "1"]) == 1


# ---- a table in memory is a table

def test_frames_follow_the_rules_of_csvs(frame, tmp_path, monkeypatch):
    hot = pd.DataFrame({"filename": frame["image_path"], "brick": frame["label"] == "brick", "other": (frame["label"] != "brick").astype(float), "is_valid": frame["split"] == "val"})
    cases = [(frame, {}), (frame.rename(columns=dict(image_path="fname")), {}), (frame.drop(columns="split"), {}), (hot, {}), (hot.drop(columns="other").assign(x=1), dict(label_columns=["brick"])),
             (frame.assign(label=frame["label"]+";photo"), dict(label_delimiter=";")), (frame.rename(columns=dict(label="kind")).assign(more="x"), dict(label_column="kind"))]
    for i, (df, kw) in enumerate(cases):
        a, b = (ImageDataModule(o, on_leak="ignore", **kw, **quiet(val_split=0)).catalog for o in (df, table(tmp_path, df, f"{i}.csv")))
        assert a.classes == b.classes and a.task == b.task and a.frame["label"].tolist() == b.frame["label"].tolist() and a.frame["split"].tolist() == b.frame["split"].tolist()
        assert [os.path.realpath(o) for o in a.files()] == [os.path.realpath(o) for o in b.files()]
    with pytest.raises(DataError, match="several columns that may be labels"): ImageDataModule(frame.assign(more="x", kind=frame["label"]).drop(columns="label"), **quiet())
    monkeypatch.chdir(Path(frame["image_path"][0]).parent)
    local = frame.assign(image_path=[Path(o).name for o in frame["image_path"]])[:4].assign(label=["a", "b"]*2, split="train")
    assert len(ImageDataModule(local, **quiet(val_split=0)).catalog) == len(ImageDataModule(local, image_dir=".", **quiet(val_split=0)).catalog) == 4


def test_frames_keep_their_types(frame):
    df = frame.assign(when=pd.Timestamp("2024-02-29"), weight=np.arange(len(frame))/2)
    dm = ImageDataModule(df, label_column="label", group_col="weight", **quiet())
    assert str(dm.catalog.frame["when"].dtype).startswith("datetime64") and dm.catalog.frame["weight"].tolist() == df["weight"].tolist()
    numbers = frame.assign(label=frame["label"].map(dict(brick=10, chelsea=2, coffee=0)))
    assert ImageDataModule(numbers, **quiet()).classes == ["0", "2", "10"]
    assert ImageDataModule(numbers.assign(label=pd.factorize(frame["label"])[0]), classes=["x", "y", "z"], **quiet()).classes == ["x", "y", "z"]
    lists = frame.assign(label=[[o, "photo"] for o in frame["label"]])
    assert ImageDataModule(lists, **quiet()).task == "multilabel" and MultiLabelImageDataModule(lists, **quiet()).classes == ["brick", "chelsea", "coffee", "photo"]


def test_a_missing_list_is_not_an_empty_one(frame):
    lists = frame.assign(label=pd.Series([["a", "b"], [], None, float("nan")] + [["a"]]*(len(frame)-4), dtype=object))
    with pytest.raises(DataError, match="2 labels cannot be read\n.*row 2: missing label; row 3"): ImageDataModule(lists, **quiet())
    cat = ImageDataModule(lists, on_bad="skip", **quiet()).catalog
    assert cat.frame["label"].tolist()[:2] == [("a", "b"), ()] and cat.skipped["reason"].tolist() == ["missing label"]*2


def test_frames_for_each_split(frame):
    parts = {s: part.drop(columns="split").reset_index(drop=True) for s, part in frame.groupby("split")}
    dm = ImageDataModule(parts["train"], val_csv=parts["val"], **quiet())
    assert dm.catalog.frame["split"].value_counts().to_dict() == dict(train=30, val=12)


# ---- labels of any type

@pytest.mark.parametrize("make,classes", [
    (lambda y: torch.tensor(y), ["0", "1", "2"]), (lambda y: [torch.tensor(o) for o in y], ["0", "1", "2"]), (lambda y: np.array(y, np.uint8), ["0", "1", "2"]), (lambda y: [np.int64(o) for o in y], ["0", "1", "2"]),
    (lambda y: [np.str_("abc"[o]) for o in y], ["a", "b", "c"]), (lambda y: ["abc"[o].encode() for o in y], ["a", "b", "c"]), (lambda y: [np.bytes_("abc"[o]) for o in y], ["a", "b", "c"]),
    (lambda y: torch.tensor(y, dtype=torch.float32), ["0", "1", "2"]), (lambda y: pd.Categorical(["abc"[o] for o in y]), ["a", "b", "c"]), (lambda y: [torch.tensor(o, requires_grad=False) for o in y], ["0", "1", "2"]),
    (lambda y: [Path("abc"[o]) for o in y], ["a", "b", "c"])])
def test_labels_become_clean_names(frame, make, classes):
    y = [i % 3 for i in range(len(frame))]
    cats = [Catalog.from_lists(frame["image_path"], make(y)), ImageDataModule(pd.DataFrame(dict(image_path=frame["image_path"], label=pd.Series(list(make(y))))), **quiet(val_split=0)).catalog]
    for cat in cats:
        assert cat.classes == classes and cat.targets().tolist() == y
        assert all(type(o) is str for o in cat.frame["label"])
    if classes[0] == "0": assert Catalog.from_lists(frame["image_path"], make(y), classes=["x", "y", "z"]).frame["label"].tolist()[:3] == ["x", "y", "z"]


@pytest.mark.parametrize("odd,reason", [({"id": 3}, "type dict"), (torch.tensor([.2, .8]), "neither names nor ids"), (np.eye(2), "neither names nor ids"), (b"\xff\xfe", "UTF-8"), (object(), "type object"), (np.array([1, 0, 1]), "repeat")])
def test_what_is_no_label_is_refused_with_its_row(frame, odd, reason):
    labels = frame["label"].tolist()
    labels[5] = odd
    df = pd.DataFrame(dict(image_path=frame["image_path"], label=pd.Series(labels, dtype=object)))
    for read in (lambda **kw: Catalog.from_lists(frame["image_path"], labels, **kw), lambda **kw: ImageDataModule(df, **quiet(val_split=0), **kw).catalog):
        with pytest.raises(DataError, match=f"row 5.*{reason}") as e: read()
        three_lines(e)
        cat = read(on_bad="skip")
        assert len(cat) == len(frame) - 1 and reason in cat.skipped["reason"].tolist()[0] and cat.classes == ["brick", "chelsea", "coffee"]


def test_lists_of_ids_count_into_the_classes(frame):
    labels = [torch.tensor([0, 2]) if i % 2 else [np.int64(1)] for i in range(len(frame))]
    cat = Catalog.from_lists(frame["image_path"], labels, classes=["x", "y", "z"])
    assert cat.frame["label"].tolist()[:2] == [("y",), ("x", "z")]


# ---- classes

def test_classes_are_chosen_alike_from_every_source(folder, frame, tmp_path):
    want = dict(classes=["coffee", "brick"], on_leak="ignore")
    for data in (folder, Catalog.from_folder(folder), "FashionSample"):
        names = ["Bag", "Coat"] if data == "FashionSample" else want["classes"]
        dm = ImageDataModule(data, **want | dict(classes=names), **quiet())
        assert dm.classes == names and "not in classes" in set(dm.catalog.skipped["reason"]) and "not in classes" in repr(dm)
    for data in (frame, table(tmp_path, frame)):
        with pytest.raises(DataError, match="'chelsea' is not a class"): ImageDataModule(data, **want, **quiet())
        dm = ImageDataModule(data, **want, ignore_classes=["chelsea"], **quiet())
        assert dm.classes == want["classes"] and dm.catalog.skipped["reason"].unique().tolist() == ["ignored class"]
        assert ImageDataModule(data, ignore_classes=["chelsea"], **quiet()).classes == ["brick", "coffee"]
    for data in (folder, frame, Catalog.from_folder(folder)):
        with pytest.raises(VisionlabError, match="brik") as e: ImageDataModule(data, ignore_classes=["brik"], **quiet())
        three_lines(e)


def test_classes_that_are_numbers_get_names(tmp_path):
    root = photo_folder(tmp_path/"d", n_train=4, n_val=2, size=20, classes=("brick", "coffee"))
    for split in ("train", "val"):
        for i, name in enumerate(("brick", "coffee")): (root/split/name).rename(root/split/str(i*7))
    for data in (root, Catalog.from_folder(root)):
        dm = ImageDataModule(data, classes={7: "cup", 0: "wall"}, **quiet())
        assert dm.classes == ["cup", "wall"] and dm.catalog.info["class_ids"] == [7, 0] and dm.catalog.frame.set_index("path")["label"]["train/7/000.jpg"] == "cup"


def test_an_ignored_class_may_be_missing_in_train(folder, frame, tmp_path):
    extra = pd.concat([frame, frame[-2:].assign(label="other", image_path=[str(folder/"train/brick/000.jpg"), str(folder/"train/brick/001.jpg")])]).drop(index=[0, 1])
    with pytest.raises(ClassMismatchError, match="other"): ImageDataModule(extra, **quiet())
    assert ImageDataModule(extra, ignore_classes=["other"], **quiet()).classes == ["brick", "chelsea", "coffee"]


# ---- groups, samples, limits

def test_groups_stay_whole_on_every_way(frame):
    bursts = frame.assign(burst=[f"{l}{i//3}" for i, l in enumerate(frame["label"])], split="train")
    dm = ImageDataModule(bursts, label_column="label", group_col="burst", val_split=.3, **quiet())
    assert dm.catalog.frame.groupby("burst")["split"].nunique().max() == 1 and dm.catalog.splits == ["train", "val"]
    test = bursts.assign(split=np.where(np.arange(len(frame)) % 6 < 3, "train", "test"))
    dm = ImageDataModule(test, label_column="label", group_col="burst", valid="from_test", val_split=.4, **quiet())
    assert dm.catalog.frame.groupby("burst")["split"].nunique().max() == 1 and "val" in dm.catalog.splits
    with pytest.raises(UnknownOptionError, match="burst"): ImageDataModule(frame, group_col="brst", **quiet()) if "burst" in frame else ImageDataModule(bursts, label_column="label", group_col="brst", **quiet())


def test_a_sample_is_balanced_and_the_rest_is_listed(frame):
    dm = ImageDataModule(frame, max_samples=9, **quiet())
    assert dm.catalog.counts()["train"].tolist() == [3]*3 and dm.catalog.counts()["val"].tolist() == [4]*3
    assert dm.catalog.skipped["reason"].value_counts().to_dict() == {"not sampled": 21}
    with pytest.raises(ConfigError, match="max_samples"): ImageDataModule(frame, max_samples=0, **quiet())


def test_the_limit_of_pixels_reaches_every_reader(folder, tmp_path):
    root = tmp_path/"d"
    for split in ("train", "val"):
        for name in "ab":
            (root/split/name).mkdir(parents=True)
            for i in range(3): Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40 + 20*(i == 2), 3), dtype=np.uint8)).save(root/split/name/f"{i}.{'jpg' if name == 'a' else 'png'}")
    small = ImageDataModule(root, max_pixels=2000, max_bad=.9, on_leak="ignore", **quiet()).setup()
    assert small.catalog.skipped["reason"].tolist() == ["too_large"]*4 and len(small.catalog) == 8
    whole = ImageDataModule(root, max_pixels=2400, on_leak="ignore", **quiet()).setup()      # the audit's memory of the smaller limit does not serve for this one
    assert len(whole.catalog) == 12 and len(list(whole.train_dataloader())) == 1
    report = ImageDataModule(root, max_pixels=2000, **quiet()).check(progress=False)
    assert (report.frame["issue"] == "too_large").sum() == 4
    assert (check(root, progress=False, max_pixels=2000).frame["issue"] == "too_large").sum() == 4 and not (check(root, progress=False).frame["issue"] == "too_large").any()
    with pytest.warns(UserWarning, match="1 of 3 files are left out.*60 × 40 pixels|1 of 3 files are left out.*too_large"): loader = small.predict_dataloader(root/"train/a")
    assert sum(len(b) for b in loader) == 2
    assert Catalog.load(whole.catalog.save(tmp_path/"list")).info["max_pixels"] == 2400


def test_a_raised_limit_admits_what_is_refused_by_default(folder, monkeypatch):
    for module in ("images.decode", "images.sizes", "data.images", "catalog.looks"): monkeypatch.setattr(f"visionlab.{module}.MAX_PIXELS", 1000)
    with pytest.raises(TooManyBadFilesError, match="too_large"): ImageDataModule(folder, **quiet()).setup()
    dm = ImageDataModule(folder, max_pixels=1600, **quiet()).setup()
    assert len(dm.catalog) == 42 and sum(len(b.image) for b in dm.train_dataloader()) == 30


# ---- a disk that does not answer

class Slow:
    "A reader that waits for an event before it gives some of its images"
    def __init__(self, paths): self.paths, self.open = paths, threading.Event(); self.open.set()
    def __len__(self): return len(self.paths)
    def __getitem__(self, i):
        if i > 25: self.open.wait(5)
        return self.paths[i]
    def name(self, i): return f"disk/{Path(self.paths[i]).parent.name}/{Path(self.paths[i]).name}"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stuck_loader_names_what_it_waits_for(frame, workers):
    cat = Catalog.from_table(frame)
    cat = replace(cat, reader=Slow(frame["image_path"].tolist()), root=None)
    dm = ImageDataModule(cat, timeout=.3, **quiet(num_workers=workers), cache=None).setup()
    assert len(list(dm.train_dataloader())) == 4
    cat.reader.open.clear()
    start = time.monotonic()
    with pytest.raises(DataError, match=r"within 0.3 s\n.*disk/") as e: list(dm.train_dataloader().batches(7))      # of the next epoch, the first batches are there already
    assert time.monotonic() - start < 4
    three_lines(e)
    cat.reader.open.set()
    assert len(list(dm.train_dataloader())) == 4          # and goes on when the disk is back


@pytest.mark.parametrize("wrong", [-1, "soon", True])
def test_a_timeout_is_a_number_of_seconds(folder, wrong):
    with pytest.raises(ConfigError, match="seconds"): ImageDataModule(folder, timeout=wrong)


# ---- the same image on both sides

@pytest.fixture
def leaky(tmp_path):
    root = photo_folder(tmp_path/"d", n_train=6, n_val=3, size=40, classes=("brick", "coffee"))
    (root/"val/brick/again.jpg").write_bytes((root/"train/brick/002.jpg").read_bytes())
    (root/"val/coffee/link.jpg").symlink_to(root/"train/coffee/004.jpg")
    return root


def sources_of(root, tmp_path):
    paths = sorted(root.rglob("*.jpg"))
    df = pd.DataFrame(dict(image=map(str, paths), label=[o.parent.name for o in paths], split=[o.parts[-3] for o in paths]))
    import datasets
    parts = {s: datasets.Dataset.from_list([dict(image=dict(bytes=Path(o).read_bytes(), path=None), label=l) for o, l, x in df.to_numpy() if x == s], features=datasets.Features(dict(image=datasets.Image(), label=datasets.Value("string"))))
             for s in ("train", "val")}
    return dict(folder=root, csv=table(tmp_path, df), frame=df, dictionary=dict(train=root/"train", val=root/"val"), dataset=datasets.DatasetDict(parts), catalog=Catalog.from_folder(root))


@pytest.mark.parametrize("kind", ["folder", "csv", "frame", "dictionary", "dataset", "catalog"])
def test_leaks_are_said_without_being_asked(leaky, tmp_path, kind):
    data = sources_of(leaky, tmp_path)[kind]
    with pytest.warns(UserWarning, match="2 images of val are also in train, byte for byte") as said: dm = ImageDataModule(data, **quiet()).setup()
    assert [o.filename for o in said if "byte for byte" in str(o.message)] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dm.adapt(None), dm.setup()                        # once for each table
        assert "2 images of val are also in train" in repr(dm)
        quietly = ImageDataModule(data, on_leak="ignore", **quiet()).setup()
        assert "were not looked for" in repr(quietly)
    with pytest.raises(LeakError, match="2 images of val") as e: ImageDataModule(data, on_leak="error", **quiet()).setup()
    three_lines(e)
    assert len(e.value.context["leaks"]) == 2


def test_the_fix_that_is_proposed_mends_it(leaky):
    dm = ImageDataModule(leaky, on_leak="ignore", **quiet())
    mended = dm.catalog.apply_edits(dm.check(progress=False).edits())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert "byte for byte" not in repr(ImageDataModule(mended, **quiet(batch_size=2)).setup())


def test_train_says_it_and_the_command_can_stop(leaky, tmp_path, capsys):
    said = []
    with pytest.warns(UserWarning, match="byte for byte"): train(data=str(leaky), epochs=1, model="resnet9", image_size=16, num_workers=0, batch_size=4, say=lambda o: said.append(str(o)))
    assert any("2 images of val are also in train" in o for o in said)
    assert main(["train", "--data", str(leaky), "--epochs", "1", "--model", "resnet9", "--on-leak", "error"]) == 1
    assert "byte for byte" in capsys.readouterr().err


def test_validation_that_is_the_test_set_is_no_leak_of_train(tmp_path):
    root = photo_folder(tmp_path/"d", n_train=6, n_val=3, size=40, classes=("brick", "coffee"))
    (root/"val").rename(root/"test")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ImageDataModule(root, valid="same_as_test", **quiet()).setup()
    assert not any("byte for byte" in str(o.message) for o in said)


# ---- doors

def mvtec(root, category):
    for part in ("train/good", "test/good", "test/hole", "ground_truth/hole"):
        (root/category/part).mkdir(parents=True)
        for i in range(2): Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(root/category/part/f"{i}.png")
    return root


class Pairs(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return torch.zeros(3, 8, 8), i


def doors(tmp_path, folder):
    (tmp_path/"shards").mkdir(); (tmp_path/"shards/a-000.tar").write_bytes(bytes(1024))
    mvtec(tmp_path/"anomalies", "wall"); mvtec(tmp_path/"anomalies", "floor")
    (tmp_path/"photos.zip").write_bytes(b"PK"); (tmp_path/"rows.parquet").write_bytes(b"PAR1"); (tmp_path/"one.jpg").write_bytes(b"\xff\xd8\xff")
    files = [str(o) for o in sorted(folder.rglob("*.jpg"))]
    pairs = Pairs(); pairs.root = str(folder)
    return [(str(tmp_path/"*.tar"), "ShardedDataModule"), (tmp_path/"shards", "ShardedDataModule"), ([str(tmp_path/"a.tar"), str(tmp_path/"b.tar.gz")], "ShardedDataModule"),
            ("s3://bucket/train-{000..146}.tar", "ShardedDataModule"), ("https://example.org/photos", "Download"), (tmp_path/"anomalies", r"MVTecAD\(.*floor"), (tmp_path/"anomalies/wall", r"MVTecAD\(.*'wall'"),
            (files, r"Catalog.from_lists\(paths, labels\)"), ([(o, "a") for o in files], "from_lists"), (np.zeros((5, 8, 8, 3), np.uint8), "DataLoader"), (torch.zeros(5, 3, 8, 8), "DataLoader"), (Pairs(), "DataLoader"),
            (pairs, r"ImageDataModule\('.*road"), (torch.utils.data.DataLoader(Pairs()), "Learner"), (iter([1]), "Learner"), (None, "Give a folder"), (7, "Give a folder"), (tmp_path/"photos.zip", "Unpack"),
            (tmp_path/"rows.parquet", "pandas"), (tmp_path/"one.jpg", "folder of images")]


def test_what_has_a_door_of_its_own_is_sent_there(tmp_path, folder):
    for data, door in doors(tmp_path, folder):
        with pytest.raises(ConfigError, match=f"fix: .*{door}") as e: ImageDataModule(data, **quiet())
        three_lines(e)


def test_classes_called_train_and_test_are_no_anomalies(tmp_path):
    for name in ("train", "test", "boat"):
        (tmp_path/name).mkdir()
        for i in range(4): Image.fromarray(np.full((8, 8, 3), i*9 + len(name), np.uint8)).save(tmp_path/name/f"{i}.png")
    assert ImageDataModule(tmp_path, **quiet(val_split=0)).classes == ["boat", "test", "train"]


def test_an_autotrain_project_is_opened(tmp_path):
    photo_folder(tmp_path/"project/autotrain-data", n_train=3, n_val=2, size=20, classes=("brick", "coffee"))
    (tmp_path/"project/checkpoint-12").mkdir()
    assert ImageDataModule(tmp_path/"project", **quiet()).classes == ["brick", "coffee"]
    import datasets
    rows = datasets.Dataset.from_dict(dict(image=[np.full((8, 8, 3), i*20, np.uint8) for i in range(8)], label=["a", "b"]*4), features=datasets.Features(dict(image=datasets.Image(), label=datasets.Value("string"))))
    datasets.DatasetDict(train=rows.select(range(6)), validation=rows.select(range(6, 8))).save_to_disk(str(tmp_path/"other/autotrain-data"))
    assert ImageDataModule(tmp_path/"other", **quiet()).catalog.splits == ["train", "val"]


# ---- a report, not an error

def run_check(capsys, *argv):
    code = main(["check", *map(str, argv)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_bad_rows_end_in_a_report(frame, tmp_path, capsys):
    bad = pd.concat([frame, pd.DataFrame(dict(image_path=["gone.jpg", frame["image_path"][0]], label=["brick", ""], split="train"))])
    path = table(tmp_path, bad)
    code, out, err = run_check(capsys, path, "--json", tmp_path/"r.json")
    assert code == 1 and err == "" and "bad_row" in out
    report = check(path, progress=False)
    rows = report.frame[report.frame["issue"] == "bad_row"]
    assert rows["detail"].tolist() == ["t.csv:44: missing", "t.csv:45: missing label"] and set(rows["severity"]) == {"error"} and not (report.frame["issue"] == "skipped").any()
    assert len(report.measures) == 42 and "bad_row" in (tmp_path/"r.json").read_text()
    dm = ImageDataModule(bad, on_bad="skip", **quiet())
    assert dm.check(progress=False).frame["issue"].tolist().count("bad_row") == 2


def test_a_class_that_only_val_has_ends_in_a_report(folder, tmp_path, capsys):
    root = photo_folder(tmp_path/"d", n_train=6, n_val=3, size=40, classes=("brick", "coffee"))
    (root/"val/cat").mkdir(); (root/"val/cat/1.jpg").write_bytes((folder/"val/chelsea/000.jpg").read_bytes())
    code, out, err = run_check(capsys, root)
    assert code == 1 and err == "" and "unlearnable" in out
    report = check(root, progress=False)
    assert report.frame.query("issue == 'unlearnable'")["detail"].tolist() == ["val has 1 image of 'cat', train has none"] and len(report.measures) == 19


@pytest.mark.parametrize("make,text", [
    (lambda d: (d/"a").mkdir(), "no image"), (lambda d: (d/"notes.txt").write_text("x"), "no image"), (lambda d: ((d/"a").mkdir(), Image.new("RGB", (9, 9)).save(d/"a/1.png")), "one class only"),
    (lambda d: ((d/"train/a").mkdir(parents=True), (d/"val/a").mkdir(parents=True), Image.new("RGB", (9, 9)).save(d/"val/a/1.png")), "no image"),
    (lambda d: [((d/c).mkdir(), (d/c/"1.jpg").write_bytes(b"\xff\xd8\xff broken")) for c in "ab"], "cannot|truncated|corrupt|not_an_image")])
def test_nothing_usable_ends_in_a_report(tmp_path, capsys, make, text):
    root = tmp_path/"d"
    root.mkdir(); make(root)
    code, out, err = run_check(capsys, root)
    assert code == 1 and err == "", err
    assert any(o in out for o in text.split("|")), out


def test_a_table_without_a_usable_row_ends_in_a_report(tmp_path, capsys):
    (tmp_path/"t.csv").write_text("image,label\ngone.jpg,a\nlost.jpg,b\n")
    code, out, err = run_check(capsys, tmp_path/"t.csv")
    assert code == 1 and err == "" and "unusable" in out
    rows = check(tmp_path/"t.csv", progress=False).frame
    assert rows[rows["issue"] == "bad_row"]["detail"].tolist() == ["t.csv:2 gone.jpg: missing", "t.csv:3 lost.jpg: missing"]


def test_a_slip_of_the_pen_is_still_an_error(tmp_path, capsys):
    for argv in ([tmp_path/"nowhere"], ["FashonMNIST"], [tmp_path/"none.csv"], ["FashionSample", "--label-column", "x"]):
        code, out, err = run_check(capsys, *argv)
        assert code == 1 and err.startswith("visionlab: ") and out == ""


# ---- a long audit

def test_counting_shows_only_what_takes_long(monkeypatch, capsys):
    clock = iter((0, .1, .2, 5))
    monkeypatch.setenv("VISIONLAB_PROGRESS", "text")
    fast = Counting(200); fast.at(100); fast.close()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("visionlab.catalog.looks.time.perf_counter", lambda: next(clock))
    slow = Counting(200, what="checked")
    for n in (1, 2, 3, 100): slow.at(n)
    slow.close()
    said = capsys.readouterr().err
    assert "checked 100 of 200" in said and said.endswith("\r") and "checked 3 of" not in said


def test_in_a_notebook_counting_keeps_to_one_place_and_writes_no_errors(tmp_path):
    "With progress on, in a kernel, a pass that takes longer than a second: one display that ends empty, nothing on standard error."
    code = """
import time
from visionlab.catalog.looks import counted, Counting
_ = counted(lambda o: time.sleep(.15), list(range(20)), 1, Counting(20, what="checked"), 1)
print("after")
"""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=dict(kernelspec=dict(name="python3", display_name="python3")))
    said = []
    client = NotebookClient(nb, timeout=120, resources=dict(metadata=dict(path=str(tmp_path))))
    heard, client.process_message = client.process_message, lambda msg, *o: (said.append(str(msg["content"])), heard(msg, *o))[1]
    with pytest.MonkeyPatch.context() as m:
        m.setenv("VISIONLAB_PROGRESS", "html")
        client.execute()
    outputs = nb.cells[0].outputs
    assert [(o.output_type, o.get("name")) for o in outputs] == [("display_data", None), ("stream", "stdout")]
    assert outputs[0].data["text/html"] == "" and any("checked 12 of 20" in o for o in said)


def test_the_audit_stops_at_once_and_leaves_no_half_state(frame, tmp_path):
    cat, seen = Catalog.from_table(frame), []
    class Interrupted(Images):
        def _read(self, i):
            seen.append(i)
            if len(seen) == 5: raise KeyboardInterrupt
            time.sleep(.005)
            return super()._read(i)
    big = replace(cat, frame=pd.concat([cat.frame]*20, ignore_index=True))
    with pytest.raises(KeyboardInterrupt): audit(big, Interrupted(big), 2)
    assert len(seen) < 300 and not list(tmp_path.rglob("audit/*"))
    dm = ImageDataModule(cat, **quiet())
    before = dm.catalog
    dm._open_images = lambda keep, store=None: Interrupted(dm.catalog)
    seen.clear()
    with pytest.raises(KeyboardInterrupt): dm.setup()
    assert dm._images is None and dm.catalog is before
    seen.extend(range(9))
    dm.setup()
    assert dm._images is not None and len(list(dm.train_dataloader())) == 4


def test_counted_keeps_the_order():
    assert counted(lambda i: i*i, list(range(100)), 3, Counting(100, False), 7) == [i*i for i in range(100)]


# ---- grey of colours in memory

def test_colours_in_memory_turn_grey_as_files_do(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 20, 20, 3), dtype=np.uint8)
    pixels[0], pixels[1] = (255, 0, 0), (0, 255, 0)
    for i, o in enumerate(pixels): Image.fromarray(o).save(tmp_path/f"{i}.png")
    labels, splits = ["a", "b"]*4, ["train"]*6 + ["val"]*2
    files = Catalog.from_lists([tmp_path/f"{i}.png" for i in range(8)], labels, splits=splits)
    memory = Catalog(pd.DataFrame(dict(path=[f"{i}.png" for i in range(8)], label=labels, split=splits)), ["a", "b"], source="memory", pixels=pixels)
    assert np.array_equal(luminance(pixels)[3], load_image(pixels[3], "L"))
    for size in (20, 16):
        a, b = (next(iter(ImageDataModule(o, in_chans=1, image_size=size, resize="squash", num_workers=0).val_dataloader())).image for o in (files, memory))
        assert a.shape[1] == 1 and torch.allclose(a, b, atol=1e-6)
    assert [Images(memory, 1)[i].mean() for i in (0, 1)] == [76, 150]


# ---- what the doctor was measured to find

def test_the_doctors_benchmark_kept_its_promises():
    "The numbers that benchmarks/doctor.py wrote; test_doctor.py runs the same code on fewer images."
    found = json.loads((Path(__file__).parents[1]/"benchmarks/results/doctor.json").read_text())
    near = {k for k in found["recall"] if k.split("_")[-1] in ("crop", "encode", "resize", "colour")}
    assert found["images"] == 10_000 and found["planted_of_each"] == 25 and len(near) == 8 and len(found["recall"]) == 22
    assert all(v == 1 for k, v in found["recall"].items() if k not in near) and all(found["recall"][k] >= .95 for k in near)
    assert found["copies"]["false"] <= .01*(found["copies"]["found"] + found["copies"]["false"])
