"""Compare the recipes with Table 6 of the KaVa paper: `python -m tools.paper [FOLDER]`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from kava.errors import KavaError
from kava.reasoning.resolve import load_resolved
from kava.report import published
from kava.sweeps.recipes import shipped_folder
from kava.system.text import PlainConsole, print_columns, print_text

#: The values of the paper, and the recipe keys that correspond to them.
KEYS = {
    "backbone": ("backbone",),
    "data": ("data.options.form",),
    "a1": ("codi.weight",),
    "a2": ("kv.weight",),
    "kv_loss": ("kv.loss",),
    "layerwise_std": ("codi.layerwise_std", "kv.layerwise_std"),
    "eviction": ("kv.eviction.name",),
    "lambda": ("kv.eviction.lambda",),
    "projection": ("projection",),
    "learning_rate": ("train.learning_rate",),
    "weight_decay": ("train.weight_decay",),
    "epochs": ("train.epochs",),
    "adapter": ("adapter",),
    "lora_r": ("lora.r",),
    "lora_alpha": ("lora.alpha",),
    "lora_dropout": ("lora.dropout",),
    "num_latents": ("num_latents",),
    "num_iterations": ("num_iterations",),
    "schedule": ("train.schedule",),
    "batch_size": ("train.batch_size",),
    "gradient_clipping": ("train.clip",),
    "precision": ("train.precision",),
    "seeds": ("seed",),
}


@dataclass(frozen=True)
class PaperValue:
    """One value of the table, in one setting, and the recipe's value of `key`."""

    setting: str
    name: str
    key: str
    paper: Any
    recipe: Any

    @property
    def same(self) -> bool:
        """Whether the two values agree; a recipe has one of the paper's seeds."""
        return self.recipe in self.paper if self.name == "seeds" else self.recipe == self.paper


def compare(folder: Path | None = None) -> list[PaperValue]:
    """Compare every value of Table 6 with that of `SETTING/kava.yaml`.

    Args:
        folder: folder that contains the settings; by default the shipped recipes.

    Raises:
        KavaError: if a recipe is missing or not valid.
    """
    folder = folder or shipped_folder()
    table = published.load()["table6"]
    lines = []
    for setting, own in table["settings"].items():
        recipe = load_resolved(folder / setting / "kava.yaml").model_dump(by_alias=True)
        for name, paper in {**own, **table["common"]}.items():
            lines += [
                PaperValue(
                    setting, name, key, paper, _in_the_papers_words(name, _value(recipe, key))
                )
                for key in KEYS[name]
            ]
    return lines


def show(folder: Path | None, console: Console) -> bool:
    """Print the comparison; return whether all values agree."""
    lines = compare(folder)
    rows = [
        (line.setting, line.name, line.key, _text(line.paper), _text(line.recipe), _verdict(line))
        for line in lines
    ]
    print_columns(console, [("setting", "value", "recipe key", "paper", "recipe", ""), *rows])
    wrong = [f"{line.setting} {line.key}" for line in lines if not line.same]
    end = f"{len(wrong)} differ: {', '.join(wrong)}" if wrong else "all as in the paper"
    print_text(console, f"{len(lines)} values of Table 6 (KaVa, arXiv:2510.02312), {end}")
    return not wrong


def _value(recipe: dict[str, Any], key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = value.get(part)
    return value


def _in_the_papers_words(name: str, value: Any) -> Any:
    if name == "projection":
        return value != "none"
    if name == "data":
        return "GSM8k-Aug-NL" if value == "natural" else "GSM8k-Aug"
    return value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _verdict(line: PaperValue) -> str:
    return "ok" if line.same else "DIFFERS"


if __name__ == "__main__":
    try:
        same = show(Path(sys.argv[1]) if sys.argv[1:] else None, PlainConsole(soft_wrap=True))
    except KavaError as error:
        print(f"paper: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if same else 1)
