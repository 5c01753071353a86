"One server and one browser for all tests of this folder."
import pytest
from lab import Notebook, chromium, jupyter


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    "Run JupyterLab and Chromium."
    with jupyter(tmp_path_factory.mktemp("notebooks")) as server, chromium() as browser: yield server, browser


@pytest.fixture
def notebook(lab, tmp_path):
    "Give a notebook to open; pictures of the screen go to the test's folder."
    book = Notebook(*lab, tmp_path)
    yield book
    book.close()
