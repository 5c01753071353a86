"Roads of the loader: threads, processes, time limits, recycled memory, devices' stages."
import os, random, signal, time
import numpy as np
import pytest
import torch
from PIL import Image
from photos import photo_folder
from skimage import data as photos

from visionlab.data.cache_plan import Free
from visionlab.data.caches import caches
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import DataError
from visionlab.data.module import ImageDataModule
from visionlab.data.images import Images
from visionlab.data.own_transforms import choose_road
from visionlab.data.loader import Lender, Loader
from visionlab.data.multilabel import MultiLabelImageDataModule
from visionlab.transforms.presets import preset, PRESETS
from visionlab.transforms.custom import Custom
from visionlab.transforms.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

@pytest.fixture(scope="module")
def cat(tmp_path_factory): return Catalog.from_folder(photo_folder(tmp_path_factory.mktemp("loader"), n_train=12, n_val=0, size=160, classes=("brick", "chelsea", "coffee")))

def pixels(loader, epochs=2): return torch.cat([b.image.clone() for e in range(epochs) for b in loader.batches(e)])

@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_gives_the_same_pixels_on_every_road(cat, name):
    "Workers, batch size and memory change nothing; 160 px of pictures framed to 128 px are never shrunk while decoding"
    def run(size=8, **kw): return pixels(Loader(cat, preset(name, 128), size, shuffle=True, seed=5, **kw))
    want = run()
    assert want.shape == (72, 3, 128, 128) and want.dtype == torch.float32
    assert torch.equal(run(workers=2), want)
    assert torch.equal(run(workers=4, size=5), want)
    assert torch.equal(run(workers=1, images=Images(cat, keep=True)), want)
    different = not torch.equal(want[:36].sort(0).values, want[36:].sort(0).values)
    assert different == preset(name, 128).random

def test_small_images_take_the_batch_road_with_the_same_answer(cat):
    want = pixels(Loader(cat, preset("default", 32), 8, shuffle=True, seed=5))
    assert torch.equal(pixels(Loader(cat, preset("default", 32), 5, shuffle=True, seed=5, workers=2)), want)

def test_bytes_before_the_device(cat):
    loader = Loader(cat, preset("default", 96), 8, as_bytes=True)
    x = next(iter(loader)).image
    assert x.dtype == torch.uint8 and x.shape == (8, 3, 96, 96) and x.is_contiguous(memory_format=torch.channels_last)
    floats = next(iter(Loader(cat, preset("default", 96), 8))).image
    assert torch.equal(loader.finish.device(x, loader.ids[:8], 0), floats)

def test_memory_comes_back_only_when_nobody_looks(cat):
    loader = Loader(cat, preset("light", 128), 4, workers=1)
    kept = [b.image for b in loader]                  # held by the user: never written to again
    copies = [x.clone() for x in kept]
    for _ in loader: pass
    for a,b in zip(kept, copies): assert torch.equal(a, b)
    places = {b.image.data_ptr() for _ in range(3) for b in loader}
    assert len(places) <= loader.ahead+5

def test_lent_memory_is_shared_by_no_two_loans():
    lend,held = Lender(3), []
    for k in range(20):
        x = lend(2, 3, 4, 4); x.fill_(k)
        if k % 3 == 0: held.append((k, x[1:]))
        del x
    for k,x in held: assert (x == k).all()
    assert lend(5, 3, 4, 4).shape == (5, 3, 4, 4)

def test_batches_made_under_inference_mode(cat):
    with torch.inference_mode(): inside = pixels(Loader(cat, preset("default", 128), 8, workers=2))
    assert torch.equal(inside, pixels(Loader(cat, preset("default", 128), 8, workers=2)))

class Slow(Images):
    def framed(self, i, frame, size, u): time.sleep(1.5); return super().framed(i, frame, size, u)

def test_a_disk_that_hangs_is_named(cat):
    with pytest.raises(DataError, match="No batch came within 0.2 s") as e: next(iter(Loader(cat, preset("light", 64), 4, workers=2, images=Slow(cat), timeout=.2)))
    assert ".jpg" in str(e.value) or ".png" in str(e.value)

# ---- transforms of the user's own

def own(f): return Pipeline(Custom(f, numbers="bytes"), size=64)
def cut(image): return np.asarray(image)[:64,:64]
def noisy(image): return np.clip(cut(image) + np.random.randint(0, 9), 0, 255).astype(np.uint8)

def hang(image): time.sleep(5); return cut(image)
def die(image): os.kill(os.getpid(), signal.SIGKILL)

def waits(image):
    "Takes its time without Python's lock, and draws nothing"
    time.sleep(.01)
    return cut(image)

def road(cat, f): return choose_road(Loader(cat, own(f), workers=2)._samples(), cat.frame.index.to_numpy())

