"""Basic types and notation: the `Example`, and the letters used for sizes in shapes and equations.

The letters have the same meaning everywhere in this package:

    B  batch                     L  layers                H  key/value heads
    Q  question tokens           d  hidden size           D  head size
    C  reasoning tokens          M  latent tokens         T  Jacobi iterations
    A  answer-segment tokens     S  columns of a cache

The stages from a question to its answer have one type each:

    `MaskedCache`      a KV cache with its mask; after the prefill, that of the question, KV(Q)
    `LatentState`      the latents: their keys, values and hidden states, with the cache after them
    `ReasoningResult`  what the answer continues from: the cache after the reasoning, and a prompt
    `Answer`           the generated text, with the number of forward passes

Reasoning tokens are the tokens of the chain of thought. In shapes with names, B is `batch`, L
`layers`, H `kv_heads`, Q `question`, d `hidden`, D `head_dim`, C `steps`, M `latents` and A
`answer`. `columns` is the number of columns of a segment or of a cache.
"""

from dataclasses import dataclass, field

ANSWER_PROMPT = "The answer is:"


@dataclass(frozen=True)
class Example:
    """One problem: a question, its chain of thought and its answer.

    Args:
        id: unique within a data set; it is also the id in the predictions file.
        question: the text of the question.
        steps: the reasoning steps of the chain of thought, in order; may be empty.
        answer: text, usually a number without thousands separators.
        extra: further fields, which are ignored when examples are compared.
    """

    id: str
    question: str
    steps: tuple[str, ...]
    answer: str
    extra: dict[str, str] = field(default_factory=dict, compare=False)
