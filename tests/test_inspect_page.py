"""The page of `kava inspect` in a real browser: each panel, its selectors, nothing from outside."""

import dataclasses
import json
import re

import pytest
from test_inspect import EXAMPLE, QUICK
from tiny import reasoner

from kava import Reasoner
from kava.data.tasks import load_task
from kava.inspect.look import inspect_question
from kava.inspect.page import as_script, page

PANELS = ["decoded", "movement", "similarity", "kept", "attended"]
#: Each would end the script or run by itself, if a text were ever taken for markup.
EVIL = (
    "</title></script><script>window.broken = 1</script>"
    '<img src="http://x.invalid/a" onerror="broken = 2">'
    "<!-- <script> & \u2028 &lt;b&gt; '\"@data@"
)


@pytest.fixture(scope="module")
def quick():
    thinker = Reasoner.from_pretrained(QUICK)
    row = next(e for e in load_task("synthetic", limit=20).examples if len(e.steps) == 5)
    return inspect_question(
        thinker, row.question, row.steps, row.answer, row=row.id, run="quickstart"
    )


@pytest.fixture(scope="module")
def tiny():
    """Fewer slots than tokens, so that some are evicted."""
    return inspect_question(
        reasoner(), EXAMPLE.question, EXAMPLE.steps, "7", row="a", max_new_tokens=4
    )


@pytest.fixture
def opened(browser_page, tmp_path):
    def call(seen, width=1280):
        file = tmp_path / "page.html"
        file.write_text(page(seen), encoding="utf-8")
        return browser_page.open(file, width)

    yield call
    assert browser_page.errors == [] and browser_page.failed == []
    assert all(url.startswith(("file://", "data:,")) for url in browser_page.requests)


def data(html):
    text = re.search(r'<script type="application/json" id="look">(.*?)</script>', html, re.S)[1]
    return json.loads(text)


def texts(found):
    return [one.strip() for one in found.all_inner_texts()]


def test_the_numbers_in_the_page_are_those_of_the_look(quick):
    html = page(quick)
    assert data(html) == json.loads(json.dumps(quick.tree()))
    assert len(html.encode()) < 300_000
    assert "http" not in html.replace("http-equiv", "")  # nothing to load, nowhere to go


def test_each_panel_is_there_and_nothing_goes_wrong(opened, quick):
    tab = opened(quick)
    assert [one.get_attribute("id") for one in tab.query_selector_all("section")] == PANELS
    assert tab.locator("nav a").count() == 5 and tab.title().endswith(quick.question)
    assert tab.locator(".question").inner_text() == quick.question
    assert "✓ right" in tab.locator(".facts").inner_text()
    assert texts(tab.locator("aside .steps li")) == quick.trace.steps
    for panel in PANELS:
        assert tab.locator(f"#{panel} table").count() >= 1
        assert tab.locator(f"#{panel} .absent").count() == 0


def test_every_iteration_and_each_latents_five_tokens_can_be_seen(opened, quick):
    tab, passes = opened(quick), quick.decoded.passes
    rows = tab.locator("#decoded tbody tr")
    assert rows.count() == 35
    shown = [f"{one[34][0][0]}\n{one[34][0][1]:.2f}" for one in passes]
    assert texts(rows.nth(34).locator("td")) == shown
    for t, latents in enumerate(passes):
        tab.select_option("#decoded select", str(t))
        words = [text.split("\n") for text in texts(rows.nth(4).locator("td"))]
        assert [[word.replace("␣", " "), p] for word, p in words] == [
            [text, f"{p:.2f}"] for text, p in latents[4]
        ]
    reading = tab.locator(".reading").inner_text()
    assert reading.split() == "".join(top[0][0] for top in passes[-1]).split()


def test_heat_maps_hold_the_numbers_and_their_selectors_change_them(opened, quick):
    tab = opened(quick)
    moved = tab.locator("#movement tbody tr")
    assert moved.count() == 4 and moved.nth(0).locator("td").count() == 36
    cell = moved.nth(1).locator("td").nth(3)
    assert cell.get_attribute("title").endswith(str(quick.movement.distance[1][2]))
    tab.select_option("#movement select", "cosine")
    assert cell.get_attribute("title").endswith(str(quick.movement.cosine[1][2]))
    keys = tab.locator("#similarity table").first.locator("tbody tr")
    assert keys.nth(0).locator("th").inner_text() == "mean"
    cell = keys.nth(2).locator("td").nth(29)  # layer 2, slot 30
    assert cell.get_attribute("title").endswith(f"{quick.similarity.keys.layers[1][29]:.4f}")
    tab.select_option("#similarity select", "1")
    assert cell.get_attribute("title").endswith(f"{quick.similarity.keys.heads[1][1][29]:.4f}")
    weights = tab.locator("#attended table").last.locator("tbody tr")
    cell = weights.nth(3).locator("td").nth(32)
    percent = 100 * quick.attended.layers[0][2][32]
    assert f"{percent:.3g} %" in cell.get_attribute("title")
    tab.locator("#attended select").nth(1).select_option("1")
    assert f"{100 * quick.attended.heads[0][2][1][32]:.3g} %" in cell.get_attribute("title")


