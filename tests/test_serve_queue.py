"""A request for much takes its turn in the queue, and what is in a batch changes no answer."""

import math
import queue

import pytest
import tiny

pytest.importorskip("fastapi", reason="kava[serve] is not installed")
import httpx
from service import LIMITS, QUESTIONS, serving

from kava.serve.batcher import Batcher
from kava.serve.jobs import CANCELLED, LENGTH, STOP, Job, Piece, Sampling
from kava.serve.limits import Limits
from kava.serve.queue import Queue


@pytest.fixture(scope="module")
def reasoner():
    return tiny.reasoner("llama", "kava")


def jobs(count, emit=lambda piece: None, **options):
    return [Job([1, 40], emit, **options) for _ in range(count)]


def batches_until(waiting, wanted, size=8):
    """How many batches are taken, the one with this job included."""
    for count in range(1, 100):
        if wanted in waiting.take(size):
            return count
    raise AssertionError("it is never taken")


# -- shares --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("greedy", "own", "batches"), [(None, None, 1), (4, None, 2), (4, 4, 1)])
def test_one_question_does_not_wait_for_all_jobs_of_another_request(greedy, own, batches):
    waiting = Queue(256)
    assert waiting.add(jobs(256, num_iterations=greedy))
    (honest,) = jobs(1, num_iterations=own)
    assert waiting.add([honest]) and len(waiting) == 257
    assert batches_until(waiting, honest) == batches


@pytest.mark.parametrize("others", [1, 3, 20])
def test_requests_take_turns(others):
    """Each gets as much of a batch as the others, and who got nothing is first in the next one."""
    waiting = Queue(512)
    requests = [jobs(24) for _ in range(others)]
    assert all(waiting.add(one) for one in requests)
    taken = [set(waiting.take(8)) for _ in range(3)]
    assert all(len(batch) == 8 for batch in taken)
    counts = [sum(job in batch for job in one for batch in taken) for one in requests]
    assert max(counts) - min(counts) <= 1
    assert set(requests[0]) & taken[0] and len(waiting) == 24 * (others - 1)


def test_every_number_of_iterations_has_its_turn():
    waiting = Queue(256)
    for iterations in (None, 1, 2, 3):
        assert waiting.add(jobs(20, num_iterations=iterations))
    taken = [waiting.take(8) for _ in range(5)]
    assert [{job.num_iterations for job in batch} for batch in taken] == [
        {None}, {1}, {2}, {3}, {None},
    ]  # fmt: skip


def test_a_full_queue_takes_small_requests_up_to_their_share():
    waiting, sizes = Queue(64), []
    for size in [64, *range(64, 0, -1)] + [1] * 99:
        if waiting.add(jobs(size)):
            sizes.append(size)
    assert sizes[:3] == [64, 32, 21] and sizes[-1] == 1
    assert len(sizes) == 64 and len(waiting) == sum(sizes) <= 64 * (1 + math.log(64))


def test_who_has_left_gives_up_its_places_at_once():
    ends = []
    waiting, greedy = Queue(3), jobs(3, ends.append)
    assert waiting.add(greedy) and not waiting.add(jobs(2)) and ends == []
    for job in greedy:
        job.cancelled = True
    assert waiting.add(jobs(3)) and len(waiting) == 3
    assert [piece.reason for piece in ends] == [CANCELLED] * 3


def test_a_question_beside_256_samples_is_answered_after_a_few_batches(reasoner):
    ran, answered = [], queue.SimpleQueue()
    batcher = Batcher(reasoner, 8, 0.0, 256, observe=lambda size, _: ran.append(size))
    draws = [Sampling(1.0, seed=7).choice(k) for k in range(256)]
    greedy = jobs(256, max_new_tokens=4, num_iterations=4)
    for job, draw in zip(greedy, draws, strict=True):
        job.sampling = draw
    try:
        for _ in range(3):
            batcher.submit(greedy := [Job(**vars(job)) for job in greedy])
            before = len(ran)
            batcher.submit(jobs(1, lambda piece: answered.put((piece, len(ran))), max_new_tokens=4))
            piece, after = answered.get(timeout=60)
            assert piece.reason in (STOP, LENGTH) and after - before <= 3
            for job in greedy:
                job.cancelled = True
        assert max(ran) == 8  # with seeds too, they share batches
    finally:
        batcher.close()


# -- batches -------------------------------------------------------------------------------------


