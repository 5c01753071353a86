"Metrics against sklearn and torchmetrics: the partial batch, mixed images, several processes, stages, sets, names and mistakes."
import math
import warnings

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from sklearn import metrics as sk
from torch import nn
from torchmetrics import MetricCollection, classification as tm

from visionlab.core.errors import ConfigError, UnknownOptionError
from visionlab.training.learner import Learner
from visionlab.training.counts import auroc, average_precision, Kept, update_all
from visionlab.training.foreign_metrics import FromTorchmetrics
from visionlab.training.metrics import (
    computed, for_stage, make_metric, make_metrics, METRIC_SETS, MetricConfig, MetricManager,
    METRICS, MULTILABEL_METRICS, TrainMetrics)

pytestmark = pytest.mark.usefixtures("one_thread")
N, C = 101, 6           # a last batch of 5


@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv("VISIONLAB_PROGRESS", "off")


def answers(seed=0, n=N, c=C):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, c, (n,), generator=g)
    return torch.randn(n, c, generator=g) + 1.5*F.one_hot(y, c), y


def labels(seed=0):
    g = torch.Generator().manual_seed(seed)
    y = (torch.rand(N, C, generator=g) < .35).float()
    return torch.randn(N, C, generator=g) + 2*y - 1, y


def score(m, logits, y, batch=8, **kw):
    m = make_metric(m, **kw) if not hasattr(m, "merge") else m
    m.reset()
    for i in range(0, len(y), batch): m.update(logits[i:i+batch], y[i:i+batch])
    return m.compute()


# --- against sklearn

def prf(which, average): return lambda z, y: sk.precision_recall_fscore_support(y, z.argmax(1), average=average, zero_division=0)[("precision", "recall", "f1").index(which)]


def areas(z, y): return np.mean([sk.roc_auc_score(y == c, z.softmax(1)[:, c]) for c in range(z.shape[1])])


MULTI = {"accuracy": lambda z, y: sk.accuracy_score(y, z.argmax(1)), "error_rate": lambda z, y: 1-sk.accuracy_score(y, z.argmax(1)), "balanced_accuracy": lambda z, y: sk.balanced_accuracy_score(y, z.argmax(1)),
         **{f"top{k}": (lambda z, y, k=k: sk.top_k_accuracy_score(y, z.softmax(1), k=k)) for k in (1, 2, 3, 5)}, "auroc": areas,
         "average_precision": lambda z, y: np.mean([sk.average_precision_score(y == c, z.softmax(1)[:, c]) for c in range(C)]),
         **{f"{s}_{a}": prf(s, a) for s in ("precision", "recall", "f1") for a in ("macro", "micro", "weighted")}}


@pytest.mark.parametrize("name", MULTI)
@pytest.mark.parametrize("batch", [8, 101, 1])
def test_one_class_an_image(name, batch):
    z, y = answers()
    assert score(name, z, y, batch) == pytest.approx(MULTI[name](z, y), abs=1e-6)


SEVERAL = {"accuracy": lambda z, y: ((z > 0) == (y > 0)).float().mean().item(), "exact_match": lambda z, y: sk.accuracy_score(y, z > 0), "hamming_distance": lambda z, y: sk.hamming_loss(y, z > 0),
           "mAP": lambda z, y: sk.average_precision_score(y, z), "auroc": lambda z, y: sk.roc_auc_score(y, z),
           **{f"{s}_{a}": (lambda z, y, s=s, a=a: sk.precision_recall_fscore_support(y, z > 0, average=a, zero_division=0)[("precision", "recall", "f1").index(s)])
              for s in ("precision", "recall", "f1") for a in ("macro", "micro", "weighted")}}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_classes_an_image(name):
    z, y = labels()
    assert score(name, z, y, task="multilabel") == pytest.approx(SEVERAL[name](z, y), abs=1e-6)


@pytest.mark.parametrize("s", ["precision", "recall", "f1"])
def test_two_classes(s):
    z, y = answers(c=2)
    assert score(f"{s}_binary", z, y) == pytest.approx(prf(s, "binary")(z, y), abs=1e-6)
    with pytest.raises(ConfigError, match="two classes"): score(f"{s}_binary", *answers())


# --- which of two classes

PAIR = ["good", "defective"]


