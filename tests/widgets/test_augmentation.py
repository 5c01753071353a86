"The studio and its controls without a browser: traits are set, handlers called, and pictures, pipelines, code and loaders looked at."
import inspect, json, warnings
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from kernel import n_widgets
from photos import small_folder
from skimage import data as photos
from torchvision.transforms import v2
from visionlab.widgets import view as widgets
from visionlab.transforms.interop import import_albumentations, Op, to_albumentations, to_torchvision
from visionlab.catalog.catalog import Catalog
from visionlab.widgets.fields import own_steps, strengthen
from visionlab.widgets.controls import known_operations, PipelinePanel
from visionlab.widgets.transform_code import pipeline_code, transform_code
from visionlab.core.errors import ConfigError, UnknownOptionError
from visionlab.core.show import to_uint8
from visionlab.data.module import ImageDataModule
from visionlab.data.loader import Loader
from visionlab.transforms.presets import list_presets, preset
from visionlab.widgets.augmentation_draws import boxed, pictures
from visionlab.transforms.ops import (
    Affine, ColorJitter, HorizontalFlip, PadCrop, RandomResizedCrop, Resize, VerticalFlip)
from visionlab.transforms.custom import Custom
from visionlab.transforms.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder of photographs: three classes of six"
    return small_folder(tmp_path_factory.mktemp("photos"))

@pytest.fixture
def dm(folder): return ImageDataModule(folder, image_size=64, batch_size=4, val_split=3)

@pytest.fixture
def grey(): return ImageDataModule("FashionSample", batch_size=32)

def trained(dm, epoch): return {int(o.index):o for xb in dm.train_dataloader().batches(epoch) for o in xb.items()}

def same_as_training(studio, epochs=(0, 3)):
    for epoch in epochs:
        want = trained(studio.dm, epoch)
        for o in studio.draw(epoch).items(): assert torch.equal(o.image, want[int(o.index)].image)

# ---- exactly what the loader makes

@pytest.mark.parametrize("kind", ["ram", "files", "albumentations", "own", "grey", "few pixels kept"])
def test_draws_are_those_of_the_training_loader(kind, folder, grey):
    options = dict(files=dict(cache=None), albumentations=dict(transform_backend="albumentations"), own=dict(train_transforms=v2.Compose([v2.Resize((64, 64)), v2.RandomRotation(30), v2.PILToTensor()]))).get(kind, {})
    dm = grey if kind == "grey" else ImageDataModule(folder, image_size=64, batch_size=4, val_split=3, **({"cache": 300_000} if kind == "few pixels kept" else options))
    studio = dm.preview_augmentations(n_images=3, n_draws=4)
    same_as_training(studio)
    images,captions,_ = studio.tiles()
    assert len(images) == 3*5 and captions[1:5] == [f"epoch {e}" for e in range(1, 5)]
    assert np.array_equal(images[4], to_uint8(dm.denormalize(studio.draw(3).image)[0]))      # threads draw other parts of the batch, and the same pixels

def test_files_are_read_once_and_still_decoded_as_the_loader_does(folder, monkeypatch):
    from visionlab.data import images
    studio = ImageDataModule(folder, image_size=64, batch_size=4, val_split=3, cache=None).preview_augmentations(n_images=3, n_draws=3)
    reads = []
    monkeypatch.setattr(images, "read_bytes", lambda p, real=images.read_bytes: reads.append(p) or real(p))
    studio.tiles(); studio.choose("strong"); studio.tiles()
    assert sorted(reads) == sorted(set(reads)) and len(reads) == 3

def test_first_tile_is_as_in_validation(dm):
    studio = dm.preview_augmentations(n_images=2, n_draws=1)
    assert np.array_equal(studio.tiles()[0][2], to_uint8(dm.denormalize(next(iter(Loader(studio._rows, dm.eval_pipeline, 2))).image)[1]))

def test_images_are_of_different_classes_and_page_on(dm):
    studio = dm.preview_augmentations(n_images=3, n_draws=1)
    first = set(studio._ids)
    assert len(set(studio._rows.frame["label"])) == 3
    studio.other_images()
    assert not first & set(studio._ids)
    assert len(dm.preview_augmentations(n_images=99, n_draws=1).tiles()[0]) == 15*2      # no more than there are

