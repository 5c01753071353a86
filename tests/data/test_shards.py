"Shards: round trips, other people's tars, damage, order, streams, resume, processes that share batches, and training."
import gzip, io, json, pickle, shutil, tarfile
import fsspec, numpy as np, pandas as pd, pytest, torch
from PIL import Image
from visionlab.data import shard_reading
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import (
    ClassMismatchError, ConfigError, DataError, ImageReadError, MissingDependencyError, TooManyBadFilesError,
    UnknownOptionError)
from visionlab.data.module import ImageDataModule
from visionlab.training.learner import Learner
from visionlab.data.loader import Loader
from visionlab.data.shard_files import _braces, INDEX, list_shards, write_shards
from visionlab.data.shards import _buffered, ShardedDataModule, StreamLoader
from photos import photo_folder

CLASSES = ("chelsea", "coffee", "rocket")

pytestmark = pytest.mark.usefixtures("one_thread")

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))
    monkeypatch.setenv("VISIONLAB_PROGRESS", "off")

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Catalog.from_folder(photo_folder(tmp_path_factory.mktemp("photos")/"p", n_train=15, n_val=5, size=48, classes=CLASSES))

@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")/"s"
    write_shards(folder, out, max_count=12)
    return out

@pytest.fixture
def memory(folder):
    fs = fsspec.filesystem("memory")
    write_shards(folder, "memory://bucket/s", max_count=12)
    yield "memory://bucket/s"
    fs.rm("/bucket", recursive=True)

def jpeg(seed=0, size=(40, 48)):
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)).save(out := io.BytesIO(), "JPEG")
    return out.getvalue()

def foreign(path, samples, mode="w"):
    "Write a tar as others do: samples of {extension: bytes} by key"
    with tarfile.open(path, mode) as t:
        for key, parts in samples:
            for ext, data in parts.items():
                info = tarfile.TarInfo(f"{key}{ext}")
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
    return path

def stream(cat, pipeline, **kw): return StreamLoader(cat.subset("train"), pipeline, **(dict(batch_size=8, shuffle=True, seed=3, buffer=10) | kw))
def ids(batches): return [o.index.tolist() for o in batches]

# ---- writing and reading back

def test_round_trip_keeps_rows_numbers_bytes_and_splits(folder, shards):
    cat = Catalog.from_shards(shards)
    pd.testing.assert_frame_equal(cat.frame.sort_index(), folder.frame)
    assert cat.classes == folder.classes and not len(cat.skipped)
    for i in folder.frame.index: assert cat.reader[i] == open(folder.sources[i], "rb").read()

def test_index_tells_counts_and_checksums(folder, shards):
    import hashlib
    meta = json.loads((shards/INDEX).read_text())
    assert meta["counts"]["train"] == {c:15 for c in CLASSES} and meta["classes"] == list(CLASSES)
    for o in meta["shards"]:
        data = (shards/o["name"]).read_bytes()
        assert o["sha256"] == hashlib.sha256(data).hexdigest() and o["bytes"] == len(data) and o["count"] <= 12

def test_writing_again_gives_the_same_bytes_and_refuses_to_overwrite(folder, shards, tmp_path):
    write_shards(folder, tmp_path/"again", max_count=12)
    for o in shards.iterdir(): assert (tmp_path/"again"/o.name).read_bytes() == o.read_bytes()
    with pytest.raises(ConfigError, match="already"): write_shards(folder, tmp_path/"again")

def test_max_size_starts_a_new_shard(folder, tmp_path):
    write_shards(folder, tmp_path/"small", max_size=30_000)
    tars = list((tmp_path/"small").glob("*.tar"))
    assert len(tars) > 5 and all(o.stat().st_size <= 30_000 + 10_240 for o in tars)

def test_an_interrupted_write_leaves_no_index_and_no_whole_looking_shard(folder, tmp_path):
    gone = Catalog(folder.frame.assign(path=[*folder.frame["path"][:-1], "val/rocket/none.jpg"]), folder.classes, folder.root)
    with pytest.raises(ImageReadError, match="none.jpg"): write_shards(gone, tmp_path/"half", max_count=1000, shuffle=False)
    assert sorted(o.name for o in (tmp_path/"half").iterdir()) == [".visionlab-writing", "train-000000.tar", "val-000000.tar.part"]

