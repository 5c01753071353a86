"The widgets without a browser: traits are set, handlers called, and the pictures, messages and loaders looked at."
import asyncio, json, subprocess, sys, time, warnings
from io import BytesIO
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from kernel import n_widgets
from photos import small_folder
from visionlab.widgets import class_balance as balance
from visionlab.widgets import view as widgets
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ConfigError, UnknownOptionError
from visionlab.data.module import ImageDataModule
from visionlab.widgets.thumbnails import tile_html, to_jpeg

VIEW = "application/vnd.jupyter.widget-view+json"

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder of photographs: three classes of six"
    return small_folder(tmp_path_factory.mktemp("photos"))

@pytest.fixture
def dm(folder): return ImageDataModule(folder, image_size=64, batch_size=4, val_split=3)

@pytest.fixture
def grey(): return ImageDataModule("FashionSample", batch_size=32)

def in_memory(labels, channels=1, size=8, classes=None, **kw):
    "A data module of noise: training images with these labels, and one for validation"
    n = len(labels)
    frame = pd.DataFrame(dict(path=[f"image/{i:05}" for i in range(n+1)], label=[*labels, labels[0]], split=["train"]*n + ["val"]))
    pixels = np.random.default_rng(0).integers(0, 256, (n+1, size, size, channels), dtype=np.uint8)
    return ImageDataModule(Catalog(frame, classes or sorted({o for o in labels if o is not None}), pixels=pixels), **kw)

class Shell:
    "A notebook kernel's shell, and what it publishes."
    def __init__(self, cell="a"): self.sent, self.display_pub, self.cell = [], self, cell
    def get_parent(self): return dict(header=dict(msg_id="1_2_3"), metadata=dict(cellId=self.cell) if self.cell else {})
    def publish(self, data, metadata=None, transient=None, update=False): self.sent.append((update, transient["display_id"], data))

@pytest.fixture
def live(monkeypatch):
    import IPython
    monkeypatch.setattr(widgets, "in_notebook", lambda: True)
    monkeypatch.setattr(IPython, "get_ipython", lambda shell=Shell(): shell)
    return IPython.get_ipython()

# ---- pictures

def test_jpeg_of_grey_rgb_and_floats():
    for x in (np.zeros((9, 12), np.uint8), np.zeros((9, 12, 1), np.uint8), np.zeros((9, 12, 3), np.uint8), torch.rand(3, 9, 12), torch.rand(1, 9, 12)):
        im = Image.open(BytesIO(to_jpeg(x)))
        assert im.size == (12, 9) and im.mode == ("RGB" if x.ndim == 3 and 3 in (x.shape[0], x.shape[2]) else "L")

def test_tiles_escape_and_fit():
    html = tile_html([np.zeros((10, 30, 3), np.uint8)]*3, ["<i>", "&", '"'], ['"><script>x</script>']*3, size=60, ncols=2)
    assert "<script" not in html and "<i>" not in html and html.count("<img") == 3
    assert 'width="60" height="20"' in html and html.count("white-space:nowrap'>") == 2

@pytest.mark.parametrize("shape", [(1, 400), (400, 1), (1, 1), (2000, 3)])
def test_extreme_shapes(shape): assert "<img" in tile_html([np.zeros((*shape, 3), np.uint8)], ["a"], ["b"])

# ---- the batch

@pytest.mark.parametrize("which", ["dm", "grey"])
def test_grid_is_the_training_batch(which, request):
    dm = request.getfixturevalue(which)
    own = next(dm.train_dataloader().batches(0))
    grid = dm.show_batch(n=len(own))
    assert torch.equal(grid.batch.image, own.image) and grid.batch.path == own.path
    images,captions,titles = grid.tiles()
    assert np.allclose(images[1], dm.denormalize(own.image)[1])
    assert captions == [dm.classes[i] for i in own.target] and own.path[0] in titles[0]

def test_grid_walks_through_epochs_and_leaves_the_loader_alone(dm):
    dl = dm.train_dataloader()
    grid = dm.show_batch(n=6)
    seen = []
    while grid.page < len(grid.loader()):
        seen += grid.batch.index.tolist()
        grid.next()
    assert sorted(seen) == sorted(dl.ids)
    assert "epoch 2," in grid.to_html() and torch.equal(grid.batch.image[:4], next(dl.batches(1)).image)
    grid.previous(); assert "epoch 1," in grid.to_html()
    assert dl.epoch == 0

