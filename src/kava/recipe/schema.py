"""Schema of a recipe: its keys, their types, defaults and limits; `kava.recipe.load` reads one.

A recipe contains everything that a run depends on. Unknown keys are rejected, and the error
suggests the closest known one. The resolved recipe, with every default written out, is saved with
the checkpoint.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from itertools import takewhile
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from kava.errors import KavaError, truncate, unknown_name
from kava.recipe import registry

Distance = Literal["l1", "smooth_l1", "mse"]
#: Seeds that transformers accepts; numpy's generators are limited to 32 bits.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
_GSM8K_AUG = ("gsm8k_aug", "whynlp/gsm8k-aug", "whynlp/gsm8k-aug-nl")


class Section(BaseModel):
    """Base class of every section of a recipe.

    Unknown keys and numbers that are not finite are errors. Fields can be set by alias or by name.
    A validator raises a ValueError that contains a KavaError; `refusal` passes on its code and key.
    """

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )


class Lora(Section):
    """Low-rank adapter (LoRA, of peft).

    `targets` are module names, or `all-linear`. By default, they are the four attention projections
    of the model family (`kava.backbones.lora`). The recipe of a checkpoint contains their names.
    """

    r: int = Field(default=128, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] | None = None


class Codi(Section):
    """L_CODI: distillation of the hidden states at the last token before the answer.

    See docs/papers.md, Loss. With tokenizers such as Llama-3's, the blank between `The answer is:`
    and a number is a token of its own, and the state at `:` only predicts that blank. `position:
    answer` compares the states at the blank then; `prompt` always compares them at `:`.
    """

    weight: float = Field(default=0.0, ge=0)
    loss: Distance = "l1"
    layerwise_std: bool = True
    include_embeddings: bool = False
    position: Literal["answer", "prompt"] = "answer"


class EvictionSettings(Section):
    """Compression of the KV cache of the teacher's chain of thought to `num_latents` slots."""

    name: str = "rkv"
    lam: float = Field(default=0.1, ge=0, le=1, alias="lambda")
    shared: Literal["none", "mean", "max"] = "none"


class Kv(Section):
    """L_KV: distillation of the teacher's compressed KV cache into the student's latents.

    See docs/papers.md, Loss. `reduction: mean` averages over filled slots, heads, head size and
    layers. `row` averages within each example first, so that short chains of thought have the same
    weight as long ones. `sum` sums over heads, head size and layers and averages over filled slots
    (the norms of the paper's equation taken literally).
    """

    weight: float = Field(default=0.0, ge=0)
    loss: Distance = "smooth_l1"
    layerwise_std: bool = True
    eviction: EvictionSettings = EvictionSettings()
    supervise: Literal["last", "all"] = "last"
    keys: Literal["post_rope", "pre_rope"] = "post_rope"
    answer: bool = False
    projection: Literal["none", "linear", "linear_layernorm"] = "none"
    reduction: Literal["mean", "row", "sum"] = "mean"


class LatentReadout(Section):
    """Cross-entropy of each latent with a reasoning token, read by the LM head (LOTUS).

    With `width` c, latents come in blocks of c: latent j of block i predicts token j of step i.
    Without it, latent i predicts token i of the whole chain of thought. `target` says where the
    head reads: `own` at the latent itself (the equation of LOTUS), `slot` at the position before
    it, <bot> for the first latent (the code of LOTUS and its released weights). With `next`, the
    head reads at the latent and expects the token after its own, as a language model at that token
    would (our addition).
    """

    weight: float = Field(default=0.0, ge=0)
    width: int | None = Field(default=None, ge=1)
    target: Literal["own", "slot", "next"] = "own"


class Multiplex(Section):
    """Divergence of what each latent predicts from a span of the chain of thought (MUX).

    The tokens of the chain of thought are cut into one span for each latent, at random places. The
    target of a latent mixes the tokens of its span, each weighted `decay` times the one before it;
    `tau` divides the logits. `target` says where the LM head reads: `slot` at the position before
    the latent, whose state becomes the latent, or `own` at the latent itself.
    """

    weight: float = Field(default=0.0, ge=0)
    tau: float = Field(default=1.0, gt=0)
    decay: float = Field(default=0.9, gt=0, le=1)
    target: Literal["slot", "own"] = "slot"


class Data(Section):
    """Source of the examples: a data set of this package, a file, or the name of a Hub data set.

    A training example that needs more positions than the backbone has is an error. With `too_long:
    skip`, such examples are left out, and counted in the result. A validation question that is a
    training question too is an error. With `overlap: skip`, it is left out of the training,
    and counted.

    Before a training, the training examples are compared with the test questions of the tasks in
    `leak_check` (`kava.training.leaks`). By default, this is `gsm8k_aug` (the questions of GSM8K
    test) for GSM8k-Aug from the Hub, where these questions are available too, and no task for other
    data. `leak_files` gives local copies of the test questions for each task. A training example
    that equals a test question stops the training. An example that equals one except for its
    numbers is reported, or stops the training as well with `leak_stop: up_to_numbers`.
    `allow_leaks` lists exceptions: ids of test examples, or a whole task.
    """

    train: str
    validation: str | None = None
    train_rows: int | None = Field(default=None, ge=1)
    validation_rows: int | None = Field(default=500, ge=1)
    options: dict[str, Any] = {}
    too_long: Literal["error", "skip"] = "error"
    overlap: Literal["error", "skip"] = "error"
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
                raise ValueError(unknown_name("task", name, known, code="recipe.unknown-name"))
        if unused := self.leak_files.keys() - set(self.leak_check):
            raise ValueError(
                KavaError(
                    f"leak_files contains {min(unused)}, which is not in leak_check; add it there "
                    "or remove it",
                    code="recipe.unused-leak-file",
                    key="data.leak_files",
                )
            )
        return self