def test_images_in_memory_become_png(tmp_path):
    cat = Catalog.from_builtin("FashionSample").subset("test")
    cat = Catalog(cat.frame.iloc[::40].assign(split="train"), cat.classes, pixels=cat.pixels)
    write_shards(cat, tmp_path/"s")
    again = Catalog.from_shards(tmp_path/"s")
    from visionlab.images.decode import decode
    for i in cat.frame.index: np.testing.assert_array_equal(decode(again.reader[i], "L"), cat.pixels[i])

def test_several_labels_an_image(tmp_path, folder):
    names = [("a", "b"), ("b",), (), None]
    cat = Catalog(folder.frame.iloc[:4].assign(label=pd.Series(names, index=folder.frame.index[:4], dtype=object)), ["a", "b"], folder.root, task="multilabel")
    write_shards(cat, tmp_path/"s")
    again = Catalog.from_shards(tmp_path/"s")
    assert again.task == "multilabel" and again.frame.sort_index()["label"].tolist()[:3] == names[:3]

def test_a_catalog_of_shards_saves_and_loads(shards, tmp_path):
    cat = Catalog.from_shards(shards)
    again = Catalog.load(cat.save(tmp_path/"saved"))
    assert again.reader[cat.frame.index[3]] == cat.reader[cat.frame.index[3]]
    moved = shutil.copytree(shards, tmp_path/"moved")
    assert Catalog.load(tmp_path/"saved", root=moved).reader.urls[0].startswith(str(moved))
    assert pickle.loads(pickle.dumps(cat)).reader[0] == cat.reader[0]

# ---- addresses

def test_braces_globs_folders_lists_and_splits(shards):
    names = [f"{shards}/train-00000{i}.tar" for i in range(4)]
    assert list_shards(f"{shards}/train-{{000000..000003}}.tar") == names == list_shards(f"{shards}/train-*.tar") == list_shards(names)
    assert list_shards(f"file://{shards}/train-{{000000,000003}}.tar") == [names[0], names[3]]
    assert _braces("x{9..11}") == ["x9", "x10", "x11"] and _braces("plain") == ["plain"]
    cat = Catalog.from_shards({"train":names[:3], "test":names[3]})
    assert cat.splits == ["train", "test"]
    with pytest.raises(UnknownOptionError, match="split"): Catalog.from_shards({"trian":names})

def test_what_is_not_there_is_named(shards):
    with pytest.raises(DataError, match="2 shards of 6.*cannot be found") as e: list_shards(f"{shards}/train-{{000000..000005}}.tar")
    assert "train-000004.tar" in str(e.value)
    with pytest.raises((ConfigError, MissingDependencyError)): list_shards("nowhere://bucket/a.tar")

def test_any_file_system(folder, memory):
    cat = Catalog.from_shards(memory)
    assert not cat.reader.seekable and cat.reader[5] == open(folder.sources[5], "rb").read()
    pd.testing.assert_frame_equal(cat.frame.sort_index(), folder.frame)

# ---- other people's shards

def test_foreign_shards_without_an_index(tmp_path):
    foreign(tmp_path/"a-000.tar", [(f"x/{i:03}", {".jpg":jpeg(i), ".cls":str(i%2).encode()}) for i in range(6)])
    foreign(tmp_path/"a-001.tar", [("p", {".cls":b"10", ".png.meta":b"-", ".webp":jpeg(7)}), ("q", {".json":json.dumps(dict(label=0)).encode(), ".jpeg":jpeg(8), ".cls":b"1"}), ("r", {".txt":b"1", ".png":jpeg(9)})])
    cat = Catalog.from_shards(f"{tmp_path}/a-{{000..001}}.tar")
    assert cat.classes == ["0", "1", "10"] and cat.info["class_ids"] == [0, 1, 10] and cat.frame["label"].tolist() == ["0", "1"]*3 + ["10", "0", "1"]
    assert cat.frame["path"].iloc[0] == "a-000/x/000.jpg" and cat.reader[cat.frame.index[0]] == jpeg(0)
    assert cat.frame.index[6] == 1 << 20                   # its number does not move when a shard grows
    named = Catalog.from_shards(tmp_path, classes={0:"cat", 1:"dog", 10:"owl"})
    assert named.classes == ["cat", "dog", "owl"] and named.frame["label"].iloc[6] == "owl"

def labelled(path, labels, start=0): return foreign(path, [(f"{i:04}", {".jpg":jpeg(i)} | ({} if o is None else {".cls":o.encode()})) for i,o in enumerate(labels, start)])

