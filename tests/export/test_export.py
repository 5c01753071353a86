"Exports: the same answers after loading, nothing half written, nothing of the user's replaced, every damage named, no code and no network."
import errno, io, json, os, random, re, shutil, signal, socket, stat, subprocess, sys, warnings
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from visionlab.export import folder as deploy
from visionlab.core.errors import CheckpointError, ConfigError, ExportError
from visionlab.catalog.catalog import Catalog
from visionlab.data.module import ImageDataModule
from visionlab.export.folder import CONFIG, FILES, FORMAT, MANIFEST, NewerFormatError, WEIGHTS
from visionlab.export.load import load_model
from visionlab.training.learner import Learner
from visionlab.models.classifier import ImageClassifier
from visionlab.transforms.presets import preset
from visionlab.transforms.ops import Resize
from visionlab.transforms.pipeline import Pipeline

CLASSES = ["kite", "lamp", "moth"]

def picture(i, side=48):
    "Make a smooth image that differs from the others"
    y,x = np.mgrid[:side, :side+i]/side
    return (127 + 127*np.stack([np.sin(x*(3+i)), np.cos(y*(2+i)), np.sin((x+y)*i)], 2)).astype(np.uint8)

@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for c,name in enumerate(CLASSES):
        (root/name).mkdir()
        for i in range(6): Image.fromarray(picture(6*c+i)).save(root/name/f"{i}.{'jpg' if i % 2 else 'png'}")
    return root

def make_learner(photos, model="test_resnet", size=32, seed=0, **kwargs):
    dm = ImageDataModule(photos, image_size=size, batch_size=4, val_split=.34, **kwargs)
    return Learner(dm, model, pretrained=False, device="cpu", seed=seed)

@pytest.fixture(scope="module")
def learn(photos):
    os.environ["VISIONLAB_PROGRESS"] = "off"
    learn = make_learner(photos).fit(1)
    del os.environ["VISIONLAB_PROGRESS"]
    return learn

@pytest.fixture(scope="module")
def exported(learn, tmp_path_factory): return learn.export(tmp_path_factory.mktemp("exports")/"model")

@pytest.fixture
def copy(exported, tmp_path): return Path(shutil.copytree(exported, tmp_path/"model"))

def edit(folder, f):
    "Change the values of a manifest and seal it again, as somebody malicious could"
    d = json.loads((folder/MANIFEST).read_text())
    f(d)
    (folder/MANIFEST).write_text(json.dumps(dict(d, sha256=deploy.seal_of(d))))

def same(a, b): torch.testing.assert_close(a, b, atol=1e-6, rtol=0)

# the same answers

def test_every_kind_of_input(learn, exported, photos):
    loaded,path = load_model(exported, "cpu"), photos/"moth"/"0.png"
    pixels = np.array(Image.open(path))
    one = dict(path=path, text=str(path), bytes=path.read_bytes(), file=io.BytesIO(path.read_bytes()), pil=Image.open(path), array=pixels,
               floats=pixels.astype(np.float32)/255, tensor=torch.from_numpy(pixels).permute(2, 0, 1))
    want = learn.predict(path).probs
    for kind,source in one.items(): same(loaded.predict(source).probs, want)
    for many in ([path, pixels], photos, torch.from_numpy(np.stack([pixels, pixels])).permute(0, 3, 1, 2)):
        got,want = loaded.predict(many), learn.predict(many)
        assert [o.label for o in got] == [o.label for o in want] and [o.path for o in got] == [o.path for o in want]
        same(torch.stack([o.probs for o in got]), torch.stack([o.probs for o in want]))

GREY,SQUASHED = dict(in_chans=1), dict(resize="squash")

@pytest.mark.parametrize("model,size,kwargs", [
    ("resnet9", 28, {}), ("resnet9", 28, GREY), ("test_vit", 64, {}), ("test_vit", (64, 48), GREY), ("test_convnext", 48, SQUASHED),
    ("test_efficientnet", 40, dict(resize="pad", normalize=((.1, .2, .3), (.4, .5, .6)))), ("torchvision/squeezenet1_1", 40, {}), ("torchvision/shufflenet_v2_x0_5", 64, GREY)])
def test_networks_and_pipelines(photos, tmp_path, model, size, kwargs):
    learn = make_learner(photos, model, size, **kwargs)
    loaded = load_model(learn.export(tmp_path/"m"), "cpu")
    same(torch.stack([o.probs for o in loaded.predict(photos)]), torch.stack([o.probs for o in learn.predict(photos)]))
    assert loaded.pipeline == learn.data.eval_pipeline and loaded.classes == CLASSES

