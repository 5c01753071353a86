"Parameter groups against timm's, optimisers against torch's own and steps written by hand, and every name there is."
import functools
import math

import pytest
import timm
import torch.optim.optimizer as torch_optimizer
import torch
from timm.optim import Lamb, Lion
from torch import nn

from visionlab.core.errors import ConfigError, MissingDependencyError, UnknownOptionError
from visionlab.training.learner import Learner
from visionlab.models.classifier import ImageClassifier
from visionlab.models.groups import freeze_to
from visionlab.training.optim import (
    hidden_weights, list_optimizers, make_optimizer, model_groups, optimizer_for, OPTIMIZERS, param_groups, take_step,
    undecayed)

pytestmark = pytest.mark.usefixtures("one_thread")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6*16, 5), nn.ReLU(), nn.Linear(5, 3))


def train(model, opt, steps=4):
    g = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x, y = torch.randn(8, 3, 8, 8, generator=g), torch.randint(0, 3, (8,), generator=g)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward(); opt.step(); opt.zero_grad()
        losses.append(loss.item())
    return losses


def same(a, b, **kw): return all(torch.allclose(p, q, **kw) for p, q in zip(a.parameters(), b.parameters()))


# --- parameter groups

@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnet18", "swin_tiny_patch4_window7_224", "efficientnet_b0"])
def test_layer_decay_and_no_decay_are_timms(name):
    from timm.optim import param_groups_layer_decay
    model = timm.create_model(name, num_classes=7)
    timms = param_groups_layer_decay(model, weight_decay=.05, no_weight_decay_list=getattr(model, "no_weight_decay", set)(), layer_decay=.8)
    want = {id(p): (1e-3*g["lr_scale"], g["weight_decay"]) for g in timms for p in g["params"]}
    got = {id(p): (g["lr"], g["weight_decay"]) for g in model_groups(model, 1e-3, .05, layer_decay=.8) for p in g["params"]}
    assert got.keys() == want.keys()
    top = max(o for o, _ in got.values())
    assert top == pytest.approx(1e-3)
    names = {id(p): k for k, p in model.named_parameters()}
    apart = [names[k] for k in want if got[k] != pytest.approx(want[k])]
    assert not apart, apart[:5]


def test_every_trainable_parameter_is_in_one_group():
    model = ImageClassifier("resnet18", 4, pretrained=False)
    freeze_to(model, -1, how=3)
    for kw in (dict(), dict(lr=slice(1e-5, 1e-3)), dict(lr=[1e-4, 1e-3]), dict(layer_decay=.7)):
        ids = [id(p) for g in model_groups(model, **kw) for p in g["params"]]
        assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters() if p.requires_grad}


def test_tables_and_tokens_of_any_model_are_spared():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.pos_embedding, self.class_token, self.fc = nn.Embedding(5, 4), nn.Parameter(torch.zeros(1, 3, 4)), nn.Parameter(torch.zeros(1, 1, 4)), nn.Linear(4, 2)
    m = Odd()
    assert {id(p) for p in undecayed(m)} == {id(p) for p in (m.words.weight, m.pos_embedding, m.class_token, m.fc.bias)}
    decays = [p for g in model_groups(m, weight_decay=.1) if g["weight_decay"] for p in g["params"]]
    assert [id(p) for p in decays] == [id(m.fc.weight)]


def test_decay_is_applied_to_weights_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    opt = optimizer_for(model, "sgd", lr=.1, weight_decay=.5, momentum=0)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    opt.step()
    for p, b in zip(model.parameters(), before): assert torch.allclose(p, b*.95 if p.ndim > 1 else b)


@pytest.mark.parametrize("kw", [dict(lr=0), dict(lr=-1.), dict(lr=float("nan")), dict(lr=[1e-3]*9), dict(layer_decay=0.), dict(layer_decay=1.2), dict(lr=slice(1e-5, 1e-3), layer_decay=.7)])
def test_rates_that_cannot_work(kw):
    with pytest.raises(ConfigError): optimizer_for(net(), **kw)


def test_nothing_to_train():
    model = net().requires_grad_(False)
    with pytest.raises(ConfigError, match="No parameter"): optimizer_for(model)


# --- optimisers

