"""The page of `ir-env serve` in a real browser: by mouse, touch and keyboard, on a phone and on a desk, light and dark."""

import shutil

import pytest
from PIL import Image

from experiments.measurements.serve import photographs
from ir_env.images import save_image

pytestmark = pytest.mark.slow
WAIT_MS = 240_000
"""For whatever is waited for, on a busy machine."""


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no browser is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"], timeout=WAIT_MS)
        yield browser
        browser.close()


@pytest.fixture
def photograph(tmp_path):
    return save_image(tmp_path / "Ünsere Katze.png", photographs(None, 1, 240)[0])


@pytest.fixture
def opened(browser, served):
    """``opened(width, height, scheme, touch, refused)``: the page; whatever it complains about, and whatever is refused but with these
    codes, fails the test."""
    complaints, contexts = [], []

    def open_page(width, height=900, scheme="light", touch=False, refused=()):
        def console(message):  # of requests that are refused the browser tells by itself
            if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
                complaints.append(message.text)

        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=touch, is_mobile=touch, accept_downloads=True)
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("console", console)
        page.on("response", lambda answer: complaints.append(answer.url) if answer.status >= 400 and answer.status not in refused else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://127.0.0.1:{served.port}/")
        page.wait_for_selector("#policy option:nth-child(2)", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def done(page, text="Done."):
    # not wait_for_function, which evaluates text, as the page's policy forbids
    page.locator("#said", has_text=text).wait_for()
    page.wait_for_selector("#compare[style*=aspect-ratio]")


def cut(page):
    return float(page.evaluate("document.querySelector('#compare').style.getPropertyValue('--cut')").rstrip("%"))


def fits(page):
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("width", "touch"), [(390, True), (1440, False)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_photograph_is_restored_compared_and_looks_well(opened, photograph, tmp_path, width, touch, scheme):
    page = opened(width, 844, scheme, touch)
    assert fits(page)
    page.screenshot(path=tmp_path / f"begin_{width}_{scheme}.png", full_page=True)
    page.set_input_files("#file", photograph)
    done(page)
    page.screenshot(path=tmp_path / f"end_{width}_{scheme}.png", full_page=True)
    assert fits(page)
    page.locator("#compare").scroll_into_view_if_needed()
    box = page.locator("#compare").bounding_box()
    if touch:
        page.touchscreen.tap(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
        assert 20 < cut(page) < 30
        small = (
            "[...document.querySelectorAll('button, select, a.main, .steps label')].filter((e) => e.offsetHeight && e.offsetHeight < 40)"
        )
        assert page.evaluate(f"{small}.map((e) => e.outerHTML)") == []
    else:
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 30, steps=4)
        page.mouse.up()
        assert 75 < cut(page) < 85
    page.click("#change")
    page.screenshot(path=tmp_path / f"plan_{width}_{scheme}.png", full_page=True)
    assert fits(page)


def test_by_keyboard_alone(opened, photograph, tmp_path):
    page = opened(1000)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(photograph)
    done(page)

    def reach(selector):
        for _ in range(60):
            if page.evaluate(f"document.activeElement.matches({selector!r})"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} is not reached")

    reach("#slider")
    before = cut(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("PageUp")
    assert cut(page) > before + 0.4
    reach("#change")
    page.keyboard.press("Enter")
    while page.locator("#plan .away").count():
        page.keyboard.press("Enter")  # the focus goes from one to the next
    reach("#tool")
    page.keyboard.type("tv.")
    reach("#add")
    page.keyboard.press("Enter")
    assert page.locator("#plan li").all_inner_texts()[0].startswith("1. tv.denoise")
    reach("#go")
    page.keyboard.press("Enter")
    done(page, "Done. tv.denoise;")
    reach("#save")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "Ünsere Katze_restored.png"
    download.value.save_as(tmp_path / "saved.png")
    assert Image.open(tmp_path / "saved.png").size == Image.open(photograph).size


def test_what_is_no_photograph_is_told(opened, tmp_path):
    (tmp_path / "letter.png").write_text("Dear Sir")
    page = opened(390, touch=True, refused=(415,))
    page.set_input_files("#file", tmp_path / "letter.png")
    page.locator("#wrong").wait_for()
    assert "this is no photograph" in page.inner_text("#wrong")
