"""A test whose hardware is missing skips and says so, and fails where ONEDVA_REQUIRE says that it must run."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TEST = """
import pytest

@pytest.mark.{marker}
def test_something(): pass
"""


NOTHING_HERE = """
NEEDS.update(gpu=lambda: "no GPU here", tensorrt=lambda: "no TensorRT here")
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text() + NOTHING_HERE)
    pytester.makeini("[pytest]\nmarkers =\n    gpu\n    tensorrt\n    slow\n")
    return pytester


@pytest.mark.parametrize(
    ("marker", "reason"), [("gpu", "no GPU here"), ("tensorrt", "no TensorRT here"), ("slow", "ONEDVA_REQUIRE=slow")]
)
def test_skips_with_a_reason(suite, marker, reason, monkeypatch):
    monkeypatch.delenv("ONEDVA_REQUIRE", raising=False)
    suite.makepyfile(TEST.format(marker=marker))
    result = suite.runpytest_inprocess("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED*{reason}*"])


@pytest.mark.parametrize(("marker", "outcome"), [("gpu", "errors"), ("tensorrt", "errors"), ("slow", "passed")])
def test_does_not_skip_what_is_required(suite, marker, outcome, monkeypatch):
    monkeypatch.setenv("ONEDVA_REQUIRE", "gpu, tensorrt,slow")
    suite.makepyfile(TEST.format(marker=marker))
    suite.runpytest_inprocess().assert_outcomes(**{outcome: 1})


def test_refuses_an_unknown_name(suite, monkeypatch):
    monkeypatch.setenv("ONEDVA_REQUIRE", "gpus")
    result = suite.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*ONEDVA_REQUIRE knows gpu, tensorrt, slow; got gpus*"])