@pytest.mark.parametrize("positive,k", [(None, 1), ("good", 0), ("defective", 1), (0, 0), (1, 1)])
def test_binary_metrics_name_their_class_and_score_it(positive, k):
    z, y = answers(c=2)
    z[:, 0] += 1                                             # the two classes score differently
    ms = make_metrics(["accuracy", "f1_binary", "precision_binary", "recall_binary", "auroc", "average_precision", "BinaryF1Score", "BinaryRecall"], n=2, classes=PAIR, positive=positive)
    for m in ms: m.reset()
    for i in range(0, N, 8): update_all(ms, z[i:i+8], y[i:i+8])
    got, is_k, said = computed(ms, PAIR), (y == k).numpy(), (z.argmax(1) == k).numpy()
    want = {"accuracy": (z.argmax(1) == y).double().mean().item(), f"f1/{PAIR[k]}": sk.f1_score(is_k, said), f"precision/{PAIR[k]}": sk.precision_score(is_k, said), f"recall/{PAIR[k]}": sk.recall_score(is_k, said),
            "auroc": sk.roc_auc_score(is_k, (z[:, k] - z[:, 1-k])), f"average_precision/{PAIR[k]}": sk.average_precision_score(is_k, (z[:, k] - z[:, 1-k]).double()),
            f"f1score/{PAIR[k]}": sk.f1_score(is_k, said), f"recall/{PAIR[k]}_2": sk.recall_score(is_k, said)}
    assert got == pytest.approx(want, abs=1e-6)


def test_the_class_is_told_for_everything_that_makes_metrics():
    manager = MetricManager(["autotrain_binary", MetricConfig("mine", "visionlab", "f1_binary"), MetricConfig("f1_binary", "visionlab"), tm.BinaryPrecision()])
    assert [m.name for m in make_metrics(manager, classes=PAIR, positive="good")] == ["accuracy", "f1/good", "precision/good", "recall/good", "auroc", "mine", "f1/good_2", "precision/good_2"]
    assert make_metrics(manager, classes=PAIR, positive="good")[5].positive == 0
    assert [m.name for m in make_metrics("autotrain_binary")] == METRIC_SETS["autotrain"]["binary"]          # no names are known
    assert [m.name for m in make_metrics("f1_binary", positive=0)] == ["f1/0"]
    assert [m.name for m in make_metrics(["f1_macro", "f1_per_class"], classes=PAIR, positive="good")] == ["f1_macro", "f1_per_class"]
    assert [m.name for m in make_metrics("f1_binary", classes=["1", "2"], positive=1)] == ["f1/1"]


@pytest.mark.parametrize("positive,classes,text", [("godo", PAIR, "good"), ("a", list("abc"), "one of two classes"), ("good", None, "names are not known"), (2, PAIR, "2")])
def test_a_positive_class_that_is_none(positive, classes, text):
    with pytest.raises(ConfigError, match=text): make_metrics("f1_binary", classes=classes, positive=positive)


def test_metrics_of_two_sides_share_no_sums():
    z, y = answers(c=2)
    ms = [FromTorchmetrics(tm.BinaryRecall()), FromTorchmetrics(tm.BinaryRecall())]
    ms[0].about(0, "good"); ms[1].about(1, "defective")
    for m in ms: m.reset()
    for i in range(0, N, 8): update_all(ms, z[i:i+8], y[i:i+8])
    want = [sk.recall_score(y == k, z.argmax(1) == k) for k in (0, 1)]
    assert [m.compute() for m in ms] == pytest.approx(want, abs=1e-6) and want[0] != want[1]


def test_the_direction_is_that_of_the_metric_not_of_the_class():
    from visionlab.runs.compare import higher_is_better
    from visionlab.training.schedules import Plateau
    assert higher_is_better("f1/loss of signal") and higher_is_better("f1_per_class/pieces") and not higher_is_better("valid_loss")
    up = Plateau(patience=0, monitor="recall/error")
    up.update(.5); up.update(.6)
    assert up.now == 1


