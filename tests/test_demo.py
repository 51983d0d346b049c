"""The demo tells what happens as it happens, and its page shows it in a real browser."""

import io
import json
import os
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import torch
from refusals import refused
from rich.console import Console

from kava.demo import command, panels, questions, sizes
from kava.demo.command import PageAddress, _cot_model_of, serve, server
from kava.demo.progress import stream_answer
from kava.demo.questions import PageLimits, Questions, example_questions
from kava.demo.reports import stream_reports
from kava.errors import KavaError
from kava.inspect.decoded import decode_passes, decode_states
from kava.quickstart import BACKBONE, CHECKPOINT
from kava.reasoning.context_window import max_question_tokens
from kava.reasoning.methods import eot_suffix, prefill_question
from kava.reasoning.open import open_reasoner
from kava.recipe import registry
from kava.serve.command import bind
from kava.serve.hosts import Hosts

gradio = pytest.importorskip("gradio", reason="kava[demo] is not installed")

from kava.demo import middleware  # noqa: E402
from kava.demo.login_limiter import LoginLimiter  # noqa: E402
from kava.demo.page import Demo, PageModel  # noqa: E402

# gradio's own, of what pandas 3 drops
pytestmark = [
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

QUESTION = tiny.words(6, seed=1)
LATENT = [name for name in registry.names("methods") if registry.find("methods", name).uses_latents]
EVIL = "</section><img src=x onerror='window.broken=1'>{{value}}${1+1}&lt;`\\"


@pytest.fixture(scope="module")
def quick():
    thinker, writer = PageModel(open_reasoner(CHECKPOINT), CHECKPOINT), open_reasoner(BACKBONE)
    pick = example_questions(thinker.reasoner.recipe, None, None)
    return Demo(thinker, PageModel(writer, BACKBONE), pick, PageLimits())


# -- what is told ------------------------------------------------------------------------------


def every(reasoner, question=QUESTION, **options):
    """Each progress; no token is passed over, and nothing is timed again."""
    return list(
        stream_answer(reasoner, question, max_new_tokens=6, interval=0, repeat_below=0, **options)
    )


def offline(reasoner, question=QUESTION, num_iterations=None):
    return reasoner.answer(reasoner.think([question], num_iterations), 6)[0]


@pytest.mark.parametrize("method", (*LATENT, "cot", "no_cot"))
def test_progress_grows_to_the_answer_that_is_given_offline(method):
    thinker = tiny.reasoner("llama", method)
    told, wanted = every(thinker), offline(thinker)
    assert told[-1].answer == wanted and told[-1].text == wanted.text
    assert [one.answer for one in told[:-1]] == [None] * (len(told) - 1)
    passes = [one.forward_passes for one in told]
    assert passes == sorted(passes) and passes[-2:] == [wanted.forward_passes] * 2
    texts = [one.text for one in told if one.text]
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert len(set(texts)) > 2
    seconds = [one.seconds for one in told]
    assert seconds == sorted(seconds) and 0 < seconds[-1] < 30


@pytest.mark.parametrize("method", LATENT)
def test_each_pass_decodes_to_what_inspect_sees(method):
    thinker = tiny.reasoner("gemma2", method)
    state = states(thinker, QUESTION, 2)
    seen = every(thinker)[-1].passes
    assert seen == decode_passes(thinker, state).passes
    assert len(seen) == (3 if thinker.method.iterates else 1)


@pytest.mark.parametrize("method", ("kava", "lotus"))
def test_after_t_iterations_it_tells_what_t_iterations_alone_think(method):
    thinker = tiny.reasoner("llama", method)
    told = every(thinker, num_iterations=4)
    for t in range(5):
        alone = thinker.think([QUESTION], num_iterations=t).latent_states[0]
        assert len(told[t].passes) == t + 1 and told[t].text == ""
        assert told[t].forward_passes == t  # pass 0 belongs to the prefill
        assert [[word for word, _ in top] for top in told[t].passes[-1]] == [
            [word for word, _ in top] for top in decode_states(thinker, alone)
        ]


def test_latents_that_have_not_begun_are_empty_cells():
    known, other, none = (
        [(word, chance)] * 5 for word, chance in (("7", 0.9), ("8", 0.6), ("", 0.0))
    )
    page = panels.decoded_card([[known, none, none], [known, other, known], [other, other]], True)
    rows = [
        [cell.partition(">")[2].partition("<")[0] for cell in row.split("<td")[1:]]
        for row in page.split('<tr><th scope="row">')[1:4]
    ]
    assert rows == [["7", ""], ["7", "8"], ["8", "8"]]  # the last pass has no third latent
    assert page.count('class="moved"') == 1  # beginning is no change


def test_until_convergence_it_tells_the_passes_that_it_took():
    thinker = tiny.reasoner("llama", "kava", max_iterations=9, tolerance=0.3)
    told, wanted = every(thinker, num_iterations="auto"), offline(thinker, QUESTION, "auto")
    assert told[-1].answer == wanted
    assert len(told[-1].passes) - 1 + wanted.generated_tokens == wanted.forward_passes
    reasoning = thinker.think([QUESTION], "auto")
    assert reasoning.iterations == [len(told[-1].passes) - 1]


def test_latents_made_one_at_a_time_are_told_one_at_a_time():
    thinker = tiny.reasoner("llama", "codi")
    told = [one for one in every(thinker) if not one.text]
    assert [len(one.passes[0]) for one in told] == [1, 2, 3, 4, 5]
    assert [one.forward_passes for one in told] == [1, 2, 3, 4, 5]
    assert all(one.passes[0] == told[-1].passes[0][: i + 1] for i, one in enumerate(told))


def test_tokens_are_told_only_every_so_often():
    thinker = tiny.reasoner("llama", "cot")
    few = list(stream_answer(thinker, QUESTION, max_new_tokens=6, interval=60, repeat_below=0))
    assert [one.answer is not None for one in few] == [True]


@pytest.mark.parametrize(("again", "times"), [(0, 1), (60, 2)])
def test_a_short_answer_is_given_once_more_for_its_time(monkeypatch, again, times):
    thinker, asked = tiny.reasoner("llama", "kava"), []
    think = thinker.think
    monkeypatch.setattr(thinker, "think", lambda *words: asked.append(words) or think(*words))
    *_, last = stream_answer(thinker, QUESTION, 1, 3, interval=0, repeat_below=again)
    assert asked == [([QUESTION], 1)] * times
    assert last.answer.generated_tokens == 3 and last.seconds > 0


def test_work_stands_still_between_two_items():
    done = []

    def work(tell):
        for i in range(3):
            done.append(i)
            tell(i)

    happening = stream_reports(work)
    assert done == []
    for i in range(3):
        assert next(happening) == i
        time.sleep(0.01)
        assert done == list(range(i + 1))
    assert list(happening) == []


def test_work_that_fails_fails_where_it_is_watched():
    def work(tell):
        tell(1)
        raise KavaError("no", code="demo.no")

    happening = stream_reports(work)
    assert next(happening) == 1
    with refused("demo.no"):
        next(happening)


def test_work_ends_where_nobody_watches_any_more():
    before = threading.active_count()
    told = stream_answer(tiny.reasoner("llama", "cot"), QUESTION, interval=0)
    next(told)
    assert threading.active_count() == before + 1
    told.close()
    assert threading.active_count() == before


# -- numbers of latents and iterations -----------------------------------------------------------


@pytest.mark.parametrize(("method", "fewer"), [("kava", 3), ("codi", 2), ("coconut", 2)])
def test_fewer_latents_are_those_of_a_model_that_has_so_few(method, fewer):
    changed = sizes.resize_latents(tiny.reasoner("llama", method), fewer)
    options = {"method_options": {"max_stage": 1}} if method == "coconut" else {}
    small = tiny.reasoner("llama", method, num_latents=fewer, **options)
    ours, theirs = changed.think([QUESTION]), small.think([QUESTION])
    assert ours.latent_states.shape[1] == fewer
    assert torch.equal(ours.latent_states, theirs.latent_states)
    assert changed.answer(ours, 5) == small.answer(theirs, 5)


def test_the_model_itself_keeps_its_number():
    thinker = tiny.reasoner("llama", "kava")
    wanted = offline(thinker)
    sizes.resize_latents(thinker, 2).think([QUESTION])
    assert thinker.recipe.num_latents == 5 and offline(thinker) == wanted
    assert sizes.resize_latents(thinker, None) is thinker


@pytest.mark.parametrize(
    ("method", "latents", "iterations"),
    [
        ("kava", (1, 5, 1, 5), (0, 4, 1, 2)),
        ("lotus", (3, 6, 3, 6), (0, 4, 1, 2)),
        ("coconut", (2, 4, 2, 4), None),
        ("codi", (1, 5, 1, 5), None),
        ("cot", None, None),
    ],
)
def test_what_can_be_chosen(method, latents, iterations):
    thinker = tiny.reasoner("llama", method)
    assert sizes.latents(thinker) == (latents and sizes.Range(*latents))
    assert sizes.iterations(thinker) == (iterations and sizes.Range(*iterations))
    for span in filter(None, (sizes.latents(thinker),)):
        for value in range(span.minimum, span.maximum + 1, span.step):
            assert offline(sizes.resize_latents(thinker, value)).generated_tokens


@pytest.mark.parametrize(
    ("method", "value", "allowed"),
    [("kava", 0, [0, 1, 5]), ("kava", 6, [6, 1, 5]), ("lotus", 4, [4, 3, 6, 3])],
)
def test_numbers_that_cannot_be_chosen_are_refused(method, value, allowed):
    with refused("demo.not-one-of-the-sizes", "number of latents") as told:
        sizes.resize_latents(tiny.reasoner("llama", method), value)
    assert [int(number) for number in re.findall(r"\d+", str(told.value))] == allowed


def test_without_latents_no_number_of_them_can_be_chosen():
    with refused("demo.no-latents", "cot"):
        sizes.resize_latents(tiny.reasoner("llama", "cot"), 1)


# -- questions and addresses ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "code", "numbers"),
    [
        ("", "demo.empty-question", ""),
        (" \n ", "demo.empty-question", ""),
        ("w1 " * 40, "demo.question-too-long", "41 tokens.* 40 "),
        ("x" * 5000, "demo.question-too-long", "5,000 characters.* 40 "),
        ("w1 \ud800", "system.not-unicode", "character 4 "),
    ],
)
def test_questions_that_are_not_answered(question, code, numbers):
    with refused(code) as told:
        questions.check(tiny.reasoner(), question, 40)
    assert told.value.key.lower().endswith("question") and re.search(numbers, str(told.value))