def test_arguments_of_the_architecture(photos, tmp_path):
    dm = ImageDataModule(photos, image_size=28, batch_size=4, val_split=.34)
    for model in (ImageClassifier("resnet9", 3, image_size=28, width=8), ImageClassifier("test_resnet", 3, pretrained=False, drop_rate=.3, act_layer="gelu")):
        learn = Learner(dm, model, device="cpu")
        same(load_model(learn.export(tmp_path/"m"), "cpu").predict(picture(3)).probs, learn.predict(picture(3)).probs)

@pytest.mark.parametrize("model,size,kwargs", [("test_resnet", 48, {}), ("test_resnet", 32, GREY), ("test_vit", 64, {}), ("test_vit", 48, GREY), ("test_convnext", 48, SQUASHED)])
def test_plain_timm_loads_it(photos, tmp_path, model, size, kwargs):
    import timm
    learn = make_learner(photos, model, size, **kwargs)
    folder,p = learn.export(tmp_path/"m"), learn.data.eval_pipeline
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = next(iter(learn.data.val_dataloader().to("cpu"))).image
    with torch.inference_mode(): torch.testing.assert_close(net(x), learn.model.eval()(x), atol=1e-5, rtol=0)
    seen = {k:tuple(v) if isinstance(v, list) else v for k,v in timm.data.resolve_model_data_config(net).items()}
    assert seen == dict(input_size=(learn.data.in_chans, *p.size), interpolation=p.frame.interpolation, mean=p.mean, std=p.std, crop_pct=p.frame.kept,
                        crop_mode=dict(crop="center", squash="squash", pad="border")[p.frame.mode])
    assert list(net.pretrained_cfg["label_names"]) == CLASSES

@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    "Pictures with soft edges, wide, tall and square."
    folder, (a, b) = tmp_path_factory.mktemp("shapes"), np.mgrid[:1:200j, :1:200j]
    soft = np.stack([np.sin(9*a + 2*b), np.cos(7*b), np.sin(5*(a-b))], -1)
    for k,(h,w) in enumerate([(90, 160), (200, 60), (120, 120), (64, 65)]): Image.fromarray((127 + 120*soft[:h, :w]).astype(np.uint8)).save(folder/f"{k}.png")
    return folder

def by_timm(folder, paths):
    "Compute probabilities as a timm user does."
    import timm
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    look = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
    with torch.inference_mode(): return net(torch.stack([look(Image.open(o)) for o in paths])).softmax(1)

def by_transformers(folder, paths):
    "Compute probabilities as a user of the transformers pipeline does."
    from transformers import pipeline
    answer = pipeline("image-classification", model=str(folder), device="cpu")
    found = [{o["label"]:o["score"] for o in answer(str(path), top_k=len(CLASSES))} for path in paths]
    return torch.tensor([[o[name] for name in CLASSES] for o in found])

@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("model,size", [("test_resnet", 64), ("test_vit", 64)])
def test_timm_and_transformers_see_the_same_pixels(photos, shapes, tmp_path, model, size, resize):
    learn = make_learner(photos, model, size, resize=resize)
    for p in learn.model.head_parameters(): p.data.mul_(20)            # answers that lie apart
    paths = sorted(shapes.iterdir())
    folder = learn.export(tmp_path/"m")
    want = torch.stack([o.probs for o in load_model(folder, "cpu").predict(paths)])
    assert want.std(0).max() > .02                                     # and that depend on the picture
    torch.testing.assert_close(by_timm(folder, paths), want, atol=2e-3, rtol=0)
    torch.testing.assert_close(by_transformers(folder, paths), want, atol=2e-3, rtol=0)

