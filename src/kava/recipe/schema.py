"""What a recipe may hold, validated. `kava.recipe.load` reads one.

A recipe names everything a run depends on. Unknown keys are refused with the nearest known one;
the resolved recipe (every default written out) is saved beside the checkpoint.
"""

from __future__ import annotations

import difflib
from itertools import takewhile
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from kava.errors import KavaError, unknown
from kava.recipe import registry

Distance = Literal["l1", "smooth_l1", "mse"]
#: What transformers takes: numpy's generators have no others.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
_GSM8K_AUG = ("gsm8k_aug", "whynlp/gsm8k-aug", "whynlp/gsm8k-aug-nl")


class Section(BaseModel):
    """Base of every section: unknown keys are errors, fields can be filled by alias or name.

    So are numbers that are not finite. A validator raises a ValueError of a KavaError, whose code
    and key `refusal` hands on.
    """

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )


class Lora(Section):
    """Low-rank adapter (peft). `targets` are module names, or `all-linear`.

    Not given, they are the family's four attention projections (`kava.backbones.lora`); a
    checkpoint's recipe holds their names.
    """

    r: int = Field(default=128, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] | None = None


class Codi(Section):
    """L_CODI: hidden states at the last token of the answer prompt (spec, Loss)."""

    weight: float = Field(default=0.0, ge=0)
    loss: Distance = "l1"
    layerwise_std: bool = True
    include_embeddings: bool = False


class Eviction(Section):
    """How the teacher's reasoning cache is brought to `num_latents` slots."""

    name: str = "rkv"
    lam: float = Field(default=0.1, ge=0, le=1, alias="lambda")


class Kv(Section):
    """L_KV: student latents' keys and values against the compressed teacher cache (spec, Loss).

    `reduction`: `mean` over filled slots, heads, head size and layers; `row`: each row's mean
    first, so that short traces weigh as much as long ones; `sum` over heads, head size and layers,
    mean over filled slots (the norms of the paper's equation taken literally).
    """

    weight: float = Field(default=0.0, ge=0)
    loss: Distance = "smooth_l1"
    layerwise_std: bool = True
    eviction: Eviction = Eviction()
    supervise: Literal["last", "all"] = "last"
    keys: Literal["post_rope", "pre_rope"] = "post_rope"
    answer: bool = False
    projection: Literal["none", "linear", "linear_layernorm"] = "none"
    reduction: Literal["mean", "row", "sum"] = "mean"


class LatentReadout(Section):
    """CE of each latent, read by the language-model head, with its reasoning token (LOTUS).

    `width` c: latents come in blocks of c, block i for step i, latent j of it for token j; without
    it latent i stands for token i of the whole trace. `target: next` asks each latent for the
    token after its own instead, as a language model's state at that token would be (ours).
    """

    weight: float = Field(default=0.0, ge=0)
    width: int | None = Field(default=None, ge=1)
    target: Literal["own", "next"] = "own"


class Data(Section):
    """Where rows come from: a data set of this package, a file, or a Hub data set name.

    Training rows are compared with the questions of the tasks in `leak_check` before a training
    (`kava.training.leaks`). Not given, that is `gsm8k_aug` (the questions of GSM8K test) for
    GSM8k-Aug from the Hub, where they lie too, and no task for other rows. `leak_files` names
    local copies, task by task. A row that equals a test question stops the training; with
    `leak_stop: up_to_numbers` so does one that equals it but for its numbers, which is else
    reported. `allow_leaks` lets through what it names: ids of test rows, or a whole task.
    """

    train: str
    validation: str | None = None
    train_rows: int | None = Field(default=None, ge=1)
    validation_rows: int | None = Field(default=500, ge=1)
    options: dict[str, Any] = {}
    leak_check: list[str] | None = None
    leak_files: dict[str, str] = {}
    leak_stop: Literal["equal", "up_to_numbers"] = "equal"
    allow_leaks: list[str] = []

    @model_validator(mode="after")
    def _resolve_leak_check(self) -> Data:
        if self.leak_check is None:
            from_the_hub = self.train in _GSM8K_AUG and "file" not in self.options
            self.leak_check = ["gsm8k_aug"] if from_the_hub else []
        for name in self.leak_check:
            if name not in registry.names("tasks"):
                known = registry.names("tasks")
                raise ValueError(unknown("task", name, known, code="recipe.unknown-name"))
        if unused := self.leak_files.keys() - set(self.leak_check):
            raise ValueError(
                KavaError(
                    f"leak_files names {min(unused)}, which leak_check does not",
                    code="recipe.unused-leak-file",
                    key="data.leak_files",
                )
            )
        return self