def test_kept_tokens_are_coloured_and_tell_their_numbers(opened, tiny):
    tab = opened(tiny)
    tokens, kept = tab.locator("#kept .token"), tiny.kept
    assert texts(tokens) == [text.replace(" ", "␣") for text, _ in kept.tokens]
    for layer, heads in enumerate(kept.columns):
        for head, columns in enumerate(heads):
            tab.locator("#kept select").first.select_option(f"{layer},{head}")
            marked = [one.get_attribute("class") for one in tokens.all()]
            assert [i for i, name in enumerate(marked) if "kept" in name.split()] == columns
            row = tab.locator("#kept tbody tr").nth(2 * layer + head)
            assert [i for i, text in enumerate(texts(row.locator("td"))) if text == "●"] == columns
            told = tokens.nth(4).get_attribute("title")
            assert ("kept by" in told) == (4 in columns)
            for name in ("importance", "redundancy", "score"):
                number = re.search(rf"{name}: (\S+)", told)[1]
                assert float(number) == pytest.approx(kept.numbers[name][layer][head][4], rel=1e-3)
    painted = tokens.evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
    last = kept.columns[-1][-1]
    assert len({painted[i] for i in last}) == 1 and painted[last[0]] not in {
        colour for i, colour in enumerate(painted) if i not in last
    }


def test_a_tooltip_shows_by_mouse_and_by_keyboard(opened, tiny):
    tab = opened(tiny)
    tip = tab.locator("#tip")
    assert tip.is_hidden()
    token = tab.locator("#kept .token").nth(2)
    token.hover()
    tip.filter(has_text="importance").wait_for(state="visible")
    assert token.get_attribute("title") is None  # not twice
    tab.locator("h1").hover()
    tip.wait_for(state="hidden")
    assert "importance" in token.get_attribute("title")
    tab.locator("#kept .token").first.focus()
    for key, words in (("ArrowRight", "token 2,"), ("ArrowDown", "step 2"), ("ArrowUp", "step 1")):
        tab.keyboard.press(key)
        tip.filter(has_text=words).wait_for(state="visible")
    tab.keyboard.press("Escape")
    tip.wait_for(state="hidden")


def test_a_page_that_scrolls_under_a_resting_mouse_leaves_the_words_of_what_has_the_focus(
    opened, tiny
):
    tab = opened(tiny)
    tip, token = tab.locator("#tip"), tab.locator("#kept .token").first
    cells = tab.locator("#kept tbody td")
    cells.first.hover()
    token.focus()
    tip.filter(has_text="token 1,").wait_for(state="visible")
    met = 0
    for _ in range(50):
        tab.evaluate("window.scrollBy(0, -4)")
        tab.wait_for_timeout(20)  # for the browser to tell what lies below the mouse now
        met += tab.evaluate("document.querySelector('#kept .token:hover') !== null")
        assert "token 1," in tip.inner_text()
    assert met, "no other token came below the mouse"


def test_tables_are_tables_and_selectors_have_names(opened, tiny):
    tab = opened(tiny)
    for table in tab.locator("table").all():
        assert table.get_attribute("aria-label")
        assert table.locator("tbody th[scope=row]").count() == table.locator("tbody tr").count()
        assert table.locator("thead th[scope=col]").count() > 1
        assert table.locator("td[tabindex='0']").count() <= 1  # arrow keys do the rest
    for select in tab.locator("select").all():
        assert select.evaluate("one => one.labels.length") == 1


@pytest.mark.parametrize("width", (390, 1280))
def test_nothing_sticks_out_of_the_window(opened, quick, width):
    tab = opened(quick, width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_panels_that_there_are_not_are_named_with_the_reason(opened):
    seen = inspect_question(reasoner("llama", "codi"), EXAMPLE.question, [], "7", max_new_tokens=2)
    tab = opened(seen)
    assert tab.locator("section").count() == 5
    assert "one at a time" in tab.locator("#movement .absent").inner_text()
    for panel in ("similarity", "kept"):
        assert "read no step" in tab.locator(f"#{panel} .absent").inner_text()
    assert tab.locator("#decoded tbody tr").count() == 5


@pytest.mark.parametrize("method", ("pccot", "codi", "coconut", "lotus"))
def test_the_page_of_each_method_opens(opened, method):
    thinker = reasoner("gpt2", method)
    seen = inspect_question(thinker, EXAMPLE.question, EXAMPLE.steps, "7", max_new_tokens=2)
    tab = opened(seen)
    shown = [tab.locator(f"#{panel} .absent").count() for panel in PANELS]
    assert shown == [0, 0 if thinker.method.iterates else 1, 0, 0, 0]
    for panel in ("kept", "attended"):  # lotus has tokens in no block, which have no score
        for option in range(tab.locator(f"#{panel} select").nth(1).locator("option").count()):
            tab.locator(f"#{panel} select").nth(1).select_option(index=option)
    if method == "lotus":
        assert "none (in no block of slots)" in tab.locator("#kept .token").last.get_attribute(
            "title"
        )
    assert ("was not trained" in tab.locator("#kept").inner_text()) == (method != "lotus")


def test_text_of_the_question_is_never_markup(opened, tiny):
    top = [(EVIL, 0.5)] * 5
    evil = dataclasses.replace(
        tiny,
        question=EVIL,
        answer=EVIL,
        gold=EVIL,
        right=False,
        about=dataclasses.replace(tiny.about, run=EVIL, backbone=EVIL),
        trace=dataclasses.replace(tiny.trace, steps=[EVIL], read=1, answer=EVIL, origin=EVIL),
        decoded=dataclasses.replace(tiny.decoded, passes=[[top] * 5] * 3),
        kept=dataclasses.replace(tiny.kept, tokens=[(EVIL, 0)] * 9, notes=[EVIL]),
        attended=dataclasses.replace(tiny.attended, tokens=[EVIL] * len(tiny.attended.tokens)),
    )
    assert not set("<>&\u2028") & set(as_script(evil))
    assert data(page(evil))["question"] == EVIL
    tab = opened(evil)
    assert tab.evaluate("window.broken") is None
    assert tab.locator("img").count() == 0 and tab.locator("script").count() == 2
    assert tab.title() == f"kava inspect: {EVIL}"
    assert tab.locator(".question").text_content() == EVIL
    assert tab.locator("section").count() == 5
