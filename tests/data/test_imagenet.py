"ImageNet: loose validation images with every file of their classes, Kaggle's layout, and the settings everybody compares by."
import os, shutil

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ConfigError, DataError
from visionlab.data.imagenet import _standard_synsets, imagenet_catalog, ImageNetDataModule, read_val_labels
from visionlab.transforms.pipeline import IMAGENET_MEAN, IMAGENET_STD

SYNSETS = ("n01440764", "n02012849", "n02123045")       # tench, crane, tabby: numbers 0, 134, 281 of the thousand
VAL = ["n02123045", "n01440764", "n02012849", "n02123045", "n01440764"]
NAMES = dict(n01440764="tench", n02012849="crane", n02123045="tabby")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))
    for o in ("IMAGENET_ROOT", "VISIONLAB_IMAGENET"): monkeypatch.delenv(o, raising=False)


def put(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 40, 3), dtype=np.uint8)).save(path, "JPEG")


def tree(root, images="", val=VAL):
    "Write train/<synset>/ and a loose val."
    for s in SYNSETS:
        for i in range(3): put(root/images/f"train/{s}/{s}_{i}.JPEG", i)
    for i, _ in enumerate(val, 1): put(root/images/f"val/ILSVRC2012_val_{i:08}.JPEG", i)
    return root


@pytest.fixture
def flat(tmp_path): return tree(tmp_path/"imagenet")


def kit(folder, shuffled=True):
    "Write a development kit, whose numbers are not the order of the synsets."
    data = folder/"ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    number = {s:i for i, s in zip((3, 1, 2), SYNSETS)}
    table = np.array([(i, s, "words") for s, i in number.items()], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    scipy.io.savemat(data/"meta.mat", dict(synsets=table[:, None]))
    (data/"ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number[s]}\n" for s in VAL))
    return data


def lines(f): return "".join(f(i, f"ILSVRC2012_val_{i:08}", s) + "\n" for i, s in enumerate(VAL, 1))


FILES = {
    "LOC_val_solution.csv": "ImageId,PredictionString\n" + lines(lambda i, n, s: f"{n},{s} 1 2 3 4 {s} 5 6 7 8 "),
    "imagenet_2012_validation_synset_labels.txt": lines(lambda i, n, s: s),
    "val.txt": lines(lambda i, n, s: f"{n}.JPEG {_standard_synsets().index(s)}"),
    "val_labels.txt": lines(lambda i, n, s: f"{n}.JPEG,{s}"),
    "val_annotations.txt": lines(lambda i, n, s: f"{n}.JPEG\t{s}\t0\t0\t62\t62")}


def whole(cat):
    assert cat.classes == ["tench", "crane", "tabby"] and cat.counts().to_numpy().tolist() == [[3, 2], [3, 1], [3, 2]] and not len(cat.skipped)
    val = cat.subset("val").frame
    assert val["path"].tolist() == [f"val/ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 6)] and val["label"].tolist() == [NAMES[o] for o in VAL]
    assert all(map(os.path.isfile, cat.files()))
    return cat


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [".", "..", "val"])
def test_every_file_of_classes_is_read_where_it_lies(flat, name, where):
    (flat/where/name).write_text(FILES[name])
    cat = whole(imagenet_catalog(flat)) if where != "val" else imagenet_catalog(flat)
    assert cat.info["val_labels"] == name and len(cat.subset("val")) == 5
    assert Catalog.load(cat.save(flat.parent/"saved")).counts().equals(cat.counts())


@pytest.mark.parametrize("where", [".", ".."])
def test_the_development_kit_has_numbers_of_its_own(flat, where):
    data = kit(flat/where)
    whole(imagenet_catalog(flat))
    (data/"meta.mat").unlink()
    with pytest.raises(DataError, match="need its meta.mat"): imagenet_catalog(flat)


def test_kaggles_layout(tmp_path, monkeypatch):
    root = tree(tmp_path/"kaggle", "ILSVRC/Data/CLS-LOC")
    for i in (1, 2): put(root/f"ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_{i:08}.JPEG")
    (root/"LOC_val_solution.csv").write_text(FILES["LOC_val_solution.csv"])
    for at in (root, root/"ILSVRC/Data/CLS-LOC"):
        dm = ImageNetDataModule(at, batch_size=4, num_workers=0)
        assert dm.catalog.counts()["val"].tolist() == [2, 1, 2] and dm.catalog.skipped["split"].tolist() == ["test", "test"]
    assert [len(o) for o in dm.val_dataloader()] == [5]
    monkeypatch.setenv("IMAGENET_ROOT", str(root))
    assert len(imagenet_catalog().subset("val")) == 5


