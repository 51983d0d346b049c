"""A look inside: every number against plain calls of the model, without cache, in plain loops."""

import copy
import io
import json
import math
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from reference import (
    all_passes,
    best,
    compared_keys,
    cosine,
    generate,
    rkv_parts,
    run,
    student_embeds,
    to_textbook,
    token_embeds,
)
from refusals import refused
from rich.console import Console
from tiny import FAMILIES, LAYERS, batch, example, reasoner, stepped
from typer.testing import CliRunner

from kava import Reasoner
from kava.cli import app
from kava.data.tasks import load_task
from kava.evaluation.answers import split_at_marker
from kava.inspect import command, terminal
from kava.inspect.look import inspect_question
from kava.inspect.terminal import show
from kava.inspect.trace import split_steps

QUICK = Path(__file__).parents[1] / "checkpoints" / "quickstart" / "kava"
LATENT = [(f, "kava") for f in FAMILIES] + [
    ("llama", m) for m in ("pccot", "codi", "coconut", "lotus")
]
#: More tokens than any of these recipes has latents, in more steps than lotus has blocks.
EXAMPLE = stepped(4, (3, 4, 2))
COLON = 3  # of the four tokens of the prompt


def close(found, expected):
    """Numbers are written with four significant digits."""
    found, expected = torch.tensor(found), torch.as_tensor(expected)
    torch.testing.assert_close(found, expected.float(), atol=3e-4, rtol=1e-3)


class Slow:
    """The reasoner with textbook attention, and one plain call for each thing that is looked at."""

    def __init__(self, family, method, **changes):
        self.thinker = reasoner(family, method, **changes)
        self.slow = to_textbook(copy.deepcopy(self.thinker))
        self.row = self.thinker.encoder.row(EXAMPLE)
        with torch.no_grad():
            self.question = token_embeds(self.slow, self.row.question)
            self.passes = all_passes(self.slow, self.question)
        self.start = len(self.row.question) + 1  # of the latents
        self.count = len(self.passes[-1])

    def look(self, **options):
        one = EXAMPLE
        options = {"row": one.id, "max_new_tokens": 4, **options}
        return inspect_question(self.thinker, one.question, one.steps, one.answer, **options).tree()

    @torch.no_grad()
    def student(self, t=-1, after=()):
        ids = token_embeds(self.slow, list(after))
        return run(self.slow, student_embeds(self.slow, self.question, self.passes[t], ids))

    @torch.no_grad()
    def teacher(self):
        row = self.row
        return run(self.slow, token_embeds(self.slow, row.question + row.steps + row.answer))

    def blocks(self):
        """Tokens of the trace that are compressed together, each with its budget."""
        method = self.thinker.method
        if self.thinker.recipe.method != "lotus":
            return [(list(range(len(self.row.steps))), self.count)]
        return [
            ([i for i, step in enumerate(self.row.step_of) if step == block], method.width)
            for block in range(method.blocks)
        ]

    def chosen(self, whole):
        """For each layer and head: I, R and the kept columns of the trace (None: no token)."""
        lam, q = self.thinker.recipe.kv.eviction.lam, len(self.row.question)
        first, answers = q + len(self.row.steps), len(self.row.answer)
        for layer, logits in enumerate(whole.attention):
            group = logits.shape[0] // whole.keys[layer].shape[0]
            for head, keys in enumerate(whole.keys[layer]):
                heads = logits[head * group : (head + 1) * group]
                parts = {name: [None] * len(self.row.steps) for name in ("I", "R", "S")}
                kept = []
                for tokens, budget in self.blocks():
                    at = [q + i for i in tokens]
                    one, other = rkv_parts(heads, keys, first, answers, at)
                    score = [lam * i + (1 - lam) * r for i, r in zip(one, other, strict=True)]
                    for i, *three in zip(tokens, one, other, score, strict=True):
                        for name, number in zip(parts, three, strict=True):
                            parts[name][i] = number
                    kept += [tokens[i] for i in best(score, budget)]
                    kept += [None] * (budget - len(tokens))
                yield layer, head, parts, kept


