"Schedules against torch's and timm's schedulers and the formulas of transformers; spellings, mistakes, and the plateau's memory."
import math
import warnings

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as torchs

from visionlab.callbacks.one_cycle import Schedule
from visionlab.core.errors import ConfigError, UnknownOptionError
from visionlab.training.learner import Learner
from visionlab.training.schedules import chain, get_schedule, Plateau, plot_schedule, SCHEDULES
from visionlab.callbacks.stopping import ValidateEvery


def rates(make, steps, lr=1.):
    "Run one of torch's schedulers and list its factors"
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    sched, out = make(opt), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps): out.append(opt.param_groups[0]["lr"]/lr); opt.step(); sched.step()
    return out


def ours(f, steps, total): return [f(min(1., i/total)) for i in range(steps)]


# --- torch

@pytest.mark.parametrize("T,pct", [(100, .3), (57, .25)])
def test_one_cycle_is_torchs(T, pct):
    want = rates(lambda o: torchs.OneCycleLR(o, 1., total_steps=T, pct_start=pct, cycle_momentum=False), T)
    got = ours(get_schedule("one_cycle", (pct*T-1)/(T-1), start=1/25, end=1/25e4), T, T-1)
    assert np.allclose(got, want, atol=1e-9)


def test_cosine_is_torchs():
    want = rates(lambda o: torchs.CosineAnnealingLR(o, T_max=40, eta_min=.05), 41)
    assert np.allclose(ours(get_schedule("cosine", end=.05), 41, 40), want)


@pytest.mark.parametrize("T0,mult,n", [(10, 1, 4), (5, 2, 3), (4, 3, 3)])
def test_restarts_are_torchs(T0, mult, n):
    T = T0*sum(mult**i for i in range(n))
    want = rates(lambda o: torchs.CosineAnnealingWarmRestarts(o, T0, mult, eta_min=.1), T)
    assert np.allclose(ours(get_schedule("cosine", cycles=n, growth=mult, end=.1), T, T), want)


def test_linear_is_torchs():
    want = rates(lambda o: torchs.LinearLR(o, start_factor=.25, end_factor=.75, total_iters=20), 21)
    assert np.allclose(ours(get_schedule("linear", start=.25, end=.75), 21, 20), want)


def test_polynomial_is_torchs():
    want = rates(lambda o: torchs.PolynomialLR(o, total_iters=30, power=1.7), 31)
    assert np.allclose(ours(get_schedule("polynomial", power=1.7), 31, 30), want)


@pytest.mark.parametrize("E,size", [(90, 30), (100, 30), (10, 3)])
@pytest.mark.parametrize("by", ["step", "epoch"])
def test_step_is_torchs(E, size, by):
    want = rates(lambda o: torchs.StepLR(o, size, gamma=.2), E)
    assert np.allclose(ours(get_schedule("step", epochs=E, step_size=size, gamma=.2, by=by), E, E), want)


def test_multistep_is_torchs():
    want = rates(lambda o: torchs.MultiStepLR(o, [30, 60, 80], gamma=.3), 90)
    assert np.allclose(ours(get_schedule("multistep", epochs=90, milestones=[30, 60, 80], gamma=.3), 90, 90), want)


def test_exponential_is_torchs():
    want = rates(lambda o: torchs.ExponentialLR(o, .93), 50)
    assert np.allclose(ours(get_schedule("ExponentialLR", epochs=50, gamma=.93), 50, 50), want)


def test_chain_is_torchs_sequence():
    want = rates(lambda o: torchs.SequentialLR(o, [torchs.LinearLR(o, .1, 1., 10), torchs.CosineAnnealingLR(o, 40)], [10]), 50)
    got = ours(chain((.2, get_schedule("linear", start=.1, end=1.)), (.8, "cosine")), 50, 50)
    assert np.allclose(got, want)


