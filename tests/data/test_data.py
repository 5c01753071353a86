"The data road beyond its pages: determinism, memory, bad files, odd settings."
import hashlib
import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from photos import photo_folder
from visionlab.data.cache_plan import Free
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import (
    ConfigError, DataError, EmptyDatasetError, ImageReadError, TooManyBadFilesError, UnknownOptionError)
from visionlab.data.audit import audit
from visionlab.data.module import ImageDataModule
from visionlab.images.decode import load_image
from visionlab.data.images import Images
from visionlab.data.loader import Loader
from visionlab.transforms.ops import RandomResizedCrop, Resize
from visionlab.transforms.pipeline import Pipeline
from visionlab.transforms.presets import preset


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path): monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return photo_folder(tmp_path_factory.mktemp("data"), n_train=13, n_val=5, size=64, classes=("brick", "chelsea", "coffee"))


def digest(loader, epochs=2):
    "Hash everything two epochs deliver, images, targets and order."
    h = hashlib.sha256()
    for _ in range(epochs):
        for b in loader:
            h.update(b.image.contiguous().numpy().tobytes()); h.update(b.target.numpy().tobytes()); h.update(b.index.numpy().tobytes())
    return h.hexdigest()


def noisy(image): return np.clip(np.asarray(image, dtype=np.float32) + np.random.randn()*random.random()*float(torch.rand(())), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("transform", [None, v2.Compose([v2.Resize((48, 48)), v2.TrivialAugmentWide(), v2.PILToTensor()]), v2.Compose([v2.RandomCrop(40), noisy])],
                         ids=["preset", "torchvision", "function"])
def test_batches_do_not_depend_on_workers(folder, transform):
    def run(**kw): return digest(ImageDataModule(folder, image_size=48, batch_size=8, train_transforms=transform, **kw).train_dataloader())
    want = run(num_workers=0)
    assert run(num_workers=0) == want
    for kw in (dict(num_workers=1), dict(num_workers=3), dict(num_workers=2, cache=None), dict(num_workers=0, cache="ram")): assert run(**kw) == want
    assert run(num_workers=0, seed=7) != want


def test_an_image_does_not_depend_on_its_batch(folder):
    def images(size):
        dl = ImageDataModule(folder, image_size=48, batch_size=size).train_dataloader()
        return {i: x for b in dl.batches(3) for i, x in zip(b.index.tolist(), b.image)}
    a, b = images(4), images(11)
    assert a.keys() == b.keys()
    for i in a: torch.testing.assert_close(a[i], b[i], atol=1e-5, rtol=0)


def test_starting_in_the_middle_of_an_epoch(folder):
    dl = ImageDataModule(folder, image_size=32, batch_size=8).train_dataloader()
    whole = list(dl.batches(2))
    for k in range(len(whole)):
        rest = list(dl.batches(2, start=k))
        assert len(rest) == len(whole)-k and all(torch.equal(a.image, b.image) for a, b in zip(whole[k:], rest))


def test_grey_built_ins_can_feed_three_channels():
    one, three = (next(iter(ImageDataModule("FashionSample", in_chans=c, normalize=((.5,)*c, (.5,)*c)).val_dataloader())).image for c in (1, 3))
    assert one.shape[1:] == (1, 28, 28) and three.shape[1:] == (3, 28, 28)
    assert torch.allclose(one.expand_as(three), three)


def test_built_ins_can_be_enlarged():
    dm = ImageDataModule("FashionSample", image_size=64, in_chans=3)
    assert next(iter(dm.train_dataloader())).image.shape == (32, 3, 64, 64)
    assert dm.train_pipeline.name == "small"


def test_every_image_comes_once_an_epoch(folder):
    dl = ImageDataModule(folder, image_size=32, batch_size=6).train_dataloader()
    for epoch in range(3): assert sorted(i for b in dl.batches(epoch) for i in b.index.tolist()) == sorted(dl.ids.tolist())
    assert dl.plan(0)[0].tolist() != dl.plan(1)[0].tolist()


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 17, 24])
def test_length_agrees_with_the_batches(n):
    cat = Catalog.from_builtin("FashionSample").subset("train")
    import dataclasses
    rows = dataclasses.replace(cat, frame=cat.frame.head(n))
    for shuffle in (True, False):
        dl = Loader(rows, preset("small", 28, (.5,), (.5,)), batch_size=8, shuffle=shuffle)
        sizes = [len(b) for b in dl]
        assert len(sizes) == len(dl) and sum(sizes) == n
        if shuffle and n > 1: assert min(sizes) > 1


