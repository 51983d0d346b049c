"""Backbones of any shape with random weights, and random examples of any length.

Neither the Hub nor data is needed.
"""

import copy
import mmap
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from kava.backbones import compatibility, loading, pretrained, structure
from kava.backbones.attention import IMPLEMENTATION_NAME
from kava.backbones.published import KNOWN_BACKBONES
from kava.backbones.tokenizer import word_tokenizer
from kava.errors import KavaError, on_one_line, unknown_name
from kava.reasoning.batching import Row
from kava.reasoning.reasoner import Reasoner
from kava.recipe.load import parse
from kava.recipe.schema import Recipe
from kava.sweeps.cost import SENTENCES, STEPS
from kava.sweeps.lengths import draw as real_lengths
from kava.system import assets
from kava.types import ANSWER_PROMPT

#: The shape with which the predecessors' code was measured on CPUs; its MLP width follows from
#: the 84.5 GFLOP counted there.
SMALL = {
    "model_type": "llama", "vocab_size": 2000, "hidden_size": 256, "num_hidden_layers": 4,
    "intermediate_size": 688, "num_attention_heads": 8, "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "small": SMALL,
    **{
        name.split("/")[1].removesuffix("-Instruct").lower(): c
        for name, c in KNOWN_BACKBONES.items()
    },
}


def configuration(shape: str) -> Any:
    """Return a transformers configuration, from a name, a folder or a description.

    Args:
        shape: `small`, `llama-3.2-1b`, `meta-llama/Llama-3.2-1B-Instruct`, a folder with a
            `config.json`, or `llama:hidden_size=256,num_hidden_layers=4,...` with the family and
            transformers' names.

    Raises:
        KavaError: `shape` is none of these, the family does not have one of the names, or it does
            not give a decoder-only model of transformers.
    """
    named = KNOWN_BACKBONES.get(shape) or SHAPES.get(shape)
    folder = assets.folder_with(shape, "config.json")
    if not (named or folder or ":" in shape):
        raise KavaError(
            f"unknown shape '{shape}'; use {', '.join(SHAPES)}, a folder with a "
            "config.json, or family:name=value,... such as llama:hidden_size=256",
            code="bench.unknown-shape",
            key=shape,
        )
    try:
        if folder:
            config = pretrained.load_config(folder)
        else:
            config = AutoConfig.for_model(**(named or _parse_shape(shape)))
        _try(config)
    except KavaError as error:
        raise error.with_location(f"shape '{shape}'") from None
    except Exception as error:  # classes outside kava may fail in any way
        raise KavaError(
            f"shape '{shape}': transformers rejects it "
            f"({type(error).__name__}: {on_one_line(error)})",
            code="bench.shape-refused",
            key=shape,
        ) from None
    return config


def _parse_shape(shape: str) -> dict[str, Any]:
    """Parse a description such as `llama:hidden_size=256,...`, with transformers' names."""
    family, _, values = shape.partition(":")
    pairs = [pair.partition("=") for pair in values.split(",")]
    if not all(name and value for name, _, value in pairs):
        raise KavaError(
            "sizes must have the form name=value, separated by commas, as in hidden_size=256",
            code="bench.size-not-written-so",
            key=shape,
        )
    if family in CONFIG_MAPPING:
        known = _names(CONFIG_MAPPING[family])
        for name, _, _ in pairs:
            if name not in known:
                raise unknown_name(f"key of '{family}':", name, known, code="bench.unknown-size")
    return {"model_type": family, **{name: parse(value, name) for name, _, value in pairs}}


def _names(kind: Any) -> set[str]:
    """Return the names that a configuration class reads: fields, their aliases, and older names."""
    own = {field.name for field in fields(kind)}
    older = _WITH_ROTARY if "rope_parameters" in own else ()
    return {*own, *kind.attribute_map, *older}


#: Read by transformers for all rotary embeddings, though not every class has these fields.
_WITH_ROTARY = ("head_dim", "rope_theta", "rope_scaling", "partial_rotary_factor")


def _try(config: Any) -> None:
    """Build the model on the meta device, where it takes no memory, and check its attention."""
    compatibility.check_config(config)
    with torch.device("meta"):
        model = pretrained.new_model(copy.deepcopy(config), attn_implementation=IMPLEMENTATION_NAME)
        layers = structure.layers(model)
    if not layers:
        raise KavaError("the model has no layers", code="bench.no-layers", key=config.model_type)
    if not all(any(map(_is_causal, layer.modules())) for layer in layers):
        raise KavaError(
            f"the layers of {config.model_type} do not all have causal attention; use a "
            "decoder-only language model",
            code="bench.not-causal",
            key=config.model_type,
        )
    heads = config.num_attention_heads
    if heads % (groups := getattr(config, "num_key_value_heads", None) or heads):
        raise KavaError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}",
            code="bench.heads-not-a-multiple",
            key="num_attention_heads",
        )


def _is_causal(module: torch.nn.Module) -> bool:
    return getattr(module, "is_causal", False)


def random_reasoner(recipe: Recipe, shape: str, device: torch.device) -> Reasoner:
    """Return the recipe's method and adapter on a backbone of this shape with random weights.

    Raises:
        KavaError: the shape is not known, or does not fit the recipe.
    """
    config, tokenizer = _config_and_tokenizer(shape)
    torch.manual_seed(recipe.seed)
    model = loading.prepare(_new_model(config, loading.choose_dtype(recipe, device), device))
    return Reasoner(model, tokenizer, recipe, {"name": shape, "revision": None})


