"""Model card of a checkpoint: what it is, what it was trained from, and what was measured.

The card is saved in every checkpoint as `README.md`, so that a folder that is passed on describes
itself. Its values may come from a folder by others, so each value is kept on one line and escaped.
"""

import re
from typing import Any

import yaml

from kava.reasoning.methods import label_of, paper_of
from kava.recipe.schema import Recipe, dump
from kava.system.tables import markdown_table

NO_RESULTS = (
    "Anything that the tables above do not name: other tasks, other languages, sampling in place "
    "of greedy decoding, safety, bias, and what the model says to what is no question of its kind."
)


def card(
    recipe: Recipe,
    identity: dict[str, Any],
    record: dict[str, Any] | None = None,
    merged: bool = False,
) -> str:
    """Return the model card as Markdown with YAML metadata, in the format of the Hub.

    Args:
        recipe: the resolved recipe.
        identity: identity of the backbone, from `kava.backbones.loading.identity`.
        record: the content of `result.json`, if the training is finished.
        merged: whether the adapter of the recipe was merged into the backbone (`Reasoner.merge`).
    """
    record = record or {}
    parts = [
        _head(recipe, identity),
        f"# {_text(recipe.method)} on {_text(identity['name'])}",
        _summary(recipe),
        "## How to use it\n\n" + _usage(),
        "## What it was made from\n\n"
        + markdown_table(None, _origin(recipe, identity, record, merged), left=(0, 1)),
        "## What was measured\n\n" + _scores(record),
        f"## What was not measured\n\n{NO_RESULTS}",
        "## Recipe\n\n" + _block(dump(recipe)),
    ]
    return "\n\n".join(parts) + "\n"


def _head(recipe: Recipe, identity: dict[str, Any]) -> str:
    """Return the YAML metadata of the card, in the format of the Hub."""
    front_matter: dict[str, Any] = {
        "library_name": "kava",
        "pipeline_tag": "text-generation",
        "tags": ["kava", "latent-reasoning", recipe.method],
    }
    if identity.get("revision"):  # only a name on the Hub has one; else it is a local folder
        front_matter["base_model"] = _line(identity["name"])
    return f"---\n{yaml.safe_dump(front_matter, sort_keys=False, width=float('inf'))}---"


def _summary(recipe: Recipe) -> str:
    name, paper = label_of(recipe.method), paper_of(recipe.method)
    source = f" ([arXiv:{paper}](https://arxiv.org/abs/{paper}))" if paper else ""
    return (
        f"A language model trained with the method {_text(name)}{source} by "
        f"[kava](https://arxiv.org/abs/2510.02312), an implementation by others than the papers' "
        "authors. It answers one question at a time, without a chat template, and ends with "
        "`The answer is:` and the answer."
    )


def _usage() -> str:
    return (
        "Install kava from a clone of its repository, with `pip install .` there. It is not on "
        "PyPI; the package `kava` there is another project.\n\n"
        "```python\nfrom kava import Reasoner\n\n"
        'reasoner = Reasoner.from_pretrained("FOLDER_OR_HUB_NAME")\n'
        'print(reasoner.generate("a question"))\n```'
    )


def _origin(
    recipe: Recipe, identity: dict[str, Any], record: dict[str, Any], merged: bool
) -> list[tuple[str, str]]:
    """Return the rows of the table that lists what the checkpoint was made from."""
    lines = [
        ("method", _text(recipe.method)),
        ("backbone", _backbone(identity)),
        ("adapter", _adapter(recipe, merged)),
        ("training rows", _rows(recipe.data.train, record.get("data", {}).get("train"))),
    ]
    if recipe.data.validation:
        validation = record.get("data", {}).get("validation")
        lines.append(("validation rows", _rows(recipe.data.validation, validation)))
    lines.append(("seed", str(recipe.seed)))
    for key, words in (
        ("steps", "steps"), ("train_seconds", "seconds of training"),
        ("trained_weights", "trained weights"), ("command", "command"), ("commit", "commit"),
        ("time", "finished"),
    ):  # fmt: skip
        if record.get(key) is not None:
            value = record[key]
            text = f"{value:,}" if isinstance(value, int) else value
            lines.append((words, _code(text) if key in ("command", "commit") else _text(text)))
    versions = record.get("versions", {})
    if versions:
        validation = ", ".join(f"{k} {v}" for k, v in versions.items())
        lines.append(("versions", _text(validation)))
    if "steps" not in record:
        lines.append(("state", "saved before the end of its training"))
    return lines


