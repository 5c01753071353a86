"The same presets through visionlab, torchvision and albumentations; users' pipelines read, refused or run as they are."
import importlib.metadata
import itertools
import random
import warnings
from functools import partial

import albumentations as A
import numpy as np
import pytest
import torch
import torchvision.transforms as v1
from albumentations.pytorch import ToTensorV2
from photos import photo_folder
from PIL import Image
from skimage import data as photos
from torchvision.transforms import v2

from visionlab.transforms.interop import check_arguments, import_albumentations, to_albumentations, to_torchvision
from visionlab.transforms.augment import BatchAugment
from visionlab.core.errors import ConfigError, MissingDependencyError, UnknownOptionError
from visionlab.core.randomness import key, uniforms
from visionlab.data.module import ImageDataModule
from visionlab.transforms.presets import eval_pipeline, list_presets, preset, PRESETS
from visionlab.transforms.reading import read_transform
from visionlab.transforms.ops import (
    Affine, AugMix, AutoAugment, BrightnessContrast, CoarseDropout, ColorJitter, GaussianBlur, GaussNoise, Grayscale,
    HorizontalFlip, MotionBlur, OneOf, PadCrop, Perspective, RandAugment, RandomErasing, RandomResizedCrop, Resize,
    resize, Rotate90, TrivialAugmentWide, VerticalFlip)
from visionlab.transforms.custom import Custom, seed_all
from visionlab.transforms.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("one_thread")
IN = (.485, .456, .406), (.229, .224, .225)
FLOAT = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IN)]
PHOTO = resize(photos.chelsea()[40:260, 60:390], (60, 90))


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return photo_folder(tmp_path_factory.mktemp("photos"), n_train=12, n_val=4, size=48, classes=("brick", "coffee"))


# ---- one law, three roads

def summaries(images):
    "Means and spreads of each channel, and the mean difference of neighbours, for each image"
    x = torch.stack(list(images)).float()
    rough = (x[...,1:]-x[...,:-1]).abs().mean((1, 2, 3))[:,None]
    return torch.cat([x.mean((2, 3)), x.std((2, 3)), rough], 1)

def ours(p, n, photo=PHOTO):
    frames = np.stack([p.frame(photo, p.size, u) for u in uniforms(5, 0, range(n), max(1, p.frame.n_random), "frame")])
    return BatchAugment(p, 5)(torch.from_numpy(frames).permute(0, 3, 1, 2), np.arange(n), 0)

def by_torchvision(p, n, photo=PHOTO):
    torch.manual_seed(5)
    t,x = to_torchvision(p), torch.from_numpy(photo).permute(2, 0, 1)
    return [t(x) for _ in range(n)]

def by_albumentations(p, n, photo=PHOTO):
    t = to_albumentations(p)
    t.set_random_state(np.random.default_rng(5), random.Random(5))
    return [t(image=photo)["image"] for _ in range(n)]

def alike(a, b, rough=.05):
    "Compare two samples of images: means within 4.5 standard errors and 1.5 % of a standard deviation, spreads within 4.5 and 8 %"
    a,b = summaries(a), summaries(b)
    error = 4.5*(a.var(0)/len(a) + b.var(0)/len(b)).sqrt() + torch.tensor([.015]*6 + [rough*a[:,6].mean()])
    assert ((a.mean(0)-b.mean(0)).abs() < error).all(), (a.mean(0), b.mean(0), error)
    kurtosis = lambda x: ((x-x.mean(0))**4).mean(0)/(x.var(0)**2+1e-9)
    ratio = ((a.std(0)+.01)/(b.std(0)+.01)).log().abs()
    assert (ratio < 4.5*((kurtosis(a)/len(a)+kurtosis(b)/len(b))/4).sqrt() + .08).all(), ratio


N = 240
@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_one_distribution_on_our_road_and_torchvisions(name):
    p = preset(name, 32)
    alike(ours(p, N), by_torchvision(p, N))


@pytest.mark.parametrize("name", list_presets("albumentations"))
def test_presets_have_one_distribution_on_our_road_and_albumentations(name):
    "OpenCV's resize and blur weigh pixels a little differently, which shows in how rough a picture is"
    p = preset(name, 32)
    alike(ours(p, N), by_albumentations(p, N), rough=.12)


# ---- draws that do not depend on each other

N_JOINT = 1500
CORNERS = np.zeros((8, 8, 3), np.uint8)
CORNERS[0, 0], CORNERS[0, -1], CORNERS[-1, 0], CORNERS[-1, -1] = 10, 80, 150, 220


def keyed(transform, n=N_JOINT, image=CORNERS):
    "Run a user's transform for n images as the loader does, each seeded by its own key."
    custom = Custom(transform)
    for i in range(n):
        custom.seed(key("custom", 0, 0, i))
        yield custom.transform(image=image)["image"] if isinstance(transform, A.BaseCompose) else custom(image)


def by_itself(transform, n=N_JOINT):
    "Run it as albumentations does, which draws all from one sequence."
    transform.set_random_state(np.random.default_rng(1), random.Random(1))
    for _ in range(n): yield transform(image=CORNERS)["image"]


def corner_counts(images):
    "Count which of the four corners came to the top left: none mirrored, one way, the other, both."
    seen = [int(o[0, 0, 0]) for o in images]
    return np.array([seen.count(o) for o in (10, 80, 150, 220)])