def test_ways_of_sampling_share_a_batch_and_change_nothing(reasoner):
    ways = [
        Sampling(), Sampling(1.5, seed=1), Sampling(1.5, seed=2), Sampling(0.7, 0.5, seed=1),
        Sampling(2.0, 0.9, seed=-5), Sampling(), Sampling(1.5, seed=1), Sampling(1.0),
    ]  # fmt: skip

    def answers(together):
        ran, found = [], [queue.SimpleQueue() for _ in ways]
        batcher = Batcher(reasoner, together, 60.0, 8, observe=lambda size, _: ran.append(size))
        encoded = reasoner.encoder.questions(QUESTIONS[:8])
        encoded[6] = encoded[1]
        asked = [
            Job(question, one.put, max_new_tokens=8, sampling=way)
            for question, way, one in zip(encoded, ways, found, strict=True)
        ]
        batcher.submit(asked)
        pieces = [one.get(timeout=60) for one in found]
        batcher.close()
        assert ran == [together] * (8 // together)
        return [piece.text for piece in pieces]

    whole, alone = answers(8), answers(1)
    assert whole[:7] == alone[:7] and whole[6] == whole[1] != whole[2]
    greedy = reasoner.answer(reasoner.think([QUESTIONS[0]]), 8)[0].text
    assert whole[0] == greedy


class Leaving(Job):
    """A job whose client leaves while the model thinks."""

    asked = 0

    def unwanted_reason(self):
        self.asked += 1
        return CANCELLED if self.asked > 3 else None


@pytest.mark.parametrize("stays", [False, True])
def test_thinking_ends_when_nobody_waits_for_it(reasoner, monkeypatch, stays):
    passes, extend = [], reasoner.extend

    def count(*given, **named):
        passes.append(1)
        return extend(*given, **named)

    monkeypatch.setattr(reasoner, "extend", count)
    found = [queue.SimpleQueue() for _ in range(2)]
    kinds = (Leaving, Job if stays else Leaving)
    asked = [
        kind([1, 40, 41], one.put, num_iterations=50, max_new_tokens=3)
        for kind, one in zip(kinds, found, strict=True)
    ]
    batcher = Batcher(reasoner, 2, 60.0)
    batcher.submit(asked)
    first, second = (one.get(timeout=60) for one in found)
    batcher.close()
    assert first.reason == CANCELLED
    assert len(passes) == 52 if stays else len(passes) < 7  # one is the question's
    assert second.reason in ((STOP, LENGTH) if stays else (CANCELLED,))
    assert isinstance(second, Piece) and (second.text != "") == stays


# -- iterations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "most"), [(None, 4), (0, 0)])
def test_a_request_may_ask_for_a_limited_number_of_iterations(reasoner, given, most):
    limits = Limits(LIMITS.question_tokens, LIMITS.new_tokens, given)
    with serving(reasoner, limits) as (url, _):
        body = {"model": "tiny", "prompt": QUESTIONS[0]}
        for asked, status in ((most, 200), (None, 200), (most + 1, 400), (10**5, 400)):
            answer = httpx.post(f"{url}/v1/completions", json={**body, "num_iterations": asked})
            assert answer.status_code == status
            if status == 400:
                assert answer.json()["error"]["param"] == "num_iterations"
        schemas = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]
        field = schemas["ChatRequest"]["properties"]["num_iterations"]
        assert field["anyOf"][0]["maximum"] == most


@pytest.mark.parametrize("most", (2, 50))
def test_auto_iterates_until_the_latents_no_longer_change_or_the_limit(reasoner, most):
    limited = reasoner.with_settings(max_iterations=min(most, reasoner.recipe.max_iterations))
    expected = limited.answer(limited.think(QUESTIONS, "auto"), LIMITS.new_tokens)
    with serving(reasoner, Limits(LIMITS.question_tokens, LIMITS.new_tokens, most)) as (url, _):
        asked = {"model": "tiny", "prompt": QUESTIONS, "num_iterations": "auto"}
        answer = httpx.post(f"{url}/v1/completions", json=asked).json()
    assert [one["text"] for one in answer["choices"]] == [one.text for one in expected]
    assert answer["usage"]["forward_passes"] == sum(one.forward_passes for one in expected)


def test_auto_needs_an_iteration_and_no_other_text_is_a_number(reasoner):
    with serving(reasoner, Limits(LIMITS.question_tokens, LIMITS.new_tokens, 0)) as (url, _):
        for asked in ("auto", "Auto", "3", True, 1.5):
            body = {"model": "tiny", "prompt": QUESTIONS[0], "num_iterations": asked}
            answer = httpx.post(f"{url}/v1/completions", json=body)
            assert answer.status_code == 400, asked
            assert answer.json()["error"]["param"] == "num_iterations"


def test_the_command_passes_the_limit_on(kava, monkeypatch):
    found = []
    monkeypatch.setattr("kava.serve.command.serve", lambda *words: found.append(words[2]))
    assert kava("serve", "run", "--max-iterations", 3) == (0, "")
    assert kava("serve", "run") == (0, "")
    assert [limits.num_iterations for limits in found] == [3, None]
