"""What a recipe may hold: YAML, validated, overridable as `key.subkey=value`.

A recipe names everything a run depends on. Unknown keys are refused with the nearest known one;
the resolved recipe (every default written out) is saved beside the checkpoint.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kava import assets, registry
from kava.errors import KavaError, unknown

Distance = Literal["l1", "smooth_l1", "mse"]
#: What transformers takes: numpy's generators have no others.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
_GSM8K_AUG = ("gsm8k_aug", "whynlp/gsm8k-aug", "whynlp/gsm8k-aug-nl")


class Section(BaseModel):
    """Base of every section: unknown keys are errors, fields can be filled by alias or name.

    So are numbers that are not finite.
    """

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )


class Lora(Section):
    """Low-rank adapter (peft). `targets` are module names, or `all-linear`.

    Not given, they are the family's four attention projections (`kava.adapter`); a checkpoint's
    recipe holds their names.
    """

    r: int = Field(128, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] | None = None


class Codi(Section):
    """L_CODI: hidden states at the last token of the answer prompt (spec, Loss)."""

    weight: float = Field(0.0, ge=0)
    loss: Distance = "l1"
    layerwise_std: bool = True
    include_embeddings: bool = False


class Eviction(Section):
    """How the teacher's reasoning cache is brought to `num_latents` slots."""

    name: str = "rkv"
    lam: float = Field(0.1, ge=0, le=1, alias="lambda")


class Kv(Section):
    """L_KV: student latents' keys and values against the compressed teacher cache (spec, Loss).

    `reduction`: `mean` over filled slots, heads, head size and layers; `row`: each row's mean
    first, so that short traces weigh as much as long ones; `sum` over heads, head size and layers,
    mean over filled slots (the norms of the paper's equation taken literally).
    """

    weight: float = Field(0.0, ge=0)
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

    weight: float = Field(0.0, ge=0)
    width: int | None = Field(None, ge=1)
    target: Literal["own", "next"] = "own"


class Data(Section):
    """Where rows come from: a data set of this package, a file, or a Hub data set name.

    Training rows are compared with the questions of the tasks in `leak_check` before a training
    (`kava.leaks`). Not given, that is `gsm8k_aug` (the questions of GSM8K test) for GSM8k-Aug from
    the Hub, where they lie too, and no task for other rows. `leak_files` names local copies, task
    by task. A row that equals a test question stops the training; with `leak_stop: up_to_numbers`
    so does one that equals it but for its numbers, which is else reported. `allow_leaks` lets
    through what it names: ids of test rows, or a whole task.
    """

    train: str
    validation: str | None = None
    train_rows: int | None = Field(None, ge=1)
    validation_rows: int | None = Field(500, ge=1)
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
                raise ValueError(str(unknown("task", name, registry.names("tasks"))))
        if unused := self.leak_files.keys() - set(self.leak_check):
            raise ValueError(f"leak_files names {min(unused)}, which leak_check does not")
        return self