def test_the_area_of_two_classes_needs_both_logits():
    g = torch.Generator().manual_seed(3)
    y = torch.randint(0, 2, (400,), generator=g)
    base = 3*torch.randn(400, generator=g)
    z = torch.stack([base, base + 3*(y-.5) + .7*torch.randn(400, generator=g)], 1)
    right, by_one = sk.roc_auc_score(y, z.double().softmax(1)[:, 1]), sk.roc_auc_score(y, z[:, 1])
    assert by_one < .8 < .97 < right
    assert score("auroc", z, y) == pytest.approx(right, abs=1e-9)
    sure = z*50                                              # float32 probabilities are all 0 or 1 here; the order is still known
    assert score("auroc", sure, y) == pytest.approx(right, abs=1e-9) and len(sure.softmax(1)[:, 1].unique()) < 200


@pytest.mark.parametrize("seed", range(5))
def test_areas_with_ties(seed):
    g = np.random.default_rng(seed)
    s, hit = g.integers(0, 7, 60)/7, g.random(60) < .4
    assert auroc(s, hit) == pytest.approx(sk.roc_auc_score(hit, s)) and average_precision(s, hit) == pytest.approx(sk.average_precision_score(hit, s))


def test_a_class_without_images_has_no_area():
    z, y = answers()
    assert score("auroc", z[y != 2], y[y != 2]) == pytest.approx(np.mean([sk.roc_auc_score((y == c)[y != 2], z.softmax(1)[y != 2, c]) for c in range(C) if c != 2]), abs=1e-6)
    assert math.isnan(score("auroc", z[:1]*float("nan"), y[:1])) and math.isnan(auroc(np.ones(3), np.ones(3, bool))) and math.isnan(average_precision(np.ones(3), np.zeros(3, bool)))


def test_scores_of_each_class():
    z, y = answers()
    for name, want in (("f1_per_class", sk.f1_score(y, z.argmax(1), average=None)), ("accuracy_per_class", sk.recall_score(y, z.argmax(1), average=None)),
                       ("auroc_per_class", [sk.roc_auc_score(y == c, z.softmax(1)[:, c]) for c in range(C)])):
        m = make_metric(name); score(m, z, y)
        got = m.values(list("abcdef"))
        assert [k.split("/")[-1] for k in got][1:] == list("abcdef") and np.allclose(list(got.values())[1:], want, atol=1e-6) and got[m.name] == pytest.approx(np.mean(want), abs=1e-6)
    z, y = labels()
    m = make_metric("mAP_per_class", "multilabel"); score(m, z, y)
    assert np.allclose(list(m.values().values())[1:], sk.average_precision_score(y, z, average=None), atol=1e-6)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_every_metric_starts_afresh_and_bears_no_batches(task):
    z, y = answers() if task == "multiclass" else labels()
    for name in METRICS if task == "multiclass" else MULTILABEL_METRICS:
        m = make_metric(name, task)
        if "binary" in name: z_, y_ = answers(c=2)
        else: z_, y_ = z, y
        assert score(m, z_, y_) == pytest.approx(score(m, z_, y_), nan_ok=True)
        m.reset(); m.compute()


# --- mixed images

@pytest.mark.parametrize("name", ["accuracy", "error_rate", "top3"])
def test_mixed_images_are_scored_by_share(name):
    z, y = answers()
    lam = torch.rand(N, 1, generator=torch.Generator().manual_seed(5))
    mixed = lam*F.one_hot(y, C) + (1-lam)*F.one_hot(y.flip(0), C)
    one = lambda t: torch.tensor([score(name, z[i:i+1], t[i:i+1]) for i in range(N)])
    want = (lam[:, 0]*one(y) + (1-lam[:, 0])*one(y.flip(0))).mean().item()
    assert score(name, z, mixed) == pytest.approx(want, abs=1e-5)
    assert score(name, z, F.one_hot(y, C).float()) == pytest.approx(score(name, z, y), abs=1e-6)


@pytest.mark.parametrize("name", ["f1_macro", "precision_weighted", "recall_micro"])
def test_mixed_images_are_counted_by_share(name):
    z, y = answers()
    assert score(name, z, F.one_hot(y, C).float()) == pytest.approx(score(name, z, y), abs=1e-6)
    mixed, said = .7*F.one_hot(y, C) + .3*F.one_hot(y.flip(0), C), z.argmax(1)
    pairs = [(y.numpy(), .7), (y.flip(0).numpy(), .3)]
    want = sk.precision_recall_fscore_support(np.concatenate([p for p, _ in pairs]), np.concatenate([said]*2), sample_weight=np.concatenate([np.full(N, w) for _, w in pairs]),
                                              average=name.split("_")[1], zero_division=0)[("precision", "recall", "f1").index(name.split("_")[0])]
    assert score(name, z, mixed) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("m", ["auroc", "MatthewsCorrCoef", tm.MulticlassAccuracy(C), lambda p, t: (p.argmax(1) == t).float().mean()])
