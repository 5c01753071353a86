"What several test files share."
import os
import random
import signal
import numpy as np
import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)       # as a job in the background begins, and its children with it


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    "Begin each test, and what its fixtures make, with the same random numbers, for networks that are made by hand."
    random.seed(0); np.random.seed(0); torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def own_environment():
    "Leave nothing in the environment for the next file."
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def one_thread():
    "Run a file's tests on one thread of torch: small work is faster so, above all on a busy machine."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