def test_held_through_epochs():
    f, want = get_schedule("cosine", by="epoch", epochs=8), rates(lambda o: torchs.CosineAnnealingLR(o, T_max=8), 8)
    total = 8*10 - 1                                    # eighty steps, as the loop counts them
    assert np.allclose([f(i/total) for i in range(80)], np.repeat(want, 10))


@pytest.mark.parametrize("n", [1, 7, 375])
def test_stepwise_changes_at_the_first_step_of_an_epoch(n):
    E = 9
    f, total = get_schedule("multistep", epochs=E, milestones=[3, 6]), E*n - 1
    got = [f(i/total) for i in range(E*n)]
    assert np.allclose(got, np.repeat([1, .1, .01], 3*n))


# --- timm

def test_cosine_with_warmup_is_timms():
    from timm.scheduler import CosineLRScheduler
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.)
    timms = CosineLRScheduler(opt, t_initial=45, lr_min=.01, warmup_t=5, warmup_lr_init=.001, warmup_prefix=True)
    want = [timms._get_lr(e)[0] for e in range(50)]
    assert np.allclose(ours(get_schedule("cosine", warmup_epochs=5, epochs=50, end=.01, warmup_start=.001), 50, 50), want)


def test_restarts_are_timms():
    from timm.scheduler import CosineLRScheduler
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.)
    timms = CosineLRScheduler(opt, t_initial=10, cycle_mul=2., cycle_decay=.5, cycle_limit=3)
    want = [timms._get_lr(e)[0] for e in range(70)]
    assert np.allclose(ours(get_schedule("cosine", cycles=3, growth=2., cycle_decay=.5), 70, 70), want)


@pytest.mark.parametrize("warm", [0, 4])
def test_step_with_warmup_is_timms(warm):
    from timm.scheduler import StepLRScheduler
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.)
    timms = StepLRScheduler(opt, decay_t=12, decay_rate=.4, warmup_t=warm, warmup_lr_init=.1, warmup_prefix=False)
    f = get_schedule("step", epochs=40, decay_epochs=12, decay_rate=.4, **(dict(warmup_epochs=warm, warmup_start=.1) if warm else {}))
    assert np.allclose(ours(f, 40, 40), [timms._get_lr(e)[0] for e in range(40)])


# --- transformers, by its formulas

def hf(step, shape, warm=20, total=200): return step/max(1, warm) if step < warm else shape((step-warm)/max(1, total-warm))


@pytest.mark.parametrize("name,shape,kw", [
    ("linear", lambda p: max(0., 1-p), {}), ("cosine", lambda p: max(0., .5*(1+math.cos(math.pi*p))), {}), ("constant_with_warmup", lambda p: 1., {}),
    ("cosine_with_restarts", lambda p: 0. if p >= 1 else max(0., .5*(1+math.cos(math.pi*((3*p) % 1)))), dict(num_cycles=3)),
    ("cosine_with_min_lr", lambda p: max(0., .5*(1+math.cos(math.pi*p))*.9 + .1), dict(min_lr_rate=.1)), ("polynomial", lambda p: (1-.2)*(1-p)**3 + .2, dict(power=3, end=.2))])
@pytest.mark.parametrize("warm", [dict(warmup_steps=20), dict(warmup_ratio=.1), dict(warmup=.1)])
def test_transformers(name, shape, kw, warm):
    f = get_schedule(name, steps=200, **warm, **kw)
    assert np.allclose(ours(f, 201, 200), [hf(s, shape) for s in range(201)], atol=1e-9)


def test_warmup_stable_decay():
    f = get_schedule("wsd", warmup=.1, flat=.8)
    assert np.allclose([f(t) for t in (0, .05, .1, .5, .8, .9, 1)], [0, .5, 1, 1, 1, .5, 0])


# --- all

@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warm", [None, 0, .2])
def test_pure_bounded_and_without_warmup_jumps(name, warm):
    f = get_schedule(name, warm)
    ts = np.linspace(0, 1, 301)
    a = [f(t) for t in ts]
    assert a == [f(t) for t in ts] and all(-1e-9 <= o <= 1+1e-9 for o in a)
    if warm: assert max(np.abs(np.diff(a))[ts[1:] <= .25]) < .05 and f(0.) < .05


