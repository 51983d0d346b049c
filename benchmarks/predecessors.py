"""Steps of the predecessors' code against ours, on the same rows, in turns.

    python benchmarks/predecessors.py            # writes results/bench/predecessors.json
    python benchmarks/predecessors.py --batch 2 --repeats 1 --output tried.json

PCCoT's and CODI's official code cannot be installed beside a current transformers. What they do in
a step is written here anew, as the order of calls to a plain model of transformers that their code
makes (github.com/whyNLP/PCCoT, github.com/zhenyi4/codi): PCCoT computes the question twice and all
logits; its `generate` runs the teacher too; CODI computes the question twice, all logits, and the
teacher twice. Counted at batch 16 as PyTorch's counter does (it passes over attention on CPUs), the
first needs the FLOPs that were counted on the official code itself, 84.5 GFLOP. CoT is one call
with labels, as plain fine-tuning makes it. All are given what ours are: AdamW fused, the same
shape, rows and precision. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from kava.backbones import cache
from kava.bench import flops
from kava.bench.generate import Generation
from kava.bench.shapes import Lengths
from kava.bench.timing import matrix_rate, ratio, spread, time_interleaved
from kava.bench.train import Training
from kava.reasoning.losses.hidden_state import hidden_state_loss
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.system.environment import provenance
from kava.system.files import write_json

FILE = Path(__file__).resolve().parents[1] / "results" / "bench" / "predecessors.json"
CPU = torch.device("cpu")
#: At most, of the official step's time (the project's own goals for its CPU code).
LIMITS = {"pccot": ("official pccot", 0.75), "codi": ("official codi", 0.60),
          "kava": ("official pccot", 0.85),
          "latent prefill": ("official prefill", 0.66)}  # fmt: skip


class Whole:
    """A micro-batch as one sequence per row, labels everywhere that the teacher has them."""

    def __init__(self, batch: dict[str, Tensor]):
        parts = ("question", "steps", "answer")
        self.ids = torch.cat([batch[part] for part in parts], dim=1)
        masks = [batch[f"{part}_mask"] for part in parts]
        self.mask = torch.cat(masks, dim=1).long()
        written = torch.cat((torch.zeros_like(masks[0]), *masks[1:]), dim=1)
        self.labels = self.ids.masked_fill(~written, -100)


def all_logits(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with logits at every position."""
    scores = model.lm_head(hidden).float()
    return F.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def plain_cot(thinker: Reasoner, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
    """One call of the model with labels."""
    whole, model = Whole(batch), thinker.lm
    return lambda: model(input_ids=whole.ids, attention_mask=whole.mask, labels=whole.labels).loss


class Student:
    """What both predecessors' students share."""

    def __init__(self, thinker: Reasoner, batch: dict[str, Tensor]):
        self.thinker, self.model, self.batch = thinker, thinker.lm, batch
        self.whole, self.prompt = Whole(batch), len(thinker.encoder.prompt)
        self.last_of_prompt = batch["question"].shape[1] + batch["steps"].shape[1] + self.prompt - 1

    def teacher(self) -> Any:
        return self.model.base_model(
            input_ids=self.whole.ids, attention_mask=self.whole.mask, output_hidden_states=True
        )

    def special(self, name: str, count: int = 1) -> Tensor:
        rows = len(self.batch["question"])
        return self.thinker.special(name).expand(rows, count, -1)

    def question(self, latents: int) -> Any:
        question, mask = self.batch["question"], self.batch["question_mask"].long()
        embeds = [self.thinker.embed(question), self.special("bot")]
        if latents:
            embeds.append(self.special("latent", latents))
        mask = F.pad(mask, (0, 1 + latents), value=1)
        embeds = torch.cat(embeds, dim=1)
        return self.model.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=True)

    def answer(self, past: Any) -> Any:
        embeds = torch.cat((self.special("eot"), self.thinker.embed(self.batch["answer"])), dim=1)
        return self.model.base_model(
            inputs_embeds=embeds, past_key_values=past, use_cache=True, output_hidden_states=True
        )

    def distilled(self, teacher: Any, answer: Any) -> Tensor:
        theirs = torch.stack([s[:, self.last_of_prompt] for s in teacher.hidden_states[1:]])
        ours = torch.stack([s[:, self.prompt] for s in answer.hidden_states[1:]])
        rows = torch.tensor(len(self.batch["question"]))
        return hidden_state_loss(ours, theirs, "smooth_l1", True, rows)

    def total(self, teacher: Any, answer: Any) -> Tensor:
        labels = self.batch["answer"].masked_fill(~self.batch["answer_mask"], -100)
        labels = F.pad(labels, (1, 0), value=-100)
        return (
            all_logits(self.model, teacher.last_hidden_state, self.whole.labels)
            + all_logits(self.model, answer.last_hidden_state, labels)
            + self.distilled(teacher, answer)
        )


