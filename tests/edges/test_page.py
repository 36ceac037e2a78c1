"""The page: what it holds, and, in a real browser where there is one, what a person does with it."""

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, browser, missing
from PIL import Image, PngImagePlugin
from tiny import SIDE
from waiting import until
from wire import Wire

from dovetail.core import solvers
from dovetail.edges import app as web
from dovetail.edges import pixels
from dovetail.engines.studio import Studio
from dovetail.stages import endpoint

EVIL = "<img src=x onerror=\"document.title='broken in'\"> \"quoted\" & 'so' 🚉"
seen = pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")
DONE = "document.getElementById('stop').hidden && document.querySelectorAll('#view img').length"


@pytest.fixture(scope="module")
def text() -> str:
    return web.PAGE.read_text(encoding="utf-8")


def test_the_page_is_one_small_file_that_refers_to_nothing_outside(text: str) -> None:
    assert len(text.encode()) < 60_000
    assert not re.search(r"https?://|@import", text)
    for reference in re.findall(r"(?:src|href|action)\s*=\s*\"([^\"]*)\"|url\(([^)]*)\)", text):
        assert re.match(r"data:|\./|$", "".join(reference)), reference


def test_only_the_script_and_the_style_of_the_page_itself_are_let_run(text: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1] and "connect-src 'self'" in policy[1]
    for tag in ("script", "style"):
        (body,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", text, flags=re.DOTALL)
        hashed = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{hashed}'" in policy[1], f"the page was changed: its {tag}-src is now 'sha256-{hashed}'"
    assert not re.search(r"\son\w+\s*=\s*[\"']|\sstyle\s*=\s*[\"']", text), "the policy forbids these"


def test_nothing_is_ever_put_in_as_html(text: str) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|\beval\b|new Function", text)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(text: str, mode: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})\b", blocks[mode == "dark"]))
    pairs = ["ink paper", "ink sheet", "soft paper", "soft sheet", "soft well", "bad paper", "on-accent accent", "accent sheet"]
    for ink, ground in map(str.split, pairs):
        light, dark = sorted((_luminance(colours[ink]), _luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{ink} on {ground}"


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# ---- in a browser


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def wire(tiny_base: Path) -> Wire:
    return Wire(tiny_base, web.PAGE)


@pytest.fixture(scope="module")
def speaking(wire: Wire) -> Iterator[str]:
    server = web.Server(wire.app, web.bind("127.0.0.1", 0))
    server.start()
    yield server.url
    wire.slow.clear()
    server.stop()


@pytest.fixture
def page(window: Browser, wire: Wire, speaking: str) -> Iterator[Browser]:
    """The page as a new visitor sees it."""
    wire.asked.clear()
    wire.slow.clear()
    wire.key, wire.busy, wire.lora = "", 0, True
    window.open(f"{speaking}/license")  # of the same origin, but without the page: its database is closed
    window.run("sessionStorage.clear(); indexedDB.deleteDatabase('dovetail')")
    _open(window, speaking)
    yield window
    assert window.complaints() == []


def _open(window: Browser, url: str) -> None:
    window.open(url)
    window.until("document.documentElement.dataset.ready")


def _paint(page: Browser, prompt: str, images: int = 1) -> None:
    page.type("#prompt", prompt)
    page.press("Control", "Enter")
    page.until(f"{DONE} === {images}")


def _png(told: dict[str, str], compressed: bool = False) -> bytes:
    if not compressed:
        return pixels.png(np.full((SIDE, SIDE, 3), 90, np.uint8), told)
    information, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, value in told.items():
        information.add_itxt(key, value, zip=True)
    Image.new("RGB", (SIDE, SIDE)).save(buffer, "PNG", pnginfo=information)
    return buffer.getvalue()


@seen
def test_the_endpoint_itself_is_painted_with(window: Browser, tiny_base: Path) -> None:
    studio = Studio(endpoint.opened(tiny_base, "tiny", "v1", "torch"))
    server = web.Server(web.build_app(studio, 2, 3.0, named=solvers.named), web.bind("127.0.0.1", 0))
    server.start()
    try:
        _open(window, server.url)
        assert window.text("model") == "tiny · v1"
        _paint(window, "a cat")
        assert window.run("return document.querySelector('#view img').naturalWidth") == SIDE
        assert "2 steps · guidance 3" in window.text("facts") and window.text("words") == "a cat"
        _paint(window, "a dog")
        assert window.run("return document.querySelectorAll('#history button').length") == 2
        window.click("#history li:last-child button")
        assert window.value("prompt") == "a cat" and window.run("return document.getElementById('lock').ariaPressed") == "true"
    finally:
        window.open("about:blank")
        server.stop()
        studio.close()


@seen
def test_previews_come_before_the_picture_and_the_endpoints_defaults_are_asked_for(page: Browser, wire: Wire) -> None:
    assert (page.value("steps"), page.value("guidance"), page.value("sampler")) == ("2", "3.5", "ddim")
    wire.slow.set()
    page.type("#prompt", "a red cat")
    page.click("#go")
    page.until("document.querySelector('#view img')?.alt === 'Preview'")
    assert page.run("return document.getElementById('acts').hidden") and page.text("said") == "Painting …"
    wire.slow.clear()
    page.until(DONE)
    (wish,) = wire.asked
    wanted = {
        "prompt": "a red cat",
        "steps": 2,
        "guidance_scale": 3.5,
        "sampler": "ddim",
        "size": f"{SIDE}x{SIDE}",
        "stream": True,
    }
    assert wanted.items() <= wish.items() and str(wish["seed"]) == page.value("seed") and "negative_prompt" not in wish
    assert page.run("return document.querySelector('#view img').alt") == "a red cat" and re.match(
        r"\d+\.\d s", page.text("said")
    )


@seen
def test_history_brings_picture_and_settings_back_and_outlives_the_page(page: Browser, speaking: str) -> None:
    page.run("document.getElementById('panel').open = true")
    page.type("#negative", "rain")
    page.type("#seed", "9007199254740993")  # more than a number of JavaScript holds
    _paint(page, "a cat")
    page.click("#lock")
    page.click("#defaults")
    _paint(page, "a dog")
    assert page.value("seed") != "9007199254740993" and page.value("negative") == ""
    page.run("document.activeElement.blur()")
    page.press("ArrowRight")
    assert (page.value("prompt"), page.value("negative"), page.value("seed")) == ("a cat", "rain", "9007199254740993")
    assert "seed 9007199254740993" in page.text("facts")
    page.press("ArrowLeft")
    assert page.value("prompt") == "a dog"
    _open(page, speaking)
    page.click("#history li:last-child button")
    assert page.value("seed") == "9007199254740993" and page.run("return document.getElementById('save').download") == (
        "a-cat-9007199254740993.png"
    )
    page.click("#remove")
    assert page.run("return document.querySelectorAll('#history button').length") == 1
    page.click("#clear")
    page.click("#clear")
    page.until("document.getElementById('said').textContent === 'The history is cleared.'")
    _open(page, speaking)
    assert page.run("return document.getElementById('past').hidden")


@seen
@pytest.mark.parametrize("compressed", [False, True])
def test_a_dropped_png_brings_its_settings_back(page: Browser, compressed: bool) -> None:
    told = {"prompt": EVIL, "negative_prompt": "<b>fog</b>", "seed": "77", "steps": "9", "guidance_scale": "5.25"}
    page.drop(_png(told | {"sampler": "euler_ancestral", "model": "tuned", "version": "v1"}, compressed))
    page.until("document.getElementById('said').textContent.startsWith('Its settings are back')")
    assert (page.value("prompt"), page.value("negative"), page.value("seed")) == (EVIL, "<b>fog</b>", "77")
    assert (page.value("steps"), page.value("guidance"), page.value("sampler")) == ("9", "5.25", "euler_ancestral")
    assert "it was painted by tuned v1" in page.text("said") and page.text("words") == EVIL
    assert page.run("return document.querySelectorAll('#about *, #said *').length") == 2


@seen
def test_a_png_of_the_web_ui_brings_its_settings_back(page: Browser) -> None:
    words = "a cat, (red:1.2)\non a mat\nNegative prompt: rain, fog\nSteps: 12, Sampler: Euler a, CFG scale: 7, Seed: 42"
    page.drop(_png({"parameters": words + ', Size: 32x64, Model: "v1, pruned", Version: v1.9'}))
    page.until("document.getElementById('seed').value === '42'")
    assert (page.value("prompt"), page.value("negative")) == ("a cat, (red:1.2)\non a mat", "rain, fog")
    assert (page.value("steps"), page.value("guidance"), page.value("sampler")) == ("12", "7", "euler_ancestral")
    assert page.value("size") == "32x64"


def _slide(page: Browser, value: float) -> None:
    page.run("const l = document.getElementById('lora'); l.value = arguments[0]; l.dispatchEvent(new Event('input'))", value)
    page.run("document.getElementById('form').dispatchEvent(new Event('input'))")


@seen
def test_a_slider_asks_for_more_or_less_of_the_lora_where_the_model_has_one(page: Browser, wire: Wire, speaking: str) -> None:
    page.run("document.getElementById('panel').open = true")
    assert page.text("lora-text") == "1, as it was tuned" and "LoRA" not in page.text("brief")
    _paint(page, "a cat")
    _slide(page, 0.5512)
    assert page.value("lora") == page.text("lora-text") == "0.55" and page.text("brief").endswith("LoRA 0.55")
    page.click("#beside")
    _paint(page, "a dog", images=2)
    asked = [(w["prompt"], w.get("model", "tuned"), w.get("lora_scale")) for w in wire.asked]
    assert sorted(asked) == [("a cat", "tuned", None), ("a dog", "base", None), ("a dog", "tuned", 0.55)]
    assert "LoRA 0.55" in page.text("facts")
    page.click("#history li:last-child button")
    assert page.value("lora") == "1" and "LoRA" not in page.text("facts")
    page.click("#history li:first-child button")
    assert page.value("lora") == "0.55"
    page.click("#defaults")
    assert page.value("lora") == "1"
    page.drop(_png({}), "mine.png")
    page.until("!document.getElementById('origin').hidden")
    _slide(page, 0)
    page.click("#beside")
    _paint(page, "a cat")
    assert wire.asked[-1]["lora_scale"] == 0 and "image" in wire.asked[-1] and page.text("lora-text") == "0, the base"
    wire.lora = False
    _open(page, speaking)
    page.run("document.getElementById('panel').open = true")
    assert page.run("return document.getElementById('lora').checkVisibility()") is False
    page.click("#history button")
    assert page.text("said") == "Its settings are back, but the LoRA scale 0 is not offered here."


@seen
@pytest.mark.parametrize("ours", [True, False])
def test_a_dropped_png_brings_its_lora_scale_back(page: Browser, ours: bool) -> None:
    parameters = "a cat <lora:tuned:0.123456> <lora:other:1>\nSteps: 12, Sampler: ddim, CFG scale: 7, Seed: 42, Model: tuned"
    own = {"prompt": "a <lora:tuned:1>", "seed": "42", "lora_scale": "0.123456", "digest": "5eed"}
    page.drop(_png({"parameters": parameters} | (own if ours else {})))
    page.until("document.getElementById('seed').value === '42'")
    assert page.value("lora") == "0.123456" and page.value("prompt") == ("a <lora:tuned:1>" if ours else "a cat <lora:other:1>")


@seen
@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\xff\xff\xff\xfftEXt", b"no picture", b""])
def test_a_file_that_is_no_picture_is_refused_in_words(page: Browser, content: bytes) -> None:
    page.drop(content)
    page.until("document.getElementById('said').textContent === 'This picture cannot be read.'")


@seen
def test_a_prompt_with_markup_stays_text(page: Browser, speaking: str) -> None:
    _paint(page, EVIL.replace(" 🚉", ""))  # the driver types no letters beyond the first plane
    _open(page, speaking)
    page.click("#history button")
    assert page.text("words") == EVIL.replace(" 🚉", "") and page.run("return document.title") == "Dovetail"
    assert not page.run("return document.querySelector('img[src=x]')")


@seen
def test_escape_stops_and_the_endpoint_hears_of_it(page: Browser, wire: Wire) -> None:
    left = wire.left
    wire.slow.set()
    page.type("#prompt", "a cat")
    page.press("Control", "Enter")
    page.until("document.querySelector('#view img')")
    page.press("Escape")
    page.until("document.getElementById('said').textContent === 'Stopped.'")
    until(lambda: wire.left == left + 1)
    assert page.run("return document.getElementById('past').hidden && document.getElementById('stop').hidden")
    wire.slow.clear()
    _paint(page, "a cat")


@seen
def test_the_tuned_model_and_the_base_paint_side_by_side_at_one_seed(page: Browser, wire: Wire) -> None:
    page.run("document.getElementById('panel').open = true; document.getElementById('count').value = '2'")
    page.click("#beside")
    _paint(page, "a cat", images=4)
    first = int(page.value("seed"))
    asked = sorted((w["seed"], w.get("model", "tuned")) for w in wire.asked)
    assert asked == [(first, "base"), (first, "tuned"), (first + 1, "base"), (first + 1, "tuned")]
    page.click("#view figure:nth-child(3) button")
    page.until(f"{DONE} === 2")
    assert page.value("seed") == str(first + 1)
    captions = page.run("return [...document.querySelectorAll('#view figcaption')].map(c => c.textContent)")
    assert captions == ["tuned v2", "base v2"]


@seen
def test_a_picture_is_where_the_painting_starts_and_a_picture_is_proven(page: Browser, wire: Wire) -> None:
    page.drop(_png({}), "mine.png")
    page.until("!document.getElementById('origin').hidden")
    _paint(page, "a cat")
    assert wire.asked[0]["image"] == _png({}) and wire.asked[0]["strength"] == 0.6 and "painted anew 60 %" in page.text("facts")
    page.click("#prove")
    page.until("document.getElementById('said').textContent === 'Painted again: the same, byte for byte.'")
    page.click("#origin-off")
    _paint(page, "a cat")
    assert "image" not in wire.asked[1]


@seen
def test_refusals_are_told_a_busy_endpoint_is_asked_again_and_a_key_is_asked_for(page: Browser, wire: Wire) -> None:
    page.type("#prompt", "fail")
    page.click("#go")
    page.until("document.getElementById('said').textContent === 'Out of paint.'")
    wire.busy, wire.key = 1, "s3cret"
    page.type("#prompt", "a cat")
    page.click("#go")
    page.until("!document.getElementById('key-form').hidden && document.activeElement.id === 'key'")
    page.type("#key", "s3cret")
    page.click("#key-form button")
    page.until("document.getElementById('said').textContent.startsWith('Many are painting')")
    page.until(DONE)
    assert page.run("return sessionStorage.getItem('dovetail-key')") == "s3cret" and wire.asked[-1]["prompt"] == "a cat"
    page.click("#forget")
    assert page.run("return sessionStorage.length") == 0


@seen
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_window_and_every_control_has_a_name(page: Browser, width: int) -> None:
    page.cdp("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
    _paint(page, "a cat " * 40)
    page.run("document.getElementById('panel').open = true")
    assert page.run("return document.documentElement.scrollWidth") <= width
    nodes = page.cdp("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "checkbox", "combobox", "slider", "spinbutton", "link", "image"}
    shown = [n for n in nodes if not n["ignored"] and n["role"]["value"] in roles]
    assert len(shown) > 12 and all(n["name"]["value"] for n in shown)
    page.cdp("Emulation.clearDeviceMetricsOverride")
