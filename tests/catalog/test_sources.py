"Other people's datasets: Hugging Face in every form, LightlyTrain's dictionary, ImageNet's tree, and what a million rows cost."
import os
import pickle
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionlab.catalog import imagenet_tree, sources
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import (
    ClassMismatchError, ConfigError, DataError, EmptyDatasetError, ImageReadError, MissingDependencyError,
    UnknownOptionError)
from visionlab.data.module import ImageDataModule
from visionlab.data.multilabel import MultiLabelImageDataModule
from visionlab.data.imagenet import ImageNetDataModule
from visionlab.data.images import Images
from visionlab.data.loader import Loader
from visionlab.catalog.hugging_face import HFImages
from visionlab.catalog.imagenet_tree import synset_names
from visionlab.transforms.presets import preset

import datasets
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, Sequence, Value  # noqa: E402
from datasets import Image as HFImage  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))
    for name in ("IMAGENET_ROOT", "VISIONLAB_IMAGENET"): monkeypatch.delenv(name, raising=False)
    datasets.disable_progress_bars()


def pixels(i, size=20): return np.random.default_rng(i).integers(0, 255, (size, size, 3), dtype=np.uint8)


def png(i):
    out = BytesIO()
    Image.fromarray(pixels(i)).save(out, "PNG")
    return out.getvalue()


def pictures(n=12, names=("cat", "dog"), targets=None, first=0):
    targets = [i % len(names) for i in range(n)] if targets is None else targets
    features = Features(dict(image=HFImage(), target=ClassLabel(names=list(names)), owner=Value("string")))
    return Dataset.from_dict(dict(image=[Image.fromarray(pixels(first+i)) for i in range(n)], target=targets, owner=[f"p{i//3}" for i in range(n)]), features=features)


@pytest.mark.parametrize("kind", ["feature", "bytes", "path", "array"])
def test_images_in_every_form(kind, tmp_path):
    if kind == "path":
        for i in range(6): (tmp_path/f"{i}.png").write_bytes(png(i))
    image = dict(feature=lambda: [Image.fromarray(pixels(i)) for i in range(6)], bytes=lambda: [png(i) for i in range(6)],
                 path=lambda: [str(tmp_path/f"{i}.png") for i in range(6)], array=lambda: [pixels(i) for i in range(6)])[kind]()
    feature = dict(feature=HFImage(), bytes=Value("binary"), path=Value("string"), array=Array3D((20, 20, 3), "uint8"))[kind]
    ds = Dataset.from_dict(dict(image=image, label=list("abcabc")), features=Features(dict(image=feature, label=Value("string"))))
    cat = Catalog.from_hf(ds)
    assert cat.classes == ["a", "b", "c"] and cat.targets().tolist() == [0, 1, 2]*2
    for i in range(6): assert (Images(cat)[i] == pixels(i)).all()
    assert (Images(pickle.loads(pickle.dumps(cat)))[5] == pixels(5)).all()


@pytest.mark.parametrize("targets,classes,ids", [([0, 1]*3, ["cat", "dog"], None), (["x", "y"]*3, ["x", "y"], None), ([10, 2]*3, ["2", "10"], [2, 10]), ([True, False]*3, ["False", "True"], None)])
def test_targets_of_every_type(targets, classes, ids):
    kind = ClassLabel(names=["cat", "dog"]) if classes[0] == "cat" else Value({int: "int64", str: "string", bool: "bool"}[type(targets[0])])
    cat = Catalog.from_hf(Dataset.from_dict(dict(image=[png(i) for i in range(6)], label=targets), features=Features(dict(image=Value("binary"), label=kind))))
    assert cat.classes == classes and cat.info.get("class_ids") == ids
    assert cat.frame["label"].iloc[0] == ("cat" if classes[0] == "cat" else str(targets[0]))


def test_int_targets_with_names_of_ones_own():
    ds = Dataset.from_dict(dict(image=[png(i) for i in range(4)], target=[7, 3, 7, 3]))
    cat = Catalog.from_hf(ds, classes={3: "three", 7: "seven"})
    assert cat.classes == ["three", "seven"] and cat.info["class_ids"] == [3, 7] and cat.targets().tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Validation"])