def test_only_what_changed_is_drawn(dm, monkeypatch):
    from visionlab.widgets import augmentation as module
    studio = dm.preview_augmentations(n_images=2, n_draws=2)
    studio.widget
    drawn = []
    monkeypatch.setattr(module, "pictures", lambda batch, *o, real=pictures, **kw: drawn.append(len(batch)) or real(batch, *o, **kw))
    studio.n_draws = 3
    assert sum(drawn) == 2                                                 # one epoch more of two images: neither those before it nor the originals
    drawn.clear(); studio.seed += 1
    assert sum(drawn) <= 2*3 + 2

# ---- what may be set

def test_traits_change_the_picture(dm):
    studio = dm.preview_augmentations(n_images=2, n_draws=2, seed=1)
    first = studio.to_html()
    assert studio.to_html() == first and dm.preview_augmentations(n_images=2, n_draws=2, seed=1).to_html() == first
    for name,value in dict(seed=2, n_draws=3, full_size=True, page=1).items():
        before = studio.to_html()
        setattr(studio, name, value)
        assert studio.to_html() != before, name
    studio.full_size = False
    for name,value in dict(strength=.3, pipeline=preset("light", 64), backend="albumentations").items():
        before = studio.to_html()
        setattr(studio, name, value)
        assert studio.to_html() != before, name
    with pytest.raises(ConfigError, match="n_draws"): studio.n_draws = 0
    with pytest.raises(UnknownOptionError, match="light"): studio.choose("lihgt")
    with pytest.raises(UnknownOptionError, match="albumentations"): studio.backend = "albumentation"
    with pytest.raises(UnknownOptionError): studio.overlay = "mask"                      # these images have none
    with pytest.raises(ConfigError, match="channels"): studio.channels = (0, 7)
    with pytest.raises(ConfigError): dm.preview_augmentations(n_images=0)

def test_strength_starts_from_what_was_set_last(dm):
    studio = dm.preview_augmentations(n_images=1, n_draws=1)
    studio.widget
    studio.strength = .5
    assert studio.pipeline.ops == (HorizontalFlip(.25), ColorJitter(.1, .1, .1)) and studio._panel.read()[1] == studio.pipeline.ops
    studio.strength = 0.
    assert studio.pipeline.ops == () and not any(np.ptp(np.stack([a, b]), 0).any() for a,b in [(studio.tiles()[0][1], studio.tiles()[0][1])])
    studio.strength = 2.
    assert studio.pipeline.ops[1].brightness == .4
    studio._panel._pool["ColorJitter", 0].controls["hue"].value = .1
    assert studio.strength == 1 and studio.pipeline.ops[1] == ColorJitter(.4, .4, .4, .1)    # a hand-made change is the new beginning
    studio.strength = 1.5
    assert studio.pipeline.ops[1].hue == pytest.approx(.15)

@pytest.mark.parametrize("name", list_presets())
def test_strength_of_presets(name):
    p = preset(name, 96)
    assert strengthen(p, 1) is p and strengthen(p, 0).ops == ()
    for s in (.1, .5, 1.5, 4): assert Pipeline.from_dict(json.loads(json.dumps(strengthen(p, s).to_dict()))) == strengthen(p, s)
    weak = strengthen(p, 1e-3)
    assert not hasattr(weak.frame, "scale") or min(weak.frame.scale) > .99

# ---- whole pictures

def test_box_is_what_the_draw_shows(dm):
    from visionlab.widgets.augmentation_draws import crop_box
    from visionlab.core.randomness import uniforms
    from visionlab.transforms.ops import resize
    studio = dm.preview_augmentations(n_images=2, n_draws=2)
    studio.pipeline = studio.pipeline.edit(ops=())
    i = studio._ids[1]
    image = studio._draws.images[i]
    top,left,h,w = crop_box(studio.pipeline.frame, image.shape[:2], (64, 64), uniforms(studio.seed, 1, np.array([i]), 22, "frame")[0])
    assert np.array_equal(resize(image[top:top+h, left:left+w], (64, 64)), studio.tiles()[0][5])
    studio.full_size = True
    shown = studio.tiles()[0][5]
    assert shown.shape[0]/shown.shape[1] == pytest.approx(image.shape[0]/image.shape[1], rel=.02)
    bright = (shown == (255, 210, 0)).all(-1)
    at = np.argwhere(bright) * image.shape[0]/shown.shape[0]
    assert np.allclose(at.min(0), (top, left), atol=3) and np.allclose(at.max(0), (top+h, left+w), atol=4)