def test_labels_are_text_as_folders_are(tmp_path):
    cat = Catalog.from_shards(labelled(tmp_path/"a-0.tar", ["01", "1", "10", "2", "01"]))
    assert cat.classes == ["01", "1", "2", "10"] and cat.frame["label"].tolist() == ["01", "1", "10", "2", "01"] and "class_ids" not in cat.info
    assert any("'01' and '1' are classes of their own" in o for o in cat.notes)
    for o in cat.classes: (tmp_path/"folders"/o).mkdir(parents=True); (tmp_path/"folders"/o/"0.jpg").write_bytes(jpeg())
    assert Catalog.from_folder(tmp_path/"folders").classes == cat.classes
    named = Catalog.from_shards(tmp_path/"a-0.tar", classes={1:"cat", 2:"dog", 10:"owl"})
    assert named.frame["label"].tolist() == ["cat", "cat", "owl", "dog", "cat"] and any("'01' and '1' are one class" in o for o in named.notes)
    assert Catalog.from_shards(labelled(tmp_path/"b-0.tar", ["00", "01", "02"]), classes=["x", "y", "z"]).frame["label"].tolist() == ["x", "y", "z"]
    swapped = Catalog.from_shards(labelled(tmp_path/"c-0.tar", ["0", "1"]), classes=["1", "0"])
    assert swapped.frame["label"].tolist() == ["0", "1"] and swapped.targets().tolist() == [1, 0]
    assert Catalog.from_shards(labelled(tmp_path/"d-0.tar", ["0", "1"]), classes={"0":"cat", "1":"dog"}).frame["label"].tolist() == ["cat", "dog"]

@pytest.mark.parametrize("label,reason", [(None, "missing label"), ("7", "label '7' is not a class"), ("bird", "label 'bird' is not a class")])
def test_labels_that_are_none_stop_first_and_are_listed_then(tmp_path, label, reason):
    labelled(tmp_path/"train-0.tar", (["cat", "dog"] if label == "bird" else ["0", "1"])*10 + [label]*3)
    for make in (lambda **kw: Catalog.from_shards(tmp_path, ["cat", "dog"], **kw),
                 lambda **kw: ShardedDataModule(tmp_path, classes=["cat", "dog"], image_size=16, **{f"{k}_rows":v for k, v in kw.items()}).catalog):
        with pytest.raises(DataError, match="3 samples of 23 cannot be used") as e: make()
        assert f"train-0.tar/0020.jpg: {reason}" in e.value.where and ("predict" in e.value.fix) == (label is None)
        cat = make(on_bad="skip")
        assert len(cat) == 20 and cat.skipped["reason"].tolist() == [reason]*3 and cat.skipped["path"].iloc[0] == "train-0.tar/0020.jpg"

def test_images_to_predict_need_no_label(tmp_path):
    labelled(tmp_path/"a-0.tar", ["0", "1"]*3); labelled(tmp_path/"b-0.tar", [None]*3)
    cat = Catalog.from_shards(dict(train=tmp_path/"a-0.tar", predict=tmp_path/"b-0.tar"))
    assert cat.splits == ["train", "predict"] and cat.subset("predict").frame["label"].isna().all()

def test_our_own_unlabelled_rows_come_back(folder, tmp_path):
    cat = Catalog(folder.frame.assign(label=[None, *folder.frame["label"][1:]]), folder.classes, folder.root)
    write_shards(cat, tmp_path/"s")
    assert Catalog.from_shards(tmp_path/"s").frame.sort_index()["label"].tolist() == cat.frame["label"].tolist()

def test_one_shard_in_two_splits_is_refused(shards, tmp_path, memory):
    one, two = shards/"train-000000.tar", shutil.copy(shards/"train-000000.tar", tmp_path/"other.tar")
    for a, b in ((one, one), (one, two), (one, f"file://{one}"), (f"{memory}/train-000000.tar",)*2):
        for make in (lambda: Catalog.from_shards({"train":str(a), "val":str(b)}), lambda: ShardedDataModule(str(a), str(b))):
            with pytest.raises(DataError, match="1 shard would serve as train and as val") as e: make()
            assert "train-000000.tar" in e.value.where and "of its own" in e.value.fix
    with pytest.raises(DataError, match="2 shards would serve as train and as val: val-000000.tar"): ShardedDataModule(shards, f"{shards}/val-*.tar")
    assert Catalog.from_shards({"train":f"{shards}/train-*.tar", "val":f"{shards}/val-*.tar"}).notes == []