def test_split_names(name):
    cat = Catalog.from_hf(DatasetDict({"train": pictures(), name: pictures(4), "test": pictures(2), "unlabeled": pictures(2)}))
    assert cat.splits == ["train", "val", "test"] and len(cat) == 18
    assert cat.skipped.to_numpy().tolist() == [["unlabeled", None, "split not used"]]


def test_splits_that_are_named():
    dd = DatasetDict(learn=pictures(), check=pictures(4), test=pictures(2))
    cat = Catalog.from_hf(dd, train_split="learn", valid_split="test", test_split="check")
    assert cat.frame["split"].value_counts().to_dict() == {"train": 12, "test": 4, "val": 2}
    assert Catalog.from_hf(dd, train_split="learn", valid_split="test").splits == ["train", "val"]
    with pytest.raises(UnknownOptionError, match="learn"): Catalog.from_hf(dd)
    with pytest.raises(ConfigError, match="valid_split"): Catalog.from_hf(DatasetDict(train=pictures(), val=pictures(2), validation=pictures(2)))
    with pytest.raises(ConfigError, match="twice"): Catalog.from_hf(dd, train_split="learn", valid_split="test", test_split="test")
    assert len(Catalog.from_hf(dd, split="check")) == 4
    with pytest.raises(UnknownOptionError): Catalog.from_hf(dd, split="chek")


def test_class_numbers_of_two_splits_are_matched_by_name():
    cat = Catalog.from_hf(DatasetDict(train=pictures(6, ("cat", "dog")), test=pictures(6, ("dog", "cat"))))
    assert cat.classes == ["cat", "dog"] and cat.targets("test").tolist() == [1, 0]*3
    with pytest.raises(ClassMismatchError, match="owl"): Catalog.from_hf(DatasetDict(train=pictures(6), test=pictures(6, ("owl", "cat"))))


def test_rows_without_a_label():
    hidden = DatasetDict(train=pictures(6), test=pictures(4, targets=[-1]*4))
    assert Catalog.from_hf(hidden).splits == ["train", "predict"]
    some = pictures(6, targets=[0, 1, -1, 1, 0, 1])
    with pytest.raises(DataError, match="train/000002.*missing label"): Catalog.from_hf(some)
    cat = Catalog.from_hf(some, on_bad="skip")
    assert cat.skipped.to_numpy().tolist() == [["train/000002", "train", "missing label"]] and cat.frame.index.tolist() == [0, 1, 3, 4, 5]
    assert (Images(cat)[5] == pixels(5)).all()


def test_columns_are_found_or_asked_for():
    ds = pictures().rename_columns(dict(image="img", target="kind"))
    assert Catalog.from_hf(ds).classes == ["cat", "dog"]
    two = ds.cast_column("owner", ClassLabel(names=["p0", "p1", "p2", "p3"]))
    with pytest.raises(ConfigError, match="target_column"): Catalog.from_hf(two)
    assert Catalog.from_hf(two, target_column="owner").classes == ["p0", "p1", "p2", "p3"]
    with pytest.raises(UnknownOptionError, match="kind"): Catalog.from_hf(ds, target_column="kin")
    lists = Dataset.from_dict(dict(image=[png(0)], label=[[0, 1]]), features=Features(dict(image=Value("binary"), label=Sequence(Value("int64")))))
    with pytest.raises(ConfigError, match="single label"): Catalog.from_hf(lists)
    kept = Catalog.from_hf(ds, columns=["owner"])
    assert kept.split(.3, group_col="owner").frame.groupby("owner")["split"].nunique().max() == 1


def test_shuffled_and_selected_datasets_give_their_own_images():
    ds = pictures().shuffle(seed=1).select([3, 0, 7])
    cat = Catalog.from_hf(ds, allow_single=True)
    for i in range(3): assert (Images(cat)[i] == np.asarray(ds[i]["image"])).all()