class Train(Section):
    """Optimisation. Exactly one of `steps` and `epochs`; `batch_size` is the global batch.

    It is held with any number of processes, or refused. L_CODI and L_KV are divided by the std of
    one micro-batch (the whole batch if `micro_batch_size` is not given), also where several
    processes hold parts of it.
    """

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0, le=1e6)
    batch_size: int = Field(default=128, ge=1)
    micro_batch_size: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1)
    clip: float = Field(default=2.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    group_by_length: bool = False
    log_every: int = Field(default=10, ge=1)
    save_every: int | None = Field(default=None, ge=1)
    report_to: list[str] = []

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                KavaError(
                    "give exactly one of train.steps and train.epochs",
                    code="recipe.steps-or-epochs",
                    key="train.steps",
                )
            )
        micro = self.micro_batch_size
        if micro and self.batch_size % micro:
            raise ValueError(
                KavaError(
                    f"train.batch_size {self.batch_size} is not a multiple of "
                    f"train.micro_batch_size {micro}",
                    code="recipe.uneven-batch",
                    key="train.batch_size",
                )
            )
        return self

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimiser step on one process."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)


class Evaluation(Section):
    """Validation during training, and the decoding of every evaluation."""

    every: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=256, ge=1)


class Resources(Section):
    """What a job of `kava sweep --launcher slurm` asks for; nothing else reads it. All ours.

    A job that runs out of its `minutes` saves, is queued again and goes on, so they are a wish and
    no limit of the training. Each GPU has a process of its own, and all of them train one run;
    `processes` is for nodes without GPUs. `train.batch_size` is that of all together.
    """

    nodes: int = Field(default=1, ge=1)
    gpus: int = Field(default=1, ge=0)
    processes: int | None = Field(default=None, ge=1)
    cpus: int = Field(default=4, ge=1)
    memory_gb: float = Field(default=32.0, gt=0)
    minutes: int = Field(default=1440, ge=2)

    @model_validator(mode="after")
    def _a_process_for_each_gpu(self) -> Resources:
        if self.processes and self.gpus and self.processes != self.gpus:
            raise ValueError(
                KavaError(
                    f"processes {self.processes} with gpus {self.gpus}: each GPU has a process of "
                    f"its own; leave processes out, or give {self.gpus}",
                    code="recipe.uneven-processes",
                    key="resources.processes",
                )
            )
        return self

    @property
    def processes_per_node(self) -> int:
        """Tasks of SLURM on each node."""
        return self.processes or self.gpus or 1

    @property
    def all_processes(self) -> int:
        """How many train one run together."""
        return self.nodes * self.processes_per_node


