"""The tokenizer of an exported folder, loaded as kava does."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from vllm.tokenizers.hf import CachedHfTokenizer


class SavedTokenizer(CachedHfTokenizer):
    """vLLM's tokenizer of transformers, of the class that the folder names.

    See `saved` of `kava.backbones.pretrained.load_tokenizer`.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """Load it with an empty configuration, so that the model's family does not matter."""
        options = {**options, "config": PreTrainedConfig()}
        options.pop("trust_remote_code", None)
        return super().from_pretrained(*args, **options, trust_remote_code=False)
