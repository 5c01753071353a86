"Losses against torch's, torchvision's and timm's, formulas written by hand, soft targets, class weights, and what cannot work."
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from visionlab.core.errors import ConfigError, UnknownOptionError
from visionlab.training.learner import Learner
from visionlab.training.losses import (
    Asymmetric, BinaryCrossEntropy, BinaryFocal, class_weights, CrossEntropy, Focal, LOSSES, make_loss,
    OneHotAsymmetric, OneHotBCE, per_sample, plain_loss)

pytestmark = pytest.mark.usefixtures("one_thread")
B, C = 12, 5


@pytest.fixture
def logits(): return 2*torch.randn(B, C, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y(): return torch.randint(0, C, (B,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def many(): return (torch.rand(B, C, generator=torch.Generator().manual_seed(2)) < .4).float()


def close(a, b, **kw): return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-5, **kw)


EVERY = [(task, name) for task, o in LOSSES.items() for name in o]


# --- against others

@pytest.mark.parametrize("s", [0., .1, .3])
def test_cross_entropy_is_torchs(logits, y, s): assert close(make_loss(label_smoothing=s)(logits, y), F.cross_entropy(logits, y, label_smoothing=s))


@pytest.mark.parametrize("gamma,alpha", [(2., .25), (0., .5), (1., None), (3., .75)])
def test_binary_focal_is_torchvisions(logits, many, gamma, alpha):
    from torchvision.ops import sigmoid_focal_loss
    want = sigmoid_focal_loss(logits, many, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="mean")
    assert close(BinaryFocal(gamma, alpha)(logits, many), want)


def test_asymmetric_is_timms(logits, many):
    from timm.loss import AsymmetricLossMultiLabel
    for kw in (dict(gamma_neg=4, gamma_pos=1, clip=.05), dict(gamma_neg=2, gamma_pos=0, clip=0.), dict(gamma_neg=4, gamma_pos=2, clip=.2)):
        assert close(Asymmetric(**kw)(logits, many), AsymmetricLossMultiLabel(**kw)(logits, many)/C)         # timm sums over the classes


def test_one_hot_asymmetric_is_timms(logits, y):
    from timm.loss import AsymmetricLossSingleLabel
    for kw, eps in ((dict(gamma_neg=4, gamma_pos=1), .1), (dict(gamma_neg=4, gamma_pos=0), 0.), (dict(gamma_neg=2, gamma_pos=2), .2)):
        assert close(OneHotAsymmetric(**kw, label_smoothing=eps)(logits, y), AsymmetricLossSingleLabel(**kw, eps=eps)(logits, y))


@pytest.mark.parametrize("s,threshold", [(0., None), (.1, None), (.1, .2)])
def test_one_hot_bce_is_timms(logits, y, s, threshold):
    from timm.loss import BinaryCrossEntropy as Timms
    assert close(OneHotBCE(s, target_threshold=threshold)(logits, y), Timms(smoothing=s, target_threshold=threshold)(logits, y))
    mixed = .7*F.one_hot(y, C) + .3*F.one_hot(y.flip(0), C)
    assert close(OneHotBCE(s, target_threshold=threshold)(logits, mixed), Timms(smoothing=s, target_threshold=threshold)(logits, mixed))


@pytest.mark.parametrize("gamma", [0., .5, 2.])
def test_focal_by_hand(logits, y, gamma):
    p = logits.double().softmax(1)[range(B), y]
    assert close(Focal(gamma)(logits, y).double(), ((1-p)**gamma*-p.log()).mean())


def test_asymmetric_by_hand():
    def one(z, t, gn=4., gp=1., clip=.05):
        p = 1/(1+math.exp(-z)); pm = max(p-clip, 0)
        return -(1-p)**gp*math.log(p) if t else -pm**gn*math.log(1-pm)
    for z in (-5., -1., 0., 2., 6.):
        for t in (0., 1.): assert float(Asymmetric()(torch.tensor([[z]]), torch.tensor([[t]]))) == pytest.approx(one(z, t), abs=1e-6)


# --- what all have in common

def target_of(task, y, many): return y if task == "multiclass" else many


@pytest.mark.parametrize("task,name", EVERY)
def test_one_number_an_image(task, name, logits, y, many):
    loss, t = make_loss(name, task), target_of(task, y, many)
    each = loss(logits, t, reduction="none")
    assert loss.per_sample and each.shape == (B,) and close(each.mean(), loss(logits, t))
    alone = torch.stack([loss(logits[i:i+1], t[i:i+1]) for i in range(B)])
    assert close(each, alone)                          # no image's loss depends on the others


@pytest.mark.parametrize("task,name", EVERY)
def test_soft_targets_that_are_hard_give_the_same(task, name, logits, y, many):
    loss = make_loss(name, task, **(dict(label_smoothing=0.) if task == "multiclass" else {}))
    if task == "multiclass": assert close(loss(logits, F.one_hot(y, C).float()), loss(logits, y))
    assert close(loss(logits, many.long()), loss(logits, many)) if task == "multilabel" else True
    halves = .5*F.one_hot(y, C) + .5*F.one_hot(y.flip(0), C)
    assert torch.isfinite(loss(logits, halves))


@pytest.mark.parametrize("task,name", EVERY)
@pytest.mark.parametrize("scale", [1., 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_even_when_sure(task, name, logits, y, many, scale, dtype):
    z = (logits*scale).to(dtype).requires_grad_()
    loss = make_loss(name, task)
    loss(z, target_of(task, y, many)).backward()
    assert torch.isfinite(z.grad).all() and (scale > 1 or z.grad.abs().sum() > 0)


@pytest.mark.parametrize("kw", [dict(name="focal", gamma=.5), dict(name="asymmetric", gamma_pos=.5, gamma_neg=.5)])
@pytest.mark.parametrize("task", LOSSES)
def test_powers_below_one_have_slopes(kw, task, y, many):
    kw = dict(kw)
    z = (torch.randn(B, C)*50).requires_grad_()
    make_loss(kw.pop("name"), task, **kw)(z, target_of(task, y, many)).backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("task,name", EVERY)
def test_the_plain_loss_knows_nothing_of_the_options(task, name, logits, y, many):
    loss = make_loss(name, task, weight=torch.tensor([1., 2., 3., 4., 5.]), **(dict(label_smoothing=.2) if task == "multiclass" else {}))
    want = F.cross_entropy(logits, y) if task == "multiclass" else F.binary_cross_entropy_with_logits(logits, many)
    t = target_of(task, y, many)
    assert close(loss.plain()(logits, t), want) and close(plain_loss(loss)(logits, t), want) and not close(loss(logits, t), want)


@pytest.mark.parametrize("task,name", EVERY)
def test_weights_weigh(task, name, logits, y, many):
    t, w = target_of(task, y, many), torch.ones(C)
    assert close(make_loss(name, task, weight=w)(logits, t), make_loss(name, task)(logits, t))
    w[2] = 7.
    smooth = dict(label_smoothing=0.) if task == "multiclass" else {}
    loss, plain = make_loss(name, task, weight=w, **smooth), make_loss(name, task, **smooth)
    has = (y == 2) if task == "multiclass" else many[:, 2] > 0
    more = loss(logits, t, reduction="none") > plain(logits, t, reduction="none") + 1e-7
    if name != "bce" or task == "multilabel": assert (more == has).all() and has.any()
    else: assert more.all()                            # each class's question is asked of every image


@pytest.mark.parametrize("name", LOSSES["multilabel"])
def test_smoothing_several_classes_is_refused_with_the_reason(name):
    with pytest.raises(ConfigError, match="one label to the other classes"): make_loss(name, "multilabel", label_smoothing=.1)


# --- class weights

def test_balanced_is_sklearns():
    from sklearn.utils.class_weight import compute_class_weight
    counts = [40, 7, 3, 150]
    want = compute_class_weight("balanced", classes=np.arange(4), y=np.repeat(np.arange(4), counts))
    assert close(class_weights(counts).double(), want)


def test_weights_keep_the_mean_over_images():
    for power in (1., .5, .2):
        w = class_weights([40, 7, 0, 150], power=power).double()
        assert (w*torch.tensor([40, 7, 0, 150])).sum()/197 == pytest.approx(1, abs=1e-5) and w[2] == 0
    half = class_weights([1, 100], power=.5)
    assert half[0]/half[1] == pytest.approx(10, rel=1e-4)


def test_weights_of_several_classes_are_torchs_advice():
    assert close(class_weights([10, 50, 0, 1, 100], "multilabel", total=100), [9., 1., 1., 99., .01])
    assert class_weights([1], "multilabel", total=10_000).item() == 100


@pytest.mark.parametrize("args", [([],), ([0, 0],), ([-1, 2],), ([[1, 2]],), ([1, 2], "multilabel")])
def test_counts_that_cannot_work(args):
    with pytest.raises(ConfigError): class_weights(*args)


@pytest.mark.parametrize("w", [[1., -1.], [float("nan"), 1.], [[1., 2.]]])
def test_weights_that_cannot_work(w):
    with pytest.raises(ConfigError): make_loss("cross_entropy", weight=w)


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_a_batch_in_parts_learns_the_same(name, logits, y):
    loss = make_loss(name, weight="auto", counts=[9, 1, 4, 2, 7])
    whole, parts = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss(whole, y).backward()
    for a in range(0, B, 5): (loss(parts[a:a+5], y[a:a+5])*len(y[a:a+5])/B).backward()
    assert close(whole.grad, parts.grad)


# --- names and anybody's

@pytest.mark.parametrize("name,task,cls", [("auto", "multiclass", CrossEntropy), ("auto", "multilabel", BinaryCrossEntropy), ("CE", "multiclass", CrossEntropy), ("nn.CrossEntropyLoss", "multiclass", CrossEntropy),
                                           ("BCE", "multilabel", BinaryCrossEntropy), ("bce-with-logits", "multiclass", OneHotBCE), ("ASL", "multilabel", Asymmetric), ("focal_loss", "multiclass", Focal)])
def test_spellings(name, task, cls): assert type(make_loss(name, task)) is cls


@pytest.mark.parametrize("args,kw,named", [(("cros_entropy",), {}, "cross_entropy"), (("focal",), dict(gama=1), "gamma"), (("auto",), dict(label_smoothin=.1), "label_smoothing"), (("auto",), dict(weight="atuo"), "auto")])
def test_mistakes_are_answered_with_the_name_meant(args, kw, named):
    with pytest.raises(UnknownOptionError, match=named): make_loss(*args, **kw)


@pytest.mark.parametrize("args,kw", [((3,), {}), (("cross_entropy", "multilabel"), {}), ((), dict(weight="auto")), ((F.cross_entropy,), dict(weight=[1.])), ((F.cross_entropy,), dict(label_smoothing=.1)), ((nn.CrossEntropyLoss,), dict(weight=torch.ones(3))), ((), dict(label_smoothing=1.)), ((), dict(label_smoothing=-.1))])
def test_losses_that_cannot_work(args, kw):
    with pytest.raises(ConfigError): make_loss(*args, **kw)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(label_smoothing=.2), nn.CrossEntropyLoss(weight=torch.arange(1., 6)), Focal(), F.cross_entropy])
def test_the_loss_of_others_is_validated_plainly(loss, logits, y):
    plain = per_sample(plain_loss(loss))
    assert close(plain(logits, y), F.cross_entropy(logits, y, reduction="none"))


def test_per_sample_of_a_loss_that_gives_one_number(logits, y):
    own = lambda out, t: (out[range(len(t)), t]**2).mean()
    assert close(per_sample(own)(logits, y), own(logits, y).expand(B)) and plain_loss(own) is own
    grid = lambda out, t, reduction="mean": (out**2 if reduction == "none" else (out**2).mean())
    assert close(per_sample(grid)(logits, y), (logits**2).mean(1))


# --- in a Learner

@pytest.fixture
def data(): return [(torch.randn(10, 6, generator=torch.Generator().manual_seed(i)), torch.arange(10) % 3) for i in range(3)] + [(torch.randn(4, 6, generator=torch.Generator().manual_seed(9)), torch.arange(4) % 3)]


@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv("VISIONLAB_PROGRESS", "off")


@pytest.mark.parametrize("loss,kw", [("cross_entropy", dict(label_smoothing=.3)), ("focal", {}), ("asymmetric", {}), (nn.CrossEntropyLoss(label_smoothing=.3), {}), (F.cross_entropy, {}),
                                     ("cross_entropy", dict(class_weights=[1., 5., 2.]))])
def test_validation_is_the_plain_loss_whatever_trains(loss, kw, data):
    torch.manual_seed(0)
    learn = Learner((data, data), nn.Linear(6, 3), loss=loss, lr=1e-2, device="cpu", **kw).fit(1)
    with torch.no_grad(): want = F.cross_entropy(learn.model(torch.cat([x for x, _ in data])), torch.cat([t for _, t in data]))
    assert learn.history[-1]["valid_loss"] == pytest.approx(want.item(), abs=1e-5)            # every image counts once: the last batch has 4


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "asymmetric", OneHotBCE(target_threshold=.2)])
def test_mixed_batches_train(loss, data):
    mixed = [(x, .6*F.one_hot(t, 3) + .4*F.one_hot(t.flip(0), 3)) for x, t in data]
    learn = Learner((mixed, data), nn.Linear(6, 3), loss=loss, lr=1e-2, device="cpu").fit(4)
    assert learn.history[-1]["train_loss"] < learn.history[0]["train_loss"] and 0 <= learn.history[-1]["accuracy"] <= 1