def test_threads_serve_what_gives_up_the_lock_and_draws_nothing(cat):
    assert road(cat, waits) == "threads"

def test_what_draws_from_global_generators_needs_processes(cat):
    def tensors(image): return torch.from_numpy(cut(image).copy()).permute(2, 0, 1)[:, torch.randperm(64)]
    def pythonic(image): return np.roll(cut(image), random.randrange(9), 0)
    for f in (noisy, tensors, pythonic): assert road(cat, f) == "processes"

def test_what_holds_the_lock_needs_processes(cat):
    def busy(image):
        end = time.thread_time()+.004
        while time.thread_time() < end: pass
        return cut(image)
    assert road(cat, busy) == "processes"

class Counted:
    "Counts its calls in this process."
    def __init__(self, seconds=0., result=cut): self.calls,self.seconds,self.result = [], seconds, result
    def __call__(self, image):
        self.calls.append(1)
        time.sleep(self.seconds)
        return self.result(image)
    def __deepcopy__(self, memo):
        new = Counted(self.seconds, self.result)
        new.calls = self.calls
        return new

@pytest.mark.parametrize("numbers", [None, "bytes"])
def test_a_transform_is_tried_three_times_at_most(cat, numbers):
    f = Counted()
    loader = Loader(cat, Pipeline(Custom(f, numbers=numbers), size=64), 8, workers=2)
    assert len(f.calls) == (0 if numbers else 3)
    choose_road(loader._samples(), loader.ids, loader._trial)
    assert len(f.calls) == 3

def test_a_module_tries_a_transform_three_times_for_all_that_comes_before_a_batch(tmp_path):
    f = Counted()
    dm = ImageDataModule("FashionSample", batch_size=8, train_transforms=f, num_workers=0, max_samples=64)
    repr(dm), dm.summary()
    batches = iter(dm.train_dataloader())
    assert len(f.calls) <= 3
    next(batches)
    assert len(f.calls) <= 3 + 8

@pytest.mark.parametrize("workers", [0, 2])
def test_the_timeout_covers_the_trial(cat, workers):
    start = time.monotonic()
    with pytest.raises(DataError, match="not done with three images within 0.3 s") as e:
        next(iter(Loader(cat, Pipeline(Custom(Counted(3.)), size=64), 8, workers=workers, timeout=.3)))
    assert "timeout=" in e.value.fix and time.monotonic()-start < 3

def test_the_trial_that_is_given_up_leaves_the_generators_alone(cat):
    random.seed(3); state = random.getstate()
    with pytest.raises(DataError): Loader(cat, Pipeline(Custom(Counted(2., noisy)), size=64), 8, timeout=.2)
    assert random.getstate() == state

def unfinite(at):
    "Divides by zero for one picture."
    def f(image):
        x = torch.from_numpy(cut(image).copy()).permute(2, 0, 1).float()/255
        return x/0 if x.sum() == at else x
    return f

@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_that_are_not_finite_are_those_of_their_file(cat, workers):
    third = torch.from_numpy(cut(Images(cat)[cat.frame.index[2]]).copy()).permute(2, 0, 1).float()/255
    with pytest.raises(DataError, match="not finite") as e: list(Loader(cat, Pipeline(Custom(unfinite(third.sum())), size=64), 8, workers=workers))
    assert e.value.where == str(Images(cat).name(cat.frame.index[2])) and "learning rate" not in str(e.value)

@pytest.mark.parametrize("workers", [0, 2])
def test_sizes_that_differ_name_their_files(cat, workers):
    wide = Images(cat)[cat.frame.index[5]]
    def f(image): return cut(image)[:, :50] if np.array_equal(np.asarray(image), wide) else cut(image)
    with pytest.raises(DataError, match="different sizes") as e: list(Loader(cat, own(f), 8, workers=workers))
    name = Images(cat).name
    assert f"(3, 64, 50) of {name(cat.frame.index[5])}" in e.value.where and f"(3, 64, 64) of {name(cat.frame.index[0])}" in e.value.where

@pytest.mark.parametrize("f", [waits, noisy])
def test_the_answer_does_not_depend_on_the_road(cat, f):
    want = pixels(Loader(cat, own(f), 8, shuffle=True))
    assert torch.equal(pixels(Loader(cat, own(f), 8, shuffle=True, workers=2)), want)

def test_choosing_a_road_leaves_the_generators_alone(cat):
    random.seed(1); np.random.seed(1); torch.manual_seed(1)
    before = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1); np.random.seed(1); torch.manual_seed(1)
    road(cat, noisy)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == before

def test_a_killed_worker_is_explained(cat):
    with pytest.raises(DataError, match="worker process ended") as e: list(Loader(cat, own(die), 8, workers=1)._in_processes([(np.arange(4), cat.frame.index.to_numpy()[:4], 0)]))
    assert "num_workers" in e.value.fix

