"""What tests share: one Ray for the whole session, a browser, and hypothesis without clocks."""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.pages import Opened, Opener
from tests.verbs import Ended, run_verb

if TYPE_CHECKING:
    from tests.fits import Files

# What takes long to import is imported where it is used: `make test-fast` is to take about a second.

CPUS = 8  # logical: enough for four training workers and a pool of actors on any machine

# Seeds fixed, and no deadline: two busy cores are slow now and then.
hypothesis.settings.register_profile("recsys", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("recsys")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The session's Ray, embedded, with 8 logical CPUs; `connect` inside a test uses it."""
    import ray

    from recsys.engine.connect import connect

    os.environ["RAY_AUTH_MODE"] = "disabled"  # read once per process; the default differs by how Ray is started
    with connect(cpus=CPUS):
        yield
    assert not ray.is_initialized()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """A verb as `python -m jobs.NAME` runs it, in this process."""
    return functools.partial(run_verb, monkeypatch, capsys)


def _in_this_process(patch: pytest.MonkeyPatch) -> None:
    from recsys.engine import units
    from recsys.errors import RecsysError
    from recsys.training import fit
    from recsys.training.loop import run_epochs

    def work_here(worker: Any, pending: Any, *, actors: int | None, device: str) -> Any:
        return units._here(worker, pending)

    def fit_here(work: Any, plan: Any) -> RecsysError | None:
        from recsys.training.replica import ProcessGroup
        from recsys.training.worker import replica_of

        try:
            run_epochs(plan, replica_of(plan, ProcessGroup()))
        except RecsysError as error:
            return error
        return None

    patch.setattr(units, "_on_ray", work_here)
    patch.setattr(fit, "launch_plan", fit_here)


@pytest.fixture(scope="module")
def two_actors(ray_cluster: None) -> Iterator[None]:
    """Two actors a stage, as on two CPUs: eight would spend their time importing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys.engine.units.cpus", lambda: 2)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> "Files":
    """Examples of a planted rule."""
    from tests.fits import write_all

    return write_all(tmp_path_factory.mktemp("examples"))


@pytest.fixture
def in_process(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages work on their units in this process, and one worker fits here: for tests of what comes out, as actors and training
    workers take longer to start than such work.

    That those make the same of it is what `test_runtime.py`, `test_train.py`, `test_pipeline.py` and `test_jobs.py` show.
    """
    _in_this_process(monkeypatch)


@pytest.fixture(scope="session")
def while_in_process(ray_cluster: None) -> Callable[[], AbstractContextManager[None]]:
    """As `in_process`, for a block: in a fixture that tests share."""

    @contextmanager
    def block() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            _in_this_process(patch)
            yield

    return block


@pytest.fixture(scope="module")
def all_in_process(while_in_process: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """As `in_process`, for all tests of a file."""
    with while_in_process():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests on Ray first: they take longest, and two processes then end at about the same time."""
    long = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture
def opened() -> Opener:
    """A page's file on a phone without a network, in headless Chromium; without one the test is skipped, and says so."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a browser (apt-get install chromium)")

    from playwright.sync_api import sync_playwright

    def show(path: Path) -> Opened:
        # Only while it shows a page: Playwright keeps an event loop, and no other can run in the thread meanwhile.
        with (
            sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]) as browser,
        ):
            page = browser.new_page(viewport={"width": 390, "height": 800}, offline=True)
            said: list[str] = []
            page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
            page.goto(path.as_uri())
            broken = page.evaluate(
                "[...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => `no picture: ${image.alt}`)"
            )
            tables = page.evaluate(
                "Object.fromEntries([...document.querySelectorAll('table')].map(table => "
                "[table.id, [...table.tBodies[0].rows].map(row => [...row.cells].map(cell => cell.textContent))]))"
            )
            status, width = page.inner_text("#status"), page.evaluate("document.documentElement.scrollWidth")
        return Opened(said + broken, tables, " ".join(status.split()), width)

    return show
