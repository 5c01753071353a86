"One configuration: fields checked when it is made, YAML in and out, other libraries' names, and a training that does what it says."
import inspect
import json
import os
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from fastcore.docments import docments
from torch import nn

from photos import photo_folder
from visionlab.runs import plan
from visionlab.callbacks import precision
from visionlab.runs import train as train_module
from visionlab.catalog.catalog import Catalog
from visionlab.runs.checkpoints import Checkpoint, list_checkpoints, resolve
from visionlab.runs.config import SPECIAL_FIELDS, ALIASES, field_groups, fit_options, own_names, TrainConfig
from visionlab.runs.config_files import config_text, read_settings_file, resumed_config
from visionlab.core.errors import ClassMismatchError, ConfigError, ExportError, UnknownOptionError
from visionlab.data.module import ImageDataModule
from visionlab.export.load import load_model
from visionlab.training.optim import default_lr
from visionlab.training.events import Callback
from visionlab.training.learner import Learner
from visionlab.runs.lightly import lightly_config, train_image_classification
from visionlab.training.losses import Focal
from visionlab.callbacks.options import FitOptions
from visionlab.runs.making import make_data, make_learner
from visionlab.runs.plan import planned_fits, run_schedule
from visionlab.runs.model_card import measure
from visionlab.runs.train import push_run, train

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = dict(data="FashionSample", model="resnet9", max_samples=200, device="cpu", on_leak="ignore")
AUTOTRAIN = "data_path model project_name image_column target_column train_split valid_split max_samples lr epochs batch_size warmup_ratio gradient_accumulation optimizer scheduler weight_decay max_grad_norm seed " \
            "mixed_precision auto_find_batch_size save_total_limit logging_steps eval_strategy early_stopping_patience early_stopping_threshold push_to_hub username token log".split()


@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv("VISIONLAB_PROGRESS", "off")


@pytest.fixture
def no_figures(monkeypatch): monkeypatch.setattr(train_module, "write_figures", lambda *args: {})      # they take seconds, and `run` has them


@pytest.fixture(scope="module")
def few(): return make_data(TrainConfig(**FEW))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A finished run: its folder, its learner, and how often each split was answered"
    folder, said, asked = tmp_path_factory.mktemp("runs")/"birds", [], []
    own = Learner._outputs
    def counted(self, dl):
        asked.append(dl)
        return own(self, dl)
    before, os.environ["VISIONLAB_PROGRESS"] = os.environ.get("VISIONLAB_PROGRESS"), "off"
    Learner._outputs = counted
    try: learn = train(**FEW, epochs=2, batch_size=32, out=str(folder), token="hf_secret", say=lambda o: said.append(str(o)))
    finally:
        Learner._outputs = own
        if before is None: del os.environ["VISIONLAB_PROGRESS"]
    return folder, learn, asked, "\n".join(said)


def weights(learn): return torch.cat([p.detach().ravel() for p in learn.model.parameters()])


# ---- fields

def test_every_field_says_what_it_is():
    said = docments(TrainConfig)
    for f in fields(TrainConfig): assert said.get(f.name), f.name
    assert sum(field_groups().values(), []) == [f.name for f in fields(TrainConfig)]


def test_fits_and_data_have_no_option_that_a_configuration_lacks():
    mine = {f.name:f for f in fields(TrainConfig)}
    for f in fields(FitOptions): assert mine[f.name].default == f.default, f.name
    python_only = {"self", "data_dir", "train_csv", "train_transforms", "eval_transforms"}
    assert set(inspect.signature(ImageDataModule.__init__).parameters) - python_only <= set(mine)
    assert fit_options(TrainConfig("x", ema=.9, clip="agc", max_grad_norm=1)).to_dict() == FitOptions(ema=.9, clip="agc", max_grad_norm=1.).to_dict()


@pytest.mark.parametrize("name,given,wanted", [
    ("epochs", "7", 7), ("epochs", 7., 7), ("epochs", "1e2", 100), ("lr", "1e-3", 1e-3), ("lr", 1, 1.), ("pretrained", "off", False), ("pretrained", "Yes", True), ("ema", "true", True), ("ema", ".99", .99),
    ("image_size", "224", 224), ("image_size", [192, 224], (192, 224)), ("image_size", "[192, 224]", (192, 224)), ("image_size", "auto", None), ("batch_size", "auto", None), ("num_workers", "auto", None),
    ("normalize", [[.5], [.2]], ([.5], [.2])), ("classes", "cat", ["cat"]), ("classes", ("b", "a"), ["b", "a"]), ("classes", "[b, a]", ["b", "a"]), ("classes", {3:"1", 7:"2"}, {3:"1", 7:"2"}), ("metrics", "autotrain", ["autotrain"]),
    ("class_weights", "auto", "auto"), ("class_weights", [1, 2], [1, 2]), ("class_weights", torch.tensor([1., 2.]), [1., 2.]), ("optimizer_args", dict(betas="[.9, .95]", fused="false", name="x"), dict(betas=[.9, .95], fused=False, name="x")),
    ("compile", "true", True), ("compile", "inductor", "inductor"), ("precision", 16, 16), ("precision", "bf16-mixed", "bf16-mixed"), ("cache", "2e9", 2*10**9), ("cache", "none", "none"), ("cache", None, "none"), ("log", ["wandb"], ["wandb"]),
    ("log", "auto", "auto"), ("out", Path("runs/x"), os.path.join("runs", "x")), ("weight_decay", None, .02), ("label_type", "auto", "auto")])
def test_values_are_read_as_what_the_field_holds(name, given, wanted):
    read = getattr(TrainConfig("photos", **{name:given}), name)
    assert read == wanted and type(read) is type(wanted)


@pytest.mark.parametrize("name,given,said", [
    ("epochs", 2.5, "a whole number"), ("epochs", True, "a whole number"), ("epochs", "many", "a whole number"), ("epochs", 0, "from 1 up"), ("lr", "fast", "a number"), ("lr", float("nan"), "a number"), ("lr", 0, "above 0"), ("lr", False, "a number"),
    ("pretrained", "perhaps", "true or false"), ("pretrained", 2, "true or false"), ("model", 50, "a text"), ("resize", False, "a text"), ("classes", 3, "a list"), ("normalize", "x", "numbers in brackets"), ("csv_options", "x", "names with values"),
    ("label_smoothing", 1.5, "a share"), ("mix_prob", -1, "a share"), ("weight_decay", -.1, "below 0"), ("num_workers", -1, "from 0 up"), ("log", 3, "a list or a text"), ("steps", -4, "from 1 up")])