def test_a_question_leaves_room_for_latents_and_answer():
    kava, cot = tiny.reasoner("llama", "kava"), tiny.reasoner("llama", "cot")
    assert (
        max_question_tokens(cot, "demo", 100, 1000) - max_question_tokens(kava, "demo", 100, 1000)
        == 5 + 2
    )
    most = max_question_tokens(kava, "demo", 6, 1000)
    reasoning = kava.think([tiny.words(most - 1, seed=2)])
    held = reasoning.cache.columns + reasoning.prompt.shape[1] + 6
    assert held == kava.lm.config.max_position_embeddings
    assert max_question_tokens(kava, "demo", 6, 7) == 7
    with refused("reasoning.no-room-for-question", "--max-new-tokens") as told:
        max_question_tokens(kava, "demo", 256, 1000)
    assert " 256 positions" in str(told.value)


def test_questions_to_pick_are_those_of_the_task(quick):
    recipe = quick.latent_model.reasoner.recipe
    pick = example_questions(recipe, None, None)
    assert len(pick.examples) == 10 and len(set(pick.labels)) == 10
    assert pick.default == pick.examples[4].question and pick.gold(pick.default + " ") == "6"
    assert pick.gold("another") is None
    assert example_questions(tiny.recipe(), None, None) == Questions() and Questions().default == ""
    with refused("demo.file-without-task", "--file"):
        example_questions(recipe, None, "rows.jsonl")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org"])
