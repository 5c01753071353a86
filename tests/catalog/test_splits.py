"Folds, samples, ways to validate, and images on both sides, beyond the page."
import os
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import visionlab.catalog.leaks
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ConfigError, DataError, EmptyDatasetError, UnknownOptionError
from visionlab.data.module import ImageDataModule
from visionlab.data.images import Images
from visionlab.catalog.paths import Repeated
from visionlab.catalog.leaks import leak_text, shared_files


def table(labels, split="train", classes=None, **columns):
    frame = pd.DataFrame(dict(path=[f"{i}.png" for i in range(len(labels))], label=labels, split=split, **columns))
    return Catalog(frame, classes or sorted(set(labels)))


@pytest.fixture(scope="module")
def sample(): return Catalog.from_builtin("FashionSample")


# ---- folds

@pytest.mark.parametrize("n", [2, 3, 5, 7])
@pytest.mark.parametrize("counts", [(100, 50, 7), (40, 40), (9, 1, 1, 30)])
def test_every_image_once_and_classes_even(n, counts):
    cat = table([c for c, k in enumerate(counts) for c in [f"c{c}"]*k])
    folds = [o.subset("val").frame for o in cat.kfold(n)]
    assert sorted(i for o in folds for i in o.index) == list(range(sum(counts)))
    for c, k in enumerate(counts): assert {int((o["label"] == f"c{c}").sum()) for o in folds} <= {k//n, k//n + 1}
    assert max(map(len, folds)) - min(map(len, folds)) <= 1


def test_folds_depend_on_paths_and_seed_alone():
    cat = table(["a", "b", "b"]*20)
    fold = lambda c, seed=42: [set(o.subset("val").frame["path"]) for o in c.kfold(4, seed)]
    assert fold(cat) == fold(replace(cat, frame=cat.frame.sample(frac=1, random_state=1))) == fold(cat.split(.2))
    assert fold(cat) != fold(cat, 0) and fold(cat, 0) == fold(cat, 0)


def test_test_images_stay_and_unlabelled_ones_are_for_prediction():
    cat = table(["a", "b", None, "a", "b", "a"], split=["train", "train", "train", "val", "test", "train"], classes=["a", "b"])
    for o in cat.kfold(2):
        assert o.frame["split"].iloc[4] == "test" and o.frame["split"].iloc[2] == "predict"
        assert o.info["kfold"] == dict(n=2, seed=42, group_col=None) and o.info["fold"] in (0, 1)
    assert "fold" not in cat.info


def test_groups_stay_whole_and_folds_even():
    rng = np.random.default_rng(0)
    person = rng.integers(0, 60, 900)
    cat = table([f"c{(p + k) % 4}" for p, k in zip(person, rng.integers(0, 2, 900))], person=person)
    folds = [o.subset("val") for o in cat.kfold(5, group_col="person")]
    assert sum(o.frame["person"].nunique() for o in folds) == 60
    counts = np.array([o.counts()["val"] for o in folds])
    assert counts.sum() == 900 and np.abs(counts/counts.sum(0) - .2).max() < .06


def test_rows_of_one_file_are_a_group():
    cat = table(["a", "b"]*10)
    cat = replace(cat, frame=cat.frame.assign(path=[f"{i//2}.png" for i in range(20)]))
    for o in cat.kfold(5): assert o.frame.groupby("path")["split"].nunique().max() == 1


def test_folds_of_several_labels():
    labels = [("a",)]*40 + [("a", "b")]*20 + [("c",)]*10 + [()]*10
    cat = Catalog(pd.DataFrame(dict(path=[f"{i}.png" for i in range(80)], label=labels, split="train")), ["a", "b", "c"], task="multilabel")
    for o in cat.kfold(5):
        assert np.array(o.counts()["val"]).tolist() == [12, 4, 2] and len(o.subset("val")) == 16


@pytest.mark.parametrize("options,message", [(dict(n=1), "at least 2"), (dict(n=2.5), "at least 2"), (dict(n=9), "cannot make 9"), (dict(seed=.5), "whole number"),
                                             (dict(group_col="who"), "Unknown column"), (dict(n=3, group_col="side"), "2 groups")])
def test_folds_that_cannot_be(options, message):
    with pytest.raises((ConfigError, DataError), match=message): table(["a", "b"]*4, side=[0, 0, 0, 0, 1, 1, 1, 1]).kfold(**options)


# ---- fewer images

def test_sample(sample):
    assert sample.sample(1000).counts()["train"].tolist() == [100]*10 and sample.sample(1000).counts()["test"].tolist() == [100]*10
    uneven = table(["a"]*500 + ["b"]*200 + ["c"]*4)
    assert uneven.sample(100).counts()["train"].tolist() == [48, 48, 4]
    assert uneven.sample(100, balanced=False).counts()["train"].tolist() == [71, 28, 1]
    assert uneven.sample(2).counts()["train"].sum() == 2
    few = uneven.sample(100)
    assert len(few.skipped) == 604 and few.info["sample"]["max_samples"] == 100
    assert uneven.sample(704) is uneven and uneven.sample(100, seed=1).frame.index.tolist() != few.frame.index.tolist()
    assert set(replace(uneven, frame=uneven.frame[::-1]).sample(100).frame.index) == set(few.frame.index)
    assert sample.sample(20, split="test").frame["split"].value_counts().to_dict() == {"train": 6000, "test": 20}
    for bad in (0, -1, 1.5): 
        with pytest.raises(ConfigError): uneven.sample(bad)


# ---- ways to validate

def test_ways(sample, tmp_path):
    counts = lambda c: c.frame["split"].value_counts().to_dict()
    assert counts(sample.holdout("from_train")) == dict(train=5400, val=600, test=1000)
    assert counts(sample.holdout("test")) == dict(train=6000, val=1000)
    half = sample.holdout("from_test", .5)
    assert counts(half) == dict(train=6000, val=500, test=500) and half.counts()["val"].tolist() == [50]*10
    assert counts(sample.split(.1).holdout("none")) == dict(train=5400, test=1000)
    assert Catalog.load(half.save(tmp_path)).frame.equals(half.frame)
    with pytest.raises(UnknownOptionError, match="same_as_test"): sample.holdout("same_test")
    with pytest.raises(EmptyDatasetError): sample.holdout("test").holdout("from_test")


def test_same_as_test_warns_and_is_kept(sample, tmp_path):
    with pytest.warns(UserWarning, match="same images"): both = sample.holdout("same_as_test")
    again = Catalog.load(both.save(tmp_path))
    for o in (both, again): assert (o.pixels[o.subset("val").frame.index] == sample.pixels[sample.subset("test").frame.index]).all()
    leaks = both.leaks()
    assert leaks["copy"].nunique() >= 990 and set(leaks["split"]) == {"val", "test"}


def test_a_reader_gives_a_row_twice():
    reader = [np.full((4, 4, 3), i, np.uint8) for i in range(6)]
    cat = replace(table(["a", "b"]*3, split=["train"]*4 + ["test"]*2), reader=reader)
    with pytest.warns(UserWarning): both = cat.holdout("same_as_test")
    assert isinstance(both.reader, Repeated) and both.frame.index.tolist() == list(range(8))
    assert [int(Images(both)[i].mean()) for i in (6, 7)] == [4, 5]
    assert both.leaks()["split"].tolist() == ["val", "test"]*2


def folder(root, test=True):
    for s, n in (("train", 8), *([("test", 4)] if test else [])):
        for c, shade in (("a", 0), ("b", 100)):
            for i in range(n):
                (root/s/c).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((9, 9, 3), shade + i + 20*(s == "test"), np.uint8)).save(root/s/c/f"{i}.png")
    return root