def test_a_worker_that_hangs_is_explained(cat):
    loader = Loader(cat, own(hang), 4, workers=1, timeout=1, persistent=False)
    with pytest.raises(DataError, match="within 1 s"): list(loader._in_processes([(np.arange(4), cat.frame.index.to_numpy()[:4], 0)]))

# ---- where pixels are kept

@pytest.fixture
def own_cache(monkeypatch, tmp_path): monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))

@pytest.mark.parametrize("cache", ["ram", "disk", 10**9, "auto"])
def test_a_module_gives_the_same_pixels_from_any_cache(cat, own_cache, cache):
    "128 px crops of 160 px pictures, which are kept whole; a file of pixels serves a second module"
    make = lambda cache: ImageDataModule(cat, image_size=128, batch_size=8, val_split=.25, num_workers=2, cache=cache)
    def two(dm): return pixels(dm.train_dataloader()), pixels(dm.val_dataloader())
    want,got,again = (two(make(o)) for o in (None, cache, cache))
    for a,b,c in zip(want, got, again): assert torch.equal(a, b) and torch.equal(a, c)

def test_a_cache_on_the_disk_can_be_cleared(cat, own_cache):
    dm = ImageDataModule(cat, image_size=64, batch_size=8, val_split=.25, cache="disk").setup()
    list(dm.train_dataloader())
    assert dm.train_dataloader().tier == "disk" and len(caches()) == 1
    dm.clear_cache()
    assert len(caches()) == 0
    assert len(list(dm.train_dataloader())) > 0

def test_a_cache_can_be_cleared_while_the_next_epoch_is_begun(cat, own_cache, monkeypatch):
    "A thread that still held an image of the file kept the file from being removed"
    dm = ImageDataModule(cat, image_size=64, batch_size=8, val_split=.25, cache="disk").setup()
    loader = dm.train_dataloader()
    list(loader)
    plain = type(loader)._put

    def slow(self, out, k, i, u):
        held = self.images.store.get(i)
        time.sleep(.05)
        plain(self, out, k, i, u)
        return held
    monkeypatch.setattr(type(loader), "_put", slow)
    list(loader)                    # from the cache; the next epoch is under way when it ends
    dm.clear_cache()
    assert len(caches()) == 0