def test_balanced_sampling_draws_classes_alike_and_varies_repeats():
    cat = Catalog.from_builtin("FashionSample")
    import dataclasses
    train = cat.frame[cat.frame["split"] == "train"]
    rare = train[train["label"] == "Bag"].index[50:]
    dm = ImageDataModule(dataclasses.replace(cat, frame=cat.frame.drop(index=rare)), batch_size=64, balanced_sampling=True)
    y = torch.cat([b.target for b in dm.train_dataloader().batches(0)])
    share = (y == dm.classes.index("Bag")).float().mean().item()
    assert .07 < share < .13
    dl = dm.train_dataloader()
    batches = list(dl.batches(0))
    ids, images = torch.cat([b.index for b in batches]), torch.cat([b.image for b in batches])
    again = [images[ids == i] for i in ids.unique() if (ids == i).sum() > 5]
    assert again and any(len(torch.unique(o.flatten(1), dim=0)) > 1 for o in again)       # the same image comes out different


@pytest.mark.parametrize("damage,reason", [(lambda b: b"", "empty"), (lambda b: b[:len(b)//2], "truncated"), (lambda b: b"<html>no</html>", "not_an_image")])
def test_unreadable_files_leave_with_a_reason(tmp_path, damage, reason):
    root = photo_folder(tmp_path/"d", n_train=30, n_val=5, size=40, classes=("brick", "coffee"))
    bad = root/"train"/"brick"/"003.jpg"
    bad.write_bytes(damage(bad.read_bytes()))
    dm = ImageDataModule(root, image_size=32).setup()
    row = dm.catalog.skipped[dm.catalog.skipped["path"].str.endswith("brick/003.jpg")]
    assert row["reason"].tolist() == [reason] and len(dm.catalog.subset("train")) == 59
    assert reason in repr(dm)
    assert not any("brick/003" in p for b in dm.train_dataloader() for p in b.path)
    if reason != "empty":       # an empty file is left out when the folder is read
        with pytest.raises(TooManyBadFilesError, match="brick/003.jpg"): ImageDataModule(root, image_size=32, on_bad="error").setup()


def test_too_many_bad_files_stop_before_training(tmp_path):
    root = photo_folder(tmp_path/"d", n_train=10, n_val=4, size=40, classes=("brick", "coffee"))
    for i in range(3): (root/"train"/"brick"/f"00{i}.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(TooManyBadFilesError, match="3 of 20"): ImageDataModule(root, image_size=32).train_dataloader()


def test_the_audit_is_remembered_until_a_file_changes(tmp_path, monkeypatch):
    root = photo_folder(tmp_path/"d", n_train=6, n_val=3, size=40, classes=("brick", "coffee"))
    cat = Catalog.from_folder(root)
    read = []
    class Counting(Images):
        def _read(self, i): read.append(i); return super()._read(i)
    assert audit(cat, Counting(cat)) == [] and len(read) == 18
    assert audit(cat, Counting(cat)) == [] and len(read) == 18
    (root/"val"/"brick"/"001.jpg").write_bytes(b"\xff\xd8\xff broken")
    assert len(audit(cat, Counting(cat))) == 1 and len(read) == 36


def test_a_file_that_vanishes_later_is_named(folder, tmp_path):
    root = photo_folder(tmp_path/"d", n_train=6, n_val=3, size=40, classes=("brick", "coffee"))
    dl = ImageDataModule(root, image_size=32, cache=None, num_workers=2).train_dataloader()
    (root/"train"/"coffee"/"004.jpg").unlink()
    with pytest.raises(ImageReadError, match="004.jpg"): list(dl)
    del dl


@pytest.mark.parametrize("budget,keep", [("ram", True), (10**9, True), (230_000, False), (1000, False), (None, False)])
def test_where_pixels_are_kept(folder, budget, keep):
    assert ImageDataModule(folder, image_size=32, cache=budget)._plan_cache().keep == keep


def test_kept_pixels_stay_within_the_estimate(folder, monkeypatch):
    monkeypatch.setattr("visionlab.data.module.free_space", lambda **kw: Free(500_000))
    dm = ImageDataModule(folder, image_size=32, cache="small-ram").setup()
    list(dm.train_dataloader()); list(dm.val_dataloader())
    assert 0 < dm._images.nbytes <= 400_000


@pytest.mark.parametrize("kw,error,text", [
    (dict(augmentation_preset="defualt"), UnknownOptionError, "default"), (dict(transform_backend="torchvison"), UnknownOptionError, "torchvision"), (dict(batch_size=0), ConfigError, "batch_size"),
    (dict(image_size=(3, 4, 5)), ConfigError, "image_size"), (dict(in_chans=2), ConfigError, "in_chans"), (dict(on_bad="ignore"), UnknownOptionError, "skip"),
    (dict(train_transforms=3), ConfigError, "callable"), (dict(resize="stretch"), UnknownOptionError, "squash"), (dict(val_split=1.5), ConfigError, "val_split")])
def test_wrong_settings_say_what_is_right(tmp_path, kw, error, text):
    root = photo_folder(tmp_path/"d", n_train=4, n_val=0, size=40, classes=("brick", "coffee"))
    with pytest.raises(error, match=text):
        dm = ImageDataModule(root, **kw)
        next(iter(dm.train_dataloader())), dm.eval_pipeline


def test_no_such_folder():
    with pytest.raises(UnknownOptionError, match="FashionMNIST"): ImageDataModule("FashionMNST")
    with pytest.raises(EmptyDatasetError, match="no/such"): ImageDataModule("no/such/folder")


def test_a_transform_that_fails_names_the_image(folder):
    def broken(image): raise ZeroDivisionError("half")
    for workers in (0, 2):
        with pytest.raises(DataError, match="ZeroDivisionError.*\n.*jpg"): list(ImageDataModule(folder, train_transforms=broken, num_workers=workers).train_dataloader())


def test_transforms_of_different_sizes_are_explained(folder):
    with pytest.raises(DataError, match="different sizes"): list(ImageDataModule(folder, train_transforms=lambda im: im.resize((20+random.randrange(9), 20)), num_workers=0).train_dataloader())


def test_a_transform_that_normalises_is_not_normalised_twice(folder):
    t = v2.Compose([v2.Resize((32, 32)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((.5,)*3, (.5,)*3)])
    x = next(iter(ImageDataModule(folder, eval_transforms=t, num_workers=0).val_dataloader())).image
    plain = next(iter(ImageDataModule(folder, image_size=32, resize="squash", normalize=((.5,)*3, (.5,)*3), num_workers=0).val_dataloader())).image
    assert (x-plain).abs().mean() < .02


def test_loaders_feed_any_loop(folder):
    dm = ImageDataModule(folder, image_size=(32, 48), batch_size=8)
    for x, y in dm.train_dataloader():
        assert x.dtype == torch.float32 and x.shape[1:] == (3, 32, 48) and y.dtype == torch.int64
    assert len(dm.predict_dataloader(folder/"val")) == 1
    batch = next(iter(dm.predict_dataloader([folder/"val"/"brick"/"000.jpg"])))
    assert batch.target is None and batch.image.shape == (1, 3, 32, 48)


def test_albumentations_pipelines_are_seeded_by_image(folder):
    import albumentations as A
    t = A.Compose([A.RandomResizedCrop(size=(32, 32)), A.OneOf([A.GaussianBlur(), A.GaussNoise()], p=.7), A.HorizontalFlip(p=.5)])
    def run(w): return digest(ImageDataModule(folder, image_size=32, batch_size=8, train_transforms=t, num_workers=w).train_dataloader())
    want = run(0)
    assert run(1) == want and run(3) == want


def test_random_crops_have_the_same_boxes_in_any_image_size_order():
    crop = RandomResizedCrop(scale=(.5, .6))
    for u in np.random.default_rng(0).random((200, 22)):
        top, left, h, w = crop.box(90, 400, u)
        assert 0 <= top <= 90-h and 0 <= left <= 400-w


def test_classes_in_a_notebook_cell_work_in_workers(folder):
    namespace = {}
    exec("class Invert:\n    def __call__(self, im):\n        from PIL import ImageOps\n        return ImageOps.invert(im).resize((16, 16))", namespace)
    dm = ImageDataModule(folder, train_transforms=namespace["Invert"](), num_workers=2)
    assert next(iter(dm.train_dataloader())).image.shape[2:] == (16, 16)


def test_pipelines_of_your_own(folder):
    p = Pipeline(Resize("pad"), (), size=40, name="mine")
    x = next(iter(ImageDataModule(folder, image_size=36, train_transforms=p).train_dataloader())).image
    assert x.shape[2:] == (36, 36)      # the module's size, so that training and validation agree


def test_sixteen_bit_and_alpha_come_out_the_same_in_loader_and_predict(tmp_path):
    for name in ("a", "b"):
        (tmp_path/"d"/name).mkdir(parents=True)
        ramp = np.linspace(0, 65535, 32*32).reshape(32, 32).astype(np.uint16)
        Image.fromarray(ramp).save(tmp_path/"d"/name/"deep.png")
        Image.fromarray(np.dstack([np.full((32, 32, 3), 200, np.uint8), np.full((32, 32), 128, np.uint8)])).save(tmp_path/"d"/name/"alpha.png")
    from visionlab.models.predictor import Predictor
    dm = ImageDataModule(tmp_path/"d", image_size=32, resize="squash", val_split=.5)
    predictor = Predictor(torch.nn.Identity(), dm.eval_pipeline, dm.classes)
    for b in dm.val_dataloader():
        for x, p in zip(b.image, b.path):
            framed = predictor._finish(predictor.prepare(next((tmp_path/"d").rglob(p.split("/")[-1])))[None])[0]
            assert torch.allclose(x, framed, atol=1e-6)


def test_no_validation_when_asked():
    dm = ImageDataModule("fashion-sample", val_split=0)
    assert dm.catalog.splits == ["train", "test"] and len(dm.catalog.subset("train")) == 6000


def test_a_model_gives_its_size_and_statistics_to_a_given_pipeline_too(folder):
    from visionlab.models.registry import config_for
    p = preset("light", 28).edit(name="tuned")
    dm = ImageDataModule(folder, train_transforms=p).adapt(config_for("vit_tiny_patch16_224", 3))
    assert dm.train_pipeline.size == dm.eval_pipeline.size == (224, 224)
    assert dm.train_pipeline.mean == dm.eval_pipeline.mean == (.5, .5, .5)


def test_shrunk_pixels_in_memory_do_not_change_an_answer(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path/"d"/name).mkdir(parents=True)
        for i in range(8): Image.fromarray(rng.integers(0, 255, (300, 400, 3), dtype=np.uint8)).resize((800, 600), Image.BICUBIC).save(tmp_path/"d"/name/f"{i}.jpg")
    dm = ImageDataModule(tmp_path/"d", image_size=64, cache="small-ram", val_split=.5)
    monkeypatch.setattr("visionlab.data.module.free_space", lambda **kw: Free(2_500_000))
    dm.setup()
    assert "shorter side" in dm.cache_plan.reason
    from visionlab.models.predictor import Predictor
    p = Predictor(torch.nn.Identity(), dm.eval_pipeline, dm.classes)
    batch = next(iter(dm.val_dataloader()))
    for x, path in zip(batch.image, batch.path): assert torch.allclose(x, p._finish(p.prepare(tmp_path/"d"/path)[None])[0], atol=1e-6)


def test_settings_changed_later_reach_the_next_loader(folder):
    dm = ImageDataModule(folder, image_size=32, batch_size=8)
    assert len(dm.train_dataloader()) == 5
    dm.batch_size = 20
    assert len(dm.train_dataloader()) == 2


def test_the_limit_of_bad_files_can_be_raised(tmp_path):
    root = photo_folder(tmp_path/"d", n_train=10, n_val=4, size=40, classes=("brick", "coffee"))
    for i in range(3): (root/"train"/"brick"/f"00{i}.jpg").write_bytes(b"\xff\xd8\xff nothing")
    assert len(ImageDataModule(root, image_size=32, max_bad=.3).setup().catalog.subset("train")) == 17


def test_notes_of_the_catalog_are_shown(tmp_path):
    root = photo_folder(tmp_path/"d", n_train=6, n_val=3, size=40, classes=("brick", "coffee"))
    for f in (root/"val"/"coffee").iterdir(): f.unlink()
    assert "coffee" in "".join(v for k, v in ImageDataModule(root, image_size=32).facts() if k == "Note")


def test_training_images_without_a_label_are_listed_and_left_out(folder):
    import dataclasses
    cat = Catalog.from_folder(folder)
    blank = cat.frame.index[cat.frame["split"] == "train"][:4]
    dm = ImageDataModule(dataclasses.replace(cat, frame=cat.frame.assign(label=cat.frame["label"].mask(cat.frame.index.isin(blank), None))), image_size=32, batch_size=8)
    assert "have no label" in "".join(v for k, v in dm.facts() if k == "Note")
    assert len(dm.loader("train").ids) + len(dm.loader("val").ids) == len(cat)-4
    assert all((b.target >= 0).all() for b in dm.train_dataloader())


@pytest.mark.parametrize("flags", [[True, False], ["True", "False"], [1, 0]])
def test_the_column_is_valid_of_a_table_is_used(folder, flags):
    import pandas as pd
    files = sorted((folder/"train").rglob("*.jpg"))
    df = pd.DataFrame(dict(path=[str(f) for f in files], label=[f.parent.name for f in files], is_valid=[flags[i % 3 > 0] for i in range(len(files))]))
    dm = ImageDataModule(df, image_size=32)
    assert sorted(dm.catalog.subset("val").frame["path"].map(lambda o: o.split("/")[-2:]).tolist()) == sorted(str(f).split("/")[-2:] for i, f in enumerate(files) if i % 3 == 0)


@pytest.mark.parametrize("resize", [None, "squash"])
def test_no_augmentation_is_what_evaluation_does(resize):
    "A preset that leaves nothing to chance must not cut training images otherwise than test images: accuracy on Fashion-MNIST fell from .91 to .84"
    dm = ImageDataModule("FashionSample", augmentation_preset="none", resize=resize)
    assert dm.train_pipeline.frame == dm.eval_pipeline.frame and not dm.train_pipeline.ops
    (a, b) = (next(iter(dl)) for dl in (dm.train_dataloader(), dm.val_dataloader()))
    for batch in (a, b):
        pixels = torch.from_numpy(dm.catalog.pixels[batch.index.numpy()]).permute(0, 3, 1, 2)/255
        assert torch.allclose(dm.denormalize(batch.image), pixels, atol=1e-5)


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_one_bad_file_does_not_cost_the_answers_to_the_others(folder, tmp_path, kind):
    files = []
    for i in range(6):
        files.append(tmp_path/f"{i}.png")
        Image.fromarray(np.full((40, 40, 3), 40*i, np.uint8)).save(files[-1])
    files[0].write_bytes(b"no image")
    files[3].write_bytes(files[3].read_bytes()[:60])
    dm = ImageDataModule(folder, image_size=32, num_workers=0)
    with pytest.warns(UserWarning, match="2 of 6 files are left out"): loader = dm.predict_dataloader(tmp_path if kind == "folder" else files)
    assert sum(len(b) for b in loader) == 4
    for name in files: name.write_bytes(b"no image")
    with pytest.raises(EmptyDatasetError): dm.predict_dataloader(files)
    with pytest.raises(TooManyBadFilesError): ImageDataModule(folder, image_size=32, num_workers=0, on_bad="error").predict_dataloader(files)


def test_random_evaluation_and_two_normalisations_are_said(folder):
    turn = v2.Compose([v2.Resize((32, 32)), v2.RandomHorizontalFlip(), v2.ToTensor(), v2.Normalize((.5,)*3, (.5,)*3)])
    with pytest.warns(UserWarning, match="HorizontalFlip") as said: ImageDataModule(folder, image_size=32, eval_transforms=turn, cache=None).setup()
    assert any("evaluation by mean (0.5, 0.5, 0.5)" in str(o.message) for o in said)


# ---- what a transform of one's own does is what the module says

HALF = (.5, .5, .5)


def plain(image):
    "An evaluation that visionlab cannot read."
    return v2.functional.to_dtype(v2.functional.to_image(image.resize((40, 24))), torch.float32, scale=True)


class Unread:
    "A pipeline behind a call of its own, with its normalisation inside."
    def __init__(self, *extra): self.transforms = [v2.ToImage(), v2.Resize((24, 40)), *extra, v2.ToDtype(torch.float32, scale=True), v2.Normalize(HALF, HALF)]
    def __call__(self, image):
        for t in self.transforms: image = t(image)
        return image


@pytest.mark.parametrize("transform,mean", [
    (v2.Compose([v2.Resize((24, 40)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(HALF, HALF)]), HALF),
    (Unread(), HALF), (plain, (.485, .456, .406))], ids=["read", "unread", "function"])
def test_the_module_describes_the_evaluation_that_runs(folder, transform, mean):
    dm = ImageDataModule(folder, image_size=32, train_transforms=transform, eval_transforms=transform, num_workers=0, cache=None)
    assert dm.image_size == (24, 40) and dm.stats[0] == pytest.approx(mean)
    said = repr(dm)
    assert "24 × 40" in said and f"mean {mean[0]:.3g}" in said and ("of your eval_transforms" in said) == (mean is HALF)
    batch = next(iter(dm.val_dataloader()))
    assert batch.image.shape[-2:] == dm.image_size
    back = dm.denormalize(batch.image)
    assert back.min() >= -1e-5 and back.max() <= 1 + 1e-5 and back.std() > .01
    want = v2.functional.to_dtype(v2.functional.resize(torch.from_numpy(load_image(folder/batch.path[0])).permute(2, 0, 1), (24, 40), antialias=True), torch.float32, scale=True)
    assert (back[0] - want).abs().mean() < .03


@pytest.mark.parametrize("transform,name", [
    (Unread(v2.RandomHorizontalFlip()), "RandomHorizontalFlip"), (lambda image: plain(image) + .1*torch.rand(3, 24, 40), "<lambda>")], ids=["step", "function"])
def test_evaluation_that_draws_inside_is_warned_of(folder, transform, name):
    with pytest.warns(UserWarning, match=f"draw at random .*{name}"):
        ImageDataModule(folder, image_size=32, eval_transforms=transform, num_workers=0, cache=None).setup()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageDataModule(folder, image_size=32, train_transforms=Unread(), eval_transforms=Unread(), num_workers=0, cache=None, on_leak="ignore").setup()


def test_normalising_differently_inside_is_warned_of(folder):
    with pytest.warns(UserWarning, match="evaluation by mean"):
        ImageDataModule(folder, image_size=32, train_transforms=Unread(), num_workers=0, cache=None).setup()
