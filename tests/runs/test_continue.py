"A trained model goes on with another task: from its run, an export or a checkpoint; its head by the names of its classes."
import shutil

import pytest
import torch

from visionlab.runs.checkpoints import Checkpoint
from visionlab.core.errors import CheckpointError, ConfigError
from visionlab.data.module import ImageDataModule
from visionlab.training.learner import Learner
from visionlab.models.classifier import ImageClassifier
from visionlab.runs.folder import RunFolder
from visionlab.export import folder as deploy

pytestmark = pytest.mark.usefixtures("one_thread")
OLD, NEW = ["Bag", "Coat", "Sandal"], ["Sandal", "Boot", "Bag", "Shirt"]


def data(names): return ImageDataModule("FashionSample", batch_size=16, max_samples=60, classes=names, normalize=((.3,), (.4,)))


@pytest.fixture(scope="module")
def run(one_thread, tmp_path_factory):
    import os
    os.environ["VISIONLAB_PROGRESS"] = "off"
    run = RunFolder(tmp_path_factory.mktemp("old")/"run")
    learn = Learner(data(OLD), "resnet9", device="cpu").fit(1, callbacks=run.callbacks())
    learn.export(run.exports/"exported_last")
    run.close()
    return run.path, learn


def places(path): return [path, path/"exported_models", path/"exported_models"/"exported_last", path/"exported_models"/"exported_last.pt", path/"checkpoints", path/"checkpoints"/"last", path/"checkpoints"/"best", next((path/"checkpoints").glob("step-*"))]


def test_from_wherever_it_is(run):
    path, learn = run
    for o in places(path):
        for given in (o, str(o)):
            model = ImageClassifier(given, classes=OLD)
            for k, v in learn.model.state_dict().items(): assert torch.equal(v, model.state_dict()[k]), (o, k)
            assert (model.config.mean, model.config.std, model.config.image_size, model.notes) == ((.3,), (.4,), (28, 28), [])


def test_the_head_goes_by_the_names_of_the_classes(run, capsys):
    path, learn = run
    head = learn.model.net.head
    for o in (path, path/"checkpoints"/"last"):
        turned = ImageClassifier(o, classes=OLD[::-1])
        assert torch.equal(turned.net.head.weight, head.weight.flip(0)) and torch.equal(turned.net.head.bias, head.bias.flip(0)) and "sorted anew" in turned.notes[0]
        kept, new = ImageClassifier(o, classes=NEW, reuse_class_head=True), ImageClassifier(o, classes=NEW)
        assert "2 of 4 classes stay (Sandal, Bag)" in kept.notes[0] and "reuse_class_head=True keeps the parts for Sandal, Bag" in new.notes[0]
        assert torch.equal(kept.net.head.weight[[0, 2]], head.weight[[2, 0]]) and torch.equal(kept.net.head.bias[[0, 2]], head.bias[[2, 0]])
        assert kept.net.head.weight[[1, 3]].abs().max() < .1 and kept.net.head.bias[[1, 3]].abs().max() == 0       # as a new head begins
        assert new.net.head.weight.shape == (4, 128) and new.net.head.weight.abs().max() < .1
        for m in (turned, kept, new): assert torch.equal(m.net.conv4[0].weight, learn.model.net.conv4[0].weight)
    same_count = ImageClassifier(path, classes=["Boot", "Shirt", "Hat"])
    assert not torch.equal(same_count.net.head.weight, head.weight) and "starts untrained." in same_count.notes[0]
    assert torch.equal(ImageClassifier(path, 3).net.head.weight, head.weight) and len(ImageClassifier(path, 5).net.head.weight) == 5       # without names it goes by their number
    with pytest.raises(ConfigError, match="4 class names, and num_classes is 3"): ImageClassifier(path, 3, classes=NEW)


def test_a_learner_goes_on_with_other_classes(run):
    path, learn = run
    dm = ImageDataModule("FashionSample", batch_size=16, max_samples=80, classes=["Sandal", "Shirt", "Bag", "Coat"])
    on = Learner(dm, str(path), device="cpu", lr=1e-3)
    assert (on.data.mean, on.data.std) == ((.3,), (.4,)) if hasattr(on.data, "mean") else on.model.config.mean == (.3,)
    assert torch.equal(on.model.net.conv1[0].weight, learn.model.net.conv1[0].weight) and on.model.config.num_classes == 4
    assert on.fit(1).history[-1]["accuracy"] >= 0


@pytest.mark.parametrize("where,file", [("exported_models/exported_last", "model.safetensors"), ("checkpoints/last", "model.safetensors"), ("checkpoints/last", "state.json")])
def test_a_flipped_byte_is_found(run, where, file, tmp_path):
    copy = shutil.copytree(run[0], tmp_path/"run")
    place = copy/where if (copy/where).is_dir() else (copy/where).with_name((copy/where).read_text().strip())
    raw = bytearray((place/file).read_bytes()); raw[-9] ^= 1
    (place/file).write_bytes(raw)
    with pytest.raises(CheckpointError, match="is damaged"): ImageClassifier(copy/where, classes=OLD)


def test_what_cannot_be_rebuilt_says_so(run, tmp_path):
    kept = Checkpoint.newest(run[0])
    kept.state.pop("network")
    with pytest.raises(CheckpointError, match="network of your own"): ImageClassifier(kept.write(tmp_path))
    (tmp_path/"empty").mkdir()
    with pytest.raises(CheckpointError, match="no config.json"): ImageClassifier(tmp_path/"empty")