def _lazy_zeros(like: torch.Tensor) -> torch.Tensor:
    """Return zeros that take no memory until they are written; torch writes its own at once.

    Uninitialised memory would not do: some methods test their backbone (`rotary.check`), and would
    reject arbitrary values.
    """
    pages = mmap.mmap(-1, max(like.numel() * like.element_size(), 1))
    return torch.frombuffer(pages, dtype=like.dtype, count=like.numel()).view(like.shape)


def reasoner_of_sizes(recipe: Recipe, shape: str, dtype: torch.dtype) -> Reasoner:
    """Return a reasoner like `random_reasoner`, whose frozen weights take no memory.

    Nothing is written into the backbone's weights.

    Args:
        dtype: dtype of the frozen weights.

    Raises:
        KavaError: the shape is not known, or does not fit the recipe.
    """
    config, tokenizer = _config_and_tokenizer(shape)
    model = _new_model(config, dtype, torch.device("meta")).to_empty(device="cpu")
    model.tie_weights()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = _lazy_zeros(tensor)
    model.get_input_embeddings().weight.detach().zero_()  # new embeddings are drawn on its scale
    return Reasoner(model, tokenizer, recipe, {"name": shape, "revision": None})


#: All other token ids are random.
_PROMPT = ANSWER_PROMPT.replace(":", " :").split()


def _config_and_tokenizer(shape: str) -> tuple[Any, PreTrainedTokenizerFast]:
    config, tokenizer = configuration(shape), word_tokenizer(_PROMPT)
    if config.get_text_config().vocab_size < len(tokenizer) + 3:
        raise KavaError(
            f"shape '{shape}': vocab_size must be {len(tokenizer) + 3} or more",
            code="bench.vocabulary-too-small",
            key="vocab_size",
        )
    return config, tokenizer


def _new_model(config: Any, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    with torch.device(device):
        return pretrained.new_model(config, dtype=dtype, attn_implementation=IMPLEMENTATION_NAME)


@dataclass(frozen=True)
class Lengths:
    """Minimum and maximum number of tokens of an example's parts, with BOS, answer prompt and EOS.

    The defaults are the lengths with which the predecessors' code was measured. With a `source`,
    questions and chains of thought have the lengths of real examples (`kava.sweeps.lengths`);
    sentences are assumed to be twice as long as equations.

    Raises:
        KavaError: a question without a token.
    """

    question: tuple[int, int] = (59, 70)
    reasoning: tuple[int, int] = (41, 41)
    answer: tuple[int, int] = (8, 8)
    steps: int = STEPS
    source: Literal["gsm8k"] | None = None

    def __post_init__(self) -> None:
        if self.question[0] < 1:
            raise KavaError(
                "a question needs at least one token: BOS",
                code="bench.question-too-short",
                key="question",
            )


def parse_range(text: str) -> tuple[int, int]:
    """Parse a length such as `65`, or a range such as `59:70`.

    Raises:
        KavaError: the text is neither.
    """
    ends = text.split(":")
    if len(ends) > 2 or not all(end.isdecimal() for end in ends) or int(ends[0]) > int(ends[-1]):
        raise KavaError(
            f"'{text}': a length must be a number or a range minimum:maximum, as in 59:70",
            code="bench.length-not-written-so",
            key=text,
        )
    return int(ends[0]), int(ends[-1])


def random_sizes(
    reasoner: Reasoner, lengths: Lengths, count: int, seed: int = 0
) -> list[tuple[int, int, int]]:
    """Return tokens of question, chain of thought and answer of `count` examples.

    Raises:
        KavaError: the answer is too short for its prompt, one token and EOS.
    """
    prompt, recipe = reasoner.encoder.prompt, reasoner.recipe
    if lengths.answer[0] < len(prompt) + 2:
        raise KavaError(
            f"an answer needs at least {len(prompt) + 2} tokens: its prompt, one token and EOS",
            code="bench.answer-too-short",
            key="answer",
        )
    draw, real = random.Random(seed), real_lengths(seed)
    sizes = []
    for _ in range(count):
        question, reasoning, answer = (
            draw.randint(*part) for part in (lengths.question, lengths.reasoning, lengths.answer)
        )
        if lengths.source:
            question, reasoning = next(real)
            reasoning *= SENTENCES if recipe.data.options.get("form") == "natural" else 1
            reasoning -= reasoning // lengths.steps * recipe.drop_last_step
        sizes.append((question, reasoning, answer))
    return sizes


def rows_of_sizes(
    reasoner: Reasoner, sizes: Sequence[tuple[int, int, int]], steps: int = STEPS, seed: int = 0
) -> list[Row]:
    """Return examples of random tokens with these sizes, the same for the same seed.

    Args:
        sizes: tokens of question, chain of thought and answer (`random_sizes`).
        steps: number of steps of the chain of thought.
    """
    prompt, eos = reasoner.encoder.prompt, reasoner.tokenizer.eos_token_id
    draw, vocabulary = random.Random(seed), structure.table(reasoner.lm).weight.shape[0]

    def tokens(number: int) -> list[int]:
        return [draw.randrange(len(reasoner.tokenizer), vocabulary) for _ in range(number)]

    rows = []
    for i, (question, reasoning, answer) in enumerate(sizes):
        step_of = [at * steps // max(reasoning, 1) for at in range(reasoning)]
        end = [*prompt, *tokens(answer - len(prompt) - 1), eos]
        rows.append(
            Row(f"random-{i}", tokens(question), tokens(reasoning), step_of, end, len(prompt))
        )
    return rows


def random_rows(reasoner: Reasoner, lengths: Lengths, count: int, seed: int = 0) -> list[Row]:
    """Return examples of random tokens, the same for the same seed and vocabulary.

    Raises:
        KavaError: as `random_sizes`.
    """
    sizes = random_sizes(reasoner, lengths, count, seed)
    return rows_of_sizes(reasoner, sizes, lengths.steps, seed)