def test_box_of_albumentations_is_what_it_cut(folder):
    dm = ImageDataModule(folder, image_size=64, batch_size=4, val_split=3, transform_backend="albumentations", augmentation_preset="light")
    studio = dm.preview_augmentations(n_images=1, n_draws=2)
    plain,(i,) = studio.tiles()[0][2], studio._ids
    studio.full_size = True
    shown = studio.tiles()[0][2]
    at = np.argwhere((shown == (255, 210, 0)).all(-1))
    (top,left),(bottom,right) = at.min(0), at.max(0)
    image,k = studio._draws.images[i], studio._draws.images[i].shape[0]/shown.shape[0]
    part = image[round(top*k):round(bottom*k), round(left*k):round(right*k)]
    cut = np.asarray(Image.fromarray(part).resize((64, 64), Image.BILINEAR)).astype(float)
    assert max(np.corrcoef(o.ravel(), plain.astype(float).ravel())[0, 1] for o in (cut, cut[:, ::-1])) > .93
    assert np.array_equal(boxed(image, None, (1, 1)), image)                 # a transform that does not tell

# ---- controls

def after(studio, act):
    "Do something, and see that picture and code follow"
    before = studio._picture.value
    act()
    assert studio._picture.value != before
    exec(studio.code, scope := {})
    assert scope["pipeline"] == studio.pipeline
    return studio.pipeline

def test_handlers_change_pipeline_picture_and_code(dm):
    studio = dm.preview_augmentations(n_images=2, n_draws=2)
    studio.widget
    panel = studio._panel
    do = lambda act: after(studio, act)
    fields = lambda name: panel._pool[name, 0].controls
    assert do(lambda: setattr(panel.adding, "value", "VerticalFlip")).ops[-1] == VerticalFlip() and panel.adding.value.startswith("add")
    assert do(lambda: setattr(fields("ColorJitter")["brightness"], "value", .8)).ops[1].brightness == .8
    assert do(lambda: setattr(panel.places[1].switch, "value", False)).ops == (HorizontalFlip(), VerticalFlip())
    assert do(lambda: panel.places[1].switch.set_trait("value", True)).ops[1].brightness == .8                 # it is as it was left
    panel.places[1].up.click()                                             # a mirror before or after the colours is the same picture
    assert [type(o) for o in studio.pipeline.ops] == [ColorJitter, HorizontalFlip, VerticalFlip]
    assert panel.places[0].up.disabled and panel.places[2].down.disabled and "ColorJitter" in panel.places[0].up.tooltip
    assert [type(o) for o in do(lambda: panel.places[1].away.click()).ops] == [ColorJitter, VerticalFlip]
    assert do(lambda: setattr(panel.frames["RandomResizedCrop"].controls["scale"], "value", (.5, .6))).frame.scale == (.5, .6)
    assert do(lambda: setattr(panel.frame, "value", "Resize")).frame == Resize()
    assert studio._preset.value == "custom"
    assert do(lambda: setattr(studio._preset, "value", "light")) == preset("light", 64)
    assert panel.read() == (RandomResizedCrop(), (HorizontalFlip(),)) and panel.frame.value == "RandomResizedCrop"
    do(lambda: setattr(studio, "pipeline", preset("default", 64)))
    assert studio._preset.value == "default"
    do(lambda: setattr(studio, "pipeline", preset("strong", 64)))
    do(lambda: setattr(studio._preset, "value", "as it was"))
    assert studio.pipeline == preset("default", 64)

def test_switched_off_rows_stay_while_the_strength_moves(dm):
    studio = dm.preview_augmentations(n_images=1, n_draws=1)
    studio.widget
    studio._panel.places[0].switch.value = False
    studio.strength = .5
    assert [(type(o.part).__name__, o.on) for o in studio._panel.steps] == [("HorizontalFlip", False), ("ColorJitter", True)]
    assert studio._panel.steps[1].part == ColorJitter(.1, .1, .1)

def test_what_a_browser_rounds_is_no_edit(dm):
    studio = dm.preview_augmentations(n_images=1, n_draws=1)
    studio.widget
    studio._panel.frames["RandomResizedCrop"].controls["ratio"].value = (.75, 1.33)
    assert studio.pipeline == preset("default", 64) and studio._preset.value == "as it was"