def test_what_cannot_be_is_refused_by_name(name, given, said):
    with pytest.raises(ConfigError) as e: TrainConfig("photos", **{name:given})
    assert name in e.value.what and said in e.value.what and repr(given) in e.value.what
    assert docments(TrainConfig)[name] in e.value.fix and str(e.value).count("\n") == 2


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as e: TrainConfig("photos", epochs="x", lr="y", balanced_sampling=3)
    assert e.value.context["fields"] == ["epochs", "lr", "balanced_sampling"]


@pytest.mark.parametrize("wrong", [dict(precision="bf61"), dict(strategy="dpp"), dict(on_bad="skp"), dict(resize="corp"), dict(clip="nrom"), dict(batchnorm_statistics="kep"), dict(transform_backend="albumentation"), dict(float32_matmul_precision="higest")])
def test_choices_are_checked_at_once(wrong):
    with pytest.raises(UnknownOptionError, match="Did you mean"): TrainConfig("photos", **wrong)


@pytest.mark.parametrize("both", [dict(transform_args={}, augmentation_preset="light"), dict(freeze_backbone=True, freeze_epochs=1), dict(freeze_backbone=True, layer_decay=.8), dict(push_to_hub=True)])
def test_contradictions(both):
    with pytest.raises(ConfigError): TrainConfig("photos", **both)


# ---- names

def test_autotrains_names_are_understood():
    values = dict(data_path="p", model="resnet50", project_name="o", image_column="i", target_column="t", train_split="train", valid_split="validation", max_samples=9, lr=5e-5, epochs=3, batch_size=8, warmup_ratio=.1, gradient_accumulation=1,
                  optimizer="adamw_torch", scheduler="linear", weight_decay=0., max_grad_norm=1., seed=42, mixed_precision=None, auto_find_batch_size=False, save_total_limit=1, logging_steps=10, eval_strategy="epoch", early_stopping_patience=5,
                  early_stopping_threshold=.01, push_to_hub=False, username=None, token=None, log="none")
    assert set(values) == set(AUTOTRAIN)
    c = TrainConfig.from_dict(values)
    assert (c.data, c.out, c.label_column, c.valid, c.precision, c.warmup) == ("p", "o", "t", "validation", "fp32", .1) and c.logger_args == dict(log_every_num_steps=10)


def test_aliases_lead_to_fields():
    names = {f.name for f in fields(TrainConfig)}
    assert set(ALIASES.values()) <= names and not set(ALIASES) & names and not set(SPECIAL_FIELDS) & names


@pytest.mark.parametrize("given,said", [(dict(bach_size=3), "Did you mean 'batch_size'"), (dict(mixup_alfa=.2), "Did you mean 'mixup_alpha'"), (dict(lr=1, learning_rate=2), "lr and learning_rate say the same"), (dict(eval_strategy="steps"), "eval_every"),
                                        (dict(train_split="all"), "Name the folder"), (dict(backend="spaces-a10g"), "where it is started"), (dict(task="tabular"), "classifies images"), (dict(eval_strategy="no", valid="x"), "say the same")])
def test_names_that_are_unknown_or_doubled(given, said):
    with pytest.raises(ConfigError, match=said): TrainConfig.from_dict(dict(data="x") | given)


def test_data_must_be_given():
    with pytest.raises(ConfigError, match="no data to train on"): train(epochs=1)
    with pytest.raises(ConfigError, match="train\\(data='photos/'\\)"): train("photos/")
    with pytest.raises(ConfigError, match="is no configuration"): train(7)


def test_autotrains_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_NAME", "ada"); monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path/"c.yml").write_text("task: image_classification\nbase_model: google/vit-base-patch16-224\nproject_name: birds\nlog: tensorboard\nbackend: local\ndata:\n  path: data/\n  train_split: train\n  valid_split: null\n"
                                  "  column_mapping:\n    image_column: image\n    target_column: labels\nparams:\n  epochs: 2\n  batch_size: 4\n  lr: 2e-5\n  optimizer: adamw_torch\n  scheduler: linear\n  mixed_precision: fp16\n"
                                  "hub:\n  username: ${HF_NAME}\n  token: ${HF_TOKEN}\n  push_to_hub: true\n")
    c = TrainConfig.load(tmp_path/"c.yml")
    assert (c.model, c.data, c.label_column, c.lr, c.precision, c.username, c.token, c.push_to_hub) == ("google/vit-base-patch16-224", "data/", "labels", 2e-5, "fp16", "ada", "hf_secret", True)
    text = config_text(c)
    assert "hf_secret" not in text + repr(c) and "username: ${HF_NAME}" in text and "token: ${HF_TOKEN}" in text


# ---- files

ODD = dict(data="a ${b} — ü", split_folders="no", image_size=(32, 48), value_range=[0, 4095], classes={3:"no", 7:"1e3"}, normalize=([.1], [.2]), csv_options=dict(delimiter=";"), optimizer={"class":"sgd", "params":dict(momentum=.8)}, metrics=["accuracy", dict(name="f1", stages=["val"])],
           transform_args=dict(random_flip=None, val={}), precision="bf16", strategy="fsdp", on_bad="skip", on_leak="error", resize="pad", clip="value", batchnorm_statistics="all", label_type="id", float32_matmul_precision="high", compile="eager", ema=True, layer_decay=.75,
           transform_backend="albumentations", class_weights=dict(no=2.), log=["wandb", "mlflow"], out="runs/yes", label_smoothing=.1, val_split=.25)


def another(f):
    "Make a value for a field that is not its default"
    if f.name in ODD: return ODD[f.name]
    kind = (getattr(f.type, "__args__", None) or (f.type,))[0]
    return {bool:lambda: not f.default, int:lambda: (f.default or 1)+3, float:lambda: .5 if f.default != .5 else .25, str:lambda: f"no {f.name}", list:lambda: ["a", "null"], dict:lambda: dict(a=1, b=[.5, "x"])}[kind]()