def _backbone(identity: dict[str, Any]) -> str:
    revision = identity.get("revision")
    digests = list((identity.get("files") or {}).values())[:1]  # of the first file
    local = f", SHA-256 {_code(digests[0])}" if digests else ", a local folder: no revision"
    at = f" at revision {_code(revision)}" if revision else local
    shape = (
        f"{_text(identity['model_type'])}, {_text(identity['num_layers'])} layers, width "
        f"{_text(identity['hidden_size'])}, fingerprint {_code(identity['fingerprint'])}"
    )
    return f"{_text(identity['name'])}{at} ({shape})"


def _adapter(recipe: Recipe, merged: bool) -> str:
    if recipe.adapter == "full" and not merged:
        return "none: all weights were trained"
    lora = recipe.lora
    targets = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets or ())
    description = f"LoRA r {lora.r}, alpha {lora.alpha}, dropout {lora.dropout} on {_text(targets)}"
    return f"{description}; merged into the backbone" if merged else description


def _rows(name: str, data_record: dict[str, Any] | None) -> str:
    if not data_record:
        return f"{_text(name)} (not read yet)"
    revision = data_record.get("revision")
    at = f" at revision {_code(revision)}" if revision else ""
    digest = (
        f", SHA-256 of the rows {_code(data_record['sha256'][:16])}"
        if data_record.get("sha256")
        else ""
    )
    return f"{data_record['rows']:,} of {_text(data_record['source'])}{at}{digest}"


def _scores(record: dict[str, Any]) -> str:
    """Return the table of the measured scores, and the validation accuracy."""
    lines = []
    for task, score in record.get("scores", {}).items():
        rules = ", ".join(f"{k} {v}" for k, v in score.get("accuracy_by_rule", {}).items())
        rows = (
            f"{task} (version {score['version']}, {score['split']})",
            f"{score['accuracy']} ± {round(score['accuracy_se'], 2)}",
            f"{score['n']:,}",
            score["rule"],
            rules,
            score["forward_passes"],
        )
        lines.append(list(map(_text, rows)))
    accuracy = record.get("validation_accuracy")
    if accuracy is not None:
        of = f"{_text(accuracy)} % of {_text(record['validation_n'])}"
        rows = f"Validation rows, during training: {of}."
    else:
        rows = "No validation rows."
    if not lines:
        return f"No task was scored yet (`kava eval`). {rows}"
    headings = ("task", "accuracy (%)", "n", "rule", "by rule", "forward passes")
    table = markdown_table(headings, lines, left=(0, 3, 4))
    note = "± is one standard error of one training; greedy decoding."
    return f"{table}\n\n{note} {rows}"


def _line(value: Any) -> str:
    """Return a value on one line, without unprintable characters.

    These are, for example, control characters and marks that change the direction of text.
    """
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def _text(value: Any) -> str:
    """Return a value as one line of escaped Markdown, which may be used in a table cell."""
    text = _MARKUP.sub(r"\\\g<0>", _line(value))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


#: Characters to escape. An underscore within a word is not markup, so names stay readable.
_MARKUP = re.compile(r"[\\`*\[\]|~$#]|(?<!\w)_|_(?!\w)")


def _code(value: Any) -> str:
    """Return a value as inline code with enough backticks, which may be used in a table cell."""
    text = _line(value).replace("|", "\\|")
    fence, pad = "`" * (_longest(text) + 1), " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _block(text: str) -> str:
    """Return a YAML code block; unprintable characters become replacement characters."""
    text = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    fence = "`" * max(3, _longest(text) + 1)
    return f"{fence}yaml\n{text}{fence}"


def _longest(text: str) -> int:
    """Return the length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