COMPOSED = dict(
    compose=lambda: A.Compose([A.HorizontalFlip(p=.5), A.VerticalFlip(p=.5)]),
    nested=lambda: A.Compose([A.Compose([A.HorizontalFlip(p=.5)]), A.Compose([A.VerticalFlip(p=.5)])]),
    sequential=lambda: A.Compose([A.Sequential([A.HorizontalFlip(p=.5), A.VerticalFlip(p=.5)], p=1)]),
    one_of=lambda: A.Compose([A.OneOf([A.HorizontalFlip(p=1), A.NoOp(p=1)], p=1), A.OneOf([A.VerticalFlip(p=1), A.NoOp(p=1)], p=1)]),
    some_of=lambda: A.Compose([A.SomeOf([A.HorizontalFlip(p=.5), A.VerticalFlip(p=.5)], n=2, p=1)]),
    sometimes=lambda: A.Compose([A.HorizontalFlip(p=.5), A.Sequential([A.VerticalFlip(p=1)], p=.5)]))


@pytest.mark.parametrize("name", COMPOSED)
def test_draws_of_albumentations_are_independent(name):
    "Each of the four combinations of two flips is met a quarter of the time, as the package alone has it"
    for images in (keyed(COMPOSED[name]()), by_itself(COMPOSED[name]())):
        counts = corner_counts(images)
        assert len(counts) == 4 and (np.abs(counts - N_JOINT/4) < 4.5*np.sqrt(N_JOINT*3/16)).all(), (name, counts)


def test_separate_transforms_of_one_function_are_independent():
    first, second = A.HorizontalFlip(p=.5), A.VerticalFlip(p=.5)

    def both(image): return second(image=first(image=np.asarray(image))["image"])["image"]
    counts = corner_counts(o.permute(1, 2, 0).numpy() for o in keyed(both))
    assert (np.abs(counts - N_JOINT/4) < 4.5*np.sqrt(N_JOINT*3/16)).all(), counts


@pytest.mark.parametrize("held", [random.Random(0), np.random.RandomState(0), torch.Generator()], ids=["python", "numpy", "torch"])
def test_a_generator_of_ones_own_does_not_repeat_the_global_one(held):
    pairs = []

    def transform(image):
        own = torch.rand((), generator=held).item() if isinstance(held, torch.Generator) else held.random() if isinstance(held, random.Random) else held.random_sample()
        pairs.append((own, {"Random": random.random, "RandomState": np.random.random_sample, "Generator": lambda: torch.rand(()).item()}[type(held).__name__]()))
        return image
    list(keyed(transform, 400))
    assert abs(np.corrcoef(np.array(pairs).T)[0, 1]) < .2


def test_the_same_key_draws_the_same_and_other_keys_others():
    custom = Custom(COMPOSED["one_of"]())
    seen = []
    for seed in (1, 2, 1, 3, 2):
        custom.seed(seed)
        seen.append([int(custom.transform(image=CORNERS)["image"][0, 0, 0]) for _ in range(20)])
    assert seen[0] == seen[2] and seen[1] == seen[4] and seen[0] != seen[1] != seen[3]


def test_trying_a_transform_leaves_its_generators_as_they_were():
    mine = COMPOSED["nested"]()
    mine.set_random_state(np.random.default_rng(4), random.Random(4))
    want = [mine(image=CORNERS)["image"][0, 0, 0] for _ in range(30)]
    mine.set_random_state(np.random.default_rng(4), random.Random(4))
    Custom(mine).judged([CORNERS])
    assert [mine(image=CORNERS)["image"][0, 0, 0] for _ in range(30)] == want


def decoded(folder, name, backend, epochs=40, **kwargs):
    "Draw batches of a preset: pixels of every image in every epoch."
    dm = ImageDataModule(folder, image_size=32, batch_size=24, augmentation_preset=name, transform_backend=backend, num_workers=0, on_leak="ignore", **kwargs)
    loader = dm.train_dataloader()
    return torch.cat([torch.cat([b.image[b.index.argsort()] for b in loader.batches(e)]) for e in range(epochs)])


@pytest.mark.parametrize("backend", ["torchvision", "albumentations"])
def test_mirroring_tells_nothing_of_the_crop(tmp_path, backend):
    "A ramp from left to right: its slope says how much was cut, its sign whether it was mirrored"
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    for label in "ab":
        (tmp_path/"train"/label).mkdir(parents=True)
        for i in range(12): Image.fromarray(np.clip(ramp.astype(int) + i - 6, 0, 255).astype(np.uint8)).save(tmp_path/"train"/label/f"{i}.png")
    x = decoded(tmp_path, "light", backend)[:, 0].mean(1)
    slope = x[:, -4:].mean(1) - x[:, :4].mean(1)
    mirrored, width = (slope < 0).float(), slope.abs()
    assert .42 < mirrored.mean() < .58
    assert abs(np.corrcoef(mirrored, width)[0, 1]) < 4.5/np.sqrt(len(x))


@pytest.mark.parametrize("backend", ["torchvision", "albumentations"])
def test_strong_leaves_few_images_as_they_are(folder, backend):
    "By chance alone: not mirrored .5, not turned .5, not blurred or noisy, colors as they are .2, no hole .7"
    p = preset("strong", 32)
    alone = np.prod([1 - o.p for o in p.ops])
    whole = Pipeline(Resize("squash"), p.ops, (32, 32))
    photo = resize(PHOTO, (32, 32))
    if backend == "albumentations":
        images = [torch.from_numpy(o) for o in keyed(to_albumentations(whole, normalize=False), image=photo)]
        still = np.mean([np.array_equal(o, photo) for o in images])
    else:
        out = BatchAugment(whole, 0).augment(torch.from_numpy(photo).permute(2, 0, 1)[None].repeat(N_JOINT, 1, 1, 1), np.arange(N_JOINT))
        same = (out if out.dtype == torch.uint8 else (out*255).round().byte()) == torch.from_numpy(photo).permute(2, 0, 1)
        still = same.flatten(1).all(1).float().mean().item()
    assert abs(still - alone) < 4.5*np.sqrt(alone*(1-alone)/N_JOINT), (still, alone)


