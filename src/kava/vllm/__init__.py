"""Plugin of vLLM: an exported folder (`kava export`) answers plain text, thinking in latents.

Thinking is a modality, as images are: the prompt is the question's token ids, then one placeholder
each for <bot>, the latents and <eot>, then the answer prompt. vLLM asks the model for embeddings of
the placeholders (`model.py`); the model runs the latent passes of kava's own rules on vLLM's own
layers (`engine.py`). The last pass is vLLM's prefill. Chunked prefill, prefix caching and batching
therefore hold.

The renderer and `MODELS_CONFIG_MAP` are internals of vLLM. The plugin is for version 0.32 alone.
"""

from __future__ import annotations

#: Architectures of exported folders on whose layers the latent passes can run.
ARCHITECTURES = tuple(f"Kava{family}ForCausalLM" for family in ("Llama", "Qwen2", "Qwen3"))
#: Name of vLLM's tokenizer mode and renderer for exported folders.
MODE = "kava"


def register() -> None:
    """Register the architectures and the renderer; vLLM calls it in each of its processes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    from kava.vllm.config import KavaConfig

    if MODE in RENDERER_REGISTRY.renderers:  # vLLM may load a plugin more than once
        return
    for family in sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())):
        name = f"Kava{family}"
        # The others for a line by `KavaConfig`, in place of vLLM's list of all that it knows.
        found = name if name in ARCHITECTURES else ARCHITECTURES[0]
        ModelRegistry.register_model(name, f"kava.vllm.model:{found}")
        MODELS_CONFIG_MAP[name] = KavaConfig
    RENDERER_REGISTRY.register(MODE, "kava.vllm.renderer", "KavaRenderer")
    TokenizerRegistry.register(MODE, "kava.vllm.tokenizer", "SavedTokenizer")
