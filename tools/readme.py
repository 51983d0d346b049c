"""Fill the pages' tables from result files: `python -m tools.readme`, or some of the pages.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; nobody types a number. The pages are
those of `PAGES`, in the checkout that this is called in.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kava.errors import KavaError, unknown_name
from kava.evaluation.compare import compare
from kava.reasoning.methods import label_of
from kava.recipe import registry
from kava.report.ablation import MEANINGS, label
from kava.report.results import find
from kava.report.rows import TableRow
from kava.report.table import Table, results_table
from kava.report.terminal import HEADINGS, TEXT_COLUMNS, cells, quickstart_caption
from kava.system.files import write_whole
from kava.system.tables import markdown_table
from tools import scale

#: Rows of the ablation of latents that are shown.
SHOWN = (
    "as_they_are", "swapped", "shuffled", "noise", "mean", "zeroed", "removed", "iterations_0",
    "iterations_2", "iterations_3",
)  # fmt: skip


def quickstart(file: Path) -> str:
    """Every method of a sweep on the quickstart's problems, the best first."""
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return quickstart_markdown(sorted(rows, key=lambda row: -row["accuracy"]))


def quickstart_markdown(rows: Sequence[TableRow]) -> str:
    """The rows of the quickstart's table, with the meaning of ± below."""
    table = markdown_table(HEADINGS, list(map(cells, rows)), TEXT_COLUMNS)
    return f"{table}\n\n{quickstart_caption(rows)}\n"


#: Recipes of `recipes/quickstart/ablations` in the order of the table, and what each adds.
COMPONENTS = {
    "none": "PCCoT without any distillation",
    "codi": "+ L_CODI",
    "crop": "+ L_KV, the first 12 tokens",
    "crop20": "+ L_KV, the first 12 tokens, a2 20",
    "random": "+ L_KV, 12 random tokens",
    "lambda0": "+ L_KV, R-KV with lambda 0",
    "rkv": "+ L_KV, R-KV with lambda 0.1",
    "lambda1": "+ L_KV, R-KV with lambda 1",
    "rkv20": "+ L_KV, R-KV with lambda 0.1, a2 20",
    "post_rope": "+ L_KV, R-KV, keys compared after the rotary embedding",
    "all": "+ L_CODI and L_KV with R-KV",
    "readout": "+ L_KV with R-KV and the latent readout",
    "m6": "R-KV, M 6",
    "m24": "R-KV, M 24",
    "m35": "R-KV, M 35 (nothing is evicted)",
    "t0": "R-KV, T 0",
    "t1": "R-KV, T 1",
    "t2": "R-KV, T 2",
    "t8": "R-KV, T 8",
    "random_t": "R-KV, M 35, T drawn from 1 to 8 for each training step",
    "residual": "R-KV, M 35, `latent_update: residual`",
    "lotus": "LOTUS",
    "lotus_kv": "LOTUS + L_KV, a2 20",
    "aligned": "Aligned KaVa",
    "aligned_no_kv": "Aligned KaVa without L_KV",
    "aligned_stop": "Aligned KaVa with `stop`",
}


def components(folder: Path) -> str:
    """The ablations of the quickstart, in the order of `COMPONENTS`."""
    made = results_table(find([folder]), ["synthetic"])
    accuracies = {row[0]: row[1] for row in made.rows}
    names = {
        "lotus": "LOTUS",
        "aligned": "Aligned KaVa",
    }  # a plain method's row has the method's name
    rows = [(told, accuracies[names.get(name, name)]) for name, told in COMPONENTS.items()]
    return Table("components", made.caption, ("trained with", "accuracy (%)"), rows).markdown()