@pytest.mark.parametrize("layout", ["dict", "one", "loose"])
def test_saved_folders(layout, tmp_path):
    home = tmp_path/"processed_data"
    if layout == "dict": DatasetDict(train=pictures(), validation=pictures(4)).save_to_disk(str(home))
    if layout == "one": pictures().save_to_disk(str(home))
    if layout == "loose":
        for name, n in (("train", 12), ("validation", 4)): pictures(n).save_to_disk(str(home/name))
    cat = Catalog.from_hf(home)
    assert cat.splits == (["train"] if layout == "one" else ["train", "val"])
    assert len(pickle.dumps(cat.reader)) < 10_000                    # memory-mapped: workers open it, nobody copies it
    again = Catalog.load(cat.split(.25).save(tmp_path/"list"))
    assert len(again) == len(cat) and (Images(again)[7] == Images(cat)[7]).all()
    dm = ImageDataModule(home, image_size=16, batch_size=4, num_workers=2, val_split=.25)
    assert next(iter(dm.train_dataloader())).image.shape == (4, 3, 16, 16)
    moved = home.rename(tmp_path/"moved")
    assert (Images(Catalog.load(tmp_path/"list", root=moved))[7] == Images(again)[7]).all()


def test_the_hub_road_with_a_local_folder(tmp_path, monkeypatch):
    (tmp_path/"repo/data").mkdir(parents=True)
    pictures().to_parquet(str(tmp_path/"repo/data/train-00000.parquet"))
    cat = Catalog.from_hf(tmp_path/"repo")
    assert cat.classes == ["cat", "dog"] and (Images(cat)[5] == pixels(5)).all()
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **kw: asked.append((a, kw)) or DatasetDict(train=pictures()))
    assert Catalog.from_hf("org/name:tiny").source == "Hugging Face dataset org/name:tiny"
    assert len(ImageDataModule("hf://org/name", image_size=16).catalog) == 12
    Catalog.from_hf("org/name", name="big", split="train[:10]")
    assert asked == [(("org/name", "tiny"), dict(split=None)), (("org/name", None), dict(split=None)), (("org/name", "big"), dict(split="train[:10]"))]


def test_a_hub_that_fails(monkeypatch):
    def offline(*a, **kw): raise ConnectionError("Couldn't reach 'org/name' on the Hub")
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match="org/name.*cannot be loaded") as e: Catalog.from_hf("org/name")
    assert "ConnectionError" in str(e.value) and "save_to_disk" in e.value.fix


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"visionlab\[hf\]"): Catalog.from_hf("org/name")


def test_streams_are_refused():
    with pytest.raises(ConfigError, match="IterableDataset"): Catalog.from_hf(pictures().to_iterable_dataset())


def test_a_damaged_image_is_named_and_skipped():
    good = [png(i) for i in range(24)]
    ds = Dataset.from_dict(dict(image=[*good[:5], good[5][:60], *good[6:]], label=["a", "b"]*12))
    cat = Catalog.from_hf(ds)
    with pytest.raises(ImageReadError, match="train/000005"): Images(cat)[5]
    dm = ImageDataModule(ds, image_size=16, val_split=0, num_workers=2).setup()
    assert dm.catalog.skipped["path"].tolist() == ["train/000005"] and 5 not in dm.catalog.frame.index
    assert Images(Catalog.from_hf(Dataset.from_dict(dict(image=[None, png(1)], label=["a", "b"]), features=Features(dict(image=Value("binary"), label=Value("string"))))))[1].shape == (20, 20, 3)


def test_batches_do_not_depend_on_workers():
    cat = Catalog.from_hf(pictures(40))
    def batches(w): return np.concatenate([b.image.numpy() for b in Loader(cat, preset("default", 16), batch_size=8, shuffle=True, seed=1, workers=w)])
    assert (batches(0) == batches(3)).all()


def test_images_stay_in_the_table():
    reader = HFImages(dict(train=pictures()), "image")
    assert isinstance(reader[0], bytes) and reader.name(3) == "train/000003" and len(reader) == 12


# ---- LightlyTrain

@pytest.fixture
def zoo(tmp_path):
    for s in ("train", "val", "test"):
        for name in ("cat", "car", "dog", "extra"):
            for i in range(3):
                path = tmp_path/f"zoo/{s}/{name}/{'deep/er/' if i else ''}{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(i))
    return tmp_path/"zoo"


