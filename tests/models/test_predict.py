"What every way to a prediction gives back, and how much memory it keeps."
import os
import numpy as np
import pytest
import torch
from PIL import Image
from visionlab import cli
from visionlab.widgets.predict_pad import PredictPad
from visionlab.core.errors import BadInputError, PredictError
from visionlab.data.module import ImageDataModule
from visionlab.export.load import load_model
from visionlab.training.learner import Learner
from visionlab.models.predictor import Predictor

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def learn(): return Learner(ImageDataModule("FashionSample", batch_size=64), "resnet9", device="cpu")


@pytest.fixture(scope="module")
def exported(learn, tmp_path_factory): return learn.export(tmp_path_factory.mktemp("model")/"fashion")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")/"one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
    return path


DOORS = dict(
    learner=lambda learn, exported, path: learn.predict(path).probs,
    learner_many=lambda learn, exported, path: learn.predict([path, path])[1].probs,
    predictor=lambda learn, exported, path: learn.predictor().probabilities([path]),
    get_preds=lambda learn, exported, path: learn.get_preds("val")[0],
    interpret=lambda learn, exported, path: learn.interpret("val").probs,
    loaded=lambda learn, exported, path: load_model(exported).predict(path).probs,
    loaded_folder=lambda learn, exported, path: load_model(exported).predict(path.parent)[0].probs)


@pytest.mark.parametrize("door", DOORS)
def test_probabilities_are_plain_numbers(learn, exported, picture, door):
    probs = DOORS[door](learn, exported, picture)
    assert not probs.requires_grad and probs.grad_fn is None
    assert probs.numpy().sum() == pytest.approx(len(probs) if probs.ndim == 2 else 1, rel=1e-4)
    weight = torch.ones(probs.shape[-1], requires_grad=True)
    (weight*probs).sum().backward()             # they may take part in a computation of somebody else's
    assert torch.equal(weight.grad, probs if probs.ndim == 1 else probs.sum(0))


@pytest.mark.parametrize("door", ["command", "pad"])
def test_what_is_answered_from_has_no_graph(exported, picture, door, monkeypatch):
    answer, graphs = Predictor._answer, []

    def noting(self, p, *args):
        graphs.append(p.requires_grad)
        return answer(self, p, *args)
    monkeypatch.setattr(Predictor, "_answer", noting)
    if door == "command": assert not cli.main(["predict", str(exported), str(picture)])
    else: PredictPad(exported).ask(picture)
    assert graphs == [False]


def resident():
    "Return the memory of this process in MB."
    with open("/proc/self/statm") as f: return int(f.read().split()[1])*os.sysconf("SC_PAGE_SIZE")/2**20


@pytest.mark.parametrize("door", ["learner", "loaded"])
def test_memory_does_not_grow_with_the_images(learn, exported, picture, door):
    model = learn if door == "learner" else load_model(exported)
    model.predict([picture]*64)
    before = resident()
    found = model.predict([picture]*2000)
    assert len(found) == 2000 and resident() - before <= 100


def test_sizes_that_differ_name_their_files(learn, tmp_path):
    for name, width in (("a.png", 28), ("b.png", 30)): Image.new("L", (width, 28)).save(tmp_path/name)
    dm = ImageDataModule("FashionSample", batch_size=64, train_transforms=np.asarray, eval_transforms=np.asarray, num_workers=0)
    predictor = Learner(dm, learn.model, device="cpu").predictor()
    with pytest.raises(BadInputError, match="different sizes") as e: predictor.predict([tmp_path/"a.png", tmp_path/"b.png"])
    assert "a.png" in e.value.where and "b.png" in e.value.where


@pytest.mark.parametrize("door", ["command", "pad"])
def test_memory_does_not_grow_by_the_command_or_the_pad(exported, picture, door, capsys):
    pad = PredictPad(exported)

    def ask(n):
        if door == "command": assert not cli.main(["predict", str(exported), *[str(picture)]*n])
        else:
            for _ in range(n): pad.ask(picture)
        capsys.readouterr()
    ask(64)
    before = resident()
    ask(2000)
    assert resident() - before <= 100