def test_grid_traits_change_the_picture(dm):
    grid = dm.show_batch(n=4)
    first = grid.to_html()
    assert grid.to_html() == first and dm.show_batch(n=4).to_html() == first
    for name,value in dict(raw=True, page=1, split="val").items():
        before = grid.to_html()
        setattr(grid, name, value)
        assert grid.to_html() != before, name
    assert grid.page == 0                                       # another split starts at its beginning
    assert dm.show_batch(n=4, seed=7).to_html() != first

def test_grid_raw_shows_the_files(dm, folder):
    grid = dm.show_batch(n=3)
    grid.raw = True
    for image,title in zip(*grid.tiles()[::2]):
        assert np.array_equal(image, np.array(Image.open(folder/title.split(" · ")[0])))

def test_grid_splits(dm):
    assert {dm.classes[i] for i in dm.show_batch(n=3, split="val").batch.target} == set(dm.classes)   # not the first class only
    with pytest.raises(UnknownOptionError, match="val"): dm.show_batch(split="vall")
    with pytest.raises(ConfigError): dm.show_batch(n=0)

def test_grid_balanced_sampling():
    dm = in_memory(["a"]*90 + ["b"]*10, balanced_sampling=True, batch_size=50)
    assert torch.equal(dm.show_batch(n=50).batch.image, next(dm.train_dataloader().batches(0)).image)

def test_grid_unlabelled():
    assert set(in_memory(["a", None]*8, batch_size=8).show_batch(n=16).tiles()[1]) == {"a"}      # what training sees
    assert set(in_memory([None]*8, classes=["a", "b"]).show_batch(n=8).tiles()[1]) == {"unlabelled"}

@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_names_are_escaped():
    names = ["<script>alert(1)</script>", "a\"onload='x'", "&amp;", "$\\frac$", "日本語 クラス"]
    dm = in_memory(names*4, channels=3, batch_size=8)
    for view in (dm.show_batch(), dm.class_balance()):
        html = view.to_html()
        assert "<script" not in html and "\"onload='" not in html and "日本語" in html
        view.figure().savefig(BytesIO())

# ---- the balance

def test_balance_counts(dm):
    view = dm.class_balance()
    assert view.frame["train"].sum() == 15 and view.frame["val"].sum() == 3 and list(view.frame.index) == dm.classes
    assert view.ratio == 1 and "5 training images" in view.remarks()[0]

def test_balance_order_and_ratio():
    view = in_memory(["b"]*60 + ["a"]*20 + ["c"]*3, classes=["a", "b", "c", "none"]).class_balance()
    assert list(view.frame.index) == ["b", "a", "c", "none"] and view.ratio == 20
    assert view.remarks()[1] == "No training image: none" and "balanced_sampling=True" in view.remarks()[2]
    html = view.to_html()
    view.by = "name"
    assert list(view.frame.index) == ["a", "b", "c", "none"] and view.to_html() != html
    with pytest.raises(UnknownOptionError): view.by = "size"

def test_balance_effective_counts_are_those_drawn():
    dm = in_memory(["a"]*900 + ["b"]*90 + ["c"]*10, balanced_sampling=True, batch_size=100)
    drawn = dm.class_balance().frame["drawn"]
    y = np.concatenate([o.target.numpy() for o in dm.train_dataloader()])
    assert np.allclose(np.bincount(y), drawn, rtol=.2) and drawn.sum() == len(y)
    assert "33" in dm.class_balance().remarks()[-1]             # times an image of c comes

def test_balance_of_a_thousand_classes_is_fast_and_small():
    names = [f"n{i:08}, a kind of thing" for i in range(1000)]
    dm = in_memory([o for i,o in enumerate(names) for _ in range(1 + i % 7)], size=2)
    start = time.process_time()
    view = dm.class_balance()
    html = view.to_html()
    stored = view._repr_mimebundle_()["text/html"]
    assert time.process_time()-start < 1
    assert html.count("<tr>") == 1001 and len(stored) < 60_000 and "800 more classes" in stored and names[0] in stored
    view.figure().savefig(BytesIO())

def test_balance_without_labels():
    view = in_memory([None]*5, classes=["a", "b"]).class_balance()
    assert view.remarks() == ["No training image has a label"] and np.isnan(view.ratio)
    view.to_html(); view.figure()

# ---- live and stored

def views(dm): return [dm.show_batch(n=4), dm.class_balance()]

def test_outside_a_live_kernel_the_picture_is_still(dm):
    before = n_widgets()
    for view in views(dm):
        bundle = view._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "text/html"} and bundle["text/plain"] == repr(view) and json.dumps(bundle)
    assert n_widgets() == before