class Train(Section):
    """Optimisation. Exactly one of `steps` and `epochs`; `batch_size` is the global batch.

    It is held with any number of processes, or refused. L_CODI and L_KV are divided by the std of
    one micro-batch (the whole batch if `micro_batch_size` is not given), also where several
    processes hold parts of it.
    """

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(128, ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.03, ge=0, lt=1)
    clip: float = Field(2.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    group_by_length: bool = False
    log_every: int = Field(10, ge=1)
    save_every: int | None = Field(None, ge=1)
    report_to: list[str] = []

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of train.steps and train.epochs")
        micro = self.micro_batch_size
        if micro and self.batch_size % micro:
            raise ValueError(
                f"train.batch_size {self.batch_size} is not a multiple of "
                f"train.micro_batch_size {micro}"
            )
        return self

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimiser step on one process."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)


class Evaluation(Section):
    """Validation during training, and the decoding of every evaluation."""

    every: int | None = Field(None, ge=1)
    batch_size: int = Field(64, ge=1)
    max_new_tokens: int = Field(256, ge=1)


class Resources(Section):
    """What a job of `kava sweep --launcher slurm` asks for; nothing else reads it. All ours.

    A job that runs out of its `minutes` saves, is queued again and goes on, so they are a wish and
    no limit of the training. Each GPU has a process of its own, and all of them train one run;
    `processes` is for nodes without GPUs. `train.batch_size` is that of all together.
    """

    nodes: int = Field(1, ge=1)
    gpus: int = Field(1, ge=0)
    processes: int | None = Field(None, ge=1)
    cpus: int = Field(4, ge=1)
    memory_gb: float = Field(32.0, gt=0)
    minutes: int = Field(1440, ge=2)

    @model_validator(mode="after")
    def _a_process_for_each_gpu(self) -> Resources:
        if self.processes and self.gpus and self.processes != self.gpus:
            raise ValueError(
                f"processes {self.processes} with gpus {self.gpus}: each GPU has a process of its "
                f"own; leave processes out, or give {self.gpus}"
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
    What a method sets by itself (`defaults` in its file) a recipe overrides.
    """

    method: str
    method_options: dict[str, Any] = {}
    backbone: str
    revision: str | None = None
    family: str | None = None
    seed: Seed = 42
    adapter: Literal["lora", "full"] = "lora"
    lora: Lora = Lora()
    num_latents: int = Field(24, ge=1)
    num_iterations: int = Field(3, ge=0)
    projection: Literal["none", "mlp", "mlp_layernorm"] = "mlp_layernorm"
    projection_dim: int | None = Field(None, ge=1)
    drop_last_step: bool = True
    short_traces: Literal["mask", "zeros"] = "mask"
    teacher_ce_weight: float = Field(1.0, ge=0)
    codi: Codi = Codi()
    kv: Kv = Kv()
    latent_readout: LatentReadout = LatentReadout()
    data: Data
    train: Train
    eval: Evaluation = Evaluation()
    resources: Resources = Resources()
    description: str = ""

    @model_validator(mode="before")
    @classmethod
    def _method_defaults(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and isinstance(tree.get("method"), str):
            return merged(registry.find("methods", tree["method"]).defaults, tree)
        return tree

    @model_validator(mode="after")
    def _only_losses_of_the_method(self) -> Recipe:
        known = registry.find("methods", self.method).losses
        for name in ("codi", "kv", "latent_readout"):
            if name not in known and (weight := getattr(self, name).weight):
                raise ValueError(
                    f"{name}.weight {weight}: method '{self.method}' has no such loss; leave it at "
                    f"0" + (f" (it has {', '.join(known)})" if known else "")
                )
        return self

    @model_validator(mode="after")
    def _resolve_method_options(self) -> Recipe:
        kind = registry.find("methods", self.method).Options
        try:
            options = kind.model_validate(self.method_options)
        except ValidationError as error:
            problems = "; ".join(_explain(item, kind) for item in error.errors())
            raise ValueError(f"method_options of '{self.method}': {problems}") from None
        self.method_options = options.model_dump(by_alias=True)
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
    initializer_range: float = Field(0.02, gt=0)
    tie_embeddings: bool = True


class Vocabulary(Section):
    """Tokenizer made from the training rows. `digits: single` splits numbers into digits."""

    size: int = Field(2000, ge=64)
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


def load_recipe(path: str | Path, overrides: list[str] = (), kind: type[Section] = Recipe) -> Any:
    """Read a recipe file, apply `key.subkey=value` overrides, validate.

    Args:
        path: a YAML file, or a recipe that ships with the package (`recipes/quickstart/kava.yaml`).
        overrides: dotted assignments; values are read as YAML.
        kind: `Recipe` or `BackboneRecipe`.

    Raises:
        KavaError: missing file, broken YAML, unknown or ill-typed key; the message names it.
    """
    file = assets.find(path)
    tree = _extended(file, ())
    for assignment in overrides:
        _assign(tree, assignment)
    return validate(tree, str(file), kind)


def read(path: str | Path) -> dict[str, Any]:
    """The keys of a recipe file and of those that it extends, not validated.

    Raises:
        KavaError: missing file, broken YAML.
    """
    return _extended(assets.find(path), ())


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, section by section."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested keys as `train.steps`."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        found.update(flat(value, f"{above}{key}.") if nested else {above + key: value})
    return found


def _extended(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A recipe's keys laid on those of the recipe that it `extends`."""
    tree = _read(file)
    if "extends" not in tree:
        return tree
    name = tree.pop("extends")
    beside = file.parent / str(name)
    under = (beside if beside.is_file() else assets.find(str(name))).resolve()
    if under in (*above, file.resolve()):
        raise KavaError(f"{file}: key 'extends': {name} extends this recipe in turn")
    return merged(_extended(under, (*above, file.resolve())), tree)


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except IsADirectoryError:
        held = sorted(path.name for path in file.glob("*.yaml"))
        holds = f"; it holds {', '.join(held)}" if held else ""
        raise KavaError(f"{file}: is a folder; give a recipe, a YAML file{holds}") from None
    except OSError as error:
        raise KavaError(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise KavaError(f"{file}{line}: not valid YAML: {_problem(error)}") from None
    if not isinstance(tree, dict):
        raise KavaError(f"{file}: a recipe is a mapping of keys to values, this is not one")
    return tree


def validate(tree: dict[str, Any], where: str, kind: type[Section] = Recipe) -> Any:
    """Validate a mapping; `where` names it in errors."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        messages = "; ".join(_explain(item, kind) for item in error.errors())
        raise KavaError(f"{where}: {messages}") from None
    except KavaError as error:
        raise KavaError(f"{where}: {error}") from None


def dump(recipe: Section) -> str:
    """The resolved recipe as YAML, defaults written out."""
    return yaml.safe_dump(recipe.model_dump(by_alias=True), sort_keys=False, allow_unicode=True)


def parse(text: str, where: str) -> Any:
    """A value of the command line, as a recipe would read it; `where` names it in errors.

    Raises:
        KavaError: it is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        message = f"{where}: '{_shown(text)}' is not a valid YAML value: {_problem(error)}"
        raise KavaError(message) from None


def _problem(error: Exception) -> str:
    return getattr(error, "problem", None) or " ".join(str(error).split())


def _shown(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Loader(yaml.SafeLoader):
    """Reads `1e-4` as a number, as YAML 1.2 does; refuses a key that is given twice.

    Whatever it cannot read is a YAMLError, where PyYAML lets errors of Python through: for what
    looks like a number or a date and is none, and where lists or mappings lie too deep.
    """

    deepest = 100
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > self.deepest:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {self.deepest} deep",
                problem_mark=self.peek_event().start_mark,
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # what is made of a word is not checked
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"'{_shown(node.value)}' is no {kind}; in quotes it is text",
                problem_mark=node.start_mark,
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key is one word, this is a list or a mapping",
                    problem_mark=key.start_mark,
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _assign(tree: dict[str, Any], assignment: str) -> None:
    key, sign, value = assignment.partition("=")
    if not sign or not key:
        raise KavaError(f"'{assignment}': an override is written key=value, as in train.steps=100")
    *parents, leaf = key.split(".")
    for parent in parents:
        node = tree.setdefault(parent, {})
        if not isinstance(node, dict):
            raise KavaError(f"'{assignment}': '{parent}' holds a value, not further keys")
        tree = node
    tree[leaf] = parse(value, key)


def _explain(item: dict[str, Any], kind: type[Section]) -> str:
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
        kind = by_name[part]
    return [field.alias or name for name, field in kind.model_fields.items()]