@cache
def slow(family, method):
    return Slow(family, method)


@cache
def seen(family, method):
    return slow(family, method).look()


@pytest.fixture(params=LATENT, ids="-".join)
def latent(request):
    return slow(*request.param), seen(*request.param)


def test_latents_decode_to_what_the_head_says_in_a_plain_call(latent):
    plain, found = latent
    assert len(found["decoded"]["passes"]) == len(plain.passes)
    for t, latents in enumerate(found["decoded"]["passes"]):
        scores = plain.student(t).scores[plain.start : plain.start + plain.count]
        assert len(latents) == plain.count
        for top, chances in zip(latents, scores.softmax(-1), strict=True):
            close([p for _, p in top], chances.sort(descending=True).values[:5])
            ids = plain.thinker.tokenizer.convert_tokens_to_ids([text for text, _ in top])
            close([p for _, p in top], chances[ids])


def test_movement_is_between_the_inputs_of_plain_passes(latent):
    plain, found = latent
    moved = found["movement"]
    if not plain.thinker.method.iterates:
        assert "one at a time" in moved["reason"]
        return
    assert len(moved["distance"]) == plain.thinker.recipe.num_iterations == 2
    for t in range(2):
        pairs = zip(plain.passes[t].tolist(), plain.passes[t + 1].tolist(), strict=True)
        distances, cosines = [], []
        for before, after in pairs:
            gap = math.sqrt(sum((a - b) ** 2 for a, b in zip(after, before, strict=True)))
            distances.append(gap / math.sqrt(sum(b * b for b in before)))
            cosines.append(cosine(before, after))
        close(moved["distance"][t], distances)
        close(moved["cosine"][t], cosines)
        close(moved["mean_distance"][t], sum(distances) / len(distances))
        close(moved["mean_cosine"][t], sum(cosines) / len(cosines))


def test_kept_tokens_and_their_numbers_are_those_of_the_equations(latent):
    plain, found = latent
    kept, heads = found["kept"], 0
    assert [step for _, step in kept["tokens"]] == plain.row.step_of
    written = plain.thinker.tokenizer.decode(plain.row.steps)
    assert "".join(text for text, _ in kept["tokens"]) == written
    names = {"I": "importance", "R": "redundancy", "S": "score"}
    for layer, head, parts, columns in plain.chosen(plain.teacher()):
        heads += 1
        assert kept["columns"][layer][head] == columns
        for letter, name in names.items():
            shown = kept["numbers"][name][layer][head]
            assert [n is None for n in shown] == [n is None for n in parts[letter]]
            close([n for n in shown if n is not None], [n for n in parts[letter] if n is not None])
    assert heads == LAYERS * found["about"]["heads"]


def test_similarity_is_the_cosine_of_single_slots(latent):
    plain, found = latent
    assert_similarity(plain, found)


@pytest.mark.parametrize("family", ("llama", "phi3"))
def test_similarity_before_the_rotation_if_the_loss_compares_so(family):
    plain = Slow(family, "kava", kv={"weight": 1.0, "keys": "pre_rope"})
    found = plain.look()
    assert_similarity(plain, found)
    assert "before their rotation" in found["similarity"]["notes"][0]
    assert found["similarity"]["keys"] != seen(family, "kava")["similarity"]["keys"]


