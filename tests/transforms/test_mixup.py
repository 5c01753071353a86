"Mixup and cutmix against torchvision's, label by label, and as a callback"
import numpy as np, pytest, torch
from torch import nn
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2
from visionlab.core.errors import ConfigError
from visionlab.training.events import Callback
from visionlab.training.learner import Learner
from visionlab.training.losses import BinaryCrossEntropy, CrossEntropy
from visionlab.transforms.mixup import cut_boxes, cutmix, draw_mix, mix, mix_targets, mixup
from visionlab.callbacks.mixing import Mix

def batch(n=7, size=(11, 14), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, *size, generator=g), torch.randint(0, 5, (n,), generator=g)

@pytest.mark.parametrize("own", [0., .25, .5, .9, 1.])
@pytest.mark.parametrize("n", [2, 7])
def test_mixup_is_torchvisions(n, own):
    x,y = batch(n)
    theirs = v2.MixUp(num_classes=5)
    want = [theirs.transform(o, dict(lam=own, labels=y, batch_size=n)) for o in (tv_tensors.Image(x), y)]
    got = mixup(x, y, own, 5)
    for a,b in zip(got, want): torch.testing.assert_close(a, b.as_subclass(torch.Tensor), atol=1e-6, rtol=0)

@pytest.mark.parametrize("n", [2, 7])
def test_cutmix_is_torchvisions(n):
    x,y = batch(n)
    theirs = v2.CutMix(num_classes=5)
    for own,centre in ((.3, (.1, .9)), (.75, (.5, .5)), (0., (.4, .4)), (.999, (0., 0.)), (.5, (.99, .99))):
        (top,left,h,w), = boxes = cut_boxes([own], [centre], 11, 14)
        cx,cy,r = int(centre[0]*14), int(centre[1]*11), .5*np.sqrt(1-own)
        box = (max(cx-int(r*14), 0), max(cy-int(r*11), 0), min(cx+int(r*14), 14), min(cy+int(r*11), 11))       # torchvision's formula
        assert (left, top, left+w, top+h) == box
        share = 1 - h*w/(11*14)
        want = [theirs.transform(o, dict(box=box, lam_adjusted=share, labels=y, batch_size=n)) for o in (tv_tensors.Image(x), y)]
        got = cutmix(x, y, boxes, 5)
        for a,b in zip(got, want): torch.testing.assert_close(a, b.as_subclass(torch.Tensor), atol=1e-6, rtol=0)
        same = (got[0] == x).all(1).flatten(1).float().mean(1)
        assert torch.allclose(same, torch.full((n,), float(share)))                # the label's share is the share of pixels

def test_mixtures_for_every_image():
    x,y = batch(64)
    numbers = draw_mix(0, 0, 0, mixup=1., cutmix=1., p=.8, n=64)
    xs,ys = mix(x, y, numbers, 5)
    boxes = cut_boxes(numbers.cut, numbers.centre, 11, 14)
    kinds = set()
    for k in range(64):
        if numbers.cut[k] < 1: (a,b),kind = cutmix(x.roll(-k, 0), y.roll(-k), boxes[k], 5), "cut"
        elif numbers.own[k] < 1: (a,b),kind = mixup(x.roll(-k, 0), y.roll(-k), numbers.own[k], 5), "blend"
        else: (a,b),kind = (x.roll(-k, 0), F.one_hot(y.roll(-k), 5).float()), "whole"
        torch.testing.assert_close(xs[k], a[0], atol=1e-6, rtol=0); torch.testing.assert_close(ys[k], b[0], atol=1e-6, rtol=0)
        kinds.add(kind)
    assert kinds == {"cut", "blend", "whole"}

@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_types_and_shapes_stay(dtype):
    x = (batch()[0]*(255 if dtype == torch.uint8 else 1)).to(dtype)
    for more in (x, x.unsqueeze(1).expand(-1, 4, -1, -1, -1).contiguous(), x.contiguous(memory_format=torch.channels_last)):
        for i in range(6):
            xs,ys = mix(more, torch.arange(7), draw_mix(0, 0, i, n=1 if i % 2 else 7), 7)
            assert xs.dtype == dtype and xs.shape == more.shape and ys.dtype == torch.float32
            assert xs.stride() == more.stride()

def test_degenerate_batches_stay_as_they_are():
    x,y = batch(1)
    assert all(a is b for a,b in zip(mix(x, y, draw_mix(0, 0, 0), 5), (x, y)))
    x,y = batch(4)
    assert all(a is b for a,b in zip(mix(x, y, draw_mix(0, 0, 0, p=0.), 5), (x, y)))
    with pytest.raises(ConfigError, match="num_classes"): mixup(x, y, .5)

