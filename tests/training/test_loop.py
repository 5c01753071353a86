"The loop against loops written by hand, with each option; what it costs; what it says about odd batches and full memory."
import math
import subprocess
import sys
import textwrap
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import visionlab.callbacks.sanity
from visionlab.training import device
from visionlab.callbacks.ema import EMA
from visionlab.callbacks.batch_size import AutoBatch
from visionlab.callbacks.one_cycle import Schedule
from visionlab.callbacks.lr_find import undone
from visionlab.core.errors import ConfigError, DataError, TrainingError
from visionlab.callbacks.gradients import Accumulate, clip_adaptively, ClipGrad
from visionlab.images.batch import ImageBatch
from visionlab.training.events import Callback
from visionlab.training.device import choose_precision, kept_pages, PRECISIONS, step_seed, to_device
from visionlab.training.learner import Learner
from visionlab.training.memory import is_oom, release
from visionlab.training.optim import param_groups

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv("VISIONLAB_PROGRESS", "off")


def batches(n=50, size=8, seed=0):
    return [(torch.randn(size, 20, generator=torch.Generator().manual_seed(seed+i)), torch.arange(size) % 3) for i in range(n)]


def net(norm=False):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU(), nn.Dropout(.1), nn.Linear(16, 3))


def bare(data, model, **kw):
    learn = Learner(data, model, device="cpu", **{"lr": 1e-2, **kw})
    learn.callbacks = []
    return learn


def adamw(model, lr=1e-2): return torch.optim.AdamW(param_groups([list(model.parameters())], lr, .02), fused=True)


def equal(a, b): return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def close(a, b, tol=1e-6): return all(torch.allclose(v.float(), b.state_dict()[k].float(), atol=tol, rtol=1e-4) for k, v in a.state_dict().items())


def by_hand(model, data, dtype=None, clip=None, factor=None):
    "A loop as anybody would write it"
    opt, scaler = adamw(model), torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)
    model.train()
    for step, (x, y) in enumerate(data):
        torch.manual_seed(step_seed(0, step))
        for g in opt.param_groups:
            if factor: g["lr"] = 1e-2*factor(step)
        with torch.autocast("cpu", dtype, enabled=dtype is not None): loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        if clip:
            scaler.unscale_(opt)
            clip(model)
        scaler.step(opt), scaler.update(), opt.zero_grad()
    return model


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("callbacks", [False, True])
def test_fifty_steps_equal_a_hand_written_loop_bit_for_bit(norm, callbacks):
    data = batches()
    learn = Learner((data, data), net(norm), lr=1e-2, device="cpu") if callbacks else bare(data, net(norm))
    assert equal(learn.fit(1).model, by_hand(net(norm), data))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_and_the_scaler_equal_a_hand_written_loop(precision):
    data = batches(20)
    assert equal(bare(data, net(), precision=precision).fit(1).model, by_hand(net(), data, PRECISIONS[precision]))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("how,limit,clip", [
    ("norm", .05, lambda m: nn.utils.clip_grad_norm_(m.parameters(), .05)), ("value", .003, lambda m: nn.utils.clip_grad_value_(m.parameters(), .003)),
    ("agc", .01, lambda m: clip_adaptively(m.parameters(), .01))])
def test_clipping_comes_after_unscaling(precision, how, limit, clip):
    data = batches(20)
    learn = bare(data, net(), precision=precision).fit(1, callbacks=[ClipGrad(limit, how)])
    assert close(learn.model, by_hand(net(), data, PRECISIONS[precision], clip), 1e-6)          # but for the order in which lengths are added up
    assert not close(learn.model, by_hand(net(), data, PRECISIONS[precision]), 1e-4)       # it did clip


def test_adaptive_clipping_is_brocks_rule():
    w, g = torch.randn(4, 6), torch.randn(4, 6)*3
    p = nn.Parameter(w.clone())
    p.grad = g.clone()
    clip_adaptively([p], .05)
    for i in range(4):
        most = .05*max(float(w[i].norm()), 1e-3)
        want = g[i]*most/g[i].norm() if g[i].norm() > most else g[i]
        assert torch.allclose(p.grad[i], want, atol=1e-6)


@pytest.mark.parametrize("shape", ["one_cycle", "cosine", "linear"])
def test_a_schedule_sets_the_rate_of_every_step(shape):
    from visionlab.training.schedules import get_schedule
    data, f = batches(30), get_schedule(shape)
    learn = bare(data, net()).fit(1, callbacks=[Schedule(shape)])
    assert close(learn.model, by_hand(net(), data, factor=lambda i: f(i/29)), 1e-7)


