"Class folders, tables, splits, built-ins and saved catalogs: the cases a page should not show."
import gzip, os, pickle, socket, struct, time
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from visionlab.catalog import builtins, labels, catalog
from visionlab.catalog.catalog import Catalog
from visionlab.catalog.builtins import BUILTINS, read_idx
from visionlab.core.errors import (
    ClassMismatchError, ConfigError, DataError, EmptyDatasetError, TooManyBadFilesError, UnknownOptionError)

PNG = None
def png():
    global PNG
    if PNG is None:
        import io
        b = io.BytesIO(); Image.new("L", (4, 4)).save(b, "PNG"); PNG = b.getvalue()
    return PNG

def put(root, *names):
    for name in names:
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(png())
    return root

def reasons(cat): return dict(zip(cat.skipped["path"], cat.skipped["reason"]))
def three_lines(e): assert all((e.value.what, e.value.where, e.value.fix)), str(e.value)

@pytest.fixture
def pets(tmp_path): return put(tmp_path/"pets", *(f"{s}/{c}/{i}.png" for s,n in (("train", 4), ("val", 2)) for c in ("cat", "dog") for i in range(n)))

@pytest.fixture(scope="module")
def sample(): return Catalog.from_builtin("FashionSample")

# --- folders

@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "Val", "VALID"])
@pytest.mark.parametrize("train,test", [("train", "test"), ("Train", "Test"), ("training", "testing")])
def test_split_folders(tmp_path, train, val, test):
    put(tmp_path, *(f"{s}/{c}/{i}.png" for s in (train, val, test) for c in "ab" for i in range(2)))
    cat = Catalog.from_folder(tmp_path)
    assert cat.splits == ["train", "val", "test"] and cat.counts().to_numpy().tolist() == [[2, 2, 2]]*2
    assert all(map(os.path.isfile, cat.files())) and cat.targets("test").tolist() == [0, 0, 1, 1]

def test_plain_class_folders(tmp_path):
    cat = Catalog.from_folder(put(tmp_path, "b/1.png", "b/deep/er/2.png", "a/1.png"))
    assert (cat.classes, cat.splits, len(cat)) == (["a", "b"], ["train"], 3)
    assert cat.frame["path"].tolist() == ["a/1.png", "b/1.png", "b/deep/er/2.png"]

def test_a_class_may_be_called_train(tmp_path):
    assert Catalog.from_folder(put(tmp_path, "car/1.png", "plane/1.png", "train/1.png")).classes == ["car", "plane", "train"]
    assert Catalog.from_folder(put(tmp_path/"b", "prod/1.png", "test/1.png")).classes == ["prod", "test"]

def test_flat_split_folders_are_not_classes(tmp_path):
    with pytest.raises(EmptyDatasetError, match="one folder per class") as e: Catalog.from_folder(put(tmp_path, "train/1.png", "val/1.png"))
    three_lines(e)

def test_classes_sort_as_text(tmp_path): assert Catalog.from_folder(put(tmp_path, *(f"{i}/a.png" for i in ("c1", "c2", "c10", "C")))).classes == ["C", "c1", "c10", "c2"]

def _numbered(root):
    "Images with whole numbers for labels: files, and numbers"
    put(root, *(f"{i}/{i}.png" for i in range(12)))
    return [f"{i}/{i}.png" for i in range(12)], list(range(12))

def _csv(root, files, labels, name="t.csv"):
    (root/name).write_text("\n".join(["image,label", *(f"{f},{o}" for f,o in zip(files, labels))]))
    return root/name

DOORS = dict(folder=lambda root, f, n: Catalog.from_folder(root), csv=lambda root, f, n: Catalog.from_csv(_csv(root, f, n)),
             csv_ids=lambda root, f, n: Catalog.from_csv(_csv(root, f, n), label_type="id"),
             several=lambda root, f, n: Catalog.from_csv(_csv(root, f, n), label_delimiter=";"),
             frame=lambda root, f, n: Catalog.from_frame(pd.DataFrame(dict(path=f, label=n)), root=root), text_frame=lambda root, f, n: Catalog.from_frame(pd.DataFrame(dict(path=f, label=list(map(str, n)))), root=root),
             table=lambda root, f, n: Catalog.from_table(pd.DataFrame(dict(image=f, label=n)), image_dir=root), text_table=lambda root, f, n: Catalog.from_table(pd.DataFrame(dict(image=f, label=list(map(str, n)))), image_dir=root),
             lists=lambda root, f, n: Catalog.from_lists(f, n, root=root), text_lists=lambda root, f, n: Catalog.from_lists(f, list(map(str, n)), root=root),
             lightly=lambda root, f, n: Catalog.from_lightly(dict(train=str(root))), lightly_table=lambda root, f, n: Catalog.from_lightly(dict(train=str(_csv(root, f, n)))))

@pytest.mark.parametrize("door", DOORS)
def test_whole_numbers_have_one_order_everywhere(tmp_path, door):
    cat = DOORS[door](tmp_path, *_numbered(tmp_path))
    assert cat.classes == [str(i) for i in range(12)]
    assert (cat.targets().argmax(1) if cat.task == "multilabel" else cat.targets()).tolist() == [int(Path(o).stem) for o in cat.frame["path"]]

def test_one_word_among_numbers_makes_names_of_them(tmp_path):
    assert Catalog.from_lists(_numbered(tmp_path)[0], [*range(1, 12), "none"], root=tmp_path).classes == sorted(["none", *map(str, range(1, 12))])
    assert labels.sorted_classes(["-1", "10", "2", "02"]) == ["-1", "02", "2", "10"]