REFERENCES = {"adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=.1), "adam": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=.1),
              "sgd": lambda p: torch.optim.SGD(p, 1e-2, momentum=.9, nesterov=True, weight_decay=.1), "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=.9, weight_decay=.1),
              "adafactor": lambda p: torch.optim.Adafactor(p, 1e-2, weight_decay=.1), "nadam": lambda p: torch.optim.NAdam(p, 1e-2, weight_decay=.1)}


@pytest.mark.parametrize("name", REFERENCES)
def test_steps_are_torchs(name):
    a, b = net(), net()
    ours = make_optimizer(name, [dict(params=list(a.parameters()), lr=1e-2, weight_decay=.1)])
    train(a, ours); train(b, REFERENCES[name](b.parameters()))
    assert same(a, b, rtol=1e-4, atol=1e-6)


def test_lion_by_hand():
    p = nn.Parameter(torch.tensor([1., -2., 3.])[:, None]); m = torch.zeros_like(p)
    opt = make_optimizer("lion", [dict(params=[p], lr=.1, weight_decay=.5)], betas=(.9, .99))
    want = p.detach().clone()
    for i in range(5):
        g = torch.tensor([.3, -.1*i, 2. - i])[:, None]
        p.grad = g.clone(); opt.step()
        want = want*(1 - .1*.5) - .1*torch.sign(.9*m + .1*g)
        m = .99*m + .01*g
    assert torch.allclose(p, want, atol=1e-6)


def test_lamb_by_hand():
    p = nn.Parameter(torch.tensor([[1., -2.], [3., 4.]])); want = p.detach().clone()
    m = v = torch.zeros_like(want)
    opt = make_optimizer("lamb", [dict(params=[p], lr=.1, weight_decay=.2)], max_grad_norm=None)
    for t in range(1, 5):
        g = torch.tensor([[.3, -.1*t], [2. - t, .5]])
        p.grad = g.clone(); opt.step()
        m, v = .9*m + .1*g, .999*v + .001*g*g
        u = (m/(1-.9**t))/((v/(1-.999**t)).sqrt() + 1e-6) + .2*want
        want = want - .1*(want.norm()/u.norm())*u
    assert torch.allclose(p, want, atol=1e-5)


def test_muon_is_torchs_muon_for_hidden_weights_and_adamw_for_the_rest():
    def mlp():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    a, b = mlp(), mlp()
    assert [p is a[3].weight for p in hidden_weights(a)] == [True]
    ours = optimizer_for(a, "Muon", lr=1e-2, weight_decay=0., ns_coefficients=(3.4445, -4.7750, 2.0315))      # timm's own are a little rounder
    rest = [p for p in b.parameters() if p is not b[3].weight]
    muon = torch.optim.Muon([b[3].weight], lr=1e-2, weight_decay=0., adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, 1e-2, weight_decay=0., betas=(.9, .95), eps=ours.defaults["eps"])
    class Both:
        def step(self): muon.step(); adamw.step()
        def zero_grad(self): muon.zero_grad(); adamw.zero_grad()
    train(a, ours, 1); train(b, Both(), 1)
    assert torch.allclose(a[1].weight, b[1].weight, atol=1e-5) and torch.allclose(a[5].weight, b[5].weight, atol=1e-5)
    ours, theirs = (m[3].weight.detach() - mlp()[3].weight.detach() for m in (a, b))           # both orthogonalise in bfloat16, in another order
    c = mlp()
    train(c, torch.optim.SGD(c.parameters(), 1e-2), 1)
    alike = lambda u, v: nn.functional.cosine_similarity(u.flatten(), v.flatten(), 0)
    assert alike(ours, theirs) > .98 > .9 > alike(ours, c[3].weight.detach() - mlp()[3].weight.detach())
    assert ours.norm() == pytest.approx(theirs.norm().item(), rel=.05)


