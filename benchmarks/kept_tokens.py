"""Which tokens each eviction keeps of a chain of thought in sentences.

    python benchmarks/kept_tokens.py

Nothing is trained: the committed backbone (checkpoints/quickstart/sentences) reads 200 generated
validation problems with their steps, and each eviction compresses its cache. Counted are, as means
over layers and heads: the share of the equations' tokens that is kept, the share of the steps'
results, the share of the kept tokens that belong to an equation, and how predictable the slots are:
in how many of the problems with as many steps a slot holds the part of the step that it holds most
often, averaged over slots. Writes results/quickstart/kept_tokens.json.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from compression import EVICTIONS, RECIPE, ROOT, Equations, register_oracle
from torch import Tensor

from kava.data.synthetic import generate
from kava.reasoning import batching
from kava.reasoning.methods import prefill_question, teacher_forward
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.system.environment import provenance
from kava.system.files import write_json

FILE = ROOT / "results" / "quickstart" / "kept_tokens.json"
LATER = ["kv.eviction.name=later_steps"]
SETTINGS = {
    **{name: changes for name, changes in EVICTIONS.items() if name not in ("none", "full")},
    "rkv, shared": [*EVICTIONS["rkv"], "kv.eviction.shared=mean"],
    "later_steps": LATER,
    "later_steps, shared": [*LATER, "kv.eviction.shared=max"],
    **{
        f"aligned, {width} for each step": [
            "method=aligned", *LATER, f"latent_readout.width={width}",
        ]
        for width in (1, 2, 5)
    },
    "aligned, the last 7 of each step": ["method=aligned", "latent_readout.width=7"],
}  # fmt: skip


def parts_of(batch: dict[str, Any], equals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which tokens belong to an equation or are its result, and each token's part.

    Returns:
        equation, result: [batch, steps], boolean.
        part: [batch, steps], equal for the same part of the same step: the n-th token of its
            equation or the n-th other token of its step.
    """
    equation = Equations.in_equation(batch["steps"])
    result = torch.isin(batch["steps"], equals).roll(1, 1)
    same = batch["step_of"][:, :, None] == batch["step_of"][:, None]
    before = same & (equation[:, :, None] == equation[:, None])
    index = before.tril(-1).sum(2)
    return equation, result, (batch["step_of"] * 2 + equation) * 1000 + index


def measure(changes: list[str], latents: int, count: int) -> dict[str, Any]:
    """Compress the caches of `count` problems and count what was kept."""
    width = [int(one.split("=")[1]) for one in changes if "width" in one]
    latents = 5 * width[0] if width else latents
    reasoner = Reasoner.build(load_resolved(RECIPE, [*changes, f"num_latents={latents}"]))
    examples = generate("validation", count, seed=3, form="sentences")
    batch = batching.collate(reasoner.encoder.rows(examples), reasoner.tokenizer.pad_token_id)
    kv = reasoner.method.kv
    with torch.no_grad():
        question = prefill_question(reasoner, batch)
        chosen = kv.choose(batch, teacher_forward(reasoner, question, batch, queries=kv.queries))
    equals = torch.tensor([reasoner.tokenizer.convert_tokens_to_ids("=")])
    equation, result, part = parts_of(batch, equals)
    steps = [len(example.steps) for example in examples]
    shares: dict[str, list[float]] = {"equations": [], "results": [], "of_equations": []}
    predictable = []
    for layer in chosen:
        for columns, filled in zip(layer.columns.unbind(1), layer.slot_mask.unbind(1), strict=True):
            # An unfilled slot has column 0, so that its mark must not undo another's.
            kept = columns.new_zeros(equation.shape).scatter_add(1, columns, filled.long()) > 0
            shares["equations"].append(float((kept & equation).sum() / equation.sum()))
            shares["results"].append(float((kept & result).sum() / result.sum()))
            shares["of_equations"].append(float((kept & equation).sum() / kept.sum()))
            held = part.gather(1, columns)
            for number in sorted(set(steps)):
                rows = [i for i, n in enumerate(steps) if n == number]
                for slot in range(latents):
                    found = Counter(held[i, slot].item() for i in rows if filled[i, slot])
                    if found.total() >= 10:
                        predictable.append(max(found.values()) / found.total())
    named = {name: round(mean(values), 3) for name, values in shares.items()}
    return {"num_latents": latents, **named, "predictable": round(mean(predictable), 3)}


def main() -> None:
    """Measure every setting, print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--latents", type=int, default=25)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("-o", "--output", type=Path, default=FILE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # for the random eviction
    register_oracle(ROOT / "checkpoints" / "quickstart" / "sentences")
    rows = []
    for name, changes in SETTINGS.items():
        rows.append({"eviction": name, **measure(changes, given.latents, given.problems)})
        print(rows[-1], flush=True)
    told = {"what": __doc__.partition("\n")[0], "n": given.problems, "rows": rows}
    write_json(Path(given.output), {**told, **provenance()})


if __name__ == "__main__":
    main()
