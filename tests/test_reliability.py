"Every row of the reliability study's tables of image files (1A), data sets (1B) and CSVs (1C) is a test: here, or where `ELSEWHERE` says."
import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ClassMismatchError, ImageReadError
from visionlab.data.module import ImageDataModule
from visionlab.catalog.doctor import check
from visionlab.images.decode import load_image
from visionlab.training.learner import Learner

pytestmark = pytest.mark.usefixtures("one_thread")

ELSEWHERE = { # row: file::test
    # 1A image files
    "zero byte, text, html, pickle": "decode::contents_that_are_no_image data::unreadable_files_leave_with_a_reason",
    "truncated JPEG/PNG": "decode::jpeg_cut_anywhere_is_an_error decode::cut_files_are_truncated data::unreadable_files_leave_with_a_reason",
    "one byte flipped in PNG": "decode::flipped_byte_in_a_png decode_fuzz::damaged_images",
    "40 flipped bytes in JPEG": "decode::damage_that_pillow_passes_over_is_an_error decode_fuzz::damaged_images",
    "bomb 20k": "decode::bomb_is_refused_from_its_header",
    "JPEG header claiming 65,500²": "decode::lying_jpeg_header",
    "128 MB zTXt chunk": "decode::text_bomb_in_a_png",
    "CMYK JPEG/TIFF": "decode::cmyk_files",
    "16-bit gray PNG/TIFF": "decode::sixteen_bits_keep_their_range data::sixteen_bit_and_alpha_come_out_the_same_in_loader_and_predict",
    "int32 / float32 TIFF": "decode::int32 decode::float decode::values_without_a_range_are_refused",
    "gray, 1-bit, palette, LA, RGBA": "decode::grey decode::one_bit decode::palette decode::alpha_from_files",
    "EXIF orientation": "decode::exif_orientation",
    "animated, multipage": "decode::first_frame_only",
    "DICOM": "dicom::stored_bits_fill_the_range dicom::monochrome1_is_turned_round dicom::a_folder_of_scans_trains",
    "mixed-case extensions, content≠extension": "catalog::extensions decode::content_decides_not_the_name",
    "hidden and system entries": "catalog::hidden_entries",
    "FIFO": "decode::paths_that_are_no_file catalog::pipes_and_sockets_are_not_opened",
    "broken symlink": "decode::missing_paths catalog::links",
    # 1B data sets
    "val lacks a class": "catalog::class_missing_in_val_is_a_note",
    "val has an extra class": "catalog::class_missing_in_train_is_an_error",
    "empty class folder": "catalog::strays_empty_files_and_empty_folders",
    "no images at all": "catalog::no_images",
    "single class": "catalog::one_class",
    "stray image in train/": "catalog::strays_empty_files_and_empty_folders",
    "symlink loop": "catalog::link_loops_end_and_poison_nothing",
    "Cat and cat": "doctor::class_troubles",
    "duplicates; two labels": "doctor::every_planted_trouble_is_found doctor::leaks_come_first_and_name_the_held_out_image",
    "n < batch size": "learner::a_batch_larger_than_the_set_warns_and_trains",
    "last batch of 1": "learner::a_last_batch_of_one_trains",
    "unicode class folders": "catalog::odd_names",
    # 1C CSV
    "UTF-8 BOM": "csv::marks_and_line_ends",
    "missing/renamed column": "csv::missing_and_renamed_columns",
    "missing file, unknown and empty label, ragged rows, NUL byte, outside root": "csv::every_bad_row_is_named_with_its_line",
    "spaces": "csv::spaces_around_labels",
    "duplicate / conflicting rows": "csv::repeated_and_conflicting_rows",
    "../../etc/passwd, absolute path": "csv::paths_that_lead_out",
    "UTF-16 / latin-1": "csv::other_encodings",
    "empty / header only": "csv::empty_tables",
    "duplicate header column": "csv::two_columns_of_one_name",
    "semicolon": "csv::delimiters"}


def test_the_tests_named_here_exist():
    for row, names in ELSEWHERE.items():
        for file, name in (o.split("::") for o in names.split()):
            text = next(Path(__file__).parent.rglob(f"test_{file}.py")).read_text(encoding="utf-8")
            assert re.search(rf"^def test_{name}\(", text, re.M), f"{row}: no test_{name} in test_{file}.py"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))
    monkeypatch.setenv("VISIONLAB_PROGRESS", "off")


