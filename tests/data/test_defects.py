"Normal and anomalous images, masks, depth and clips: layouts, splits, alignment, determinism, exact frames, downloads."
import hashlib
import io
import pickle
import tarfile
import warnings
import zipfile
from dataclasses import replace

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import pytest
import scipy.io
import tifffile
import torch
from PIL import Image
from torchvision.transforms import v2

from visionlab.data.video import frame_times, FrameFolder, VideoFile
from visionlab.data.clips import Avenue, clip_starts, read_truth
from visionlab.core.errors import (
    ConfigError, DataError, EmptyDatasetError, ImageReadError, TooManyBadFilesError, UnknownOptionError)
from visionlab.data.module import ImageDataModule
from visionlab.images.batch import ImageBatch
from visionlab.data.defect_layouts import LayoutError
from visionlab.data.planes import load_depth, plant
from visionlab.data.download import Archive, fetch, unpack
from visionlab.data.mvtec import MVTec3D, MVTecAD
from visionlab.data.defect_folders import Folder, Tabular
from visionlab.transforms.ops import ColorJitter, HorizontalFlip, PadCrop, RandomResizedCrop, VerticalFlip
from visionlab.transforms.pipeline import Pipeline

SIZE = (60, 80)
KINDS = dict(good=6, broken=6, scratch=4)
TORN = Pipeline(RandomResizedCrop((.3, 1.)), (PadCrop(4), HorizontalFlip(), VerticalFlip(), ColorJitter(.3, .3, .3)))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))
    monkeypatch.setenv("VISIONLAB_PROGRESS", "off")


def marked(i, defect):
    "Draw a dark picture; where it is defective a bright square, which the mask repeats and the depth too."
    rng = np.random.default_rng(i)
    image, mask = rng.integers(0, 40, (*SIZE, 3)).astype(np.uint8), np.zeros(SIZE, np.uint8)
    if defect:
        y, x = rng.integers(0, SIZE[0]-24), rng.integers(0, SIZE[1]-24)
        image[y:y+24, x:x+24], mask[y:y+24, x:x+24] = 255, 255
    return image, mask


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def mvtec(root, n_train=12, kinds=KINDS):
    "Write a category in the layout of MVTec AD."
    for i in range(n_train): save(root/f"train/good/{i:03}.png", marked(i, True)[0])      # marked too, so that crops of training images show
    for kind, n in kinds.items():
        for i in range(n):
            image, mask = marked(100 + i, kind != "good")
            save(root/f"test/{kind}/{i:03}.png", image)
            if kind != "good": save(root/f"ground_truth/{kind}/{i:03}_mask.png", mask)
    return root


def mvtec3d(root):
    "Write a category in the layout of MVTec 3D-AD, its depth equal to the mask's 0 and 255 plus 1."
    for split, kind, n in (("train", "good", 8), ("validation", "good", 3), ("test", "good", 3), ("test", "hole", 4)):
        for i in range(n):
            image, mask = marked(i, True)
            save(root/split/kind/f"rgb/{i:03}.png", image)
            save(root/split/kind/f"gt/{i:03}.png", mask)
            (root/split/kind/"xyz").mkdir(exist_ok=True)
            xyz = np.stack([np.full(SIZE, 7.), np.full(SIZE, 9.), mask + 1.], -1).astype(np.float32)
            tifffile.imwrite(root/split/kind/f"xyz/{i:03}.tiff", xyz)
    return root


@pytest.fixture(scope="module")
def wall(tmp_path_factory): return mvtec(tmp_path_factory.mktemp("mvtec")/"wall").parent


@pytest.fixture(scope="module")
def relief(tmp_path_factory): return mvtec3d(tmp_path_factory.mktemp("mvtec3d")/"relief").parent


def rows(dm, split): return dm.catalog.subset(split).frame


def per_split(dm): return {s: (int((rows(dm, s).label == "normal").sum()), int((rows(dm, s).label == "anomalous").sum())) for s in dm.catalog.splits}


# ---- MVTec AD

def test_the_documented_batch(wall):
    dm = MVTecAD(root=str(wall), category="wall", train_batch_size=5, eval_batch_size=3, num_workers=0)
    dm.setup("fit"); dm.setup("test"); dm.setup()
    b = next(iter(dm.train_dataloader()))
    assert b.image.shape == (5, 3, 256, 256) and b.gt_label.shape == (5,) and b.gt_mask.shape == (5, 256, 256) and b.gt_mask.dtype == torch.bool
    assert not b.gt_label.any() and not b.gt_mask.any() and len(b.image_path) == 5 and b.depth_map is None
    t = next(iter(dm.test_dataloader()))
    assert t.image.shape[0] == 3 and len(dm.val_dataloader()) == 3
    x, y = t
    assert torch.equal(y, t.gt_label) and isinstance(t, ImageBatch)


def test_rectangles_and_separate_batch_sizes(wall):
    dm = MVTecAD(wall, "wall", image_size=(48, 64), train_batch_size=4, eval_batch_size=7)
    assert next(iter(dm.train_dataloader())).gt_mask.shape == (4, 48, 64)
    assert next(iter(dm.test_dataloader())).image.shape == (7, 3, 48, 64)


def test_the_category_may_be_the_root(wall): assert len(MVTecAD(wall/"wall", None).catalog) == len(MVTecAD(wall, "wall").catalog)


def agreement(batch, dm):
    "Say how well the bright squares of the images and the masks agree: the share of the union."
    seen = dm.denormalize(batch.image).mean(1) > .6
    return ((seen & batch.gt_mask).sum()/(seen | batch.gt_mask).sum().clamp(min=1)).item()


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_masks_lie_on_their_images(wall, resize):
    dm = MVTecAD(wall, "wall", image_size=(45, 90), resize=resize, eval_batch_size=20)
    batch = next(iter(dm.test_dataloader()))
    assert batch.gt_mask.any() and agreement(batch, dm) > .9
    assert (batch.gt_mask.flatten(1).any(1) == (batch.gt_label == 1)).all() or resize == "crop"