@pytest.mark.parametrize("channels", [1, 3, 5])
def test_every_operation_has_controls_that_say_what_it_is(channels):
    for name,op in known_operations(channels).items():
        panel = PipelinePanel(Pipeline(Resize(), (op,), 32, (.5,)*channels, (.5,)*channels))
        assert panel.read() == (Resize(), (op,)), name
        assert list(panel._pool.values())[0].controls or name == "ChannelDrop"

def test_repeated_unusual_and_nested_values():
    ops = (PadCrop(40), PadCrop(2), ColorJitter((.2, 3.), hue=(-.3, .1)), Affine((0., 0.), (.3, .1), shear=(-4., 4., -2., 2.)), preset("strong").ops[2])
    p = Pipeline(Resize("pad"), ops, 32)
    panel = PipelinePanel(p)
    assert panel.read() == (p.frame, p.ops)
    panel._pool["Affine", 0].controls["translate y"].value = .5
    panel._pool["Affine", 0].controls["shear y"].value = (-9., 9.)
    inner = panel._pool["OneOf", 0].nested["ops"]
    inner[0][0].value = False                                              # no motion blur
    inner[2][1].controls["std"].value = (.1, .2)
    found = panel.read()[1]
    assert (found[3].translate, found[3].shear) == ((.3, .5), (-4., 4., -9., 9.))
    assert [type(o).__name__ for o in found[4].ops] == ["GaussianBlur", "GaussNoise"] and found[4].ops[1].std == (.1, .2)
    for s,_ in inner: s.value = False
    assert len(panel.read()[1]) == 4                                       # nothing of it is left

def test_a_hundred_updates_leave_no_widgets_behind(grey):
    studio = grey.preview_augmentations(n_images=1, n_draws=1)
    studio.widget
    names = [o for o in list_presets() if o != "strong"]
    def play(i):
        studio.choose(names[i % len(names)])
        studio._panel.add("GaussNoise"); studio._panel.move(len(studio._panel.steps)-1, -1); studio._panel.remove(0)
        studio._panel.places[0].switch.value = i % 2 == 0
    for i in range(len(names)*2): play(i)
    before = n_widgets()
    for i in range(40): play(i)
    assert n_widgets() == before

def test_one_message_with_pictures_an_update(dm):
    studio = dm.preview_augmentations(n_images=1, n_draws=1)
    studio.widget
    seen = []
    studio._picture.observe(seen.append, "value")
    for act in (lambda: setattr(studio, "seed", 5), lambda: studio._panel.places[0].switch.set_trait("value", False), lambda: setattr(studio, "strength", .5), lambda: studio.choose("strong")):
        seen.clear(); act()
        assert len(seen) == 1

def test_what_goes_wrong_is_said(dm):
    studio = dm.preview_augmentations(n_images=1, n_draws=1)
    studio.widget
    studio.choose("randaugment")
    studio.backend = "albumentations"
    assert "role='alert'" in studio._picture.value and "RandAugment" in studio._picture.value
    studio._words.value = "albumentations"
    assert "role='alert'" in studio._code.value
    studio.backend = "torchvision"
    assert "<img" in studio._picture.value
    tall = ImageDataModule(dm.catalog, image_size=(32, 64), batch_size=4).preview_augmentations(n_images=1, n_draws=1)
    tall.widget
    tall._panel.add("Rotate90")                                            # quarter turns need a square
    assert "square" in tall._said.value + tall._picture.value and not any("Rotate90" in repr(o) for o in tall.pipeline.ops)

# ---- taking it over

def test_use_changes_the_next_batch(dm):
    before = next(dm.train_dataloader().batches(0)).image
    studio = dm.preview_augmentations(n_images=2, n_draws=1)
    studio.widget
    studio.choose("none")
    box = next(o for o in studio.widget.children if getattr(o, "children", ()) and getattr(o.children[0], "description", "") == "Use for training")
    box.children[0].click()
    assert dm.train_pipeline == studio.pipeline and "trains with this" in studio._said.value
    after = next(dm.train_dataloader().batches(0)).image
    assert not torch.equal(before, after) and torch.equal(dm.show_batch(n=4).batch.image, after)

