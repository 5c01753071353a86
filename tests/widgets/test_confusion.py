"The confusion explorer and the choice of a rate without a browser; where a model looks."
import numpy as np
import pytest
import torch
from torch import nn

from visionlab.callbacks.lr_find import LRFound
from visionlab.core.errors import ConfigError, UnknownOptionError
from visionlab.widgets.confusion import ConfusionExplorer
from visionlab.widgets.lr_picker import LRPicker
from visionlab.interpret.gradcam import heat_maps, last_map, overlay
from visionlab.interpret.interpretation import Interpretation


def answers(n=300, classes=4, several=False, picture=True, seed=0):
    "Random answers about pictures of noise."
    rng = np.random.default_rng(seed)
    names = [f"class {i}" for i in range(classes)]
    y = torch.as_tensor((rng.random((n, classes)) < .4).astype(np.float32) if several else rng.integers(0, classes, n))
    p = torch.as_tensor(rng.random((n, classes)).astype(np.float32))
    if not several: p = (3*p + 2*nn.functional.one_hot(y, classes)).softmax(1)
    pixels = rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    losses = torch.as_tensor(rng.random(n).astype(np.float32))
    return Interpretation(p, y, losses, names, [f"{i}.jpg" for i in range(n)], np.arange(n) + 1000, (lambda i: pixels[i - 1000]) if picture else None, "multilabel" if several else "multiclass")


def buttons(view):
    "Find the buttons of the matrix by their names."
    view.widget
    return {o.tooltip:o for o in view._matrix.children if hasattr(o, "on_click")}


def test_each_cell_has_its_images():
    found = answers()
    view = ConfusionExplorer(found)
    matrix = found.confusion().matrix
    for name, b in buttons(view).items():
        b.click()
        true, said = name.split(" taken for ")
        assert (view.true, view.what) == (true, said) and int(b.description) == len(view.images) == matrix.loc[true, said]
        at = [i - 1000 for i in view.images.index]
        assert all(found.targets[at] == found.classes.index(true)) and all(found.predicted[at] == found.classes.index(said))
    assert sum(int(o.description) for o in buttons(view).values()) == len(found)


def test_begins_with_the_worst_and_lists_mistakes():
    found = answers()
    view = ConfusionExplorer(found)
    top = found.most_confused().iloc[0]
    view.widget
    assert (view.true, view.what) == (top["true"], top["predicted"]) and view._list.index == 0
    view._list.value = 1
    assert (view.true, view.what) == tuple(found.most_confused().iloc[1][["true", "predicted"]])
    view.show("class 0", "class 0")
    assert view._list.value is None and "that are right" in view.to_html()
    with pytest.raises(UnknownOptionError): view.show("class 9", "class 0")


def test_several_classes_have_three_cells():
    found = answers(several=True)
    view = ConfusionExplorer(found)
    table = found.outcomes()
    for name, b in buttons(view).items():
        b.click()
        true, what = name.split(", ")
        assert len(view.images) == table.loc[true, what] == int(b.description)
    t, p = found.targets.numpy() > .5, found.probs.numpy() > .5
    assert (table.to_numpy() == np.stack([(t & p).sum(0), (t & ~p).sum(0), (~t & p).sum(0)], 1)).all()
    assert "class 0" in view.to_html()


def test_hundreds_of_classes_are_searched():
    found = answers(n=3000, classes=200)
    view = ConfusionExplorer(found)
    assert len(view.shown()) == 20 and len(buttons(view)) <= 400
    view.search = "class 19"                                    # 11 classes, and what they are confused with
    shown = view.shown()
    assert len(shown) <= 20 and sum("class 19" in o for o in shown) >= 10
    view.search = "nothing like it"
    assert view.shown() == [] and not buttons(view)
    assert len(view._repr_mimebundle_()["text/html"]) < 150_000


def test_searching_leaves_no_widgets_behind():
    from ipywidgets.widgets import widget
    count = lambda: len(widget._instances if hasattr(widget, "_instances") else widget.Widget.widgets)
    view = ConfusionExplorer(answers(n=2000, classes=60))
    view.widget
    view.search = "1"; view.search = ""
    before = count()
    for _ in range(5): view.search = "1"; view.search = ""
    assert count() == before


def test_images_of_a_cell_are_paged():
    view = ConfusionExplorer(answers(n=600, classes=2))
    view.show("class 0", "class 0")
    n = len(view.images)
    first = view.tiles()[2]
    assert len(first) == 24 and "1–24 from the surest on" in view.to_html()
    for _ in range(50): view.next()
    assert view.page == (n-1)//24 and len(view.tiles()[0]) == (n-1) % 24 + 1 and not set(first) & set(view.tiles()[2])
    view.show("class 1", "class 0")
    assert view.page == 0
    view.previous(); assert view.page == 0


def test_long_names_are_shortened_where_they_do_not_differ():
    found = answers(n=300, classes=30)
    found.classes[:] = [f"a species with a long name, number {i}" for i in range(30)]
    view = ConfusionExplorer(found)
    view.widget
    shown = [o.value.split(">")[1].split("<")[0] for o in view._matrix.children if hasattr(o, "value")]
    assert len(set(shown)) == len(view.shown()) and all(len(o) <= 22 for o in shown)


def test_without_pictures_and_with_heat():
    view = ConfusionExplorer(answers(picture=False))
    assert view.to_html().count("<img") > 0
    asked = []
    view = ConfusionExplorer(answers(), lambda ids, name: asked.append((len(ids), name)) or [np.zeros((8, 8, 3), np.uint8)]*len(ids))
    plain = view.to_html()
    view.grad_cam = True
    assert view.to_html() != plain and asked[-1] == (min(24, len(view.images)), view.what)