def test_weights_that_want_the_middle_of_a_squashed_picture(photos, shapes, tmp_path):
    "Eleven of timm's networks say crop_mode='squash' with a crop_pct below 1"
    model = ImageClassifier("test_resnet", 3, pretrained=False, image_size=64)
    model.config = replace(model.config, crop_mode="squash", crop_pct=.9)
    learn = Learner(ImageDataModule(photos, image_size=64, batch_size=4, val_split=.34), model, device="cpu")
    assert learn.data.eval_pipeline.frame.kept == .9
    paths = sorted(shapes.iterdir())
    folder = learn.export(tmp_path/"m")
    want = torch.stack([o.probs for o in load_model(folder, "cpu").predict(paths)])
    torch.testing.assert_close(by_timm(folder, paths), want, atol=2e-3, rtol=0)
    pixels = np.asarray(Image.open(paths[0]))
    import timm
    theirs = timm.data.create_transform(input_size=(3, 64, 64), crop_mode="squash", crop_pct=.9, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    ours = replace(learn.data.eval_pipeline.frame, interpolation="bilinear")(pixels, (64, 64))
    assert np.abs(ours.astype(int) - (255*theirs(Image.open(paths[0])).permute(1, 2, 0).numpy()).round()).max() <= 1

def test_another_level_beside_a_padded_picture_is_told(photos, tmp_path):
    learn = make_learner(photos, "test_resnet", 48, eval_transforms=Pipeline(Resize("pad", fill=0), (), 48))
    with pytest.warns(UserWarning, match="pads with 0.*mean"): learn.export(tmp_path/"m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_learner(photos, "test_resnet", 48, resize="pad").export(tmp_path/"p")

def test_config_has_what_transformers_needs(exported, photos, tmp_path):
    d = json.loads((exported/CONFIG).read_text())
    assert d["architecture"] == "test_resnet" and d["num_classes"] == 3 and d["label_names"] == CLASSES and "model_args" not in d
    grey = json.loads((make_learner(photos, "test_vit", 48, in_chans=1).export(tmp_path/"m")/CONFIG).read_text())
    assert grey["model_args"] == dict(in_chans=1, img_size=[48, 48])      # never num_classes, which transformers would pass twice

def test_training_goes_on_from_it(learn, exported):
    again = Learner(learn.data, ImageClassifier(exported), device="cpu")
    assert again.validate() == pytest.approx(learn.validate(), abs=1e-6)
    assert again.model.config.pretrained and again.model.config.mean == learn.data.eval_pipeline.mean and again.model.config.image_size == (32, 32)

def test_info(learn, exported):
    info = load_model(exported, "cpu").info
    assert info["metrics"] == learn.scores and {"valid_loss", "accuracy"} <= set(info["metrics"])
    assert {"visionlab", "torch", "timm"} <= set(info["versions"]) and info["model"]["architecture"] == "timm/test_resnet"

def test_order_and_ids_of_classes_are_kept(photos, tmp_path):
    catalog = Catalog.from_folder(photos, classes={30:"moth", 10:"kite", 20:"lamp"})
    learn = make_learner(catalog, "resnet9", 28)
    loaded = load_model(learn.export(tmp_path/"m"), "cpu")
    assert loaded.classes == ["moth", "kite", "lamp"] and loaded.info["class_ids"] == [30, 10, 20]

@pytest.mark.parametrize("names", [["<img src=x>", "Größe", "a/b\n\"c\""], ["\udcff broken", "犬", ""]])
def test_odd_class_names(learn, tmp_path, names, monkeypatch):
    monkeypatch.setattr(learn, "classes", names)
    assert load_model(learn.export(tmp_path/"m"), "cpu").classes == names

# writing

def leftovers(folder): return sorted(o.name for o in folder.parent.iterdir() if o != folder)

def test_replaces_an_export_and_nothing_else(learn, tmp_path):
    folder = tmp_path/"deep"/"er"/"m"
    assert learn.export(str(folder)) == folder
    before = (folder/MANIFEST).stat().st_ino
    learn.export(folder)
    assert (folder/MANIFEST).stat().st_ino != before and sorted(o.name for o in folder.iterdir()) == sorted(FILES) and not leftovers(folder)
    (empty := tmp_path/"empty").mkdir()
    load_model(learn.export(empty), "cpu")

@pytest.mark.parametrize("extra", ["README.md", ".git", "model.onnx"])
def test_an_export_with_something_else_in_it_is_kept(learn, copy, extra):
    (copy/extra).write_text("mine")
    with pytest.raises(ExportError, match=re.escape(extra)): learn.export(copy)
    assert (copy/extra).read_text() == "mine" and load_model(copy, "cpu")

@pytest.mark.parametrize("content", [{"a.txt":"x"}, {MANIFEST:"{}"}, {MANIFEST:"{"}, {MANIFEST:'{"kind": "other"}', WEIGHTS:""}, {WEIGHTS:"", CONFIG:"{}"}])
def test_another_folder_is_never_replaced(learn, tmp_path, content):
    (folder := tmp_path/"m").mkdir()
    for name,text in content.items(): (folder/name).write_text(text)
    with pytest.raises(ExportError) as e: learn.export(folder)
    assert e.value.where == str(folder) and e.value.fix and {o.name:o.read_text() for o in folder.iterdir()} == content and not leftovers(folder)

def test_a_file_of_that_name_is_kept(learn, tmp_path):
    (tmp_path/"m").write_text("mine")
    with pytest.raises(ExportError, match="a file of that name"): learn.export(tmp_path/"m")
    assert (tmp_path/"m").read_text() == "mine"

def no_space(*args): raise OSError(errno.ENOSPC, "No space left on device")
def interrupt(*args): raise KeyboardInterrupt

@pytest.mark.parametrize("step", ["_write_weights", "flush_to_disk", "atomic_write", "_put"])
@pytest.mark.parametrize("fail,error", [(no_space, ExportError), (interrupt, KeyboardInterrupt)])
def test_a_failure_leaves_the_former_export(learn, copy, monkeypatch, step, fail, error):
    before = {o.name:o.read_bytes() for o in copy.iterdir()}
    monkeypatch.setattr(deploy, step, fail)
    with pytest.raises(error): learn.export(copy)
    assert {o.name:o.read_bytes() for o in copy.iterdir()} == before and not leftovers(copy)

def test_a_failed_exchange_is_undone(learn, copy, monkeypatch):
    before,rename = (copy/WEIGHTS).read_bytes(), os.rename
    def second_fails(a, b):
        if str(a).endswith(".tmp"): raise OSError(errno.EIO, "broken disk")
        rename(a, b)
    monkeypatch.setattr(deploy.os, "rename", second_fails)
    with pytest.raises(ExportError, match="broken disk"): learn.export(copy)
    assert (copy/WEIGHTS).read_bytes() == before and not leftovers(copy)

def test_killed_in_the_middle(copy, photos):
    code = f"""if True:
    import os, signal, sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_deploy import *
    deploy.flush_to_disk = lambda path: os.kill(os.getpid(), signal.SIGKILL)
    make_learner({str(photos)!r}, seed=1).export({str(copy)!r})"""
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=str(Path(deploy.__file__).parents[1])))
    assert done.returncode == -signal.SIGKILL
    assert load_model(copy, "cpu") and all(re.fullmatch(r"\.model-\w+\.tmp", o) for o in leftovers(copy))