@pytest.mark.parametrize("kw", [dict(warmup=1.), dict(warmup=-.1), dict(warmup=.1, warmup_steps=3, steps=9), dict(warmup_epochs=5), dict(warmup_epochs=5, epochs=5), dict(warmup_ratio=1.),
                                dict(warmup_steps=10), dict(warmup=2), dict(warmup=float("nan")), dict(by="batch"), dict(by="epoch")])
def test_times_that_cannot_work(kw):
    with pytest.raises(ConfigError): get_schedule("cosine", **kw)


@pytest.mark.parametrize("name,kw,named", [("cosine", dict(ends=.1), "end"), ("step", dict(evry=.1), "every"), ("cosin", {}, "cosine"), ("constant", dict(gamma=.1), "constant"), ("plato", {}, "plateau")])
def test_mistakes_are_answered_with_the_name_meant(name, kw, named):
    with pytest.raises((UnknownOptionError, TypeError), match=named): get_schedule(name, **kw)


@pytest.mark.parametrize("bad", [3, [1], object()])
def test_what_is_no_schedule(bad):
    with pytest.raises(ConfigError): get_schedule(bad)


def test_own_functions():
    f = get_schedule(lambda t: 1-t*t, warmup=.5)
    assert np.allclose([f(0), f(.25), f(.5), f(1)], [0, .5, 1, 0])
    def mine(t, power=1): return (1-t)**power
    assert get_schedule(mine, power=2)(.5) == .25
    with pytest.raises(UnknownOptionError, match="power"): get_schedule(mine, powr=2)


def test_none_is_constant(): assert get_schedule(None)(.7) == get_schedule("none")(.3) == 1


@pytest.mark.parametrize("parts", [[], [(.5, "linear")], [(.5, "linear"), (.6, "cosine")], [(-.5, "linear"), (1.5, "cosine")]])
def test_chains_that_do_not_add_up(parts):
    with pytest.raises(ConfigError): chain(*parts)


# --- plateau

@pytest.mark.parametrize("kw", [dict(), dict(patience=2, factor=.5), dict(patience=0, cooldown=2), dict(mode="max", patience=1, threshold=.01), dict(threshold_mode="abs", threshold=.05, patience=1)])
def test_plateau_is_torchs(kw):
    kw = {"mode": "min", "patience": 3, "factor": .1, **kw}
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.)
    theirs, mine = torchs.ReduceLROnPlateau(opt, eps=0, **kw), Plateau(**kw)
    g = np.random.default_rng(0)
    for i in range(60):
        value = 1/(1+.1*i) + .05*g.normal() if i < 20 else .5 + .05*g.normal()
        theirs.step(value); mine.update(value)
        assert mine(0) == pytest.approx(opt.param_groups[0]["lr"]), i


def test_plateau_knows_the_direction():
    up, down = Plateau(monitor="accuracy", patience=0), Plateau(monitor="error_rate", patience=0)
    assert [up.update(o) for o in (.5, .6)] == [1, 1] and [down.update(o) for o in (.5, .6)] == [1, .1]


def test_plateau_survives_nan_and_stays_above_its_floor():
    f = Plateau(patience=0, factor=.1, end=.05)
    assert [f.update(o) for o in (1., float("nan"), float("nan"), float("nan"))] == [1, .1, .05, .05]


def test_plateau_goes_on_from_its_state():
    import json
    a, b = Plateau(patience=1), Plateau(patience=1)
    for o in (1., .9, .9): a.update(o)
    b.load_state_dict(json.loads(json.dumps(a.state_dict())))
    assert [a.update(o) for o in (.9, .9, .9)] == [b.update(o) for o in (.9, .9, .9)]