def test_one_sample_in_two_splits_is_noted(tmp_path):
    labelled(tmp_path/"train-0.tar", ["0", "1"]*5); labelled(tmp_path/"val-0.tar", ["0", "1"]*2, start=8)
    cat = Catalog.from_shards(tmp_path)
    assert [o for o in cat.notes if "in train too" in o] == ["2 samples of val are in train too, going by key and size; the first is val-0.tar/0008.jpg. catalog.leaks() compares all bytes"]
    assert cat.leaks()["split"].tolist() == ["train", "val"]*2 and "in train too" in str(ShardedDataModule(tmp_path, image_size=16))
    labelled(tmp_path/"val-0.tar", ["0", "1"]*2, start=20)
    assert Catalog.from_shards(tmp_path).notes == []

def test_a_catalog_of_shards_takes_nothing_beside_it(shards, folder):
    with pytest.raises(ConfigError, match="'val' cannot be given"): ShardedDataModule(Catalog.from_shards(shards), val=shards)
    with pytest.raises(ConfigError, match="not one of shards"): ShardedDataModule(folder)

def test_shards_pass_to_webdataset_and_back(folder, shards, tmp_path):
    import webdataset as wds
    theirs = {int(o["__key__"]):o for o in wds.WebDataset(sorted(map(str, shards.glob("train-*.tar"))), shardshuffle=False)}
    train = folder.subset("train").frame
    assert sorted(theirs) == train.index.tolist()
    for i, label in train["label"].items():
        assert theirs[i]["jpg"] == open(folder.sources[i], "rb").read() and int(theirs[i]["cls"]) == CLASSES.index(label)
    with wds.TarWriter(str(tmp_path/"w-0.tar")) as w:
        for i in range(4): w.write({"__key__":f"{i:05}", "jpg":jpeg(i), "cls":i%2})
    assert Catalog.from_shards(tmp_path/"w-0.tar").targets().tolist() == [0, 1, 0, 1]

def test_what_cannot_be_used_is_listed_by_shard_and_member(tmp_path):
    good = [(f"{i}", {".jpg":jpeg(i), ".cls":str(i%2).encode()}) for i in range(4)]
    foreign(tmp_path/"b-0.tar", [*good, ("none", {".cls":b"1"}), ("bare", {".jpg":jpeg()}), ("odd", {".jpg":jpeg(), ".cls":b"7"})])
    with pytest.raises(DataError, match="3 samples of 7") as e: Catalog.from_shards(tmp_path/"b-0.tar", classes=["cat", "dog"])
    for o in ("b-0.tar/none: no image in the sample", "b-0.tar/bare.jpg: missing label", "b-0.tar/odd.jpg: label '7' is not a class"): assert o in e.value.where
    cat = Catalog.from_shards(tmp_path/"b-0.tar", classes=["cat", "dog"], on_bad="skip")
    assert len(cat) == 4 and sorted(cat.skipped["reason"]) == ["label '7' is not a class", "missing label", "no image in the sample"]

@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("end", [.3, .6, .95])
def test_a_foreign_shard_cut_anywhere_is_truncated(tmp_path, end, compress):
    path = foreign(tmp_path/"c-0.tar", [(f"{i}", {".jpg":jpeg(i), ".cls":str(i%2).encode()}) for i in range(20)])
    data = gzip.compress(path.read_bytes(), 1) if compress else path.read_bytes().rstrip(b"\0")
    data = data[:int(len(data)*end)]
    path = tmp_path/("d-0.tar.gz" if compress else "d-0.tar")
    path.write_bytes(data)
    with pytest.raises(DataError, match="truncated") as e: Catalog.from_shards(path)
    assert path.name in e.value.where
    cat = Catalog.from_shards(path, on_bad="skip")
    assert "truncated" in set(cat.skipped["reason"]) and 0 < len(cat) < 20
    if not compress: ImageDataModule(cat, image_size=32, batch_size=4, on_bad="skip").setup()

def test_a_damaged_image_in_a_shard_names_both(tmp_path):
    foreign(tmp_path/"e-0.tar", [(f"{i}", {".jpg":jpeg(i)[:200] if i == 5 else jpeg(i), ".cls":str(i%2).encode()}) for i in range(40)])
    with pytest.raises(TooManyBadFilesError, match="e-0/5.jpg.*truncated"): ImageDataModule(Catalog.from_shards(tmp_path), image_size=32, on_bad="error").setup()
    for kw in ({}, dict(stream=True)):
        dm = ShardedDataModule(tmp_path, image_size=32, batch_size=8, val_split=.1, **kw).setup()
        assert len(dm.catalog) == 39 and dm.catalog.skipped["reason"].tolist() == ["truncated"]
    cat = Catalog.from_shards(tmp_path)
    for loader in (Loader(cat, dm.eval_pipeline), StreamLoader(cat, dm.eval_pipeline, workers=2)):
        with pytest.raises(ImageReadError, match="5.jpg") as e: list(loader)
        assert "e-0.tar" in e.value.where