class Numbers:
    "Give prepared numbers where a library draws"
    def __init__(self, u): self.u = list(u)
    def uniform(self, low, high): return low + self.u.pop(0)*(high-low)
    def random(self): return self.u.pop(0)


def test_albumentations_cuts_the_same_box_for_the_same_numbers():
    crop,same = A.RandomResizedCrop(size=(32, 32)), 0
    for u in uniforms(0, 0, range(200), 22):
        crop.py_random = Numbers([*u[:2], u[20], u[21]])
        box = RandomResizedCrop().box(60, 90, u)
        try: x0,y0,x1,y1 = crop.get_params_dependent_on_data(dict(shape=(60, 90, 3)), {})["crop_coords"]
        except IndexError: continue                # its first try did not fit, and it draws the place last
        assert (y0, x0, y1-y0, x1-x0) == box
        same += 1
    assert same > 100


def test_torchvision_cuts_the_same_box_for_the_same_numbers(monkeypatch):
    import torchvision.transforms.v2._geometry as geometry
    class Torch:
        def __init__(self, u): self.numbers = Numbers(u)
        def __getattr__(self, name): return getattr(torch, name)
        def empty(self, n): return self
        def uniform_(self, low, high): return torch.tensor([self.numbers.uniform(low, high)], dtype=torch.float64)
        def randint(self, low, high, size): return torch.tensor([int(low + self.numbers.random()*(high-low))])
    crop,image,same = v2.RandomResizedCrop(32), torch.empty(3, 60, 90), 0
    for u in uniforms(0, 0, range(200), 22):
        monkeypatch.setattr(geometry, "torch", Torch([*u[:2], u[20], u[21]]))
        try: got = crop.make_params([image])
        except IndexError: continue
        assert (got["top"], got["left"], got["height"], got["width"]) == RandomResizedCrop().box(60, 90, u)
        same += 1
    assert same > 100


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
def test_evaluation_is_the_same_picture(mode):
    p = eval_pipeline((40, 40), mode)
    want = BatchAugment(p)(torch.from_numpy(p.frame(PHOTO, p.size)).permute(2, 0, 1)[None])[0]
    for image in (Image.fromarray(PHOTO), torch.from_numpy(PHOTO).permute(2, 0, 1)): assert (to_torchvision(p)(image)-want).abs().mean() < .01
    assert (to_albumentations(p)(image=PHOTO)["image"]-want).abs().mean() < .15


def test_odd_sizes_and_options_are_written_too():
    x = torch.from_numpy(PHOTO).permute(2, 0, 1)
    p = Pipeline(Resize("crop", .9), (Affine((-10, 20), (.1, 0), (.9, 1.), (-5, 5, 0, 3), .5, "nearest", 7), Perspective(.3), GaussianBlur((5, 5), p=.5), RandomErasing(1., value=(1., 2., 3.)), Grayscale(1.)), (40, 56))
    assert to_torchvision(p)(x).shape == (3, 40, 56)
    with pytest.raises(ConfigError, match="leans after turning"): to_albumentations(p.edit(Perspective=None))
    t = to_albumentations(p.edit(Perspective=None, Affine=dict(shear=(0., 0.))))
    assert t(image=PHOTO)["image"].shape == (3, 40, 56)
    turn = next(o for o in to_torchvision(p).transforms if "RandomApply" in repr(o)).transforms[0]
    assert list(turn.degrees) == [-20, 10] and list(turn.shear) == [-5, 5, -3, 0]


def test_what_albumentations_lacks_names_the_backend_that_has_it(folder):
    for name in ("autoaugment", "randaugment", "trivialaugment", "augmix"):
        with pytest.raises(ConfigError, match=r"albumentations has no .*\n.*'%s'.*\n.*transform_backend='torchvision'" % name): to_albumentations(preset(name))
    with pytest.raises(ConfigError, match="transform_backend='torchvision'"): ImageDataModule(folder, transform_backend="albumentations", augmentation_preset="augmix").train_pipeline
    with pytest.raises(UnknownOptionError, match="Did you mean 'albumentations'"): ImageDataModule(folder, transform_backend="albumentation")


def test_the_hue_stays_and_sizes_are_pairs():
    t = to_albumentations(preset("default", (40, 56)))
    assert t.transforms[0].size == (40, 56) and t.transforms[2].hue == (0., 0.) and t.transforms[2].p == 1
    red = np.zeros((64, 64, 3), np.uint8); red[...,0] = 200
    out = [to_albumentations(preset("default", 32, (0.,)*3, (1.,)*3))(image=red)["image"] for _ in range(20)]
    assert all(o[0].min() > 3*o[1:].max() for o in out)


# ---- the albumentations backend in a data module

def batches(folder, epochs=2, **kw):
    dl = ImageDataModule(folder, image_size=32, batch_size=8, seed=3, **kw).train_dataloader()
    return torch.cat([b.image for e in range(epochs) for b in dl.batches(e)])

@pytest.mark.parametrize("name", ["default", "strong"])
def test_albumentations_draws_by_image_and_epoch_alone(folder, name):
    kw = dict(transform_backend="albumentations", augmentation_preset=name)
    want = batches(folder, num_workers=0, **kw)
    assert torch.equal(want, batches(folder, num_workers=2, **kw))
    n = len(want)//2
    assert not any(torch.equal(a, b) for i,a in enumerate(want) for b in want[:i])          # every image of both epochs looks different
    assert n == 24 and want.mean().abs() < 1.5