@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_others_may_read_it(learn, tmp_path):
    before = os.umask(0o022)
    try: folder = learn.export(tmp_path/"m")
    finally: os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755 and {stat.S_IMODE(o.stat().st_mode) for o in folder.iterdir()} == {0o644}

def test_a_link_stays_a_link(learn, tmp_path):
    (tmp_path/"real").mkdir(); (tmp_path/"link").symlink_to(tmp_path/"real")
    learn.export(tmp_path/"link")
    assert (tmp_path/"link").is_symlink() and load_model(tmp_path/"real", "cpu")

def test_nothing_about_the_person_is_in_it(photos, tmp_path):
    from safetensors.torch import save_file
    save_file(ImageClassifier("test_resnet", 3, pretrained=False).net.state_dict(), tmp_path/"alices_secret.safetensors")
    learn = Learner(ImageDataModule(photos, image_size=32, batch_size=4, val_split=.34), ImageClassifier("test_resnet", 3, weights=tmp_path/"alices_secret.safetensors"), device="cpu")
    folder = learn.export(tmp_path/"m")
    for o in folder.iterdir():
        text = o.read_bytes()
        assert not any(w.encode() in text for w in (str(Path.home()) + os.sep, str(tmp_path), str(photos), "alice", socket.gethostname()) if len(w) > 4)

def test_random_numbers_are_left_alone(learn, tmp_path):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    load_model(learn.export(tmp_path/"m"), "cpu")
    assert torch.equal(torch.get_rng_state(), before[0]) and (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]

def test_the_learner_is_left_alone(learn, tmp_path):
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    learn.export(tmp_path/"m")
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

# what cannot be exported

class Net(nn.Module):
    def __init__(self): super().__init__(); self.f = nn.Linear(3*32*32, 3)
    def forward(self, x): return self.f(x.flatten(1))

def refused(learn, folder, error, *words):
    with pytest.raises(error) as e: learn.export(folder)
    text = str(e.value)
    assert "fix:" in text and all(w in text for w in words) and not folder.exists() and not list(folder.parent.glob(".*"))

def test_own_networks(learn, tmp_path):
    for model in (Net(), ImageClassifier(Net())): refused(Learner(learn.data, model, device="cpu"), tmp_path/"m", ExportError, "Net", "by name")

def test_own_transforms(photos, tmp_path):
    refused(make_learner(photos, eval_transforms=lambda im: np.array(im.resize((32, 32)))), tmp_path/"m", ConfigError, "preset")

def test_random_evaluation(photos, tmp_path):
    refused(make_learner(photos, eval_transforms=preset("light", 32)), tmp_path/"m", ConfigError, "Resize")

def test_bare_loaders(tmp_path):
    data = [(torch.zeros(2, 3, 32, 32), torch.arange(2))]
    refused(Learner((data, data), ImageClassifier("resnet9", 2, image_size=32), device="cpu"), tmp_path/"m", ExportError, "ImageDataModule")

def test_diverged(photos, tmp_path):
    learn = make_learner(photos)
    with torch.no_grad(): next(learn.model.parameters())[0] = float("nan")
    refused(learn, tmp_path/"m", ExportError, "learning rate")

def test_changed_networks(photos, tmp_path):
    learn = make_learner(photos)
    learn.model.net.fc = nn.Sequential(nn.Linear(learn.model.net.num_features, 8), nn.ReLU(), nn.Linear(8, 3))
    refused(learn, tmp_path/"m", ExportError, "fc.0.weight", "reset_head")