def assert_similarity(plain, found):
    whole, q, student = plain.teacher(), len(plain.row.question), plain.student()
    for name, part in (("keys", compared_keys(plain.thinker)), ("values", "values")):
        measured, every = found["similarity"][name], []
        for layer, head, _, columns in plain.chosen(whole):
            row = []
            for slot, column in enumerate(columns):
                if column is None:
                    row.append(None)
                    continue
                ours = getattr(student, part)[layer][head, plain.start + slot]
                theirs = getattr(whole, part)[layer][head, q + column]
                row.append(cosine(ours.tolist(), theirs.tolist()))
            shown = measured["heads"][layer][head]
            assert [n is None for n in shown] == [n is None for n in row]
            close([n for n in shown if n is not None], [n for n in row if n is not None])
            every.append((layer, row))
        for slot in range(plain.count):
            here = [row[slot] for _, row in every]
            if here[0] is None:
                assert measured["slots"][slot] is None
                continue
            close(measured["slots"][slot], sum(here) / len(here))
            for layer in range(LAYERS):
                of_layer = [row[slot] for number, row in every if number == layer]
                close(measured["layers"][layer][slot], sum(of_layer) / len(of_layer))
        filled = [n for _, row in every for n in row if n is not None]
        close(measured["passes"][-1], sum(filled) / len(filled))
        assert len(measured["passes"]) == len(plain.passes)


def test_attention_of_the_answer_is_the_softmax_of_a_plain_call(latent):
    plain, found = latent
    paid, prompt = found["attended"], plain.thinker.encoder.prompt
    free = plain.thinker.recipe.method == "lotus"  # its first token stands where the prompt does
    with torch.no_grad():
        inputs = [] if free else [*prompt]
        before = student_embeds(
            plain.slow, plain.question, plain.passes[-1], token_embeds(plain.slow, inputs)
        )
        written = generate(plain.slow, before, 4, 2)
    answer = plain.thinker.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert found["answer"] == answer
    if free:
        inputs, written = written[:1], written[1:]
    looking = [token for token in written if token != 2][:2]
    whole = plain.student(after=[*inputs, *looking])
    first = plain.start + plain.count + 1
    colon = first + len(inputs) - 1
    assert len(paid["tokens"]) == 1 + len(looking)
    assert free or (paid["tokens"][0] == ":" and colon - first == COLON)
    edges = [0, plain.start - 1, plain.start, plain.start + plain.count, first]
    edges.append(len(whole.last))
    for a in range(len(paid["tokens"])):
        shares, latents = [], []
        for layer, logits in enumerate(whole.attention):
            weights = logits[:, colon + a].softmax(-1)
            for head, row in enumerate(weights):
                close(paid["heads"][a][layer][head], row[plain.start : edges[3]])
            parts = [weights[:, i:j].sum(1).mean() for i, j in pairwise(edges)]
            close(paid["layer_shares"][a][layer], parts)
            close(paid["layers"][a][layer], weights[:, plain.start : edges[3]].mean(0))
            shares.append(parts)
            latents.append(weights[:, plain.start : edges[3]].mean(0))
        close(paid["shares"][a], torch.tensor(shares).mean(0))
        close(paid["latents"][a], torch.stack(latents).mean(0))
        assert abs(sum(paid["shares"][a]) - 1) < 1e-2


def test_an_answer_in_words_is_compared_letter_by_letter():
    thinker = slow("llama", "kava").thinker
    for gold, right in (("+ +", True), ("Monday", False)):
        found = inspect_question(thinker, "w3 w15", ("w1",), gold, max_new_tokens=2)
        assert (found.answer, found.right) == ("+ +", right)


# -- which steps the teacher reads ---------------------------------------------------------------


def test_one_step_is_dropped_as_in_training_but_not_from_what_the_model_writes():
    quick = Reasoner.from_pretrained(QUICK)
    one = next(e for e in load_task("synthetic", limit=20).examples if len(e.steps) == 3)
    whole = inspect_question(quick, one.question, one.steps, one.answer, row=one.id)
    assert (whole.trace.source, whole.trace.read, whole.right) == ("row", 3, True)
    quick.recipe.drop_last_step = True
    given = inspect_question(quick, one.question, one.steps, one.answer)
    assert (given.trace.source, given.trace.read, given.right) == ("given", 2, True)
    assert "dropped" in given.trace.origin
    assert given.kept.tokens == whole.kept.tokens[: len(given.kept.tokens)]
    assert {step for _, step in given.kept.tokens} == {0, 1}
    written = inspect_question(quick, one.question)  # this model writes right steps, and its answer
    assert (written.trace.source, written.trace.read) == ("written", 3)
    assert written.trace.steps == list(one.steps) and written.trace.answer == one.answer
    assert written.kept.tokens == whole.kept.tokens
    assert "wrote them itself" in written.trace.origin


