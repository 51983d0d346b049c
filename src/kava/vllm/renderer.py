"""How a text or a chat becomes a prompt: the question is encoded exactly as kava does."""

from __future__ import annotations

from typing import Any

from vllm.inputs import TextPrompt, TokensPrompt
from vllm.renderers.hf import HfRenderer

from kava.reasoning.batching import Encoder
from kava.vllm.processor import MODALITY


class KavaRenderer(HfRenderer):
    """Renderer of exported folders: a prompt is one question."""

    def __init__(self, config: Any, tokenizer: Any):
        super().__init__(config, tokenizer)
        self.encoder = Encoder(self.get_tokenizer(), drop_last_step=False)

    def _tokenize_prompt(self, prompt: Any, params: Any) -> TokensPrompt:
        if not prompt["prompt"].strip():
            raise ValueError("the question is empty")
        return self._build_tokens_prompt(self.encoder.question(prompt["prompt"]), prompt)

    def _process_tokens(self, prompt: Any, *, skip_mm_cache: bool = False) -> Any:
        prompt["multi_modal_data"] = {MODALITY: [None]}
        return super()._process_tokens(prompt, skip_mm_cache=skip_mm_cache)

    async def _process_tokens_async(self, prompt: Any, *, skip_mm_cache: bool = False) -> Any:
        prompt["multi_modal_data"] = {MODALITY: [None]}
        return await super()._process_tokens_async(prompt, skip_mm_cache=skip_mm_cache)

    def render_messages(self, messages: Any, params: Any) -> tuple[Any, Any]:
        """Return the question of a chat, which is its only message.

        Raises:
            ValueError: there are other messages, or the content is not a text.
        """
        roles = [str(one.get("role")) for one in messages]
        if roles != ["user"]:
            raise ValueError(f"a chat must be one user message, not {', '.join(roles) or 'empty'}")
        content = messages[0].get("content")
        if isinstance(content, list):
            if any(part.get("type") != "text" for part in content):
                raise ValueError("the content of the message must be text")
            content = "\n".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise ValueError("the content of the message must be text")
        return [{"role": "user", "content": content}], TextPrompt(prompt=content)

    async def render_messages_async(self, messages: Any, params: Any) -> tuple[Any, Any]:
        """Return the question of a chat; see `render_messages`."""
        return self.render_messages(messages, params)