def test_a_file_elsewhere_is_named(flat, tmp_path):
    (tmp_path/"mine").mkdir()
    (tmp_path/"mine"/"classes.txt").write_text(FILES["val_labels.txt"])
    whole(imagenet_catalog(flat, tmp_path/"mine"/"classes.txt"))
    (tmp_path/"s.yaml").write_text("data_root: imagenet\nval_labels: mine/classes.txt\nnum_workers: 0\n")
    whole(ImageNetDataModule.from_yaml(tmp_path/"s.yaml").catalog)
    with pytest.raises(DataError, match="does not exist"): imagenet_catalog(flat, tmp_path/"mine"/"none.txt")


def test_without_a_file_the_error_says_what_is_wanted(flat):
    with pytest.raises(DataError, match="5 validation images lie loose in val, and no file says their classes") as e: ImageNetDataModule(flat)
    assert all(o in e.value.fix for o in ("LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", "meta.mat", "val_labels=", "val/<synset>/")) and str(flat) in e.value.where


@pytest.mark.parametrize("text,match", [("", "is empty"), ("ImageId,PredictionString\n", "is empty"), ("ILSVRC2012_val_00000001,dog\n", "names no class"),
                                        (FILES["val_labels.txt"].replace("n02012849", "bird"), ":3 names no class: 'ILSVRC2012_val_00000003.JPEG bird'"), ("a.JPEG 1000\nb.JPEG 3\n", ":1 names no class"),
                                        ("ILSVRC2012_val_00000001.JPEG n01440764\n", "4 validation images of 5 have no class"), ("n02123045\n"*4, "1 validation image of 5")])
def test_files_that_do_not_fit(flat, text, match):
    (flat/"val_labels.txt").write_text(text)
    with pytest.raises(DataError, match=match) as e: imagenet_catalog(flat)
    assert str(e.value).count("\n") == 2


def test_a_part_of_the_classes(flat):
    (flat/"LOC_val_solution.csv").write_text(FILES["LOC_val_solution.csv"])
    shutil.rmtree(flat/"train/n02123045")
    cat = imagenet_catalog(flat)
    assert cat.classes == ["tench", "crane"] and cat.skipped["reason"].tolist() == ["class not in train"]*2 and len(cat.subset("val")) == 3


def test_folders_of_val_go_before_loose_images(flat):
    for s in SYNSETS: put(flat/f"val/{s}/a.JPEG")
    cat = imagenet_catalog(flat)
    assert cat.counts()["val"].tolist() == [1, 1, 1] and cat.skipped["reason"].tolist() == ["not in a class folder"]*5
    with pytest.raises(ConfigError, match="no validation image lies loose"): imagenet_catalog(flat, flat/"val.txt")


def test_read_val_labels_by_number_and_by_name(tmp_path):
    (tmp_path/"a.txt").write_text("n01440764\nn02012849\n")
    (tmp_path/"b.txt").write_text("x/y_1.JPEG n01440764\n")
    assert read_val_labels(tmp_path/"a.txt") == {1:"n01440764", 2:"n02012849"} and read_val_labels(tmp_path/"b.txt") == {"y_1":"n01440764"}


def test_a_large_table_keeps_its_compact_columns(flat, monkeypatch):
    monkeypatch.setattr("visionlab.catalog.catalog._COMPACT", 1)
    (flat/"LOC_val_solution.csv").write_text(FILES["LOC_val_solution.csv"])
    assert whole(imagenet_catalog(flat)).frame["path"].dtype == "path"


# ---- the settings everybody compares by

def test_defaults(flat):
    (flat/"LOC_val_solution.csv").write_text(FILES["LOC_val_solution.csv"])
    dm = ImageNetDataModule(flat)
    train, val = dm.train_pipeline, dm.eval_pipeline
    assert dm.batch_size == 256 and dm.num_workers == 8 and dm.image_size == (224, 224)
    assert (train.frame.scale, train.frame.ratio) == ((.08, 1.), (3/4, 4/3)) and [type(o).__name__ for o in train.ops] == ["HorizontalFlip"] and train.ops[0].p == .5
    assert (val.frame.mode, round(224/val.frame.crop_pct)) == ("crop", 256) and not val.ops and (val.mean, val.std) == (IMAGENET_MEAN, IMAGENET_STD) == (train.mean, train.std)
    assert ImageNetDataModule(flat, image_size=64, num_workers=0, pin_memory=True, persistent_workers=False, prefetch_factor=2).loading | {} == dm.loading | dict(pin=True, persistent=False, ahead=2)


def test_lengths_and_batches_after_setup(flat):
    (flat/"LOC_val_solution.csv").write_text(FILES["LOC_val_solution.csv"])
    dm = ImageNetDataModule(flat, batch_size=4, num_workers=0)
    dm.setup("fit")
    assert (len(dm.train_dataset), len(dm.val_dataset)) == (9, 5)
    images, labels = next(iter(dm.train_dataloader()))
    assert images.shape == (4, 3, 224, 224) and labels.dtype == torch.int64