@torch.no_grad()
def test_without_a_right_answer_the_model_is_asked_after_the_steps():
    plain = slow("llama", "kava")
    found = inspect_question(plain.thinker, EXAMPLE.question, EXAMPLE.steps, max_new_tokens=4)
    prompt = plain.thinker.encoder.prompt
    ids = plain.row.question + plain.row.steps + prompt
    written = generate(plain.slow, token_embeds(plain.slow, ids), 4, 2)
    assert found.trace.answer == plain.thinker.tokenizer.decode(written, skip_special_tokens=True)
    assert "after reading them" in found.trace.origin and found.right is None


@torch.no_grad()
def test_what_the_model_writes_becomes_its_steps():
    plain = slow("llama", "kava")
    found = inspect_question(plain.thinker, EXAMPLE.question, max_new_tokens=6)
    written = generate(plain.slow, token_embeds(plain.slow, plain.row.question), 6, 2)
    text = plain.thinker.tokenizer.decode(written, skip_special_tokens=True)
    assert "".join(found.trace.steps).split() == text.split()
    assert "did not get to" in found.trace.origin


def test_texts_are_parted_into_steps_and_answer():
    assert split_at_marker("<<1+1=2>><<2+1=3>>The answer is: 3\nand more") == (
        "<<1+1=2>><<2+1=3>>",
        "3",
    )
    assert split_at_marker(" He has 2. The Answer is : 3 ") == ("He has 2.", "3")
    assert split_at_marker(" 1 + 1 ") == ("1 + 1", None)
    assert split_steps("<<1+1=2>> <<2+1=3>>") == ["<<1+1=2>>", "<<2+1=3>>"]
    assert split_steps("It is 2.5 now. Then 3! So?") == ["It is 2.5 now.", "Then 3!", "So?"]
    assert split_steps("  ") == []


# -- what there is not -----------------------------------------------------------------------------


def small(method="kava", steps=EXAMPLE.steps, num_iterations=None, **changes):
    thinker = reasoner("llama", method, **changes)
    options = {"num_iterations": num_iterations, "max_new_tokens": 2}
    return inspect_question(thinker, EXAMPLE.question, steps, "7", **options).tree()


def test_short_traces_leave_slots_empty():
    found = small(steps=["<< 3"])
    assert all(row[2:] == [None] * 3 for layer in found["kept"]["columns"] for row in layer)
    for part in ("keys", "values"):
        measured = found["similarity"][part]
        rows = [*measured["layers"], *(row for layer in measured["heads"] for row in layer)]
        for row in (measured["slots"], *rows):
            assert row[2:] == [None] * 3 and None not in row[:2]
    zeros = small(steps=["<< 3"], short_traces="zeros")  # the loss fills them, with nothing to see
    assert zeros["similarity"] == found["similarity"]


def test_panels_that_there_are_not_say_why():
    assert "single pass" in small(num_iterations=0)["movement"]["reason"]
    empty = small(steps=[])
    assert "read no step" in empty["similarity"]["reason"] == empty["similarity"]["reason"]
    assert "read no step" in empty["kept"]["reason"]
    full = small(kv={"weight": 1.0, "eviction": {"name": "full"}})
    assert "does not fit num_latents 5" in full["kept"]["reason"]
    assert full["similarity"]["reason"] == full["kept"]["reason"]