# loading what is not whole

def damaged(folder, name, error=CheckpointError):
    with pytest.raises(error) as e: load_model(folder, "cpu")
    assert name in e.value.what and str(folder) in e.value.where and e.value.fix
    return e.value

def shorten(f, n): f.write_bytes(f.read_bytes()[:n])
def flip(f, at):
    data = bytearray(f.read_bytes()); data[at % len(data)] ^= 4
    f.write_bytes(data)

@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", [Path.unlink, lambda f: shorten(f, 0), lambda f: shorten(f, -1), lambda f: shorten(f, 100), lambda f: flip(f, 3), lambda f: flip(f, -20),
                                 lambda f: f.write_bytes(b"\0"*f.stat().st_size), lambda f: (f.unlink(), f.mkdir())],
                         ids=["missing", "empty", "one byte short", "100 bytes", "flip at the start", "flip at the end", "zeros", "a folder"])
def test_damage_is_named(copy, name, how):
    how(copy/name)
    damaged(copy, name)

def test_any_flipped_bit_of_the_manifest_shows(copy):
    text,rng = (copy/MANIFEST).read_bytes(), random.Random(0)
    values = json.loads(text)
    for _ in range(300):
        data = bytearray(text); data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (copy/MANIFEST).write_bytes(data)
        try: load_model(copy, "cpu")
        except CheckpointError as e: assert MANIFEST in str(e)
        else: assert json.loads(data) == values       # white space, or a digit beyond the precision of a float

@pytest.mark.parametrize("name", ["nothing", "file", "empty", "photos", "timm"])
def test_what_is_no_export(tmp_path, name, photos):
    folder = tmp_path/"x"
    if name == "file": folder.write_text("")
    if name == "empty": folder.mkdir()
    if name == "photos": folder = photos
    if name == "timm": folder.mkdir(); (folder/CONFIG).write_text('{"architecture": "resnet18"}')
    with pytest.raises(CheckpointError) as e: load_model(folder, "cpu")
    words = dict(nothing="no such folder", file="is a file", empty="it is empty", photos="kite, lamp, moth", timm="ImageClassifier")
    assert words[name] in str(e.value) and e.value.fix

@pytest.mark.parametrize("name", ["format", "classes", "model", "pipeline", "files"])
def test_missing_values_are_named(copy, name):
    edit(copy, lambda d: d.pop(name))
    with pytest.raises(CheckpointError, match=MANIFEST): load_model(copy, "cpu")

def test_an_unreadable_file_is_named(copy, monkeypatch):
    monkeypatch.setattr(deploy, "file_sha256", no_space)
    damaged(copy, WEIGHTS)

def test_newer_format(copy):
    edit(copy, lambda d: d.update(format=FORMAT+1))
    e = damaged(copy, f"format {FORMAT+1}", NewerFormatError)
    assert "pip install" in e.fix

# loading what somebody malicious made

EVIL_VALUES = dict(format=["1", None], classes=[CLASSES[:2], "abc", [1, 2, 3], None, {}], model=[[], None], files=[{}, None, {WEIGHTS:None, CONFIG:None}])
EVIL_MODELS = dict(architecture=["timm/no_such_net", "../../etc", "custom/os.system", "timm/test_vit", 3], kwargs=[dict(checkpoint_path="evil.pth"), dict(no_such=1), dict(block_args=3), []],
                   num_classes=[-1, "3", 10**12], in_chans=[1, 0, "x"], evil=[1], image_size=[[0, 0], "big"])
EVIL_PIPELINES = dict(frame=[dict(op="system", command="ls"), dict(op="HorizontalFlip"), dict(op="RandomResizedCrop"), dict(op="Resize", evil=1), dict(op="Resize", crop_pct=0), None],
                      ops=[7, [dict(op="eval")]], size=[[0, 0], "big", [10**9, 10**9], [32]], mean=[[.5], ["a"]*3, [float("nan")]*3], std=[None])
EVIL_FILES = dict(bytes=["x", None, -1], sha256=[None, "", 5])
CHANGES = [(where, name, value) for where,table in (((), EVIL_VALUES), (("model",), EVIL_MODELS), (("pipeline",), EVIL_PIPELINES), (("files", WEIGHTS), EVIL_FILES))
           for name,values in table.items() for value in values]

@pytest.mark.parametrize("where,name,value", CHANGES, ids=[f"{'.'.join((*w, n))}={v!r}"[:60] for w,n,v in CHANGES])
def test_wrong_values_are_named(copy, where, name, value):
    def change(d):
        for o in where: d = d[o]
        d[name] = value
    edit(copy, change)
    with pytest.raises(CheckpointError) as e: load_model(copy, "cpu")
    assert str(copy) in e.value.where