def test_two_val_folders(pets):
    put(pets, "validation/cat/1.png")
    with pytest.raises(ConfigError, match="'val', 'validation'") as e: Catalog.from_folder(pets)
    three_lines(e)
    cat = Catalog.from_folder(pets, valid="val")
    assert cat.counts()["val"].tolist() == [2, 2] and reasons(cat) == {"validation": "folder not used"}

def test_valid_by_any_name(pets):
    put(pets, "test/cat/1.png", "test/dog/1.png")
    cat = Catalog.from_folder(pets, valid="test")
    assert cat.splits == ["train", "val"] and cat.counts()["val"].tolist() == [1, 1] and "val" in reasons(cat)
    with pytest.raises(UnknownOptionError, match="'test'"): Catalog.from_folder(pets, valid="tset")

def test_no_train_folder(tmp_path):
    with pytest.raises(EmptyDatasetError, match="no 'train' folder") as e: Catalog.from_folder(put(tmp_path, "val/a/1.png", "test/a/1.png"))
    three_lines(e)

def test_train_without_images(tmp_path):
    (tmp_path/"train/a").mkdir(parents=True)
    with pytest.raises(EmptyDatasetError, match="'train' folder has no image"): Catalog.from_folder(put(tmp_path, "val/a/1.png"))

def test_hidden_entries(pets):
    put(pets, "train/.ipynb_checkpoints/cat/1.png", "train/cat/.hidden.png", "__MACOSX/train/cat/1.png", "train/dog/.deep/1.png")
    for name in ("Thumbs.db", "train/cat/desktop.ini", ".DS_Store", "train/.DS_Store"): (pets/name).write_text("x")
    cat = Catalog.from_folder(pets)
    assert len(cat) == 12 and cat.classes == ["cat", "dog"] and not len(cat.skipped)
    assert sum(cat.info["hidden"].values()) == 8 and cat.info["hidden"][".DS_Store"] == 2
    assert any("8 hidden" in o for o in cat.notes)

def test_extensions(pets):
    put(pets, *(f"train/cat/x{e}" for e in (".JPEG", ".JPG", ".Tiff", ".webp", ".bmp", ".heic", ".txt", "")))
    cat = Catalog.from_folder(pets)
    assert len(cat) == 17
    assert reasons(cat) == {"train/cat/x.heic": "extension .heic", "train/cat/x.txt": "extension .txt", "train/cat/x": "no extension"}

def test_strays_empty_files_and_empty_folders(pets):
    put(pets, "stray.png", "train/stray.png"); (pets/"train/cat/e.png").touch(); (pets/"train/zebra").mkdir(); put(pets, "extra/cat/1.png")
    assert reasons(Catalog.from_folder(pets)) == {"stray.png": "not in a class folder", "train/stray.png": "not in a class folder", "extra": "folder not used",
                                                  "train/cat/e.png": "empty", "train/zebra": "empty class"}

@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_sockets_are_not_opened(pets, monkeypatch):
    os.mkfifo(pets/"train/cat/pipe.png"); os.mkfifo(pets/"train/pipe.png")
    monkeypatch.chdir(pets/"train/dog")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("s.png")
        assert set(reasons(Catalog.from_folder(pets)).values()) == {"not_regular_file"}

def link(at, to): at.symlink_to(to, target_is_directory=True)

def test_links(pets, tmp_path):
    put(tmp_path/"elsewhere", "9.png"); link(pets/"train/cat/more", tmp_path/"elsewhere")
    (pets/"train/cat/file.png").symlink_to(tmp_path/"elsewhere/9.png"); (pets/"train/cat/broken.png").symlink_to("nowhere.png"); (pets/"train/cat/self.png").symlink_to("self.png")
    cat = Catalog.from_folder(pets)
    assert len(cat) == 13
    assert reasons(cat) == {"train/cat/more": "link", "train/cat/broken.png": "missing", "train/cat/self.png": "missing"}
    assert "train/cat/more/9.png" in Catalog.from_folder(pets, follow_links=True).frame["path"].tolist()

@pytest.mark.parametrize("at,to", [("train/cat/loop", ".."), ("train/cat/loop", "../.."), ("train/cat/loop", "."), ("train/cat/loop", "../dog"), ("train/loop", "cat"), ("dev", "train")])
def test_link_loops_end_and_poison_nothing(pets, at, to):
    import shutil
    shutil.rmtree(pets/"val")
    link(pets/at, to)
    for follow in (False, True):
        cat = Catalog.from_folder(pets, follow_links=follow)
        assert cat.counts().to_numpy().tolist() == [[4], [4]] and cat.skipped["reason"].str.startswith("link").any()

def test_linked_class_and_split_folders(tmp_path):
    put(tmp_path/"store", "t/cat/1.png", "t/dog/1.png", "bird/1.png")
    (tmp_path/"data").mkdir(); link(tmp_path/"data/train", tmp_path/"store/t"); link(tmp_path/"store/t/bird", tmp_path/"store/bird")
    with pytest.raises(EmptyDatasetError, match="follow_links"): Catalog.from_folder(tmp_path/"data")
    assert Catalog.from_folder(tmp_path/"data", follow_links=True).classes == ["bird", "cat", "dog"]

def test_odd_names(tmp_path):
    names = ["Übung", "猫", "<img src=x onerror=alert(1)>", "a b", "=1+1", "x\ny"]
    cat = Catalog.from_folder(put(tmp_path, *(f"{n}/{n}.png" for n in names)))
    assert cat.classes == sorted(names)
    assert "<img" not in cat._repr_html_() and "x\ny" not in repr(cat)
    again = Catalog.load(cat.save(tmp_path/"saved"))
    assert again.frame.equals(cat.frame) and again.classes == cat.classes

