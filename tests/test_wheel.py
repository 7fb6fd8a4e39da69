"""The wheel holds the three packages and nothing else, and works in an environment that has only what it asks for.

It is built from the source archive, so that one is tested too. No network: the clean environment links the packages of
this one that the wheel's own requirements reach, and no others.
"""

import email.message
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = {"onedva": "onedva", "export/onedva_export": "onedva_export", "runtime/onedva_runtime": "onedva_runtime"}

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build = f"import scikit_build_core.build as backend; backend.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", build, cwd=REPOSITORY)
    return next(folder.glob("onedva-*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, sdist)
    return next(folder.glob("onedva-*.whl"))


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that holds the wheel and what `onedva[cpu]` requires, nothing else."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    with zipfile.ZipFile(wheel) as archive:
        required = wheel_metadata(archive).get_all("Requires-Dist") or []
    for name in distributions(required, extra="cpu"):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            (site / top).symlink_to(str(distribution.locate_file(top)))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel)
    return python


def wheel_metadata(archive: zipfile.ZipFile) -> email.message.Message:
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_string(archive.read(name).decode())


def distributions(requirements: Iterable[str], *, extra: str = "") -> set[str]:
    """The names of all installed distributions that the requirements bring, directly or not."""
    found: set[str] = set()
    queue = [(Requirement(text), extra) for text in requirements]
    while queue:
        requirement, wanted = queue.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": wanted}):
            continue
        name = canonicalize_name(requirement.name)
        if name not in found or requirement.extras:
            found.add(name)
            for inner in ["", *requirement.extras]:
                queue += [(Requirement(text), inner) for text in metadata.requires(name) or []]
    return found


def sources() -> set[str]:
    """What the wheel should hold of each package: every file that is not built."""
    return {
        f"{installed}/{path.relative_to(REPOSITORY / folder).as_posix()}"
        for folder, installed in PACKAGES.items()
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and path.suffix not in {".so", ".pyc"}
    }


def test_the_wheel_holds_the_packages_and_the_extension(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "onedva=onedva.cli:main" in archive.read(entry_points).decode().replace(" ", "")
    tops = {name.split("/")[0] for name in names}
    assert tops == {*PACKAGES.values(), "onedva-" + wheel.name.split("-")[1] + ".dist-info"}
    built = {name for name in names if name.endswith(".so")}
    assert [Path(name).name.split(".")[0] for name in built] == ["_sampler"]
    assert {name for name in names if ".dist-info/" not in name} - built == sources()
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_source_archive_holds_the_packages_and_no_builds(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CMakeLists.txt", "cpp_ext/sampler.cpp", "pyproject.toml", "LICENSE"} <= names
    assert not [name for name in names if name.endswith(".so") or name.startswith((".venv", "build/", "demo/"))]
    for folder, installed in PACKAGES.items():
        assert {n.replace(installed, folder, 1) for n in sources() if n.startswith(installed + "/")} <= names


def test_the_runtime_asks_for_no_torch(wheel):
    with zipfile.ZipFile(wheel) as archive:
        required = wheel_metadata(archive).get_all("Requires-Dist") or []
    assert "torch" not in distributions(required, extra="cpu")
    assert "torch" in distributions(required, extra="train"), "this test must be able to see torch"


def test_the_extension_works_in_a_clean_environment(clean_python, tmp_path):
    code = "from onedva_runtime import noise; assert noise.is_native(); print(noise.__file__)"
    assert "site-packages" in run(clean_python, "-c", code, cwd=tmp_path)
    find = "from importlib.util import find_spec; print([n for n in ('torch', 'runtime', 'export') if find_spec(n)])"
    assert run(clean_python, "-c", find, cwd=tmp_path).strip() == "[]"


def test_encodes_and_decodes_in_a_clean_environment(clean_python, shipped_bundle, tmp_path):
    write = """
from fractions import Fraction
from onedva_runtime.clips import make_clip
from onedva_runtime.video_io import VideoWriter
with VideoWriter("in.mp4", width=81, height=49, fps=Fraction(25)) as writer:
    writer.write(make_clip(20, 49, 81))
"""
    read = """
from onedva_runtime.video_io import read_video
video = read_video("out.mp4")
print(video.frames.shape, video.fps)
"""
    onedva = clean_python.with_name("onedva")
    run(clean_python, "-c", write, cwd=tmp_path)
    run(onedva, "encode", "in.mp4", "clip.odva", cwd=tmp_path)
    run(onedva, "decode", "clip.odva", "out.mp4", cwd=tmp_path)
    assert run(clean_python, "-c", read, cwd=tmp_path).split("\n")[0] == "(20, 49, 81, 3) 25"