def test_every_preset_of_the_backend_trains_in_grey_as_in_colour(folder):
    for name in list_presets("albumentations"):
        for chans in (1, 3):
            b = next(ImageDataModule(folder, image_size=24, batch_size=4, num_workers=0, in_chans=chans, transform_backend="albumentations", augmentation_preset=name).train_dataloader().batches(0))
            assert b.image.shape[1:] == (chans, 24, 24) and b.image.isfinite().all()


def test_the_albumentations_backend_normalises_once(folder):
    kw = dict(image_size=32, num_workers=0, batch_size=24, augmentation_preset="none")
    a,b = (next(ImageDataModule(folder, transform_backend=o, **kw).train_dataloader().batches(0)) for o in ("torchvision", "albumentations"))
    assert torch.equal(a.target, b.target) and (a.image-b.image).abs().mean() < .12


# ---- what is installed as albumentations

def test_the_agpl_successor_is_refused_for_presets_and_allowed_for_own_pipelines(monkeypatch, folder):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.5.1" if name == "albumentationsx" else version(name))
    for ask in (import_albumentations, lambda: to_albumentations(preset("light")), lambda: ImageDataModule(folder, transform_backend="albumentations")):
        with pytest.raises(MissingDependencyError, match="(?s)AGPL.*pip install albumentations==2.0.8"): ask()
    mine = A.Compose([A.RandomCrop(32, 32), A.HorizontalFlip(p=.5), A.Normalize(), ToTensorV2()])
    p = read_transform(mine)
    assert p.frame.transform is mine and not p.ops                     # its words may mean something else: nothing is read
    assert batches(folder, 1, train_transforms=mine, num_workers=0).shape == (24, 3, 32, 32)


def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(A, "__version__", "1.4.23")
    with pytest.raises(MissingDependencyError, match="1.4.23"): import_albumentations()


def test_nothing_in_the_environment_changes(monkeypatch):
    import os
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE", raising=False)
    import_albumentations()
    assert "NO_ALBUMENTATIONS_UPDATE" not in os.environ


# ---- arguments that were not understood

@pytest.mark.parametrize("make,said", [(lambda: A.GaussNoise(var_limit=(10, 50)), "var_limit is now std_range"), (lambda: A.CoarseDropout(max_holes=8, max_height=8), "max_holes is now num_holes_range; max_height is now hole_height_range"),
    (lambda: A.ImageCompression(quality_lower=50), "quality_range"), (lambda: A.PadIfNeeded(32, 32, value=0), "value is now fill"), (lambda: A.Affine(cval=0), "cval is now fill"),
    (lambda: A.Blur(blur_limits=3), "did you mean blur_limit"), (lambda: A.HorizontalFlip(always_apply=True), "p=1")])
def test_arguments_that_albumentations_ignored_are_errors(folder, make, said):
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        t = A.Compose([A.Resize(32, 32), A.OneOf([make(), A.Blur(p=1)]), ToTensorV2()])
    for ask in (lambda: check_arguments(t), lambda: ImageDataModule(folder, train_transforms=t).train_pipeline, lambda: ImageDataModule(folder, eval_transforms=t).eval_pipeline):
        with pytest.raises(ConfigError, match=said): ask()


# ---- users' pipelines

WORDS = [
    (v2.RandomHorizontalFlip(.3), HorizontalFlip(.3)), (v1.RandomVerticalFlip(.3), VerticalFlip(.3)), (v1.ColorJitter(.4, .3, .2, .1), ColorJitter(.4, .3, .2, .1)), (v2.ColorJitter((.5, 2.)), ColorJitter((.5, 2.))),
    (v2.RandomGrayscale(.2), Grayscale(.2)), (v1.Grayscale(3), Grayscale(1.)), (v2.GaussianBlur(5, (.1, 1.)), GaussianBlur((5, 5), (.1, 1.), 1.)), (v1.RandomApply([v1.GaussianBlur(3)], .4), GaussianBlur((3, 3), (.1, 2.), .4)),
    (v2.RandomApply([v2.RandAugment()], .4), OneOf((RandAugment(),), .4)), (v2.RandomChoice([v2.RandomHorizontalFlip(1.), v2.RandomGrayscale(1.)]), OneOf((HorizontalFlip(1.), Grayscale(1.)))),
    (v2.RandomAffine((-10, 20), (.1, .2), (.8, 1.), 5), Affine((-20., 10.), (.1, .2), (.8, 1.), (-5., 5.), 1., "nearest")), (v1.RandomRotation(15), Affine((-15., 15.), interpolation="nearest")),
    (v2.RandomPerspective(.3, .6), Perspective(.3, .6)), (v2.AutoAugment(v2.AutoAugmentPolicy.SVHN), AutoAugment("svhn")), (v1.RandAugment(1, 5), RandAugment(1, 5)), (v2.TrivialAugmentWide(), TrivialAugmentWide()),
    (v2.AugMix(2), AugMix(2)), (v2.RandomCrop(32, padding=4, padding_mode="reflect"), PadCrop(4)),
]
IDS = [type(o).__name__ for o,_ in WORDS]

@pytest.mark.parametrize("theirs,op", WORDS, ids=IDS)
def test_words_of_torchvision_are_read(theirs, op):
    p = read_transform(v2.Compose([v2.RandomResizedCrop(32), theirs, *FLOAT]))
    got = p.ops[0]
    assert type(got) is type(op) and p.frame == RandomResizedCrop() and p.size == (32, 32)
    for k,v in vars(op).items():
        flat = lambda o: [x for v in o for x in flat(v)] if isinstance(o, (tuple, list)) else [o]
        a,b = flat(getattr(got, k)), flat(v)
        assert all(x == y for x,y in zip(a, b)) and not any(a[len(b):]), k


