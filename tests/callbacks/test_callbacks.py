"What a fit may switch on: each against its own reference, and undone afterwards."
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import visionlab.callbacks.sanity
import visionlab.callbacks.precision
import visionlab.callbacks.stopping
from visionlab.callbacks.ema import EMA
from visionlab.callbacks.batch_size import BatchSizes
from visionlab.callbacks.sanity import StepTimer
from visionlab.core.errors import CheckpointError, ConfigError, TrainingError, UnknownOptionError
from visionlab.data.module import ImageDataModule
from visionlab.callbacks.gradients import Accumulate, GradientStats
from visionlab.training.events import Callback, CancelFit
from visionlab.training.learner import Learner
from visionlab.callbacks.options import FitOptions
from visionlab.callbacks.precision import Checkpointing, Compile, MatmulPrecision
from visionlab.callbacks.stopping import EarlyStopping, KeepBest, ValidateEvery
from visionlab.callbacks.transfer import BatchNormStatistics, cached_features, distance, Distill, ProgressiveResize

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv("VISIONLAB_PROGRESS", "off")


@pytest.fixture(scope="module")
def dm(): return ImageDataModule("FashionSample", batch_size=64)


def batches(n=10, size=8):
    return [(torch.randn(size, 20, generator=torch.Generator().manual_seed(i)), torch.arange(size) % 3) for i in range(n)]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def make(n=10, **kw): return Learner((batches(n), batches(3)), net(), device="cpu", **{"lr": 1e-2, **kw})


def state(m): return {k: v.clone() for k, v in m.state_dict().items()}


def same(a, b): return all(torch.equal(v, b[k]) for k, v in a.items())


class Scores(Callback):
    "Give each epoch a number of one's choice"
    order = -9.5      # in place of what the recorder noted

    def __init__(self, values, name="accuracy"): self.values, self.name = values, name
    def after_epoch(self, learn): learn.recorder.rows[-1][self.name] = self.values[learn.epoch]


# ---- EMA

@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("group", [1, 3])
def test_the_average_is_of_steps_not_of_batches(warmup, group):
    seen = []

    class Look(Callback):
        order = 1000

        def after_step(self, learn): seen.append([p.detach().clone() for p in learn.model.parameters()])
    start = [p.detach().clone() for p in net().parameters()]
    learn = make(10).fit(1, callbacks=[EMA(.9, warmup), Look(), Accumulate(group)])
    assert len(seen) == math.ceil(10/group)
    for t, now in enumerate(seen):
        d = min(.9, (1+t)/(10+t)) if warmup else .9
        start = [d*a + (1-d)*b for a, b in zip(start, now)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(start, learn.model.parameters()))


def test_an_interrupted_fit_keeps_the_raw_weights():
    class Break(Callback):
        order = 1000

        def before_valid(self, learn): raise ZeroDivisionError           # while the average is lent to the model
    learn, plain = make(), make()
    with pytest.raises(ZeroDivisionError): learn.fit(1, callbacks=[EMA(.9), Break()])
    plain.fit(1)
    assert same(state(learn.model), state(plain.model))


def test_the_average_does_not_disturb_training():
    a, b = make().fit(3), make().fit(3, callbacks=[ema := EMA(.99)])
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), ema.raw)) and a.recorder.losses == b.recorder.losses


def test_callback_state_is_plain_and_comes_back():
    ema = EMA(.99)
    make().fit(1, callbacks=[ema])
    other = EMA(.99)
    other.load_state_dict(copy.deepcopy(ema.state_dict()) | {"unknown": 3})
    assert other.updates == 10 and all(torch.equal(a, b) for a, b in zip(ema.average, other.average)) and not hasattr(other, "unknown")
    stop = EarlyStopping()
    make().fit(2, callbacks=[stop])
    assert set(stop.state_dict()) == {"best", "best_epoch", "best_loss", "waited", "watched"}


# ---- stopping and keeping

@pytest.mark.parametrize("values,patience,threshold,epochs,best", [
    ([.1, .2, .3, .2, .2, .2, .2], 2, 0, 5, 3), ([.5, .5, .5, .5], 2, 0, 3, 1), ([.1, .105, .109, .3, .3], 2, .05, 3, 1), ([float("nan"), .1, .2, .1, .1, .1], 2, 0, 5, 3), ([.1, .2, .3, .4], 1, 0, 4, 4)])