def test_evaluation_frames_are_kept_when_pictures_are_kept_small(cat, own_cache, monkeypatch):
    "The second evaluation decodes nothing, and its pixels are those of the plain road"
    want = pixels(ImageDataModule(cat, image_size=64, val_split=.25, cache=None).val_dataloader(), 1)
    dm = ImageDataModule(cat, image_size=64, val_split=.25, cache="small-ram")
    monkeypatch.setattr("visionlab.data.module.free_space", lambda **kw: Free(36*3*75*110*5//4))
    assert isinstance(dm.setup().cache_plan.keep, int) and dm.cache_plan.keep is not True
    loader = dm.val_dataloader()
    first = pixels(loader, 1)
    loader.images._decode = None                       # whoever decodes now fails
    assert torch.equal(first, want) and torch.equal(pixels(loader, 1), want)

@pytest.fixture(scope="module")
def large(tmp_path_factory):
    "Photographs much larger than the model's size, of several sizes"
    folder = tmp_path_factory.mktemp("large")
    for i in range(8): Image.fromarray(photos.chelsea()[:300-9*i].repeat(2, 0).repeat(2, 1) if i % 2 else photos.astronaut()[:, :512-11*i]).save(folder/f"{i}.jpg", quality=92)
    return Catalog.from_lists(sorted(folder.glob("*.jpg")), ["a", "b"]*4)

@pytest.mark.parametrize("cache", ["auto", "ram", "disk", 4_000_000])
@pytest.mark.parametrize("free", [2**20, 2**24, 2**33], ids=["little", "some", "much"])
def test_the_same_seed_trains_on_the_same_pixels_whatever_is_free(large, own_cache, monkeypatch, cache, free):
    "95 of 100 crops differ by less than a level from those of the whole file, also in the second epoch"
    monkeypatch.setattr("visionlab.data.module.free_space", lambda **kw: Free(free, None, free))
    make = lambda cache: ImageDataModule(large, image_size=64, augmentation_preset="default", batch_size=4, val_split=0, num_workers=2, cache=cache, normalize=((0.,)*3, (1.,)*3)).train_dataloader()
    want,got = make(None), make(cache)
    far = torch.cat([(a.image-b.image).abs().mean((1, 2, 3))*255 for _ in range(6) for a,b in zip(want, got)])
    assert (far <= 1).float().mean() >= .95

def test_whole_pictures_on_the_device_give_the_crops_of_the_files(cat):
    plain,held = Loader(cat, preset("light", 64), 8, shuffle=True, seed=3), Loader(cat, preset("light", 64), 8, shuffle=True, seed=3, on_device=True)
    assert held.tier == "resident"
    far = torch.cat([(a.image-b.image).abs().mean((1, 2, 3))*255*.229 for _ in range(3) for a,b in zip(plain, held)])
    assert (far <= 1).float().mean() >= .95

def test_pictures_of_several_sizes_are_not_brought_to_one_on_the_device(large):
    with pytest.warns(UserWarning, match="several sizes"): held = Loader(large, preset("light", 64), 4, shuffle=True, seed=3, on_device=True)
    assert held.tier == "files"
    assert torch.equal(pixels(held), pixels(Loader(large, preset("light", 64), 4, shuffle=True, seed=3)))

def test_small_pictures_are_gathered_at_once(tmp_path, own_cache):
    for i in range(40): Image.fromarray(np.full((28, 28), 6*i, np.uint8)).save(tmp_path/f"{i:02}.png")
    cat = Catalog.from_lists(sorted(tmp_path.glob("*.png")), ["a", "b"]*20)
    dm = ImageDataModule(cat, image_size=28, in_chans=1, augmentation_preset="small", val_split=0, batch_size=8)
    want = pixels(ImageDataModule(cat, image_size=28, in_chans=1, augmentation_preset="small", val_split=0, batch_size=8, cache=None).train_dataloader())
    loader = dm.train_dataloader()
    assert torch.equal(pixels(loader), want)
    assert loader._ready is not None and torch.equal(pixels(loader), want)       # all are kept now

def test_crops_cut_on_the_device(cat):
    "The same boxes as on the plain road, from pictures stored as squares"
    near = lambda a,b: (a-b).abs().mean() < .1
    plain = pixels(Loader(cat, preset("light", 64), 8, shuffle=True, seed=3))
    held = Loader(cat, preset("light", 64), 8, shuffle=True, seed=3, workers=2, on_device=160)
    assert held.tier == "resident"
    got = pixels(held)
    assert got.shape == plain.shape and near(got, plain)
    assert torch.equal(got, pixels(held))
    assert torch.equal(got[:36].sum((1, 2, 3)).sort().values, pixels(Loader(cat, preset("light", 64), 5, shuffle=True, seed=3, on_device=160))[:36].sum((1, 2, 3)).sort().values)

def test_policies_of_single_images_stay_in_the_threads(cat):
    assert Loader(cat, preset("randaugment", 64), 8, on_device=160).tier == "files"

# ---- epochs

def test_the_next_epoch_is_begun_and_is_the_right_one(cat):
    make = lambda: Loader(cat, preset("default", 128), 8, shuffle=True, seed=3, workers=2)
    alone = [torch.cat([b.image.clone() for b in make().batches(e)]) for e in range(3)]
    loader = make()
    for e in range(3):
        got = torch.cat([b.image.clone() for b in loader])
        assert loader._begun is not None and torch.equal(got, alone[e])
    assert torch.equal(torch.cat([b.image.clone() for b in loader.batches(0)]), alone[0])      # begun for another epoch: called off

def test_what_was_begun_is_dropped_when_the_pipeline_changes(cat):
    loader = Loader(cat, preset("default", 128), 8, shuffle=True, seed=3, workers=2)
    list(loader)
    loader.batch_size = 5
    assert torch.equal(torch.cat([b.image.clone() for b in loader]), torch.cat([b.image.clone() for b in Loader(cat, preset("default", 128), 5, shuffle=True, seed=3).batches(1)]))

def test_the_last_epoch_begins_no_other(cat):
    loader = Loader(cat, preset("light", 64), 8, shuffle=True, workers=2)
    loader.last_epoch = 0
    list(loader)
    assert loader._begun is None

def test_strong_augmentation_for_several_labels_an_image(tmp_path, own_cache):
    "AT49: albumentations' `strong` in a multi-label module"
    photo_folder(tmp_path/"p", n_train=6, n_val=0, size=64, classes=("brick", "coffee"))
    files = sorted((tmp_path/"p").rglob("*.jpg"))
    (tmp_path/"t.csv").write_text("image_path,red,brown\n" + "".join(f"{f.relative_to(tmp_path/'p')},{i%2},{i%3 == 0:d}\n" for i,f in enumerate(files)))
    dm = MultiLabelImageDataModule(tmp_path/"t.csv", image_dir=tmp_path/"p", image_size=48, batch_size=4, val_split=0, augmentation_preset="strong", transform_backend="albumentations")
    batch = next(iter(dm.train_dataloader()))
    assert batch.image.shape == (4, 3, 48, 48) and batch.target.shape == (4, 2) and batch.image.dtype == torch.float32