def test_every_field_survives_a_file(tmp_path):
    skip = {"augmentation_preset", "freeze_epochs", "freeze_backbone"}       # contradict others
    c = TrainConfig(**{f.name:another(f) for f in fields(TrainConfig) if f.name not in skip})
    assert set(c.changed()) == {f.name for f in fields(TrainConfig)} - skip
    again = TrainConfig.load(c.save(tmp_path/"c.yaml"))
    assert again == c.but(token=None) and "no token" not in (tmp_path/"c.yaml").read_text() + repr(c)
    assert TrainConfig.load(again.save(tmp_path/"d.yaml")) == again and (tmp_path/"c.yaml").read_text() == (tmp_path/"d.yaml").read_text()
    assert not list(tmp_path.glob("*.tmp"))


def test_variables(tmp_path, monkeypatch):
    path = tmp_path/"c.yaml"
    path.write_text("data: ${PLACE}/${KIND:-photos}\nepochs: ${EPOCHS:-3}\nmodel: a$${b}\nlogger_args:\n  wandb: {api_key: \"${KEY}\", entity: x}\n")
    with pytest.raises(ConfigError, match="PLACE is not set") as e: TrainConfig.load(path)
    assert str(path) in e.value.where and "${PLACE:-value}" in e.value.fix
    for k, v in dict(PLACE="/mnt", KEY="k-123").items(): monkeypatch.setenv(k, v)
    c = TrainConfig.load(path)
    assert (c.data, c.epochs, c.model, c.logger_args["wandb"]) == ("/mnt/photos", 3, "a${b}", dict(api_key="k-123", entity="x"))
    text = config_text(c)
    assert "data: ${PLACE}/${KIND:-photos}" in text and "epochs: ${EPOCHS:-3}" in text and "k-123" not in text + repr(c) and "/mnt" not in text
    c.save(tmp_path/"d.yaml")
    monkeypatch.setenv("EPOCHS", "9"); monkeypatch.setenv("PLACE", "/srv")
    d = TrainConfig.load(tmp_path/"d.yaml", model="resnet9")
    assert (d.data, d.epochs, d.model, d.logger_args) == ("/srv/photos", 9, "resnet9", c.logger_args)
    assert "epochs: 4" in config_text(d.but(epochs=4)) and "data: ${PLACE}" in config_text(d.but(epochs=4))


def test_secrets_that_were_typed_are_not_written():
    c = TrainConfig("x", token="hf_1", logger_args=dict(wandb=dict(api_key="k-1", entity="e"), mlflow=dict(tracking_uri="u")))
    assert not any(o in config_text(c) + repr(c) for o in ("hf_1", "k-1")) and "entity" in config_text(c)


@pytest.mark.parametrize("text,said", [("data: x\ndata: y\n", "'data' stands there twice"), ("data: [x\n", "no YAML"), ("- x\n", "not names with values"), ("", "not names with values"), ("data: x\nepocs: 3\n", "Did you mean 'epochs'"), ("data: x\nepochs: many\n", "epochs must be"),
                                       ("data: x\nparams: {lr: 1}\nlr: 2\n", "two places"), ("epochs: 3\n", "no data to train on")])