def test_weights_of_another_network(copy, photos, tmp_path):
    other = make_learner(photos, "test_convnext", 32).export(tmp_path/"other")
    shutil.copy(other/WEIGHTS, copy/WEIGHTS)
    edit(copy, lambda d: d["files"].update({WEIGHTS:dict(bytes=(copy/WEIGHTS).stat().st_size, sha256=deploy.file_sha256(copy/WEIGHTS))}))
    with pytest.raises(CheckpointError, match="do not fit") as e: load_model(copy, "cpu")
    assert WEIGHTS in e.value.where

def test_a_pickle_in_place_of_the_weights(copy, tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/"owned"),)
    torch.save(Evil(), copy/WEIGHTS)
    edit(copy, lambda d: d["files"].update({WEIGHTS:dict(bytes=(copy/WEIGHTS).stat().st_size, sha256=deploy.file_sha256(copy/WEIGHTS))}))
    damaged(copy, WEIGHTS)
    assert not (tmp_path/"owned").exists()

def rewritten(folder, change):
    "Change the tensors of an export and seal it again."
    from safetensors.torch import load_file, save_file
    tensors = load_file(folder/WEIGHTS)
    change(tensors)
    save_file(tensors, folder/WEIGHTS, metadata=dict(format="pt"))
    edit(folder, lambda d: d["files"].update({WEIGHTS:dict(bytes=(folder/WEIGHTS).stat().st_size, sha256=deploy.file_sha256(folder/WEIGHTS))}))

def first_filled(value):
    def change(tensors):
        name = next(k for k,v in tensors.items() if v.ndim == 4)
        tensors[name].view(-1)[7] = value
    return change

def whole_numbers(tensors): tensors.update({k:v.round().to(torch.int32) for k,v in tensors.items() if v.ndim > 1})
def too_large(tensors): tensors.update({k:torch.full_like(v, 1e300, dtype=torch.float64) for k,v in tensors.items() if v.ndim == 4})
def a_nan_among_statistics(tensors): tensors[next(k for k in tensors if k.endswith("running_var"))][0] = float("nan")

WRONG_NUMBERS = dict(nan=(first_filled(float("nan")), "not finite"), infinite=(first_filled(float("inf")), "not finite"), statistics=(a_nan_among_statistics, "not finite"),
                     whole=(whole_numbers, "not of floats"), doubles=(too_large, "not finite"))

@pytest.mark.parametrize("name", WRONG_NUMBERS)
def test_weights_that_cannot_answer_are_refused_at_every_door(copy, name):
    change,says = WRONG_NUMBERS[name]
    rewritten(copy, change)
    with pytest.raises(CheckpointError, match=says): load_model(copy, "cpu")
    (copy/MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=says): ImageClassifier(copy)
    with pytest.raises(CheckpointError, match=says): ImageClassifier("test_resnet", 3, weights=copy/WEIGHTS)
    from safetensors.torch import load_file
    torch.save(load_file(copy/WEIGHTS), copy/"w.pth")
    with pytest.raises(CheckpointError, match=says): ImageClassifier("test_resnet", 3, weights=copy/"w.pth")

STRANGE_MODELS = dict(hub=dict(architecture="timm/hf-hub:someone/net"), hub_alias=dict(architecture="timm/hf_hub:someone/net"), local=dict(architecture="timm/local-dir:/tmp"),
    unknown_ours=dict(architecture="visionlab/evil"), detector=dict(architecture="torchvision/fasterrcnn_resnet50_fpn"), segmenter=dict(architecture="torchvision/deeplabv3_resnet50"),
    quantized=dict(architecture="torchvision/quantized_resnet50"), weights=dict(architecture="torchvision/resnet18", kwargs=dict(weights="DEFAULT")),
    backbone=dict(architecture="torchvision/resnet18", kwargs=dict(weights_backbone="DEFAULT")), tagged=dict(architecture="timm/resnet18.a1_in1k"), other=dict(architecture="timm/resnet18"),
    theirs=dict(architecture="torchvision/resnet18"), classes=dict(num_classes=10**7), channels=dict(in_chans=10**9), channels_of_none=dict(in_chans=10**9, mean=None, std=None),
    channels_within=dict(in_chans=10**4, mean=[.5]*10**4, std=[.5]*10**4), wide=dict(architecture="timm/test_resnet", kwargs=dict(stem_width=10**6)),
    wider=dict(architecture="visionlab/resnet9", kwargs=dict(width=2*10**5)), deep=dict(architecture="timm/resnet18", kwargs=dict(layers=[10**5]*4)),
    deeper=dict(architecture="timm/vit_tiny_patch16_224", kwargs=dict(depth=10**9)))