# ---- outputs that are no finite numbers: finite weights can be too large to compute with


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    "A learner whose weights are finite and too large, and what it exports."
    learn = Learner(ImageDataModule("FashionSample", batch_size=64), "resnet9", device="cpu")
    with torch.no_grad():
        for o in learn.model.parameters(): o.fill_(1e38)
    return learn, learn.export(tmp_path_factory.mktemp("huge")/"model")


def _asked(exported, path, capsys=None):
    from visionlab.widgets.active_labels import _answers_to
    return _answers_to(load_model(exported), [path])


def _evaluated(what):
    from visionlab.runs.evaluate import evaluate
    return evaluate(what, "FashionSample", split="test")


def _warm(learn, path):
    from visionlab.interpret.gradcam import heat_maps
    return heat_maps(learn.model, torch.zeros(1, 1, 28, 28))


FINITE_DOORS = dict(DOORS, evaluate=lambda learn, exported, path: _evaluated(exported), evaluate_learner=lambda learn, exported, path: _evaluated(learn),
                    validate=lambda learn, exported, path: learn.validate(), heat=lambda learn, exported, path: _warm(learn, path))


@pytest.mark.parametrize("door", FINITE_DOORS)
def test_outputs_that_are_not_finite_are_a_typed_error(huge, picture, door):
    with pytest.raises(PredictError, match="not finite"): FINITE_DOORS[door](*huge, picture)


def test_the_pad_the_shell_and_labelling_say_that_outputs_are_not_finite(huge, picture, capsys):
    assert "not finite" in PredictPad(load_model(huge[1])).ask(picture).error
    assert cli.main(["predict", str(huge[1]), str(picture)]) == 1
    assert cli.main(["evaluate", str(huge[1]), "FashionSample", "--split", "test"]) == 1
    out, err = capsys.readouterr()
    assert "nan" not in out and err.count("outputs are not finite") == 2
    probs, _, errors = _asked(huge[1], picture)
    assert np.isnan(probs).all() and "not finite" in errors[0]


def test_of_many_images_the_others_are_answered(learn, picture):
    class SomeLost(torch.nn.Module):
        def forward(self, x): return torch.where(torch.arange(len(x))[:, None] == 1, float("nan"), 0.) + torch.arange(10.)
    model = Predictor(SomeLost(), learn.data.eval_pipeline, learn.classes)
    found = model.predict([picture]*3)
    assert [o.label for o in found] == [learn.classes[9], None, learn.classes[9]] and "not finite" in found[1].error
    with pytest.raises(PredictError, match="1 of 3"): model.probabilities([picture]*3)


def test_minus_infinity_rules_a_class_out():
    from visionlab.models.probs import unanswered
    low = -float("inf")
    rows = torch.tensor([[low, 1., 2.], [low, low, low], [1., float("inf"), 0.], [0., float("nan"), 0.], [0., 1., 2.]])
    assert unanswered(rows, "multiclass").tolist() == [False, True, True, True, False]
    assert unanswered(rows, "multilabel").tolist() == [True, True, True, True, False]


def test_an_epoch_without_answers_has_no_scores():
    from visionlab.models.resnet import resnet9

    class Overflow(torch.nn.Module):
        def __init__(self): super().__init__(); self.net = resnet9(10, 1)
        def forward(self, x): return self.net(x) if self.training else self.net(x)*float("inf")
    batches = [(torch.rand(8, 1, 16, 16), torch.arange(8))]
    learn = Learner((batches, batches), Overflow(), device="cpu")
    with pytest.warns(UserWarning, match="Epoch 1 has no scores"): learn.fit(1)
    assert all(np.isnan(learn.history[0][k]) for k in ("valid_loss", "accuracy"))
