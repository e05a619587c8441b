"""The demo as a person uses it: a real browser drives the real app.

Needs Chromium: on Debian and Ubuntu `apt-get install chromium`. Without it these tests are skipped, except in CI.
`SCREENSHOTS=book/_static python -m pytest tests/test_demo_browser.py` writes the pictures of the README and chapter 13.
"""

import os
import re
import shutil
import time
from pathlib import Path

import pytest
from test_demo import App

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if BROWSER is None and not os.environ.get("CI"):
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'gpt2lib[dev]'")
expect = playwright.expect
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --force-prefers-reduced-motion""".split()
SHOTS = os.environ.get("SCREENSHOTS")
PATIENT = 60_000  # ms: a busy machine is no failure


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    app = App(tmp_path_factory.mktemp("app"), "--port", "{port}", "--limits.per-minute", "1000000")
    yield app
    app.close()
    assert "Traceback" not in app.log.read_text(), app.log.read_text()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


class Page:
    """A tab, and what a person does in it."""

    def __init__(self, app: App, browser, **options):
        self.app, self.problems, self.hosts = app, [], set()
        self.context = browser.new_context(**{"viewport": {"width": 1000, "height": 1300}, **options})
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(PATIENT)
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("console", lambda line: line.type == "error" and self.problems.append(line.text))
        self.tab.on(
            "request",
            lambda request: self.hosts.add(re.sub(r"^(\w+:(//[^/]*)?).*", r"\1", request.url, flags=re.S)),
        )

    def open(self, link: str = ""):
        self.tab.goto(self.app.url + "/" + link)
        self.tab.locator("#continue").wait_for()
        return self

    def type(self, text: str):
        self.tab.locator("#prompt textarea").fill(text)

    def set(self, name: str, value):
        """Change a setting as a person would: in the number field, or in the list."""
        if not self.tab.locator("#temperature input").first.is_visible():
            self.tab.get_by_role("button", name="Settings").click()
        if name == "model":
            self.tab.locator("#model input").click()
            self.tab.get_by_role("option", name=value, exact=True).click()
        else:
            fields = self.tab.locator(
                f"#{name} input, #{name} textarea"
            )  # a slider has two that show one value
            for _ in range(10):
                fields.first.fill(str(value))
                fields.first.press("Tab")
                self.tab.wait_for_timeout(300)  # a person is not quicker
                shown = fields.evaluate_all("all => all.map(node => node.value)")
                if all(text and float(text) == float(value) for text in shown):
                    return
            raise AssertionError(f"{name} does not take {value}")

    def start(self):
        self.tab.evaluate("document.querySelector('#link')?.removeAttribute('id')")  # the next one is new
        self.tab.locator("#continue").click()

    def finish(self) -> str:
        """Wait for the end of the text; the continuation."""
        self.tab.locator("#link").wait_for()
        return self.continuation()

    def run(self) -> str:
        self.start()
        return self.finish()

    def status(self) -> str:
        return self.tab.locator("#status").inner_text()

    def continuation(self) -> str:
        return self.tab.locator("#result .new").evaluate("node => node.textContent")

    def look(self, name: str):
        self.tab.locator(f"#view_{name}").click()
        self.tab.locator(f"#view [data-kind={name}]").wait_for()

    def close(self):
        assert not self.problems, self.problems
        assert self.hosts <= {self.app.url, "data:", "blob:"}, self.hosts
        self.context.close()


@pytest.fixture
def page(app, browser):
    page = Page(app, browser).open()
    yield page
    page.close()


def test_type_stream_and_tell_apart(page):
    page.type("JULIET:\n<b>O</b> {{value}} ${1+1} `&amp;")
    page.set("length", 120)
    page.start()
    grown = set()
    while not page.tab.locator("#link").is_visible():
        grown.add(len(page.continuation()))
        time.sleep(0.02)
    assert len(grown) > 2, "the text came all at once"  # at once: nothing, then everything
    assert (
        page.tab.locator("#result .prompt").evaluate("node => node.textContent")
        == "JULIET:\n<b>O</b> {{value}} ${1+1} `&amp;"
    )
    assert page.tab.locator("#result b").count() == 0
    assert "120 tokens in" in page.status()


def test_stop_keeps_what_is_there(page):
    page.set("length", 200)
    page.tab.evaluate("""() => { const wait = () => document.querySelector("#result .new").textContent.length > 10
        ? document.querySelector("#stop").click() : requestAnimationFrame(wait); wait(); }""")
    text = page.run()
    assert (
        page.status().startswith("Stopped: ") and 0 < int(re.search(r"(\d+) tokens", page.status())[1]) < 200
    )
    assert text and page.app.health()["queue"]["running"] == 0
    page.look("tokens")


def test_every_setting_changes_the_text_and_the_seed_repeats_it(page):
    page.set("seed", 5)
    page.set("length", 30)
    first = page.run()
    assert page.run() == first == page.app.generate(tokens=30, seed=5)
    given = {"tokens": 30, "seed": 5}
    for name, value in (
        ("temperature", 0),
        ("temperature", 1.5),
        ("top_k", 3),
        ("top_k", 0),
        ("top_p", 0.5),
        ("seed", 6),
        ("length", 12),
        ("model", "nano, untrained"),
    ):
        page.set(name, value)
        given["tokens" if name == "length" else name] = value
        assert page.run() == page.app.generate(**given), (name, value)


def test_the_views(page):
    page.type("Shall I compare thee to a summer's day?\n")
    page.set("temperature", 0.3)
    page.set("seed", 1)
    text = page.run()
    page.look("tokens")
    buttons = page.tab.locator("#view .tokens button")
    assert "".join(buttons.all_inner_texts()).replace("↵", "\n").endswith(text[-40:])
    buttons.last.focus()
    page.tab.keyboard.press("ArrowLeft")
    focused = page.tab.evaluate("document.activeElement.getAttribute('aria-label')")
    detail = page.tab.locator("#view .detail")
    expect(detail).to_contain_text(focused + " was drawn")
    expect(detail.locator("th")).to_have_text(["token", "probability", "after your settings"])
    assert detail.locator("tr").count() >= 9 and detail.locator("tr.drawn").count() == 1
    page.tab.keyboard.press("Home")
    expect(detail).to_contain_text("is the beginning")
    page.look("attention")
    for name in ("layer", "head"):
        page.tab.locator(f"#{name} input").click()
        page.tab.locator(f"#{name}").get_by_role("option", name="3").click()
        expect(page.tab.locator(f"#view [data-{name}='3']")).to_be_visible(timeout=PATIENT)
    buttons.nth(4).hover()
    expect(detail).to_contain_text("looks at")
    shades = [
        float(button.evaluate("node => node.style.getPropertyValue('--w')")) for button in buttons.all()[:7]
    ]
    assert max(shades[:5]) == 1 and min(shades[:5]) < 1 and shades[5:] == [0, 0]
    page.look("memory")
    marks = page.tab.locator("#view mark")
    assert re.match(r"\d+% of the continuation", page.tab.locator("#view .hint").inner_text())
    assert marks.count() == page.tab.locator("#view small").count() > 0


def test_a_link_reproduces_the_result(page, browser):
    page.type("HAMLET:\n“Ü” & <i>")
    for name, value in (("length", 25), ("temperature", 0.95), ("top_k", 50), ("top_p", 0.9)):
        page.set(name, value)
    text = page.run()
    link = page.tab.locator("#link").get_attribute("href")
    assert "seed=" in link and "%3Ci%3E" in link
    other = Page(page.app, browser).open(link)
    assert other.finish() == text
    assert other.tab.locator("#prompt textarea").input_value() == "HAMLET:\n“Ü” & <i>"
    other.tab.reload()
    assert other.finish() == text
    other.close()


def test_a_link_that_is_not_ours_gets_a_sentence(app, browser):
    for link, said in (
        ("#prompt=x&length=9999", "from 1 to 200"),
        ("#color=red", "color"),
        ("#seed=nan", "seed"),
    ):
        page = Page(app, browser).open(link)
        expect(page.tab.locator(".toast-body, [data-testid=toast-body]").first).to_contain_text(
            said, timeout=PATIENT
        )
        page.close()


def test_two_tabs_at_once(app, browser):
    tabs = [Page(app, browser).open() for _ in range(2)]
    for seed, tab in enumerate(tabs):
        tab.set("length", 60)
        tab.set("seed", seed)
    for tab in tabs:
        tab.start()
    assert [tab.finish() for tab in tabs] == [app.generate(tokens=60, seed=seed) for seed in range(2)]
    for tab in tabs:
        tab.close()


def test_a_tab_closed_in_mid_stream_ends_its_request(app, browser):
    for _ in range(5):  # a slow browser may show the first letters when all has been drawn: then once more
        page = Page(app, browser).open()
        page.set("length", 200)
        before = app.health()["tokens"]
        page.start()
        expect(page.tab.locator("#result .new")).to_have_text(re.compile(r".{5}", re.S), timeout=PATIENT)
        page.close()
        end = time.monotonic() + 5
        while app.health()["queue"]["running"]:
            assert time.monotonic() < end, "it goes on"
            time.sleep(0.02)
        if app.health()["tokens"] - before < 200:
            return
    raise AssertionError("each time, all 200 tokens were drawn")


def test_the_keyboard_is_enough(page):
    page.tab.locator("#prompt textarea").focus()
    reached = []
    for _ in range(40):
        page.tab.keyboard.press("Tab")
        here = page.tab.evaluate(
            "document.activeElement.closest('[id]:not([id^=svelte])')?.id + ' ' + document.activeElement.textContent.trim()"
        )
        reached.append(here)
        if "Memory" in here:
            break
    told = " | ".join(reached)
    for name in ("Continue", "Stop", "Settings", "Tokens", "Attention", "Memory"):
        assert name in told, told
    page.tab.locator("#continue").focus()
    page.tab.keyboard.press("Enter")
    page.finish()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1000, 390])
def test_accessible_in_light_and_dark_on_a_screen_and_a_phone(app, browser, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = Page(app, browser, viewport={"width": width, "height": 900}, color_scheme=scheme).open()
    page.set("length", 60)
    page.set("seed", 3)
    page.run()
    for name in ("tokens", "attention", "memory"):
        page.look(name)
        assert page.tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
            "it is wider than the screen"
        )
        found = [
            v for v in axe.run(page.tab).response["violations"] if v["impact"] in ("serious", "critical")
        ]
        told = [
            (v["id"], [(n["html"][:200], n["failureSummary"][:300]) for n in v["nodes"][:3]]) for v in found
        ]
        assert not told, told
    page.close()


@pytest.mark.skipif(not SHOTS, reason="SCREENSHOTS is not set")
def test_screenshots(app, browser):
    for name, view, options in (
        ("screenshot_demo", "tokens", {}),
        ("screenshot_demo_memory", "memory", {}),
        ("screenshot_demo_dark", "attention", {"color_scheme": "dark"}),
    ):
        page = Page(
            app, browser, viewport={"width": 860, "height": 900}, device_scale_factor=1, **options
        ).open("#prompt=ROMEO%3A%0A&length=60&seed=7")
        page.finish()
        page.look(view)
        if view == "attention":
            page.tab.locator("#layer input").click()
            page.tab.locator("#layer").get_by_role("option", name="3").click()
            page.tab.locator("#view [data-layer='3']").wait_for()
        if view != "memory":
            page.tab.locator("#view .tokens button").nth(24).click()
        page.tab.screenshot(path=Path(SHOTS, name + ".png"), full_page=True)
        page.close()