def test_use_of_the_other_backend(dm):
    studio = dm.preview_augmentations(n_images=3, n_draws=1)
    studio.backend = "albumentations"
    studio.use()
    assert isinstance(dm.train_pipeline.frame, Custom) and dm.train_recipe == studio.pipeline
    same_as_training(studio)
    again = dm.preview_augmentations(n_images=3, n_draws=1)
    assert again.backend == "albumentations" and again.pipeline == studio.pipeline
    again.backend = "torchvision"
    again.use()
    assert dm.train_pipeline == again.pipeline

# ---- as code

@pytest.mark.parametrize("name", list_presets())
@pytest.mark.parametrize("size", [64, (32, 48)])
def test_code_of_presets(name, size):
    if name == "autotrain" and size != 64:         # it turns by quarters
        with pytest.raises(ConfigError, match="square"): preset(name, size)
        size = (48, 48)
    for p in (preset(name, size), preset(name, size, (.5,), (.5,)), preset(name, size).add(ColorJitter(.1)).edit(name="mine"), preset(name, size, interpolation="bicubic")):
        exec(pipeline_code(p), scope := {})
        assert scope["pipeline"] == p

@pytest.mark.parametrize("name", list_presets())
def test_code_in_torchvisions_words(name):
    exec(pipeline_code(p := preset(name, 32), "torchvision"), scope := {})
    x = torch.from_numpy(photos.chelsea()[::2, ::2].copy()).permute(2, 0, 1)
    for seed in range(3):
        torch.manual_seed(seed); want = to_torchvision(p)(x)
        torch.manual_seed(seed); assert torch.equal(scope["transform"](x), want)

@pytest.mark.parametrize("name", list_presets("albumentations"))
def test_code_in_albumentations_words(name):
    exec(pipeline_code(p := preset(name, 32), "albumentations"), scope := {})
    mine,want = scope["transform"], to_albumentations(p)
    for seed in range(3):
        for o in (mine, want): o.set_random_seed(seed)
        assert torch.equal(mine(image=photos.chelsea())["image"], want(image=photos.chelsea())["image"])

def invert_some(image): return image

def test_code_of_your_own():
    mine = v2.Compose([v2.RandomResizedCrop(32, scale=(.5, 1)), invert_some, v2.RandomApply([v2.ColorJitter(.3)], p=.5), v2.AutoAugment(v2.AutoAugmentPolicy.SVHN), v2.PILToTensor()])
    p = Pipeline(Custom(mine), (HorizontalFlip(.2),), 32, (.5,)*3, (.25,)*3)
    code = pipeline_code(p)
    assert "# invert_some is yours" in code
    exec(code, scope := dict(invert_some=invert_some))
    made = scope["pipeline"]
    assert (made.ops, made.size, made.mean, made.std) == (p.ops, p.size, p.mean, p.std)
    assert list(map(repr, own_steps(made.frame))) == list(map(repr, own_steps(p.frame)))
    assert "Op(op=GaussNoise(" in transform_code(v2.Compose([Op(known_operations()["GaussNoise"])]))
    with pytest.raises(UnknownOptionError, match="torchvision"): pipeline_code(p, "torchvison")

# ---- a transform of the user's own

def test_own_transform(folder):
    mine = v2.Compose([v2.Resize((64, 64)), v2.RandomHorizontalFlip(), v2.ColorJitter(.5), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((.485, .456, .406), (.229, .224, .225)),
                       lambda x: x*(1+.1*torch.randn(()))])
    dm = ImageDataModule(folder, image_size=64, batch_size=4, val_split=3, train_transforms=mine, num_workers=2)
    studio = dm.preview_augmentations(n_images=2, n_draws=2)
    state = torch.default_generator.get_state()
    html = studio.to_html()
    assert torch.equal(torch.default_generator.get_state(), state) and studio.to_html() == html
    studio.widget
    own,panel = studio.pipeline, studio._panel
    assert torch.equal(torch.default_generator.get_state(), state)          # timing draws from it, and puts it back
    assert panel.read() == (own.frame, ()) and "is yours" in studio.code and len(panel.steps) == 7
    assert [o.fields.children == () or len(o.fields.children[0].children) for o in panel.places[:3]] == [1, 1, 1]      # its size is the model's, and has no slider
    panel.places[1].switch.value = False
    panel._pool["ColorJitter", 0].controls["brightness"].value = (.9, 1.1)
    changed = own_steps(studio.pipeline.frame)
    assert len(changed) == 6 and changed[1].brightness == (.9, 1.1) and own_steps(own.frame)[2].brightness == (.5, 1.5)
    assert panel.read()[0] is studio.pipeline.frame
    panel.frame.value = "Resize"
    assert studio.pipeline.frame == Resize()
    panel.frame.value = "your transform"
    assert len(own_steps(studio.pipeline.frame)) == 6
    studio.use()
    same_as_training(studio, (0,))