def test_early_stopping_counts_epochs_without_improvement(values, patience, threshold, epochs, best):
    stop = EarlyStopping("accuracy", patience, threshold)
    learn = make(2).fit(len(values), callbacks=[Scores(values), stop])
    assert (len(learn.history), stop.best_epoch) == (epochs, best)


@pytest.mark.parametrize("monitor,metrics,up", [("valid_loss", None, False), ("train_loss", None, False), ("accuracy", None, True), ("error_rate", ["error_rate"], False), ("f1_macro", ["f1_macro"], True)])
def test_every_number_knows_its_direction(monitor, metrics, up):
    learn, best = make(2, metrics=metrics), KeepBest(monitor)
    learn.fit(3, callbacks=[Scores([.5, .9, .1], monitor), best])
    assert best.best_epoch == (2 if up else 3)


def test_a_metric_of_ones_own_direction():
    from torchmetrics.classification import MulticlassHammingDistance
    best = KeepBest("hammingdistance")
    make(2, metrics=[MulticlassHammingDistance(3)]).fit(3, callbacks=[Scores([.5, .9, .1], "hammingdistance"), best])
    assert best.best_epoch == 3


def test_the_best_weights_come_back_and_are_on_disk(tmp_path):
    states = []

    class Look(Callback):
        order = 84

        def after_epoch(self, learn): states.append(state(learn.model))
    learn = make(3).fit(4, callbacks=[Scores([.1, .8, .3, .2]), Look(), KeepBest("accuracy", path=tmp_path/"best")])
    assert same(states[1], state(learn.model)) and not same(states[3], state(learn.model))
    assert learn.scores["accuracy"] == .8 and learn.scores["valid_loss"] == learn.history[1]["valid_loss"]
    assert same(states[1], state(make().load(tmp_path/"best").model))
    kept = make(3).fit(4, callbacks=[Scores([.1, .8, .3, .2]), best := KeepBest("accuracy", restore=False)])
    assert same(states[3], state(kept.model)) and same(states[1], best.weights)


def test_early_stopping_ends_with_the_best_average():
    best = KeepBest("accuracy")
    learn = make(3).fit(9, callbacks=[EMA(.9), Scores([.1, .8, .3, .2]+[.1]*5), best, EarlyStopping("accuracy", 2)])
    assert len(learn.history) == 4 and same(best.weights, state(learn.model))


@pytest.mark.parametrize("callback", [EarlyStopping("acuracy"), KeepBest("loss_valid")])
def test_an_unknown_number_is_refused_before_training(callback):
    learn = make()
    with pytest.raises(UnknownOptionError): learn.fit(1, callbacks=[callback])
    assert learn.step == 0


def test_validating_less_often():
    learn = make(2).fit(5, callbacks=[ValidateEvery(3), EMA(.9), KeepBest(), EarlyStopping(patience=1)])
    assert ["valid_loss" in r for r in learn.history] == [False, False, True, False, True]


@pytest.mark.parametrize("spoil,said", [
    (lambda p: p.write_bytes(p.read_bytes()[:300]), "damaged"), (lambda p: p.write_bytes(b"x"*1000), "damaged"), (lambda p: p.unlink(), "no such file")])
def test_weights_that_cannot_be_read(tmp_path, spoil, said):
    learn = make()
    path = learn.save(tmp_path/"w")
    before = state(learn.model)
    spoil(path)
    with pytest.raises(CheckpointError, match=said): learn.load(path)
    assert same(before, state(learn.model))