class Train(Section):
    """Optimization. Exactly one of `steps` and `epochs` must be given.

    `batch_size` is the global batch size. It is kept with any number of processes, or the training
    is rejected. If `micro_batch_size` is null, a step has the whole batch in memory at once; on a
    GPU, as much of it as fits by a count of the memory at the start of the training, which is
    printed. L_CODI and L_KV are divided by the standard deviation of one micro-batch, also if
    several processes have parts of a whole batch.
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
    def _check_length(self) -> Train:
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

    def autocasts(self, device: str) -> bool:
        """Whether training on a device of this type, `cpu` or `cuda`, computes in bf16 autocast."""
        return self.precision == "bf16" or (self.precision == "auto" and device == "cuda")

    def steps_per_epoch(self, rows: int) -> int:
        """Return the optimizer steps of an epoch of `rows` examples; the last may be smaller."""
        return math.ceil(rows / self.batch_size)

    def total_steps(self, rows: int) -> int:
        """Return the optimizer steps of a whole training on `rows` examples."""
        return self.steps or math.ceil((self.epochs or 0) * self.steps_per_epoch(rows))


class Evaluation(Section):
    """Validation during the training, and the batch size and token limit of every evaluation."""

    every: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=256, ge=1)


class Resources(Section):
    """Resources of a SLURM job of `kava sweep --launcher slurm`; not used otherwise.

    All keys of this section are our additions. `minutes` is the wall-clock limit per job, not a
    limit of the training: a job that exceeds it saves a checkpoint, is requeued and continues. Each
    GPU has its own process, and all of them train one run together; `processes` is for nodes
    without GPUs. `train.batch_size` is the batch size of all processes together.
    """

    nodes: int = Field(default=1, ge=1)
    gpus: int = Field(default=1, ge=0)
    processes: int | None = Field(default=None, ge=1)
    cpus: int = Field(default=4, ge=1)
    memory_gb: float = Field(default=32.0, gt=0)
    minutes: int = Field(default=1440, ge=2)

    @model_validator(mode="after")
    def _check_processes(self) -> Resources:
        if self.processes and self.gpus and self.processes != self.gpus:
            raise ValueError(
                KavaError(
                    f"processes is {self.processes} and gpus is {self.gpus}, but there is one "
                    f"process per GPU; omit processes, or set it to {self.gpus}",
                    code="recipe.uneven-processes",
                    key="resources.processes",
                )
            )
        return self

    @property
    def processes_per_node(self) -> int:
        """Number of SLURM tasks per node."""
        return self.processes or self.gpus or 1

    @property
    def all_processes(self) -> int:
        """Total number of processes that train one run together."""
        return self.nodes * self.processes_per_node


class Recipe(Section):
    """Configuration of one training run; see recipes/ for complete examples.

    `family` is the backbone's `model_type` in transformers; `kava train --smoke` builds a tiny
    random backbone of this family. `method_options` are the keys that only one method has, defined
    by `Options` in its file. A method may also define defaults (`defaults` in its file), which a
    recipe overrides; `kava.reasoning.resolve` adds them. With `latent_update: residual`, an
    iteration adds P(h) to the inputs of the latents instead of replacing them (our addition).
    `random_iterations` gives the minimum and maximum T, which a training draws anew for each step;
    answers use `num_iterations`. If T is `auto`, an answer iterates until no latent's input changes
    by more than `tolerance` of its norm, at most `max_iterations` times (our additions).
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
    random_iterations: tuple[int, int] | None = None
    max_iterations: int = Field(default=32, ge=1)
    tolerance: float = Field(default=0.01, ge=0)
    projection: Literal["none", "mlp", "mlp_layernorm"] = "mlp_layernorm"
    projection_dim: int | None = Field(default=None, ge=1)
    latent_update: Literal["replace", "residual"] = "replace"
    drop_last_step: bool = True
    short_traces: Literal["mask", "zeros"] = "mask"
    teacher_ce_weight: float = Field(default=1.0, ge=0)
    codi: Codi = Codi()
    kv: Kv = Kv()
    latent_readout: LatentReadout = LatentReadout()
    multiplex: Multiplex = Multiplex()
    data: Data
    train: Train
    eval: Evaluation = Evaluation()
    resources: Resources = Resources()
    description: str = ""

    _resolved: bool = PrivateAttr(default=False)

    @model_validator(mode="before")
    @classmethod
    def _check_method(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and isinstance(tree.get("method"), str):
            registry.check("methods", tree["method"])
        return tree

    @field_validator("random_iterations")
    @classmethod
    def _check_order(cls, bounds: tuple[int, int] | None) -> tuple[int, int] | None:
        if bounds is not None and not 0 <= bounds[0] <= bounds[1]:
            raise ValueError(
                KavaError(
                    f"random_iterations is {list(bounds)}; give the minimum and maximum number "
                    "of iterations, such as [1, 8]",
                    code="recipe.bad-range",
                    key="random_iterations",
                )
            )
        return bounds

    @property
    def is_resolved(self) -> bool:
        """Whether the method's defaults and options are filled in (`kava.reasoning.resolve`)."""
        return self._resolved

    def mark_resolved(self) -> Recipe:
        """Mark the recipe as having its method's defaults and options filled in, and return it."""
        self._resolved = True
        return self


class Architecture(Section):
    """Architecture of a new backbone; `family` is its `model_type` in transformers."""

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
    """Tokenizer trained on the training examples; `digits: single` splits numbers into digits."""

    size: int = Field(default=2000, ge=64)
    digits: Literal["single", "whole"] = "single"


class BackboneRecipe(Section):
    """Pre-training of a small backbone that generates its chain of thought (`kava pretrain`)."""

    name: str
    seed: Seed = 42
    architecture: Architecture
    vocabulary: Vocabulary = Vocabulary()
    data: Data
    train: Train
    eval: Evaluation = Evaluation()
    description: str = ""


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Return `base` updated with the values of `override`, section by section."""
    result = dict(base)
    for key, value in override.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as a flat one with dotted keys, such as `train.steps`."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        found.update(flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return found


def validate(tree: dict[str, Any], where: str, kind: type[Section] = Recipe) -> Any:
    """Validate a recipe given as a mapping.

    Args:
        tree: the mapping.
        where: name of the mapping in error messages.
        kind: the section to validate it as.

    Raises:
        KavaError: a key is unknown or missing, or a value is not valid.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise to_kava_error(error, kind).with_location(where) from None
    except KavaError as error:
        raise error.with_location(where) from None


def dump(recipe: Section) -> str:
    """Return the resolved recipe as YAML, with every default written out.

    Raises:
        ValueError: the recipe is not resolved (`kava.reasoning.resolve`).
    """
    if isinstance(recipe, Recipe) and not recipe.is_resolved:
        raise ValueError("the recipe is not resolved")
    return yaml.safe_dump(recipe.model_dump(by_alias=True), sort_keys=False, allow_unicode=True)


#: So many errors of one recipe are told.
_MOST_LINES = 10
_values = reprlib.Repr()
_values.maxstring = _values.maxother = 80


def to_kava_error(error: ValidationError, kind: type[Section], prefix: str = "") -> KavaError:
    """Convert the errors of pydantic to a KavaError of one line.

    The code and the key are those of the first error.

    Args:
        error: the errors of pydantic.
        kind: the section that was validated.
        prefix: the recipe key under which the section is, with a dot at the end.
    """
    found = error.errors()
    lines = [truncate(_explain(item, kind), 500) for item in found[:_MOST_LINES]]
    left = [f"and {len(found) - _MOST_LINES} more"] if len(found) > _MOST_LINES else []
    message, first = "; ".join([*lines, *left]), found[0]
    path = [str(part) for part in first["loc"]]
    whole = prefix + ".".join(path)
    if first["type"] == "extra_forbidden":
        return KavaError(message, code="recipe.unknown-key", key=whole)
    if first["type"] == "missing":
        return KavaError(message, code="recipe.missing-key", key=whole)
    # Parts of the path that are not identifiers are added by pydantic and are not recipe keys.
    key = prefix + ".".join(takewhile(str.isidentifier, path))
    refused = KavaError(message, code="recipe.bad-value", key=key or None)
    for lines in getattr(first.get("ctx", {}).get("error"), "args", ()):
        if isinstance(lines, KavaError):
            refused.code, refused.key = lines.code, lines.key
    return refused


def _explain(item: Any, kind: type[Section]) -> str:
    """Return one error of pydantic as a line that names the key, and the closest known one."""
    path = [str(part) for part in item["loc"]]
    key = ".".join(path)
    if item["type"] == "extra_forbidden":
        known = _fields(kind, path[:-1])
        close = difflib.get_close_matches(truncate(path[-1]), known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else f"; known keys: {', '.join(known)}"
        return f"unknown key '{truncate(key)}'{hint}"
    if item["type"] == "missing":
        return f"key '{key}' is missing"
    message = item["msg"].removeprefix("Value error, ")
    return (
        f"key '{truncate(key)}': {message} (got {_values.repr(item['input'])})" if key else message
    )


def _fields(kind: type[Section], path: list[str]) -> list[str]:
    """Return the known keys of the section at `path` below a section."""
    for part in path:
        by_name = {(f.alias or name): f.annotation for name, f in kind.model_fields.items()}
        kind = cast("type[Section]", by_name[part])
    return [field.alias or name for name, field in kind.model_fields.items()]
