"""The slow way, written from the equations of the specification and from nothing else.

One row at a time, no padding, no cache that is continued, no shared prefix: every quantity comes
from one plain call of the Hugging Face model over the whole sequence. Attention is computed by a
textbook implementation that stores its logits. Compression is loops over Python numbers.
"""

from __future__ import annotations

import math
import statistics
import sys
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import eager_mask

from kava.reasoning.reasoner import Reasoner

LOGITS: dict[int, Tensor] = {}
#: Methods whose equations are written out below.
METHODS = (
    "cot", "no_cot", "icot", "coconut", "codi", "pccot", "kava", "lotus", "mux", "simcot",
    "aligned",
)  # fmt: skip


def needs_oracle(method: str) -> None:
    """Skip a test that compares with this module, for a method that is not in it."""
    if method not in METHODS:
        pytest.skip(f"{method} has no slow oracle in tests/reference.py")


def _textbook(module, query, key, value, attention_mask, scaling=None, softcap=None, **_):
    """softmax(q k^T * scaling + mask) v; logits by layer are left in LOGITS, [B, heads, S, S].

    Logits are capped where the model says so, and -inf where its own mask (causal, or a sliding
    window) hides a key.
    """
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scaling = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    logits = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(attention_mask < 0, -math.inf)
    LOGITS[module.layer_idx] = logits.detach()
    weights = logits.softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("textbook", _textbook)
AttentionMaskInterface.register("textbook", eager_mask)


@dataclass
class Run:
    """One plain forward call: states [S, d] per layer, keys and values [H, S, D], logits.

    `unturned` are the keys before the rotary embedding.
    """

    embeddings: Tensor
    layers: list[Tensor]
    keys: list[Tensor]
    unturned: list[Tensor]
    values: list[Tensor]
    scores: Tensor
    attention: list[Tensor]

    @property
    def last(self) -> Tensor:
        return self.layers[-1]


def run(reasoner: Reasoner, embeds: Tensor) -> Run:
    """The whole model over the input embeddings [S, d] of one sequence."""
    unturned: list[Tensor] = []
    with _keys_as_they_enter_the_rotation(reasoner.lm, unturned):
        # A cache of its own would drop what is outside of a sliding window.
        out = reasoner.lm(
            inputs_embeds=embeds[None], past_key_values=DynamicCache(), output_hidden_states=True
        )
    keys = [layer.keys[0] for layer in out.past_key_values.layers]
    return Run(
        embeddings=out.hidden_states[0][0],
        layers=[h[0] for h in out.hidden_states[1:]],
        keys=keys,
        unturned=unturned or keys,
        values=[layer.values[0] for layer in out.past_key_values.layers],
        scores=out.logits[0],
        attention=[LOGITS[i][0] for i in sorted(LOGITS)],
    )


@contextmanager
def _keys_as_they_enter_the_rotation(model, seen: list[Tensor]):
    """[H, S, D] of each layer, from the call that rotates them in the model's own module."""
    module = sys.modules[type(model).__module__]
    honest = getattr(module, "apply_rotary_pos_emb", None)  # none in GPT-2

    def spy(query, key, *args, **kwargs):
        seen.append(key[0])
        return honest(query, key, *args, **kwargs)

    if honest:
        module.apply_rotary_pos_emb = spy
    try:
        yield
    finally:
        if honest:
            module.apply_rotary_pos_emb = honest


def to_textbook(reasoner: Reasoner) -> Reasoner:
    """The same reasoner with textbook attention (changed in place: pass a copy)."""
    LOGITS.clear()
    reasoner.lm.set_attn_implementation("textbook")
    return reasoner


def token_embeds(reasoner: Reasoner, ids: list[int]) -> Tensor:
    """[n, d]."""
    return reasoner.lm.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))


def jacobi_inputs(reasoner: Reasoner, question: Tensor, latents: int, passes: int) -> list[Tensor]:
    """X^0 .. X^T, [M, d] each: X^t_1 = P(h(<bot>)), X^t_{i+1} = P(h^{t-1}_i).

    With residual updates, these are added to X^{t-1}.
    """
    bot, blank = reasoner.special_tokens["bot"][None], reasoner.special_tokens["latent"][None]
    trajectory = [blank.repeat(latents, 1)]
    for _ in range(passes):
        seen = run(reasoner, torch.cat((question, bot, trajectory[-1]))).last
        # state of <bot> and of latents 1 .. M-1 become latents 1 .. M
        before = seen[len(question) : len(question) + latents]
        update = reasoner.projection(before)
        adds = reasoner.recipe.latent_update == "residual"
        trajectory.append(trajectory[-1] + update if adds else update)
    return trajectory