def test_a_shard_that_shrinks_under_a_catalog(shards, tmp_path):
    cat = Catalog.from_shards(shutil.copytree(shards, tmp_path/"s"))
    last = cat.frame.index[cat.reader.shard == 0][cat.reader.offset[cat.reader.shard == 0].argmax()]
    path = tmp_path/"s"/"train-000000.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ImageReadError, match="train-000000.tar/|ends too early") as e: cat.reader[last]
    assert e.value.reason == "truncated" and "train-000000.tar" in e.value.where
    with pytest.raises(ImageReadError): list(cat.reader.in_order([last]))

def test_index_troubles(shards, tmp_path):
    here = shutil.copytree(shards, tmp_path/"s")
    with open(here/"train-000001.tar", "ab") as f: f.write(bytes(512))
    with pytest.raises(DataError, match="not the shard its index describes"): Catalog.from_shards(here)
    (here/INDEX).write_text("{")
    with pytest.raises(DataError, match="cannot be read"): Catalog.from_shards(here)
    meta = json.loads((shards/INDEX).read_text())
    meta["shards"][0]["rows"]["label"][0] = 99
    (here/INDEX).write_text(json.dumps(meta))
    with pytest.raises(DataError, match="contradicts itself about train-000000.tar"): Catalog.from_shards(here)
    (here/INDEX).write_text(json.dumps(meta | dict(classes=None)))
    with pytest.raises(DataError, match="no proper 'classes'"): Catalog.from_shards(here)
    (here/INDEX).write_text('{"kind": "other"}')
    with pytest.raises(DataError, match="not one of visionlab's"): Catalog.from_shards(here)
    (here/INDEX).unlink()
    assert Catalog.from_shards(here).classes == list(CLASSES)      # the names stand in the samples

def test_a_class_that_only_val_has(tmp_path):
    foreign(tmp_path/"train-0.tar", [(f"{i}", {".jpg":jpeg(i), ".cls":str(i%2).encode()}) for i in range(4)])
    foreign(tmp_path/"val-0.tar", [("9", {".jpg":jpeg(), ".cls":b"3"})])
    with pytest.raises(ClassMismatchError, match="'3'"): Catalog.from_shards(tmp_path)

# ---- order and batches

def test_seekable_shards_give_the_folders_batches(folder, shards):
    make = lambda c, w: list(ImageDataModule(c, image_size=32, batch_size=8, num_workers=w, seed=1).train_dataloader())
    want = make(folder, 0)
    for w in (0, 1, 3):
        for a, b in zip(make(Catalog.from_shards(shards), w), want, strict=True):
            assert torch.equal(a.image, b.image) and torch.equal(a.target, b.target) and a.path == b.path

def test_streams_are_a_function_of_seed_and_epoch(shards):
    cat = Catalog.from_shards(shards)
    p = ImageDataModule(cat, image_size=32).train_pipeline
    want = list(stream(cat, p).batches(2))
    for w in (1, 3):
        for a, b in zip(stream(cat, p, workers=w).batches(2), want, strict=True): assert torch.equal(a.image, b.image) and torch.equal(a.target, b.target)
    for start in range(len(want)+1): assert ids(stream(cat, p, workers=1).batches(2, start)) == ids(want)[start:]
    assert ids(stream(cat, p).batches(3)) != ids(want) != ids(stream(cat, p, seed=4).batches(2))
    rows = cat.subset("train").frame.index.tolist()
    assert sorted(i for o in ids(want) for i in o) == rows
    plain = stream(cat, p, shuffle=False)
    assert [i for o in ids(plain) for i in o] == [rows[o] for o in cat.reader.reading_order(rows)]
    assert len(plain) == len(list(plain)) and "stream" in repr(plain)

def test_two_passes_at_once_do_not_disturb_each_other(shards):
    cat = Catalog.from_shards(shards)
    dl = stream(cat, ImageDataModule(cat, image_size=32).train_pipeline, workers=2)
    pairs = list(zip(dl.batches(0), dl.batches(0)))
    assert len(pairs) == len(dl) and all(torch.equal(a.image, b.image) for a, b in pairs)
    import threading
    next(it := dl.batches(1))
    it.close()
    assert not any(o.name == "visionlab-shards" for o in threading.enumerate())