def official_pccot(thinker: Reasoner, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
    """Teacher; question and latents; T iterations; answer."""
    student, recipe = Student(thinker, batch), thinker.recipe
    question = batch["question"].shape[1]

    def loss() -> Tensor:
        teacher = student.teacher()
        output = student.question(recipe.num_latents)
        latents = thinker.project(output.last_hidden_state[:, question:-1])
        prefix = cache.crop(output.past_key_values, question + 1)
        for _ in range(recipe.num_iterations):
            output = student.model.base_model(
                inputs_embeds=latents, past_key_values=cache.fork(prefix), use_cache=True
            )
            following = thinker.project(output.last_hidden_state)
            latents = torch.cat((latents[:, :1], following[:, :-1]), dim=1)
        return student.total(teacher, student.answer(output.past_key_values))

    return loss


def official_codi(thinker: Reasoner, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
    """Question; latents one by one; the teacher without gradient and with it; answer."""
    student = Student(thinker, batch)

    def loss() -> Tensor:
        output = student.question(0)
        for _ in range(thinker.recipe.num_latents):
            latent = thinker.project(output.last_hidden_state[:, -1:])
            output = student.model.base_model(
                inputs_embeds=latent, past_key_values=output.past_key_values, use_cache=True
            )
        with torch.no_grad():
            student.model.lm_head(student.teacher().last_hidden_state)
        return student.total(student.teacher(), student.answer(output.past_key_values))

    return loss


OFFICIAL = {"plain cot": ("cot", plain_cot), "official pccot": ("pccot", official_pccot),
            "official codi": ("codi", official_codi)}  # fmt: skip


@dataclasses.dataclass
class Official(Training):
    """A predecessor's step: its own loss, everything else as in ours."""

    make: Callable[..., Callable[[], Tensor]] | None = None

    def gradients(self) -> None:
        """Forward and backward of the whole batch at once."""
        (batch,) = self.micro_batches
        self.make(self.reasoner, batch)().backward()


def recipe_of(method: str, adapter: str, batch: int) -> Any:
    settings = [f"adapter={adapter}", f"train.batch_size={batch}"]
    return load_resolved(f"recipes/bench/{method}.yaml", settings)


def trainings(adapter: str, batch: int) -> dict[str, Training]:
    """Ours and theirs, each with a model of its own."""
    found = {
        method: Training.build(recipe_of(method, adapter, batch), "small", Lengths(), CPU)
        for method in ("cot", "pccot", "codi", "kava")
    }
    for name, (method, make) in OFFICIAL.items():
        one = Training.build(recipe_of(method, adapter, batch), "small", Lengths(), CPU)
        one.reasoner.lm.set_attn_implementation("sdpa")  # transformers' own, as theirs
        shared = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
        found[name] = Official(**shared, make=make)
    return found


def prefills(batch: int) -> dict[str, Callable[[], Any]]:
    """Up to the answer's first token: ours, and PCCoT's `generate`, which runs its whole step."""
    ours = Training.build(recipe_of("pccot", "full", batch), "small", Lengths(), CPU)
    theirs = Training.build(recipe_of("pccot", "full", batch), "small", Lengths(), CPU)
    for one in (ours, theirs):
        one.reasoner.eval().requires_grad_(False)
    theirs.reasoner.lm.set_attn_implementation("sdpa")
    (batch_of_ours,), (batch_of_theirs,) = ours.micro_batches, theirs.micro_batches
    question, mask = batch_of_ours["question"], batch_of_ours["question_mask"]
    answers = Generation(ours.reasoner, question, mask, new_tokens=1)
    # Its collator gives no answer to `generate`: what follows the latents is <eot> and the prompt.
    prompt = len(ours.reasoner.encoder.prompt)
    for name in ("answer", "answer_mask"):
        batch_of_theirs[name] = batch_of_theirs[name][:, :prompt]
    loss = official_pccot(theirs.reasoner, batch_of_theirs)

    def official() -> None:
        with torch.no_grad():
            loss()

    return {"latent prefill": answers.generate, "official prefill": official}


def compare(
    pieces: dict[str, Callable[[], Any]], repeats: int, console: Console
) -> dict[str, list[float]]:
    """Seconds of each, and a line of progress."""
    with console.status("warming up") as status:
        return time_interleaved(
            pieces, repeats, 2, CPU, lambda done: status.update(f"round {done} of {repeats + 2}")
        )


def rows_of(seconds: dict[str, list[float]], counts: dict[str, int], rate: float) -> dict:
    """Times, FLOPs, and each of ours over what it is measured against."""
    rows = {}
    for name, times in seconds.items():
        row = {
            "ms": spread(times),
            "flops": counts[name],
            "share_of_matrix_rate": round(counts[name] / rate / sorted(times)[len(times) // 2], 4),
        }
        if "plain cot" in seconds:
            row["of_plain_cot"] = ratio(times, seconds["plain cot"])
        if name in LIMITS:
            other, limit = LIMITS[name]
            found = ratio(times, seconds[other])
            row |= {"against": other, "time_ratio": found, "limit": limit}
            row |= {"flops_ratio": round(counts[name] / counts[other], 4)}
            row["met"] = found["median"] <= limit
        rows[name] = row
    return rows


def tell(title: str, rows: dict[str, Any], console: Console) -> None:
    console.print(title, style="bold")
    for name, row in rows.items():
        line = f"  {name:<16} {row['ms']['median']:8.1f} ms  {row['flops'] / 1e9:7.2f} GFLOP"
        if "of_plain_cot" in row:
            line += f"  {row['of_plain_cot']['median']:.2f} of plain CoT"
        if "met" in row:
            line += f"  {row['time_ratio']['median']:.3f} of {row['against']}"
            line += f" (limit {row['limit']}, FLOPs {row['flops_ratio']:.3f})"
        console.print(line, highlight=False)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=FILE)
    given = parser.parse_args()
    console, rate = Console(soft_wrap=True), matrix_rate(CPU, torch.float32)
    results: dict[str, Any] = {}
    for adapter in ("full", "lora"):
        ready = trainings(adapter, given.batch)
        counts = {name: flops.count_flops(one.gradients) for name, one in ready.items()}
        for one in ready.values():
            one.optimiser.zero_grad()
        steps = {name: one.step for name, one in ready.items()}
        results[f"step, {adapter}"] = rows_of(compare(steps, given.repeats, console), counts, rate)
        tell(f"one step, {adapter}, batch {given.batch}", results[f"step, {adapter}"], console)
    ready = prefills(given.batch)
    counts = {name: flops.count_flops(piece) for name, piece in ready.items()}
    results["prefill"] = rows_of(compare(ready, given.repeats, console), counts, rate)
    tell(f"question to first token, batch {given.batch}", results["prefill"], console)
    sixteen = {
        name: flops.count_flops(one.gradients, attention=False)
        for name, one in trainings("full", 16).items()
        if name in ("pccot", "official pccot")
    }
    told = {
        "what": "steps of the predecessors' code, its order of calls written anew, and of ours",
        "lengths": dataclasses.asdict(Lengths()),
        "shape": "small",
        "batch": given.batch,
        "repeats": given.repeats,
        "matrix_flops_per_second": round(rate),
        "flops_at_batch_16_without_attention": sixteen,
        "results": results,
        **provenance(),
    }
    write_json(given.output, told)
    console.print(f"written {given.output}", highlight=False)


if __name__ == "__main__":
    main()