COLOURS = dict(ant=(220, 30, 30), bee=(30, 220, 30), cat=(30, 30, 220))


def pictures(root, n=8, classes=tuple(COLOURS), seed=0):
    "Write root/<class>/<n>.png: noise around a colour that tells the class."
    rng = np.random.default_rng(seed)
    for c in classes:
        (root/c).mkdir(parents=True, exist_ok=True)
        for i in range(n): Image.fromarray(np.clip(rng.normal(COLOURS[c], 20, (16, 16, 3)), 0, 255).astype(np.uint8)).save(root/c/f"{i}.png")
    return root


def module(root, **kw): return ImageDataModule(root, **dict(image_size=16, batch_size=8, num_workers=0) | kw)


# ---- 1A image files

def blank_png(side):
    "Write a white one-bit PNG of any size without making its pixels."
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    squeeze, row = zlib.compressobj(9), b"\0" + b"\xff"*(-(-side//8))
    data = b"".join([*(squeeze.compress(row*100) for _ in range(side//100)), squeeze.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [12_000, 40_000])
def test_bombs_take_no_memory(side, tmp_path):
    resource = pytest.importorskip("resource")
    (tmp_path/"bomb.png").write_bytes(blank_png(side))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageReadError, match="bomb.png") as e: load_image(tmp_path/"bomb.png")
    assert e.value.reason == "too_large" and f"{side:,} × {side:,}" in str(e.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000      # kilobytes


def test_a_bomb_in_a_data_set_is_listed(tmp_path):
    root = pictures(tmp_path/"d", 30)
    (root/"bee"/"bomb.png").write_bytes(blank_png(12_000))
    dm = module(root).setup()
    assert dm.catalog.skipped[["path", "reason"]].to_numpy().tolist() == [["bee/bomb.png", "too_large"]]


def test_svg_and_resource_forks_are_no_images(tmp_path):
    root = pictures(tmp_path/"d")
    for name in ("ant/._0.png", "ant/._x.jpg", "Thumbs.db", "ant/Thumbs.db"): (root/name).write_bytes(b"\0\5\x16\7")
    (root/"ant"/"logo.svg").write_text("<svg/>")
    (root/".ipynb_checkpoints").mkdir()
    (root/".ipynb_checkpoints"/"0.png").write_bytes((root/"ant"/"0.png").read_bytes())
    cat = Catalog.from_folder(root)
    assert len(cat) == 24 and cat.classes == list(COLOURS) and cat.skipped["reason"].tolist() == ["extension .svg"]
    assert sum(cat.info["hidden"].values()) >= 4


def test_names_that_are_not_text_are_loaded(tmp_path):
    root = pictures(tmp_path/"d")
    try: os.rename(root/"ant"/"0.png", os.fsencode(root/"ant") + b"/caf\xe9\xff.png")
    except OSError: pytest.skip("this file system has text names only")
    dm = module(root, val_split=.25)
    shown = [p for split in (dm.train_dataloader(), dm.val_dataloader()) for b in split for p in b.path]
    assert len(shown) == 24 and any("caf" in o for o in shown)
    repr(dm).encode()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_broken_links_do_not_stop_a_loader(tmp_path):
    root = pictures(tmp_path/"d")
    os.mkfifo(root/"ant"/"pipe.png")
    (root/"bee"/"gone.png").symlink_to("nowhere.png")
    dm = module(root, val_split=0, max_bad=.1)
    assert sum(len(b) for b in dm.train_dataloader()) == 24
    assert dict(zip(dm.catalog.skipped["path"], dm.catalog.skipped["reason"])) == {"ant/pipe.png": "not_regular_file", "bee/gone.png": "missing"}


# ---- 1B data sets

def test_accuracy_is_right_when_val_lacks_a_class(tmp_path):
    pictures(tmp_path/"d/train", 16)
    pictures(tmp_path/"d/val", 6, ("bee", "cat"), 1)      # without the first class a class map of its own would be off by one
    learn = Learner(module(tmp_path/"d"), "resnet9", lr=4e-3, device="cpu").fit(6)
    assert learn.data.classes == list(COLOURS) and learn.history[-1]["accuracy"] > .9


def test_a_class_of_val_that_train_lacks_stops_before_training(tmp_path):
    pictures(tmp_path/"d/train", 4, ("ant", "bee"))
    pictures(tmp_path/"d/val", 2)
    with pytest.raises(ClassMismatchError, match="'cat'"): module(tmp_path/"d")


def test_without_val_no_training_image_validates(tmp_path):
    dm = module(pictures(tmp_path/"d/train", 10).parent, val_split=.2)
    paths = [{p for b in dl for p in b.path} for dl in (dm.train_dataloader(), dm.val_dataloader())]
    assert list(map(len, paths)) == [24, 6] and not paths[0] & paths[1]


def test_a_link_loop_inside_val_changes_nothing(tmp_path):
    for split, n in (("train", 6), ("val", 3)): pictures(tmp_path/"d"/split, n)
    for at, to in (("val/ant/loop", ".."), ("val/bee/loop", "../.."), ("val/cat/up", "../ant")): (tmp_path/"d"/at).symlink_to(to, target_is_directory=True)
    for follow in (False, True):
        cat = Catalog.from_folder(tmp_path/"d", follow_links=follow)
        assert cat.counts().to_numpy().tolist() == [[6, 3]]*3 and cat.skipped["reason"].str.startswith("link").all() and len(cat.skipped) >= 3


def test_classes_that_differ_by_case_are_flagged(tmp_path):
    pictures(tmp_path/"d", 4, ("ant", "cat"))
    if (tmp_path/"d/Cat").exists(): pytest.skip("this file system ignores case")
    os.rename(pictures(tmp_path/"o", 4, ("cat",), 3)/"cat", tmp_path/"d/Cat")
    cat = Catalog.from_folder(tmp_path/"d")
    assert any("different classes" in o for o in cat.notes) and "similar_names" in set(check(cat).frame["issue"])


def test_duplicates_in_two_splits_and_two_classes_are_found(tmp_path):
    for split, n, seed in (("train", 4, 0), ("val", 2, 1)): pictures(tmp_path/"d"/split, n, seed=seed)
    data = lambda name: (tmp_path/"d"/name).read_bytes()
    (tmp_path/"d/val/ant/leak.png").write_bytes(data("train/ant/0.png"))
    (tmp_path/"d/train/bee/both.png").write_bytes(data("train/cat/1.png"))
    found = set(check(tmp_path/"d").frame["issue"])
    assert {"leak", "two_labels"} <= found


@pytest.mark.parametrize("n,batch", [(1, 8), (11, 8), (11, 32)])
def test_small_sets_and_last_batches_train_on_every_image(tmp_path, n, batch):
    root = pictures(tmp_path/"d/train", n).parent      # 3, 33 and 33 images: fewer than a batch, one over four batches, one over one batch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dm = module(root, batch_size=batch, val_split=0)
        assert sum(len(b) for b in dm.train_dataloader()) == 3*n
        learn = Learner(dm, "resnet9", lr=1e-3, device="cpu").fit(1)
    assert learn.step >= 1 and np.isfinite(learn.history[-1]["train_loss"])


@pytest.mark.skipif(os.name == "nt", reason="rights work otherwise there")
def test_a_read_only_folder_is_served_and_left_as_it_is(tmp_path):
    root = pictures(tmp_path/"猫 d")
    before = sorted(root.rglob("*"))
    for o in (root, *before): o.chmod(0o555 if o.is_dir() else 0o444)
    try: assert sum(len(b) for b in module(root, val_split=0).train_dataloader()) == 24
    finally:
        for o in (root, *before): o.chmod(0o755 if o.is_dir() else 0o644)
    assert sorted(root.rglob("*")) == before


# ---- 1C CSV

def test_the_label_na_is_a_name(tmp_path):
    pictures(tmp_path, 2, ("ant", "bee"))
    (tmp_path/"t.csv").write_text("image,label\nant/0.png,NA\nant/1.png,NA\nbee/0.png,null\nbee/1.png,007\n")
    assert Catalog.from_csv(tmp_path/"t.csv").classes == ["007", "NA", "null"]


def test_a_table_trains_like_its_folder(tmp_path):
    pictures(tmp_path/"d", 8)
    files = sorted((tmp_path/"d").rglob("*.png"))
    (tmp_path/"d/t.csv").write_text("image;label\n" + "".join(f"{o.parent.name}/{o.name};{o.parent.name}\n" for o in files), encoding="utf-8-sig")
    dm = ImageDataModule(train_csv=tmp_path/"d/t.csv", image_size=16, batch_size=8, num_workers=0, val_split=0)
    a, b = (torch.cat([o.target for o in m.train_dataloader()]).bincount().tolist() for m in (dm, module(tmp_path/"d", val_split=0)))
    assert a == b == [8, 8, 8]