#: Runs of aligned KaVa and what they are compared with, question by question: the folder, what
#: the runs have in common, the two runs.
PAIRED = (
    ("quickstart", "2,000 steps", "aligned", "kava"),
    ("quickstart", "2,000 steps", "aligned", "lotus"),
    ("quickstart", "2,000 steps", "aligned_stop", "kava"),
    ("quickstart", "2,000 steps", "aligned_stop", "lotus"),
    ("quickstart/ablations", "500 steps", "aligned", "m35"),
    ("quickstart/ablations", "500 steps", "aligned", "lotus"),
    ("quickstart/ablations", "500 steps", "aligned", "aligned_no_kv"),
    ("quickstart/ablations", "500 steps", "aligned_stop", "m35"),
    ("quickstart/ablations", "500 steps", "aligned_stop", "lotus"),
    ("sentences", "sentences, 500 steps", "aligned", "kava_m35"),
    ("sentences", "sentences, 500 steps", "aligned", "lotus"),
    ("sentences", "sentences, 500 steps", "aligned_stop", "kava_m35"),
    ("sentences", "sentences, 500 steps", "aligned_stop", "lotus"),
)
#: What the table of `PAIRED` calls them.
CALLED = {
    "aligned": "Aligned KaVa",
    "aligned_stop": "Aligned KaVa with `stop`",
    "aligned_no_kv": "Aligned KaVa without L_KV",
    "kava": "KaVa",
    "kava_m35": "KaVa, M 35",
    "m35": "KaVa, M 35",
    "lotus": "LOTUS",
}
SEEDS = (42, 123, 456)


def paired(results: Path) -> str:
    """How far aligned KaVa is ahead of other runs with the same seed, on the same problems."""
    lines = []
    for folder, common, ours, other in PAIRED:
        runs = [[results / folder / f"{n}-seed{seed}" for n in (other, ours)] for seed in SEEDS]
        found = [compare(*pair, task="synthetic") for pair in runs]
        cells = [
            f"{one.difference:+.1f} ({one.low:+.1f} to {one.high:+.1f}), p "
            + (f"{one.p:.2g}" if one.p >= 1e-4 else "< 0.0001")
            for one in found
        ]
        lines.append((common, CALLED[ours], CALLED[other], *cells))
    headings = ("training", "method", "compared with", *(f"seed {seed}" for seed in SEEDS))
    told = (
        "Percentage points, with 95 % intervals of a bootstrap over n = 1,000 problems, and "
        "McNemar's exact test"
    )
    return f"{markdown_table(headings, lines, range(6))}\n\n{told}\n"


def small(folder: Path) -> str:
    """The small model from real rows: accuracies and counts; its times were not those of an idle
    machine."""
    made = results_table(find([folder]))
    kept = [
        i for i, name in enumerate(made.headings) if not name.startswith(("ms ", "tok", "peak"))
    ]
    rows = [tuple(row[i] for i in kept) for row in made.rows]
    return Table("small", made.caption, tuple(made.headings[i] for i in kept), rows).markdown()


#: Runs whose latents were changed, in folders of `results/quickstart/ablation`.
CHANGED = {"kava": "KaVa", "aligned_stop": "Aligned KaVa with `stop`"}


def latents(folder: Path) -> str:
    """What becomes of answers when latents are changed."""
    found: dict[str, dict[str, Any]] = {
        told: json.loads((folder / name / "ablation.json").read_text(encoding="utf-8"))
        for name, told in CHANGED.items()
    }
    by_name = {told: {row["name"]: row for row in one["rows"]} for told, one in found.items()}
    lines = []
    for name in SHOWN:
        cells = []
        for rows in by_name.values():
            if name not in rows:
                cells += ["-", "-"]
                continue
            row = rows[name]
            low, high = row["difference_interval"]
            gap = f"{row['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
            cells.append(f"{row['accuracy']:.1f} ± {row['accuracy_se']:.1f}")
            cells.append("" if name == "as_they_are" else gap)
        lines.append((MEANINGS.get(name, label(name)), *cells))
    headings = ["latents"]
    for told in found:
        headings += [f"{told} (%)", "difference, 95 % interval"]
    n = {row["n"] for rows in by_name.values() for row in rows.values()}
    counts, chance = (f"{count:,}" for count in sorted(n)), found["KaVa"]["chance"]
    end = (
        f"n = {' or '.join(counts)}; ± is one standard error; chance is "
        f"{chance['other_question']:.1f} %."
    )
    return f"{markdown_table(headings, lines)}\n\n{end}\n"


def shares(folder: Path) -> str:
    """Which slices of the latents' cache carry the answer."""
    lines = []
    for name, told in CHANGED.items():
        found = json.loads((folder / name / "ablation.json").read_text(encoding="utf-8"))
        for row in found["slices"]:
            numbers = (f"{row[share]:.2f}" for share in ("sufficiency", "selectivity", "necessity"))
            lines.append((told, label(row["name"]), *numbers))
    headings = ("method", "slice", "sufficiency", "selectivity", "necessity")
    return f"{markdown_table(headings, lines, range(2))}\n"


