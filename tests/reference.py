"""The slow way, written from the equations of the specification and from nothing else.

One row at a time, no padding, no cache that is continued, no shared prefix: every quantity comes
from one plain call of the Hugging Face model over the whole sequence. Attention is computed by a
textbook implementation that stores its logits. Compression is loops over Python numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from kava.model import Reasoner

LOGITS: dict[int, Tensor] = {}


def _textbook(module, query, key, value, attention_mask, scaling=None, **_):
    """softmax(q k^T / sqrt(D) + mask) v; logits by layer are left in LOGITS, [B, heads, S, S]."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    logits = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
    LOGITS[module.layer_idx] = logits.detach()
    weights = (logits + attention_mask).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("textbook", _textbook)
AttentionMaskInterface.register("textbook", eager_mask)


@dataclass
class Run:
    """One plain forward call: states [S, d] per layer, keys and values [H, S, D], logits.

    `unturned` are the keys before the rotary embedding.
    """

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
    linear = [m for name, m in reasoner.lm.named_modules() if name.endswith("k_proj")]
    flat: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda m, i, out: flat.append(out[0])) for m in linear]
    out = reasoner.lm(inputs_embeds=embeds[None], use_cache=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    keys = [layer.keys[0] for layer in out.past_key_values.layers]
    size = keys[0].shape[-1]
    return Run(
        layers=[h[0] for h in out.hidden_states[1:]],
        keys=keys,
        unturned=[k.unflatten(-1, (-1, size)).transpose(0, 1) for k in flat] or keys,
        values=[layer.values[0] for layer in out.past_key_values.layers],
        scores=out.logits[0],
        attention=[LOGITS[i][0] for i in sorted(LOGITS)],
    )


def to_textbook(reasoner: Reasoner) -> Reasoner:
    """The same reasoner with textbook attention (changed in place: pass a copy)."""
    LOGITS.clear()
    reasoner.lm.set_attn_implementation("textbook")
    return reasoner


def token_embeds(reasoner: Reasoner, ids: list[int]) -> Tensor:
    """[n, d]."""
    return reasoner.lm.get_input_embeddings().weight[torch.tensor(ids, dtype=torch.long)]


def jacobi_inputs(reasoner: Reasoner, question: Tensor, latents: int, passes: int) -> list[Tensor]:
    """X^0 .. X^T, [M, d] each: X^t_1 = P(h(<bot>)), X^t_{i+1} = P(h^{t-1}_i)."""
    bot, blank = reasoner.special_tokens["bot"][None], reasoner.special_tokens["latent"][None]
    trajectory = [blank.repeat(latents, 1)]
    for _ in range(passes):
        seen = run(reasoner, torch.cat((question, bot, trajectory[-1]))).last
        # state of <bot> and of latents 1 .. M-1 become latents 1 .. M
        before = seen[len(question) : len(question) + latents]
        trajectory.append(reasoner.projection(before))
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
    """Of two vectors."""
    product = sum(x * y for x, y in zip(one, other, strict=True))
    return product / math.sqrt(sum(x * x for x in one) * sum(y * y for y in other))


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
    if name == "full":
        return [0.0] * len(keys)
    if name == "rkv_decoding":
        pairs = zip(pooled(importance(queries, keys, scale), 7), repetition(keys, 0.5), strict=True)
        return [lam * i - (1 - lam) * r for i, r in pairs]
    lam = {"cosine": 0.0, "attention": 1.0, "rkv": lam}[name]
    pairs = zip(importance(queries, keys, scale), redundancy(keys), strict=True)
    return [lam * i + (1 - lam) * r for i, r in pairs]


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


def kv_term(student: list, teacher: list, kind: str, layerwise: bool) -> Tensor:
    """student[row][layer] and teacher[row][layer] are [H, filled, D]; only filled slots."""
    rows, layers = range(len(teacher)), range(len(teacher[0]))
    errors = []
    for layer in layers:
        chosen = [layer] if layerwise else list(layers)
        std = spread([teacher[r][j] for r in rows for j in chosen])
        for r in rows:
            errors.append((elementwise(kind, student[r][layer], teacher[r][layer]) / std).flatten())
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


def step(reasoner: Reasoner, rows: list) -> dict[str, Tensor]:
    """Loss and terms of the recipe's method over encoded rows."""
    recipe, question_of = reasoner.recipe, {}
    teacher_ce, answer_ce, taught = [], [], []
    for i, row in enumerate(rows):
        question_of[i] = token_embeds(reasoner, row.question)
        q, c, a = len(row.question), len(row.steps), len(row.answer)
        whole = run(reasoner, token_embeds(reasoner, row.question + row.steps + row.answer))
        teacher_ce.append((whole.scores[q - 1 : q + c + a - 1], row.steps + row.answer))
        taught.append((whole, q, c, a))
        if recipe.method == "no_cot":
            direct = run(reasoner, token_embeds(reasoner, row.question + row.answer))
            answer_ce.append((direct.scores[q - 1 : q + a - 1], row.answer))
    if recipe.method == "cot":
        ce = cross_entropy(teacher_ce)
        return {"loss": ce, "teacher_ce": ce}
    if recipe.method == "no_cot":
        ce = cross_entropy(answer_ce)
        return {"loss": ce, "student_ce": ce}

    colon = len(reasoner.encoder.prompt) - 1  # of the answer segment
    M, student_colon, teacher_colon, students = recipe.num_latents, [], [], []
    for i, row in enumerate(rows):
        question, answer = question_of[i], token_embeds(reasoner, row.answer)
        per_pass = [
            run(reasoner, student_embeds(reasoner, question, inputs, answer))
            for inputs in jacobi_inputs(reasoner, question, M, recipe.num_iterations)
        ]
        students.append(per_pass)
        whole, q, c, _ = taught[i]
        eot, end = q + 1 + M, q + 1 + M + 1 + len(row.answer)
        answer_ce.append((per_pass[-1].scores[eot : end - 1], row.answer))
        student_colon.append([h[eot + 1 + colon] for h in per_pass[-1].layers])
        teacher_colon.append([h[q + c + colon].detach() for h in whole.layers])

    terms = {"student_ce": cross_entropy(answer_ce), "teacher_ce": cross_entropy(teacher_ce)}
    loss = terms["student_ce"] + recipe.teacher_ce_weight * terms["teacher_ce"]
    if recipe.codi.weight:
        terms["codi"] = codi_term(
            student_colon, teacher_colon, recipe.codi.loss, recipe.codi.layerwise_std
        )
        loss = loss + recipe.codi.weight * terms["codi"]
    if recipe.method == "kava":
        terms |= _kv_terms(reasoner, taught, students)
        loss = loss + recipe.kv.weight * terms["kv"]
    return {"loss": loss, **terms}


def _kv_terms(reasoner: Reasoner, taught: list, students: list) -> dict[str, Tensor]:
    recipe = reasoner.recipe
    keys, values = zip(*(compressed(reasoner, *row) for row in taught), strict=True)
    passes = range(recipe.num_iterations + 1)
    per_pass = []
    for t in passes if recipe.kv.supervise == "all" else [recipe.num_iterations]:
        parts = []
        compared = "unturned" if recipe.kv.keys == "pre_rope" else "keys"
        for part, target in ((compared, keys), ("values", values)):
            ours = []
            for (_, q, _, _), student, row in zip(taught, students, target, strict=True):
                filled = row[0].shape[1]
                ours.append([s[:, q + 1 : q + 1 + filled] for s in getattr(student[t], part)])
            parts.append(kv_term(ours, list(target), recipe.kv.loss, recipe.kv.layerwise_std))
        per_pass.append((parts[0] + parts[1]) / 2)
    terms = {"kv": sum(per_pass) / len(per_pass)}
    if recipe.kv.supervise == "all":
        terms |= {f"kv_step_{t + 1}": value for t, value in enumerate(per_pass)}
    return terms


def compressed(reasoner: Reasoner, whole: Run, q: int, c: int, a: int) -> tuple[list, list]:
    """K~ and V~ of one row: [H, filled, D] per layer, zeros in the rest with short_traces zeros."""
    recipe, all_keys, all_values = reasoner.recipe, [], []
    for layer, logits in enumerate(whole.attention):
        keys, values = whole.keys[layer].detach(), whole.values[layer].detach()
        block = logits[:, q + c : q + c + a, q : q + c]  # rows A, columns C
        unturned = whole.unturned[layer].detach()
        compared = unturned if recipe.kv.keys == "pre_rope" else keys
        group, kept = block.shape[0] // keys.shape[0], ([], [])
        for head in range(keys.shape[0]):
            columns = []
            if c:
                mean = torch.zeros(c)
                for i in range(a):  # max over the group before the softmax, then the mean over A
                    mean += block[head * group : (head + 1) * group, i].amax(0).softmax(-1) / a
                other = redundancy(keys[head, q : q + c].tolist())
                lam = recipe.kv.eviction.lam
                score = [lam * float(m) + (1 - lam) * r for m, r in zip(mean, other, strict=True)]
                columns = [q + i for i in best(score, recipe.num_latents)]
            empty = recipe.num_latents - len(columns) if recipe.short_traces == "zeros" else 0
            for states, store in ((compared, kept[0]), (values, kept[1])):
                store.append(F.pad(states[head, columns], (0, 0, 0, empty)))
        all_keys.append(torch.stack(kept[0]))
        all_values.append(torch.stack(kept[1]))
    return all_keys, all_values


# -- generation ----------------------------------------------------------------------------------


def prefix(reasoner: Reasoner, question: list[int], prompt: list[int]) -> Tensor:
    """Input embeddings [S, d] of everything before the first generated token."""
    embeds, method = token_embeds(reasoner, question), reasoner.recipe.method
    if method == "cot":
        return embeds
    if method == "no_cot":
        return torch.cat((embeds, token_embeds(reasoner, prompt)))
    if method in ("pccot", "kava"):
        recipe = reasoner.recipe
        latents = jacobi_inputs(reasoner, embeds, recipe.num_latents, recipe.num_iterations)[-1]
        return student_embeds(reasoner, embeds, latents, token_embeds(reasoner, prompt))
    raise NotImplementedError(f"method '{method}': write down here what its answer follows")


def generate(reasoner: Reasoner, embeds: Tensor, steps: int, eos: int) -> list[int]:
    """Greedy, the whole sequence again for each token; ends after EOS."""
    tokens: list[int] = []
    while len(tokens) < steps and eos not in tokens:
        scores = run(reasoner, torch.cat((embeds, token_embeds(reasoner, tokens)))).scores
        tokens.append(int(scores[-1].argmax()))
    return tokens