@pytest.mark.parametrize("n,size,batch,sized", [(2, 22, 4, True), (3, 22, 4, True), (3, 22, 4, False), (4, 6, 2, True), (1, 10, 4, True), (5, 9, 2, False)])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_accumulated_batches_equal_large_ones_with_the_leftover(n, size, batch, sized, precision):
    x, y = torch.randn(size, 20), torch.arange(size) % 3
    small = list(zip(x.split(batch), y.split(batch)))

    class Unsized:
        def __iter__(self): return iter(small)
    sgd = dict(opt=lambda groups: torch.optim.SGD(groups), lr=.1, weight_decay=0., precision=precision)
    a = bare(small if sized else Unsized(), nn.Linear(20, 3), **sgd)
    b = bare(list(zip(x.split(n*batch), y.split(n*batch))), nn.Linear(20, 3), **sgd)
    b.model.load_state_dict(a.model.state_dict())
    a.fit(2, callbacks=[Accumulate(n)]), b.fit(2)
    assert close(a.model, b.model, 1e-6 if precision == "fp32" else 2e-3)
    assert a.stepping and a.share == 1 and all(p.grad is None for p in a.model.parameters())


def test_recorded_losses_are_not_scaled_by_accumulation():
    data = batches(8)
    plain, gathered = (Learner(data, net(), lr=1e-9, device="cpu", precision="fp16").fit(1, callbacks=c) for c in ((), [Accumulate(4)]))
    assert gathered.recorder.losses == pytest.approx(plain.recorder.losses, abs=1e-3)


def test_a_cancelled_batch_inside_a_group_leaves_the_others(dropped=2):
    from visionlab.training.events import CancelBatch

    class Drop(Callback):
        def before_batch(self, learn):
            if learn.step == dropped: raise CancelBatch
    data = batches(4, 4)
    sgd = dict(opt=lambda groups: torch.optim.SGD(groups), lr=.1, weight_decay=0.)
    a = bare(data, nn.Linear(20, 3), **sgd)
    kept = [o for i, o in enumerate(data) if i != dropped]
    b = bare([tuple(map(torch.cat, zip(*kept)))], nn.Linear(20, 3), **sgd)
    b.model.load_state_dict(a.model.state_dict())
    a.fit(1, callbacks=[Drop(), Accumulate(4)]), b.fit(1)
    assert close(a.model, b.model)


class Watch(TorchDispatchMode):
    "Count operations that would make a processor wait for its GPU"
    waits = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal.")

    def __init__(self): super().__init__(); self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(o in str(func) for o in self.waits): self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(monkeypatch):
    from visionlab.callbacks import gradients
    from visionlab.callbacks.gradients import GradientStats
    from visionlab.training import guards, recorder
    for page in (guards, recorder, gradients): monkeypatch.setattr(page, "reads_at_once", lambda device: False)          # as it is with a GPU

    class Look(Callback):
        order = -2000

        def before_epoch(self, learn): self.mode = Watch(); self.mode.__enter__()
        def after_train(self, learn): self.mode.__exit__(None, None, None)
    learn = Learner((batches(), batches()), net(True), lr=1e-2, device="cpu", metrics=["accuracy"])
    learn.fit(1, callbacks=[look := Look(), Schedule(), EMA(), Accumulate(2), ClipGrad(1.), ClipGrad(.01, "agc"), GradientStats()])
    assert look.mode.found == [] and math.isfinite(learn.history[0]["train_loss"])
    with Watch() as seen: torch.ones(1).item()
    assert seen.found                                                                       # and it would have been seen


def test_an_event_nobody_listens_to_is_not_called():
    learn = bare(batches(2), net())
    learn.fit(1)
    assert all(v == () for v in learn._on.values())


def test_after_fit_and_cleanup_run_when_a_fit_ends_itself():
    from visionlab.training.events import CancelFit
    ran = []

    class End(Callback):
        def after_epoch(self, learn): raise CancelFit
        def after_fit(self, learn): ran.append("after")
        def cleanup_fit(self, learn): ran.append("clean")
    learn = Learner((batches(3), batches(3)), net(), device="cpu").fit(5, callbacks=[End()])
    assert ran == ["after", "clean"] and len(learn.history) <= 1


# ---- odd batches and arguments