def test_others_are_let_in_only_with_a_password_or_on_purpose(host):
    with refused("demo.no-password", "--password"):
        PageAddress(host).check()
    PageAddress(host, password="secret").check()
    PageAddress(host, allow_no_password=True).check()


def test_this_machine_alone_needs_none_and_no_password_is_empty():
    for host in ("127.0.0.1", "localhost", "::1"):
        PageAddress(host).check()
    with refused("demo.empty-password", "--password"):
        PageAddress(password=" ").check()


def test_an_address_that_is_taken_is_named():
    with bind("demo", "localhost", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with refused("serve.address-in-use", f"127.0.0.1:{port}") as told:
            run_command(port=port)
        assert str(told.value).startswith("demo: ")


def test_of_another_backbone_the_writer_has_to_be_named():
    with refused("demo.no-writer", "--written") as told:
        _cot_model_of(PageModel(tiny.reasoner(), "runs/mine"))
    assert "runs/mine " in str(told.value) and " tiny;" in str(told.value)


@pytest.mark.parametrize(
    ("token", "shown"),
    [("a", "a"), (" a", "␣a"), ("a  ", "a␣␣"), ("  ", "␣␣"), ("\n", "⏎"), ("", "∅"), ("<", "&lt;")],
)
def test_blanks_of_a_token_are_seen(token, shown):
    assert panels.token(token) == shown


def run_command(run=None, written=None, port=0, **more):
    """`kava demo` to the point where it listens, and its end."""
    told = io.StringIO()
    serve(
        run,
        written,
        PageAddress(port=port),
        PageLimits(),
        None,
        None,
        None,
        Console(file=told, **more),
    )
    return told.getvalue()


def test_the_command_loads_both_models_says_where_the_page_is_and_ends(monkeypatch):
    def ending(*words):
        running = server(*words)
        running.should_exit = True
        return running

    monkeypatch.setattr(command, "server", ending)
    told = run_command(width=200)
    place = rf"{CHECKPOINT} and {BACKBONE} at http://127.0.0.1:\d+; Ctrl-C stops\n"
    assert re.fullmatch(rf"(.*: device: .*\n){{2}}{place}", told)


def test_a_model_that_thinks_in_latents_cannot_be_the_one_that_writes():
    with refused("demo.writer-with-latents", "--written") as told:
        run_command(written=CHECKPOINT)
    assert "'kava'" in str(told.value)


# -- the page --------------------------------------------------------------------------------


@contextmanager
def opened(demo, address=None, hosts=None):
    """The real page over HTTP on a free port, in a thread; gives its address."""
    made = []

    def run():  # playwright's own event loop is running in this thread, so not here
        made.append(server(demo, address or PageAddress(), hosts or Hosts()))
        made[0].run(sockets=[listening])

    with bind("demo", "127.0.0.1", 0) as listening:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while not (made and made[0].started):
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            made[0].should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def url(quick):
    with opened(quick) as address:
        yield address


class Tab:
    """The page in a browser, by what stands on it."""

    def __init__(self, watched, url):
        self.page, self.watched, self.url = watched.page, watched, url
        self.page.set_viewport_size({"width": 1280, "height": 900})
        self.page.goto(url)
        self.page.locator("#ask").wait_for()

    def ask(self, question=None, by=None):
        """Press the button, wait for the end, and give the line with the costs or the problem.

        Args:
            by: does it in another way than the button.
        """
        if question is not None:
            self.page.get_by_label("Question", exact=True).fill(question)
        self.page.locator("#costs p").evaluate_all("all => all.map(one => one.remove())")
        (by or self.page.locator("#ask").click)()
        self.page.locator("#costs p").wait_for()
        return self.text("#costs")

    def text(self, where):
        return self.page.locator(where).inner_text()

    def grid(self):
        """The likeliest tokens, row by row."""
        rows = self.page.locator("table.latents tbody tr").all()
        return [[c.split("\n")[0] for c in row.locator("td").all_inner_texts()] for row in rows]

    def check(self):
        """Nothing went wrong, and nobody else was asked for anything."""
        assert self.watched.errors == []
        assert all(one.startswith((self.url, "data:", "blob:")) for one in self.watched.requests)
        # a stream of answers that has ended, or a page that was left
        assert [one for one in self.watched.failed if "/queue/data" not in one] == []


def numbers(text):
    """Forward passes of both models."""
    return [int(n) for n in re.search(r"(\d+) forward passes.*compared with (\d+) ", text).groups()]


def states(thinker, question, num_iterations):
    ids = torch.tensor([thinker.encoder.question(question)])
    asked = {"question": ids, "question_mask": torch.ones_like(ids, dtype=torch.bool)}
    with torch.no_grad():
        context, _ = prefill_question(thinker, asked)
        return thinker.method.latents(
            thinker, context, eot_suffix(thinker, context), num_iterations, keep_all=True
        )


def words(thinker, question, num_iterations):
    """What the grid should show."""
    passes = decode_passes(thinker, states(thinker, question, num_iterations)).passes
    return [[top[0][0] for top in tops] for tops in passes]


def test_load_ask_slide_ask_again_and_ask_what_is_not_answered(browser_page, url, quick):
    tab = Tab(browser_page, url)
    assert "latent reasoning and chain of thought" in tab.page.title()
    question = quick.pick.default
    assert tab.page.get_by_label("Question", exact=True).input_value() == question
    assert "Nothing yet" in tab.text("#written") and "Nothing yet" in tab.text("#decoded")

    thinker, writer = quick.latent_model.reasoner, quick.cot_model.reasoner
    plain = [offline(thinker, question), writer.answer(writer.think([question]))[0]]
    assert numbers(tab.ask()) == [one.forward_passes for one in plain] == [6, 41]
    for card, one in zip(("#thought", "#written"), plain, strict=True):
        assert tab.text(f"{card} .answer").split() == ["6", "✓", "correct"]
        assert tab.text(f"{card} dd >> nth=0") == str(one.forward_passes)
        assert re.fullmatch(r"[\d.]+ m?s", tab.text(f"{card} dd >> nth=1"))
    assert tab.text("#written ol").split() == re.findall("<<.*?>>", plain[1].text)
    assert tab.grid() == words(thinker, question, 4)
    assert tab.text("#thought .reading") == "".join(tab.grid()[-1])

    tab.page.get_by_label("number input for Latents (M)").fill("14")
    tab.page.get_by_label("range slider for Iterations (T)").focus()
    tab.page.keyboard.press("ArrowLeft")
    fewer = sizes.resize_latents(thinker, 14)
    assert numbers(tab.ask())[0] == offline(fewer, question, 3).forward_passes
    assert "kava, 14 latents, 3 iterations" in tab.text("#thought")
    assert tab.grid() == words(fewer, question, 3)
    assert [len(row) for row in tab.grid()] == [14] * 4

    tab.page.get_by_label("Iterate until convergence").check()
    converged = offline(fewer, question, "auto").forward_passes
    assert numbers(tab.ask(question))[0] == converged != offline(fewer, question, 3).forward_passes
    most = thinker.recipe.max_iterations
    assert f"kava, 14 latents, at most {most} iterations" in tab.text("#thought")

    assert tab.ask("  ") == "The question is empty. Enter a question or choose an example."
    assert tab.page.get_by_role("alert").count() == 1
    assert "Nothing yet" in tab.text("#written") and tab.grid() == []  # no answer to another one
    assert re.fullmatch(
        r"The question is too long: [\d,]+ tokens; the limit is \d+ tokens.",
        tab.ask("How many kites? " * 300),
    )
    assert numbers(tab.ask("What is {{love}}? <b>"))
    tab.check()


def test_a_question_can_be_picked_and_asked_with_the_keyboard_alone(browser_page, url, quick):
    tab = Tab(browser_page, url)
    press = tab.page.keyboard.press
    names = []
    for _ in range(10):
        press("Tab")
        names.append(
            tab.page.evaluate(
                "(e => e.ariaLabel || e.labels?.[0]?.innerText || e.innerText)"
                "(document.activeElement)"
            ).split("\n")[0]
        )
    assert names[:3] == ["Question", "Example questions", "number input for Latents (M)"]
    assert "range slider for Iterations (T)" in names and names[-1] == "Ask"
    assert all(names)
    box = tab.page.get_by_label("Question", exact=True)
    from playwright.sync_api import TimeoutError as NotYet

    # A key that comes before the list has opened is lost, as it is for a person who is too quick.
    for _ in range(5):
        box.focus()
        tab.page.get_by_label("Example questions").focus()
        tab.page.get_by_role("option").first.wait_for()
        press("ArrowDown")
        tab.page.wait_for_timeout(200)
        press("Enter")
        with suppress(NotYet):
            tab.page.wait_for_function(
                "first => document.querySelector('#question textarea').value !== first",
                arg=quick.pick.default,
                timeout=4000,
            )
            break
    picked = box.input_value()
    assert picked != quick.pick.default
    gold = quick.pick.gold(picked)
    assert gold is not None
    box.focus()
    tab.ask(by=lambda: press("Enter"))
    assert gold in tab.text("#thought .answer")
    tab.check()


def test_nothing_sticks_out_and_the_pictures_of_the_readme(browser_page, url, tmp_path):
    """`KAVA_PICTURES=docs pytest tests/test_demo.py -k pictures` makes those of the README."""
    tab = Tab(browser_page, url)
    folder = Path(os.environ.get("KAVA_PICTURES", tmp_path))
    tab.ask()
    tab.page.mouse.move(1, 1)
    tab.page.screenshot(path=folder / "demo.png", full_page=True)
    tab.page.get_by_label("number input for Iterations (T)").fill("1")
    assert numbers(tab.ask())[0] == 3
    assert "35 latents, 1 iteration\n" in tab.text("#thought")
    top = tab.page.locator("#costs").bounding_box()["y"] - 10
    below = tab.page.locator("#decoded").bounding_box()
    clip = {"x": 0, "y": top, "width": 1280, "height": below["y"] + below["height"] + 16 - top}
    tab.page.screenshot(path=folder / "demo_latents.png", full_page=True, clip=clip)
    assert all((folder / f"{n}.png").stat().st_size < 200_000 for n in ("demo", "demo_latents"))
    tab.page.locator("summary").click()
    for width in (1280, 390):
        tab.page.set_viewport_size({"width": width, "height": 900})
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        for card in tab.page.locator(".card, #ask, #question").all():
            box = card.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
    moved = "one => { one.scrollLeft = 200; return one.scrollLeft; }"
    assert tab.page.locator(".scroll").evaluate(moved) == 200  # the table, in a narrow window
    tab.check()


@pytest.mark.parametrize("method", ("codi", "cot"))
def test_other_methods_show_what_they_have_and_texts_are_never_markup(
    browser_page, method, monkeypatch
):
    looked_up, look_up = [], socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more: looked_up.append(host) or look_up(host, *more)
    )
    thinker = tiny.reasoner("llama", method)
    writer = PageModel(tiny.reasoner("llama", "cot"), EVIL)
    demo = Demo(PageModel(thinker, EVIL), writer, Questions(), PageLimits(new_tokens=6))
    with opened(demo) as url:
        tab = Tab(browser_page, url)
        assert numbers(tab.ask(QUESTION))[0] == offline(thinker).forward_passes
        for card in ("#thought", "#written"):
            assert EVIL in tab.text(card)
        assert tab.page.evaluate("window.broken") is None and tab.page.locator("img").count() == 0
        assert tab.page.get_by_label("Iterations (T)").count() == 0
        assert tab.page.get_by_label("Example questions").count() == 0
        if method == "codi":
            assert tab.grid() == words(thinker, QUESTION, 0)
            assert tab.page.get_by_label("range slider for Latents (M)").count() == 1
        else:
            assert "The method cot has no latent tokens" in tab.text("#decoded")
            assert tab.page.locator("input[type=range]").count() == 0
        tab.check()
    assert looked_up == []  # nor did the server ask anybody: no telemetry