def test_tied_and_strided_weights_are_saved(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.conv = nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
            self.b.weight = self.a.weight

        def forward(self, x): return self.b(self.a(x))
    one, two = (Learner([(torch.randn(4, 4), torch.arange(4))], Tied(), device="cpu") for _ in range(2))
    assert same(state(one.model), state(two.load(one.save(tmp_path/"t")).model)) and two.model.a.weight is two.model.b.weight


# ---- precision

def test_compiled_weights_have_their_own_names_and_the_learner_can_be_copied():
    learn = make()
    learn.fit(1, callbacks=[Compile("eager")])
    assert list(learn.model.state_dict()) == list(net().state_dict()) and learn.model._compiled_call_impl is None
    copy.deepcopy(learn).validate()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_checkpointed_gradients_are_the_same(name):
    from visionlab.models.classifier import ImageClassifier
    data = [(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(i)), torch.arange(4)) for i in range(2)]
    models = []
    for cbs in ((), [Checkpointing()]):
        torch.manual_seed(0)
        models.append(Learner(data, ImageClassifier(name, 4, pretrained=False, image_size=64), opt=lambda g: torch.optim.SGD(g), lr=.01, device="cpu").fit(1, callbacks=cbs).model)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(models[0].parameters(), models[1].parameters()))


def test_drop_path_reaches_timm_and_follows_the_seed():
    from timm.layers import DropPath
    from visionlab.models.classifier import ImageClassifier
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = ImageClassifier("test_vit", 4, pretrained=False, image_size=64, drop_path_rate=.5)
        rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
        assert rates and rates == sorted(rates) and max(rates) == pytest.approx(.5)
        data = [(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4)]
        runs.append(Learner(data, model, device="cpu", seed=seed).fit(1).recorder.losses)
    assert runs[0] == runs[1] != runs[2]


def test_matmul_precision_is_put_back_after_an_error():
    class Break(Callback):
        def after_batch(self, learn): raise ZeroDivisionError
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError): make().fit(1, callbacks=[MatmulPrecision("medium"), Break()])
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ConfigError, match="high"): MatmulPrecision("hi")


def test_bfloat16_is_chosen_only_where_the_hardware_has_it(monkeypatch):
    import visionlab.callbacks.precision as page
    learn = make(precision="bf16")
    monkeypatch.setattr(page, "has_bf16", lambda device: False)
    assert set(learn.fastest_precision(2)) == {"fp32"} and learn.dtype is None
    monkeypatch.setattr(page, "has_bf16", lambda device: True)
    for slow, want in ((None, torch.bfloat16), (torch.bfloat16, None)):
        monkeypatch.setattr(page, "time_steps", lambda l, steps: 2. if l.dtype is slow else 1.)
        learn.fastest_precision()
        assert learn.dtype is want


def test_convolutions_are_laid_out_channels_last(dm):
    seen = []

    class Look(Callback):
        def before_batch(self, learn): seen.append((learn.xb.is_contiguous(memory_format=torch.channels_last), next(p for p in learn.model.parameters() if p.ndim == 4).is_contiguous(memory_format=torch.channels_last)))
    Learner([(torch.randn(4, 3, 16, 16), torch.arange(4))], nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)), device="cpu").fit(1, callbacks=[Look()])
    assert seen == [(True, True)]


# ---- transfer

@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("t", [1., 4.])
def test_the_distance_to_a_teacher(task, t):
    a, b = torch.randn(6, 5), torch.randn(6, 5)
    if task == "multiclass": want = t*t*(F.softmax(b/t, 1)*(F.log_softmax(b/t, 1)-F.log_softmax(a/t, 1))).sum(1).mean()
    else: want = t*t*F.binary_cross_entropy(torch.sigmoid(a/t), torch.sigmoid(b/t))
    assert torch.allclose(distance(a, b, t, task), want, atol=1e-5)


def test_distillation_equals_a_hand_written_loop():
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    kept = state(teacher)
    sgd = dict(opt=lambda groups: torch.optim.SGD(groups), lr=.1, weight_decay=0.)
    learn = make(5, **sgd).fit(1, callbacks=[Distill(teacher, .3, 2.)])
    assert same(kept, state(teacher)) and teacher.training
    hand, still = net().train(), copy.deepcopy(teacher).eval()
    opt = torch.optim.SGD(hand.parameters(), .1)
    for x, y in batches(5):
        out = hand(x)
        (.7*F.cross_entropy(out, y) + .3*distance(out, still(x).detach(), 2.)).backward()
        opt.step(), opt.zero_grad()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(hand.parameters(), learn.model.parameters()))


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(ConfigError, match="4 classes and the student with 3"): make().fit(1, callbacks=[Distill(nn.Linear(20, 4))])
    learn = make()
    with pytest.raises(ConfigError, match="student itself"): learn.fit(1, callbacks=[Distill(learn)])