def test_names_are_escaped():
    found = answers()
    found.classes[:] = ["<script>x</script>", "\"'", "&amp;", "日本"]
    view = ConfusionExplorer(found)
    view.widget
    assert "<script" not in view.to_html() + "".join(o.value for o in view._matrix.children if hasattr(o, "value"))
    view.figure()


def test_a_perfect_model_has_nothing_to_explore():
    found = answers()
    found.probs = nn.functional.one_hot(found.targets, 4).float()
    view = ConfusionExplorer(found)
    view.widget
    assert len(buttons(view)) == 4 and "no mistake" in str(view._list.options)


# ---- the rate

class Quiet:
    "A learner that searches without training."
    lr = 1e-3
    def lr_find(self):
        self.searched = getattr(self, "searched", 0) + 1
        lrs = np.geomspace(1e-5, 1, 60)
        return LRFound(list(lrs), list(2 - np.exp(-(np.log10(lrs)+2)**2)), dict(valley=1e-3*self.searched, steep=4e-3))


def test_rate_is_chosen_with_slider_button_and_code():
    learn = Quiet()
    view = LRPicker(learn)
    view.widget
    assert view.lr == pytest.approx(view.found.best) and learn.lr == 1e-3
    before = view._picture.value
    view._slider.value = 1e-4
    assert view.lr == pytest.approx(1e-4) and view._picture.value != before
    next(o for o in view._suggested.children if o.description.startswith("steep")).click()
    assert view.lr == 4e-3 and view._slider.value == pytest.approx(4e-3, rel=.02)
    view.use()
    assert learn.lr == 4e-3 and "next fit begins at 4.00e-03" in view._picture.value
    view.lr = .5
    assert learn.lr == 4e-3
    for bad in (0, -1, float("nan")):
        with pytest.raises(ConfigError): view.lr = bad


def test_searching_again_takes_the_new_curve():
    from ipywidgets.widgets import widget
    count = lambda: len(widget._instances if hasattr(widget, "_instances") else widget.Widget.widgets)
    view = LRPicker(Quiet())
    view.widget
    before = count()
    for _ in range(5): view.again()
    assert view.learn.searched == 6 and any("6.0e-03" in o.description for o in view._suggested.children) and count() == before


def test_a_click_on_the_curve_marks_the_rate_there():
    view = LRPicker(Quiet())
    view.widget
    places = view._clicks.children
    for k, lr in ((0, 1e-5), (len(places)-1, 1), (len(places)//2, 10**-2.5)):
        places[k].click()
        assert view.lr == pytest.approx(lr) and view._slider.value == pytest.approx(lr, rel=.02)
        assert float(view._picture.value.split("cx='")[1].split("'")[0]) == pytest.approx(46 + 560*k/(len(places)-1), abs=.1)
        assert places[k].tooltip == f"{lr:.1e}: loss {view.loss_at(lr):.3g}"
    assert all(f">{o}</text>" in view._picture.value for o in ("valley", "steep"))       # suggestions have names
    view.learn.lr_find = lambda: LRFound([1e-4, 1e-3, 1e-2], [3., 1., 2.], dict(valley=2e-3))
    view.again()
    places[0].click()
    assert view.lr == pytest.approx(1e-4) and places[0].tooltip.startswith("1.0e-04") and view._slider.min == pytest.approx(-4)


def test_a_search_that_fails_is_told():
    view = LRPicker(Quiet())
    view.widget
    view.learn.lr_find = lambda: 1/0
    view._try(view.again)
    assert "division by zero" in view._picture.value and view.lr == view.found.best


def test_curve_is_a_still_picture_with_a_text():
    view = LRPicker(Quiet())
    html = view._repr_mimebundle_()["text/html"]
    assert "<svg role='img' aria-label='Loss over learning rate" in html and "nan" not in html and len(html) < 20_000
    view.figure()
    found = view.found
    found.losses[10] = float("nan"); found.losses[-1] = float("inf")
    assert "nan" not in LRPicker(view.learn, found)._svg().lower().replace("finance", "")


# ---- where a model looks

def test_heat_is_the_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    x = torch.rand(3, 3, 12, 10)
    state = {k:v.clone() for k, v in model.state_dict().items()}
    heat, said = heat_maps(model, x)
    assert heat.shape == (3, 12, 10) and heat.min() >= 0 and heat.max() <= 1 and model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and all(p.grad is None for p in model.parameters())
    assert last_map(model, x) is model[2]
    model.eval()
    maps = model[:3](x)
    want = torch.relu((model[5].weight[said][:, :, None, None]*maps).sum(1)).detach()        # before a mean and a linear layer, the weights are the layer's own
    assert torch.allclose(heat, want/want.amax((1, 2), keepdim=True), atol=1e-5)


def test_heat_under_no_grad_and_of_odd_models():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(108, 2))
    with torch.no_grad(): heat, _ = heat_maps(model, torch.rand(2, 1, 8, 8), [0, 1])
    assert heat.isfinite().all()
    with pytest.raises(ConfigError, match="layer="): heat_maps(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), torch.rand(2, 1, 8, 8))
    assert heat_maps(model, torch.rand(1, 1, 8, 8), layer=model[0])[0].shape == (1, 8, 8)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 3), (9, 7, 4)])
def test_overlay_leaves_cold_pixels(shape):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    heat = np.zeros((9, 7), np.float32); heat[4, 3] = 1
    y = overlay(x, heat)
    rgb = np.repeat(x.reshape(9, 7, -1)[..., :1], 3, 2) if x.ndim == 2 or x.shape[2] == 1 else x[..., :3]
    assert y.shape == (9, 7, 3) and y.dtype == np.uint8 and (y != rgb).any(2).sum() == 1
