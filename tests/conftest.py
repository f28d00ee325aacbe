"""What tests share: one Ray for the whole session, and hypothesis without clocks."""

import os
from collections.abc import Iterator

import hypothesis
import pytest
import ray

from recsys import runtime

CPUS = 8  # logical: enough for four training workers and a pool of actors on any machine

# Seeds fixed, and no deadline: two busy cores are slow now and then.
hypothesis.settings.register_profile("recsys", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("recsys")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The session's Ray, embedded, with 8 logical CPUs; `runtime.connect` inside a test uses it."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # read once per process; the default differs by how Ray is started
    with runtime.connect(cpus=CPUS):
        yield
    assert not ray.is_initialized()