def test_with_a_password_the_page_is_closed_without_it(quick, monkeypatch):
    import httpx

    now = [0.0]
    monkeypatch.setattr(
        middleware, "LoginLimiter", lambda: LoginLimiter(2, 60.0, clock=lambda: now[0])
    )
    with opened(quick, PageAddress(password="secret")) as url, httpx.Client(base_url=url) as client:
        assert client.get("/config").status_code == 401
        assert quick.pick.default not in client.get("/").text
        for path in ("/openapi.json", "/docs", "/redoc", "/gradio_api/openapi.json"):
            assert client.get(path).status_code == 404
        wrong = {"username": "kava", "password": "wrong"}
        right = wrong | {"password": "secret"}
        assert client.post("/login", data=wrong).status_code == 400
        assert client.post("/login/", data=wrong).status_code == 400
        for body in (wrong, right):  # a right one is not looked at either, else it could be found
            answer = client.post("/login", data=body)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
        assert client.get("/config").status_code == 401
        now[0] += 60.0
        for _ in range(4):  # right ones cost nothing
            assert client.post("/login", data=right).status_code == 200
        assert client.get("/config").status_code == 200


def test_wrong_passwords_of_one_address_hold_up_that_one():
    now = [0.0]
    brake = LoginLimiter(3, 10.0, slots=1 << 16, clock=lambda: now[0])
    brake._salt = b"always the same"
    assert [brake.attempt("10.0.0.1") for _ in range(5)] == [0, 0, 0, 10, 10]
    assert brake.attempt("10.0.0.2") == 0
    now[0] = 10.0
    assert [brake.attempt("10.0.0.1") for _ in range(2)] == [0, 10]
    now[0] = 1000.0
    assert [brake.attempt("10.0.0.1") for _ in range(4)] == [0, 0, 0, 10]
    brake.refund("10.0.0.1")
    assert [brake.attempt("10.0.0.1") for _ in range(2)] == [0, 10]
    # One client has all addresses of an IPv6 network.
    assert [brake.attempt(f"2001:db8::{i}") for i in range(4)] == [0, 0, 0, 10]
    assert brake.attempt("2001:db8:0:1::1") == 0 == brake.attempt("")
    few = LoginLimiter(1, 10.0, slots=4, clock=lambda: 0.0)
    assert sum(few.attempt(f"10.0.0.{i}") == 0 for i in range(100)) == 4