def kept_tokens(file: Path) -> str:
    """What each eviction keeps of a chain of thought in sentences."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    shares = ("equations", "results", "of_equations", "predictable")
    lines = [
        (
            row["eviction"].replace("_", " "),
            str(row["num_latents"]),
            *(f"{100 * row[share]:.1f}" for share in shares),
        )
        for row in found["rows"]
    ]
    headings = (
        "eviction", "tokens kept", "of the equations (%)", "of the results (%)",
        "in an equation (%)", "predictable (%)",
    )  # fmt: skip
    return f"{markdown_table(headings, lines)}\n\nn = {found['n']} problems\n"


def iterations(file: Path) -> str:
    """What iterations cost and bring: each model with its own T, others, and tolerances."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    lines = []
    for row in found["results"]:
        times = row["ms_per_question"]
        lines.append(
            (
                row["model"].replace("_", " "),
                str(row.get("num_latents", "-")),
                str(row.get("num_iterations", "-"))
                + (f" ({row['tolerance']:g})" if "tolerance" in row else ""),
                f"{row['accuracy']:.1f} ± {row['accuracy_se']:.1f}",
                f"{row['forward_passes']:.1f}",
                *(f"{times[size]['median']:.1f}" for size in ("1", "32", "256")),
            )
        )
    headings = (
        "model", "M", "T (tolerance)", "accuracy (%)", "passes", "ms alone", "ms, batches of 32",
        "ms, batches of 256",
    )  # fmt: skip
    count, rounds = found["results"][0]["n"], found["rounds"]
    told = f"n = {count:,}; ± is one standard error; times are medians of {rounds} rounds"
    return f"{markdown_table(headings, lines)}\n\n{told}\n"


def decoding(file: Path) -> str:
    """Chain of thought whose cache is compressed while it is written: a column for each budget."""
    models: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["results"]
    rows = [row for model in models.values() for row in model["rows"]]
    budgets = sorted({row["budget"] for row in rows if row["eviction"]})
    lines = []
    for name, model in models.items():
        (full,) = (row for row in model["rows"] if row["eviction"] is None)
        evictions = dict.fromkeys(row["eviction"] for row in model["rows"] if row["eviction"])
        for eviction in evictions:
            by_budget = {row["budget"]: row for row in model["rows"] if row["eviction"] == eviction}
            each = [full, *map(by_budget.get, budgets)]
            told = (
                f"{row['accuracy']:.1f} ({row['forward_passes']:.1f})" if row else "-"
                for row in each
            )
            lines.append((name.replace("_", " "), f"`{eviction}`", *told))
    largest = [max(row["peak_columns"] for row in rows if row.get("budget") == b) for b in budgets]
    headings = ("model", "eviction", "full cache", *(f"budget {budget}" for budget in budgets))
    counts = " or ".join(f"{count:,}" for count in sorted({row["n"] for row in rows}))
    error = max(row["accuracy_se"] for row in rows)
    caption = (
        f"Accuracy (%) and, in brackets, forward passes; n = {counts}, with a standard error of at "
        f"most {error:.1f}. The largest cache held {', '.join(map(str, largest))} tokens."
    )
    return f"{markdown_table(headings, lines, range(2))}\n\n{caption}\n"


def search(file: Path) -> str:
    """The same search for every method: its recipe's own values and the best trial."""
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        trials = [row for row in rows if row["method"] == method]
        (own,) = (row for row in trials if not row["changes"])
        best = max(trials, key=lambda row: row["accuracy"])
        changes = ", ".join(f"`{change}`" for change in best["changes"]) or "the recipe's own"
        name = label_of(method) if method in registry.names("methods") else method.replace("_", " ")
        found = (f"{row['accuracy']:.1f} ({row['forward_passes']:.1f})" for row in (own, best))
        lines.append((best["accuracy"], (name, str(len(trials)), *found, changes)))
    lines.sort(key=lambda line: -line[0])
    headings = ("method", "trials", "its recipe", "best trial", "values of the best trial")
    counts = " or ".join(f"{count:,}" for count in sorted({row["n"] for row in rows}))
    caption = (
        f"Accuracy (%) on n = {counts} generated validation problems after 500 steps, one seed; "
        f"standard errors are at most {max(row['accuracy_se'] for row in rows):.1f}. In brackets, "
        f"forward passes. {len(rows)} trainings, "
        f"{sum(row['processor_seconds'] for row in rows) / 3600:.1f} hours of one core."
    )
    return f"{markdown_table(headings, [line for _, line in lines], (0, 4))}\n\n{caption}\n"


