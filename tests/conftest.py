"""What every test can use: real clips where they are, and markers that skip with a reason or fail where they must run.

`ONEDVA_REQUIRE=gpu,tensorrt,slow` names the markers whose tests may not be skipped (`make test` requires slow).
"""

import csv
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def _without_gpu() -> str | None:
    from onedva_runtime.backends.gpu import MissingGpu, cuda_runtime

    try:
        cuda_runtime()
    except MissingGpu as missing:
        return str(missing)
    return None


def _without_tensorrt() -> str | None:
    return None if importlib.util.find_spec("tensorrt") else "tensorrt is not installed"


def _unasked() -> str | None:
    return None if "slow" in _required() else "slow: runs with ONEDVA_REQUIRE=slow, as in `make test`"


def _required() -> set[str]:
    return {name.strip() for name in os.environ.get("ONEDVA_REQUIRE", "").split(",")} - {""}


# marker → function that says what is missing, or None
NEEDS = {"gpu": _without_gpu, "tensorrt": _without_tensorrt, "slow": _unasked}


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # behind a shell's &: what tests start would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    unknown = _required() - set(NEEDS)
    if unknown:
        raise pytest.UsageError(f"ONEDVA_REQUIRE knows {', '.join(NEEDS)}; got {', '.join(sorted(unknown))}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, those of one file share one, and so do all that want the exported model,
    which takes minutes to make: more than other tests may."""
    for item in items:
        wants_bundle = "bundle" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("exported" if wants_bundle else str(item.path)))
        if wants_bundle:
            item.add_marker(pytest.mark.timeout(900))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, missing in NEEDS.items():
        if item.get_closest_marker(name) and (reason := missing()):
            if name in _required():
                pytest.fail(f"required by ONEDVA_REQUIRE, but {reason}", pytrace=False)
            pytest.skip(reason)


@pytest.fixture(scope="session")
def clips_folder() -> Path | None:
    """The folder of real clips with its MANIFEST.csv: $ONEDVA_CLIPS, or the sibling `shared/data/clips`; else None."""
    folder = Path(os.environ.get("ONEDVA_CLIPS") or REPOSITORY.parent / "shared" / "data" / "clips")
    return folder if (folder / "MANIFEST.csv").is_file() else None


@pytest.fixture(scope="session")
def dev_clips(clips_folder: Path | None, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The videos of the dev split; one made-up clip on a machine without them."""
    if clips_folder is not None:
        with open(clips_folder / "MANIFEST.csv", newline="") as file:
            return [clips_folder / row["name"] for row in csv.DictReader(file) if row["split"] == "dev"]

    from onedva_runtime.clips import make_clip
    from onedva_runtime.video_io import VideoWriter

    path = tmp_path_factory.mktemp("clips") / "made_up.mp4"
    frames = make_clip(40, 160, 192)
    with VideoWriter(path, width=192, height=160, fps=Fraction(24)) as writer:
        writer.write(frames)
    return [path]


@pytest.fixture(scope="session")
def shipped_bundle() -> Path:
    """The folder of the newest `tiny` model in the package; skips in a checkout without one."""
    from onedva_runtime.bundle import find, shipped

    if not any(name.startswith("tiny-v") for name in shipped()):
        pytest.skip("this checkout ships no model")
    return find("tiny")


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """The module tests/fake_bundle.py: importlib mode puts no test folder on sys.path."""
    spec = importlib.util.spec_from_file_location("fake_bundle", Path(__file__).with_name("fake_bundle.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_bundle"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake_bundle(fake: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the fake bundle; not to be changed."""
    return fake.make_fake_bundle(tmp_path_factory.mktemp("bundles") / "fake-v1")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled graphs and measured choices of the tests go into a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEDVA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Verbs set up the package's logger for a process of their own, in fixtures of a module too; no test must see what
    was done before it."""
    logger = logging.getLogger("onedva")
    logger.setLevel(logging.NOTSET)
    logger.handlers[:] = [handler for handler in logger.handlers if isinstance(handler, logging.NullHandler)]
    yield