def test_broken_files_are_named(text, said, tmp_path):
    (tmp_path/"c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as e: TrainConfig.load(tmp_path/"c.yaml")
    assert "c.yaml" in e.value.where
    with pytest.raises(ConfigError, match="cannot be read"): TrainConfig.load(tmp_path/"none.yaml")


# ---- from a configuration to a training

def test_everything_reaches_the_learner(few):
    c = TrainConfig(**FEW, optimizer="sgd", optimizer_args=dict(momentum=.8), loss="focal", loss_args=dict(gamma=3.), class_weights=dict(Bag=2.), label_smoothing=.1, weight_decay=.3, metrics=["accuracy", dict(name="f1", metric_class="F1Score", params=dict(average="macro"), stages=["train", "val"])],
                    drop_rate=.0, model_args=dict(width=8), scheduler="cosine", scheduler_args=dict(end=.5), warmup=.2, mixup=.2, mix_switch_off=-1, ema=.9, max_grad_norm=1., gradient_accumulation=2, early_stopping_patience=3, monitor="accuracy", eval_every=2, batchnorm_statistics="learned",
                    threshold=.4, seed=7, epochs=2)
    learn = make_learner(c, few)
    assert isinstance(learn.loss_func, Focal) and (learn.loss_func.gamma, learn.loss_func.label_smoothing) == (3., .1) and learn.loss_func.weight[few.classes.index("Bag")] == 2
    assert (learn.weight_decay, learn.threshold, learn.seed, [m.name for m in learn.metrics]) == (.3, .4, 7, ["accuracy", "f1"]) and learn.model.config.kwargs == dict(width=8)
    seen = []
    class Look(Callback):
        order = 999
        def before_fit(self, learn): seen.append(([type(o).__name__ for o in learn.bound], learn.opt.param_groups[0]["momentum"]))
    learn.callbacks.append(Look())
    run_schedule(learn, c)
    (names, momentum), lrs = seen[0], learn.recorder.lrs
    assert {"Schedule", "Accumulate", "ClipGrad", "EMA", "KeepBest", "EarlyStopping", "ValidateEvery", "BatchNormStatistics", "Mix", "TrainMetrics"} <= set(names) and momentum == .8
    assert lrs[0] == 0 and max(lrs) == pytest.approx(learn.lr, rel=.05) and lrs[-1] == pytest.approx(learn.lr/2, rel=.01) and "train_f1" in learn.history[0]


@pytest.mark.parametrize("wrong,said", [(dict(loss="focall"), "focal"), (dict(optimizer="adamm"), "adam"), (dict(optimizer_args=dict(beta=1)), "betas"), (dict(metrics=["acuracy"]), "accuracy"), (dict(model_args=dict(widht=8)), "width"), (dict(class_weights=[1, 2]), "2 numbers, for 10"),
                                        (dict(loss="focal", loss_args=dict(gama=1)), "gama"), (dict(scheduler="cosin"), "cosine"), (dict(scheduler="step", scheduler_args=dict(evry=.5)), "every"), (dict(warmup=.1, scheduler_args=dict(warmup_steps=3)), "more than once")])
def test_wrong_options_are_refused_before_training(wrong, said, few):
    c = TrainConfig(**FEW, epochs=1, **wrong)
    with pytest.raises((ConfigError, TypeError), match=said): run_schedule(make_learner(c, few), c)


@pytest.mark.parametrize("wrong,said", [(dict(loss="focall"), "focal"), (dict(optimizer="adamm"), "adam"), (dict(optimizer_args=dict(beta=1)), "betas"), (dict(metrics=["acuracy"]), "accuracy"), (dict(scheduler="cosin"), "cosine"), (dict(mixup=.2, mix_prob=.5, cutmix=.1, clip="agc", scheduler_args=dict(flat=.1)), "flat"),
                                        (dict(scheduler="step", scheduler_args=dict(evry=.5)), "every"), (dict(steps=10, scheduler="linear", scheduler_args=dict(warmup_steps=10)), "as long as the training"), (dict(loss="asymmetric", loss_args=dict(gamma=1)), "gamma_neg"), (dict(log="tensorbord"), "tensorboard")])
def test_mistakes_are_met_before_images_are_read(wrong, said, tmp_path):
    with pytest.raises(ConfigError, match=said): train(data=str(tmp_path/"nowhere"), say=None, **wrong)


def test_rates_suit_the_optimiser(few):
    plain = make_learner(TrainConfig(**FEW), few)
    rate = lambda o, **kw: make_learner(TrainConfig(**FEW, optimizer=o, **kw), few).lr
    assert plain.lr == 4e-3 and rate("sgd") == rate("torch.optim.SGD") == rate({"class":"sgd"}) == rate("sgd", optimizer_args=dict(momentum=0)) > 2*plain.lr and rate("lion") < plain.lr/2 and rate("adamw_torch") == plain.lr and rate("sgd", lr=.5) == .5
    class Config: name, pretrained = "vit_small", "x"
    class Net(nn.Module): config = Config()
    assert default_lr(Net(), "lion") < default_lr(Net()) == 1e-4 < default_lr(Net(), "sgd")


# ---- steps

@pytest.mark.parametrize("steps,accumulated,batches,epochs", [(3, 1, 3, 1), (9, 1, 9, 2), (12, 1, 12, 2), (4, 4, 12, 2), (5, 4, 16, 3)])
def test_steps_are_exact(steps, accumulated, batches, epochs, few):
    "Six batches an epoch; with four to a step, four and two"
    c = TrainConfig(**FEW, steps=steps, gradient_accumulation=accumulated, epochs=50, scheduler="linear", warmup=0.)
    few.batch_size = 32
    learn, n = make_learner(c, few), []
    class Count(Callback):
        def after_step(self, learn): n.append(learn.step)
    learn.callbacks.append(Count())
    run_schedule(learn, c)
    assert (len(n), learn.step, len(learn.history)) == (steps, batches, epochs)
    assert learn.recorder.lrs[0] == pytest.approx(learn.lr) and learn.recorder.lrs[-1] == pytest.approx(0, abs=1e-12)


def test_steps_with_the_head_first(few):
    few.batch_size = 32
    c = TrainConfig(**FEW, steps=10, freeze_epochs=1)
    learn, learned = make_learner(c, few), []
    class Look(Callback):
        def after_batch(self, learn): learned.append(sum(p.requires_grad for p in learn.model.parameters()))
    learn.callbacks.append(Look())
    run_schedule(learn, c)
    assert learn.step == 10 and learned[:5] == [2]*5 and min(learned[5:]) > 2 and all(p.requires_grad for p in learn.model.parameters())
    c = TrainConfig(**FEW, epochs=1, freeze_backbone=True)
    learn = make_learner(c, few)
    before = [p.detach().clone() for p in learn.model.body_parameters()]
    run_schedule(learn, c)
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.body_parameters()))


def test_fits_that_are_planned(few):
    few.batch_size = 32
    learn = make_learner(TrainConfig(**FEW), few)
    told = lambda **kw: [(o.epochs, o.lr, o.head_only) for o in planned_fits(learn, TrainConfig(**FEW, **kw))]
    assert told(epochs=3) == [(3, learn.lr, False)]
    learn.model.config.pretrained = "a"
    lr = learn.lr
    assert told(epochs=3) == [(1, lr, True), (3, slice(lr/200, lr/2), False)] and told(epochs=3, freeze_epochs=0) == [(3, slice(lr/100, lr), False)]
    assert told(lr_div=1) == [(1, lr, True), (5, lr/2, False)] and told(layer_decay=.8, freeze_epochs=0) == [(5, lr, False)] and told(freeze_backbone=True) == [(5, lr, True)]


# ---- arithmetic

def test_arithmetic_follows_from_processor_and_network(few, monkeypatch):
    monkeypatch.setattr(Learner, "fastest_precision", lambda self: pytest.fail("timed"))
    monkeypatch.setattr("visionlab.callbacks.precision.time_steps", lambda *args: pytest.fail("timed"))
    for page in (train_module, precision): monkeypatch.setattr(page, "has_bf16", lambda device: True)
    said = []

    def settled(**kw):
        config = TrainConfig(**FEW | kw)
        return train_module._settled(make_learner(config, few), config, None, said.append).precision
    assert settled(epochs=1) == "auto" and settled(epochs=500, precision="fp32") == "fp32" and not said       # too short, or decided
    assert [settled(epochs=500) for _ in range(3)] == ["bf16"]*3
    assert "bfloat16, with fewer digits," in said[0] and "precision=fp32" in said[0]
    assert settled(epochs=500, model="mobilenetv3_small_050", pretrained=False) == "fp32" and "float32" in said[-1]
    for page in (train_module, precision): monkeypatch.setattr(page, "has_bf16", lambda device: False)
    count = len(said)
    assert settled(epochs=500) == "auto" and len(said) == count


@pytest.mark.parametrize("name,size,faster", [
    ("resnet18", 128, True), ("resnet50", 128, True), ("swin_tiny_patch4_window7_224", 224, True), ("regnety_004", 128, False),
    ("convnext_tiny", 96, False), ("tf_efficientnet_lite0", 128, False), ("mobilenetv3_small_100", 128, False)])