@pytest.mark.parametrize("theirs,op", [o for o in WORDS if not isinstance(o[1], PadCrop)], ids=[o for o in IDS if o != "RandomCrop"])
def test_what_is_read_keeps_its_law(theirs, op):
    t = v2.Compose([v2.RandomResizedCrop(32, (.5, 1.)), theirs, *FLOAT])
    torch.manual_seed(0)
    image = Image.fromarray(PHOTO)
    alike(ours(read_transform(t), 200), [torch.as_tensor(t(image)) for _ in range(200)])


AL_WORDS = [
    (A.HorizontalFlip(p=.3), HorizontalFlip(.3)), (A.RandomRotate90(p=.4), Rotate90(.4)), (A.Affine(rotate=(-10, 10), translate_percent=(-.1, .1), scale=(.8, 1.2), p=.6), Affine((-10, 10), (.1, .1), (.8, 1.2), (0., 0.), .6, keep_ratio=False)),
    (A.RandomBrightnessContrast(p=.3), BrightnessContrast(.2, .2, .3)), (A.GaussianBlur((3, 5), p=.3), GaussianBlur((3, 5), (.5, 3.), .3)), (A.MotionBlur((3, 7), p=.6), MotionBlur((3, 7), .6)),
    (A.GaussNoise((.1, .2), p=.6), GaussNoise((.1, .2), .6)), (A.ColorJitter(p=.6), ColorJitter(.2, .2, .2, .5, .6)), (A.ToGray(p=.4), Grayscale(.4)), (A.CoarseDropout(p=.6), CoarseDropout((1, 2), (.1, .2), (.1, .2), .6)),
    (A.OneOf([A.HorizontalFlip(p=.5), A.ToGray(p=.5)], p=.6), OneOf((HorizontalFlip(1.), Grayscale(1.)), .6)),
]

@pytest.mark.parametrize("theirs,op", AL_WORDS, ids=[type(o).__name__ for o,_ in AL_WORDS])
def test_words_of_albumentations_are_read_and_keep_their_law(theirs, op):
    t = A.Compose([A.RandomResizedCrop((32, 32), (.5, 1.), area_for_downscale="image"), theirs, A.Normalize(), ToTensorV2()])
    p = read_transform(t)
    assert (p.frame, p.ops, (p.mean, p.std)) == (RandomResizedCrop((.5, 1.)), (op,), IN)
    t.set_random_state(np.random.default_rng(1), random.Random(1))
    alike(ours(p, 200), [t(image=PHOTO)["image"] for _ in range(200)], rough=.12)


@pytest.mark.parametrize("theirs", [v2.RandomSolarize(.5), v2.RandomAffine(10, center=(0, 0)), v2.RandomRotation(10, expand=True), v2.GaussianBlur((3, 5)), v2.Grayscale(1), v2.RandomErasing(value="random"),
    v2.RandAugment(fill=128), v2.RandomApply([v2.RandomHorizontalFlip(), v2.RandomGrayscale()]), v2.Lambda(lambda x: x), lambda x: x, v2.Resize(40), v2.RandomCrop(24), v2.CenterCrop(24)], ids=repr)
def test_what_is_not_known_stays_where_it_was(theirs):
    t = v2.Compose([v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), theirs, v2.RandomVerticalFlip(), *FLOAT])
    p = read_transform(t)
    assert p.frame.transform.transforms == t.transforms[:3] and p.ops == (VerticalFlip(),) and p.mean == IN[0] and not p.frame.normalises
    assert p.plan().where("VerticalFlip") == "device" and p.plan().rows[1][2]


@pytest.mark.parametrize("head", [[], [v2.RandomHorizontalFlip()], [v2.ToImage(), v2.ColorJitter(.1)], [v2.Resize(40), v2.RandomCrop(32)], [v2.Resize(32)], [v2.Resize((40, 40)), v2.CenterCrop(32)]], ids=str)
def test_without_a_frame_at_the_start_the_beginning_stays(head):
    p = read_transform(v2.Compose([*head, v2.RandomVerticalFlip(), *FLOAT]))
    assert isinstance(p.frame, Custom) and p.frame.why
    assert BatchAugment(p)(p.frame(resize(PHOTO, (32, 32)))[None], np.arange(1)).shape[1] == 3


def test_frames_of_evaluation():
    for t,frame in ((v2.Compose([v2.Resize(256), v2.CenterCrop(224)]), Resize("crop", .875)), (v1.Compose([v1.Resize(235, v1.InterpolationMode.BICUBIC), v1.CenterCrop(224)]), None), (v2.Resize((224, 224)), Resize("squash"))):
        p = read_transform(v2.Compose([t, *FLOAT]))
        assert p.size == (224, 224) and (frame is None or p.frame == frame)
        want = v2.Compose([t, v2.PILToTensor()])(Image.fromarray(photos.chelsea()))
        assert (torch.from_numpy(p.frame(photos.chelsea(), p.size)).permute(2, 0, 1).int()-want.int()).abs().float().mean() < .1