@pytest.mark.parametrize(
    "eviction, parts",
    (
        ("random", set()),
        ("crop_right", set()),
        ("attention", {"importance"}),
        ("later_steps", {"importance"}),
        ("cosine", {"redundancy"}),
        ("rkv_decoding", {"importance", "redundancy"}),
    ),
)
def test_an_eviction_shows_what_its_score_is_made_of(eviction, parts):
    kept = small(kv={"weight": 1.0, "eviction": {"name": eviction}})["kept"]
    assert kept["numbers"].keys() == {"score", *parts}
    for layer, heads in enumerate(kept["columns"]):
        for head, columns in enumerate(heads):  # also where scores are drawn at random
            score = kept["numbers"]["score"][layer][head]
            assert columns == best(score, 5)
            shown = [kept["numbers"][name][layer][head] for name in sorted(parts)]
            if len(shown) == 1:
                assert shown[0] == score
            elif shown:
                close(score, [0.1 * i - 0.9 * r for i, r in zip(*shown, strict=True)])


def test_a_method_without_the_loss_says_that_it_was_not_trained_on_it():
    for method in ("pccot", "codi", "coconut", "lotus"):
        notes = seen("llama", method)["similarity"]["notes"]
        assert (f"This {method} was not trained to match" in notes[0]) == (method != "lotus")
    assert not seen("llama", "kava")["kept"]["notes"]
    unweighted = small("lotus", kv={"weight": 0.0})
    assert "not trained" in unweighted["kept"]["notes"][0]


def test_a_projection_of_keys_is_gone_through_as_in_the_loss():
    thinker = reasoner(kv={"weight": 1.0, "projection": "linear"})
    options = {"row": "r", "max_new_tokens": 2}

    def ask():
        return inspect_question(thinker, EXAMPLE.question, EXAMPLE.steps, "7", **options).similarity

    before = ask()  # the identity at first
    close(before.keys.slots, seen("llama", "kava")["similarity"]["keys"]["slots"])
    with torch.no_grad():
        for layer in thinker.method_modules["kv_projection"].layers:
            layer[0][0].weight.neg_()
    after = ask()
    close(after.keys.slots, [-n for n in before.keys.slots])
    close(after.values.slots, before.values.slots)
    assert "kv.projection" in after.notes[-1]


def test_looking_changes_nothing_and_the_answer_is_that_of_an_evaluation():
    thinker = reasoner()
    data, one = batch(thinker, [example(4, 9)]), example(4, 9)
    before = thinker(**data)["loss"]
    found = inspect_question(thinker, one.question, one.steps, one.answer, max_new_tokens=4)
    assert torch.equal(before, thinker(**data)["loss"])
    ids = thinker.continue_from(thinker.think([one.question]), 4)
    assert found.answer == thinker.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert found.about.forward_passes == 2 + int(thinker.generated_lengths(ids)[0])


def test_the_number_of_iterations_can_be_chosen_where_there_are_any():
    found = small(num_iterations=3)
    assert len(found["decoded"]["passes"]) == 4 and found["about"]["iterations"] == 3
    assert len(found["similarity"]["keys"]["passes"]) == 4
    with refused("reasoning.no-iterations", "codi"):
        small("codi", num_iterations=3)


@pytest.mark.parametrize("method", ("cot", "no_cot", "icot"))
def test_a_method_without_latents_is_refused(method):
    with refused("inspect.no-latents", method) as told:
        small(method)
    assert " kava" in str(told.value)


def test_empty_questions_and_steps_are_refused():
    with refused("inspect.empty-question", "question"):
        inspect_question(reasoner(), "  ")
    with refused("inspect.empty-step", "steps"):
        small(steps=["<< 3", " "])


# -- terminal and command --------------------------------------------------------------------------


def lines(found):
    console = Console(file=io.StringIO(), soft_wrap=True)
    show(found, console)
    return console.file.getvalue().splitlines()