def test_networks_of_large_matrix_products_gain(name, size, faster):
    net = timm.create_model(name, num_classes=10).train()
    work, depthwise = precision.multiply_adds(net, torch.rand(1, 3, size, size))
    assert (work >= 60 and not depthwise) is faster
    assert all(m.training for m in net.modules())           # modes as before, and no hook left
    assert not any(m._forward_hooks for m in net.modules())


# ---- the run folder

def test_the_folder_holds_what_it_should(run):
    folder, learn, asked, said = run
    there = {str(o.relative_to(folder)) for o in folder.rglob("*") if o.is_file() and not o.relative_to(folder).parts[0] == "checkpoints"}
    exported = {f"exported_models/{o}/{f}" for o in ("exported_best", "exported_last") for f in ("model.safetensors", "visionlab.json", "config.json")}
    assert there == {"config.yaml", "catalog/catalog.csv", "catalog/catalog.json", "metrics.csv", "metrics.jsonl", "train.log", "scores.json", "README.md", ".lock", *exported, *(f"figures/{o}.png" for o in ("batch", "balance", "curve", "confusion"))}
    kept = {o.name for o in (folder/"checkpoints").iterdir()}
    assert {"last", "best"} <= kept and len(list_checkpoints(folder/"checkpoints")) == len(kept) - 2 in (2, 3)
    lines = (folder/"train.log").read_text()
    assert all(o in lines for o in said.splitlines() if o.strip())
    history = pd.read_csv(folder/"metrics.csv")
    assert len(history) == 2 == len((folder/"metrics.jsonl").read_text().splitlines()) and history["accuracy"].tolist() == pytest.approx([r["accuracy"] for r in learn.history])


def test_the_token_is_nowhere(run):
    folder, _, _, said = run
    assert "hf_secret" not in said
    for o in folder.rglob("*"):
        if o.is_file(): assert b"hf_secret" not in o.read_bytes(), o


def test_the_catalog_has_the_split(run):
    folder, learn, _, _ = run
    saved, own = Catalog.load(folder/"catalog"), learn.data.catalog
    assert saved.classes == own.classes and saved.frame["split"].tolist() == own.frame["split"].tolist() and saved.frame.index.tolist() == own.frame.index.tolist()
    assert len(saved.skipped) == len(own.skipped) == 5800
    again = make_data(TrainConfig.load(folder/"config.yaml").but(data=saved, max_samples=None, dataset_name=None))
    assert again.catalog.frame["split"].tolist() == own.frame["split"].tolist()


def test_edits_and_bad_files_are_in_the_catalog(tmp_path, no_figures):
    photo_folder(tmp_path/"photos", n_train=8, n_val=4, size=24, classes=("brick", "coffee"))
    (tmp_path/"photos/train/brick/000.jpg").write_bytes(b"broken")
    learn = train(data=str(tmp_path/"photos"), model="resnet9", image_size=16, epochs=1, num_workers=0, device="cpu", max_bad=.5, out=str(tmp_path/"run"), say=None)
    saved = Catalog.load(tmp_path/"run/catalog")
    assert saved.frame["split"].tolist() == learn.data.catalog.frame["split"].tolist() and "brick/000.jpg" in saved.skipped["path"].iloc[0]
    card = (tmp_path/"run/README.md").read_text()
    assert "left out: 1 ×" in card and "| Training | 15 | 7 to 8 |" in card and "| brick | 7 | 4 |" in card and str(tmp_path) not in card


def test_each_split_is_answered_once_when_training_is_over(run):
    _, learn, asked, _ = run
    test = learn.data.loader("test")
    assert sum(o is test for o in asked) == 1 and sum(o is learn.valid_dl for o in asked) == len(learn.history) + 1


def test_scores_are_those_of_the_model(run):
    folder, learn, _, _ = run
    scores = json.loads((folder/"scores.json").read_text())
    assert scores["Test"]["accuracy"] == pytest.approx(learn.validate("test")["accuracy"]) and set(scores) == {"Validation", "Test"}
    pixels = learn.data.catalog.pixels[learn.data.catalog.subset("test").frame.index[0]]
    assert torch.allclose(load_model(folder/"exported_models/exported_last").predict(pixels).probs, learn.predict(pixels).probs, atol=1e-5)


def test_the_card_reads_well(run):
    folder, learn, _, _ = run
    card = (folder/"README.md").read_text()
    assert card.startswith("---\ntags:\n- image-classification\n") and "# birds" in card and "10 classes" in card
    assert f"| accuracy | {learn.history[-1]['accuracy']:.4f} |" in card and "Most often confused: " in card and "| batch_size | 32 |" in card and "5,800 × not sampled" in card and "visionlab 0." in card
    assert 'load_model("exported_models/exported_best")' in card and str(folder.parent) not in card and "token" not in card


def test_the_card_without_validation_and_with_odd_names(tmp_path, no_figures):
    photo_folder(tmp_path/"photos", n_train=6, n_val=2, size=24, classes=("brick", "coffee"))
    (tmp_path/"photos/train/brick").rename(tmp_path/"photos/train/a|b <i>c")
    for o in ("brick", "coffee"): [f.unlink() for f in (tmp_path/"photos/val"/o).iterdir()], (tmp_path/"photos/val"/o).rmdir()
    (tmp_path/"photos/val").rmdir()
    train(data=str(tmp_path/"photos"), model="resnet9", image_size=16, epochs=1, num_workers=0, device="cpu", val_split=0, out=str(tmp_path/"run"), say=None)
    card = (tmp_path/"run/README.md").read_text()
    assert "There is no validation split" in card and "a\\|b &lt;i>c" in card and "<i>" not in card


def test_a_run_is_repeated_from_its_file(run):
    folder, learn, _, _ = run
    again = train(folder/"config.yaml", out=None, say=None)
    assert torch.equal(weights(again), weights(learn)) and again.recorder.losses == learn.recorder.losses
    other = train(folder, say=None, out=None, epochs=1, seed=1)
    assert len(other.history) == 1 and not torch.equal(weights(other), weights(learn))


# ---- going on