def test_erasing_keeps_what_it_covers_with():
    for step,at,value in ((v2.RandomErasing(1., value=1.), "end", 1.), (v2.RandomErasing(1., value=0), "unit", tuple(-m/s for m,s in zip(*IN))), (v2.RandomErasing(1., value=(0, 128, 255)), "bytes", None)):
        tail = dict(end=[*FLOAT, step], unit=[*FLOAT[:2], step, FLOAT[2]], bytes=[FLOAT[0], step, *FLOAT[1:]])[at]
        t = v2.Compose([v2.Resize((32, 32)), *tail])
        p = read_transform(t)
        assert len(p.ops) == 1 and (value is None or p.ops[0].value == pytest.approx(value))
        alike(ours(p, 200), [torch.as_tensor(t(Image.fromarray(PHOTO))) for _ in range(200)])


def test_flips_after_normalising_move_and_colours_there_do_not():
    p = read_transform(v2.Compose([v2.RandomResizedCrop(32), *FLOAT, v2.RandomHorizontalFlip()]))
    assert p.ops == (HorizontalFlip(),) and p.frame == RandomResizedCrop()
    p = read_transform(v2.Compose([v2.RandomResizedCrop(32), *FLOAT, v2.RandomAffine(10)]))
    assert isinstance(p.frame, Custom) and p.frame.normalises and not p.ops


def test_other_things_than_lists_of_steps():
    unknown = A.Compose([A.RandomResizedCrop((32, 32), area_for_downscale="image"), A.HorizontalFlip()], p=.5)      # half of the images stay as they are
    assert read_transform(unknown).frame.transform is unknown
    boxes = A.Compose([A.RandomResizedCrop((32, 32), area_for_downscale="image")], bbox_params=A.BboxParams("coco", label_fields=[]))
    assert read_transform(boxes).frame.transform is boxes
    assert read_transform(torch.nn.Sequential(v2.RandomResizedCrop(32), v2.RandomHorizontalFlip())).ops == (HorizontalFlip(),)
    f = partial(lambda x, k: x, k=1)
    assert read_transform(f).frame.transform is f
    class Mine(v2.RandomHorizontalFlip): "A flip of one's own, which may do anything"
    assert isinstance(read_transform(v2.Compose([v2.RandomResizedCrop(32), Mine()])).frame, Custom)


# ---- normalised exactly once

ONCE = {
    "bytes, v2": (v2.Compose([v2.Resize((32, 32)), v2.PILToTensor(), lambda x: x]), True),
    "floats in 0…1, v1": (v1.Compose([v1.Resize((32, 32)), v1.ToTensor(), lambda x: x]), True),
    "floats in 0…1, read": (v1.Compose([v1.Resize((32, 32)), v1.ToTensor()]), True),
    "normalised, read": (v1.Compose([v1.Resize((32, 32)), v1.ToTensor(), v1.Normalize(*IN)]), True),
    "normalised, nested": (v2.Compose([v2.Resize((32, 32)), v2.Compose([lambda x: x, v2.Compose(FLOAT)])]), True),
    "normalised, a function after": (v2.Compose([v2.Resize((32, 32)), *FLOAT, lambda x: x]), True),
    "normalised, in a function": (lambda image: v2.Compose([v2.Resize((32, 32)), *FLOAT])(image), True),
    "levels as floats, in a function": (lambda image: torch.from_numpy(np.asarray(image.resize((32, 32), Image.BILINEAR)).astype(np.float32)).permute(2, 0, 1), True),
    "albumentations, bytes": (A.Compose([A.Resize(32, 32, interpolation=3)]), False),
    "albumentations, ToFloat": (A.Compose([A.Resize(32, 32, interpolation=3), A.ToFloat(), ToTensorV2()]), False),
    "albumentations, Normalize": (A.Compose([A.Resize(32, 32, interpolation=3), A.Normalize(), ToTensorV2()]), False),
    "albumentations, Normalize inside": (A.Compose([A.Resize(32, 32, interpolation=3), A.Sequential([A.Normalize(), A.NoOp()], p=1.)]), False),
}

@pytest.mark.parametrize("name", ONCE)
def test_pipelines_are_normalised_exactly_once(folder, name):
    t,exact = ONCE[name]
    kw = dict(image_size=32, num_workers=0, resize="squash", normalize=IN)
    want = next(iter(ImageDataModule(folder, **kw).val_dataloader())).image
    got = next(iter(ImageDataModule(folder, eval_transforms=t, **kw).val_dataloader())).image
    assert (got-want).abs().mean() < (.02 if exact else .15) and got.std() > .5*want.std()


# ---- every generator a transform holds is seeded by the image

def test_generators_of_ones_own_are_seeded(folder):
    import random
    rng,old,py,tor = np.random.default_rng(0), np.random.RandomState(0), random.Random(0), torch.Generator()
    jitter = A.Compose([A.RandomCrop(32, 32), A.ColorJitter(hue=0., p=1.)])
    class Mine:
        def __init__(self): self.parts = dict(a=[py], b=partial(lambda g: torch.rand((), generator=g), tor))
        def __call__(self, image): return jitter(image=(np.asarray(image)*np.mean([rng.random(), old.rand(), self.parts["a"][0].random(), float(self.parts["b"]())])).astype(np.uint8))["image"]
    states = rng.bit_generator.state, py.getstate(), tor.get_state()
    want = batches(folder, train_transforms=Mine(), num_workers=0)
    assert (rng.bit_generator.state, py.getstate()) == states[:2] and torch.equal(tor.get_state(), states[2])
    assert torch.equal(want, batches(folder, train_transforms=Mine(), num_workers=2))
    assert len({o.numpy().tobytes() for o in want}) == len(want)


