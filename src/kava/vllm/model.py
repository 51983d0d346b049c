"""vLLM's Llama, Qwen2 and Qwen3 that also return the embeddings of a thought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.utils import _merge_multimodal_embeddings
from vllm.multimodal import MULTIMODAL_REGISTRY

from kava.reasoning import checkpoint
from kava.reasoning.resolve import load_resolved
from kava.vllm.engine import EngineReasoner
from kava.vllm.processor import DummyInputs, Info, Processor

#: Questions that think together: vLLM's budget for encoders does not count the passes.
_TOGETHER = 32


class _Thinks:
    """What the three models share. vLLM's protocol is inherited by the classes themselves."""

    model: Any
    unreadable_ids: Tensor

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # pyright: ignore
        model = vllm_config.model_config
        folder = checkpoint.locate(model.model, model.revision)
        recipe = load_resolved(folder / "recipe.yaml", saved=True)
        self.kava = EngineReasoner(self.model, recipe, model.hf_config.hidden_size, model.dtype)
        unreadable = torch.tensor(model.hf_config.kava["unreadable_ids"], dtype=torch.long)
        self.register_buffer("unreadable_ids", unreadable, persistent=False)  # pyright: ignore

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Return None: the text of a prompt contains no placeholder."""
        return None

    def get_language_model(self) -> Any:
        """Return the model itself, which generates the text."""
        return self

    def embed_multimodal(self, **given: Any) -> Sequence[Tensor]:
        """Return the embeddings of each item's thought, [M + 2, hidden] each."""
        questions = [[int(i) for i in one.flatten()] for one in given["question"]]
        iterations = [int(i) for i in torch.as_tensor(given["iterations"]).flatten()]
        found: dict[int, Tensor] = {}
        for number in sorted(set(iterations)):
            items = [i for i, one in enumerate(iterations) if one == number]
            for at in range(0, len(items), _TOGETHER):
                part = items[at : at + _TOGETHER]
                thoughts = self.kava.think([questions[i] for i in part], number)
                found.update(zip(part, thoughts, strict=True))
        return [found[i] for i in range(len(questions))]

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """Return the input embeddings, with thoughts in the places of their placeholders."""
        embeds = self.model.embed_input_ids(input_ids)
        if multimodal_embeddings is None or is_multimodal is None:
            return embeds
        return _merge_multimodal_embeddings(embeds, multimodal_embeddings, is_multimodal)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return the logits; ids that have no text are never generated."""
        logits = super().compute_logits(hidden_states)  # pyright: ignore
        return None if logits is None else logits.index_fill_(1, self.unreadable_ids, -torch.inf)


_registered = MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=DummyInputs)


@_registered
class KavaLlamaForCausalLM(_Thinks, LlamaForCausalLM, SupportsMultiModal):
    """Llama that thinks in latents."""


@_registered
class KavaQwen2ForCausalLM(_Thinks, Qwen2ForCausalLM, SupportsMultiModal):
    """Qwen2 that thinks in latents."""


@_registered
class KavaQwen3ForCausalLM(_Thinks, Qwen3ForCausalLM, SupportsMultiModal):
    """Qwen3 that thinks in latents."""