def test_what_cannot_score_mixed_images_leaves_them_out_and_says_so(m):
    z, y = answers()
    m = make_metric(m)
    m.reset(); m.update(z[:50], y[:50]); m.update(z[50:], F.one_hot(y[50:], C).float())
    with pytest.warns(UserWarning, match="leaves out 1 batches of mixed"): mine = m.compute()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mine == pytest.approx(score(m, z[:50], y[:50]), abs=1e-6)
    m.reset(); m.update(z, F.one_hot(y, C).float())
    with pytest.warns(UserWarning): assert math.isnan(m.compute())


def test_mixed_images_with_several_classes():
    z, y = labels()
    t = .8*y + .2*y.flip(0)
    said = (z > 0).float()
    assert score("accuracy", z, t, task="multilabel") == pytest.approx((said*t + (1-said)*(1-t)).mean().item(), abs=1e-6)
    hit, true = (said*t).sum(0), t.sum(0)
    assert score("f1_macro", z, t, task="multilabel") == pytest.approx((2*hit/(true+said.sum(0))).mean().item(), abs=1e-6)


# --- torchmetrics

@pytest.mark.parametrize("m,kw", [(tm.MulticlassAUROC, {}), (tm.MulticlassAveragePrecision, {}), (tm.MulticlassCohenKappa, {}), (tm.MulticlassAccuracy, dict(top_k=3)), (tm.MulticlassF1Score, dict(average="weighted")),
                                  (tm.MulticlassCalibrationError, {}), (tm.MulticlassSpecificity, {})])
def test_torchmetrics_objects_and_classes_get_probabilities(m, kw):
    z, y = answers()
    reference = m(C, **kw)
    reference.update(z.softmax(1), y)
    want = float(reference.compute())
    assert score(m(C, **kw), z, y) == pytest.approx(want, abs=1e-6)
    if not kw: assert score(m, z, y) == pytest.approx(want, abs=1e-6) and score(m.__name__, z, y) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("m", [tm.MultilabelAccuracy, tm.MultilabelF1Score, tm.MultilabelAUROC, tm.MultilabelRankingLoss, tm.MultilabelExactMatch])
def test_torchmetrics_for_several_classes(m):
    z, y = labels()
    reference = m(C)
    reference.update(z.sigmoid(), y.int())
    assert score(m(C), z, y, task="multilabel") == pytest.approx(float(reference.compute()), abs=1e-6) == score(m.__name__, z, y, task="multilabel")


@pytest.mark.parametrize("m", [tm.BinaryAUROC, tm.BinaryF1Score, tm.BinaryAccuracy])
def test_torchmetrics_for_two_classes_get_the_second(m):
    z, y = answers(c=2)
    reference = m()
    reference.update(z.softmax(1)[:, 1], y)
    assert score(m(), z, y) == pytest.approx(float(reference.compute()), abs=1e-6) == score(m.__name__, z, y)
    with pytest.raises(ConfigError, match="two classes"): score(m(), *answers())


@pytest.mark.parametrize("name,cls", [("CohenKappa", "MulticlassCohenKappa"), ("cohen_kappa", "MulticlassCohenKappa"), ("torchmetrics.MulticlassAUROC", "MulticlassAUROC"), ("MatthewsCorrCoef", "MulticlassMatthewsCorrCoef")])
def test_torchmetrics_by_name(name, cls): assert make_metric(name).cls.__name__ == cls


def test_results_of_several_numbers():
    z, y = answers()
    m = FromTorchmetrics(tm.MulticlassF1Score(C, average=None)); score(m, z, y)
    got, want = m.values(list("abcdef")), sk.f1_score(y, z.argmax(1), average=None)
    assert np.allclose([got[f"f1score/{c}"] for c in "abcdef"], want, atol=1e-6) and got["f1score"] == pytest.approx(want.mean(), abs=1e-6)
    from torchmetrics.wrappers import ClasswiseWrapper
    m = FromTorchmetrics(ClasswiseWrapper(tm.MulticlassRecall(C, average=None), labels=list("abcdef")), name="recall"); score(m, z, y)
    assert len(m.values()) == C+1