def test_plain_loaders_are_resized_and_the_last_epochs_are_full():
    sizes = []

    class Look(Callback):
        def after_loss(self, learn): sizes.append(tuple(learn.xb.shape[-2:]))
    data = [(torch.randn(4, 3, 32, 48), torch.arange(4))]
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    learn = Learner(data, conv, device="cpu").fit(4, callbacks=[ProgressiveResize(.5, .75), Look()])
    assert sizes == [(16, 24), (24, 32), (24, 40), (32, 48)] and learn.train_dl is data


def test_resizing_is_undone_after_an_error(dm):
    learn = Learner(dm, "resnet9")
    before = learn.train_dl

    class Break(Callback):
        def after_batch(self, learn): raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError): learn.fit(2, callbacks=[ProgressiveResize(.5), Break()])
    assert learn.train_dl is before and learn.data.image_size == (28, 28)


def test_a_network_of_one_size_refuses_to_be_resized():
    from visionlab.models.classifier import ImageClassifier
    learn = Learner([(torch.randn(2, 3, 160, 160), torch.arange(2))], ImageClassifier("test_vit", 2, pretrained=False), device="cpu")
    assert learn.model.config.fixed_size
    with pytest.raises(ConfigError, match="one size alone"): learn.fit(1, callbacks=[ProgressiveResize()])


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 10])
def test_the_last_epoch_sees_whole_images(epochs):
    "Two or three epochs never came to the full side, and evaluation met another size than training ended with"
    scales = [ProgressiveResize(.7).scale(e, epochs) for e in range(epochs)]
    assert scales[-1] == 1 and scales == sorted(scales) and (epochs == 1 or scales[0] == .7)


def test_statistics_follow_the_choice_and_come_back():
    learn = make()
    for how, moves in (("kept", False), ("learned", True), ("all", True)):
        before = learn.model[1].running_mean.clone()
        learn.fit(1, callbacks=[BatchNormStatistics(how)])
        assert torch.equal(before, learn.model[1].running_mean) != moves and learn.statistics == "learned"


def test_cached_features_are_what_the_head_is_given(dm):
    learn = Learner(dm, "resnet9")
    f, y = cached_features(learn, "val")
    out, want = learn.get_preds("val")
    assert torch.equal(y, want) and torch.allclose(learn.model.head()(f).softmax(1), out, atol=1e-5) and not f.is_inference()


# ---- checks

def test_gradient_stats_are_the_norms():
    class Look(Callback):
        order = 97

        def __init__(self): self.rows = []
        def before_step(self, learn): self.w = learn.model[0].weight.detach().clone(); self.g = float(learn.model[0].weight.grad.norm())
        def after_step(self, learn): self.rows.append((float(self.w.norm()), self.g, float((learn.model[0].weight.detach()-self.w).norm()/self.w.norm())))
    make(6).fit(1, callbacks=[stats := GradientStats(1), look := Look()])
    rows = stats.frame()[lambda f: f["layer"] == "0.weight"][["weight", "gradient", "moved"]].to_numpy().tolist()
    assert [tuple(r) for r in rows] == [pytest.approx(o, rel=1e-4) for o in look.rows]


def test_a_timer_adds_up_to_the_time_of_the_steps():
    import time

    class Slow(Callback):
        def before_batch(self, learn): time.sleep(.01)
    timer = StepTimer()
    start = time.perf_counter()
    learn = Learner(batches(10), net(), device="cpu").fit(1, callbacks=[timer, Slow()])
    assert timer.steps == 10 and timer.seconds["compute"] >= .1 and sum(timer.seconds.values()) <= time.perf_counter()-start
    assert sum(timer.shares.values()) == pytest.approx(1) and "%" in repr(timer) and learn.step == 10


def test_overfitting_one_batch_finds_a_frozen_network():
    learn = make(lr=1e-2)
    assert learn.overfit_one_batch(steps=150, images=8)
    for p in learn.model[3].parameters(): p.requires_grad_(False)
    for p in learn.model[:3].parameters(): p.requires_grad_(False)
    check = learn.overfit_one_batch()
    assert not check and "No parameter is trainable" in check.said