X, Y = torch.randn(8, 20), torch.arange(8) % 3


@pytest.mark.parametrize("y", [Y.int(), Y.to(torch.uint8), Y.to(torch.int8), Y.short(), Y[:, None], F.one_hot(Y, 3).double(), F.one_hot(Y, 3).float()])
def test_targets_of_any_sensible_kind_train(y):
    learn = Learner([(X.double(), y)]*3, net(), lr=1e-2, device="cpu").fit(1)
    assert math.isfinite(learn.history[0]["train_loss"])


@pytest.mark.parametrize("batch,said", [
    ((X, Y+1), "A target is 3, and the model has 3 outputs"), ((X, Y-1), "A target is -1"), ((X, Y.float()), "classes are counted in whole ones"), ((X, Y[:5]), "5 targets for 8 images"),
    ((X.byte(), Y), "Divide by 255"), ((X, torch.zeros(8, 4)), "4 columns and the model 3 outputs"), ((X,), "no targets"), ((X, ["cat"]*8), "targets of a batch are list"),
    ((["a.jpg"]*8, Y), "images of a batch are list"), ((X[:0], Y[:0]), "no image")])
@pytest.mark.parametrize("validate", [False, True])
def test_odd_batches_are_named_in_three_lines(batch, said, validate):
    learn = Learner(([batch], [batch]), net(True), lr=1e-2, device="cpu")
    with pytest.raises((DataError, ConfigError), match=said if not validate else said.replace("no targets", "no labels")) as e: learn.validate() if validate else learn.fit(1)
    assert len(str(e.value).splitlines()) in (2, 3) and "fix:" in str(e.value)


def test_a_lone_last_image_is_explained():
    data = [(X, Y), (X[:1], Y[:1])]
    with pytest.raises(DataError, match="drop_last=True"): Learner(data, net(True), device="cpu").fit(1)


def test_a_model_that_answers_with_a_tuple_is_explained():
    class Two(nn.Linear):
        def forward(self, x): return super().forward(x), x
    with pytest.raises(DataError, match="tuple, not a tensor"): Learner([(X, Y)], Two(20, 3), device="cpu").fit(1)


@pytest.mark.parametrize("act,said", [
    (lambda l: l.validate(3), "from a int"), (lambda l: l.get_preds(3.5), "from a float"), (lambda l: l.validate("vall"), "val"), (lambda l: l.fit(1, callbacks=[EMA]), "Write EMA()"),
    (lambda l: l.fit(1, callbacks=EMA), "Write EMA()"), (lambda l: l.fit(1, callbacks=[3]), "cannot be a int"), (lambda l: l.fit(2.5), "epochs"), (lambda l: Learner(3, net()), "from a int"),
    (lambda l: Learner(([(X, Y)], 7), net()), "from a int"), (lambda l: Learner([(X, Y)], net(), precision="bf61"), "bf16")])
def test_wrong_arguments_are_typed_errors(act, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(").replace(")", r"\)")): act(Learner(([(X, Y)], [(X, Y)]), net(), device="cpu"))


def test_a_users_own_error_is_left_alone():
    def loss(out, y): raise ValueError("mine")
    with pytest.raises(ValueError, match="^mine$"): Learner([(X, Y)], net(), loss=loss, device="cpu").fit(1)


@pytest.mark.parametrize("batch", [dict(image=X, label=Y), dict(pixel_values=X, labels=Y), [X, Y], (X, Y, "more")])
def test_batches_of_other_peoples_shapes(batch):
    x, y = to_device(batch, "cpu")
    assert torch.equal(x, X) and torch.equal(y, Y)


@pytest.mark.parametrize("precision,want", [("auto", None), (None, None), ("none", None), (32, None), ("32-true", None), ("float32", None), ("BF16", torch.bfloat16), ("bf16-mixed", torch.bfloat16),
                                            (torch.bfloat16, torch.bfloat16), (16, torch.float16), ("16-mixed", torch.float16), ("half", torch.float16)])
def test_every_spelling_of_a_precision(precision, want): assert choose_precision(precision, "cpu") is want


def test_bfloat16_without_the_hardware_is_said(monkeypatch):
    import visionlab.training.learner as page
    monkeypatch.setattr(device, "has_bf16", lambda device: False)
    with pytest.warns(UserWarning, match="no bfloat16 arithmetic"): choose_precision("bf16", "cpu")


