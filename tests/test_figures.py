"""Figures that move: they need no kernel and no script, a keyboard is enough, and one is never heavy.

The last tests need Chromium, like those of the demo.
"""

import json
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import pytest
import yaml

from gpt2lib import figures

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"height": [1, 2, 3], "steps": ["few", "many"]}
# What the site's theme has, and what would win over a frame's own rule if that were any weaker.
THEME = "<style>[hidden]{display:none!important} @media (prefers-color-scheme: dark){body{background:#121212;color:#ddd}}</style>"


def draw(height: float, steps: str):
    fig, ax = figures.subplots(width=4.0, height=2.0)
    ax.plot(range(5 if steps == "few" else 50), color=figures.COLORS["train"], marker=".")
    ax.axhline(height, color=figures.COLORS["broken"])
    ax.set(ylim=(0, 4), xlabel="step")
    return fig


def moving(start: int = 3) -> figures.Picture:
    drawn = [draw(*place) for place in product(*SETTINGS.values())]
    texts = [f"A line at {height}, {steps} steps." for height, steps in product(*SETTINGS.values())]
    return figures.frames(drawn, SETTINGS, "A line and its height.", texts, start)


class Page(HTMLParser):
    """The inputs with their labels, the frames with their texts, what is referred to, and what must not be there."""

    def __init__(self, html: str):
        super().__init__()
        self.inputs, self.labelled, self.frames, self.ids, self.used, self.active = {}, {}, [], [], set(), []
        self.panels = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids += [a["id"]] if "id" in a else []
        self.used |= {*re.findall(r'"#([\w-]+)|url\(#([\w-]+)\)', self.get_starttag_text())}
        self.active += [tag] if tag == "script" or any(key.startswith("on") for key in a) else []
        if tag == "input":
            self.inputs[a["id"]] = a
        elif tag == "label":
            self.labelled[a["for"]] = a
        elif a.get("class") == "gpt2-panels":
            self.panels = True
        elif self.panels and tag == "div" and a.get("class") is None:
            self.frames.append("hidden" not in a)
        elif self.panels and tag == "svg":
            assert a["role"] == "img" and a["aria-label"]


@pytest.mark.parametrize("start", [0, 3])
def test_frames_are_plain_html_with_labels_and_one_frame_to_begin_with(start):
    page = Page(moving(start)._repr_html_())
    assert not page.active, "something runs"
    assert len(page.ids) == len({*page.ids}) and {a or b for a, b in page.used} <= {*page.ids}
    assert page.labelled.keys() == page.inputs.keys()
    names = {a["aria-label"] for a in page.inputs.values()}
    assert names == {f"{key}: {label}" for key, row in SETTINGS.items() for label in row}
    for group in {a["name"] for a in page.inputs.values()}:
        assert sum("checked" in a for a in page.inputs.values() if a["name"] == group) == 1
    assert page.frames == [i == start for i in range(6)], "without its style rules a reader sees one frame"


def test_one_row_of_buttons_needs_no_name():
    page = Page(
        figures.frames([draw(1, "few"), draw(2, "few")], [1, 2], "Two lines.", ["1", "2"])._repr_html_()
    )
    assert all(a["type"] == "radio" and "aria-label" not in a for a in page.inputs.values())


@pytest.mark.parametrize(
    "settings, start, message",
    [
        ({"height": [1, 2], "steps": ["few", "many"]}, 0, "6 figures, 4 labels"),
        (["a", "b"], 0, "6 figures, 2 labels"),
        (SETTINGS, 6, "start=6 is no frame"),
    ],
)
def test_frames_say_what_does_not_fit(settings, start, message):
    drawn = [draw(*place) for place in product(*SETTINGS.values())]
    with pytest.raises(ValueError, match=message):
        figures.frames(drawn, settings, "A caption.", ["a text"] * 6, start)


def test_frames_that_are_too_heavy_are_refused():
    import numpy as np

    rng, heavy = np.random.default_rng(0), []
    for _ in range(6):
        fig, ax = figures.subplots()
        ax.plot(rng.random(6000))
        heavy.append(fig)
    with pytest.raises(ValueError, match=r"the 6 frames have [\d,]+ bytes, a page should carry 300,000"):
        figures.frames(heavy, range(6), "A caption.", ["a text"] * 6)


def test_every_part_of_the_book_has_something_that_moves():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    moves = {
        part["caption"]: [c["file"] for c in part["chapters"] if "figures.frames(" in cells(c["file"])]
        for part in contents["parts"]
        if "caption" in part
    }
    assert all(moves[part] for part in ("Foundations", "Training", "Using it")), moves


def cells(page: str) -> str:
    path = ROOT / f"{page}.ipynb"
    if not path.exists():
        return ""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


@pytest.fixture(scope="module")
def browser():
    from test_demo_browser import BROWSER, FLAGS, playwright  # skips where there is none

    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, tmp_path):
    """Opens pictures in a tab, without scripts unless they are asked for."""
    contexts = []

    def open_(*pictures, scripts=False, **options):
        file = tmp_path / f"page{len(contexts)}.html"
        body = "".join(picture._repr_html_() for picture in pictures)
        file.write_text(f'<!doctype html><html lang="en"><title>t</title>{THEME}<main>{body}</main>')
        contexts.append(browser.new_context(java_script_enabled=scripts, **options))
        page = contexts[-1].new_page()
        page.goto(file.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()


def shown(page) -> list[str]:
    panels = page.locator(".gpt2-panels > div")
    seen = [panels.nth(i) for i in range(panels.count())]
    return [panel.locator("svg").get_attribute("aria-label") for panel in seen if panel.is_visible()]


def test_the_keyboard_alone_chooses_a_frame_without_scripts(tab):
    page = tab(moving(start=0))
    assert shown(page) == ["A line at 1, few steps."]
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert shown(page) == ["A line at 2, few steps."]
    page.keyboard.press("Tab")  # from row to row
    page.keyboard.press("ArrowRight")
    assert shown(page) == ["A line at 2, many steps."]
    page.keyboard.press("ArrowRight")  # around
    assert shown(page) == ["A line at 2, few steps."]
    page.locator("label", has_text="3").click()
    assert shown(page) == ["A line at 3, few steps."]


def test_what_frames_share_looks_as_if_it_were_drawn_in_each(tab, monkeypatch):
    thrifty = moving()
    monkeypatch.setattr(figures, "_share", lambda panels, uid: ("", list(panels)))
    lavish = moving()
    assert len(thrifty.markup) < 0.6 * len(lavish.markup)
    pages = tab(thrifty), tab(lavish)
    for i, j in product(range(3), range(2)):
        for page in pages:
            page.locator(f"label[for$='-0-{i}']").click()
            page.locator(f"label[for$='-1-{j}']").click()
        one, other = (page.locator(".gpt2-panels").screenshot() for page in pages)
        assert one == other, (i, j)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1000, 360])
def test_frames_are_accessible_in_light_and_dark_on_a_screen_and_a_phone(tab, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = tab(moving(), scripts=True, color_scheme=scheme, viewport={"width": width, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "it is wider than the screen"
    )
    found = [v for v in axe.run(page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert not found, [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found]