class Crash(Callback):
    aside = True
    def __init__(self, at): self.at = at
    def before_batch(self, learn):
        if learn.step == self.at: raise RuntimeError("the power went")


def crashing(at, make=make_learner):
    def made(config, dm):
        learn = make(config, dm)
        learn.callbacks.append(Crash(at))
        return learn
    return made


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    "A run that was stopped in its second fit, and the learner of one that was not"
    options = dict(**FEW, batch_size=32, steps=10, freeze_epochs=1, ema=.9, mixup=.2, scheduler="cosine", warmup=.2, save_checkpoint_args=dict(steps=2, background=False), precision="fp32")      # a busy writer puts a checkpoint off
    folder, patch = tmp_path_factory.mktemp("stopped")/"run", pytest.MonkeyPatch()
    patch.setenv("VISIONLAB_PROGRESS", "off")
    whole = train(**options, say=None)
    patch.setattr(train_module, "make_learner", crashing(9))
    with pytest.raises(RuntimeError, match="the power went"): train(**options, out=str(folder), say=None)
    patch.undo()
    return folder, whole


def copied(folder, to):
    import shutil
    return Path(shutil.copytree(folder, to))


def test_a_run_by_steps_goes_on_to_the_bit(stopped, tmp_path, no_figures):
    folder, whole = stopped
    said = []
    again = train(resumed_config(copied(folder, tmp_path/"run")), say=lambda o: said.append(str(o)))
    assert torch.equal(weights(again), weights(whole)) and again.recorder.losses == whole.recorder.losses and again.step == 10
    assert any("Going on from Checkpoint: step 8" in o for o in said)


def test_an_older_run_goes_on_and_another_is_refused(stopped, tmp_path, no_figures):
    folder, whole = stopped
    run = copied(folder, tmp_path/"run")
    old = read_settings_file(run/"config.yaml")
    (run/"config.json").write_text(json.dumps(old)); (run/"config.yaml").unlink()
    with pytest.raises(ConfigError, match="seed: 42 → 7"): train(resumed_config(run, seed=7), say=None)
    again = train(resumed_config(run), say=None)
    assert torch.equal(weights(again), weights(whole)) and (run/"config.yaml").is_file()


def test_the_arithmetic_of_a_stopped_run_stays(stopped, tmp_path, monkeypatch, no_figures):
    folder, _ = stopped
    monkeypatch.setattr(train_module, "has_bf16", lambda device: True)
    monkeypatch.setattr(Learner, "fastest_precision", lambda self: pytest.fail("timed again"))
    learn = train(resumed_config(copied(folder, tmp_path/"run"), precision="auto"), say=None)
    assert learn.dtype is None and TrainConfig.load(tmp_path/"run/config.yaml").precision == "fp32"


# ---- another task, a teacher, the hub

def test_an_exported_model_learns_other_classes(run, tmp_path):
    folder, learn, _, _ = run
    part = TrainConfig(**FEW | dict(model=str(folder), classes=["Bag", "Coat"]))
    best, last = (next(load_model(folder/"exported_models"/o, "cpu").model.parameters()) for o in ("exported_best", "exported_last"))
    for model, body in ((folder, best), (folder/"exported_models/exported_last", last), (f"{folder}/exported_models/exported_last.pt", last)):
        made = make_learner(part.but(model=str(model)), make_data(part)).model
        assert made.head().out_features == 2 and torch.equal(next(made.parameters()), body)
    kept = make_learner(part.but(model=f"{folder}/exported_models/exported_last", reuse_class_head=True), make_data(part)).model.head()
    rows = [learn.classes.index(o) for o in ("Bag", "Coat")]
    assert torch.equal(kept.weight, learn.model.head().weight[rows]) and torch.equal(kept.bias, learn.model.head().bias[rows])
    same = make_learner(TrainConfig(**FEW | dict(model=f"{folder}/exported_models/exported_last")), make_data(TrainConfig(**FEW)))
    assert torch.equal(weights(same), weights(learn))


def test_a_teacher_teaches(run, few):
    folder, teacher, _, _ = run
    c = TrainConfig(**FEW, epochs=1, teacher=str(folder), distill_weight=1.)
    taught, alone = run_schedule(make_learner(c, few), c), run_schedule(make_learner(c.but(teacher=None), few), c.but(teacher=None))
    assert not torch.equal(weights(taught), weights(alone))
    with pytest.raises(ConfigError, match="other classes"):
        part = c.but(classes=["Bag", "Coat"])
        run_schedule(make_learner(part, make_data(part)), part)


def test_a_run_is_uploaded(run, monkeypatch):
    import huggingface_hub
    folder, calls = run[0], []
    class Api:
        def __init__(self, token=None): calls.append(("token", token))
        def whoami(self): return dict(name="ada")
        def create_repo(self, repo, private, exist_ok): calls.append((repo, private))
        def upload_folder(self, repo_id, folder_path): calls.append((repo_id, sorted(os.listdir(folder_path))))
        def upload_file(self, repo_id, path_or_fileobj, path_in_repo): calls.append((repo_id, path_in_repo))
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push_run(folder, token="hf_1") == "ada/birds"
    assert calls == [("token", "hf_1"), ("ada/birds", True), ("ada/birds", ["config.json", "model.safetensors", "visionlab.json"]), ("ada/birds", "README.md")]
    Api.create_repo = lambda *a, **k: (_ for _ in ()).throw(OSError("no network"))
    with pytest.raises(ExportError, match="no network"): push_run(folder, username="eve")


# ---- LightlyTrain's call