def test_names_that_are_not_text(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"data", b"caf\xe9")
    try: os.makedirs(folder)
    except OSError: pytest.skip("this file system has text names only")
    open(os.path.join(folder, b"\xff.png"), "wb").write(png())
    cat = Catalog.from_folder(put(tmp_path/"data", "tea/1.png"))
    assert all(map(os.path.isfile, cat.files()))
    repr(cat).encode(); cat._repr_html_().encode()
    again = Catalog.load(cat.save(tmp_path/"saved"))
    assert again.frame.equals(cat.frame) and again.files() == cat.files()
    put(tmp_path/"data", "tea/2.png"); assert Catalog.from_folder(tmp_path/"data").split(.5).splits == ["train", "val"]

def test_one_class(tmp_path):
    put(tmp_path/"data", "cat/1.png")
    with pytest.raises(DataError, match="one class only, 'cat'") as e: Catalog.from_folder(tmp_path/"data")
    three_lines(e)
    assert len(Catalog.from_folder(tmp_path/"data", allow_single=True)) == 1

def test_one_folder_too_high(pets):
    with pytest.raises(DataError, match=r"Did you mean '.*pets'"): Catalog.from_folder(pets.parent)

@pytest.mark.parametrize("make,match", [
    (lambda r: r.mkdir(), "nothing in it"),
    (lambda r: [put(r, f"a/{i}.heic") for i in range(3)], "3 × extension .heic"),
    (lambda r: put(r, "1.png", "2.png"), "one folder per class"),
    (lambda r: [(r/f"train/{c}").mkdir(parents=True) for c in "ab"], "2 × empty class")])
def test_no_images(tmp_path, make, match):
    make(tmp_path/"data")
    with pytest.raises(EmptyDatasetError, match=match) as e: Catalog.from_folder(tmp_path/"data")
    three_lines(e)

def test_not_a_folder(pets):
    with pytest.raises(DataError, match="Did you mean 'pets'"): Catalog.from_folder(pets.parent/"pest")
    with pytest.raises(DataError, match="is a file"): Catalog.from_folder(pets/"train/cat/0.png")

def test_class_missing_in_val_is_a_note(pets):
    put(pets, "train/ant/1.png")
    cat = Catalog.from_folder(pets)
    assert cat.classes == ["ant", "cat", "dog"] and cat.targets("val").tolist() == [1, 1, 2, 2]
    assert cat.notes == ["val has no image of 'ant'"] and "Note: val has no image" in repr(cat)

@pytest.mark.parametrize("split", ["val", "test"])
def test_class_missing_in_train_is_an_error(pets, split):
    put(pets, f"{split}/ant/1.png")
    with pytest.raises(ClassMismatchError, match=f"{split} has 1 class that train lacks: 'ant'") as e: Catalog.from_folder(pets)
    three_lines(e)
    assert Catalog.from_folder(pets, classes=["dog", "cat"]).classes == ["dog", "cat"]

def test_given_classes(pets):
    put(pets, "train/ant/1.png", "train/bee/1.txt")
    cat = Catalog.from_folder(pets, classes={9:"dog", 2:"ant"})
    assert (cat.classes, cat.info["class_ids"], len(cat)) == (["dog", "ant"], [9, 2], 7)
    assert reasons(cat) == {"train/bee": "not in classes", "train/cat": "not in classes", "val/cat": "not in classes"}
    with pytest.raises(ClassMismatchError, match="Did you mean 'cat'") as e: Catalog.from_folder(pets, classes=["catt", "dog"])
    three_lines(e)
    for bad in (["cat", "cat"], "cat"):
        with pytest.raises(ConfigError): Catalog.from_folder(pets, classes=bad)
    (pets/"train/yak").mkdir()
    assert any("train has no image of 'yak'" in o for o in Catalog.from_folder(pets, classes=["cat", "dog", "yak"]).notes)

def test_lookalike_classes(tmp_path):
    put(tmp_path, "e\u0301t/1.png", "\xe9t/1.png")
    if len(os.listdir(tmp_path)) < 2: pytest.skip("this file system normalises names")
    assert any("different classes" in o for o in Catalog.from_folder(tmp_path).notes)

def test_many_files_fast(tmp_path):
    for c in range(20):
        (tmp_path/f"c{c:02}").mkdir()
        for i in range(500): (tmp_path/f"c{c:02}/{i}.png").write_bytes(b"x")
    start = time.process_time()
    assert len(Catalog.from_folder(tmp_path)) == 10_000
    assert time.process_time() - start < 3

def test_a_thousand_classes():
    n = 1000
    cat = Catalog(pd.DataFrame(dict(path=[f"{i}.png" for i in range(5*n)], label=[f"c{i%n:04}" for i in range(5*n)], split="train")), [f"c{i:04}" for i in range(n)])
    assert len(repr(cat).splitlines()) < 20 and len(cat._repr_html_()) < 10_000 and "990 more classes" in repr(cat)
    assert cat.split(.1).counts()["val"].tolist() == [1]*n

# --- tables and lists