def test_muon_updates_are_orthogonal():
    model = net()
    before = model[3].weight.detach().clone()
    train(model, optimizer_for(model, "muon", lr=1e-2, weight_decay=0.), 1)
    s = torch.linalg.svdvals((model[3].weight.detach() - before).flatten(1))
    assert s.max()/s.min() < 4
    # an update by gradient alone is far from that: here one direction gets all
    plain = net()
    plain[3].weight.grad = torch.ones_like(plain[3].weight) + .01*torch.randn(plain[3].weight.shape)
    model = net()
    model[3].weight.grad = plain[3].weight.grad.clone()
    optimizer_for(model, "muon", lr=1e-2, weight_decay=0.).step()
    s, raw = torch.linalg.svdvals((model[3].weight.detach() - before).flatten(1)), torch.linalg.svdvals(plain[3].weight.grad.flatten(1))
    assert raw[0]/raw[-1] > 50 and s[0]/s[-1] < 10


def test_every_name_takes_a_step_or_says_why_not():
    built, missing = 0, []
    for name in list_optimizers():
        model = net()
        try: opt = optimizer_for(model, name, lr=1e-3)
        except MissingDependencyError: missing.append(name); continue
        before = [p.detach().clone() for p in model.parameters()]
        assert all(math.isfinite(o) for o in train(model, opt, 2)), name
        assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before)), name
        built += 1
    assert built >= 70 and all(o.startswith(("bnb", "fused")) for o in missing)


@pytest.mark.parametrize("name,cls", [("adamw_torch", "AdamW"), ("adamw_torch_fused", "AdamW"), ("AdamW", "AdamW"), ("torch.optim.AdamW", "AdamW"), ("timm.optim.lamb", "Lamb"), ("SGD", "SGD"),
                                      ("adafactor", "Adafactor"), ("timm.adafactor", "Adafactor"), ("adagrad", "Adagrad"), ("lookahead_adamw", None), ("radam", "RAdam"), ("momentum", "SGD"), ("lars", "Lars")])
def test_spellings(name, cls):
    groups = param_groups([list(net().parameters())])
    if cls is None:
        with pytest.raises(UnknownOptionError, match="adamw"): make_optimizer(name, groups)
    else: assert type(make_optimizer(name, groups)).__name__ == cls


def test_timms_own_can_be_asked_for():
    groups = param_groups([list(net().parameters())])
    assert type(make_optimizer("timm.optim.adafactor", groups)).__module__.startswith("timm")
    assert type(make_optimizer("adafactor", groups)).__module__.startswith("torch")


@pytest.mark.parametrize("opt,kw,named", [("adamw", dict(betta=1), "betas"), ("sgd", dict(nesterof=True), "nesterov"), ("lion", dict(bettas=1), "betas"), (torch.optim.Adam, dict(epss=1), "eps"),
                                          ("adammw", {}, "adamw"), ("musgd", {}, "sgd")])
def test_mistakes_are_answered_with_the_name_meant(opt, kw, named):
    with pytest.raises(UnknownOptionError, match=named): make_optimizer(opt, param_groups([list(net().parameters())]), **kw)


@pytest.mark.parametrize("opt", ["lbfgs", "SparseAdam", "adahessian", 3, {"betas": (.9, .9)}])
def test_what_cannot_train_here_is_refused(opt):
    with pytest.raises(ConfigError): make_optimizer(opt, param_groups([list(net().parameters())]))


def test_an_older_timm_is_named(monkeypatch):
    def unknown(name): raise ValueError(f"Optimizer {name} not found in registry")
    monkeypatch.setattr("timm.optim.get_optimizer_info", unknown)
    with pytest.raises(MissingDependencyError, match="install -U timm"): optimizer_for(net(), "muon")


@pytest.mark.parametrize("spec", [{"class": "adamw", "params": {"betas": (.8, .9)}}, {"class": torch.optim.AdamW, "params": {"betas": (.8, .9)}}, {"name": "AdamW", "betas": (.8, .9)}])
def test_dicts(spec):
    opt = make_optimizer(spec, param_groups([list(net().parameters())]))
    assert type(opt) is torch.optim.AdamW and opt.defaults["betas"] == (.8, .9)


def test_fused_only_where_asked_or_possible():
    groups = param_groups([list(net().parameters())])
    assert all(make_optimizer(o, groups).defaults["fused"] for o in ("adamw", "adam", "sgd", "adagrad"))
    assert not make_optimizer("adamw", groups, fused=False).defaults["fused"] and make_optimizer("adamw", groups, foreach=True).defaults["fused"] is None
    opt = make_optimizer("adamw", [dict(params=[nn.Parameter(torch.ones(2, 2, device="meta"))], lr=.1)])        # a device without fused kernels
    assert not any(g["fused"] for g in opt.param_groups)           # the failed attempt left nothing behind in the groups
    assert set(groups[0]) == {"params", "lr", "weight_decay"}


