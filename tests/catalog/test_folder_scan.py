"What the scan of class folders leaves out, takes for splits, and takes for classes"
import os
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from visionlab.catalog.catalog import Catalog
from visionlab.runs.config import TrainConfig
from visionlab.core.errors import ConfigError, TooManyBadFilesError
from visionlab.data.module import ImageDataModule
from visionlab.catalog.doctor import check
from visionlab.catalog.sources import open_data
from visionlab.runs.making import make_data

def pictures(folder, n=4, value=0):
    "Write small pictures, each another"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = np.random.default_rng([value, i, len(str(folder))]).integers(0, 255, (16, 16, 3)).astype("uint8")
        Image.fromarray(pixels).save(folder/f"{i:02d}.png")
    return folder

def tree(root, *names, n=4):
    for i,name in enumerate(names): pictures(root/name, n, i)
    return root

def empty(folder, n):
    for o in sorted(folder.iterdir())[:n]: o.write_bytes(b"")

def module(data, **options): return ImageDataModule(data, num_workers=0, cache=None, image_size=16, on_leak="ignore", **options)

def spoil(kind, path):
    path.unlink()
    if kind == "empty": path.write_bytes(b"")
    if kind == "broken link": path.symlink_to(path.with_name("gone.png"))
    if kind == "fifo": os.mkfifo(path)

def as_table(root):
    "List the images of a tree, as they are named, in a CSV"
    rows = [f"{o.relative_to(root)},{o.parent.name},{o.parent.parent.name}" for o in sorted(root.glob("*/*/*.png"))]
    (root/"t.csv").write_text("\n".join(["image,label,split", *rows]))
    return root/"t.csv"

@pytest.mark.parametrize("kind", ["empty", "broken link", "fifo"])
@pytest.mark.parametrize("form", ["folder", "csv"])
def test_a_class_of_which_nothing_can_be_used_is_an_error(tmp_path, kind, form):
    root = tree(tmp_path/"d", "train/cat", "train/cow", "train/dog", "val/cow", "val/dog")
    for o in (root/"train/cat").iterdir(): spoil(kind, o)
    data = root if form == "folder" else as_table(root)
    with pytest.raises(TooManyBadFilesError, match="'cat'"): module(data, on_bad="skip")

def test_the_lost_class_is_named_with_its_numbers_and_the_doctor_lists_its_files(tmp_path):
    root = tree(tmp_path/"d", "cat", "cow", "dog", n=8)
    empty(root/"cat", 8)
    with pytest.raises(TooManyBadFilesError, match="'cat'.*8 of 8") as e: Catalog.from_folder(root)
    assert len(e.value.context["bad"]) == 8 and ".context['bad']" in str(e.value)
    assert (check(root, progress=False).frame["issue"] == "empty").sum() == 8

@pytest.mark.parametrize("form", ["folder", "csv"])
def test_max_bad_judges_what_the_scan_left_out(tmp_path, form):
    root = tree(tmp_path/"d", "train/cat", "train/dog", "val/cat", "val/dog", n=12)
    for o in ("cat", "dog"): empty(root/"val"/o, 10)
    data = root if form == "folder" else as_table(root)
    with pytest.raises(TooManyBadFilesError, match="20 of 24 files of split 'val'"): module(data, on_bad="skip")
    assert len(module(data, on_bad="skip", max_bad=.9).catalog.subset("val")) == 4

@pytest.mark.parametrize("form", ["folder", "csv"])
def test_on_bad_error_and_one_file_that_may_be_skipped(tmp_path, form):
    root = tree(tmp_path/"d", "train/cat", "train/dog")
    empty(root/"train/cat", 1)
    data = root if form == "folder" else as_table(root)
    with pytest.raises(Exception, match="1 of 8"): module(data, on_bad="error")
    assert len(module(data, on_bad="skip").catalog) == 7

def test_what_the_scan_and_the_decoder_leave_out_is_judged_together(tmp_path):
    root = tree(tmp_path/"d", "cat", "dog", n=20)
    empty(root/"cat", 2)
    for o in sorted((root/"dog").iterdir())[:2]: o.write_bytes(o.read_bytes()[:60])
    with pytest.raises(TooManyBadFilesError): module(root, val_split=0).setup()
    assert len(module(root, val_split=0, max_bad=.1).setup().catalog) == 36

LAYOUTS = {"cat-and-dog": ("training_set/{}", "test_set/{}"), "twice": ("training_set/training_set/{}", "test_set/test_set/{}"), "intel": ("seg_train/seg_train/{}", "seg_test/seg_test/{}"),
           "alphabet": ("asl_alphabet_train/{}", "asl_alphabet_test/{}"), "images": ("train_images/{}", "val_images/{}"), "camel": ("TrainImages/{}", "ValidationImages/{}"),
           "chest": ("chest_xray/train/{}", "chest_xray/test/{}"), "years": ("train2017/{}", "val2017/{}"), "plain": ("Training/{}", "testing/{}")}

@pytest.mark.parametrize("name", LAYOUTS)
def test_split_folders_under_other_names(tmp_path, name):
    train,other = LAYOUTS[name]
    root = tree(tmp_path/"d", *(train.format(o) for o in "AB"), n=5)
    tree(root, *(other.format(o) for o in "AB"), n=3)
    cat = Catalog.from_folder(root/"chest_xray" if name == "chest" else root)
    assert cat.classes == ["A", "B"] and cat.frame["split"].value_counts().to_dict() == {"train": 10, "val" if "val" in other.lower() else "test": 6}

