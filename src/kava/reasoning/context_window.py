"""Context-window budget: how long a question may be, given the latents and the answer.

Question, latents, answer prompt and answer together may have at most as many tokens as the backbone
states positions (`max_position_embeddings`). Beyond them, learned position embeddings do not exist,
and rotary positions are untrained.
"""

from collections.abc import Sequence

from kava.errors import KavaError
from kava.reasoning.interface import ReasonerBase

#: A question with more characters than this per allowed token is rejected before tokenization.
LETTERS_PER_TOKEN = 32


def max_positions(reasoner: ReasonerBase) -> int | None:
    """Return the number of positions of the backbone, or None if its config states none."""
    return getattr(reasoner.lm.config.get_text_config(), "max_position_embeddings", None)


def reserved_tokens(reasoner: ReasonerBase) -> int:
    """Return the number of tokens between a question and its answer.

    These are <bot>, the latents, <eot> and the answer prompt. The prompt also counts for a method
    that generates it itself.
    """
    latents = reasoner.recipe.num_latents + 2 if reasoner.method.uses_latents else 0
    return latents + len(reasoner.encoder.prompt)


def check(
    reasoner: ReasonerBase, questions: Sequence[Sequence[int]], names: Sequence[str] | None = None
) -> None:
    """Check that each question leaves room for at least one new token.

    Args:
        questions: token ids of each question.
        names: names of the questions for the error message; by default their numbers.

    Raises:
        KavaError: a question is too long.
    """
    most = max_positions(reasoner)
    if most is None:
        return
    room = most - reserved_tokens(reasoner) - 1
    for place, ids in enumerate(questions):
        if len(ids) > room:
            which = "the question" if len(questions) == 1 else f"question {place + 1}"
            reserved = reserved_tokens(reasoner)
            raise KavaError(
                f"{names[place] if names else which} has {len(ids)} tokens; the backbone has "
                f"{most} positions, of which {reserved} are reserved for latents and answer prompt "
                f"and one for the answer, so a question may have at most {max(room, 0)} tokens",
                code="reasoning.question-too-long",
                key=names[place] if names else which,
            )


def max_question_tokens(reasoner: ReasonerBase, command: str, new_tokens: int, limit: int) -> int:
    """Return the maximum number of tokens of a question.

    This is `limit`, or less if the backbone does not have enough positions.

    Args:
        command: name of the calling command, for the error message.
        new_tokens: number of tokens to reserve for the answer.
        limit: the desired maximum.

    Raises:
        KavaError: the positions of the backbone leave no room for a question.
    """
    most = max_positions(reasoner)
    if most is None:
        return limit
    room = most - reserved_tokens(reasoner) - new_tokens
    if room < 1:
        raise KavaError(
            f"{command}: the backbone has {most} positions, which leaves no room for a question "
            f"in addition to {new_tokens} new tokens; lower --max-new-tokens",
            code="reasoning.no-room-for-question",
            key="--max-new-tokens",
        )
    return min(limit, room)
