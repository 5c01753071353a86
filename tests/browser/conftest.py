"One server and one browser for all tests of this folder."
import pytest
from lab import chromium, jupyter


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    "Run JupyterLab and Chromium."
    with jupyter(tmp_path_factory.mktemp("notebooks")) as server, chromium() as browser: yield server, browser
