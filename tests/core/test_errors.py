"What a person sees in a notebook when something fails: their own lines and the message, without the library's insides."
import re
import nbformat
import pytest
from nbclient import NotebookClient

CELLS = dict(
    offline="Learner(dm, 'resnet50')",
    folder="def open_photos(folder):\n    return ImageDataModule(folder)\nopen_photos('nowhere/photos')",
    option="Learner(dm, 'resnet9', metrics=['acuracy'])",
    predict="learn.predict('nothing.jpg')",
    load="load_model('nowhere')",
    transform="def broken(image):\n    return image['pixels']\nImageDataModule('FashionSample', train_transforms=broken, num_workers=0).show_batch()",
    full="%env VISIONLAB_TRACEBACK=full\nLearner(dm, 'resnet9', metrics=['acuracy'])",
    plain="%env VISIONLAB_TRACEBACK=\n1/0")
START = """
import os
os.environ.update(HF_HUB_OFFLINE="1", VISIONLAB_PROGRESS="off")
from visionlab.all import *
dm = ImageDataModule("FashionSample")
learn = Learner(dm, "resnet9")
"""


@pytest.fixture(scope="module")
def tracebacks(tmp_path_factory):
    "Run cells that fail; return the lines a front end shows of each."
    cells = [nbformat.v4.new_code_cell(o) for o in (START, *CELLS.values())]
    nb = nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name="python3", display_name="python3")))
    folder = tmp_path_factory.mktemp("nb")
    NotebookClient(nb, timeout=120, allow_errors=True, resources=dict(metadata=dict(path=str(folder)))).execute()
    assert not [o for o in nb.cells[0].outputs if o.output_type == "error"]
    failed = [next(o for o in c.outputs if o.output_type == "error") for c in nb.cells[1:]]
    return {k: re.sub(r"\x1b\[[\d;]*m", "", "\n".join(o.traceback)).splitlines() for k, o in zip(CELLS, failed)}


@pytest.mark.parametrize("name", [o for o in CELLS if o not in ("full", "plain")])
def test_an_error_shows_the_persons_lines_and_the_message(tracebacks, name):
    lines = tracebacks[name]
    assert len(lines) <= 14, "\n".join(lines)
    assert lines[0].startswith("Cell In[") and lines[1] == "----> " + CELLS[name].splitlines()[-1 if name != "transform" else 1].strip()
    assert "site-packages" not in str(lines) and lines[-1].startswith("  fix: ")


def test_the_frames_of_a_function_of_the_cell_are_shown(tracebacks):
    lines = tracebacks["folder"]
    assert "----> open_photos('nowhere/photos')" in lines and "----> return ImageDataModule(folder)" in lines
    assert re.fullmatch(r"Cell In\[\d+\], line 2, in open_photos", lines[2])


def test_a_failing_transform_shows_where_it_failed(tracebacks):
    lines = tracebacks["transform"]
    assert any(re.fullmatch(r"Cell In\[\d+\], line 2, in broken", o) for o in lines) and "----> return image['pixels']" in lines
    assert any(o.startswith("TypeError: ") for o in lines)


def test_all_lines_are_there_when_asked_for_and_for_other_errors(tracebacks):
    assert sum("visionlab" in o for o in tracebacks["full"]) > 2
    assert "ZeroDivisionError: division by zero" in tracebacks["plain"] and "Traceback (most recent call last)" in tracebacks["plain"][1]


def test_the_reason_a_download_failed_is_in_the_message(tracebacks):
    assert "resnet50" in tracebacks["offline"][-2] and "could not be fetched" in tracebacks["offline"][-2]
    assert "pretrained=False" in tracebacks["offline"][-1]
