"What several test files share."
import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    "Run a file's tests on one thread of torch: small work is faster so, above all on a busy machine."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