def trained_on_marks(wall, tmp_path, **kw):
    "Make a module that augments marked images with masks: those of a test folder validated on, in training order."
    root = tmp_path/"marked"
    for i in range(10):
        image, mask = marked(i, True)
        save(root/f"plain/{i}.png", image); save(root/f"rgb/{i}.png", image); save(root/f"mask/{i}.png", mask)
    dm = Folder("plain", "rgb", mask_dir="mask", root=root, image_size=(48, 64), train_batch_size=10, val_split_mode="none", **kw)
    cat = dm.catalog
    bad = cat.frame[cat.frame["defect"] == "rgb"].assign(split="train")      # learn from what has masks, only to see them move
    dm.catalog = replace(cat, frame=bad)
    return dm


@pytest.mark.parametrize("transform", [TORN, v2.Compose([v2.RandomResizedCrop((48, 64), (.4, 1.)), v2.RandomHorizontalFlip(), v2.ColorJitter(.2)]),
                                       A.Compose([A.RandomCrop(40, 60), A.HorizontalFlip(), A.Resize(48, 64)])], ids=["pipeline", "torchvision", "albumentations"])
def test_masks_follow_crops_and_flips(wall, tmp_path, transform):
    dm = trained_on_marks(wall, tmp_path, train_transforms=transform, num_workers=0)
    before = None
    for batch in (next(iter(dm.train_dataloader())) for _ in range(3)):
        assert batch.gt_mask.any() and agreement(batch, dm) > .85
        assert before is None or not torch.equal(before, batch.gt_mask)      # another crop each epoch
        before = batch.gt_mask


def test_a_function_of_one_image_is_refused(wall):
    dm = MVTecAD(wall, "wall", train_transforms=lambda image: image, num_workers=0)
    with pytest.raises(ConfigError, match="mask"): next(iter(dm.train_dataloader()))


def digest(loader, epochs=2):
    h = hashlib.sha256()
    for _ in range(epochs):
        for b in loader:
            for o in (b.image, b.mask, b.depth):
                if o is not None: h.update(o.contiguous().numpy().tobytes())
    return h.hexdigest()


@pytest.mark.parametrize("transform", [TORN, v2.Compose([v2.RandomCrop(40), v2.RandomVerticalFlip()])], ids=["pipeline", "torchvision"])
def test_batches_do_not_depend_on_workers(relief, transform):
    def run(**kw): return digest(MVTec3D(relief, "relief", image_size=(40, 40), train_batch_size=3, train_transforms=transform, **kw).train_dataloader())
    want = run(num_workers=0)
    for kw in (dict(num_workers=1), dict(num_workers=3), dict(num_workers=2, cache=None)): assert run(**kw) == want
    assert run(num_workers=0, seed=0) != want


def test_only_training_is_augmented(wall):
    dm = MVTecAD(wall, "wall", image_size=32, train_transforms=TORN, eval_batch_size=50)
    assert dm.train_pipeline.random and not dm.eval_pipeline.random
    for dl in (dm.val_dataloader(), dm.test_dataloader(), dm.predict_dataloader()):
        a, b = (next(iter(dl)) for _ in range(2))
        assert torch.equal(a.image, b.image)
    assert not MVTecAD(wall, "wall").train_pipeline.random      # nothing unless asked