@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of memory is Linux's")
def test_a_manifest_is_not_obeyed_before_the_weights_are_looked_at(copy, tmp_path):
    "No network, no memory, a typed error: by a manifest, and by a config.json without one."
    for name,change in STRANGE_MODELS.items():
        shutil.copytree(copy, folder := tmp_path/"strange"/name)
        def strange(d):
            d["model"].update(change)
            if n := change.get("num_classes"): d["classes"] = [str(i) for i in range(n if n < 1000 else 10)]
            for part in ("mean", "std"): d["pipeline"][part] = change.get(part) or d["pipeline"][part]
        edit(folder, strange)
        own = json.loads((folder/CONFIG).read_text())
        own["visionlab"].update(change)
        shutil.copytree(folder, bare := tmp_path/"bare"/name)
        (bare/MANIFEST).unlink()
        (bare/CONFIG).write_text(json.dumps(own))
    code = f"""if True:
    import resource, socket, sys
    from pathlib import Path
    from visionlab.core.errors import CheckpointError, ConfigError, UnknownOptionError
    from visionlab.export.load import load_model
    from visionlab.models.classifier import ImageClassifier
    load_model({str(copy)!r}, "cpu"); ImageClassifier({str(copy)!r})
    asked = []
    def blocked(*args, **kwargs): asked.append(args); raise OSError("no network")
    socket.getaddrinfo = socket.socket.connect = socket.create_connection = blocked
    used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    now = int(next(o for o in open("/proc/self/status") if o.startswith("VmSize")).split()[1])*1024
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))
    for way,open_it in (("strange", lambda o: load_model(o, "cpu")), ("bare", ImageClassifier)):
        for folder in sorted((Path({str(tmp_path)!r})/way).iterdir()):
            before = used()
            try: open_it(folder); said = "nothing"
            except (CheckpointError, ConfigError, UnknownOptionError) as e: said = "typed"
            except BaseException as e: said = f"{{type(e).__name__}}: {{str(e)[:80]}}"
            if said != "typed" or asked or used() - before > 100: print(way, folder.name, said, asked, round(used() - before))
            asked.clear()"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(Path(deploy.__file__).parents[1])))
    assert not done.returncode and not done.stdout, done.stdout + done.stderr[-2000:]

def test_an_export_whose_network_says_its_size_while_built_loads(photos, tmp_path):
    "torchvision's RegNets compute their widths with tensors, so an outline must keep those."
    learn = make_learner(photos, "torchvision/regnet_x_400mf", 32)
    loaded = load_model(learn.export(tmp_path/"m"), "cpu")
    same(loaded.predict(picture(3)).probs, learn.predict(picture(3)).probs)

def test_a_pipeline_that_would_enlarge_without_end_is_refused(copy):
    edit(copy, lambda d: d["pipeline"].update(frame=dict(op="Resize", mode="crop", crop_pct=1e-7)))
    damaged(copy, MANIFEST)

def test_deeply_nested_json(copy):
    (copy/MANIFEST).write_text("["*100_000)
    damaged(copy, MANIFEST)

def test_no_network_and_no_unpickling(exported, monkeypatch):
    def never(*args, **kwargs): raise AssertionError("called")
    for owner,name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (torch, "load"), (torch.hub, "load_state_dict_from_url")): monkeypatch.setattr(owner, name, never)
    assert load_model(exported, "cpu").predict(picture(1)).label in CLASSES

def test_a_pretrained_name_is_not_fetched_again(copy, monkeypatch):
    def never(*args, **kwargs): raise AssertionError("called")
    edit(copy, lambda d: d["model"].update(pretrained="r160_in1k"))
    monkeypatch.setattr(socket, "getaddrinfo", never)
    load_model(copy, "cpu")

def test_the_module_has_no_way_to_run_code():
    source = Path(deploy.__file__).read_text()
    assert not re.search(r"torch\.load|pickle|yaml\.load|\beval\(|\bexec\(|shell=|importlib|jit\.load", source)

# a saved folder without its weights, or with others

@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of memory is Linux's")
def test_a_folder_is_not_obeyed_whichever_way_it_is_opened(copy, tmp_path):
    "No network, no memory, a typed error: untrained, with other weights, and where no weights are beside it."
    strange = dict(STRANGE_MODELS, large=dict(image_size=[10**9, 10**9]), cropped=dict(crop_pct=1e-9), nothing=dict(std=[0., 0., 0.]), texts=dict(mean=["a", "b", "c"]),
                   of_texts=dict(kwargs=dict(channels="abc")), positions=dict(architecture="timm/vit_tiny_patch16_224", image_size=[16384, 16384], fixed_size=True))
    for o in ("theirs", "other"): strange.pop(o)           # sound networks, only not of these weights
    for name,change in strange.items():
        shutil.copytree(copy, folder := tmp_path/"whole"/name)
        (folder/MANIFEST).unlink()
        own = json.loads((folder/CONFIG).read_text())
        own["visionlab"].update(change)
        (folder/CONFIG).write_text(json.dumps(own))
        if name == "channels_within": continue             # no weights say otherwise, and it is no more than a saved network may have
        shutil.copytree(folder, bare := tmp_path/"bare"/name)
        (bare/WEIGHTS).unlink()
    code = f"""if True:
    import resource, socket, sys
    from pathlib import Path
    from visionlab.core.errors import CheckpointError, ConfigError, UnknownOptionError
    from visionlab.models.classifier import create_model
    weights = {str(copy/WEIGHTS)!r}
    create_model({str(copy)!r}, pretrained=False); create_model({str(copy)!r}, weights=weights)
    ways = dict(untrained=("whole", lambda o: create_model(o, pretrained=False)), weights=("whole", lambda o: create_model(o, weights=weights)), as_text=("whole", lambda o: create_model(f"local-dir:{{o}}", pretrained=False)),
                bare=("bare", lambda o: create_model(o, pretrained=False)), bare_weights=("bare", lambda o: create_model(o, weights=weights)))
    asked = []
    def blocked(*args, **kwargs): asked.append(args); raise OSError("no network")
    socket.getaddrinfo = socket.socket.connect = socket.create_connection = blocked
    used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    now = int(next(o for o in open("/proc/self/status") if o.startswith("VmSize")).split()[1])*1024
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))
    for way,(place,open_it) in ways.items():
        for folder in sorted((Path({str(tmp_path)!r})/place).iterdir()):
            before = used()
            try: open_it(folder); said = "nothing"
            except (CheckpointError, ConfigError, UnknownOptionError) as e: said = "typed"
            except BaseException as e: said = f"{{type(e).__name__}}: {{str(e)[:80]}}"
            if said != "typed" or asked or used() - before > 100: print(way, folder.name, said, asked, round(used() - before))
            asked.clear()"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(Path(deploy.__file__).parents[1])))
    assert not done.returncode and not done.stdout, done.stdout + done.stderr[-2000:]