def test_collections():
    z, y = answers()
    ms = make_metrics(MetricCollection({"acc": tm.MulticlassAccuracy(C), "kappa": tm.MulticlassCohenKappa(C)}))
    assert {m.name: score(m, z, y) for m in ms} == pytest.approx({"acc": sk.balanced_accuracy_score(y, z.argmax(1)), "kappa": sk.cohen_kappa_score(y, z.argmax(1))}, abs=1e-6)


# --- several processes

PARTS = [slice(0, 40), slice(40, 40), slice(40, 101)]           # one of them has no image


def gathered(make, z, y):
    "Score in three pretended processes that exchange states"
    ms = []
    for part in PARTS:
        m = make(); m.reset()
        for i in range(part.start, part.stop, 16): m.update(z[i:min(i+16, part.stop)], y[i:min(i+16, part.stop)])
        ms.append(m)
    states = [m.state() for m in ms]
    for m in ms: m.sync(lambda mine: states)
    return [m.compute() for m in ms]


ALL = [*[(n, "multiclass") for n in METRICS if "binary" not in n], *[(n, "multilabel") for n in MULTILABEL_METRICS], ("MulticlassAUROC", "multiclass"), ("CohenKappa", "multiclass"),
       ("MulticlassCalibrationError", "multiclass"), ("MultilabelRankingLoss", "multilabel")]


@pytest.mark.parametrize("name,task", ALL)
def test_processes_agree_and_are_right(name, task):
    z, y = answers() if task == "multiclass" else labels()
    assert gathered(lambda: make_metric(name, task), z, y) == pytest.approx([score(name, z, y, task=task)]*3, abs=1e-7)


@pytest.mark.parametrize("make", [lambda: FromTorchmetrics(tm.MulticlassAUROC(C)), lambda: FromTorchmetrics(tm.MulticlassConfusionMatrix(C)), lambda: make_metric(lambda p, t: (p.argmax(1) == t).float().mean())])
def test_processes_with_objects(make):
    z, y = answers()
    whole = make(); score(whole, z, y)
    assert gathered(make, z, y) == pytest.approx([whole.compute()]*3, abs=1e-7)


def _work(rank, port, queue):
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    def gather(o):
        out = [None]*2
        dist.all_gather_object(out, o)
        return out
    z, y = answers()
    mine = slice(0, 64) if rank == 0 else slice(64, N)
    manager = MetricManager(["accuracy", "f1_macro", "auroc", "CohenKappa", tm.MulticlassAUROC(C)])
    manager.update("val", z[mine], y[mine])
    queue.put((rank, manager.compute("val", gather=gather)))
    dist.destroy_process_group()


def test_two_real_processes():
    import socket
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    ctx = mp.get_context("spawn")
    queue = ctx.Queue()
    workers = [ctx.Process(target=_work, args=(r, port, queue)) for r in range(2)]
    for w in workers: w.start()
    got = dict(queue.get(timeout=120) for _ in workers)
    for w in workers: w.join(30)
    z, y = answers()
    one = MetricManager(["accuracy", "f1_macro", "auroc", "CohenKappa", tm.MulticlassAUROC(C)])
    one.update("val", z, y)
    assert got[0] == got[1] == pytest.approx(one.compute("val"), abs=1e-9)


# --- configurations, sets, names

def test_the_documents_example():
    manager = MetricManager(configs=[MetricConfig(name="accuracy", backend="torchmetrics", metric_class="Accuracy", params={"task": "multiclass"}, stages=["train", "val", "test"], prog_bar=True)], num_classes=C)
    z, y = answers()
    for stage in ("train", "val", "test"):
        for i in range(0, N, 16): manager.update(stage, z[i:i+16], y[i:i+16])
        assert manager.compute(stage)["accuracy"] == pytest.approx(sk.accuracy_score(y, z.argmax(1)), abs=1e-6)
    manager.reset("val")
    assert math.isnan(manager.compute("val")["accuracy"]) and not math.isnan(manager.compute("train")["accuracy"])