def test_notes_are_said_once(capsys, monkeypatch):
    monkeypatch.setenv("VISIONLAB_PROGRESS", "plain")
    learn = Learner(batches(3), net(), lr=3., device="cpu", opt="sgd")
    learn.fit(1), learn.fit(1, lr=9.)
    said = capsys.readouterr().out
    assert said.count("no validation set") == 1 and said.count("very high for sgd") == 1 and said.count("Only 3 steps") == 1
    still = Learner((batches(20), batches(3)), nn.Linear(20, 3), lr=1e-5, device="cpu").fit(3)
    assert any("has not moved" in o for o in still.notes)


# ---- memory

class Room(nn.Linear):
    "A layer on a device with room for some images; it fails on the way back if `late`"
    def __init__(self, limit, late=False):
        torch.manual_seed(0)
        super().__init__(20, 3)
        self.limit, self.late, self.most = limit, late, 0

    def forward(self, x):
        if len(x) <= self.limit: self.most = max(self.most, len(x))
        elif not self.late: raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        out = super().forward(x)
        if len(x) > self.limit and out.requires_grad: out.register_hook(self.fail)
        return out

    def fail(self, grad): raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


SGD = dict(opt=lambda groups: torch.optim.SGD(groups), lr=.1, weight_decay=0.)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("limit,part", [(64, None), (9, 8), (3, 2), (1, 1)])
def test_a_split_batch_gives_the_same_gradient(limit, part, late):
    data = batches(5, 16)
    split, whole = bare(data, Room(limit, late), **SGD), bare(data, Room(64), **SGD)
    auto = AutoBatch()
    if part is None: split.fit(1, callbacks=[auto])
    else:
        with pytest.warns(UserWarning, match=f"parts of {part}"): split.fit(1, callbacks=[auto])
    whole.fit(1)
    assert close(split.model, whole.model) and auto.part == part and split.step == whole.step == 5
    assert split.part is None and not split.split_on_oom


@pytest.mark.parametrize("limit,fits", [(9, 8), (1, 1), (0, 0)])
def test_full_memory_says_what_fits(limit, fits):
    learn = bare(batches(3, 16), Room(limit), **SGD)
    before = learn.model.weight.detach().clone()
    with pytest.raises(TrainingError, match="Memory ran out with a batch of 16") as e: learn.fit(1)
    assert e.value.context["fits"] == fits and torch.equal(before, learn.model.weight)
    assert (f"batch_size={fits} with callbacks=[Accumulate({16//fits})]" if fits else "Not even one image") in str(e.value)
    assert learn.part is None and all(p.grad is None for p in learn.model.parameters())
    learn.model.limit = 64
    learn.fit(1)


def test_nothing_of_the_failed_step_stays_alive():
    alive = []

    class Held(Room):
        def forward(self, x):
            activations = x*1
            alive.append(weakref.ref(activations))
            return super().forward(activations)
    try: bare(batches(1, 16), Held(8)).fit(1)
    except TrainingError as e: kept = e                 # as a notebook keeps the last error
    assert kept.__cause__ is None and alive and all(o() is None for o in alive)


def test_accumulation_and_splitting_together():
    data = batches(6, 8)
    split, whole = bare(data, Room(4), **SGD), bare(data, Room(64), **SGD)
    with pytest.warns(UserWarning, match="parts of 4"): split.fit(1, callbacks=[AutoBatch(), Accumulate(4)])
    whole.fit(1, callbacks=[Accumulate(4)])
    assert close(split.model, whole.model)


def test_evaluation_halves_what_does_not_fit():
    learn = Learner((batches(2, 16), batches(2, 16)), Room(3), device="cpu")
    whole = Learner((batches(2, 16), batches(2, 16)), Room(64), device="cpu")
    assert learn.validate() == pytest.approx(whole.validate())
    assert torch.allclose(learn.get_preds()[0], whole.get_preds()[0])


@pytest.mark.parametrize("e,found", [(MemoryError(), True), (RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
                                     (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), True), (RuntimeError("MPS backend out of memory"), True), (RuntimeError("size mismatch"), False), (OSError("out of memory"), False)])
def test_which_errors_mean_full_memory(e, found): assert is_oom(e) is found


def test_release_empties_the_whole_chain():
    alive = []

    def deep():
        t = torch.zeros(10)
        alive.append(weakref.ref(t))
        raise RuntimeError("first")

    def outer():
        u = torch.zeros(10)
        alive.append(weakref.ref(u))
        try: deep()
        except RuntimeError as e: raise ValueError("second") from e
    try: outer()
    except ValueError as e: kept = e
    assert all(o() is not None for o in alive)
    release(kept)
    assert all(o() is None for o in alive)