def test_two_lengths_of_one_body_end_the_connection(url):
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 5) as raw:
        head = "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1".encode())
        answer = b""
        with suppress(ConnectionResetError):
            while part := raw.recv(4096):
                answer += part
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer.lower() and b"both Content-Length" in answer


def test_visitors_see_the_name_of_a_folder_and_not_its_path(tmp_path):
    folder = tmp_path / "private" / "mine"
    folder.mkdir(parents=True)
    thinker = tiny.reasoner("llama", "kava")
    assert PageModel(thinker, str(folder)).describe().name == "mine"
    assert PageModel(thinker, "owner/name").describe().name == "owner/name"


# -- what the page does not need -----------------------------------------------------------------

JOIN = "/gradio_api/queue/join"
TAKEN = {"data": ["w1"], "fn_index": 1, "session_hash": "s"}  # what the list of questions sends


def given(path):
    """What stands for a file in gradio's data."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(params=[None, "secret"], ids=["open", "password"])
def visitor(request, quick):
    """A client of the page that may use it."""
    import httpx

    with (
        opened(quick, PageAddress(password=request.param)) as url,
        httpx.Client(base_url=url) as client,
    ):
        if request.param:
            assert client.post(JOIN, json=TAKEN).status_code == 401
            login = {"username": "kava", "password": request.param}
            assert client.post("/login", data=login).status_code == 200
        yield client


@pytest.fixture
def private(tmp_path):
    """A file of this machine that nobody is meant to see."""
    file = tmp_path / "private.txt"
    file.write_text("to nobody")
    file.chmod(0o600)
    return file


def test_no_function_of_the_page_takes_a_file_or_an_address(visitor, private):
    assert visitor.post(JOIN, json=TAKEN).status_code == 200
    with bind("demo", "127.0.0.1", 0) as elsewhere:
        elsewhere.listen()
        elsewhere.settimeout(0.2)
        address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        for function, values in ((0, ["w1", 35, 4, True]), (1, ["w1"])):
            for i in range(len(values)):
                for bad in (given(private), given(address), [given(private)], {"w": 1}, []):
                    data = [*values[:i], bad, *values[i + 1 :]]
                    answer = visitor.post(JOIN, json={**TAKEN, "fn_index": function, "data": data})
                    kind = "a list" if isinstance(bad, list) else "an object"
                    assert (answer.status_code, answer.text) == (
                        400,
                        f"kava demo: data[{i}] is {kind}; must be a text, a number, true, false or "
                        "null, not a file\n",
                    )
        with pytest.raises(TimeoutError):
            elsewhere.accept()


def test_data_is_looked_at_however_it_is_sent(visitor, private):
    body = json.dumps({**TAKEN, "data": [given(private)]})
    for encoding in ("utf-8", "utf-16", "utf-32"):
        for kind in ("application/json", "text/plain", "application/vnd.x+json", None):
            headers = {} if kind is None else {"content-type": kind}
            sent = body.encode(encoding)
            for content in (sent, iter([sent[:9], sent[9:]])):  # at once, and in chunks
                answer = visitor.post(JOIN, content=content, headers=headers)
                assert answer.status_code == 400 and "data[0] is an object" in answer.text
    says_json = {"content-type": "application/json"}
    twice = body[:-1] + ', "data": ["w1"]}'  # the last counts, here as for gradio
    assert visitor.post(JOIN, content=twice, headers=says_json).status_code == 200
    twice = '{"data": ["w1"], ' + body[1:]
    assert visitor.post(JOIN, content=twice, headers=says_json).status_code == 400
    for bad in ("", "{", "[" * 100_000, "[]", "{}", '{"data": {"0": 1}}', b"\xff"):
        answer = visitor.post(JOIN, content=bad)
        assert answer.status_code == 400 and answer.text.startswith("kava demo: the body ")
    long = {**TAKEN, "data": ["x" * 1_000_000]}
    assert visitor.post(JOIN, json=long).status_code == 413


def test_what_else_gradio_serves_is_closed(visitor, private):
    body = {**TAKEN, "data": [given(private)]}
    api = "/gradio_api"
    for path in ("run/predict", "run/_lambda", "api/predict", "call/predict", "call/v2/predict"):
        for end in ("", "/"):
            answer = visitor.post(f"{api}/{path}{end}", json=body)
            assert (answer.status_code, answer.text) == (
                404,
                f"kava demo: POST '{api}/{path}{end}' is not served; for programs, use kava serve"
                "\n",
            )
    for path in ("upload", "upload/", "process_recording", "component_server"):
        answer = visitor.post(f"{api}/{path}", files={"files": ("a.txt", b"x")})
        assert answer.status_code == 404 and "is not served" in answer.text
    for path in ("queue/join/", "component_server/", "stream/x", "vibe-edit", "vibe-code/"):
        answer = visitor.post(f"{api}/{path}", json=body)
        assert answer.status_code == 404 and "is not served" in answer.text
    for path in (
        f"file={private}", "file=http://127.0.0.1:1/", f"file/{private}", "proxy=http://x.hf.space/",
        "deep_link?session_hash=s", "upload_progress?upload_id=1", "openapi.json", "vibe-code",
        "custom_component/x/client/y/z", "dev/reload", "runs", "token",
    ):  # fmt: skip
        for method in ("GET", "HEAD"):
            answer = visitor.request(method, f"{api}/{path}")
            assert answer.status_code == 404
            assert ("is not served" in answer.text) == (method == "GET")
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert visitor.get(path).status_code == 404
    for method in ("PUT", "DELETE", "PATCH"):
        assert visitor.request(method, JOIN, json=body).status_code == 404


def test_a_name_or_site_that_is_not_the_pages_gets_nothing(quick):
    import httpx

    paths = ("/", "/config", "/theme.css", "/static/img/logo.svg", "/gradio_api/queue/data", "/x")
    hosts = Hosts("0.0.0.0", ["demo.example.org"])
    with opened(quick, hosts=hosts) as url, httpx.Client(base_url=url) as client:

        def asked(**headers):
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            found = [client.get(path, headers=headers) for path in paths]
            return [*found, client.post(JOIN, json=TAKEN, headers=headers)]

        plain = [answer.status_code for answer in asked()]
        assert plain[:3] == [200] * 3 and plain[-2:] == [404, 200]
        own = url.removeprefix("http://")
        for headers in (
            {"host": "localhost"}, {"host": "[::1]:7860"}, {"host": "10.0.0.7"}, {"origin": url},
            {"host": "demo.example.org"}, {"origin": "https://demo.example.org"},  # a proxy's
            {"host": "10.0.0.7", "origin": "http://10.0.0.7"}, {"x_forwarded_host": own},
        ):  # fmt: skip
            assert [answer.status_code for answer in asked(**headers)] == plain
        upgrade = {"connection": "upgrade", "upgrade": "websocket"}
        for host in ("evil.example", "evil.example:7860", "localhost.evil.example", "[::1"):
            for answer in (*asked(host=host), *asked(host=host, **upgrade)):
                assert answer.status_code == 400 and answer.text.startswith(
                    f"kava demo: the Host header is {host!r}, which is not a name of this service"
                )
                assert "--allow-host" in answer.text and answer.text.count("\n") == 1
        for headers in (
            {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://[::1"},
            {"host": "[::1]", "origin": "https://evil.example"},  # gradio alone lets this one in
            {"host": "10.0.0.7", "origin": "http://10.0.0.8"},
            {"x_forwarded_host": "evil.example"}, {"x_gradio_server": "http://evil.example/"},
        ):  # fmt: skip
            for answer in asked(**headers):
                assert answer.status_code == 403 and "not a name of this service" in answer.text
                assert "access-control-allow-origin" not in answer.headers


def test_the_command_hands_its_names_to_the_page(kava, monkeypatch):
    def ending(demo, address, hosts):
        found = ",".join(sorted(hosts.names))
        raise KavaError("here", code=f"demo.any-{hosts.any_address}", key=found)

    monkeypatch.setattr(command, "server", ending)
    status, said = kava(
        "demo", "--port", 0, "--allow-host", "a.example", "--allow-host", "b.example"
    )
    wanted = "127.0.0.1,::1,a.example,b.example,localhost"
    assert (status, said.code, said.key) == (2, "demo.any-False", wanted)
    status, said = kava("demo", "--allow-host", "https://a.example")
    assert (status, said.code, said.key) == (2, "serve.not-a-host", "https://a.example")


def test_gradio_itself_refuses_a_path_too(quick, private, monkeypatch, tmp_path):
    """Were its data let in, the file would still not be copied to where gradio hands files out."""
    import httpx

    cache = tmp_path / "gradio"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(cache))
    monkeypatch.setattr(middleware, "check_data", lambda body: None)
    with opened(quick) as url, httpx.Client(base_url=url) as client:
        joined = client.post(JOIN, json={**TAKEN, "data": [given(private)]})
        assert joined.status_code == 200
        told = client.get("/gradio_api/queue/data", params={"session_hash": "s"}, timeout=20).text
    assert '"msg":"process_completed"' in told and '"success":false' in told
    assert [file for file in cache.rglob("*") if file.is_file()] == []