def test_in_a_live_kernel_there_is_a_view_too(dm, live):
    for view in views(dm):
        view._ipython_display_()
        (_,name,picture),(_,_,controls) = live.sent[-2:]
        assert set(picture) == {"text/plain", "text/html"} and view.to_html() in picture["text/html"] and f"vl-still {name}" in picture["text/html"]
        assert controls[VIEW]["model_id"] == view.widget.model_id and controls["text/html"] == "" and view.widget is view.widget
        assert any(name in o.value and "display:none" in o.value for o in view.widget.children if hasattr(o, "value"))      # while they live, they hide it
        view.close()
        assert live.sent[-1] == (True, f"{name}-live", {"text/html": ""})                                                    # and leave it

def test_who_runs_a_notebook_without_a_page_gets_the_picture_alone(dm, live):
    live.cell = None
    before = n_widgets()
    for view in views(dm): view._ipython_display_()
    assert [VIEW in data for _,_,data in live.sent] == [False, False] and n_widgets() == before

def test_the_saved_picture_follows_the_controls(dm, live, monkeypatch):
    monkeypatch.setattr(widgets, "_SETTLED", .01)
    async def use():
        grid = dm.show_batch(n=2)
        grid._ipython_display_()
        for _ in range(3): grid.next()
        await asyncio.sleep(.5)
        return grid
    grid = asyncio.run(use())
    renewed = [data for update,name,data in live.sent if update and name == grid.token]
    assert len(renewed) == 1 and "images 7–8" in renewed[0]["text/html"]          # once, when all is over

def test_stored_pictures_are_small(folder):
    dm = ImageDataModule(folder, image_size=224, val_split=3, batch_size=4)
    for view in (dm.show_batch(), dm.class_balance()): assert len(view._repr_mimebundle_()["text/html"]) < 150_000

def test_one_message_an_update(dm):
    for view,name,value in ((dm.show_batch(n=4), "split", "val"), (dm.catalog.browse(n=4), "label", "cat"), (in_memory(["b", "b", "a"]).class_balance(), "even", "weights")):
        view.widget
        seen = []
        view._picture.observe(seen.append, "value")
        setattr(view, name, value)
        assert len(seen) == 1

def test_a_hundred_updates_leave_no_widgets_behind(grey):
    grid = grey.show_batch(n=2)
    grid.widget
    before = n_widgets()
    for _ in range(100): grid.next()
    assert n_widgets() == before

def test_controls_follow_traits_and_traits_follow_controls(dm):
    grid = dm.show_batch(n=4)
    (split,_,_,raw),(previous,following,_) = (o.children for o in grid.widget.children[:2])
    split.value,raw.value = "val", True
    assert (grid.split, grid.raw) == ("val", True)
    grid.split = "train"
    assert split.value == "train"
    following.click(); assert grid.page == 1
    previous.click(); previous.click(); assert grid.page == 0

def test_what_goes_wrong_live_is_shown(dm, monkeypatch):
    grid = dm.show_batch(n=4)
    grid.widget
    monkeypatch.setattr(type(grid), "tiles", lambda self: 1/0)
    grid.next()
    assert "role='alert'" in grid._picture.value and "ZeroDivisionError" in grid._picture.value
    with pytest.raises(ZeroDivisionError): grid.to_html()

def test_saving(dm, tmp_path):
    for view in views(dm):
        page = view.save(tmp_path/"a.html").read_text(encoding="utf-8")
        assert page.startswith("<!doctype html>") and "charset='utf-8'" in page and view.to_html() in page
        assert Image.open(view.save(tmp_path/"a.png")).size[0] > 300 and Image.open(view.save(tmp_path/"b.jpg")).mode == "RGB"
        with pytest.raises(UnknownOptionError, match="png"): view.save(tmp_path/"a.gif")

def test_nothing_global_is_left_changed(dm):
    before = torch.get_num_threads(), torch.default_generator.get_state(), np.random.get_state()[1].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The `ipykernel.comm.Comm`")       # ipywidgets 7 on a new kernel
        for view in views(dm): view.to_html(); view.widget
    assert torch.get_num_threads() == before[0] and torch.equal(torch.default_generator.get_state(), before[1]) and (np.random.get_state()[1] == before[2]).all()

def test_importing_is_light():
    code = "import sys, visionlab.widgets.view; print([o for o in ('ipywidgets', 'matplotlib', 'torchvision', 'timm', 'IPython') if o in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
