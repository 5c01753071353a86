"What every way to a prediction gives back, and how much memory it keeps."
import os
import numpy as np
import pytest
import torch
from PIL import Image
from visionlab import cli
from visionlab.widgets.predict_pad import PredictPad
from visionlab.core.errors import BadInputError
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
