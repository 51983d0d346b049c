"""How long a question may be beside the latents and the answer.

Question, latents, answer prompt and answer together have no more tokens than the backbone states
positions (`max_position_embeddings`): past them learned positions do not exist, and rotated ones
were never trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from kava.errors import KavaError
from kava.reasoning.interface import ReasonerProtocol

#: A question with more letters than this for each token it may have is not even read into tokens.
LETTERS_PER_TOKEN = 32


def max_positions(reasoner: ReasonerProtocol) -> int | None:
    """How many the backbone has; None where it states no number."""
    return getattr(reasoner.lm.config.get_text_config(), "max_position_embeddings", None)


def reserved_tokens(reasoner: ReasonerProtocol) -> int:
    """Tokens between a question and its answer: <bot>, latents, <eot> and the answer prompt.

    A method that writes its prompt itself needs room for it too.
    """
    latents = reasoner.recipe.num_latents + 2 if reasoner.method.uses_latents else 0
    return latents + len(reasoner.encoder.prompt)


def check(
    reasoner: ReasonerProtocol,
    questions: Sequence[Sequence[int]],
    names: Sequence[str] | None = None,
) -> None:
    """Raise a KavaError where a question, as token ids, leaves no room for one new token.

    Args:
        names: of the questions, for the error; else they are counted.
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
                f"{names[place] if names else which} has {len(ids)} tokens and the backbone {most} "
                f"positions; beside {reserved} tokens for latents and answer prompt and one for an "
                f"answer, a question may have {max(room, 0)}",
                code="reasoning.question-too-long",
                key=names[place] if names else which,
            )


def max_question_tokens(
    reasoner: ReasonerProtocol, command: str, new_tokens: int, wanted: int
) -> int:
    """The tokens that a question may have: `wanted`, or what the backbone's positions leave.

    Args:
        command: who asks, for the error.

    Raises:
        KavaError: they leave none.
    """
    most = max_positions(reasoner)
    if most is None:
        return wanted
    room = most - reserved_tokens(reasoner) - new_tokens
    if room < 1:
        raise KavaError(
            f"{command}: the backbone has {most} positions, which leaves no room for a "
            f"question beside {new_tokens} new tokens; lower --max-new-tokens",
            code="reasoning.no-room-for-question",
            key="--max-new-tokens",
        )
    return min(wanted, room)