def test_class_weights_by_name_come_from_the_catalog():
    from visionlab.data.module import ImageDataModule
    dm = ImageDataModule("FashionSample", batch_size=64)
    learn = Learner(dm, "resnet9", class_weights="auto", device="cpu")
    counts = dm.catalog.counts()["train"].to_numpy()
    assert close(learn.loss_func.weight.double(), counts.sum()/(len(counts)*counts))
    with pytest.raises(ConfigError, match="number of images"): Learner([(torch.randn(2, 6), torch.tensor([0, 1]))], nn.Linear(6, 3), class_weights="auto")


def test_options_never_vanish(data):
    for kw in (dict(label_smoothing=.1), dict(class_weights=[1., 2., 3.])):
        with pytest.raises(ConfigError, match="would not reach"): Learner((data, data), nn.Linear(6, 3), loss=F.cross_entropy, **kw)


@pytest.mark.parametrize("task,name", EVERY)
def test_a_loss_never_waits_for_the_device(task, name):
    "On the meta device there are no values: whoever asks for one fails"
    z = torch.empty(B, C, device="meta", requires_grad=True)
    t = torch.empty(B, C, device="meta") if task == "multilabel" else torch.empty(B, device="meta", dtype=torch.long)
    loss = make_loss(name, task, weight=torch.ones(C))
    assert loss(z, t).device.type == "meta"
    with pytest.raises(RuntimeError): loss(z, t).item()