def test_own_compose_of_albumentations(folder):
    A = import_albumentations()
    mine = A.Compose([A.RandomResizedCrop((64, 64)), A.RandomGamma(p=.7), A.CLAHE(p=1.), A.Posterize(p=.5), A.HorizontalFlip(p=.5)])
    dm = ImageDataModule(folder, image_size=64, batch_size=4, val_split=3, train_transforms=mine)
    studio = dm.preview_augmentations(n_images=2, n_draws=2)
    same_as_training(studio, (1,))
    studio.widget
    names = [type(o.part).__name__ for o in studio._panel.steps]
    assert names == ["RandomResizedCrop", "RandomGamma", "CLAHE", "Posterize", "HorizontalFlip"] and studio.pipeline.ops == (HorizontalFlip(),)
    studio._panel._pool["RandomGamma", 0].controls["p"].value = 1.
    studio._panel.places[2].switch.value = False
    made = studio.pipeline.frame.transform
    assert [type(o).__name__ for o in made.transforms] == ["RandomResizedCrop", "RandomGamma", "Posterize"] and made.transforms[1].p == 1. and mine.transforms[1].p == .7
    assert "ms" in studio._panel.places[1].text.value and "ms" not in studio._panel.places[2].text.value
    studio.full_size = True
    assert (studio.tiles()[0][1] == (255, 210, 0)).all(-1).any()

# ---- other data

def test_grey_studio(grey):
    studio = grey.preview_augmentations(n_images=3, n_draws=2)
    assert studio.tiles()[0][0].shape == (28, 28, 1)
    for name in list_presets(): studio.choose(name); studio.to_html()
    studio.full_size = True
    assert studio.tiles()[0][0].shape[:2] == (7*28, 7*28)                    # enlarged, so that the box is thin