def test_table(pets):
    df = pd.DataFrame(dict(image=["train/cat/0.png", str(pets/"train/dog/0.png"), "val/cat/0.png", "val/dog/0.png"], y=["cat", " dog", "cat", "dog"],
                           fold=["train", "Training", "dev", "valid"], age=[1, 2, 3, 4]), index=[5, 5, 6, 7])
    cat = Catalog.from_frame(df, "image", "y", "fold", root=pets)
    assert cat.frame["path"].tolist() == ["train/cat/0.png", "train/dog/0.png", "val/cat/0.png", "val/dog/0.png"]
    assert cat.frame["split"].tolist() == ["train", "train", "val", "val"] and cat.frame["age"].tolist() == [1, 2, 3, 4] and cat.frame.index.tolist() == [0, 1, 2, 3]
    assert cat.notes == ["spaces around 1 label removed"]
    assert Catalog.from_frame(cat.frame, root=cat.root).frame.equals(cat.frame)

def test_table_columns(pets):
    df = pd.DataFrame(dict(file=["train/cat/0.png"], label=["cat"]))
    with pytest.raises(UnknownOptionError, match="'path'"): Catalog.from_frame(df, root=pets)
    with pytest.raises(UnknownOptionError, match="'spilt'"): Catalog.from_frame(df, "file", split_col="spilt", root=pets)
    with pytest.raises(ConfigError, match="Two columns"): Catalog.from_frame(df.assign(path="x"), "file", root=pets)
    with pytest.raises(EmptyDatasetError): Catalog.from_frame(df.iloc[:0], "file", root=pets)
    with pytest.raises(UnknownOptionError): Catalog.from_frame(df, "file", root=pets, on_bad="ignore")
    assert Catalog.from_frame(df.assign(split="junk"), "file", split_col=None, root=pets, allow_single=True).splits == ["train"]

