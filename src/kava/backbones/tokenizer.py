"""A tokenizer for a small backbone, made from its training rows.

Byte-level BPE, so every text can be encoded. A blank before a number is not a token: `has 4` and
`<<4+` hold the same token for 4, which a small model would otherwise have to learn twice.
Decoded text therefore lacks that blank (`has4`); answers are not touched by it.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def train_tokenizer(texts: Iterable[str], size: int, digits: str) -> PreTrainedTokenizerFast:
    """Train on `texts`.

    Args:
        size: largest vocabulary, at least 256 bytes and three special tokens are in it.
        digits: `single` makes each digit a token; `whole` lets frequent numbers be one token.
    """
    number = r"\d" if digits == "single" else r"\d+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" (?=\d)"), "removed"),
            pre_tokenizers.Split(Regex(rf"{number}| ?[^\s\d\w]+| ?[^\W\d]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS
    )