def sequential_inputs(reasoner: Reasoner, question: Tensor, latents: int) -> Tensor:
    """z_1 = P(h(<bot>)), z_{i+1} = P(h(z_i)), [M, d]."""
    sequence = torch.cat((question, reasoner.special_tokens["bot"][None]))
    for _ in range(latents):
        state = run(reasoner, sequence).last[-1:]
        sequence = torch.cat((sequence, reasoner.projection(state)))
    return sequence[len(question) + 1 :]


def looped_inputs(reasoner: Reasoner, question: Tensor, latents: int, loops: int) -> list[Tensor]:
    """E, then E + P(h^{t-1}) for t = 1 .. R, [M, d] each."""
    bot = reasoner.special_tokens["bot"][None]
    blank = reasoner.special_tokens["latent"][None].repeat(latents, 1)
    trajectory = [blank]
    for _ in range(loops):
        states = run(reasoner, torch.cat((question, bot, trajectory[-1]))).last
        trajectory.append(blank + reasoner.projection(states[len(question) + 1 :]))
    return trajectory


def all_passes(reasoner: Reasoner, question: Tensor, latents: int | None = None) -> list[Tensor]:
    """Inputs of the latents in every pass, by the recipe's method at the end of its stages.

    `latents` is their number if it is not that of the recipe.
    """
    recipe, method = reasoner.recipe, reasoner.recipe.method
    if method in ("codi", "coconut", "mux", "simcot"):
        return [sequential_inputs(reasoner, question, recipe.num_latents)]
    if method == "aligned" and reasoner.recipe.method_options.get("window", 3):
        return windowed_inputs(reasoner, question, latents or reasoner.recipe.num_latents)
    think = looped_inputs if method == "lotus" else jacobi_inputs
    return think(reasoner, question, recipe.num_latents, recipe.num_iterations)