class Recipe(Section):
    """One training run. See recipes/ for complete examples.

    `family` is the backbone's `model_type` in transformers; `kava train --smoke` builds a tiny
    random backbone of it. `method_options` are the keys of one method alone: `Options` in its file.
    What a method sets by itself (`defaults` in its file) a recipe overrides;
    `kava.reasoning.resolve` adds it.
    """

    method: str
    method_options: dict[str, Any] = {}
    backbone: str
    revision: str | None = None
    family: str | None = None
    seed: Seed = 42
    adapter: Literal["lora", "full"] = "lora"
    lora: Lora = Lora()
    num_latents: int = Field(default=24, ge=1)
    num_iterations: int = Field(default=3, ge=0)
    projection: Literal["none", "mlp", "mlp_layernorm"] = "mlp_layernorm"
    projection_dim: int | None = Field(default=None, ge=1)
    drop_last_step: bool = True
    short_traces: Literal["mask", "zeros"] = "mask"
    teacher_ce_weight: float = Field(default=1.0, ge=0)
    codi: Codi = Codi()
    kv: Kv = Kv()
    latent_readout: LatentReadout = LatentReadout()
    data: Data
    train: Train
    eval: Evaluation = Evaluation()
    resources: Resources = Resources()
    description: str = ""

    _resolved: bool = PrivateAttr(default=False)

    @model_validator(mode="before")
    @classmethod
    def _known_method(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and isinstance(tree.get("method"), str):
            registry.check("methods", tree["method"])
        return tree

    @property
    def is_resolved(self) -> bool:
        """Whether the method's defaults and options are in (`kava.reasoning.resolve`)."""
        return self._resolved

    def mark_resolved(self) -> Recipe:
        """Say that the method's defaults and options are in; returns the recipe."""
        self._resolved = True
        return self


class Architecture(Section):
    """Shape of a backbone made from nothing; `family` is its `model_type` in transformers."""

    family: str = "llama"
    hidden_size: int = Field(ge=8)
    intermediate_size: int = Field(ge=8)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    max_positions: int = 512
    rope_theta: float = 10000.0
    initializer_range: float = Field(default=0.02, gt=0)
    tie_embeddings: bool = True


class Vocabulary(Section):
    """Tokenizer made from the training rows. `digits: single` splits numbers into digits."""

    size: int = Field(default=2000, ge=64)
    digits: Literal["single", "whole"] = "single"


class BackboneRecipe(Section):
    """Pre-training of a small backbone that writes its steps out: `kava pretrain`."""

    name: str
    seed: Seed = 42
    architecture: Architecture
    vocabulary: Vocabulary = Vocabulary()
    data: Data
    train: Train
    eval: Evaluation = Evaluation()
    description: str = ""


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, section by section."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


def flatten(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested keys as `train.steps`."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        found.update(flatten(value, f"{above}{key}.") if nested else {above + key: value})
    return found


def validate(tree: dict[str, Any], where: str, kind: type[Section] = Recipe) -> Any:
    """Validate a mapping; `where` names it in errors."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise refusal(error, kind).within(where) from None
    except KavaError as error:
        raise error.within(where) from None


def dump(recipe: Section) -> str:
    """The resolved recipe as YAML, defaults written out.

    Raises:
        ValueError: what its method sets is not in yet (`kava.reasoning.resolve`).
    """
    if isinstance(recipe, Recipe) and not recipe.is_resolved:
        raise ValueError("the recipe is not resolved")
    return yaml.safe_dump(recipe.model_dump(by_alias=True), sort_keys=False, allow_unicode=True)


def refusal(error: ValidationError, kind: type[Section], above: str = "") -> KavaError:
    """Errors of pydantic in a line; code and key are those of the first.

    Args:
        above: the key of the recipe under which `kind` lies, with its dot.
    """
    found = error.errors()
    message, first = "; ".join(_explain(item, kind) for item in found), found[0]
    path = [str(part) for part in first["loc"]]
    whole = above + ".".join(path)
    if first["type"] == "extra_forbidden":
        return KavaError(message, code="recipe.unknown-key", key=whole)
    if first["type"] == "missing":
        return KavaError(message, code="recipe.missing-key", key=whole)
    key = above + ".".join(takewhile(str.isidentifier, path))  # what follows is pydantic's
    refused = KavaError(message, code="recipe.bad-value", key=key or None)
    for told in getattr(first.get("ctx", {}).get("error"), "args", ()):
        if isinstance(told, KavaError):
            refused.code, refused.key = told.code, told.key
    return refused


def _explain(item: Any, kind: type[Section]) -> str:
    """One error of pydantic in a line that names the key, and the nearest known one."""
    path = [str(part) for part in item["loc"]]
    key = ".".join(path)
    if item["type"] == "extra_forbidden":
        known = _fields(kind, path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else f"; known here: {', '.join(known)}"
        return f"unknown key '{key}'{hint}"
    if item["type"] == "missing":
        return f"key '{key}' is missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"key '{key}': {message} (got {item['input']!r})" if key else message


def _fields(kind: type[Section], path: list[str]) -> list[str]:
    for part in path:
        by_name = {(f.alias or name): f.annotation for name, f in kind.model_fields.items()}
        kind = cast("type[Section]", by_name[part])
    return [field.alias or name for name, field in kind.model_fields.items()]