def test_labels_of_every_kind():
    y = torch.tensor([0, 2, 1])
    soft,many = F.one_hot(y, 3).float(), torch.tensor([[1., 1, 0], [0, 1, 1], [0, 0, 0]])
    torch.testing.assert_close(mix_targets(y, .6, 3), mix_targets(soft, .6))
    torch.testing.assert_close(mix_targets(many, [.6]*3), .6*many + .4*many[[2, 0, 1]])
    torch.testing.assert_close(mix_targets(y, .6, 3, smoothing=.3), .6*(.7*soft+.1) + .4*(.7*soft+.1)[[2, 0, 1]])

def test_the_loss_is_the_mixture_of_losses():
    x,y = batch(8)
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    for smoothing in (0., .1):
        loss = CrossEntropy(label_smoothing=smoothing)
        torch.testing.assert_close(loss(logits, mix_targets(y, .7, 5)), .7*loss(logits, y) + .3*loss(logits, y.roll(1)))
    many = (torch.rand(8, 5, generator=torch.Generator().manual_seed(2)) < .4).float()
    loss = BinaryCrossEntropy()
    torch.testing.assert_close(loss(logits, mix_targets(many, .7)), .7*loss(logits, many) + .3*loss(logits, many.roll(1, 0)))

def test_draws_depend_on_their_key_alone():
    same = lambda a,b: all(np.array_equal(p, q) for p,q in zip(vars(a).values(), vars(b).values()))
    np.random.seed(0)
    first = draw_mix(1, 2, 3)
    state = np.random.get_state()[1][0]
    np.random.seed(5); torch.manual_seed(7)
    assert same(first, draw_mix(1, 2, 3)) and state == np.random.RandomState(0).get_state()[1][0]
    assert not any(same(first, draw_mix(*o)) for o in ((0, 2, 3), (1, 0, 3), (1, 2, 0)))
    for kw,share in ((dict(mixup=0.), (0, 1)), (dict(cutmix=0.), (1, 0)), (dict(switch=.2), (.8, .2)), (dict(p=.5), (.25, .25))):
        lots = [draw_mix(0, 0, i, **kw) for i in range(2000)]
        got = np.mean([o.own[0] < 1 for o in lots]), np.mean([o.cut[0] < 1 for o in lots])
        np.testing.assert_allclose(got, share, atol=.04)

class Seen(Callback):
    order = 50
    def __init__(self): self.y = []
    def before_batch(self, learn): self.y.append(learn.yb.clone())

def learner(**kw):
    data = [batch(7, seed=i) for i in range(4)]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4*9*12, 5))
    return Learner((data, data), model, lr=1e-3, device="cpu", **kw)

def test_callback_mixes_training_and_nothing_else():
    learn = learner(label_smoothing=.1)
    learn.fit(1, callbacks=[Mix(), seen := Seen()])
    assert all(y.ndim == 2 and y.shape[1] == 5 for y in seen.y)
    probs,y = learn.get_preds()
    assert y.ndim == 1
    want = F.cross_entropy(torch.cat([learn.model.eval()(x).detach() for x,_ in learn.valid_dl]), y)
    assert abs(learn.history[-1]["valid_loss"] - float(want)) < 1e-5         # neither mixed nor smoothed

@pytest.mark.parametrize("switch_off,plain", [(None, []), (1, [1, 2]), (-1, [2]), (0, [0, 1, 2]), (-5, [0, 1, 2])])
def test_switch_off(switch_off, plain):
    learn = learner()
    learn.fit(3, callbacks=[Mix(switch_off=switch_off), seen := Seen()])
    assert [k for k in range(3) if seen.y[4*k].ndim == 1] == plain

def test_counting_the_outputs_leaves_the_model_alone():
    a,b = learner(), learner()
    a.fit(1, callbacks=[Mix()]); b.fit(1, callbacks=[Mix(num_classes=5)])
    for p,q in zip(a.model.state_dict().values(), b.model.state_dict().values()): assert torch.equal(p, q)
    assert a.model[1].training == b.model[1].training

def test_training_scores_of_mixed_images_are_shares():
    from visionlab.training.metrics import MetricConfig
    learn = learner(metrics=[MetricConfig("accuracy", "visionlab", stages=["train", "val"])])
    learn.fit(1, callbacks=[Mix(cutmix=0., mixup=5.), seen := Seen()])
    best = torch.cat([y.max(1).values for y in seen.y]).mean()
    assert 0 <= learn.history[-1]["train_accuracy"] <= float(best) + 1e-6

def test_wrong_arguments():
    for kw in (dict(mixup=0, cutmix=0), dict(mixup=-1), dict(p=2), dict(switch=-.1)):
        with pytest.raises(ConfigError): Mix(**kw)