def test_plateau_with_warmup():
    f = get_schedule("plateau", warmup=.2, patience=0)
    assert f(.1) == .5 and f(.5) == 1
    f.update(1); f.update(1)
    assert f(.5) == pytest.approx(.1)


@pytest.mark.parametrize("kw", [dict(factor=1.), dict(patience=-1), dict(mode="up"), dict(threshold_mode="x")])
def test_plateaus_that_cannot_work(kw):
    with pytest.raises(ConfigError): Plateau(**kw)


def test_the_picture_is_the_schedule():
    ax = plot_schedule("cosine", .1, lr=.5, epochs=20).axes[0]
    x, y = ax.lines[0].get_data()
    f = get_schedule("cosine", .1)
    assert np.allclose(y, [.5*f(t/20) for t in x]) and ax.get_xlabel() == "epoch"


# --- in a fit

@pytest.fixture
def quiet(monkeypatch): monkeypatch.setenv("VISIONLAB_PROGRESS", "off")


def fitted(epochs=6, valid=True, also=(), **kw):
    data = [(torch.randn(4, 5, generator=torch.Generator().manual_seed(i)), torch.arange(4) % 3) for i in range(5)]
    return Learner((data, data if valid else None), torch.nn.Linear(5, 3), lr=.1, device="cpu").fit(epochs, callbacks=[Schedule(**kw), *also])


def test_times_in_epochs_are_known_when_a_fit_begins(quiet):
    lrs = fitted(schedule="multistep", milestones=[2, 4], gamma=.1).recorder.lrs
    assert np.allclose(lrs, np.repeat([.1, .01, .001], 10))
    lrs = fitted(schedule="constant", warmup_steps=15).recorder.lrs
    assert np.allclose(lrs[:15], .1*np.arange(15)/15, atol=.004) and np.allclose(lrs[16:], .1)
    lrs = fitted(schedule="cosine", by="epoch").recorder.lrs
    assert len(set(lrs)) == 6
    with pytest.raises(ConfigError, match="warmup_epochs"): fitted(schedule="cosine", warmup_epochs=6)


def test_a_plateau_in_a_fit(quiet):
    learn = fitted(schedule="plateau", patience=0, factor=.5, threshold=10., monitor="valid_loss")          # nothing is ten times better: every epoch after the first is a bad one
    assert np.allclose([r["lr"] for r in learn.history], .1*.5**np.array([0, 0, 1, 2, 3, 4]))
    with pytest.raises(UnknownOptionError, match="valid_loss"): fitted(schedule="plateau", monitor="valid_los")


def test_a_plateau_passes_over_epochs_that_were_not_measured(quiet):
    rates = {}
    for every in (1, 2):
        learn = fitted(schedule="plateau", epochs=7, also=[ValidateEvery(every)], patience=1, factor=.5, threshold=10.)
        rates[every] = [learn.recorder.lrs[e*len(learn.recorder.lrs)//7] for e in range(7)]
        assert [("valid_loss" in o) for o in learn.history] == [every == 1 or e % 2 == 1 or e == 6 for e in range(7)]
    assert rates[1] == pytest.approx([.1, .1, .1, .05, .05, .025, .025])       # cut after the second bad measurement in a row
    assert rates[2] == pytest.approx([.1]*6 + [.05])                                # measured after epochs 2, 4, 6


@pytest.mark.parametrize("monitor,message", [("valid_loss", "no validation set"), ("accuracy", "no validation set")])
def test_a_plateau_without_validation_is_refused_before_training(quiet, monitor, message):
    with pytest.raises(ConfigError, match=message) as e: fitted(schedule="plateau", valid=False, monitor=monitor)
    assert "plateau" in str(e.value)
    assert fitted(schedule="plateau", valid=False, monitor="train_loss").epochs_done


def test_a_plateau_on_an_unknown_column_is_refused_before_training(quiet):
    with pytest.raises(UnknownOptionError, match="valid_loss"): fitted(schedule="plateau", monitor="val_loss")
