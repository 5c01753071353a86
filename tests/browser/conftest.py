"One server and one browser for the tests of a file."
import pytest
from lab import chromium, jupyter


@pytest.fixture(scope="module")      # ended with the last browser test: a worker process forked later would keep the pipes to the browser open
def lab(tmp_path_factory):
    "Run JupyterLab and Chromium."
    with jupyter(tmp_path_factory.mktemp("notebooks")) as server, chromium() as browser: yield server, browser