@pytest.mark.parametrize("change", [dict(num_classes=10**7), dict(architecture="timm/hf-hub:someone/net"), dict(kwargs=dict(stem_width=10**6))], ids=["classes", "name", "wide"])
def test_training_from_a_strange_folder_is_refused(copy, photos, change, monkeypatch):
    "A learner and the command line, with and without the weights."
    from visionlab.cli import main
    (copy/MANIFEST).unlink()
    own = json.loads((copy/CONFIG).read_text())
    own["visionlab"].update(change)
    (copy/CONFIG).write_text(json.dumps(own))
    def never(*args, **kwargs): raise AssertionError("asked the network")
    monkeypatch.setattr(socket, "getaddrinfo", never)
    dm = ImageDataModule(photos, image_size=32, batch_size=4, val_split=.34)
    for pretrained in (True, False):
        if "num_classes" in change: break                  # the learner gives its own
        with pytest.raises((CheckpointError, ConfigError)): Learner(dm, str(copy), pretrained=pretrained, device="cpu")
        assert main(["train", "--data", str(photos), "--model", str(copy), "--no-pretrained" if not pretrained else "--pretrained", "--image-size", "32"]) == 1
    for ask in (dict(), dict(pretrained=False), dict(weights=copy/WEIGHTS)):
        with pytest.raises((CheckpointError, ConfigError)): ImageClassifier(copy, **ask)

@pytest.mark.parametrize("classes", [None, 5, ["q"]*9 + ["1"]])
def test_a_list_of_classes_that_is_none_is_named(copy, classes):
    "As training from an exported folder reads it."
    from visionlab.runs.making import _with_head_for
    model = ImageClassifier(copy, 2)
    edit(copy, lambda d: d.update(classes=classes))
    with pytest.raises(CheckpointError): _with_head_for(model, str(copy), ["1", "9"], True)

@pytest.mark.parametrize("noted", [5, [], "x", dict(a=5), {"model.safetensors":[]}])
def test_a_manifest_that_lists_no_files_is_named(copy, noted):
    (copy/MANIFEST).write_text(json.dumps(dict(json.loads((copy/MANIFEST).read_text()), files=noted)))
    with pytest.raises(CheckpointError, match="lists no files"): ImageClassifier(copy)

@pytest.mark.parametrize("name", ["../x", "", "best", "a/b", "\0"])
def test_a_pointer_that_names_no_checkpoint(tmp_path, name):
    (tmp_path/"best").write_text(name)
    with pytest.raises(CheckpointError): ImageClassifier(tmp_path/"best")