@pytest.mark.parametrize("channels", [2, 5])
def test_many_channels(channels):
    n = 24
    pixels = np.random.default_rng(0).integers(0, 256, (n, 40, 40, channels), dtype=np.uint8)
    frame = pd.DataFrame(dict(path=[f"{i}" for i in range(n)], label=["a", "b"]*(n//2), split=["train"]*20 + ["val"]*4))
    dm = ImageDataModule(Catalog(frame, ["a", "b"], pixels=pixels), image_size=40, batch_size=8)
    studio = dm.preview_augmentations(n_images=2, n_draws=2)
    same_as_training(studio, (0,))
    assert studio.tiles()[0][0].shape[2] == (3 if channels > 3 else 1)
    studio.widget
    studio.channels = (channels-1,)
    assert studio.tiles()[0][0].shape[2] == 1
    for name in studio._panel._operations:
        studio._panel.add(name)
        assert "role='alert'" not in studio._picture.value, name
        studio._panel.remove(len(studio._panel.steps)-1)

def test_masks_depth_and_clips(tmp_path, monkeypatch):
    from test_defects import avenue, mvtec3d
    from visionlab.data.clips import Avenue
    from visionlab.data.mvtec import MVTec3D
    monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))
    mvtec3d(tmp_path/"relief")
    made = lambda **kw: MVTec3D(tmp_path, "relief", image_size=48, num_workers=0, **kw).preview_augmentations(n_images=2, n_draws=3)
    assert not made().pipeline.random
    studio = made(augmentation_preset="light")
    same_as_training(studio, (0, 2))
    assert studio.overlays == ["", "mask", "depth"] and studio.overlay == "mask"
    studio.overlay = ""
    seen = studio.tiles()[0]
    studio.overlay = "depth"                                                # which is high where the picture is bright, wherever it was moved
    alike = [np.corrcoef(x.mean(-1).ravel(), d[...,0].astype(float).ravel())[0, 1] for x,d in zip(seen, studio.tiles()[0]) if np.ptp(d) > 100]
    assert len(alike) >= 4 and min(alike) > .9
    batch = studio.draw(0)
    batch.mask = torch.zeros(2, 48, 48, dtype=torch.bool); batch.mask[:,10:20,10:20] = True
    tinted = pictures(batch, studio._own.finish.norm, "mask")
    assert (tinted[0][10,10] == (255, 0, 255)).all() and np.array_equal(tinted[0][30], pictures(batch, studio._own.finish.norm)[0][30])
    clips = Avenue(avenue(tmp_path/"films"), 3, 4, image_size=(32, 40), num_workers=0, augmentation_preset="light", val_split_mode="none").preview_augmentations(n_images=1, n_draws=2)
    same_as_training(clips, (1,))
    assert clips.tiles()[0][1].shape == (32, 3*40, 3) and "<img" in clips.to_html()
    clips.widget
    assert "role='alert'" not in clips._picture.value + clips._facts_line.value

def test_several_classes_to_an_image():
    n = 12
    pixels = np.random.default_rng(0).integers(0, 256, (n, 30, 30, 3), dtype=np.uint8)
    labels = [("a",), ("a", "b"), (), ("c",)]*3
    frame = pd.DataFrame(dict(path=[f"{i}" for i in range(n)], label=labels, split=["train"]*n))
    studio = ImageDataModule(Catalog(frame, ["a", "b", "c"], pixels=pixels, task="multilabel"), val_split=0, batch_size=4).preview_augmentations(n_images=4, n_draws=1)
    assert {"a, b", "c"} <= {o for o in studio.tiles()[1]} and "<img" in studio.to_html()

# ---- live and stored

def test_stored_picture_is_small_still_and_without_times(folder, monkeypatch):
    dm = ImageDataModule(folder, image_size=224, val_split=3, batch_size=4)
    studio = dm.preview_augmentations()
    assert len(studio._repr_mimebundle_()["text/html"]) < 150_000
    before = n_widgets()
    assert set(studio._repr_mimebundle_()) == {"text/plain", "text/html"} and n_widgets() == before
    monkeypatch.setattr(widgets, "in_notebook", lambda: True)
    bundle = studio._repr_mimebundle_()
    studio.widget
    assert " ms" not in bundle["text/html"] and " ms, on the batch" in studio._panel.places[0].text.value and " ms" in studio._facts_line.value

def test_saving_and_figures(dm, tmp_path):
    studio = dm.preview_augmentations(n_images=2, n_draws=2)
    assert studio.to_html() in studio.save(tmp_path/"a.html").read_text(encoding="utf-8")
    assert Image.open(studio.save(tmp_path/"a.png")).size[0] > 300
    assert repr(studio).startswith("AugmentationStudio: 2 images, 2 draws each")

def test_hostile_names_are_escaped():
    names = ["<script>alert(1)</script>", "a\"onload='x'", "$\\frac$", "日本語 クラス"]
    pixels = np.zeros((16, 8, 8, 3), np.uint8)
    frame = pd.DataFrame(dict(path=[f"i/{i}" for i in range(16)], label=names*4, split=["train"]*16))
    studio = ImageDataModule(Catalog(frame, sorted(names), pixels=pixels), batch_size=8, val_split=0).preview_augmentations(n_images=4, n_draws=1)
    html = studio.to_html()
    assert "<script" not in html and "\"onload='" not in html and "日本語" in html

def test_nothing_global_is_left_changed(dm):
    before = torch.get_num_threads(), torch.default_generator.get_state(), np.random.get_state()[1].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The `ipykernel.comm.Comm`")       # ipywidgets 7 on a new kernel
        studio = dm.preview_augmentations(n_images=2, n_draws=2)
        studio.to_html(); studio.widget; studio.backend = "albumentations"; studio.full_size = True
    assert torch.get_num_threads() == before[0] and torch.equal(torch.default_generator.get_state(), before[1]) and (np.random.get_state()[1] == before[2]).all()

def test_functions_fit_in_a_glance():
    from visionlab.widgets import controls
    from visionlab.widgets import augmentation as studio
    for module in (controls, studio):
        for name,f in inspect.getmembers(module, inspect.isfunction):
            if f.__module__ == module.__name__: assert len(inspect.getsource(f).splitlines()) <= 24, name