def test_lightly_dictionary(zoo):
    data = dict(train=zoo/"train", val=zoo/"val", test=zoo/"test", classes={9: "dog", 0: "cat", 4: "car"}, ignore_classes=[4])
    cat = Catalog.from_lightly(data)
    assert cat.classes == ["dog", "cat"] and cat.info["class_ids"] == [9, 0] and cat.splits == ["train", "val", "test"] and len(cat) == 18
    assert cat.skipped["reason"].value_counts().to_dict() == {"not in classes": 3, "ignored class": 3}
    assert all(map(os.path.isfile, cat.files())) and "ignore_classes" in data      # the dictionary is the user's
    assert len(ImageDataModule(dict(train=zoo/"train", classes={0: "cat", 1: "dog"}), image_size=16, val_split=.34).catalog) == 6


def test_lightly_yaml_is_relative_to_its_file(zoo, monkeypatch, tmp_path):
    (zoo/"conf").mkdir()
    (zoo/"conf/data.yaml").write_text("\ufefftrain: ../train\nval: ../val\nclasses:\n  2: cat\n  5: dog\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    cat = Catalog.from_lightly(zoo/"conf/data.yaml")
    assert cat.info["class_ids"] == [2, 5] and cat.counts().to_numpy().tolist() == [[3, 3], [3, 3]]
    assert ImageDataModule(zoo/"conf/data.yaml", image_size=16).classes == ["cat", "dog"]


@pytest.mark.parametrize("change,message", [
    (dict(train_csv="x.csv"), "Both 'train' and 'train_csv'"), (dict(clases=[]), "classes"), (dict(train=None), "no 'train'"), (dict(train="nowhere"), "does not exist"),
    (dict(ignore_classes=[3]), "class id in ignore_classes '3'"), (dict(ignore_classes="0"), "is no list"), (dict(classes={0: "cat", "0": "dog"}), "one id"), (dict(ignore_classes=[0, 1]), "Every class"), (dict(classes={0: "cat", 1: "dgo"}), "Did you mean 'dog'"),
    (dict(classes={0: "cat", 1: "cat"}), "twice"), (dict(classes=None, ignore_classes=[1]), "needs classes"), (dict(ignore_classes=[1]), "one class")])
def test_lightly_mistakes(zoo, change, message):
    with pytest.raises((ConfigError, DataError), match=message): Catalog.from_lightly(dict(train=zoo/"train", val=zoo/"val", classes={0: "cat", 1: "dog"}) | change)


@pytest.mark.parametrize("text", ["- a\n- b\n", "train: [", "\x00"])
def test_broken_yaml(tmp_path, text):
    (tmp_path/"data.yaml").write_text(text)
    with pytest.raises(ConfigError) as e: Catalog.from_lightly(tmp_path/"data.yaml")
    assert "data.yaml" in e.value.where and str(e.value).count("\n") == 2
    with pytest.raises(ConfigError, match="cannot be read"): Catalog.from_lightly(tmp_path/"none.yaml")


def test_yaml_runs_nothing(tmp_path):
    (tmp_path/"data.yaml").write_text(f"train: !!python/object/apply:os.mkdir [{tmp_path/'made'}]\n")
    with pytest.raises(ConfigError): Catalog.from_lightly(tmp_path/"data.yaml")
    assert not (tmp_path/"made").exists()


def test_lightly_tables(zoo):
    rows = ["image_path,label", *(f"train/{n}/0.png,{i}" for n, i in (("cat", 0), ("dog", 9), ("car", 4))), "train/dog/deep/er/1.png,9"]
    (zoo/"train.csv").write_text("\n".join(rows))
    data = dict(train_csv=zoo/"train.csv", classes={0: "cat", 9: "dog", 4: "car"}, ignore_classes=[4], csv_label_type="id")
    cat = Catalog.from_lightly(data)
    assert cat.classes == ["cat", "dog"] and cat.info["class_ids"] == [0, 9] and len(cat) == 3 and cat.skipped["reason"].tolist() == ["ignored class"]


def test_lightly_ids_as_text_and_as_numbers_are_the_same(zoo):
    "JSON knows no keys but texts."
    rows = ["image_path,label", *(f'train/{n}/0.png,"{i}"' for n, i in (("cat", "0,4"), ("dog", 9), ("car", 4)))]
    (zoo/"train.csv").write_text("\n".join(rows))
    for keys, ignored in (((0, 9, 4), ["4"]), (("0", "9", "4"), [4]), (("0", "9", "4"), ["4"])):
        classes = dict(zip(keys, ("cat", "dog", "car")))
        folders = Catalog.from_lightly(dict(train=zoo/"train", classes=classes, ignore_classes=ignored))
        assert folders.classes == ["cat", "dog"] and list(map(int, folders.info["class_ids"])) == [0, 9]
        for kind in (dict(csv_label_type="id"), {}):
            data = dict(train=zoo/"train.csv", classes=classes, ignore_classes=ignored, **kind)
            for dm in (MultiLabelImageDataModule(data, image_size=16, val_split=0), ImageDataModule(data | dict(task="multilabel"), image_size=16, val_split=0)):
                assert dm.task == "multilabel" and dm.classes == ["cat", "dog"] and dm.catalog.frame["label"].tolist() == [("cat",), ("dog",)]
    with pytest.raises(DataError, match="2 labels where one is expected") as e: ImageDataModule(data)
    assert "multilabel" in e.value.fix
    (zoo/"data.yaml").write_text("train: train.csv\nclasses: {'0': cat, 9: dog, 4: car}\nignore_classes: ['4']\ncsv_label_type: id\n")
    assert MultiLabelImageDataModule(zoo/"data.yaml", image_size=16, val_split=0).label_names == ["cat", "dog"]
    with pytest.raises(ConfigError, match="one class each"): MultiLabelImageDataModule(dict(train=zoo/"train"))
    with pytest.raises(ConfigError, match="image_dir"): MultiLabelImageDataModule(data, image_dir=zoo)


# ---- ImageNet

@pytest.fixture
def net(tmp_path):
    for s, n in (("train", 3), ("val", 1)):
        for synset in ("n02012849", "n01440764", "n03126707", "n99999999"):
            folder = tmp_path/"imagenet"/s/synset
            folder.mkdir(parents=True)
            for i in range(n): Image.fromarray(pixels(i, 40)).save(folder/f"{synset}_{i}.JPEG", "JPEG")
    return tmp_path/"imagenet"


def test_imagenet(net):
    cat = Catalog.from_imagenet(net)
    assert cat.info["synsets"] == ["n01440764", "n02012849", "n03126707", "n99999999"] and cat.classes == ["tench", "crane (n02012849)", "crane (n03126707)", "n99999999"]
    assert cat.counts().to_numpy().tolist() == [[3, 1]]*4 and all(map(os.path.isfile, cat.files()))
    assert Catalog.load(cat.save(net.parent/"list")).classes == cat.classes


def test_the_thousand_classes_have_a_thousand_names_in_the_standard_order():
    import timm.data
    synsets = (Path(timm.data.__file__).parent/"_info"/"imagenet_synsets.txt").read_text().split()
    assert synsets == sorted(synsets) and len(set(synset_names(synsets))) == 1000
    assert [synset_names(synsets)[i] for i in (0, 281, 639)] == ["tench", "tabby", "maillot, tank suit"]


def test_the_tree_is_read_once(net, monkeypatch):
    first = Catalog.from_imagenet(net)
    read = []
    monkeypatch.setattr(imagenet_tree, "_read_tree", lambda root, keep=imagenet_tree._read_tree: read.append(root) or keep(root))
    assert Catalog.from_imagenet(net).frame.equals(first.frame) and not read
    (net/"val/n01440764/new.JPEG").write_bytes((net/"val/n01440764/n01440764_0.JPEG").read_bytes())
    assert len(Catalog.from_imagenet(net)) == 17 and len(read) == 1
    (net/"train/n01440764/deep").mkdir()
    (net/"train/n01440764/deep/x.JPEG").write_bytes(png(0))
    assert len(Catalog.from_imagenet(net)) == 18
    (net/"train/n01440764/deep/x.JPEG").unlink()
    assert len(Catalog.from_imagenet(net)) == 17 and len(read) == 3
    for note in Path(os.environ["VISIONLAB_CACHE"]).glob("trees/*"): note.write_bytes(b"damaged")
    assert len(Catalog.from_imagenet(net)) == 17 and len(read) == 4


def test_where_imagenet_is(net, monkeypatch):
    with pytest.raises(EmptyDatasetError, match="IMAGENET_ROOT"): Catalog.from_imagenet(homes=(net.parent/"none",))
    assert len(Catalog.from_imagenet(homes=(net.parent/"none", net))) == 16
    monkeypatch.setenv("VISIONLAB_IMAGENET", str(net))
    assert len(Catalog.from_imagenet()) == 16
    monkeypatch.setenv("IMAGENET_ROOT", str(net.parent/"imagenot"))
    with pytest.raises(DataError, match="Did you mean 'imagenet'"): Catalog.from_imagenet()
    assert len(Catalog.from_imagenet(net)) == 16


def test_imagenet_module(net, tmp_path):
    dm = ImageNetDataModule(net, batch_size=4, num_workers=2)
    dm.setup("fit")
    assert (len(dm.train_dataset), len(dm.val_dataset)) == (12, 4) and dm.train_pipeline.name == "light"
    images, labels = next(iter(dm.train_dataloader()))
    assert images.shape == (4, 3, 224, 224) and labels.dtype.is_floating_point is False
    assert (dm.eval_pipeline.frame.mode, dm.eval_pipeline.frame.crop_pct, dm.eval_pipeline.size) == ("crop", .875, (224, 224))
    (tmp_path/"s.yaml").write_text("data_root: imagenet\nbatch_size: 8\nimage_size: 64\n")
    assert ImageNetDataModule.from_yaml(tmp_path/"s.yaml", num_workers=1).image_size == (64, 64)
    with pytest.raises(UnknownOptionError, match="batch_size"): ImageNetDataModule.from_config(dict(bach_size=1))


# ---- a million rows

@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_hundred_thousand_rows(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]/"benchmarks"))
    import catalog_scale
    found = catalog_scale.run(100_000)
    share = found["rows"]/1_300_000
    assert found["seconds"] < catalog_scale.LIMITS["seconds"]*share*2           # the machine may be busy
    assert found["catalog_mb"] < catalog_scale.LIMITS["catalog_mb"]*share + 5   # what a process takes whatever the rows
    assert found["loader_mb"] < 8 and found["worker_mb"] < 4