def test_the_terminal_shows_each_panel_with_the_numbers_of_the_look():
    plain = slow("llama", "kava")
    options = {"row": EXAMPLE.id, "max_new_tokens": 4}
    found = inspect_question(
        plain.thinker, EXAMPLE.question, EXAMPLE.steps, EXAMPLE.answer, **options
    )
    shown = lines(found)
    assert shown[0] == EXAMPLE.question
    for i, top in enumerate(found.decoded.passes[-1]):
        (line,) = [line for line in shown if line.startswith(f"{i + 1:5d} ")]
        passes = [latents[i][0] for latents in found.decoded.passes[:-1]]
        words = [f"{text!r} {p:.2f}" for text, p in (*passes, *top)]
        assert re.split(r"  +", line.strip())[1:] == words
    for t, mean in enumerate(found.movement.mean_distance):
        (line,) = [line for line in shown if line.startswith(f"{t} -> {t + 1}   ")]
        assert (
            line.endswith(f"mean {mean:.3f}") and len(line.split("   ")[1].split("  mean")[0]) == 5
        )
    for layer, heads in enumerate(found.kept.columns, start=1):
        for head, columns in enumerate(heads, start=1):
            (line,) = [one for one in shown if one.startswith(f"layer {layer:2d} head {head:2d}")]
            evicted = "".join(re.findall(r"\[(.*?)\]", line))
            words = [text for i, (text, _) in enumerate(found.kept.tokens) if i not in columns]
            assert evicted == "".join(words) != ""
    share = found.attended.shares[0][2]
    assert f"latents {100 * share:.1f}" in "\n".join(shown)


def test_the_terminal_says_what_there_is_not_and_marks_empty_slots():
    thinker = reasoner("llama", "codi")
    shown = lines(inspect_question(thinker, EXAMPLE.question, ["<< 3"], "7", max_new_tokens=2))
    assert any(line.startswith("not here: method 'codi' makes") for line in shown)
    (line,) = [line for line in shown if line.startswith("keys   layer  1")]
    assert line.split("  ")[3].endswith("---")  # five slots, two of them with a token


def test_many_heads_are_one_line_for_each_layer(monkeypatch):
    monkeypatch.setattr(terminal, "MANY_HEADS", 3)
    plain = slow("llama", "kava")
    found = inspect_question(plain.thinker, EXAMPLE.question, EXAMPLE.steps, "7", max_new_tokens=2)
    shown = [line for line in lines(found) if line.startswith("layer  ")]
    assert len(shown) == LAYERS
    for line, (one, other) in zip(shown, found.kept.columns, strict=True):
        both = set(one) & set(other)  # most of two heads is both
        words = [text for i, (text, _) in enumerate(found.kept.tokens) if i not in both]
        assert "".join(re.findall(r"\[(.*?)\]", line)) == "".join(words)


@pytest.fixture(scope="module")
def quick():
    return Reasoner.from_pretrained(QUICK)