def test_a_users_compose_draws_by_image_on_the_fast_road_too(folder):
    mine = v2.Compose([v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), v2.RandAugment(), v2.ColorJitter(.3), *FLOAT, v2.RandomErasing()])
    want = batches(folder, train_transforms=mine, num_workers=0)
    assert torch.equal(want, batches(folder, train_transforms=mine, num_workers=2)) and not torch.equal(want[:24], want[24:])
    dm = ImageDataModule(folder, train_transforms=mine, image_size=96, num_workers=0)
    assert dm.train_pipeline.size == (32, 32) and dm.train_dataloader().tier != "inline"       # its own size, and our threads


# ---- which way things turn, with nothing left to chance

FIXED = [v2.RandomAffine((20, 20), interpolation=v2.InterpolationMode.BILINEAR), v2.RandomRotation((20, 20), v2.InterpolationMode.BILINEAR), v2.RandomAffine((0, 0), shear=(15, 15), interpolation=v2.InterpolationMode.BILINEAR),
         v2.RandomAffine((0, 0), shear=(0, 0, 15, 15), interpolation=v2.InterpolationMode.BILINEAR), v2.RandomAffine((10, 10), scale=(.7, .7), shear=(9, 9), fill=99, interpolation=v2.InterpolationMode.BILINEAR),
         v2.ColorJitter((1.5, 1.5)), v2.ColorJitter(hue=(.1, .1)), v2.GaussianBlur(5, (1., 1.)), v2.Grayscale(3)]

@pytest.mark.parametrize("step", FIXED, ids=repr)
def test_fixed_steps_of_torchvision_are_the_same_picture(step):
    t = v2.Compose([v2.Resize((48, 48)), step, *FLOAT])
    p = read_transform(t)
    assert p.ops and torch.as_tensor(t(Image.fromarray(PHOTO))).sub(ours(p, 1)[0]).abs().mean() < .04      # the border blends with black a little differently
    assert torch.as_tensor(to_torchvision(p)(Image.fromarray(PHOTO))).sub(ours(p, 1)[0]).abs().mean() < .04


@pytest.mark.parametrize("step", [A.Affine(rotate=(20, 20), p=1.), A.Affine(shear=dict(x=(15, 15), y=(0, 0)), p=1.), A.Affine(shear=dict(x=(0, 0), y=(15, 15)), p=1.), A.Affine(rotate=(15, 15), scale=dict(x=(.8, .8), y=(.8, .8)), p=1.), A.Affine(scale=dict(x=(.7, .7), y=(.7, .7)), shear=dict(x=(9, 9), y=(5, 5)), p=1.),
                                  A.ColorJitter((1.5, 1.5), (1, 1), (1, 1), (0, 0), p=1.), A.ColorJitter((1, 1), (1, 1), (1, 1), (.1, .1), p=1.), A.ToGray(p=1.), A.GaussianBlur((5, 5), (1., 1.), p=1.)], ids=repr)
def test_fixed_steps_of_albumentations_are_the_same_picture(step):
    t = A.Compose([A.Resize(48, 48, area_for_downscale="image"), step, A.Normalize(), ToTensorV2()])
    p = read_transform(t)
    assert p.ops and (t(image=PHOTO)["image"]-ours(p, 1)[0]).abs().mean() < .12
    assert (to_albumentations(p)(image=PHOTO)["image"]-t(image=PHOTO)["image"]).abs().mean() < .02


@pytest.mark.parametrize("step", [A.Affine(rotate=(-9, 9), shear=(3, 3)), A.Affine(translate_percent=.1), A.Affine(translate_px=3), A.Affine(fit_output=True), A.Perspective(), A.GaussianBlur(), A.CoarseDropout(fill="random"), A.MotionBlur(allow_shifted=False),
                                  A.RandomBrightnessContrast((0, .2)), A.ToGray(method="max"), A.OneOf([A.HorizontalFlip(p=.2), A.ToGray(p=.8)]), A.Normalize(normalization="image"), A.CLAHE()], ids=lambda o: type(o).__name__)
def test_albumentations_other_laws_are_not_taken_for_ours(step):
    t = A.Compose([A.RandomResizedCrop((32, 32), area_for_downscale="image"), step, A.HorizontalFlip(), ToTensorV2()])
    p = read_transform(t)
    assert isinstance(p.frame, Custom) and p.frame.transform.transforms[1] is step and p.frame.why
    assert p.frame(PHOTO).shape == (3, 32, 32) and p.ops in ((HorizontalFlip(),), ())


def own_floats(image): return torch.from_numpy(np.asarray(image.resize((32, 32)))/np.float32(127.5)-1).permute(2, 0, 1)

def test_what_follows_a_function_that_normalises_still_happens(folder):
    got = batches(folder, 1, train_transforms=v2.Compose([own_floats, v2.RandomHorizontalFlip(1.)]), num_workers=0)
    want = batches(folder, 1, train_transforms=own_floats, num_workers=0)
    assert torch.allclose(got, want.flip(-1)) and want.min() < -.5
    t = A.Compose([A.Resize(32, 32), A.Normalize(normalization="image"), A.HorizontalFlip(), ToTensorV2()])
    assert read_transform(t).frame.transform is t


def test_policies_after_a_function_on_floats(folder):
    t = v2.Compose([v2.Resize((32, 32)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), lambda x: x.clamp(.1, .9), v2.RandAugment(), v2.Normalize(*IN)])
    x = batches(folder, 1, train_transforms=t, num_workers=0)
    assert x.isfinite().all() and -2.2 < x.min() and x.max() < 2.7 and x.std() > .3


# ---- draws of one image: each operation's its own

MARK = np.zeros((8, 8, 3), np.uint8)
MARK[0, 0] = 200        # where this corner goes tells which flips were made