def test_lightlys_arguments_are_translated():
    c = lightly_config(out="o", data={"train":"t", "val":"v"}, model="dinov2/vitb14", steps=1000, batch_size=64, num_workers=3, devices=2, accelerator="gpu", strategy="ddp", precision="16-mixed", seed=0, gradient_accumulation_steps=2, overwrite=True,
                       logger_args=dict(tensorboard=None, mlflow={}), model_args=dict(lr=1e-3, weight_decay=.1, lr_warmup_steps=50, gradient_clip_val=1., label_smoothing=.1), loader_args=dict(prefetch_factor=4, timeout=30), save_checkpoint_args=dict(save_every_num_steps=100),
                       torch_compile_args=dict(backend="eager", dynamic=True), metric_args=dict(f1=None, watch_metric="val_metric/top1_acc_micro"), debug_args=dict(nancapture=True), ema=.999)
    assert (c.model, c.steps, c.batch_size, c.num_workers, c.devices, c.device, c.precision, c.seed, c.gradient_accumulation, c.overwrite) == ("dinov2/vitb14", 1000, 64, 3, 2, "cuda", "16-mixed", 0, 2, True)
    assert (c.lr, c.weight_decay, c.scheduler, c.scheduler_args, c.max_grad_norm, c.label_smoothing, c.prefetch_factor, c.timeout, c.compile, c.compile_args, c.monitor, c.ema) == (1e-3, .1, "cosine", dict(warmup_steps=50), 1., .1, 4, 30, "eager", dict(dynamic=True), "accuracy", .999)
    assert c.metrics == ["accuracy", "top5", "precision_macro", "recall_macro"] and c.lr_div == 1 and c.freeze_epochs == 0
    plain = lightly_config(out="o", data="photos", model="resnet18")
    assert (plain.batch_size, plain.lr, plain.max_grad_norm, plain.weight_decay, plain.seed, plain.log, plain.transform_args, plain.metrics, plain.steps, plain.gradient_accumulation) == (16, 3e-4, 3., 1e-4, 0, "auto", {}, ["lightly"], None, 1)
    frozen = lightly_config(out="o", data="photos", model="resnet18", batch_size=4, model_args=dict(backbone_freeze=True))
    assert frozen.freeze_backbone and (frozen.weight_decay, frozen.max_grad_norm, frozen.gradient_accumulation, frozen.lr) == (0, None, 4, pytest.approx(1.5e-4))


def test_lightlys_signature_is_seen():
    seen = inspect.signature(train_image_classification).parameters
    assert {"out", "data", "model", "classification_task", "steps", "batch_size", "num_workers", "devices", "num_nodes", "accelerator", "strategy", "precision", "float32_matmul_precision", "seed", "gradient_accumulation_steps", "reuse_class_head", "overwrite",
            "resume_interrupted", "logger_args", "model_args", "transform_args", "metric_args", "loader_args", "save_checkpoint_args", "torch_compile_args", "debug_args"} <= set(seen)


@pytest.mark.parametrize("wrong,said", [
    (dict(num_nodes=2), "torchrun"), (dict(devices=[1, 3]), "CUDA_VISIBLE_DEVICES=1,3"), (dict(accelerator="tpu"), "Known"), (dict(strategy="deepspeed"), "ddp"), (dict(precision="64"), "precision"), (dict(loader_args=dict(collate_fn=print)), "loader itself"),
    (dict(loader_args=dict(num_worker=2)), "Did you mean 'num_workers'"), (dict(model_args=dict(lrr=1)), "Did you mean 'lr'"), (dict(metric_args=dict(accurac={})), "Did you mean 'accuracy'"), (dict(metric_args=dict(f1=dict(averag="x"))), "average"), (dict(debug_args=dict(underflow_overflow=True)), "replay"),
    (dict(classification_task="regression"), "multiclass"), (dict(bogus=1), "Unknown option"), (dict(model_args=dict(lr="x")), "a number")])
def test_what_lightly_has_and_this_has_not_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said): lightly_config(out="o", data="photos", model="resnet9", **wrong)


def test_lightlys_tables_with_several_classes(tmp_path, no_figures):
    folder = photo_folder(tmp_path/"photos", n_train=8, n_val=4, size=24, classes=("brick", "coffee"))
    for split in ("train", "val"):
        rows = [f"{o.relative_to(tmp_path)},\"{'0,2' if o.parent.name == 'brick' else '1'}\"" for o in sorted((folder/split).rglob("*.jpg"))]
        (tmp_path/f"{split}.csv").write_text("\n".join(["image_path,label", *rows]))
    (tmp_path/"data.yaml").write_text("train_csv: train.csv\nval_csv: val.csv\nclasses: {0: red, 1: brown, 2: rough}\ncsv_label_type: id\n")
    learn = train_image_classification(out=tmp_path/"run", data=tmp_path/"data.yaml", model="resnet9", classification_task="multilabel", steps=2, transform_args=dict(image_size=[16, 16], random_rotate_90=dict(prob=.5)), num_workers=0, accelerator="cpu", logger_args=dict(tensorboard=None), say=None)
    assert learn.task == "multilabel" and learn.classes == ["red", "brown", "rough"] and learn.step == 2 and {"f1_macro", "mAP", "auroc", "hamming_distance"} <= set(learn.history[0])
    assert "Rotate90" in str(learn.data.train_pipeline.ops) and learn.data.image_size == (16, 16) and TrainConfig.load(tmp_path/"run/config.yaml").monitor == "f1_macro"


def test_transform_args_say_things_once(few):
    with pytest.raises(ConfigError, match="another image_size"): make_data(TrainConfig(**FEW, transform_args=dict(image_size=28, val=dict(image_size=32))))
    with pytest.raises(ConfigError, match="in_chans stands in"): make_data(TrainConfig(**FEW, in_chans=1, transform_args=dict(num_channels=1)))
    with pytest.raises(ConfigError, match="random_flip"): make_data(TrainConfig(**FEW, transform_args=dict(random_flp={})))
    raw = make_data(TrainConfig(**FEW, transform_args=dict(normalize=None, image_size="auto")))
    assert raw.stats == ((0.,), (1.,))


# ---- one model of a run

class _Told(Callback):
    "Replace what validation found in each epoch"
    order,aside = 60, True
    def __init__(self, column, values): self.column,self.values = column, values
    def after_epoch(self, learn):
        at = len(learn.recorder.rows)-1
        learn.recorder.rows[-1][self.column] = self.values[at]


@pytest.fixture
def best_second(monkeypatch):
    "The second of three epochs has the best accuracy; the third has the lowest loss"
    own = plan.fit_callbacks
    monkeypatch.setattr(plan, "fit_callbacks", lambda config: [*own(config), _Told("accuracy", [.2, .9, .5]), _Told("valid_loss", [3., 2., 1.])])