def test_several_classes_configured():
    z, y = labels()
    m = MetricConfig("acc", metric_class="MultilabelAccuracy", params={"num_labels": C}).make("multilabel")
    assert score(m, z, y) == pytest.approx(((z > 0) == (y > 0)).float().mean().item(), abs=1e-6)
    assert score(MetricConfig("F1Score", params={"average": "micro"}).make("multilabel"), z, y) == pytest.approx(sk.f1_score(y, z > 0, average="micro"), abs=1e-6)


@pytest.mark.parametrize("kw", [dict(metric_class="Acuracy"), dict(metric_class="MulticlassAccuracy", params={"averge": "macro"}), dict(metric_class="MulticlassAccuracy", params={"average": "makro"}),
                                dict(backend="keras"), dict(stages=["trian"]), dict(backend="custom", metric_class="my.module.Metric"), dict(backend="visionlab", metric_class="acuracy"),
                                dict(backend="visionlab", log_on_step=True)])
def test_configurations_that_cannot_work(kw):
    with pytest.raises(ConfigError): MetricManager([MetricConfig(**{"name": "accuracy", **kw})])


def test_a_number_of_classes_that_is_not_the_models():
    manager = MetricManager([MetricConfig("kappa", metric_class="MulticlassCohenKappa")], num_classes=9)
    with pytest.raises(ConfigError, match="9 classes, and the model answers with 6"): manager.update("val", *answers())


def test_custom_backends():
    z, y = answers()
    for what in (tm.MulticlassAccuracy(C, average="micro"), lambda p, t: (p.argmax(1) == t).float().mean()):
        m = MetricConfig("mine", "custom", what).make()
        assert m.name == "mine" and score(m, z, y) == pytest.approx(sk.accuracy_score(y, z.argmax(1)), abs=1e-6)


@pytest.mark.parametrize("n,task,kind", [(2, "multiclass", "binary"), (10, "multiclass", "multiclass"), (10, "multilabel", "multilabel")])
@pytest.mark.parametrize("which", METRIC_SETS)
def test_sets(which, n, task, kind):
    assert {m.name for m in make_metrics(which, task, n=n)} == set(METRIC_SETS[which][kind])


def test_sets_need_the_number_of_classes_and_leave_out_top5_of_four():
    with pytest.raises(ConfigError, match="autotrain_binary"): make_metrics("autotrain")
    assert "auroc" in [m.name for m in make_metrics("autotrain_binary")]
    assert "top5" not in [m.name for m in make_metrics("lightly", n=4)] and "top5" in [m.name for m in make_metrics("lightly", n=5)]


def test_names_that_meet_are_numbered():
    assert [m.name for m in make_metrics(["accuracy", "acc", "f1"])] == ["accuracy", "accuracy_2", "f1_macro"]


@pytest.mark.parametrize("name,near", [("acuracy", "accuracy"), ("f1macro", "f1_macro"), ("MulticlasAUROC", "AUROC"), ("CohenKapa", "CohenKappa")])
def test_mistakes_are_answered_with_the_name_meant(name, near):
    with pytest.raises(UnknownOptionError, match=near): make_metric(name)


def test_what_is_no_metric():
    with pytest.raises(ConfigError): make_metric(3)


# --- while training

def loader(seed, sizes=(8, 8, 8, 5)):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 4, generator=g), torch.randint(0, 3, (n,), generator=g)) for n in sizes]


def test_stages_in_a_learner():
    configs = [MetricConfig("accuracy", "visionlab"), MetricConfig("f1", metric_class="MulticlassF1Score", stages=["val"], prog_bar=False), MetricConfig("kappa", metric_class="MulticlassCohenKappa", stages=["train"]),
               MetricConfig("hidden", metric_class="MulticlassRecall", log_on_epoch=False)]
    learn = Learner((loader(0), loader(1)), nn.Linear(4, 3), metrics=MetricManager(configs), lr=1e-2, device="cpu").fit(2)
    assert {"train_accuracy", "accuracy", "f1", "train_kappa"} <= set(learn.history[-1]) and not {"kappa", "train_f1", "hidden", "train_hidden"} & set(learn.history[-1])


class Spy:
    "Keep what the model said of each training batch"
    order = 0
    def before_epoch(self, learn): self.seen = []
    def after_batch(self, learn): self.seen.append((learn.pred.detach().clone(), learn.yb.clone()))