def drawn(t, n=1500):
    "Run a transform on one image as a loader does, under `n` different seeds"
    own = Custom(t, numbers="bytes")
    out = []
    for i in range(n):
        own.seed(key("custom", 3, 0, i), everything=False)
        out.append(own(MARK).numpy())
    return out

def alone(t, n=1500):
    "The package itself, with one pair of independent generators for all draws"
    t.set_random_state(np.random.default_rng(11), random.Random(12))
    return [np.asarray(t(image=MARK)["image"]).transpose(2, 0, 1) for _ in range(n)]

def shares(images):
    "Count how often each picture comes out"
    found = {}
    for o in images: found[o.tobytes()] = found.get(o.tobytes(), 0) + 1/len(images)
    return found

def invert(p): return A.InvertImg(p=p)

PAIRS = list(itertools.combinations([A.HorizontalFlip(p=.5), A.VerticalFlip(p=.5), A.Transpose(p=.5), invert(.5), A.ChannelShuffle(p=.5), A.CenterCrop(8, 8, p=.5)], 2))
NESTS = [A.Compose([A.OneOf([A.HorizontalFlip(p=1), invert(1.)], p=.5), A.VerticalFlip(p=.5)]),
         A.Compose([A.OneOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=.5), A.OneOf([invert(1.), A.Transpose(p=1)], p=.5)]),
         A.Compose([A.Sequential([A.HorizontalFlip(p=.5), A.Sequential([A.VerticalFlip(p=.5)], p=.5)], p=.5), invert(.5)]),
         A.Compose([A.Compose([A.HorizontalFlip(p=.5), A.VerticalFlip(p=.5)], p=.7), A.SomeOf([invert(1.), A.Transpose(p=1)], n=1, p=.5)]),
         A.Compose([A.RandomOrder([A.HorizontalFlip(p=.5), A.VerticalFlip(p=.5), A.Transpose(p=.5)], n=2, p=1.)])]

@pytest.mark.parametrize("t", [A.Compose(list(o)) for o in PAIRS] + NESTS, ids=[f"{type(a).__name__}-{type(b).__name__}" for a,b in PAIRS] + [f"nest{i}" for i in range(len(NESTS))])
def test_operations_of_albumentations_draw_independently(t):
    "The joint law of what comes out is that of the package with independent generators"
    a,b = shares(drawn(t)), shares(alone(t))
    for o in {*a, *b}: assert abs(a.get(o, 0) - b.get(o, 0)) < 4.5*(2*.25/1500)**.5

def test_separate_transforms_of_albumentations_draw_independently():
    class Two:
        def __init__(self): self.flip,self.turn,self.chance = A.HorizontalFlip(p=.5), A.VerticalFlip(p=.5), random.Random(0)
        def __call__(self, image):
            x = self.turn(image=self.flip(image=np.asarray(image))["image"])["image"]
            return 255-x if self.chance.random() < .5 else x
    found = shares(drawn(Two()))
    assert len(found) == 8 and all(abs(o-1/8) < .04 for o in found.values())

def test_the_global_generators_draw_independently():
    def draws(i):
        seed_all(key("custom", 3, 0, i))
        return random.random() < .5, np.random.randint(2), int(torch.randint(2, (1,)))
    found = [draws(i) for i in range(1000)]
    for o in itertools.product((0, 1), repeat=3): assert abs(found.count(o)/1000 - 1/8) < .05

def test_a_draw_depends_on_the_seed_the_epoch_and_the_image_alone(folder):
    make = lambda workers: ImageDataModule(folder, image_size=32, batch_size=4, num_workers=workers, transform_backend="albumentations", augmentation_preset="strong", seed=5, cache=None).train_dataloader()
    def by_image(batches): return {int(i):x for b in batches for i,x in zip(b.index, b.image)}
    first,again = by_image(make(0).batches(1)), by_image(make(2).batches(1))
    other = by_image(make(0).batches(2))
    for i in first: assert torch.equal(first[i], again[i])
    assert any(not torch.equal(first[i], other[i]) for i in first)

def test_preset_light_draws_flip_and_crop_independently():
    p = preset("light", 32, (0.,)*3, (1.,)*3)
    own = Custom(to_albumentations(p.edit(ops=tuple(o for o in p.ops if isinstance(o, HorizontalFlip))), normalize=False))
    ramp = np.repeat(np.arange(0, 250, dtype=np.uint8)[None,:,None], 250, 0).repeat(3, 2)
    flipped,width = [], []
    for i in range(800):
        own.seed(key("custom", 1, 0, i), everything=False)
        x = own(ramp).float()[0].mean(0)
        flipped.append(float(x[0] > x[-1])); width.append(float((x[0]-x[-1]).abs()))
    assert abs(np.corrcoef(flipped, width)[0, 1]) < .13

@pytest.mark.parametrize("name", ["light", "strong"])
def test_presets_leave_as_many_images_untouched_through_both_backends(name):
    p = preset(name, 32, (0.,)*3, (1.,)*3).edit(frame=Resize("squash"))
    image,n = resize(PHOTO, (32, 32)), 500
    own = Custom(to_albumentations(p, normalize=False))
    def through(i):
        own.seed(key("custom", 7, 0, i), everything=False)
        return own(image)
    run = BatchAugment(p, 7)
    mine = (run(torch.from_numpy(np.stack([image]*n)).permute(0, 3, 1, 2), np.arange(n), 0)*255).round()
    plain = torch.from_numpy(image).permute(2, 0, 1)
    theirs = sum(torch.equal(through(i), plain) for i in range(n))/n
    assert abs(theirs - float((mine == plain).flatten(1).all(1).float().mean())) < 4.5*(2*.25*.5/n)**.5
    if name == "strong": assert theirs < .09
