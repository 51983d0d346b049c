"""Token ids of a text in several parts, where a part alone has other ids than within the text.

A SentencePiece tokenizer (Llama 2, Mistral, Phi-3, TinyLlama) writes a blank before any text, so an
equation that follows another would get a blank that the text does not have, and an answer that
begins with a space would get two.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

Ids = list[int]
_BLANKS = ("▁", "Ġ")  # of SentencePiece, and of byte-level BPE


def prepends_blank(encode: Callable[[list[str]], list[Ids]], to_tokens: Callable) -> bool:
    """Whether a tokenizer writes a blank before a text that is encoded alone."""
    tokens = to_tokens(encode(["x"])[0])
    return bool(tokens) and str(tokens[0]).startswith(_BLANKS)


def prefixes(parts: Sequence[str]) -> list[str]:
    """Return the text up to the end of each part; the last is the whole text."""
    return list(accumulate(parts))


def split(parts: Sequence[str], ids: Mapping[str, Ids]) -> list[Ids]:
    """Split the ids of a whole text into those of its parts.

    A token that spans two parts belongs to the first.

    Args:
        parts: the parts of the text.
        ids: token ids of each text in `prefixes(parts)`.
    """
    if not parts:
        return []
    texts = prefixes(parts)
    # The number of tokens of a prefix tells where its last part ends in the whole text.
    whole = ids[texts[-1]]
    ends = [min(end, len(whole)) for end in accumulate((len(ids[t]) for t in texts), max)]
    return [whole[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