def paths(pets, n=4): return [str(pets/f"train/{c}/{i}.png") for i in range(n//2) for c in ("cat", "dog")]

@pytest.mark.parametrize("labels,kw,names,ids", [
    (["b", "a", "b", "a"], {}, ["b", "a", "b", "a"], None),
    ([10, 2, 10, 2], {}, ["10", "2", "10", "2"], [2, 10]),
    (np.array([1, 0, 1, 0]), dict(classes=["x", "y"]), ["y", "x", "y", "x"], None),
    ([7., 3., 7., 3.], dict(classes={3:"x", 7:"y"}), ["y", "x", "y", "x"], [3, 7]),
    (pd.Series(["b", "a", "b", "a"], dtype="category"), {}, ["b", "a", "b", "a"], None),
    (["NA", "007", "NA", "007"], {}, ["NA", "007", "NA", "007"], None),
    ([True, False, True, False], {}, ["True", "False", "True", "False"], None)])
def test_labels(pets, labels, kw, names, ids):
    cat = Catalog.from_lists(paths(pets), labels, **kw)
    assert cat.frame["label"].tolist() == names and cat.info.get("class_ids") == ids and sorted(cat.classes) == sorted(set(names))

def test_numbers_sort_as_numbers(pets): assert Catalog.from_lists(paths(pets), [10, 2, 1, 2]).classes == ["1", "2", "10"]

def test_lists_without_labels(pets):
    cat = Catalog.from_lists(paths(pets), classes=["cat", "dog"])
    assert cat.splits == ["predict"] and cat.targets().tolist() == [-1]*4 and "(no label)" in repr(cat)
    assert Catalog.from_lists(paths(pets)[:1]).classes == []

def test_lists_share_a_root(pets, monkeypatch):
    assert Catalog.from_lists(paths(pets), list("abab")).root == pets/"train"
    monkeypatch.chdir(pets)
    cat = Catalog.from_lists(["train/cat/0.png", Path("val/dog/0.png")], list("ab"))
    assert cat.root == pets and cat.frame["path"].tolist() == ["train/cat/0.png", "val/dog/0.png"]

def test_lists_of_different_length(pets):
    with pytest.raises(ConfigError, match="4 paths, 2 labels"): Catalog.from_lists(paths(pets), ["a", "b"])

@pytest.mark.parametrize("change,reason", [
    (dict(label=None), "missing label"), (dict(label=float("nan")), "missing label"), (dict(label=" "), "missing label"), (dict(label="ant"), "label 'ant' is not a class"),
    (dict(path="train/cat/none.png"), "missing"), (dict(path=None), "missing path"), (dict(path=""), "missing path"), (dict(path="a\0b.png"), "missing"),
    (dict(path="../../etc/passwd"), "outside root"), (dict(path="/etc/passwd"), "outside root"), (dict(path="train/cat"), "not_regular_file"),
    (dict(path="train/cat/e.png"), "empty"), (dict(split="holdout"), "split 'holdout' is unknown"), (dict(split=None), "missing split")])
def test_bad_rows(pets, change, reason):
    (pets/"train/cat/e.png").touch()
    df = pd.DataFrame([dict(path=f"train/{c}/{i}.png", label=c, split="train") for i in range(3) for c in ("cat", "dog")], dtype=object)
    for k,v in change.items(): df.at[2, k] = v
    with pytest.raises(DataError, match="1 of 6 rows cannot be used") as e: Catalog.from_frame(df, root=pets, classes=["cat", "dog"])
    three_lines(e); assert e.value.context["rows"] == [(2, reason)] and "row 2" in e.value.where
    cat = Catalog.from_frame(df, root=pets, classes=["cat", "dog"], on_bad="skip")
    assert cat.frame.index.tolist() == [0, 1, 3, 4, 5] and cat.skipped["reason"].tolist() == [reason]

@pytest.mark.parametrize("column,value,reason", [("label", "dog", "listed with two labels"), ("split", "val", "listed in two splits")])
def test_rows_that_contradict_each_other(pets, column, value, reason):
    df = pd.DataFrame([("train/cat/0.png", "cat", "train")]*2 + [("train/cat/1.png", "cat", "train"), ("train/dog/0.png", "dog", "train")], columns=["path", "label", "split"])
    assert Catalog.from_frame(df, root=pets).notes == ["1 row repeats a file that another row has"]
    df.loc[1, column] = value
    with pytest.raises(DataError, match="2 of 4 rows") as e: Catalog.from_frame(df, root=pets)
    assert {r for _,r in e.value.context["rows"]} == {reason}

def test_a_class_may_not_vanish(pets):
    with pytest.raises(TooManyBadFilesError, match="No row of 'dog'"): Catalog.from_lists([*paths(pets)[::2], "no.png"], ["cat", "cat", "dog"], on_bad="skip")

def test_table_class_only_in_val(pets):
    with pytest.raises(ClassMismatchError, match="val has 1 class"): Catalog.from_lists(paths(pets), list("abac"), splits=["train"]*3 + ["val"])
    with pytest.raises(DataError, match="one class only"): Catalog.from_lists(paths(pets), list("aaaa"))
    assert Catalog.from_lists(paths(pets), list("abab"), splits=["test"]*4).splits == ["test"]

# --- the split

def table(counts, seed=0, **extra):
    labels = np.repeat(list(counts), list(counts.values()))
    return Catalog(pd.DataFrame(dict(path=[f"{c}/{i}.png" for i,c in enumerate(labels)], label=labels, split="train", **extra)), sorted(counts))

def val_paths(cat): return set(cat.subset("val").frame["path"])

def test_split_is_always_the_same():
    cat = table(dict(a=30, b=20))
    mixed = Catalog(cat.frame.sample(frac=1, random_state=1).reset_index(drop=True), ["b", "a"])
    assert val_paths(cat.split(.2)) == val_paths(mixed.split(.2)) == {f"a/{i}.png" for i in (1, 4, 10, 14, 20, 22)} | {f"b/{i}.png" for i in (30, 32, 38, 49)}
    assert val_paths(cat.split(.2, seed=0)) != val_paths(cat.split(.2, seed=1)) and cat.splits == ["train"]
    assert cat.split(.2).info["split"] == dict(val_split=.2, seed=42, group_col=None)

@pytest.mark.parametrize("counts,val_split,want", [
    (dict(a=100, b=100), .1, [10, 10]), (dict(a=95, b=15), .1, [10, 1]), (dict(a=94, b=16), .1, [9, 2]), (dict(a=50, b=2, c=1), .1, [4, 1, 0]), (dict(a=2, b=2), .9, [1, 1]),
    (dict(a=6, b=4), 5, [3, 2]), (dict(a=10, b=10, c=10), 1, [1, 1, 1]), (dict(a=5, b=5), np.float32(.5), [3, 2])])
def test_split_shares(counts, val_split, want):
    got = table(counts).split(val_split).counts().get("val")
    assert got.tolist() == want

@pytest.mark.parametrize("val_split", [0, 0., 1., -1, 10, 1.5, True, None, "a", float("nan")])
def test_split_nonsense(val_split):
    with pytest.raises(ConfigError, match="fraction between 0 and 1"): table(dict(a=5, b=5)).split(val_split)

def test_split_limits(pets):
    cat = Catalog.from_folder(pets)
    assert cat.split(.5) is cat
    with pytest.raises(ConfigError, match="seed"): table(dict(a=5, b=5)).split(.2, seed=None)
    with pytest.raises(DataError, match="No validation image"): table(dict(a=1, b=1)).split(.5)
    with pytest.raises(EmptyDatasetError): Catalog.from_lists(paths(pets)).split()

def test_split_leaves_test_and_unlabelled_alone(sample):
    cat = sample.split(.1)
    assert (cat.frame["split"] == "test").equals(sample.frame["split"] == "test") and cat.counts()["val"].tolist() == [60]*10
    frame = table(dict(a=10, b=10)).frame
    frame.loc[frame.index[:5], "label"] = None
    assert Catalog(frame, ["a", "b"]).split(.5).subset("val").frame["label"].notna().all()

def test_groups_stay_whole():
    rng = np.random.default_rng(0)
    cat = table(dict(a=400, b=200, c=60), who=rng.integers(0, 90, 660))
    new = cat.split(.2, group_col="who")
    assert new.frame.groupby("who")["split"].nunique().max() == 1
    assert np.abs(new.counts()["val"].to_numpy() - [80, 40, 12]).max() <= 4
    shuffled = Catalog(cat.frame.sample(frac=1, random_state=1).reset_index(drop=True), cat.classes)
    assert val_paths(shuffled.split(.2, group_col="who")) == val_paths(new) != val_paths(cat.split(.2, seed=1, group_col="who"))

def test_big_groups():
    two = table(dict(a=10, b=10), who=[0]*5 + [1]*5 + [0]*5 + [1]*5)
    assert two.split(.1, group_col="who").counts()["val"].tolist() == [5, 5]
    with pytest.raises(DataError, match="only group"): table(dict(a=10, b=10), who=0).split(.1, group_col="who")
    with pytest.raises(UnknownOptionError): two.split(.1, group_col="woh")
    with pytest.raises(DataError, match="1 row has no 'who'"): table(dict(a=2, b=2), who=[None, "x", "y", "z"]).split(.5, group_col="who")

def test_many_groups_fast():
    n = 20_000
    cat = table(dict(a=n//2, b=n//2), who=np.arange(n)//3)
    start = time.process_time(); new = cat.split(.1, group_col="who")
    assert time.process_time() - start < 3 and abs(new.counts()["val"].sum() - n//10) <= 3

def test_repeated_files_stay_together():
    cat = table(dict(a=40, b=40))
    twice = Catalog(pd.concat([cat.frame, cat.frame], ignore_index=True), cat.classes)
    assert twice.split(.25).frame.groupby("path")["split"].nunique().max() == 1

# --- the table itself

def test_catalog_checks_itself():
    with pytest.raises(ClassMismatchError, match="'b'"): Catalog(pd.DataFrame(dict(path=["x"], label=["b"])), ["a"])
    with pytest.raises(ConfigError, match="index"): Catalog(pd.DataFrame(dict(path=["x", "y"]), index=[0, 0]), [])
    with pytest.raises(ConfigError, match="'path'"): Catalog(pd.DataFrame(dict(file=["x"])), [])
    with pytest.raises(UnknownOptionError): Catalog(pd.DataFrame(dict(path=["x"], split=["holdout"])), [])

def test_drop_and_subset(sample):
    less = sample.drop([0, 6999], "dark")
    assert len(less) == 6998 and reasons(less) == {p: "dark" for p in sample.frame.loc[[0, 6999], "path"]}
    assert less.subset("test").skipped["split"].tolist() == ["test"] and (less.pixels is sample.pixels)
    assert len(sample.drop([], "x")) == 7000 and len(sample.drop([1, 1], "x").skipped) == 1
    with pytest.raises(ConfigError, match="no row 7000"): sample.drop([7000], "x")
    with pytest.raises(UnknownOptionError): sample.subset("valid")
    with pytest.raises(ConfigError, match="in memory"): sample.files()

def test_pickles(pets): assert pickle.loads(pickle.dumps(Catalog.from_folder(pets))).files() == Catalog.from_folder(pets).files()

# --- built-ins

def test_sample(sample):
    start = time.process_time(); Catalog.from_builtin("fashion_sample")
    assert time.process_time() - start < .5
    assert sample.pixels.shape == (7000, 28, 28, 1) and sample.pixels.dtype == np.uint8 and sample.pixels.std() > 50
    assert sample.counts().to_numpy().tolist() == [[600, 100]]*10 and sample.classes[0] == "T-shirt/top" and sample.frame["path"].is_unique
    assert sum(o.stat().st_size for o in (Path(catalog.__file__).parents[1]/"sample").iterdir()) < 4e6

@pytest.mark.parametrize("name", ["FashionSample", "fashionsample", "Fashion-Sample", "FASHION_SAMPLE", "fashion sample"])
def test_builtin_names(name): assert Catalog.from_builtin(name).source == "FashionSample"

def test_builtin_wrong_name():
    with pytest.raises(UnknownOptionError, match="Did you mean 'CIFAR10'"): Catalog.from_builtin("cifar11")
    with pytest.raises(UnknownOptionError, match="Known: FashionSample"): Catalog.from_builtin("imagenet")

def idx(a): return b"\0\0\x08" + bytes([a.ndim]) + struct.pack(f">{a.ndim}I", *a.shape) + a.tobytes()

def write_idx(folder, n=20, zipped=False, dot=False):
    folder.mkdir(parents=True, exist_ok=True)
    for part,k in (("train", n), ("t10k", n//2)):
        for kind,a in ((f"images{'.' if dot else '-'}idx3", np.full((k, 28, 28), 7, np.uint8)), (f"labels{'.' if dot else '-'}idx1", (np.arange(k) % 10).astype(np.uint8))):
            (folder/f"{part}-{kind}-ubyte{'.gz' if zipped else ''}").write_bytes(gzip.compress(idx(a)) if zipped else idx(a))
    return folder

@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
@pytest.mark.parametrize("at", [".", "{}/raw", "{}"])
@pytest.mark.parametrize("kw", [dict(zipped=True), dict(zipped=False), dict(dot=True)])
def test_local_idx(tmp_path, name, at, kw):
    write_idx(tmp_path/at.format(name), **kw)
    cat = Catalog.from_builtin(name, tmp_path, download=False)
    assert cat.pixels.shape == (30, 28, 28, 1) and cat.counts().sum().tolist() == [20, 10] and (cat.pixels == 7).all()
    assert cat.info["preset"] == BUILTINS[name].preset and cat.info["licence"]

def test_local_idx_in_working_folder_and_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))
    write_idx(tmp_path/"cache/data/MNIST/raw", 40)
    assert len(Catalog.from_builtin("MNIST", download=False)) == 60
    write_idx(tmp_path/"data/MNIST/raw", 20)
    assert len(Catalog.from_builtin("MNIST", download=False)) == 30

@pytest.mark.parametrize("data,match", [
    (lambda d: d[:-1], "cut short"), (lambda d: d[:10], "cut short"), (lambda d: d[:3], "not an IDX"), (lambda d: b"", "not an IDX"), (lambda d: d + b"x", "longer"),
    (lambda d: b"\0\0\x0d" + d[3:], "not an IDX"), (lambda d: b"<html>" + d, "not an IDX"), (lambda d: b"\0\0\x08\x03" + b"\xff"*12, "claims"),
    (lambda d: gzip.compress(d)[:-20], "cannot be read"), (lambda d: gzip.compress(d[:-1]), "cut short"), (lambda d: b"\x1f\x8b junk", "cannot be read"),
    (lambda d: gzip.compress(d)[:30] + b"\xff"*50, "cannot be read")])
def test_damaged_idx(tmp_path, data, match):
    file = write_idx(tmp_path/"raw")/"train-images-idx3-ubyte"
    file.write_bytes(data(file.read_bytes()))
    with pytest.raises(DataError, match=match) as e: read_idx(file)
    three_lines(e)
    with pytest.raises(DataError, match="train-images-idx3-ubyte"): Catalog.from_builtin("MNIST", tmp_path/"raw", download=False)

def test_idx_parts_that_do_not_fit(tmp_path):
    write_idx(tmp_path)
    (tmp_path/"t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match="do not belong together"): Catalog.from_builtin("MNIST", tmp_path)
    write_idx(tmp_path); (tmp_path/"train-labels-idx1-ubyte").write_bytes(idx(np.full(20, 10, np.uint8)))
    with pytest.raises(DataError, match="has label 10"): Catalog.from_builtin("MNIST", tmp_path)

@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "CIFAR100"])
def test_no_network(tmp_path, monkeypatch, name):
    from urllib.error import URLError
    from torchvision import datasets
    monkeypatch.chdir(tmp_path); monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache")); monkeypatch.setattr(builtins, "_SYSTEM_FOLDERS", {"MNIST": str(tmp_path)})
    def refuse(*args, **kw): raise URLError("no route")
    monkeypatch.setattr(getattr(datasets, name), "download", refuse)
    for kw,why in ((dict(download=True), "could not be downloaded"), (dict(download=False), "download=False")):
        with pytest.raises(DataError, match=f"(?s){name}.*{why}.*FashionSample") as e: Catalog.from_builtin(name, **kw)
        three_lines(e)
    assert not (tmp_path/"cache/data/junk").exists()

def test_cifar(monkeypatch, tmp_path):
    from torchvision import datasets
    class Fake:
        base_folder,classes = "cifar", ["apple", "aquarium_fish"]
        def __init__(self, root, train, download): self.data,self.targets = np.full((4 if train else 2, 32, 32, 3), 9, np.uint8), [0, 1, 1, 0][:4 if train else 2]
    monkeypatch.setattr(datasets, "CIFAR100", Fake)
    cat = Catalog.from_builtin("cifar-100", tmp_path)
    assert cat.pixels.shape == (6, 32, 32, 3) and cat.classes == Fake.classes and cat.frame["path"].iloc[5] == "test/aquarium_fish/000001"

@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_sample_comes_from_fashion_mnist(sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path))
    full = Catalog.from_builtin("FashionMNIST", download=False)
    assert len(full) == 70_000
    rows = full.frame.reset_index().set_index("path").loc[sample.frame["path"], "index"]
    assert (full.pixels[rows.to_numpy()] == sample.pixels).all()

# --- saved

def test_save_and_load(pets, tmp_path):
    put(pets, "train/cat/x.txt")
    cat = Catalog.from_folder(pets, classes={3:"dog", 5:"cat"})
    cat.frame["age"],cat.frame["who"],cat.frame["ok"] = np.arange(12)/2, ["", "NA"]*6, [True, False]*6
    cat.frame["when"] = pd.Timestamp("2024-02-03")
    again = Catalog.load(cat.save(tmp_path/"saved"))
    assert again.frame.drop(columns="who").equals(cat.frame.drop(columns="who")) and again.frame["who"].tolist() == [None, "NA"]*6
    assert (again.classes, again.root, again.source, again.info) == (cat.classes, cat.root, cat.source, cat.info)
    assert again.skipped.equals(cat.skipped) and again.files() == cat.files()
    assert sorted(os.listdir(tmp_path/"saved")) == ["catalog.csv", "catalog.json"]

def test_load_built_in_keeps_edits(sample, tmp_path):
    cat = sample.drop([3], "dark").split(.1).subset("val")
    again = Catalog.load(cat.save(tmp_path))
    assert again.frame.equals(cat.frame) and (again.pixels == sample.pixels).all() and again.info == cat.info
    with pytest.raises(ConfigError, match="in memory only"): Catalog(sample.frame, sample.classes, pixels=sample.pixels).save(tmp_path)

def test_a_project_can_be_moved(tmp_path, monkeypatch):
    put(tmp_path/"one/photos", "a/1.png", "b/1.png"); monkeypatch.chdir(tmp_path/"one")
    Catalog.from_folder("photos").save("runs/1")
    assert str(tmp_path) not in (tmp_path/"one/runs/1/catalog.json").read_text()
    (tmp_path/"one").rename(tmp_path/"two"); monkeypatch.chdir(tmp_path)
    cat = Catalog.load("two/runs/1")
    assert all(map(os.path.isfile, cat.files()))
    (tmp_path/"two/photos").rename(tmp_path/"photos")
    assert all(map(os.path.isfile, Catalog.load("two/runs/1", root="photos").files()))

@pytest.mark.parametrize("change", [lambda s: s.replace(",", ";"), lambda s: s.replace(",", "\t"), lambda s: "\ufeff" + s, lambda s: s.replace("\n", "\r\n")])
def test_load_what_a_spreadsheet_wrote(pets, tmp_path, change):
    cat = Catalog.from_folder(pets); csv = cat.save(tmp_path/"saved")/"catalog.csv"
    csv.write_text(change(csv.read_text()), newline="", encoding="utf-8")
    assert Catalog.load(tmp_path/"saved").frame.equals(cat.frame)

def test_load_edited(pets, tmp_path):
    csv = Catalog.from_folder(pets).save(tmp_path/"saved")/"catalog.csv"
    lines = csv.read_text().splitlines()
    csv.write_text("\n".join([lines[0], lines[1].replace(",cat,", ",dog,"), *lines[3:], ",val/dog/new.png,dog,val"]))
    cat = Catalog.load(tmp_path/"saved")
    assert cat.frame["label"].iloc[0] == "dog" and cat.frame.index.tolist() == [0, *range(2, 12), 12] and cat.frame["path"].iloc[-1] == "val/dog/new.png"

@pytest.mark.parametrize("file,change,match", [
    ("catalog.csv", lambda s: s.replace(",cat,", ",cta,"), "'cta' is among the labels"), ("catalog.csv", lambda s: s.replace(",val", ",vla"), "vla"),
    ("catalog.csv", lambda s: s.replace("train/cat/0.png", "../../secret.png"), "out of its folder"), ("catalog.csv", lambda s: s.replace("path", "file"), "cannot be read"),
    ("catalog.csv", lambda s: s.replace("\n0,", "\none,"), "cannot be read"), ("catalog.csv", lambda s: s.replace("\n1,", "\n0,"), "each once"), ("catalog.csv", lambda s: "", "cannot be read"),
    ("catalog.json", lambda s: s[:40], "no readable catalog.json"), ("catalog.json", lambda s: "[]", "no proper"), ("catalog.json", lambda s: s.replace('"format": 1', '"format": 2'), "newer"),
    ("catalog.json", lambda s: s.replace('"skipped": []', '"skipped": [[1]]'), "no proper 'skipped'"), ("catalog.json", lambda s: s.replace('"columns": {}', '"columns": {"who": "str"}'), "cannot be read")])
def test_load_damaged(pets, tmp_path, file, change, match):
    path = Catalog.from_folder(pets).save(tmp_path/"saved")/file
    path.write_text(change(path.read_text()))
    with pytest.raises((DataError, ConfigError), match=match): Catalog.load(tmp_path/"saved")

def test_load_nothing(tmp_path):
    with pytest.raises(DataError, match="catalog.json") as e: Catalog.load(tmp_path)
    three_lines(e)

def test_spreadsheets_run_nothing(tmp_path):
    cat = Catalog.from_folder(put(tmp_path/"d", "=cmd/1.png", "-x/@1.png", "'=y/+1.png"))
    text = (cat.save(tmp_path/"saved")/"catalog.csv").read_text()
    assert not any(o.startswith(("=", "-", "+", "@")) for line in text.splitlines() for o in line.split(","))
    assert Catalog.load(tmp_path/"saved").frame.equals(cat.frame)

def test_import_is_light():
    import subprocess, sys
    code = "import sys, visionlab.catalog.catalog; print([m for m in ('torchvision','timm','albumentations','matplotlib','ipywidgets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(catalog.__file__).parents[2]).stdout.strip() == "[]"


# ---- links out of the root

@pytest.fixture
def linked(tmp_path):
    "A folder with a file that is a link out of it, a folder that is one, and a link that stays inside"
    put(tmp_path/"in/cat", "1.png", "2.png"); put(tmp_path/"in/dog", "1.png", "2.png"); put(tmp_path/"out", "a.png", "b.png")
    (tmp_path/"in/cat/here.png").symlink_to("1.png")
    return tmp_path

def lead_out(root):
    (root/"in/cat/file.png").symlink_to("../../out/a.png"); link(root/"in/dog/folder", root/"out")

def test_a_link_leads_no_list_out_of_its_root(linked):
    lead_out(linked)
    paths,labels = ["cat/1.png", "cat/here.png", "cat/file.png", "dog/1.png", "dog/folder/b.png"], ["cat", "cat", "cat", "dog", "dog"]
    df = pd.DataFrame(dict(path=paths, label=labels))
    for cat in (Catalog.from_frame(df, root=linked/"in", on_bad="skip"), Catalog.from_lists(paths, labels, root=linked/"in", on_bad="skip")):
        assert cat.frame["path"].tolist() == ["cat/1.png", "cat/here.png", "dog/1.png"] and reasons(cat) == {"cat/file.png": "outside root", "dog/folder/b.png": "outside root"}
    with pytest.raises(DataError, match="2 of 5 rows cannot be used"): Catalog.from_frame(df, root=linked/"in")
    for cat in (Catalog.from_frame(df, root=linked/"in", allow_outside=True), Catalog.from_lists(paths, labels, root=linked/"in", allow_outside=True)): assert len(cat) == 5
    assert len(Catalog.from_lists([str(linked/"in"/o) for o in paths], labels)) == 5         # no folder was named to stay in

@pytest.mark.parametrize("root", [None, "in"])
def test_a_saved_catalog_follows_no_link_that_was_made_since(linked, root):
    Catalog.from_folder(linked/"in").save(linked/"saved")
    assert len(Catalog.load(linked/"saved", root and linked/root)) == 5
    (linked/"in/cat/2.png").unlink(); (linked/"in/cat/2.png").symlink_to("../../out/a.png")
    with pytest.raises(DataError, match="1 path in catalog.csv lead out of its folder: 'cat/2.png'"): Catalog.load(linked/"saved", root and linked/root)
    (linked/"in/cat/2.png").unlink(); put(linked/"in/cat", "2.png")
    (linked/"in/dog").rename(linked/"dog"); link(linked/"in/dog", linked/"dog")
    with pytest.raises(DataError, match="2 paths"): Catalog.load(linked/"saved", root and linked/root)

def test_a_folder_of_links_is_saved_and_read_again(linked):
    lead_out(linked)
    cat = Catalog.from_folder(linked/"in", follow_links=True)
    assert len(cat) == 8
    cat.save(linked/"saved")
    assert Catalog.load(linked/"saved").frame["path"].tolist() == cat.frame["path"].tolist()