@pytest.mark.parametrize("batches", [1, 2, 32])
@pytest.mark.parametrize("mix", [False, True])
def test_training_scores_are_those_of_every_batch(batches, mix):
    data = loader(0)
    if mix: data = [(x, .7*F.one_hot(t, 3) + .3*F.one_hot(t.flip(0), 3)) if i % 2 else (x, t) for i, (x, t) in enumerate(data)]
    ms = [m for m in make_metrics(["accuracy", "f1_macro"])]
    for m in ms: m.stages = ("train",)
    learn = Learner(data, nn.Linear(4, 3), metrics=[], lr=1e-2, device="cpu", callbacks=[TrainMetrics(ms, batches=batches), spy := Spy()]).fit(1)
    z, t = torch.cat([o for o, _ in spy.seen]), torch.cat([t if t.ndim > 1 else F.one_hot(t, 3).float() for _, t in spy.seen])
    for m in for_stage(ms, "train"): assert learn.history[-1][f"train_{m.name}"] == pytest.approx(score(m, z, t), abs=1e-6)


def test_values_of_single_steps():
    config = MetricConfig("acc", metric_class="Accuracy", stages=["train"], log_on_step=True)
    train = TrainMetrics([config.make()])
    learn = Learner(loader(0), nn.Linear(4, 3), metrics=[], lr=1e-2, device="cpu", callbacks=[train, spy := Spy()]).fit(2)
    want = [(o.argmax(1) == t).float().mean().item() for o, t in spy.seen]
    assert train.steps["acc"][4:] == pytest.approx(want) and learn.history[-1]["train_acc"] == pytest.approx(sum(w*len(t) for w, (_, t) in zip(want, spy.seen))/29)


def test_scores_of_training_change_nothing_of_it():
    def run(metrics):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(.5), nn.Linear(8, 3))
        Learner(loader(0), model, metrics=metrics, lr=1e-2, device="cpu").fit(2)
        return model
    a, b = run([]), run(MetricManager([MetricConfig("acc", metric_class="Accuracy")]))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def test_nothing_of_a_step_is_kept():
    "What is remembered of a batch has no graph, and little of it waits"
    z, y = answers()
    z = z.requires_grad_()
    m = make_metric("auroc"); m.reset(); m.update(z.detach()*1, y)
    assert not any(o.requires_grad for s in m.seen for o in s) and isinstance(m, Kept)
    train = TrainMetrics([MetricConfig("acc", "visionlab").make()], batches=4)
    train.before_epoch(None)
    class Now: pred, yb = z*1, y
    for _ in range(9):
        train.after_batch(Now)
        assert len(train.waiting) < 4 and not any(o.requires_grad for o, _ in train.waiting)


def test_the_learner_reads_other_processes():
    learn = Learner((loader(0), loader(1)), nn.Linear(4, 3), lr=1e-2, device="cpu", metrics=["accuracy", "auroc"])
    alone = learn.validate()
    learn.gather = lambda mine: [mine, mine]
    assert learn.validate() == pytest.approx(alone, abs=1e-9)


def test_computed_is_of_epochs_alone():
    a, b = make_metrics(["accuracy", "f1"]); b.on_epoch = False
    for m in (a, b): m.reset(); m.update(*answers())
    assert list(computed([a, b])) == ["accuracy"]


WAITS = [*[(n, "multiclass") for n in METRICS], *[(n, "multilabel") for n in MULTILABEL_METRICS], ("MulticlassAUROC", "multiclass"), ("MultilabelF1Score", "multilabel"),
         ("MultilabelAUROC", "multilabel")]         # torchmetrics' multi-class counts use bincount, which waits by itself


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name,task", WAITS)
def test_an_update_never_waits_for_the_device(name, task, soft):
    "On the meta device there are no values: whoever asks for one fails"
    z, wide = torch.empty(9, 2, device="meta"), soft or task == "multilabel"
    t = torch.empty(9, 2, device="meta") if wide else torch.empty(9, device="meta", dtype=torch.long)
    m = make_metric(name, task)
    m.reset(); m.update(z, t); m.update(z, t)
    with pytest.raises(RuntimeError): float(z[0, 0])