@pytest.fixture
def inspect(monkeypatch, tmp_path, quick):
    """The command, in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "open_reasoner", lambda run, backbone, **named: quick)

    def call(question=None, run=str(QUICK), rows=None, output=None, as_json=None, **given):
        console = Console(file=io.StringIO(), soft_wrap=True)
        steps, answer = given.get("steps"), given.get("answer")
        rest = (rows or command.RowChoice(), output, as_json, None, 8, None, console)
        page = command.inspect(run, question, steps, answer, *rest)
        return page, console.file.getvalue()

    return call


QUESTION = "Monday brought Ann 4 pens. How many pens did Monday bring Ann?"


def test_a_page_and_the_numbers_are_written_and_replacing_them_is_said(inspect):
    page, said = inspect(QUESTION, as_json=Path("a/numbers.json"))
    assert page == Path("inspect.html") and "replaced" not in said  # a shipped checkpoint
    tree = json.loads(Path("a/numbers.json").read_text())
    assert tree["question"] == QUESTION and tree["trace"]["source"] == "written"
    _, said = inspect(QUESTION, as_json=Path("a/numbers.json"))
    assert "page: inspect.html (replaced" in said and "numbers.json (replaced" in said


def test_a_file_of_others_is_never_replaced(inspect, tmp_path):
    for name in ("mine.html", "inspect.html"):
        Path(name).write_text("<p>mine</p>")
    for name, arguments in (
        ("mine.html", {"output": Path("mine.html")}),
        ("inspect.html", {}),
        ("mine.html", {"output": Path("new.html"), "as_json": Path("mine.html")}),
    ):
        with refused("inspect.file-of-something-else", name):
            inspect(QUESTION, **arguments)
    with refused("inspect.is-a-folder", str(tmp_path)):
        inspect(QUESTION, output=tmp_path)
    assert Path("mine.html").read_text() == Path("inspect.html").read_text() == "<p>mine</p>"


def test_a_runs_pages_lie_in_it_by_question(inspect):
    run = Path("runs/mine")
    (run / "checkpoint").mkdir(parents=True)
    first, _ = inspect(QUESTION, run=str(run))
    again, _ = inspect(QUESTION, run=str(run / "checkpoint"))
    other, _ = inspect(QUESTION.replace("Ann?", "Bob?"), run=str(run))
    assert first == again != other and first.parent == run / "inspect"
    assert re.fullmatch(r"monday-brought-ann-4-pens-how-many-pens-[0-9a-f]{6}\.html", first.name)
    assert first.is_file() and other.is_file()
    assert re.fullmatch("[0-9a-f]{6}", command.slug("¿?"))


def test_rows_come_from_a_task_or_a_file(inspect):
    row = load_task("synthetic", limit=5).examples[4]
    _, said = inspect(rows=command.RowChoice("synthetic", None, row.id))
    assert said.startswith(row.question) and f"row {row.id}" in said
    mine = {"id": "a", "question": QUESTION, "steps": [], "answer": "4"}
    Path("rows.jsonl").write_text(json.dumps(mine) + "\n")
    _, said = inspect(rows=command.RowChoice(None, "rows.jsonl", "a"))
    assert said.startswith(QUESTION) and "not here: the teacher read no step" in said
    for asked, hints in (
        (command.RowChoice(None, "rows.jsonl", "b"), ["rows.jsonl", " a"]),
        (command.RowChoice("synthetic", None, "synthetic-test-10000"), ["'synthetic-test-100"]),
        (command.RowChoice("synthetic", None, "x"), [" synthetic-test-0 ", " synthetic-test-999"]),
    ):
        with refused("inspect.unknown-row", asked.id) as told:
            inspect(rows=asked)
        after = str(told.value).replace(f"'{asked.id}'", "")
        assert all(hint in after for hint in hints)


@pytest.mark.parametrize(
    "given, code, key",
    (
        ({}, "no-question", "question"),
        ({"rows": command.RowChoice("synthetic")}, "no-row", "--id"),
        ({"question": "q", "rows": command.RowChoice("synthetic", None, "a")},
         "question-and-row", None),
        ({"question": "q", "rows": command.RowChoice(None, None, "a")}, "question-and-row", None),
        ({"rows": command.RowChoice("synthetic", None, "a"), "steps": ["b"]}, "steps-of-a-row",
         "--steps"),
        ({"question": " "}, "empty-question", "question"),
    ),
)  # fmt: skip
def test_unclear_questions_are_refused(inspect, given, code, key):
    with refused(f"inspect.{code}", key):
        inspect(**given)
    assert not list(Path().iterdir())


def test_the_command_line_takes_all_steps_that_follow(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(command, "inspect", lambda *words: calls.append(words) or tmp_path / "a")
    words = ["inspect", "run", "q", "--steps", "<<1+1=2>>", "It is 3.", "--iterations", "2"]
    done = CliRunner().invoke(app, [*words, "-o", "page.html"])
    assert done.exit_code == 0, done.output
    run, question, steps, answer, rows, output, *_ = calls[0]
    assert (run, question, steps, answer) == ("run", "q", ["<<1+1=2>>", "It is 3."], None)
    assert rows == command.RowChoice() and output == Path("page.html")