def test_nesterov_can_be_turned_off():
    groups = param_groups([list(net().parameters())])
    assert make_optimizer("sgd", groups, nesterov=False).defaults["nesterov"] is False
    assert make_optimizer("sgd", groups, momentum=0).defaults["nesterov"] is False


def test_factories_and_classes():
    groups = param_groups([list(net().parameters())])
    assert type(make_optimizer(lambda g, **kw: torch.optim.Adagrad(g, **kw), groups, lr_decay=.1)) is torch.optim.Adagrad
    assert type(make_optimizer(torch.optim.Adamax, groups)) is torch.optim.Adamax
    assert set(OPTIMIZERS) <= set(list_optimizers())


# --- in a Learner

@pytest.mark.parametrize("opt,kw", [("muon", {}), ("lion", {}), ("LAMB", {}), ({"class": "sgd", "params": {"momentum": .8}}, {}), ("adafactor", {}), ("adamw", dict(layer_decay=.5))])
def test_learners_take_them_all(opt, kw, monkeypatch):
    monkeypatch.setenv("VISIONLAB_PROGRESS", "off")
    data = [(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)), torch.arange(8) % 3) for i in range(4)]
    learn = Learner((data, data), net(), opt=opt, lr=3e-3, device="cpu", **kw).fit(4)
    assert learn.history[-1]["train_loss"] < learn.history[0]["train_loss"]
    if kw: assert sorted({g["lr"] for g in learn.opt.param_groups}) == pytest.approx([3e-3*.5**i for i in (3, 2, 1, 0)])
    learn.fit(1, slice(1e-4, 1e-3))
    assert {g["lr"] for g in learn.opt.param_groups} >= {1e-4, 1e-3}


# ---- a step

def one_weight(kind=torch.optim.SGD, **kw):
    p = nn.Parameter(torch.ones(1))
    p.grad = torch.ones(1)
    return p, kind([p], lr=.5, **kw)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, Lion, Lamb], ids=lambda o: o.__name__)
def test_a_step_is_the_optimisers_own(kind):
    (a, mine), (b, theirs) = one_weight(kind), one_weight(kind)
    for _ in range(3): take_step(mine), theirs.step()
    assert torch.equal(a, b) and a.item() != 1


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_hooks_on_a_step_are_called(register):
    seen, (_, opt) = [], one_weight()
    take_step(opt)
    hook = getattr(opt, register)(lambda *a: seen.append(1) and None)
    take_step(opt)
    hook.remove()
    take_step(opt)
    assert seen == [1]
    everywhere = getattr(torch_optimizer, f"register_optimizer_{register[9:]}")(lambda *a: seen.append(2) and None)
    take_step(opt)
    everywhere.remove()
    assert seen == [1, 2]


def test_torchs_schedulers_count_steps_and_profilers_see_them():
    _, opt = one_weight()
    schedule = torch.optim.lr_scheduler.StepLR(opt, 1)
    take_step(opt)
    schedule.step()                                                                   # would warn that no step came before
    with torch.autograd.profiler.profile() as seen: take_step(one_weight()[1])
    assert any(o.key == "Optimizer.step#SGD.step" for o in seen.key_averages())


def test_what_is_wrapped_around_a_step_stays():
    seen = []
    def noted(f):
        @functools.wraps(f)
        def g(*a, **k): seen.append(1); return f(*a, **k)
        return g
    one_weight()                                                                      # now SGD's step is wrapped by torch
    class Mine(torch.optim.SGD): step = noted(torch.optim.SGD.step)
    p, opt = one_weight(Mine)
    take_step(opt)
    assert seen == [1] and p.item() == .5


def test_an_optimiser_that_is_none_of_torchs():
    class Bare:
        def __init__(self): self.n = 0
        def step(self): self.n += 1
    opt = Bare()
    take_step(opt)
    assert opt.n == 1