#: The evictions of the study of compression in the order of its table.
EVICTIONS = {
    "none": "no L_KV",
    "rkv_0": "R-KV, lambda 0",
    "rkv": "R-KV, lambda 0.1",
    "rkv_1": "R-KV, lambda 1",
    "crop_right": "the first tokens",
    "random": "random tokens",
    "evenly_spaced": "every k-th token",
    "mean_pooling": "means of spans",
    "equations": "the equations' tokens (an oracle)",
    "full": "all tokens",
}


def compression(file: Path) -> str:
    """Accuracy by what L_KV compares with, and by the number of latents."""
    every: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    plain = {"split": "test", "set": [], "over_time": "constant"}
    rows = [row for row in every if plain.items() <= row.items()]
    sizes = sorted({row["num_latents"] for row in rows})
    lines = []
    for eviction, told in EVICTIONS.items():
        own = [row for row in rows if row["eviction"] == eviction]
        if not own:
            continue
        each = [[row for row in own if row["num_latents"] == size] for size in sizes]
        accuracies = [_over_seeds([row["accuracy"] for row in some], 1) for some in each]
        losses = [row["losses_at_the_end"].get("kv") for some in each for row in some]
        loss = "-" if None in losses else f"{sum(losses) / len(losses):.2f}"
        weights = sorted({row["weight"] for row in own} - {0})
        lines.append(
            (told, ", ".join(f"{weight:g}" for weight in weights) or "-", *accuracies, loss)
        )
    headings = ("compared with", "a2", *(f"M {size} (%)" for size in sizes), "L_KV at the end")
    seeds = len({row["seed"] for row in rows})
    trained = [row for row in every if row["split"] == "validation"]
    caption = (
        f"n = {rows[0]['n']:,} test problems; ± is standard deviation over {seeds} seeds; L_KV is "
        f"the mean over all M and seeds. {len(trained)} trainings, "
        f"{sum(row['processor_seconds'] for row in trained) / 3600:.1f} hours of one core."
    )
    return f"{markdown_table(headings, lines)}\n\n{caption}\n"


def _over_seeds(values: Sequence[float], digits: int) -> str:
    """A mean and a standard deviation, as far as there are values."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "-"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def beside_paper(file: Path) -> str:
    """A table of `kava table --paper` without the rows that have neither number."""
    lines = file.read_text(encoding="utf-8").splitlines()
    empty = "| not run | - | - | - |"
    kept = [line for line in lines if line and not line.endswith(empty)]
    rows = [line for line in kept if line.startswith("|")]
    left_out = sum(line.endswith(empty) for line in lines)
    return "\n".join(rows) + f"\n\n{left_out} rows without any number are omitted.\n"


def services(file: Path) -> str:
    """What serves a model: speed, time and memory, one row for each way and number of clients."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    parts = []
    for model in found["models"].values():
        lines = [
            (
                row["way"],
                str(row["clients"]),
                _with_spread(row["questions_per_second"], 1),
                _with_spread(row["seconds_to_last_token"], 3),
                _with_spread(row["processor_seconds_per_question"], 3),
                f"{row['memory_mb']:,}",
                f"{row['tokens']:.1f}",
            )
            for row in model["rows"]
        ]
        compared = sum(row["compared"] for row in model["rows"])
        same = sum(row["same"] for row in model["rows"])
        kind = "trained" if model["trained"] else "special embeddings not trained"
        head = (
            f"{model['backbone']}, {model['weights'] / 1e6:.1f} million weights, {kind}, "
            f"{model['num_latents']} latents, {model['num_iterations']} iterations:"
        )
        end = (
            f"Median (least to most) of {model['rounds']} rounds. {same:,} of {compared:,} answers "
            "that were compared are those of kava."
        )
        parts.append(f"{head}\n\n{markdown_table(_SERVICES, lines)}\n\n{end}\n")
    loads = [row["load"] for model in found["models"].values() for row in model["rows"]]
    least, most = min(load["least"] for load in loads), max(load["most"] for load in loads)
    machine = found["machine"]
    where = f"{machine['cores']} cores of an {machine['processor']}"
    parts.append(
        f"{where}, without other work; the services' own load was {least:.1f} to {most:.1f}.\n"
    )
    return "\n".join(parts)