@pytest.mark.parametrize("classes", [2, 10, 15, 16, 40])
def test_probabilities_are_made_once_and_are_those_of_softmax(classes, monkeypatch):
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
    made = []
    monkeypatch.setattr("visionlab.training.counts.to_probs", lambda logits, task: made.append(1) or logits.softmax(1))
    logits, target = torch.randn(300, classes, generator=torch.Generator().manual_seed(0)), torch.arange(300) % classes
    metrics = make_metrics([MulticlassAccuracy(classes), MulticlassF1Score(classes), lambda p, y: float((p-logits.softmax(1)).abs().max())])
    for m in metrics: m.reset(); m.update(logits, target)
    assert len(made) == (classes >= 16) and torch.allclose(logits.probs, logits.softmax(1), atol=1e-6) and metrics[-1].compute() < 1e-6
    assert metrics[0].compute() == pytest.approx(MulticlassAccuracy(classes)(logits, target).item())


def updates(metrics, monkeypatch):
    "Note who is updated."
    seen = []
    for m in metrics: monkeypatch.setattr(m, "update", lambda *a, m=m, f=m.update: (seen.append(m.name), f(*a)))
    return seen


ALIKE = {"counts": ["f1_macro", "precision_micro", "recall_weighted"], "torchmetrics": [tm.MulticlassAccuracy(C), tm.MulticlassF1Score(C), tm.MulticlassPrecision(C)],
         "tables": [tm.MulticlassConfusionMatrix(C), tm.MulticlassCohenKappa(C)], "by name": ["MulticlassF1Score", "MulticlassRecall"]}


@pytest.mark.parametrize("kind", ALIKE)
@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
def test_what_several_count_is_counted_once(kind, mixed, monkeypatch):
    logits, y = answers()
    metrics, apart = for_stage(make_metrics(ALIKE[kind]), "val"), for_stage(make_metrics(ALIKE[kind]), "val")
    seen = updates(metrics, monkeypatch)
    for part in (slice(0, 40), slice(40, 96), slice(96, N)):
        target = F.one_hot(y[part], C)*.7 + .05 if mixed and part.start == 40 else y[part]
        update_all(metrics, logits[part], target)
        for m in apart: m.update(logits[part], target)
    assert set(seen) == {metrics[0].name} and len(seen) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")          # of mixed batches
        assert computed(metrics) == computed(apart)
    if kind == "tables": return
    before = computed(metrics)[metrics[1].name]
    metrics[0].update(logits[:40].roll(1, 1), y[:40])                                # the first goes on alone: the others keep theirs, and count for themselves from now on
    assert computed(metrics)[metrics[1].name] == before


def test_only_what_is_the_same_is_counted_once(monkeypatch):
    logits, y = answers()

    class Own(tm.MulticlassF1Score):
        def _update_state(self, *a): super()._update_state(*a); self.tp += 1

    different = [tm.MulticlassF1Score(C), tm.MulticlassPrecision(C, top_k=2), tm.MulticlassRecall(C, ignore_index=1), tm.MulticlassAccuracy(C, average="micro"), Own(C), tm.MulticlassAUROC(C), "f1_macro", "accuracy",
                 MetricConfig("shown", metric_class="MulticlassF1Score", log_on_step=True)]
    metrics = for_stage(make_metrics(different), "val")
    seen = updates(metrics, monkeypatch)
    for _ in range(2): update_all(metrics, logits, y)
    assert len(seen) == 2*len(metrics)


def test_metrics_that_saw_other_images_count_for_themselves(monkeypatch):
    logits, y = answers()
    metrics, apart = for_stage(make_metrics(ALIKE["torchmetrics"]), "val"), for_stage(make_metrics(ALIKE["torchmetrics"]), "val")
    for some in (metrics, apart): some[1].update(logits[:50], y[:50])
    update_all(metrics, logits, y)
    for m in apart: m.update(logits, y)
    assert computed(metrics) == computed(apart)


def test_a_users_object_has_sums_of_its_own_afterwards():
    logits, y = answers()
    mine = [tm.MulticlassConfusionMatrix(C), tm.MulticlassCohenKappa(C)]
    metrics = make_metrics(mine)
    for m in metrics: m.reset()
    update_all(metrics, logits, y)
    kappa = computed(metrics)["cohenkappa"]
    mine[0].confmat += 100
    assert float(mine[1].compute()) == pytest.approx(kappa) and mine[1].confmat.sum() == N