def test_resuming_opens_no_shard_that_is_behind(shards, monkeypatch):
    import visionlab.data.shards as module
    cat = Catalog.from_shards(shards)
    dl = stream(cat, ImageDataModule(cat, image_size=32).train_pipeline, shuffle=False)
    opened = []
    real = shard_reading._open_shard
    monkeypatch.setattr(shard_reading, "_open_shard", lambda url: opened.append(url) or real(url))
    list(dl.batches(0, start=len(dl)-1))
    assert len(opened) == 1

@pytest.mark.parametrize("n,batch,world", [(45, 8, 1), (41, 8, 1), (45, 8, 2), (33, 8, 2), (35, 8, 4), (45, 3, 4), (45, 64, 2)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_every_batch(shards, n, batch, world, shuffle):
    cat = Catalog.from_shards(shards).subset("train")
    cat = cat.drop(cat.frame.index[n:], "too many")
    p = ImageDataModule(cat, image_size=16, val_split=0).train_pipeline
    plans = [StreamLoader(cat, p, batch, shuffle=shuffle, buffer=10, rank=r, world=world) for r in range(world)]
    parts = [o.plan(1) for o in plans]
    assert len({len(o) for o in parts}) == 1 and {len(o) for o in plans} == {len(parts[0])}
    assert sorted(i for o in parts for b in o for i in b) == list(range(n))
    assert all(len(b) >= (2 if shuffle else 1) for o in parts for b in o)
    whole = StreamLoader(cat, p, batch*world, shuffle=shuffle, buffer=10).plan(1)
    for k, b in enumerate(whole[:-1][:len(parts[0])-1]): assert sorted(i for o in parts for i in o[k]) == sorted(b)

def test_buffer_is_a_shuffle_of_its_own_size():
    for n, size in ((0, 5), (1, 5), (5, 5), (100, 7), (7, 100)): assert sorted(_buffered(n, size, 0, 0)) == list(range(n))
    assert (np.arange(500) - np.argsort(_buffered(500, 20, 0, 0))).max() < 20       # nothing leaves before it has come in

def test_a_users_transform_in_a_stream(shards):
    from torchvision.transforms import v2
    t = v2.Compose([v2.Resize((24, 24)), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    make = lambda w: list(ShardedDataModule(shards, stream=True, image_size=24, batch_size=8, train_transforms=t, num_workers=w, cache=None).train_dataloader())
    for a, b in zip(make(0), make(2), strict=True): assert torch.equal(a.image, b.image)

def test_balanced_sampling_works_on_disk_and_says_so_in_a_stream(shards):
    assert len(next(iter(ShardedDataModule(shards, image_size=24, balanced_sampling=True).train_dataloader()))) == 32
    with pytest.raises(ConfigError, match="class by class"): ShardedDataModule(shards, image_size=24, balanced_sampling=True, stream=True).train_dataloader()

def test_compressed_shards_are_streamed(tmp_path):
    foreign(tmp_path/"train-0.tar.gz", [(f"{i}", {".jpg":jpeg(i), ".cls":str(i%2).encode()}) for i in range(30)], "w:gz")
    cat = Catalog.from_shards(tmp_path)
    assert not cat.reader.seekable and cat.reader.compressed
    with pytest.raises(ImageReadError, match="compressed"): cat.reader[0]
    dm = ShardedDataModule(tmp_path, image_size=24, batch_size=8)
    assert dm.stream and sum(len(o) for o in dm.train_dataloader()) == 27 and sum(len(o) for o in dm.val_dataloader()) == 3

# ---- training

def history(dm): return [{k:v for k, v in o.items() if k != "time"} for o in Learner(dm, "resnet9", lr=4e-3, device="cpu").fit(2).history]

def test_training_from_shards_is_training_from_the_folder(folder, shards):
    options = dict(image_size=32, batch_size=8, seed=0)
    want = history(ImageDataModule(folder, **options))
    assert history(ShardedDataModule(shards, **options)) == want == history(ImageDataModule(Catalog.from_shards(shards), **options))

def test_training_from_a_url(memory):
    options = dict(image_size=32, batch_size=8, seed=0, shuffle_buffer=20)
    a, b = (history(ShardedDataModule(memory, num_workers=w, **options)) for w in (0, 2))
    assert a == b and len(a) == 2 and a[-1]["accuracy"] > .3