def windowed(recipe) -> list[range]:
    """The passes in which each block of latents is computed."""
    width, T = recipe.latent_readout.width or recipe.num_latents, recipe.num_iterations
    blocks, window = recipe.num_latents // width, recipe.method_options.get("window", 3)
    if window is None or window > T:
        return [range(T + 1)] * blocks
    if blocks + window <= T + 2:  # block b begins in pass b
        return [range(b, b + T - blocks + 2) for b in range(blocks)]
    begin = [b * (T + 1 - window) // (blocks - 1) for b in range(blocks)]
    return [range(first, first + window) for first in begin]


def windowed_inputs(reasoner: Reasoner, question: Tensor, M: int) -> list[Tensor]:
    """Inputs of all latents in each pass; a block's change only while it is computed."""
    recipe, q, active = reasoner.recipe, len(question), windowed(reasoner.recipe)
    width, bot = recipe.num_latents // len(active), reasoner.special_tokens["bot"][None]
    trajectory = [reasoner.special_tokens["latent"][None].repeat(M, 1)]
    for t in range(recipe.num_iterations):
        inputs, now = trajectory[-1], []
        before = run(reasoner, torch.cat((question, bot, inputs))).last[q : q + M]
        update = reasoner.projection(before)
        if recipe.latent_update == "residual":
            update = inputs + update
        for i in range(M):
            block, at = divmod(i, width)
            # The first latent of a block follows a state of the block before it.
            begun = t >= active[max(block - 1, 0) if at == 0 else block][0]
            now.append(update[i] if begun and t < active[block][-1] else inputs[i])
        trajectory.append(torch.stack(now))
    return trajectory


def student_embeds(reasoner: Reasoner, question: Tensor, latents: Tensor, after: Tensor) -> Tensor:
    """Q <bot> z_1 .. z_M <eot> and what follows."""
    bot, eot = reasoner.special_tokens["bot"][None], reasoner.special_tokens["eot"][None]
    return torch.cat((question, bot, latents, eot, after))


# -- compression ---------------------------------------------------------------------------------


def softmax(numbers: list[float]) -> list[float]:
    """Over a Python list."""
    top = max(numbers)
    powers = [math.exp(n - top) for n in numbers]
    return [p / sum(powers) for p in powers]


def importance(queries: list[list[list[float]]], keys: list[list[float]], scale: float) -> list:
    """I of one key/value head. queries[g][a] and keys[c] are vectors."""
    mean = [0.0] * len(keys)
    answers = len(queries[0])
    for a in range(answers):
        logits = []
        for key in keys:
            per_head = [
                scale * sum(x * y for x, y in zip(head[a], key, strict=True)) for head in queries
            ]
            logits.append(max(per_head))
        for c, weight in enumerate(softmax(logits)):
            mean[c] += weight / answers
    return mean


def largest(queries: list[list[list[float]]], keys: list[list[float]], scale: float) -> list:
    """The largest attention of an answer token, as `importance` has the mean."""
    each = [
        importance([[head[a]] for head in queries], keys, scale) for a in range(len(queries[0]))
    ]
    return [max(column) for column in zip(*each, strict=True)]


def redundancy(keys: list[list[float]]) -> list[float]:
    """R of one key/value head: softmax of minus the mean cosine to the others."""

    def norm(v):
        return math.sqrt(sum(x * x for x in v))

    logits = []
    for i, k in enumerate(keys):
        total = 0.0
        for j, other in enumerate(keys):
            if i != j:
                total += sum(x * y for x, y in zip(k, other, strict=True)) / (norm(k) * norm(other))
        logits.append(-total / len(keys))
    return softmax(logits)


def cosine(one: list[float], other: list[float]) -> float:
    """Return the cosine similarity of two vectors."""
    product = sum(x * y for x, y in zip(one, other, strict=True))
    lengths = math.sqrt(sum(x * x for x in one) * sum(y * y for y in other))
    return product / lengths if lengths else 0.0  # a pad's embedding may be zero


def repetition(keys: list, threshold: float, retain: str = "last", ratio: float = 0.2) -> list:
    """R of rkv_decoding: softmax over j of the mean similarity to j, but for those that spare j."""
    n = len(keys)
    total, most = [0.0] * n, max(1, int(ratio * n)) if retain.endswith("percent") else 1
    for i in range(n):
        to = {j: cosine(keys[i], keys[j]) for j in range(n) if j != i}
        near = [j for j in to if to[j] > threshold]
        spared = near[-most:] if retain.startswith("last") else near[:most]
        for j in to:
            if j not in spared:
                total[j] += to[j] / n
    return softmax(total)


def pooled(numbers: list[float], kernel: int) -> list[float]:
    """The largest of each number and its neighbours."""
    half = kernel // 2
    return [max(numbers[max(0, c - half) : c + half + 1]) for c in range(len(numbers))]


def scores(name: str, lam: float, queries: list, keys: list, scale: float) -> list[float]:
    """S of one head over its real tokens, for every eviction that is not random."""
    if name == "crop_right":
        return [-float(c) for c in range(len(keys))]
    if name == "crop_left":
        return [float(c) for c in range(len(keys))]
    if name == "full":
        return [0.0] * len(keys)
    if name == "rkv_decoding":
        pairs = zip(pooled(importance(queries, keys, scale), 7), repetition(keys, 0.5), strict=True)
        return [lam * i - (1 - lam) * r for i, r in pairs]
    if name == "later_steps":
        return largest(queries, keys, scale)
    lam = {"cosine": 0.0, "attention": 1.0, "rkv": lam}[name]
    pairs = zip(importance(queries, keys, scale), redundancy(keys), strict=True)
    return [lam * i + (1 - lam) * r for i, r in pairs]


def spans(length: int, budget: int) -> list[list[int]]:
    """The tokens 0 .. length - 1 in at most `budget` spans of nearly equal length, in order."""
    budget = min(length, budget)
    return [[i for i in range(length) if i * budget // length == j] for j in range(budget)]


def best(numbers: list[float], budget: int) -> list[int]:
    """The indices of the `budget` highest, in reading order."""
    order = sorted(range(len(numbers)), key=lambda c: -numbers[c])
    return sorted(order[:budget])


# -- losses --------------------------------------------------------------------------------------


def elementwise(kind: str, student: Tensor, teacher: Tensor) -> Tensor:
    """l1, smooth_l1 (beta 1) or mse, by their definitions."""
    gap = (student - teacher).abs()
    if kind == "smooth_l1":
        return torch.where(gap < 1, 0.5 * gap**2, gap - 0.5)
    return gap if kind == "l1" else gap**2


def spread(tensors: list[Tensor]) -> Tensor:
    """One standard deviation over every number in the list."""
    return torch.cat([t.flatten() for t in tensors]).std()


def kv_term(
    student: list, teacher: list, kind: str, layerwise: bool, reduction: str = "mean"
) -> Tensor:
    """student[row][layer] and teacher[row][layer] are [H, filled, D]; only filled slots."""
    rows, layers = range(len(teacher)), range(len(teacher[0]))
    errors, of_row = [], {r: [] for r in rows}
    for layer in layers:
        chosen = [layer] if layerwise else list(layers)
        std = spread([teacher[r][j] for r in rows for j in chosen])
        for r in rows:
            errors.append((elementwise(kind, student[r][layer], teacher[r][layer]) / std).flatten())
            of_row[r].append(errors[-1])
    if reduction == "row":
        means = [torch.cat(of_row[r]).mean() for r in rows if of_row[r][0].numel()]
        return torch.stack(means).mean()
    if reduction == "sum":
        return torch.cat(errors).sum() / sum(teacher[r][0].shape[1] for r in rows)
    return torch.cat(errors).mean()


def codi_term(student: list, teacher: list, kind: str, layerwise: bool) -> Tensor:
    """student[row][layer] and teacher[row][layer] are [d]."""
    expanded = [[[s[None, None] for s in row] for row in side] for side in (student, teacher)]
    return kv_term(*expanded, kind, layerwise)


def cross_entropy(rows: list[tuple[Tensor, list[int]]]) -> Tensor:
    """Mean over all label tokens; rows of (scores [n, V], ids)."""
    return F.cross_entropy(
        torch.cat([s for s, _ in rows]), torch.tensor([i for _, ids in rows for i in ids])
    )


# -- a whole training step -----------------------------------------------------------------------


def step(
    reasoner: Reasoner, rows: list, stage: int | None = None, spans: list | None = None
) -> dict[str, Tensor]:
    """Loss and terms of the recipe's method over encoded rows.

    `stage`: tokens removed (icot), stage (coconut) or blocks (lotus); None is the end.
    `spans[row][latent]`: the tokens that a latent stands for (mux), since they are drawn.
    """
    written_out = {
        "cot": _cot, "no_cot": _icot, "icot": _icot, "coconut": _coconut, "lotus": _lotus,
    }.get(reasoner.recipe.method, _distilled)  # fmt: skip
    terms = written_out(reasoner, rows, stage)
    seen = terms.pop("seen", None)
    if spans is not None:
        terms["multiplex"] = _multiplex(reasoner, rows, seen, spans)
        terms["loss"] = terms["loss"] + reasoner.recipe.multiplex.weight * terms["multiplex"]
    return terms


def _multiplex(reasoner: Reasoner, rows: list, seen: list[Run], spans: list) -> Tensor:
    """Mean over all latents with a span of KL(q || softmax(W x / tau))."""
    settings, gaps = reasoner.recipe.multiplex, []
    for row, one, of_row in zip(rows, seen, spans, strict=True):
        for i, tokens in enumerate(of_row):
            q = torch.zeros(one.scores.shape[-1])
            for j, token in enumerate(tokens):
                q[token] += settings.decay**j
            q = q / sum(settings.decay**j for j in range(len(tokens)))
            at = len(row.question) + 1 + i - (settings.target == "slot")
            p = (one.scores[at] / settings.tau).softmax(-1)
            real = q > 0
            gaps.append((q[real] * (q[real] / p[real]).log()).sum())
    return torch.stack(gaps).mean() if gaps else torch.zeros(())


def _decoded(reasoner: Reasoner, rows: list, latents: list[Tensor]) -> Tensor:
    """Mean over latents of the mean CE of their steps, written after the latent by the decoder."""
    decoder = reasoner.training_modules["decoder"]
    decoder.set_attn_implementation("textbook")
    most, eos, found = reasoner.recipe.num_latents, reasoner.tokenizer.eos_token_id, {}
    for row, inputs in zip(rows, latents, strict=True):
        steps: dict[int, list[int]] = {}
        for token, number in zip(row.steps, row.step_of, strict=True):
            steps.setdefault(min(number, most - 1), []).append(token)
        for i, tokens in steps.items():
            embeds = torch.cat((inputs[i : i + 1], token_embeds(reasoner, tokens)))
            # A cache of its own would drop what is outside of a sliding window.
            out = decoder.base_model(inputs_embeds=embeds[None], past_key_values=DynamicCache())
            scores = reasoner.logits(out.last_hidden_state[0])
            found.setdefault(i, []).append((scores, [*tokens, eos]))
    return torch.stack([cross_entropy(one) for one in found.values()]).mean()


def _written(reasoner: Reasoner, row, steps: list[int]) -> tuple[Run, tuple]:
    """Q, steps and answer in one call; scores and labels of everything after the question."""
    q, n = len(row.question), len(steps) + len(row.answer)
    whole = run(reasoner, token_embeds(reasoner, row.question + steps + row.answer))
    return whole, (whole.scores[q - 1 : q + n - 1], steps + row.answer)


def _cot(reasoner: Reasoner, rows: list, stage: None) -> dict[str, Tensor]:
    ce = cross_entropy([_written(reasoner, row, row.steps)[1] for row in rows])
    return {"loss": ce, "teacher_ce": ce}


def _icot(reasoner: Reasoner, rows: list, stage: int | None) -> dict[str, Tensor]:
    def left(row):
        return [] if stage is None else row.steps[stage:]

    ce = cross_entropy([_written(reasoner, row, left(row))[1] for row in rows])
    return {"loss": ce, "student_ce": ce}


def _after_latents(reasoner: Reasoner, row, inputs: Tensor, left: list[int]) -> tuple[Run, tuple]:
    """Q <bot> latents <eot> left answer; scores and labels of everything after <eot>."""
    question = token_embeds(reasoner, row.question)
    after = token_embeds(reasoner, left + row.answer)
    seen = run(reasoner, student_embeds(reasoner, question, inputs, after))
    eot = len(row.question) + 1 + len(inputs)
    return seen, (seen.scores[eot : eot + len(after)], left + row.answer)


def _coconut(reasoner: Reasoner, rows: list, stage: int | None) -> dict[str, Tensor]:
    options, labels = reasoner.method.options, []
    if stage == 0:
        ce = cross_entropy([_written(reasoner, row, row.steps)[1] for row in rows])
        return {"loss": ce, "student_ce": ce}
    for row in rows:
        blocks = options.max_stage if stage is None else min(stage, options.max_stage)
        gone = 99 if stage is None or stage > options.max_stage else stage
        left = [t for t, number in zip(row.steps, row.step_of, strict=True) if number >= gone]
        question = token_embeds(reasoner, row.question)
        inputs = sequential_inputs(reasoner, question, blocks * options.latents_per_stage)
        labels.append(_after_latents(reasoner, row, inputs, left)[1])
    ce = cross_entropy(labels)
    return {"loss": ce, "student_ce": ce}


def _lotus(reasoner: Reasoner, rows: list, stage: int | None) -> dict[str, Tensor]:
    recipe, width = reasoner.recipe, reasoner.recipe.latent_readout.width
    blocks = recipe.num_latents // width
    now = blocks if stage is None else stage
    at_loop = [math.ceil(recipe.num_iterations * (i + 1) / blocks) for i in range(now)]
    loops = at_loop[-1] if now else 0
    during = reasoner.method.options.readout_after == "own_loop"
    before = recipe.latent_readout.target == "slot"
    student_ce, teacher_ce, readout, students, taught = [], [], [], [], []
    for row in rows:
        question = token_embeds(reasoner, row.question)
        numbered = list(zip(row.steps, row.step_of, strict=True))
        left = [token for token, number in numbered if number >= now]
        passes = looped_inputs(reasoner, question, now * width, loops)
        seen = [_after_latents(reasoner, row, inputs, left) for inputs in passes]
        student_ce.append(seen[-1][1])
        students.append([one for one, _ in seen])
        for number in range(now):
            tokens = [token for token, n in numbered if n == number][:width]
            at = len(row.question) + 1 + number * width - before
            read = seen[at_loop[number] if during else -1][0]
            readout.append((read.scores[at : at + len(tokens)], tokens))
        whole, labels = _written(reasoner, row, row.steps)
        teacher_ce.append(labels)
        taught.append((whole, len(row.question), len(row.steps), len(row.answer)))
    supervised = cross_entropy(readout) if readout else torch.zeros(())
    terms = {"student_ce": cross_entropy(student_ce), "readout": supervised}
    loss = terms["student_ce"] + recipe.latent_readout.weight * terms["readout"]
    if recipe.kv.weight:
        terms["teacher_ce"] = cross_entropy(teacher_ce)
        blocks_of = [
            [[i for i, n in enumerate(row.step_of) if n == b] for b in range(now)] for row in rows
        ]
        nothing = {"kv": torch.zeros(())}
        numbers = [row.step_of for row in rows]
        terms |= (
            _kv_terms(reasoner, taught, numbers, students, blocks_of, width) if now else nothing
        )
        loss = loss + recipe.teacher_ce_weight * terms["teacher_ce"]
        loss = loss + recipe.kv.weight * terms["kv"]
    return {"loss": loss, **terms, "seen": [one[-1] for one in students]}


def _distilled(reasoner: Reasoner, rows: list, stage: None) -> dict[str, Tensor]:
    recipe = reasoner.recipe
    teacher_ce, answer_ce, readout, taught = [], [], [], []
    student_colon, teacher_colon, students = [], [], []
    latents = []
    for row in rows:
        whole, labels = _written(reasoner, row, row.steps)
        teacher_ce.append(labels)
        q, c, a = len(row.question), len(row.steps), len(row.answer)
        taught.append((whole, q, c, a))
        M = latents_of(recipe, row)
        passes = all_passes(reasoner, token_embeds(reasoner, row.question), M)
        latents.append(passes[-1])
        seen = [_after_latents(reasoner, row, inputs, []) for inputs in passes]
        students.append([one for one, _ in seen])
        answer_ce.append(seen[-1][1])
        prompt = recipe.codi.position == "prompt"
        colon = (len(reasoner.encoder.prompt) if prompt else row.answer_start) - 1
        last, first = seen[-1][0], 0 if recipe.codi.include_embeddings else 1
        states = [last.embeddings, *last.layers], [whole.embeddings, *whole.layers]
        student_colon.append([h[q + 1 + M + 1 + colon] for h in states[0][first:]])
        teacher_colon.append([h[q + c + colon].detach() for h in states[1][first:]])
        tokens = row.steps[1:] if recipe.latent_readout.target == "next" else row.steps
        tokens, at = tokens[:M], q + 1 - (recipe.latent_readout.target == "slot")
        readout.append((last.scores[at : at + len(tokens)], tokens))

    terms = {"student_ce": cross_entropy(answer_ce), "teacher_ce": cross_entropy(teacher_ce)}
    loss = terms["student_ce"] + recipe.teacher_ce_weight * terms["teacher_ce"]
    if recipe.codi.weight:
        terms["codi"] = codi_term(
            student_colon, teacher_colon, recipe.codi.loss, recipe.codi.layerwise_std
        )
        loss = loss + recipe.codi.weight * terms["codi"]
    if recipe.method in ("kava", "aligned"):
        parts, widths = zip(*(_aligned_parts(reasoner, row) for row in rows), strict=True)
        numbers = [row.step_of for row in rows]
        if recipe.kv.weight:
            terms |= _kv_terms(reasoner, taught, numbers, students, parts, widths[0])
            loss = loss + recipe.kv.weight * (terms["kv"] + terms.get("kv_answer", 0))
        if recipe.method == "aligned":
            readout = [
                label
                for row, one, seen in zip(rows, taught, students, strict=True)
                for label in _kept_labels(reasoner, row, one, seen)
            ]
        if recipe.latent_readout.weight:
            terms["readout"] = cross_entropy(readout)
            loss = loss + recipe.latent_readout.weight * terms["readout"]
    if recipe.method == "simcot":
        terms["step_ce"] = _decoded(reasoner, rows, latents)
        loss = loss + reasoner.method.options.step_weight * terms["step_ce"]
    return {"loss": loss, **terms, "seen": [one[-1] for one in students]}


def latents_of(recipe, row) -> int:
    """The number of latents of an example."""
    if not recipe.method_options.get("stop"):
        return recipe.num_latents
    width = recipe.latent_readout.width
    return min(max([0, *row.step_of]) + 1, recipe.num_latents // width) * width


def _kept_labels(reasoner: Reasoner, row, taught: tuple, seen: list[Run]) -> list[tuple]:
    """In each pass, scores of the supervised latents and the tokens that they stand for."""
    whole, q, c, a = taught
    recipe = reasoner.recipe
    target, found = recipe.latent_readout.target, []
    parts, width = _aligned_parts(reasoner, row)
    columns = kept_columns(reasoner, whole, q, c, a, row.step_of, parts, width)
    assert all(head == columns[0][0] for layer in columns for head in layer)
    written = row.steps + row.answer
    tokens = [written[column - q + (target == "next")] for column in columns[0][0]]
    slots = [b * width + j for b, part in enumerate(parts) for j in range(min(len(part), width))]
    at = q + 1 - (target == "slot")
    each, active = recipe.method_options.get("readout_after") != "last_pass", windowed(recipe)
    for t, student in enumerate(seen):
        # Step b (0, 1, ...) needs b + 1 passes after pass 0.
        blocks = [
            b for b, when in enumerate(active) if t in when and (t == when[-1] or (each and t > b))
        ]
        now = [i for i, slot in enumerate(slots) if slot // width in blocks]
        found.append((student.scores[[at + slots[i] for i in now]], [tokens[i] for i in now]))
        if recipe.method_options.get("stop"):  # what follows each block but the last of all
            known = dict(zip(slots, tokens, strict=True))
            ends = [(b + 1) * width for b in blocks if (b + 1) * width < recipe.num_latents]
            ends = [end for end in ends if end <= latents_of(recipe, row)]
            follows = [known.get(end, reasoner.encoder.prompt[0]) for end in ends]
            found.append((student.scores[[at + end for end in ends]], follows))
    return found


def _aligned_parts(reasoner: Reasoner, row) -> tuple[list[list[int]], int]:
    """The trace columns of each block of latents, and the latents of a block."""
    recipe, c = reasoner.recipe, len(row.steps)
    if recipe.method == "kava" or recipe.latent_readout.width is None:
        return [list(range(c))], recipe.num_latents
    width = recipe.latent_readout.width
    blocks = range(recipe.num_latents // width)
    return [[i for i in range(c) if row.step_of[i] == b] for b in blocks], width


def _kv_terms(
    reasoner: Reasoner, taught: list, numbers: list, students: list, blocks: list, budget: int
) -> dict[str, Tensor]:
    """blocks[row] are lists of trace columns, each compressed to `budget` on its own.

    numbers[row] has the number of each trace column's step.
    """
    recipe = reasoner.recipe
    kept = [
        compressed(reasoner, *row, steps, parts, budget)
        for row, steps, parts in zip(taught, numbers, blocks, strict=True)
    ]
    slots = [
        [i * budget + j for i, part in enumerate(parts) for j in range(min(len(part), budget))]
        for parts in blocks
    ]
    if recipe.short_traces == "zeros":
        slots = [list(range(recipe.num_latents)) for _ in blocks]
    per_pass = []
    every = recipe.kv.supervise == "all"
    for t in range(len(students[0])) if every else [len(students[0]) - 1]:
        places = [[q + 1 + s for s in row] for (_, q, _, _), row in zip(taught, slots, strict=True)]
        seen = [student[t] for student in students]
        per_pass.append(
            _kv_distance(reasoner, seen, places, [k for k, _ in kept], [v for _, v in kept])
        )
    terms = {"kv": sum(per_pass) / len(per_pass)}
    if every:
        terms |= {f"kv_step_{t + 1}": value for t, value in enumerate(per_pass)}
    if recipe.kv.answer:
        M, compared = recipe.num_latents, compared_keys(reasoner)
        places = [[q + 1 + M + 1 + i for i in range(a)] for _, q, _, a in taught]
        theirs = []
        for part in (compared, "values"):
            theirs.append(
                [
                    [s[:, q + c : q + c + a].detach() for s in getattr(whole, part)]
                    for whole, q, c, a in taught
                ]
            )
        terms["kv_answer"] = _kv_distance(reasoner, [s[-1] for s in students], places, *theirs)
    return terms


def compared_keys(reasoner: Reasoner) -> str:
    return "unturned" if reasoner.recipe.kv.keys == "pre_rope" else "keys"


def _kv_distance(
    reasoner: Reasoner, seen: list[Run], places: list[list[int]], keys: list, values: list
) -> Tensor:
    """Half the term of the keys and half that of the values, of the student's columns `places`."""
    kv, parts = reasoner.recipe.kv, []
    for side, (part, target) in enumerate(((compared_keys(reasoner), keys), ("values", values))):
        ours = []
        for one, columns in zip(seen, places, strict=True):
            states = [s[:, columns] for s in getattr(one, part)]
            if kv.projection != "none":
                mapping = reasoner.method_modules["kv_projection"].layers
                states = [
                    mapping[i][side](s.transpose(0, 1).flatten(1)).unflatten(
                        1, (len(s), s.shape[2])
                    )
                    for i, s in enumerate(states)
                ]
                states = [s.transpose(0, 1) for s in states]
            ours.append(states)
        parts.append(kv_term(ours, target, kv.loss, kv.layerwise_std, kv.reduction))
    return (parts[0] + parts[1]) / 2


def kept_columns(
    reasoner: Reasoner,
    whole: Run,
    q: int,
    c: int,
    a: int,
    steps: list[int],
    parts: list,
    budget: int,
) -> list[list[list[int]]]:
    """The columns that each head of each layer keeps of one row, [layer][head]."""
    eviction, parts = reasoner.recipe.kv.eviction, [[q + i for i in part] for part in parts if part]
    numbers = []  # [layer][head][part]
    for layer, logits in enumerate(whole.attention):
        keys = whole.keys[layer].detach()
        group = logits.shape[0] // keys.shape[0]
        numbers.append([])
        for head in range(keys.shape[0]):
            heads = logits[head * group : (head + 1) * group]
            if eviction.name == "later_steps":
                most = later_steps(heads, q, c, a, steps)
                of_parts = [[most[column - q] for column in at] for at in parts]
            elif eviction.name == "crop_left":
                of_parts = parts
            else:
                pairs = [rkv_parts(heads, keys[head], q + c, a, at) for at in parts]
                lam = eviction.lam
                of_parts = [
                    [lam * m + (1 - lam) * r for m, r in zip(*pair, strict=True)] for pair in pairs
                ]
            numbers[-1].append(of_parts)
    if eviction.shared != "none":
        every = [of_parts for layer in numbers for of_parts in layer]
        of_all = max if eviction.shared == "max" else statistics.mean
        shared = [
            [of_all(column) for column in zip(*part, strict=True)]
            for part in zip(*every, strict=True)
        ]
        numbers = [[shared for _ in layer] for layer in numbers]
    return [
        [
            [at[i] for at, part in zip(parts, head, strict=True) for i in best(part, budget)]
            for head in layer
        ]
        for layer in numbers
    ]


def compressed(
    reasoner: Reasoner,
    whole: Run,
    q: int,
    c: int,
    a: int,
    steps: list[int],
    parts: list,
    budget: int,
) -> tuple[list, list]:
    """K~ and V~ of one row: [H, filled, D] per layer, zeros in the rest with short_traces zeros."""
    recipe, all_keys, all_values = reasoner.recipe, [], []
    chosen = kept_columns(reasoner, whole, q, c, a, steps, parts, budget)
    for layer, of_heads in enumerate(chosen):
        values = whole.values[layer].detach()
        compared = getattr(whole, compared_keys(reasoner))[layer].detach()
        kept: tuple[list, list] = ([], [])
        for head, columns in enumerate(of_heads):
            empty = recipe.num_latents - len(columns) if recipe.short_traces == "zeros" else 0
            for states, store in ((compared, kept[0]), (values, kept[1])):
                store.append(F.pad(states[head, columns], (0, 0, 0, empty)))
        all_keys.append(torch.stack(kept[0]))
        all_values.append(torch.stack(kept[1]))
    return all_keys, all_values


def later_steps(heads: Tensor, q: int, c: int, a: int, steps: list[int]) -> list[float]:
    """The largest attention to each of the trace's tokens from a later step or from the answer."""
    most = [0.0] * c
    for observer in range(c + a):
        logit = heads[:, q + observer, q : q + c].amax(0)
        if not logit.isfinite().any():
            continue
        for i, weight in enumerate(logit.softmax(-1).tolist()):
            if observer >= c or steps[observer] > steps[i]:
                most[i] = max(most[i], weight)
    return most


def rkv_parts(heads: Tensor, keys: Tensor, first: int, a: int, at: list) -> tuple[list, list]:
    """I and R of the columns `at` for one key/value head; logits [G, S, S], keys [S, D]."""
    mean = torch.zeros(len(at))
    for i in range(a):  # max over the group before the softmax, then the mean over A
        logit = heads[:, first + i, at].amax(0)
        if logit.isfinite().any():  # else all are outside of a sliding window
            mean += logit.softmax(-1) / a
    return mean.tolist(), redundancy(keys[at].tolist())


# -- generation ----------------------------------------------------------------------------------


def prefix(reasoner: Reasoner, question: list[int], prompt: list[int]) -> Tensor:
    """Input embeddings [S, d] of everything before the first generated token."""
    embeds, method = token_embeds(reasoner, question), reasoner.recipe.method
    if method == "cot":
        return embeds
    if method in ("no_cot", "icot"):
        return torch.cat((embeds, token_embeds(reasoner, prompt)))
    latents = all_passes(reasoner, embeds)[-1]
    fed = [] if method == "lotus" else prompt
    return student_embeds(reasoner, embeds, latents, token_embeds(reasoner, fed))


def generate(reasoner: Reasoner, embeds: Tensor, steps: int, eos: int) -> list[int]:
    """Greedy, the whole sequence again for each token; ends after EOS.

    With lotus, which decodes everything after <eot>, there is a first token that comes with the
    pass of <eot> and is not EOS, and `steps` more.
    """
    tokens: list[int] = []
    steps += reasoner.recipe.method == "lotus"
    while len(tokens) < steps and eos not in tokens:
        scores = run(reasoner, torch.cat((embeds, token_embeds(reasoner, tokens)))).scores[-1]
        if reasoner.recipe.method == "lotus" and not tokens:
            scores = scores.index_fill(0, torch.tensor(eos), -math.inf)
        tokens.append(int(scores.argmax()))
    return tokens
