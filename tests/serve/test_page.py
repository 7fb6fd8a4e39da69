"""The page in a real headless Chromium: a video and a camera go in, pictures and numbers come out, sliders change both.

Without chromium and chromedriver (Debian packages chromium, chromium-driver) these tests skip.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from onedva_runtime.clips import make_clip
from onedva_runtime.video_io import VideoWriter

webdriver: Any = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver here"),
    pytest.mark.slow,
]
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
# How far the two pictures are apart, and how much the reconstruction varies: mean of absolute differences.
COMPARE = """
const [a, b] = ["source", "decoded"].map((id) => {
  const canvas = document.getElementById(id);
  return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
});
let apart = 0, varied = 0;
for (let i = 4; i < a.length; i += 1) { apart += Math.abs(a[i] - b[i]); varied += Math.abs(b[i] - b[i - 4]); }
return [apart / a.length, varied / a.length];
"""
SLIDE = """
const slider = document.getElementById(arguments[0]);
slider.min = Math.min(slider.min, arguments[1]);
slider.value = arguments[1];
slider.dispatchEvent(new Event("input"));
slider.dispatchEvent(new Event("change"));
"""


class Page:
    """The page of a service in a browser."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser = browser
        browser.get(address)
        self.until(lambda: "latents per clip" in self.text("model"))

    def element(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def text(self, name: str) -> str:
        return self.element(name).text

    def number(self, name: str) -> float:
        text = self.text(name).replace(",", "")
        return float(text) if text not in ("", "–") else float("nan")

    def slide(self, name: str, value: int) -> None:
        self.browser.execute_script(SLIDE, name, value)

    def until(self, true: Any, *, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not true():
            shown = {name: self.text(name) for name in ("status", "model", "frames", "psnr", "used", "badge")}
            assert time.monotonic() < end, f"it did not happen: {shown}"
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        return [line["message"] for line in self.browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1100,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser: Any, server: Any) -> Iterator[Page]:
    yield Page(browser, server.address)
    browser.get("about:blank")  # its sessions end


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds, 192x144."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with VideoWriter(path, width=192, height=144, fps=Fraction(24)) as writer:
        writer.write(make_clip(96, 144, 192))
    return path


def test_a_video_goes_in_and_sliders_change_what_comes_out(page: Page, film: Path) -> None:
    page.element("file").send_keys(str(film))
    page.until(lambda: page.number("frames") > 20)
    assert "128×96 at 24" in page.text("status")
    assert page.element("decoded").get_attribute("width") == "128"
    for name in ("psnr", "kbps", "bits", "latency"):
        assert page.number(name) > 0, name
    apart, varied = page.browser.execute_script(COMPARE)
    assert apart < 40 and varied > 2, "the pictures must be of the same thing, and of something"

    page.slide("tokens", 0)
    page.until(lambda: page.number("used") == 0)
    page.until(lambda: page.number("frames") > 80)
    few = page.number("psnr"), page.number("bits")
    page.slide("tokens", 48)
    assert page.text("tokens-shown") == "48"
    page.until(lambda: page.number("used") == 48)
    time.sleep(2)
    assert page.number("bits") > few[1] and page.number("psnr") != few[0]

    page.slide("bandwidth", 2)  # every segment that it has is too much
    page.until(lambda: "dropped" in page.text("badge") and page.number("used") == 0)
    page.slide("bandwidth", 620)
    page.until(lambda: page.text("badge") == "" and page.number("used") == 48)

    page.slide("steps", 3)
    shown = page.number("frames")
    page.until(lambda: page.number("frames") > shown + 60)
    page.element("stop").click()
    assert not page.element("stop").is_enabled()
    assert page.complaints() == []


def test_the_camera_works(page: Page) -> None:
    page.element("camera").click()
    page.until(lambda: page.number("frames") > 20)
    apart, varied = page.browser.execute_script(COMPARE)
    assert apart < 60 and varied > 0.5


@pytest.mark.parametrize("width", [320, 390])
def test_it_fits_a_phone(page: Page, film: Path, width: int) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.element("file").send_keys(str(film))
        page.until(lambda: page.number("frames") > 5)
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width
        for name in ("source", "decoded", "tokens", "steps", "bandwidth", "camera", "psnr", "chart-tokens"):
            box = page.element(name).rect
            assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 0, name
        assert page.element("tokens").rect["height"] >= 28, "a finger must hit it"
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_full_service_says_so(browser: Any, serve: Any, film: Path) -> None:
    with serve(live_load=1e-6) as full:
        page = Page(browser, full.address)
        page.element("file").send_keys(str(film))
        page.until(lambda: "did not open a session" in page.text("status"))
        assert not page.element("stop").is_enabled()
        browser.get("about:blank")


def test_a_token_is_asked_for(browser: Any, serve: Any, film: Path) -> None:
    token = "a-token-of-some-length"
    with serve(tokens=frozenset({token})) as guarded:
        browser.get(guarded.address)
        page = Page.__new__(Page)
        page.browser = browser
        page.until(lambda: "token" in page.text("model"))
        page.element("token").send_keys(token + "\n")
        page.until(lambda: "latents per clip" in page.text("model"))
        page.element("file").send_keys(str(film))
        page.until(lambda: page.number("frames") > 5)
        browser.get("about:blank")
