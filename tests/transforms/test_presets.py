"Presets are data, and the image policies follow their law."
import json

import numpy as np
import pytest
import torch
from photos import photo_folder
from torchvision.transforms import v2

from visionlab.core.errors import ConfigError, UnknownOptionError
from visionlab.core.randomness import uniforms
from visionlab.data.module import ImageDataModule
from visionlab.transforms.policies import apply_image
from visionlab.transforms.presets import (
    BACKENDS, compare_backends, eval_pipeline, from_transform_args, lacking, list_presets, list_transform_presets,
    preset, PRESETS, recommend_backend)
from visionlab.transforms.ops import (
    Affine, AugMix, AutoAugment, BrightnessContrast, ChannelDrop, CoarseDropout, ColorJitter, GaussianBlur, GaussNoise,
    HorizontalFlip, MotionBlur, OneOf, RandAugment, RandomErasing, RandomResizedCrop, Resize, Rotate90,
    TrivialAugmentWide, VerticalFlip)
from visionlab.transforms.custom import Custom
from visionlab.transforms.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

# What the recipes' makers say: SPEC AT30-AT38, HF45, IN5, LT29
CROP = RandomResizedCrop((.08, 1.), (3/4, 4/3))
DOCUMENTED = {
    "default": (CROP, HorizontalFlip(.5), ColorJitter(.2, .2, .2, 0.)),
    "light": (CROP, HorizontalFlip(.5)),
    "strong": (CROP, HorizontalFlip(.5), Affine((-15, 15), (.1, .1), (.8, 1.2), p=.5, keep_ratio=False),
               OneOf((MotionBlur((3, 5), 1.), GaussianBlur((3, 5), (.5, 3.), 1.), GaussNoise((.02, .05), 1.)), .3), ColorJitter(.3, .3, .3, .1, p=.8), CoarseDropout((1, 3), (.05, .15), (.05, .15), .3)),
    "autoaugment": (CROP, HorizontalFlip(.5), AutoAugment("imagenet")),
    "randaugment": (CROP, HorizontalFlip(.5), RandAugment(2, 9)),
    "trivialaugment": (CROP, HorizontalFlip(.5), TrivialAugmentWide()),
    "augmix": (CROP, HorizontalFlip(.5), AugMix(3, 3, -1, 1.)),
    "imagenet": (CROP, HorizontalFlip(.5)),
    "autotrain": (CROP, Rotate90(.5), HorizontalFlip(.5), BrightnessContrast(.2, .2, .2)),
    "lightly": (RandomResizedCrop((.2, 1.)), HorizontalFlip(.5), ColorJitter(32/255, .5, .5, 18/360, p=.5)),
    "finetune": (RandomResizedCrop((.35, 1.)), HorizontalFlip(.5)),
    "none": (Resize(),),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_presets_are_the_documented_recipes(name):
    p = preset(name, 64)
    assert (p.frame, *p.ops) == DOCUMENTED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json_and_print_every_part(name):
    p = preset(name, (64, 64), (.5,), (.25,))
    assert Pipeline.from_dict(json.loads(json.dumps(p.to_dict()))) == p
    for part in (p.frame, *p.ops): assert type(part).__name__ in repr(p) and type(part).__name__ in repr(p.plan())


def test_the_bare_options_of_the_policies():
    assert {AutoAugment(o).policy for o in ("imagenet", "cifar10", "svhn")} == {"imagenet", "cifar10", "svhn"}
    with pytest.raises(UnknownOptionError, match="cifar10"): AutoAugment("cifar")


def test_edit_changes_one_field_and_nothing_else():
    p = preset("strong", 64)
    q = p.edit(ColorJitter=dict(hue=.2), GaussNoise=dict(std=(.1, .2)), MotionBlur=None, RandomResizedCrop=dict(scale=(.5, 1.)))
    assert q.frame == RandomResizedCrop((.5, 1.)) and q.ops[3] == ColorJitter(.3, .3, .3, .2, p=.8)
    assert q.ops[2].ops == (GaussianBlur((3, 5), (.5, 3.), 1.), GaussNoise((.1, .2), 1.))
    assert (q.ops[0], q.ops[1], q.ops[4]) == (p.ops[0], p.ops[1], p.ops[4]) and PRESETS["strong"].ops == p.ops
    assert p.edit(OneOf=None).ops == (*p.ops[:2], *p.ops[3:])
    assert p.edit(MotionBlur=None, GaussianBlur=None, GaussNoise=None).ops == p.edit(OneOf=None).ops       # a choice of nothing is left out
    assert p.edit(HorizontalFlip=VerticalFlip(.2)).ops[0] == VerticalFlip(.2)


@pytest.mark.parametrize("change,text", [(dict(ColourJitter={}), "ColorJitter"), (dict(ColorJitter=dict(hues=1)), "hue"), (dict(sizes=3), "size"), (dict(RandAugment=None), "HorizontalFlip"), (dict(RandomResizedCrop=None), "frame")])
def test_edit_explains_what_is_wrong(change, text):
    with pytest.raises(ConfigError, match=text): preset("default").edit(**change)


@pytest.mark.parametrize("wrong,right", [("randagument", "randaugment"), ("trivial_augment", "trivialaugment"), ("Strong", "strong"), ("auto-train", "autotrain")])
def test_a_wrong_name_lists_the_close_ones(wrong, right):
    with pytest.raises(UnknownOptionError, match=f"Did you mean '{right}'"): preset(wrong)


def test_lists_and_comparison_of_the_backends():
    assert list_presets() == list(PRESETS) == list_transform_presets() == list_presets("torchvision")
    few = list_presets("albumentations")
    assert [o for o in PRESETS if o not in few] == ["autoaugment", "randaugment", "trivialaugment", "augmix"]
    table = list_presets("albumentations", verbose=True)
    assert [o[0] for o in table.rows] == few and all(o[1] for o in table.rows) and "<table" in table._repr_html_()
    rows = {o[0]:o[1:] for o in compare_backends().rows}
    for name in PRESETS: assert [not lacking(PRESETS[name], b) for b in BACKENDS] == [o == "yes" for o in rows[f"preset {name}"]]
    with pytest.raises(UnknownOptionError, match="torchvision"): list_presets("torch")


@pytest.mark.parametrize("needs,backend", [({}, "torchvision"), (dict(needs_spatial_transforms=True), "albumentations"), (dict(needs_advanced_augmentation=True), "torchvision"), (dict(prioritize_speed=True), "torchvision"),
                                           (dict(task="detection", has_bbox_or_masks=True), "albumentations"), (dict(task="segmentation", has_bbox_or_masks=True), "torchvision")])
def test_a_backend_is_recommended_with_its_reason(needs, backend):
    advice = recommend_backend(**needs)
    assert advice == backend and len(advice.reason) > 20 and advice.reason in repr(advice)


def test_quarter_turns_need_a_square():
    with pytest.raises(ConfigError, match=r"edit\(Rotate90=None\)"): preset("autotrain", (64, 96))
    with pytest.raises(ConfigError, match="square"): preset("autotrain", 64).edit(size=(64, 96))


def test_own_functions_do_not_hide_among_the_operations():
    for op in (lambda x: x, v2.RandomHorizontalFlip(), Custom(lambda x: x)):
        with pytest.raises(ConfigError, match="train_transforms"): preset("light").add(op)


# ---- LightlyTrain's arguments

def test_transform_args_of_lightly():
    train,valid = from_transform_args()
    assert train == preset("lightly") and valid.frame == Resize("crop", 224/256)
    train,valid = from_transform_args(dict(image_size=(128, 128), normalize=dict(mean=(.5,)*3, std=(.25,)*3), random_crop=dict(min_scale=.5), random_flip=dict(horizontal_prob=0., vertical_prob=.3),
        random_rotate=dict(prob=.2, degrees=15), random_rotate_90=dict(prob=.7), color_jitter=dict(prob=1., strength=.5, hue=0.), val=dict(image_size=160)))
    assert train == Pipeline(RandomResizedCrop((.5, 1.)), (Rotate90(.7), VerticalFlip(.3), Affine((-15., 15.), p=.2), ColorJitter(16/255, .25, .25, 0., 1.)), 128, (.5,)*3, (.25,)*3, "lightly")
    assert valid == eval_pipeline(160, crop_pct=160/183, mean=(.5,)*3, std=(.25,)*3)


def test_none_switches_a_part_off_and_other_channels_lose_the_colours():
    train,_ = from_transform_args(dict(random_crop=None, random_flip=None, color_jitter=None, normalize=None))
    assert train == Pipeline(Resize(crop_pct=1.), (), 224, (0.,)*3, (1.,)*3, "lightly")
    train,_ = from_transform_args(dict(num_channels=4, channel_drop=dict(num_channels_keep=3, weight_drop=(1., 1., 1., 0.))))
    assert train.ops == (ChannelDrop(3, (1., 1., 1., 0.)), HorizontalFlip()) and len(train.mean) == 4


@pytest.mark.parametrize("args,text", [(dict(random_crops={}), "random_crop"), (dict(random_crop=dict(scale=1)), "min_scale"), (dict(val=dict(resize=3)), "image_size"), (dict(color_jitter=dict(hues=0)), "hue")])
def test_unknown_keys_of_transform_args_are_errors(args, text):
    with pytest.raises(UnknownOptionError, match=text): from_transform_args(args)


# ---- the policies, image by image

IMAGES = torch.randint(0, 256, (3, 24, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
POLICIES = [AutoAugment(), AutoAugment("cifar10"), AutoAugment("svhn"), RandAugment(3, 15), TrivialAugmentWide(), AugMix(), AugMix(5, 2, 2, .5, False)]


@pytest.mark.parametrize("op", POLICIES, ids=str)
def test_an_image_op_depends_on_its_numbers_alone(op):
    u = uniforms(0, 0, range(30), op.n_random)
    first = [apply_image(op, IMAGES, o) for o in u]
    torch.manual_seed(1); np.random.seed(1)
    assert all(torch.equal(a, apply_image(op, IMAGES.contiguous(memory_format=torch.contiguous_format), o)) for a,o in zip(first, u))
    assert all(o.dtype == torch.uint8 and o.shape == IMAGES.shape for o in first) and sum(not torch.equal(o, IMAGES) for o in first) > 10


@pytest.mark.parametrize("op", POLICIES, ids=str)
def test_numbers_at_the_edge_are_numbers_too(op):
    for v in (0., 1-2**-53, 1.): assert apply_image(op, IMAGES, np.full(op.n_random, v if not isinstance(op, AugMix) else min(v, 1-2**-53))).shape == IMAGES.shape


def test_auto_augment_follows_its_policy():
    "With every number given, the result is torchvision's own two steps; `Equalize` may spread the level by which a blend was rounded"
    theirs = v2.AutoAugment()
    for k,pair in enumerate(theirs._policies):
        if not all(p for _,p,_ in pair): continue
        want = IMAGES
        for name,_,m in pair:
            levels = theirs._AUGMENTATION_SPACE[name][0](10, *IMAGES.shape[1:])
            want = theirs._apply_image_or_video_transform(want, name, 0. if levels is None else float(levels[m]), v2.InterpolationMode.NEAREST, {torch.Tensor:None})
        got = apply_image(AutoAugment(), IMAGES, np.array([(k+.5)/25, 1e-9, .9, 1e-9, .9]))        # this pair, both steps, both signs positive
        assert (got.int()-want.int()).abs().float().mean() < (1.5 if {"Color", "Contrast", "Sharpness"} & {o for o,_,_ in pair} else 1e-9), pair


# ---- evaluation is one object

@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
def test_validation_test_and_prediction_share_one_pipeline(tmp_path, mode):
    root = photo_folder(tmp_path/"d", n_train=6, n_val=3, size=48, classes=("brick", "coffee"))
    dm = ImageDataModule(root, image_size=32, resize=mode, num_workers=0)
    loaders = dm.val_dataloader(), dm.predict_dataloader(), dm.predict_dataloader(root)
    assert all(o.pipeline == dm.eval_pipeline for o in loaders) and dm.eval_pipeline.frame.mode == mode
    assert dm.eval_pipeline.frame == ImageDataModule(root, image_size=32, resize=mode, transform_backend="albumentations").eval_pipeline.frame      # the backend is of training alone