@pytest.mark.parametrize("valid,counts", [(None, dict(train=14, val=2, test=8)), ("test", dict(train=16, val=8)), ("from_test", dict(train=16, val=2, test=6)),
                                          ("same_as_test", dict(train=16, val=8, test=8)), ("none", dict(train=16, test=8))])
def test_the_data_module_knows_the_ways(tmp_path, valid, counts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dm = ImageDataModule(folder(tmp_path), valid=valid, image_size=8, num_workers=0)
        assert dm.catalog.frame["split"].value_counts().to_dict() == counts
        if "val" in counts: assert sum(len(b.image) for b in dm.val_dataloader()) == counts["val"]


def test_the_data_module_refuses_an_unknown_way(tmp_path):
    with pytest.raises(ConfigError, match="tset"): ImageDataModule("FashionSample", valid="tset")
    with pytest.raises(ConfigError, match="tset"): ImageDataModule(folder(tmp_path), valid="tset")


# ---- on both sides

def test_leaks(tmp_path):
    cat = Catalog.from_folder(folder(tmp_path))
    assert len(cat.leaks()) == 0
    (tmp_path/"test/b/again.png").write_bytes((tmp_path/"train/a/3.png").read_bytes())
    (tmp_path/"train/a/twin.png").write_bytes((tmp_path/"train/a/4.png").read_bytes())       # twice, but on one side
    os.link(tmp_path/"train/b/5.png", tmp_path/"test/b/linked.png")
    cat = Catalog.from_folder(tmp_path)
    (tmp_path/"train/a/7.png").unlink()                                                       # gone meanwhile: not a leak
    found = cat.leaks()
    assert sorted(found.groupby("copy")["path"].apply(list)) == [["train/a/3.png", "test/b/again.png"], ["train/b/5.png", "test/b/linked.png"]]
    assert found["label"].tolist()[:2] == ["a", "b"] and found.index.isin(cat.frame.index).all()


def test_only_files_of_one_size_are_read(tmp_path, monkeypatch):
    cat = Catalog.from_folder(folder(tmp_path))
    sizes = pd.Series([os.path.getsize(o) for o in cat.files()]).to_frame("size").assign(split=cat.frame["split"].to_numpy())
    shared = sizes[sizes.groupby("size")["split"].transform("nunique") > 1]
    read = dict(_tail=[], _digest=[])
    for name, seen in read.items(): monkeypatch.setattr(visionlab.catalog.leaks, name, lambda o, keep=getattr(visionlab.catalog.leaks, name), seen=seen: seen.append(o) or keep(o))
    cat.leaks()
    assert len(read["_tail"]) == len(shared) > 0 and read["_digest"] == []      # their ends differ: none is read whole


def test_files_that_agree_in_size_and_end_are_read_whole(tmp_path):
    for split, first in (("train", 0), ("train", 1), ("val", 1), ("val", 2)):
        (tmp_path/split/"a").mkdir(parents=True, exist_ok=True)
        (tmp_path/split/"a"/f"{first}.jpg").write_bytes(bytes([first])*6000 + bytes(5000))
    found, why = shared_files(Catalog.from_folder(tmp_path, allow_single=True))
    assert why is None and found[["path", "train_path"]].to_numpy().tolist() == [["val/a/1.jpg", "train/a/1.jpg"]]


def test_links_are_followed(tmp_path):
    folder(tmp_path)
    (tmp_path/"test/b/link.png").symlink_to(tmp_path/"train/a/3.png")
    found, _ = shared_files(Catalog.from_folder(tmp_path))
    assert found[["path", "train_path"]].to_numpy().tolist() == [["test/b/link.png", "train/a/3.png"]]


def test_where_shared_files_does_not_look_it_says_so(monkeypatch, tmp_path):
    reader = [bytes([i % 4])*10 for i in range(8)]
    cat = replace(table(["a", "b"]*4, split=["train"]*4 + ["test"]*4), reader=reader)
    found, why = shared_files(cat)
    assert len(found) == 0 and "sizes are not known" in why
    class Sized(list):
        def sizes(self): return [len(o) for o in self]
    found, why = shared_files(replace(cat, reader=Sized(reader)))
    assert why is None and found["train_path"].tolist() == [f"{i}.png" for i in range(4)] and "4 images of test are also in train" in leak_text(found)
    assert len(shared_files(replace(cat, reader=Repeated(Sized(reader), np.arange(4, 8)), frame=pd.concat([cat.frame, cat.frame.tail(4).assign(split="val").set_axis(range(8, 12))])))[0]) == 8
    monkeypatch.setattr(visionlab.catalog.leaks, "LOOK_UP_TO", 7)
    assert "8 images are more than 7" in shared_files(replace(cat, reader=Sized(reader)))[1]
    assert shared_files(cat.subset("train"))[1] is None          # one split: there is nothing to look for


def test_datasets_know_their_sizes(tmp_path):
    import datasets
    pictures = [np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8) for i in (0, 1, 2, 3, 1, 4)]
    make = lambda part: datasets.Dataset.from_dict(dict(image=pictures[part], label=["a", "b", "a"]), features=datasets.Features(dict(image=datasets.Image(), label=datasets.Value("string"))))
    parts = datasets.DatasetDict(train=make(slice(3)), test=make(slice(3, 6)))
    for data in (parts, datasets.DatasetDict({k: v.shuffle(seed=1) for k, v in parts.items()})):
        cat = Catalog.from_hf(data)
        assert cat.reader.sizes().tolist() == [len(cat.reader[i]) for i in range(6)]
        assert len(shared_files(cat)[0]) == 1
