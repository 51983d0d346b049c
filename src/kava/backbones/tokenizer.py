"""Tokenizers for small backbones: trained on their examples, or with a token for each word.

The first is a byte-level BPE, so every text can be encoded. A space before a number is not encoded:
`has 4` and `<<4+` contain the same token for 4, which a small model would otherwise have to learn
twice. Decoded text therefore lacks that space (`has4`); this does not affect answers.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"


def train_tokenizer(texts: Iterable[str], size: int, digits: str) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on `texts`.

    Args:
        texts: the training texts.
        size: maximum size of the vocabulary, which contains at least the 256 bytes and three
            special tokens.
        digits: `single` makes each digit a token; `whole` allows frequent numbers to be one token.
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


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per word or sign; those not among `words` are unknown."""
    vocabulary = dict.fromkeys([PAD, BOS, EOS, UNKNOWN, *words])
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN
    )