def test_unlabelled_images_beside_the_splits_are_no_class(tmp_path):
    root = tree(tmp_path/"d", "seg_train/seg_train/sea", "seg_train/seg_train/street", "seg_test/seg_test/sea", "seg_test/seg_test/street", "seg_pred/seg_pred")
    cat = Catalog.from_folder(root)
    assert cat.classes == ["sea", "street"] and cat.splits == ["train", "test"]
    assert ("seg_pred", "folder not used") in set(zip(cat.skipped["path"], cat.skipped["reason"]))
    note, = [o for o in cat.notes if "seg_pred" in o]
    assert f"learn.predict({str(root/'seg_pred/seg_pred')!r})" in note and note in repr(cat)

def test_a_test_folder_without_classes_is_said_with_what_to_type(tmp_path):
    root = tree(tmp_path/"d", "train/a", "train/b", "test", "extra/deep/x", "extra/deep/y")
    note, = [o for o in Catalog.from_folder(root).notes if "learn.predict" in o]
    assert f"learn.predict({str(root/'test')!r})" in note

def test_the_alphabet_as_it_is_packed(tmp_path):
    root = tree(tmp_path/"d", "asl_alphabet_train/asl_alphabet_train/A", "asl_alphabet_train/asl_alphabet_train/B", "asl_alphabet_test/asl_alphabet_test")
    cat = Catalog.from_folder(root)
    assert cat.classes == ["A", "B"] and cat.splits == ["train"] and (cat.skipped["reason"] == "not in a class folder").sum() == 4

def test_vehicles_called_train(tmp_path):
    root = tree(tmp_path/"d", "bus", "car", "train")
    assert Catalog.from_folder(root).classes == ["bus", "car", "train"]
    tree(root, "train/steam", "train/diesel")
    with pytest.raises(ConfigError, match="split_folders='no'"): Catalog.from_folder(root)
    assert Catalog.from_folder(root, split_folders="no").classes == ["bus", "car", "train"]
    assert Catalog.from_folder(root, split_folders="yes").classes == ["diesel", "steam"]

@pytest.mark.parametrize("names", [("test_failed", "test_passed"), ("valid", "invalid"), ("trainer", "valley"), ("train_station", "harbour")])
def test_class_names_that_speak_of_splits(tmp_path, names):
    assert Catalog.from_folder(tree(tmp_path/"d", *names)).classes == sorted(names)

ORCHARD = ("Apple/healthy", "Apple/scab", "Grape/healthy", "Grape/rot")

def test_merged_sub_folders_are_told(tmp_path):
    root = tree(tmp_path/"d", *ORCHARD)
    (note,) = [o for o in Catalog.from_folder(root).notes if "levels=2" in o]
    assert "'Apple' lie in 2 sub-folders: healthy, scab" in note
    one = tree(tmp_path/"one", "a/images", "b/images")
    assert Catalog.from_folder(one).notes == []

@pytest.mark.parametrize("inside", ["", "train/"])
def test_levels_take_the_path_as_class(tmp_path, inside):
    root,want = tree(tmp_path/"d", *(inside + o for o in ORCHARD)), sorted(ORCHARD)
    cat = Catalog.from_folder(root, levels=2)
    assert cat.classes == want and cat.notes == []
    assert module(root, levels=2).classes == open_data(root, levels=2).classes == want
    assert make_data(TrainConfig(str(root), levels=2, image_size=16, num_workers=0)).classes == want
    assert Catalog.load(cat.save(tmp_path/"saved")).classes == want

def test_levels_on_the_command_line(tmp_path, capsys):
    from visionlab.cli import main
    root = tree(tmp_path/"d", *ORCHARD)
    main(["check", str(root), "--levels", "2"])
    assert "'Apple/healthy'" in capsys.readouterr().out

def test_levels_are_for_folders(tmp_path):
    root = tree(tmp_path/"d", "train/cat", "train/dog")
    with pytest.raises(ConfigError, match="levels"): module(as_table(root), levels=2)
    with pytest.raises(ConfigError): Catalog.from_folder(root, levels=0)

@pytest.mark.parametrize("name", ["@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "#recycle", "@Recycle", "__pycache__"])
def test_folders_of_systems_are_no_classes(tmp_path, name):
    root = tree(tmp_path/"d", "cat", "dog", name, f"cat/{name}")
    cat = Catalog.from_folder(root)
    assert cat.classes == ["cat", "dog"] and len(cat) == 8 and any(name in o for o in cat.notes)

def test_what_visionlab_wrote_is_no_class(tmp_path):
    root = tree(tmp_path/"d", "cat", "dog", "run", "model", "cat/run")
    for o in ("run", "cat/run"):
        Catalog.from_folder(tree(tmp_path/"e", "a", "b")).save(root/o/"catalog")
        (root/o/"config.yaml").write_text("")
    (root/"model/visionlab.json").write_text("{}")
    cat = Catalog.from_folder(root)
    assert cat.classes == ["cat", "dog"] and len(cat) == 8
    assert sorted(cat.skipped.loc[cat.skipped["reason"] == "folder that visionlab wrote", "path"]) == ["cat/run", "model", "run"]