@pytest.mark.parametrize("out", [True, False])
def test_the_value_of_train_has_the_best_weights(tmp_path, no_figures, best_second, monkeypatch, out):
    after = {}
    class Keep(Callback):
        order,aside = 999, True
        def after_epoch(self, learn): after[len(learn.history)] = {k:v.clone() for k,v in learn.model.state_dict().items()}
    own = plan.fit_callbacks
    monkeypatch.setattr(plan, "fit_callbacks", lambda config: [*own(config), Keep()])
    said = []
    learn = train(**FEW, epochs=3, batch_size=64, out=str(tmp_path/"run") if out else None, say=lambda o: said.append(str(o)))
    same = lambda model, epoch: all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), after[epoch].values()))
    assert same(learn.model, 2) and not same(learn.model, 3) and "epoch 2, the best by accuracy" in "\n".join(said)
    if not out: return
    assert same(load_model(tmp_path/"run/exported_models/exported_best", "cpu").model, 2) and same(load_model(tmp_path/"run/exported_models/exported_last", "cpu").model, 3)
    scores = json.loads((tmp_path/"run/scores.json").read_text())
    assert scores["Test"]["accuracy"] == pytest.approx(learn.validate("test")["accuracy"])
    assert "epoch 2, the best by accuracy" in (tmp_path/"run/README.md").read_text()


@pytest.mark.parametrize("how", [dict(devices=2, strategy="fsdp")])
def test_a_network_that_is_wrapped_while_it_trains_ends_with_the_best_weights(how, tmp_path, no_figures, best_second):
    "Its own tensors are whole again when the fit is over, and have their own names."
    learn = train(**FEW, **how, epochs=3, batch_size=64, out=str(tmp_path/"run"), say=None)
    best, last = (Checkpoint.read(resolve(tmp_path/"run/checkpoints"/o)).tensors["model"] for o in ("best", "last"))
    model = lambda name: load_model(tmp_path/"run/exported_models"/name, "cpu").model.state_dict()
    same = lambda a, b: a.keys() == b.keys() and all(torch.equal(a[k].cpu(), b[k]) for k in b)
    assert not same(best, last) and same(learn.model.state_dict(), best) and same(model("exported_best"), best) and same(model("exported_last"), last)
    alone = train(**FEW, **how, epochs=3, batch_size=64, out=None, say=None)                 # the best weights are kept in memory
    assert same(alone.model.state_dict(), best)


@pytest.mark.parametrize("out", [True, False])
def test_an_export_names_the_scores_of_its_own_epoch(tmp_path, no_figures, best_second, out):
    learn = train(**FEW, epochs=3, batch_size=64, out=str(tmp_path/"run") if out else None, say=None)
    noted = lambda folder: json.loads((Path(folder)/"visionlab.json").read_text())["metrics"]
    of = lambda number: {k:pytest.approx(learn.history[number-1][k]) for k in ("valid_loss", "accuracy", "f1_macro")}
    assert learn.history[1]["f1_macro"] != learn.history[2]["f1_macro"] and learn.scores == of(2)
    assert noted(learn.export(tmp_path/"again")) == of(2)
    if out: assert noted(tmp_path/"run/exported_models/exported_best") == of(2)
    if out: assert noted(tmp_path/"run/exported_models/exported_last")["f1_macro"] == of(3)["f1_macro"]


def test_the_best_average_of_a_frozen_body_is_exported(tmp_path, no_figures):
    "What validation judged is the average of the head, also where only the head learns."
    learn = train(**FEW, epochs=2, batch_size=64, freeze_backbone=True, ema=.5, out=str(tmp_path/"run"), say=None)
    scores, history = json.loads((tmp_path/"run/scores.json").read_text())["Validation"], learn.history
    assert any(scores["loss"] == pytest.approx(r["valid_loss"], rel=1e-4) and scores["accuracy"] == pytest.approx(r["accuracy"]) for r in history)


def test_starting_over_removes_the_old_run_at_once(run, tmp_path, monkeypatch):
    from visionlab.runs.compare import list_runs
    folder = copied(run[0], tmp_path/"run")
    (folder/"notes.txt").write_text("mine")
    monkeypatch.setattr(Learner, "fit", lambda *args, **kw: (_ for _ in ()).throw(RuntimeError("the power")))
    with pytest.raises(RuntimeError): train(**FEW, epochs=2, out=str(folder), overwrite=True, say=None)
    left = {o.relative_to(folder).as_posix() for o in folder.rglob("*") if o.is_file()}
    assert left <= {"notes.txt", "config.yaml", "catalog/catalog.csv", "catalog/catalog.json", "train.log", ".lock"} and "notes.txt" in left
    found = list_runs(folder)[0]
    assert found.state == "failed" and found.reason == "RuntimeError: the power"


def test_a_plan_that_cannot_be_leaves_the_old_run(run, tmp_path):
    folder = copied(run[0], tmp_path/"run")
    with pytest.raises(ConfigError): train(**FEW, optimizer="nonsense", out=str(folder), overwrite=True, say=None)
    assert (folder/"scores.json").is_file() and (folder/"exported_models/exported_best").is_dir()


def test_a_run_that_could_not_be_written_whole_is_not_done(tmp_path, monkeypatch):
    from visionlab.runs.compare import list_runs
    monkeypatch.setattr(train_module, "write_figures", lambda *args: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError): train(**FEW, epochs=1, batch_size=64, out=str(tmp_path/"run"), say=None)
    found = list_runs(tmp_path/"run")[0]
    assert (tmp_path/"run/exported_models/exported_best").is_dir() and not (tmp_path/"run/README.md").exists()
    assert found.state == "failed" and "the disk is full" in found.reason


def test_f1_says_which_is_best_of_several_labels():
    from types import SimpleNamespace
    from visionlab.callbacks.stopping import usual_monitor
    named = lambda *names: [SimpleNamespace(name=o) for o in names]
    assert usual_monitor(SimpleNamespace(task="multilabel", metrics=named("accuracy", "f1_macro"))) == "f1_macro"
    assert usual_monitor(SimpleNamespace(task="multiclass", metrics=named("f1_macro", "accuracy"))) == "accuracy"
    assert usual_monitor(SimpleNamespace(task="multiclass", metrics=named("f1_macro"))) == "valid_loss"
    assert TrainConfig("x").monitor == FitOptions().monitor == "auto"