LIMITED = """
import os, resource, torch
os.environ["VISIONLAB_PROGRESS"] = "off"
from torch import nn
from visionlab.training.learner import Learner
from visionlab.callbacks.batch_size import AutoBatch
torch.set_num_threads(1)
net = nn.Sequential(nn.Linear(20, 20000), nn.ReLU(), nn.Linear(20000, 2))
data = [(torch.randn(2048, 20), torch.arange(2048) % 2)]*2
learn = Learner(data, net, lr=1e-3, opt="sgd", device="cpu")
small = Learner([(x[:32], y[:32]) for x,y in data], net, lr=1e-3, opt="sgd", device="cpu").fit(1)      # what is allocated once
now = int(open("/proc/self/statm").read().split()[0])*resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 300*2**20, -1))
try: learn.fit(1); print("no limit")
except Exception as e: print(type(e).__name__, e)
auto = AutoBatch()
learn.fit(1, callbacks=[auto])
print("went on in parts of", auto.part, learn.step)
"""


def test_a_cpu_with_little_memory_is_told_and_goes_on():
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(LIMITED)], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    assert "TrainingError Memory ran out with a batch of 2048 images" in out.stdout and "went on in parts of" in out.stdout, out.stdout


# ---- trials leave nothing behind

def test_a_trial_puts_everything_back_even_the_loaders_generator():
    from torch.utils.data import DataLoader, TensorDataset
    g = torch.Generator().manual_seed(3)
    dl = DataLoader(TensorDataset(torch.randn(32, 20), torch.arange(32) % 3), 8, shuffle=True, generator=g)
    learn = Learner((dl, dl), net(True), lr=1e-2, device="cpu", precision="fp16").fit(1)
    kept = {k: v.clone() for k, v in learn.model.state_dict().items()}
    own, draws, scale = dict(vars(learn)), g.get_state().clone(), learn.scaler.get_scale()
    learn.model[0].weight.requires_grad_(False)
    with pytest.raises(ZeroDivisionError), undone(learn):
        learn.model[0].weight.requires_grad_(True)
        learn.fit(2, lr=1.)
        learn.new = 1/0
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in kept.items()) and vars(learn) == own
    assert torch.equal(draws, g.get_state()) and scale == learn.scaler.get_scale() and not learn.model[0].weight.requires_grad
    learn.lr_find(steps=12)
    assert torch.equal(draws, g.get_state()) and vars(learn) == own


@pytest.mark.parametrize("n,frozen", [(1, False), (1, True), (7, True)])
def test_lr_find_with_one_batch_and_frozen_groups(n, frozen):
    learn = Learner((batches(n), batches(1)), net(True), device="cpu")
    if frozen: learn.freeze()
    wanted = [p.requires_grad for p in learn.model.parameters()]
    found = learn.lr_find(steps=40)
    assert set(found.suggestions) == {"valley", "steep", "minimum", "slide"} and 1e-6 < found.best < 10
    assert wanted == [p.requires_grad for p in learn.model.parameters()] and learn.step == 0
    labels = [t.get_text() for t in found.plot().axes[0].get_legend().get_texts()]
    assert [o.split()[0] for o in labels] == list(found.suggestions)
    learn.fit(1, lr=found.best)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_tensors_keep_their_pages_after_a_fit():
    import resource
    with kept_pages("cpu"): pass
    for _ in range(3): torch.ones(100_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(200): torch.ones(100_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 2000        # each has 98 pages


def test_pixels_that_are_not_finite_are_named_and_not_the_rate():
    batches = []
    for k in range(4):
        x, y = torch.randn(6, 3, 8, 8), torch.arange(6) % 2
        if k == 2: x[4, 1, 0, 0] = float("nan")
        batches.append(ImageBatch(image=x, target=y, path=[f"{k}/{i}.png" for i in range(6)]))
    learn = Learner((batches, batches[:1]), nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), device="cpu")
    with pytest.raises(TrainingError, match="1 of the 6 images of a batch have pixels that are not finite") as e: learn.fit(1)
    assert "2/4.png" in e.value.where and "2/0.png" not in str(e.value) and "learning rate" not in str(e.value)
    assert e.value.context["paths"] == ["2/4.png"]