def test_a_large_table_behaves_as_a_small_one(tmp_path, monkeypatch):
    for name in ("a", "b"):
        for i in range(6): (tmp_path/f"train/{name}").mkdir(parents=True, exist_ok=True), (tmp_path/f"train/{name}/{i}.png").write_bytes(png(i))
    small = Catalog.from_folder(tmp_path)
    monkeypatch.setattr("visionlab.catalog.catalog._COMPACT", 1)
    monkeypatch.setattr("visionlab.catalog.saved._LARGE", 1)
    large = Catalog.from_folder(tmp_path)
    assert large.frame["path"].dtype == "path" and large.files() == small.files() and repr(large) == repr(small)
    assert large.split(.3).subset("val").files() == small.split(.3).subset("val").files()
    assert large.drop([3], "blurred").skipped.equals(small.drop([3], "blurred").skipped)
    for _ in range(2): again = Catalog.load(large.save(tmp_path/"list"))
    assert Catalog.load(tmp_path/"list").frame.equals(again.frame) and again.files() == small.files()
    csv = tmp_path/"list/catalog.csv"
    csv.write_text(csv.read_text().replace("train/a/0.png,a", "train/a/0.png,b"))
    assert Catalog.load(tmp_path/"list").targets().tolist() == [1, *[0]*5, *[1]*6]
    csv.write_text(csv.read_text().replace("train/a/0.png", "../../0.png"))
    with pytest.raises(DataError, match="lead out"): Catalog.load(tmp_path/"list")


@pytest.mark.parametrize("val", ["train", "train/a"])
def test_lightly_splits_that_share_a_folder_are_refused(tmp_path, val):
    from photos import photo_folder
    root = photo_folder(tmp_path/"d", n_train=4, n_val=2, size=40, classes=("brick", "coffee"))
    (root/"train"/"a"/"x").mkdir(parents=True)
    with pytest.raises(ConfigError, match="share a folder"): Catalog.from_lightly({"train": str(root/"train"), "val": str(root/val)})