def test_the_initial_loss_of_many_labels():
    y = (torch.rand(8, 4) > .5).float()
    learn = Learner([(torch.randn(8, 20), y)], nn.Linear(20, 4), loss="bce", device="cpu")
    with torch.no_grad(): learn.model.weight.zero_(), learn.model.bias.zero_()
    assert learn.initial_loss() and learn.initial_loss().numbers["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_replay_blames_images_weights_or_the_loss():
    data = batches(3)
    broken = [(x.clone(), y) for x, y in data]
    broken[1][0][4] = float("nan")
    learn = Learner(broken, net(), device="cpu")
    with pytest.raises(TrainingError): learn.fit(1)
    check = learn.replay()
    assert check.numbers["layer"] == "images" and "[4]" in check.said
    other = Learner(data, net(), loss=lambda out, y: out.sum()*float("nan"), device="cpu")
    with pytest.raises(TrainingError): other.fit(1)
    assert "loss function" in other.replay().said
    with pytest.raises(ConfigError, match="no batch to replay"): make().replay()


def test_the_best_batch_size_is_the_smallest_that_is_fast():
    found = BatchSizes([dict(batch_size=8, images_per_second=100., memory=1), dict(batch_size=16, images_per_second=190., memory=2), dict(batch_size=32, images_per_second=200., memory=4)], "64 do not fit")
    assert (found.best, found.largest) == (16, 32) and "64 do not fit" in repr(found)


# ---- options

def test_options_go_through_json_and_refuse_unknown_names():
    import json
    options = FitOptions(gradient_accumulation=4, ema=True, clip="agc", max_grad_norm=.01)
    assert FitOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options and options.ema == .999
    assert repr(options) == "FitOptions(gradient_accumulation=4, max_grad_norm=0.01, clip='agc', ema=0.999)"
    with pytest.raises(UnknownOptionError, match="early_stopping_patience"): FitOptions.from_dict(dict(early_stoping_patience=1))


def test_every_option_makes_its_callback():
    values = dict(gradient_accumulation=2, max_grad_norm=1., ema=.9, early_stopping_patience=3, keep_best=True, best_path="x", eval_every=2, auto_find_batch_size=True, compile="eager",
                  gradient_checkpointing=True, float32_matmul_precision="high", progressive_resize=.5, batchnorm_statistics="kept")
    for k, v in values.items(): assert FitOptions(**{k: v}).callbacks(), k
    unmapped = set(FitOptions.__dataclass_fields__) - set(values)
    assert unmapped == {"clip", "monitor", "early_stopping_threshold", "compile_args"}          # which say how, not whether
    learn = make(6).fit(2, callbacks=FitOptions(**{k: v for k, v in values.items() if k not in ("gradient_checkpointing", "progressive_resize", "best_path")}))
    assert len(learn.history) == 2


def test_cancelling_from_several_places_at_once():
    class End(Callback):
        def after_batch(self, learn): raise CancelFit
    learn = make().fit(3, callbacks=FitOptions(ema=.9, keep_best=True, auto_find_batch_size=True).callbacks()+[End()])
    assert learn.history == [] and learn.validate()["valid_loss"] > 0


def test_the_best_weights_are_those_that_were_judged():
    "With an average, validation judges the average: it is what `KeepBest` gives back"
    from visionlab.callbacks.ema import EMA
    from visionlab.data.module import ImageDataModule
    from visionlab.training.learner import Learner
    from visionlab.callbacks.stopping import KeepBest
    learn = Learner(ImageDataModule("FashionSample", batch_size=256, image_size=12), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 10)), lr=3e-2)
    learn.fit(3, callbacks=[EMA(.9, both=True), KeepBest("valid_loss")])
    rows = learn.recorder.rows
    assert learn.validate()["valid_loss"] == pytest.approx(min(r["valid_loss"] for r in rows), abs=1e-6)
    assert all(abs(r["valid_loss"] - r["raw_valid_loss"]) > 1e-5 for r in rows)