def test_one_transform_for_all_warns_if_it_draws(wall):
    with pytest.warns(UserWarning, match="RandomHorizontalFlip"): MVTecAD(wall, "wall", transform=v2.Compose([v2.Resize((32, 32)), v2.RandomHorizontalFlip()]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dm = MVTecAD(wall, "wall", transform=v2.Resize((32, 32)), num_workers=0)
    assert next(iter(dm.test_dataloader())).gt_mask.shape[1:] == (32, 32)


def test_collate_makes_batches_of_ones_own(wall):
    dm = MVTecAD(wall, "wall", image_size=16, eval_batch_size=3, collate=lambda items: [o.path for o in items])
    assert next(iter(dm.test_dataloader()))[0].startswith("test/")
    dm = MVTecAD(wall, "wall", image_size=16, eval_batch_size=3, collate=ImageBatch.collate)
    b = next(iter(dm.test_dataloader()))
    assert b.image.shape == (3, 3, 16, 16) and b.mask.shape == (3, 16, 16)


def test_batches_travel(wall):
    b = pickle.loads(pickle.dumps(next(iter(MVTecAD(wall, "wall", image_size=16).test_dataloader()))))
    assert b[0].mask.shape == (16, 16) and b[:2].gt_mask.shape == (2, 16, 16)


def test_predicting_on_files(wall):
    dm = MVTecAD(wall, "wall", image_size=16)
    assert sum(len(b) for b in dm.predict_dataloader(wall/"wall"/"test")) == 16
    assert next(iter(dm.predict_dataloader())).mask is not None      # the test split


def test_settings_from_a_file_are_relative_to_it(wall, monkeypatch, tmp_path):
    import visionlab.data.imagenet      # brings from_config
    monkeypatch.chdir(tmp_path)
    (wall/"mvtec.yaml").write_text("data:\n  root: .\n  category: wall\n  image_size: [16, 24]\n  train_batch_size: 4\n")
    dm = MVTecAD.from_yaml(wall/"mvtec.yaml", eval_batch_size=3)
    assert (dm.image_size, dm.batch_size, dm.eval_batch_size) == ((16, 24), 4, 3)
    (wall/"wall/folder.yaml").write_text("normal_dir: train/good\nabnormal_dir: test/broken\nimage_size: 16\n")
    assert set(Folder.from_yaml(wall/"wall/folder.yaml").catalog.frame["defect"]) == {"good", "broken"}
    for wrong in ("catgory", "catalog", "data_dir"):
        with pytest.raises(UnknownOptionError, match=wrong): MVTecAD.from_config(dict(root=str(wall), **{wrong:"wall"}))


def test_a_module_of_ones_own(wall):
    class Own(MVTecAD):
        def setup(self, stage=None):
            self.stages = [*getattr(self, "stages", []), stage]
            return super().setup(stage)
        def train_dataloader(self): return [b.image for b in super().train_dataloader()]
    dm = Own(wall, "wall", image_size=16, train_batch_size=5)
    dm.setup("fit")
    assert [o.shape for o in dm.train_dataloader()] == [(5, 3, 16, 16)]*2 + [(2, 3, 16, 16)] and dm.stages[0] == "fit"
    with pytest.raises(UnknownOptionError, match="stage"): dm.setup("fti")
    with pytest.raises(ConfigError, match="train_batch|batch_size"): MVTecAD(wall, "wall", train_batch_size=True)


def test_fields_of_a_batch_fit_its_images(wall):
    b = next(iter(MVTecAD(wall, "wall", image_size=16, eval_batch_size=5).test_dataloader()))
    arrays = b.to_numpy()
    assert {k:getattr(v, "shape", len(v)) for k, v in arrays.items()} == dict(image=(5, 3, 16, 16), target=(5,), path=5, index=(5,), mask=(5, 16, 16))
    assert all(isinstance(v, np.ndarray) for k, v in arrays.items() if k != "path") and [o.image.shape for o in b.items()] == [(3, 16, 16)]*5
    for name, value in dict(target=b.target[:2], path=["a"], mask=b.mask[1:]).items():
        with pytest.raises(DataError, match=f"{name} has . entr.*for 5 images"): setattr(b, name, value)
    b.mask = None


def test_the_cache_can_be_cleared(wall):
    dm = MVTecAD(wall, "wall", image_size=16, cache="ram").setup()
    a = next(iter(dm.test_dataloader()))
    assert dm._images.nbytes > 0
    dm.clear_cache()
    assert dm._images is None and torch.equal(a.image, next(iter(dm.test_dataloader())).image)


# ---- splits

@pytest.mark.parametrize("kw,want", [
    (dict(), dict(train=(12, 0), val=(3, 5), test=(3, 5))),
    (dict(val_split_mode="none"), dict(train=(12, 0), test=(6, 10))),
    (dict(val_split_mode="from_train", val_split_ratio=.25), dict(train=(9, 0), val=(3, 0), test=(6, 10))),
    (dict(val_split_mode="synthetic"), dict(train=(6, 0), val=(3, 3), test=(6, 10))),
    (dict(test_split_mode="synthetic", test_split_ratio=.5, val_split_mode="from_test"), dict(train=(6, 0), val=(2, 1), test=(1, 2))),
    (dict(test_split_mode="none", val_split_mode="none"), dict(train=(12, 0))),
    (dict(test_split_mode="none", val_split_mode="synthetic"), dict(train=(6, 0), val=(3, 3)))])
def test_split_modes(wall, kw, want):
    dm = MVTecAD(wall, "wall", image_size=16, **kw)
    assert per_split(dm) == want
    for split in want:
        for b in dm.loader(split): assert set(want) == {"train"} or torch.equal(b.gt_mask.flatten(1).any(1), b.gt_label == 1)


def test_same_as_test_warns(wall):
    with pytest.warns(UserWarning, match="Validation is the test set"): dm = MVTecAD(wall, "wall", val_split_mode="same_as_test")
    assert per_split(dm) == dict(train=(12, 0), val=(6, 10), test=(6, 10))
    assert dm.catalog.frame.index.is_unique


def test_splits_are_stratified_seeded_and_disjoint(wall):
    picked = {}
    for seed in (0, 0, 1, 42):
        dm = MVTecAD(wall, "wall", seed=seed)
        val, test = (set(rows(dm, s)["path"]) for s in ("val", "test"))
        assert not val & test and len(val | test) == 16
        assert rows(dm, "val")["defect"].value_counts().to_dict() == dict(good=3, broken=3, scratch=2)
        assert picked.setdefault(seed, val) == val
    assert len({frozenset(o) for o in picked.values()}) == 3      # 0 is a seed like any other


@pytest.mark.parametrize("kw,error,match", [
    (dict(val_split_mode="frm_test"), UnknownOptionError, "from_test"), (dict(test_split_mode="from_test"), UnknownOptionError, "from_dir"),
    (dict(val_split_ratio=1.5), ConfigError, "val_split_ratio"), (dict(test_split_ratio=0), ConfigError, "test_split_ratio"),
    (dict(val_split_mode="from_dir"), EmptyDatasetError, "'val'"), (dict(test_split_mode="none"), EmptyDatasetError, "'test'"),
    (dict(train_batch_size=0), ConfigError, "batch_size"), (dict(image_size=(1, 2, 3)), ConfigError, "image_size")])
def test_options_that_cannot_work(wall, kw, error, match):
    with pytest.raises(error, match=match): MVTecAD(wall, "wall", **kw).train_dataloader()


def test_what_is_left_out_is_listed(tmp_path):
    root = mvtec(tmp_path/"wall")
    save(root/"train/broken/0.png", marked(0, True)[0])
    (root/"test/good/notes.txt").write_text("x"); (root/"test/good/empty.png").touch()
    (root/"ground_truth/broken/000_mask.png").unlink()
    save(root/"ground_truth/broken/zzz_mask.png", marked(0, True)[1])
    dm = MVTecAD(tmp_path, "wall")
    reasons = dm.catalog.skipped.set_index("path")["reason"].to_dict()
    assert reasons == {"train/broken/0.png": "training takes normal images only", "test/good/notes.txt": "extension .txt", "test/good/empty.png": "empty",
                       "test/broken/000.png": "no mask", "ground_truth/broken/zzz_mask.png": "mask without image"}


def test_bad_masks_take_their_images_out(tmp_path):
    root = mvtec(tmp_path/"wall", kinds=dict(good=60, broken=60))
    (root/"ground_truth/broken/003_mask.png").write_bytes(b"\x89PNG nonsense")
    save(root/"ground_truth/broken/004_mask.png", np.zeros((10, 10), np.uint8))
    dm = MVTecAD(tmp_path, "wall", val_split_mode="none").setup()
    reasons = dm.catalog.skipped.set_index("path")["reason"].to_dict()
    assert reasons["test/broken/004.png"] == "mask of another size" and reasons["test/broken/003.png"].startswith("mask ") and len(reasons) == 2
    with pytest.raises(TooManyBadFilesError, match="broken/00"): MVTecAD(tmp_path, "wall", on_bad="error").setup()


def test_without_ground_truth_there_are_no_masks(tmp_path):
    root = mvtec(tmp_path/"wall")
    for o in sorted((root/"ground_truth").rglob("*"), reverse=True): o.unlink() if o.is_file() else o.rmdir()
    (root/"ground_truth").rmdir()
    b = next(iter(MVTecAD(tmp_path, "wall").test_dataloader()))
    assert b.gt_mask is None and b.gt_label.any()


@pytest.mark.parametrize("make,match", [
    (lambda p: MVTecAD(p, "bottle"), "Did you mean 'bottles'"), (lambda p: MVTecAD(p, "bottles"), "train/good"), (lambda p: MVTecAD(p/"nowhere", "x"), "does not exist"),
    (lambda p: MVTec3D(p, "bottles"), "train/good/rgb"), (lambda p: Folder("normal", root=p), "no folder 'normal'"), (lambda p: Avenue(p), "training_videos"),
    (lambda p: MVTec3D(p, "bagel", download=True), "no checksum")])
def test_wrong_layouts_say_what_was_expected_and_seen(tmp_path, make, match):
    (tmp_path/"bottles"/"pictures").mkdir(parents=True)
    with pytest.raises((DataError, ConfigError), match=match) as e: make(tmp_path)
    assert e.value.fix and e.value.where


# ---- Folder

def test_folders(tmp_path):
    for i in range(20): save(tmp_path/f"fine/{i}.jpg", marked(i, False)[0])
    for i in range(4):
        save(tmp_path/f"bad/dent/{i}.png", marked(i, True)[0]); save(tmp_path/f"masks/dent/{i}.png", marked(i, True)[1])
        save(tmp_path/f"bad/hole/{i}.png", marked(i, True)[0]); save(tmp_path/f"masks/hole/{i}.png", marked(i, True)[1])
    dm = Folder("fine", "bad", mask_dir="masks", root=tmp_path, image_size=32)
    assert per_split(dm) == dict(train=(16, 0), val=(2, 4), test=(2, 4)) and set(dm.catalog.frame["defect"]) == {"good", "dent", "hole"}
    absolute = Folder(tmp_path/"fine", [tmp_path/"bad"/"dent"], normal_test_dir=tmp_path/"bad"/"hole", image_size=32, val_split_mode="none")
    assert next(iter(absolute.test_dataloader())).image.shape[1:] == (3, 32, 32)
    own = Folder("fine", "bad/dent", root=tmp_path, normal_val_dir="bad/hole", val_split_mode="from_dir")
    assert per_split(own)["val"] == (4, 0)


@pytest.mark.parametrize("kw,match", [(dict(abnormal_dir="fine"), "normal_dir='fine' and abnormal_dir='fine' are one folder"), (dict(abnormal_dir="bad", normal_test_dir="fine"), "normal_dir='fine' and normal_test_dir='fine'"),
                                      (dict(abnormal_dir=["bad", "./bad"]), "abnormal_dir='bad' and abnormal_dir='./bad'"), (dict(abnormal_dir="bad", abnormal_val_dir="bad/dent"), "overlap"),
                                      (dict(abnormal_dir="bad", mask_dir="bad/dent"), "mask_dir='bad/dent' and abnormal_dir='bad' overlap"), (dict(abnormal_dir="linked"), "abnormal_dir='linked'"),
                                      (dict(normal_dir=".", abnormal_dir="bad"), "abnormal_dir='bad' and normal_dir='.' overlap")])
def test_folders_that_are_one_or_overlap_are_refused(tmp_path, kw, match):
    for i in range(4):
        for o in ("fine", "bad/dent", "bad/hole"): save(tmp_path/f"{o}/{i}.png", marked(i, True)[0])
    (tmp_path/"linked").symlink_to(tmp_path/"fine")
    with pytest.raises(ConfigError, match=match) as e: Folder(**dict(normal_dir="fine", root=tmp_path) | kw)
    assert "folder of its own" in e.value.fix
    assert len(Folder("bad/dent", "bad/hole", root=tmp_path, val_split_mode="none").catalog) == 8      # side by side they may be


@pytest.mark.parametrize("channels", [2, 5])
def test_the_number_of_channels_is_found_and_asked_for(tmp_path, channels):
    for kind, n in (("fine", 10), ("bad", 4)):
        (tmp_path/kind).mkdir()
        for i in range(n): np.save(tmp_path/kind/f"{i}.npy", np.random.default_rng(i).integers(0, 255, (24, 24, channels), dtype=np.uint8))
    for make in (lambda **kw: Folder("fine", "bad", root=tmp_path, image_size=16, **kw), lambda **kw: ImageDataModule(tmp_path, image_size=16, **kw)):
        with pytest.raises(ConfigError, match=f"{channels} channels instead of 3") as e: make().setup()
        assert e.value.fix == f"Pass in_chans={channels}"
        assert next(iter(make(in_chans=channels).val_dataloader())).image.shape[1:] == (channels, 16, 16)


def test_normal_images_alone_get_painted_defects(wall):
    dm = Folder("train/good", root=wall/"wall", image_size=32, test_split_ratio=.5)
    b = next(iter(dm.test_dataloader()))
    assert b.gt_label.any() and torch.equal(b.gt_mask.flatten(1).any(1), b.gt_label == 1)
    with pytest.raises(EmptyDatasetError, match="cannot be divided"): Folder("train/good", root=wall/"wall", test_split_ratio=.1)
    with pytest.raises(EmptyDatasetError, match="synthetic"): Folder("train/good", root=wall/"wall", test_split_mode="from_dir")


def test_painting_changes_the_image_under_the_mask_only():
    image = marked(0, True)[0]
    for seed in range(20):
        out, mask = plant(image, seed)
        assert mask.any() and (out[~mask] == image[~mask]).all() and (out[mask] != image[mask]).any()


# ---- depth

def test_depth_goes_with_the_image(relief):
    dm = MVTec3D(relief, "relief", image_size=(45, 60), train_batch_size=8, val_split_mode="from_dir", train_transforms=TORN)
    assert per_split(dm) == dict(train=(8, 0), val=(3, 0), test=(3, 4))
    for b in (next(iter(dm.train_dataloader())), next(iter(dm.test_dataloader()))):
        assert b.depth_map.shape == (len(b), 1, 45, 60) and b.depth_map.dtype == torch.float32
        assert (((b.depth_map[:, 0] > 128) == b.gt_mask).float().mean() > .98) and agreement(b, dm) > .75
        assert b.depth_map.min() >= .99 and b.depth_map.max() <= 256.01


def test_depth_files(tmp_path):
    z = np.linspace(0, 9, 48, dtype=np.float32).reshape(6, 8)
    tifffile.imwrite(tmp_path/"xyz.tiff", np.stack([z*0+1, z*0+2, z], -1)); tifffile.imwrite(tmp_path/"z.tiff", z)
    Image.fromarray((z*1000).astype(np.uint16)).save(tmp_path/"z.png")
    assert (load_depth(tmp_path/"xyz.tiff") == z).all() and (load_depth(tmp_path/"z.tiff") == z).all()
    assert (load_depth(tmp_path/"xyz.tiff", channel=0) == 1).all()
    assert np.allclose(load_depth(tmp_path/"z.png"), (z*1000).astype(np.uint16))


@pytest.mark.parametrize("change,reason", [(lambda b: b[:200], "corrupt"), (lambda b: b"II*\0" + bytes(20), "corrupt"), (lambda b: b"", "empty"), (lambda b: b"hello", "not_an_image")])
def test_damaged_depth_is_named(tmp_path, change, reason):
    path = tmp_path/"a.tiff"
    tifffile.imwrite(path, np.zeros((20, 30, 3), np.float32))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ImageReadError) as e: load_depth(path)
    assert e.value.reason == reason and "a.tiff" in str(e.value)


def test_huge_depth_is_refused_from_its_header(tmp_path):
    tifffile.imwrite(tmp_path/"a.tiff", np.zeros((20, 30), np.float32))
    with pytest.raises(ImageReadError, match="30 × 20") as e: load_depth(tmp_path/"a.tiff", max_pixels=100)
    assert e.value.reason == "too_large"


def test_an_image_without_depth_is_listed(tmp_path):
    mvtec3d(tmp_path/"relief")
    (tmp_path/"relief/train/good/xyz/002.tiff").unlink()
    dm = MVTec3D(tmp_path, "relief", val_split_mode="from_dir")
    assert dm.catalog.skipped[["path", "reason"]].to_numpy().tolist() == [["train/good/rgb/002.png", "no depth"], ["train/good/gt/002.png", "mask without image"]]


# ---- clips

def frame_of(n, size=(48, 64)):
    "Draw frame `n`: a flat grey of brightness 8·n, brighter on the right so that flips show."
    image = np.full((*size, 3), 8*n, np.uint8)
    image[:, size[1]//2:] += 40
    return image


def film(path, n=24, codec="MJPG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25, (64, 48))
    for i in range(n): out.write(frame_of(i))
    out.release()


def odd_mask(n, odd): return np.where(n in odd, np.tri(48, 64, dtype=np.uint8), 0).astype(np.uint8)


def avenue(root, frames=False, truth="masks"):
    "Write two training and two test videos of 24 frames."
    for split, count in (("training", 2), ("testing", 2)):
        for v in range(1, count+1):
            if not frames: film(root/f"{split}_videos/{v:02}.{'avi' if v == 1 else 'mp4'}", codec="MJPG" if v == 1 else "mp4v")
            else:
                for i in range(24): save(root/f"{split}_videos/{v:02}/{i}.png", frame_of(i))
    for v, odd in ((1, range(5, 9)), (2, range(12, 20))):
        masks = [odd_mask(n, odd) for n in range(24)]
        gt = root/"ground_truth"
        if truth == "masks":
            for n, m in enumerate(masks): save(gt/f"{v:02}/{n:03}.png", m*255)
        gt.mkdir(exist_ok=True)
        if truth == "mat":
            cells = np.empty((1, 24), object)
            for n, m in enumerate(masks): cells[0, n] = m
            scipy.io.savemat(gt/f"{v}_label.mat", dict(volLabel=cells))
        if truth == "numbers": np.save(gt/f"{v:02}.npy", np.array([m.any() for m in masks]))
    return root


@pytest.fixture(scope="module")
def films(tmp_path_factory): return avenue(tmp_path_factory.mktemp("avenue"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory): return avenue(tmp_path_factory.mktemp("frames"), frames=True, truth="mat")


def numbers(dm, batch):
    "Read the frame numbers out of the brightness: (B, T)."
    left = dm.denormalize(batch.image)[..., :8].mean((-3, -2, -1))
    return (left*255/8).round().long()


@pytest.mark.parametrize("source", ["films", "folders"])
@pytest.mark.parametrize("length,step,target", [(2, 1, "last"), (4, 3, "first"), (5, 2, "mid"), (3, 3, "all"), (1, 1, "last")])
def test_clips_hold_exactly_their_frames(request, source, length, step, target):
    dm = Avenue(request.getfixturevalue(source), length, step, target, image_size=(48, 64), eval_batch_size=7, num_workers=2, val_split_mode="none")
    assert len(dm.catalog.subset("test")) == 2*((24-length)//step + 1)
    for b in dm.test_dataloader():
        if length == 1: assert b.image.ndim == 4; continue
        assert b.image.shape[1:] == (length, 3, 48, 64)
        start = torch.tensor(dm.catalog.frame.loc[b.index.tolist(), "start"].tolist())
        assert torch.equal(numbers(dm, b), start[:, None] + torch.arange(length))
        shown = {"last": [length-1], "first": [0], "mid": [length//2], "all": range(length)}[target]
        odd = [range(5, 9) if "01" in v else range(12, 20) for v in dm.catalog.frame.loc[b.index.tolist(), "video"]]
        want = torch.tensor([[int(int(s)+k in o) for k in shown] for s, o in zip(start, odd)])
        assert torch.equal(b.gt_label, want if target == "all" else want[:, 0])
        mask = b.gt_mask if target == "all" else b.gt_mask[:, None]
        assert torch.equal(mask.flatten(2).any(2).long(), want)
        assert (mask[want.bool()] == torch.tensor(np.tri(48, 64)) .bool()).all()


@pytest.mark.parametrize("codec,suffix", [("MJPG", "avi"), ("mp4v", "mp4"), ("XVID", "avi")])
def test_any_frame_in_any_order(tmp_path, codec, suffix):
    film(tmp_path/f"a.{suffix}", codec=codec)
    video = VideoFile(tmp_path/f"a.{suffix}")
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(24), 2))
    assert len(video) == 24 and [round((video[n][:, :8].mean())/8) for n in order] == order.tolist()


def test_a_jump_that_lands_elsewhere_is_not_believed(tmp_path):
    film(tmp_path/"a.avi", codec="mp4v")
    video = VideoFile(tmp_path/"a.avi")
    video.times = [t + 1 for t in video.times]      # now every jump looks wrong
    got = [video[n][:, :8].mean()/8 for n in (20, 2, 23)]
    assert [round(o) for o in got] == [20, 2, 23]


def test_the_index_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    film(tmp_path/"a.avi", 10)
    assert len(frame_times(tmp_path/"a.avi")) == 10
    with monkeypatch.context() as m:
        m.setattr("visionlab.data.video._read_times", lambda p: 1/0)
        assert len(frame_times(tmp_path/"a.avi")) == 10
    film(tmp_path/"a.avi", 12)
    assert len(frame_times(tmp_path/"a.avi")) == 12


def test_frames_come_in_the_order_of_their_numbers(folders):
    assert FrameFolder("", ["v/10.png", "v/9.png", "v/1.png"]).files == ["v/1.png", "v/9.png", "v/10.png"]


@pytest.mark.parametrize("transform", [Pipeline(RandomResizedCrop((.5, 1.)), (HorizontalFlip(), ColorJitter(.2))), v2.Compose([v2.RandomCrop(40), v2.RandomHorizontalFlip()]),
                                       A.Compose([A.RandomCrop(40, 40), A.HorizontalFlip()])], ids=["pipeline", "torchvision", "albumentations"])
def test_all_frames_of_a_clip_move_together(films, transform):
    def run(workers):
        dm = Avenue(films, 3, 4, image_size=(40, 40), train_batch_size=6, train_transforms=transform, num_workers=workers)
        return dm, [b for _ in range(2) for b in dm.train_dataloader()]
    dm, want = run(0)
    for workers in (1, 3): assert all(torch.equal(a.image, b.image) for a, b in zip(want, run(workers)[1]))
    flips = []
    for b in want:
        x = dm.denormalize(b.image).mean((2, 3))      # (B, T, W): where the bright half lies
        bright_right = x[..., -1] > x[..., 0]
        assert (bright_right == bright_right[:, :1]).all()
        flips += bright_right[:, 0].tolist()
    assert 0 < sum(flips) < len(flips)


@pytest.mark.parametrize("truth", ["masks", "mat", "numbers"])
def test_ground_truth_files(tmp_path, truth):
    dm = Avenue(avenue(tmp_path, truth=truth), image_size=16, val_split_mode="none")
    batches = list(dm.test_dataloader())
    assert sum(b.gt_label.sum().item() for b in batches) == 4 + 8
    assert all((b.gt_mask is None) == (truth == "numbers") for b in batches)


def test_truth_must_fit_the_video(tmp_path):
    np.save(tmp_path/"01.npy", np.zeros(5))
    with pytest.raises(DataError, match="about 5 frames, its video has 6"): read_truth(tmp_path/"01.npy", 6)
    root = avenue(tmp_path/"a", truth="numbers")
    (root/"ground_truth/02.npy").unlink()
    with pytest.raises(LayoutError, match="no ground truth for the video '02'"): Avenue(root)


def test_videos_are_not_torn_between_validation_and_test(films):
    for seed in range(4):
        dm = Avenue(films, seed=seed)
        assert dm.catalog.frame.groupby("video")["split"].nunique().max() == 1 and set(dm.catalog.splits) == {"train", "val", "test"}


def test_bad_videos_and_frames_are_listed(tmp_path):
    root = avenue(tmp_path/"films")
    (root/"training_videos/03.avi").write_bytes(b"RIFF nonsense"); (root/"training_videos/readme.txt").write_text("x")
    film(root/"training_videos/04.avi", 1); (root/"training_videos/05").mkdir()
    reasons = Avenue(root, 2).catalog.skipped.set_index("path")["reason"].to_dict()
    assert reasons == {"training_videos/03.avi": "corrupt", "training_videos/readme.txt": "neither a video nor a folder of frames",
                       "training_videos/04.avi": "shorter than 2 frames", "training_videos/05": "no frames"}
    root = avenue(tmp_path/"frames", frames=True)
    (root/"training_videos/01/3.png").write_bytes(b"\x89PNG")
    dm = Avenue(root, 2, 2, image_size=16).setup()
    assert dm.catalog.skipped["path"].tolist() == ["training_videos/01/3.png"] and dm.catalog.skipped["reason"].iloc[0].startswith("frame ")


@pytest.mark.parametrize("kw,match", [(dict(target_frame="middle"), "mid"), (dict(clip_length_in_frames=0), "clip_length"), (dict(frames_between_clips=1.5), "frames_between"),
                                      (dict(val_split_mode="synthetic"), "painted"), (dict(in_chans=1), "3 channels")])
def test_clip_options_that_cannot_work(films, kw, match):
    with pytest.raises(ConfigError, match=match): Avenue(films, **kw)


def test_clip_starts():
    assert clip_starts(10, 3, 2).tolist() == [0, 2, 4, 6] and clip_starts(3, 3, 5).tolist() == [0] and not len(clip_starts(2, 3, 1))


# ---- downloads

def packed(path, files, kind):
    "Write an archive of {name: bytes}."
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as z:
            for name, data in files.items(): z.writestr(name, data)
    else:
        with tarfile.open(path, "w:xz") as t:
            for name, data in files.items():
                info = tarfile.TarInfo(name); info.size = len(data)
                t.addfile(info, io.BytesIO(data))
    return path


def archive(path, **kw): return Archive(path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest(), "CC BY-NC-SA 4.0", "https://example.org", **kw)


def test_download_shows_the_licence_checks_and_unpacks(tmp_path, capsys):
    mvtec(tmp_path/"src/wall")
    path = tmp_path/"walls.tar.xz"
    with tarfile.open(path, "w:xz") as t: t.add(tmp_path/"src/wall", "wall")
    class Walls(MVTecAD): archive = archive(path)
    dm = Walls(tmp_path/"data", "wall", download=True)
    assert "CC BY-NC-SA" in capsys.readouterr().out and "CC BY-NC-SA" in dm.catalog.info["licence"]
    assert [o.name for o in (tmp_path/"data").iterdir()] == ["wall"]
    path.unlink()
    assert len(Walls(tmp_path/"data", "wall", download=True).catalog) == len(dm.catalog)      # nothing to fetch


def test_a_wrong_checksum_leaves_nothing(tmp_path):
    path = packed(tmp_path/"a.zip", {"a/b.txt": b"x"}, "zip")
    with pytest.raises(DataError, match="not the file it should be"): fetch(replace(archive(path), sha256="0"*64), tmp_path/"to")
    with pytest.raises(DataError, match="larger than"): fetch(archive(path, gigabytes=1e-9), tmp_path/"to")
    with pytest.raises(DataError, match="failed"): fetch(replace(archive(path), url=(tmp_path/"none.zip").as_uri()), tmp_path/"to")
    with pytest.raises(ConfigError): fetch(replace(archive(path), url="ftp://x/a.zip"), tmp_path/"to")
    assert not list((tmp_path/"to").iterdir())


@pytest.mark.parametrize("kind", ["zip", "tar.xz"])
def test_nothing_lands_outside(tmp_path, kind):
    to = tmp_path/"to"/"deep"
    to.mkdir(parents=True)
    path = packed(tmp_path/f"a.{kind}", {"fine/a.txt": b"1", "../../evil.txt": b"2"}, kind)
    try: unpack(path, to)
    except DataError as e: assert "outside" in str(e)
    assert not list(tmp_path.rglob("evil.txt")) or all(to in o.parents for o in tmp_path.rglob("evil.txt"))
    big = packed(tmp_path/f"big.{kind}", {"big/a.txt": bytes(10_000)}, kind)
    with pytest.raises(DataError, match="unpacks to more"): unpack(big, to, gigabytes=1e-6)
    with pytest.raises(DataError, match="cannot be unpacked"): unpack(packed_badly(tmp_path/f"bad.{kind}"), to)
    assert not [o for o in to.iterdir() if o.name.startswith((".", "big", "bad"))]


def packed_badly(path):
    path.write_bytes(b"not an archive at all"*10)
    return path


# ---- tables

def listed(wall, **columns):
    "List the images of the category in columns, as their folders say."
    files = sorted(wall.glob("wall/t*/*/*.png"))
    kinds = [f.parent.name for f in files]
    masks = [f"wall/ground_truth/{k}/{f.stem}_mask.png" if k != "good" else "" for k, f in zip(kinds, files)]
    return dict(image_path=[f.relative_to(wall).as_posix() for f in files], label_index=[int(k != "good") for k in kinds],
                split=[f.parent.parent.name for f in files], mask_path=masks) | columns


def written(path, columns, sep=",", encoding="utf-8"):
    pd.DataFrame(columns).to_csv(path, sep=sep, index=False, encoding=encoding)
    return path


@pytest.mark.parametrize("form", ["csv", "excel", "frame", "dict", "records"])
def test_tables_of_every_form(wall, tmp_path, form):
    columns = listed(wall)
    samples = {"csv": lambda: written(tmp_path/"t.csv", columns), "excel": lambda: written(tmp_path/"t.csv", columns, ";", "utf-8-sig"), "frame": lambda: pd.DataFrame(columns),
               "dict": lambda: columns, "records": lambda: pd.DataFrame(columns).to_dict("records")}[form]()
    dm, same = Tabular(samples, wall, image_size=16, eval_batch_size=20), MVTecAD(wall, "wall", image_size=16, eval_batch_size=20)
    assert per_split(dm) == per_split(same)
    a, b = next(iter(dm.test_dataloader())), next(iter(Tabular(samples, wall, image_size=16, eval_batch_size=20, val_split_mode="none").test_dataloader()))
    assert a.gt_mask.shape == (len(a), 16, 16) and torch.equal(b.gt_mask.flatten(1).any(1), b.gt_label == 1) and len(b) == 16
    assert not next(iter(dm.train_dataloader())).gt_label.any()


def test_a_table_is_relative_to_its_own_folder(wall, tmp_path, monkeypatch):
    root = mvtec(tmp_path/"made"/"wall").parent
    path = written(root/"t.csv", listed(root))
    monkeypatch.chdir(tmp_path)
    assert len(Tabular(path).catalog) == 28
    monkeypatch.chdir(root)
    assert len(Tabular(listed(root)).catalog) == 28      # and columns to the current one
    monkeypatch.chdir(tmp_path)
    absolute = listed(root, image_path=[str(root/o) for o in listed(root)["image_path"]], mask_path=[o and str(root/o) for o in listed(root)["mask_path"]])
    dm = Tabular(absolute, image_size=16)
    assert len(dm.catalog) == 28 and next(iter(dm.test_dataloader())).gt_mask is not None


def test_labels_of_a_table_are_kinds_of_defects(wall):
    columns = listed(wall)
    kinds = [o.split("/")[2] for o in columns["image_path"]]
    del columns["label_index"]
    dm = Tabular(columns | dict(label=kinds), wall)
    assert sorted(dm.catalog.frame["defect"].unique()) == ["broken", "good", "scratch"]
    plain = Tabular(columns | dict(label=["normal" if o == "good" else "abnormal" for o in kinds]), wall)
    assert sorted(plain.catalog.frame["defect"].unique()) == ["abnormal", "good"] and per_split(plain)["train"] == (12, 0)


def test_splits_of_a_table(wall):
    columns = listed(wall)
    test, train = [i for i, s in enumerate(columns["split"]) if s == "test"], [i for i, s in enumerate(columns["split"]) if s == "train"]
    split = columns["split"][:]
    for i in (*train[:3], *test[:2]): split[i] = "valid"
    dm = Tabular(columns | dict(split=split), wall)
    assert dm.catalog.info["splits"]["val"] == "from_dir" and sum(per_split(dm)["val"]) == 5
    del columns["split"]
    free = Tabular(columns, wall)                        # normal ones train, abnormal ones test; a fifth of the normal ones goes with them
    assert per_split(free)["train"][1] == 0 and sum(map(sum, per_split(free).values())) == 28 and min(per_split(free)["test"]) > 0
    only = Tabular({k: [v[i] for i in train] for k, v in listed(wall).items()}, wall, test_split_ratio=.5)
    assert only.catalog.frame["synthetic"].any()


@pytest.mark.parametrize("change,match", [
    (lambda c: c.pop("image_path"), "no column 'image_path'"), (lambda c: c.pop("label_index"), "no column 'label_index' or 'label'"),
    (lambda c: c.clear(), "no rows"), (lambda c: c.update({k: [] for k in c}), "no rows"), (lambda c: c.update(split=["train"]), "make no table")])
def test_tables_that_lack_something(wall, change, match):
    columns = listed(wall)
    change(columns)
    with pytest.raises((DataError, ConfigError), match=match) as e: Tabular(columns, wall)
    assert str(e.value).count("\n") == 2 and e.value.where and e.value.fix
    with pytest.raises(DataError, match="does not exist"): Tabular(wall/"none.csv")


@pytest.mark.parametrize("column,value,reason", [
    ("image_path", "wall/none.png", "missing"), ("image_path", "", "missing path"), ("image_path", "../../x.png", "outside root"), ("image_path", "https://x.org/a.png", "an address, which is not fetched"),
    ("image_path", "notes.txt", "extension .txt"), ("label_index", 7, "label_index '7' is neither 0 nor 1"), ("label_index", None, "missing label"), ("split", "trian", "split 'trian' is unknown"),
    ("mask_path", "wall/none.png", "mask missing"), ("mask_path", "../../m.png", "mask outside root")])
def test_bad_rows_of_a_table(wall, column, value, reason):
    columns = listed(wall)
    columns[column] = [value, *columns[column][1:]]
    with pytest.raises(DataError, match="1 of 28 rows cannot be used") as e: Tabular(columns, wall)
    assert e.value.context["rows"] == [(0, reason)]
    cat = Tabular(columns, wall, on_bad_rows="skip").catalog
    assert len(cat) == 27 and cat.skipped["reason"].tolist() == [reason]


def test_contradictions_in_a_table(wall, tmp_path):
    columns = listed(wall)
    with pytest.raises(DataError, match="disagree"): Tabular(columns | dict(label=["normal"]*28), wall)
    twice = {k: [*v, v[0]] for k, v in columns.items()}
    twice["label_index"][-1] = 1 - twice["label_index"][0]
    with pytest.raises(DataError, match="two labels"): Tabular(twice, wall)
    (tmp_path/"t.csv").write_text("image_path,label_index\na.png,0\nb.png\n")
    with pytest.raises(DataError, match="1 row of t.csv cannot be read") as e: Tabular(tmp_path/"t.csv", wall)
    assert ":3: 1 field instead of 2" in e.value.where
    with pytest.raises(UnknownOptionError): Tabular(columns, wall, on_bad_rows="ignore")


def test_anomalous_rows_without_a_mask_are_listed(wall):
    columns = listed(wall)
    i = columns["label_index"].index(1)
    columns["mask_path"][i] = ""
    assert Tabular(columns, wall).catalog.skipped["reason"].tolist() == ["no mask"]
    del columns["mask_path"]
    assert next(iter(Tabular(columns, wall, image_size=16).test_dataloader())).image.shape[1:] == (3, 16, 16)


@pytest.mark.parametrize("make", [lambda wall: MVTecAD(wall, "wall", image_size=16), lambda wall: Folder("train/good", "test/broken", root=wall/"wall", image_size=16),
                                  lambda wall: Tabular(listed(wall), wall, image_size=16)])
def test_a_folder_without_labels_is_served(wall, tmp_path, make):
    for i in range(3): save(tmp_path/f"new/{i}.png", marked(i, True)[0])
    dm = make(wall)
    for source, n in ((tmp_path/"new", 3), (str(tmp_path/"new"), 3), ([tmp_path/"new"/"0.png"], 1), (tmp_path/"new"/"1.png", 1)):
        (batch,) = dm.predict_dataloader(source)
        assert batch.image.shape == (n, 3, 16, 16) and batch.image_path[0].endswith(".png") and batch.gt_mask is None
    known = next(iter(dm.predict_dataloader()))          # without a source: the test split
    assert known.gt_label is not None and len(known.image_path) == len(known)
    (tmp_path/"none").mkdir()
    with pytest.raises(EmptyDatasetError): dm.predict_dataloader(tmp_path/"none")