_SERVICES = (
    "service", "clients", "questions per second", "seconds to the last token",
    "processor seconds per question", "memory (MB)", "tokens",
)  # fmt: skip


def _with_spread(value: dict[str, float], digits: int) -> str:
    """A median, with the least and the most in brackets."""
    numbers = (f"{value[name]:.{digits}f}" for name in ("median", "least", "most"))
    return "{} ({} to {})".format(*numbers)


#: How each table is made from the committed results below a root.
TABLES: dict[str, Callable[[Path], str]] = {
    "quickstart": lambda root: quickstart(root / "results/quickstart/summary.json"),
    "sentences": lambda root: quickstart(root / "results/sentences/summary.json"),
    "components": lambda root: components(root / "results/quickstart/ablations"),
    "latents": lambda root: latents(root / "results/quickstart/ablation"),
    "shares": lambda root: shares(root / "results/quickstart/ablation"),
    "kept_tokens": lambda root: kept_tokens(root / "results/quickstart/kept_tokens.json"),
    "iterations": lambda root: iterations(root / "results/bench/iterations.json"),
    "by_latents": lambda root: iterations(root / "results/bench/iterations_by_latents.json"),
    "decoding": lambda root: decoding(root / "results/bench/decoding.json"),
    "compression": lambda root: compression(root / "results/quickstart/compression.json"),
    "search": lambda root: search(root / "results/quickstart/search.json"),
    "paired": lambda root: paired(root / "results"),
    "small": lambda root: small(root / "results/gsm8k_small"),
    "paper_accuracy": lambda root: beside_paper(root / "results/paper/table1_accuracy.md"),
    "paper_passes": lambda root: beside_paper(root / "results/paper/table2_forward_passes.md"),
    "services": lambda root: services(root / "results/bench/vllm.json"),
    **scale.TABLES,
}

#: The tables of each page.
PAGES = {
    "README.md": ("quickstart",),
    "docs/results.md": (
        "quickstart", "search", "iterations", "by_latents", "components", "latents", "shares",
        "kept_tokens", "compression", "sentences", "paired", "small", "paper_accuracy",
        "paper_passes",
    ),
    "docs/compressing.md": ("decoding",),
    "docs/scale.md": tuple(scale.TABLES),
    "docs/serving.md": ("services",),
}  # fmt: skip


def filled(text: str, root: Path, page: str = "README.md") -> str:
    """A page of `PAGES` with every table put in anew.

    Raises:
        ValueError: a table has no place in the text.
    """
    for name in PAGES[page]:
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"no place for the table '{name}'")
        table = TABLES[name](root)
        text = place.sub(lambda m, table=table: f"{m[1]}\n{table}\n{m[2]}", text)
    return text


def main(files: Sequence[str]) -> None:
    """Fill these pages, or all of `PAGES`, and print their names.

    Raises:
        KavaError: a page that has no tables, or no checkout here.
    """
    here = Path.cwd()
    root = next((at for at in (here, *here.parents) if (at / "results").is_dir()), None)
    if root is None:
        raise KavaError(
            f"{here}: no folder results here or above; call it in a checkout of kava",
            code="tools.no-checkout",
            key=str(here),
        )
    pages = [Path(os.path.relpath(file, root)).as_posix() for file in files] or list(PAGES)
    if others := [page for page in pages if page not in PAGES]:
        raise unknown_name("page", others[0], PAGES, code="tools.unknown-page")
    for page in pages:
        file = root / page
        write_whole(file, filled(file.read_text(encoding="utf-8"), root, page))
        print(page)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KavaError as error:
        print(f"readme: {error}", file=sys.stderr)
        sys.exit(2)
