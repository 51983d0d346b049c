"""What the plugin sets and refuses in vLLM's configuration, before any weight is read."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from kava.reasoning.export import FORMAT
from kava.reasoning.methods import LatentMethod
from kava.recipe import registry
from kava.vllm import ARCHITECTURES, MODE


class KavaConfig(VerifyAndUpdateConfig):
    """The check of an exported folder; vLLM calls it by the architecture's name."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Choose kava's renderer.

        Raises:
            ValueError: the folder cannot be served; one line says why.
        """
        config = model_config.hf_config
        section = getattr(config, "kava", None) or {}
        if section.get("format") != FORMAT:
            raise ValueError(
                f"{model_config.model}: config.json has no section `kava` of format {FORMAT}; "
                "write the folder with `kava export`"
            )
        if model_config.architecture not in ARCHITECTURES:
            raise ValueError(
                f"{model_config.model}: {model_config.architecture} is not supported, only "
                f"{', '.join(ARCHITECTURES)}; use `prompt_embeds`"
            )
        method = registry.find("methods", section["method"])
        if not issubclass(method, LatentMethod) or (
            method.begin_answer is not LatentMethod.begin_answer
        ):
            raise ValueError(
                f"{model_config.model}: method '{section['method']}' is not supported, since it "
                "does not answer after latents; use `prompt_embeds`"
            )
        if not section.get("fixed_size", True):
            raise ValueError(
                f"{model_config.model}: method_options.stop is not supported, since each question "
                "has its own number of latents; use `prompt_embeds`"
            )
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            raise ValueError(
                f"{model_config.model}: sliding windows are not supported; use `prompt_embeds`"
            )
        model_config.tokenizer_mode = MODE
        if not method.begins_with_prompt:
            first = "kava.vllm.first_token:FirstToken"
            model_config.logits_processors = [*(model_config.logits_processors or []), first]

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuse what the latent passes cannot run on.

        Raises:
            ValueError: pipeline parallelism is requested.
        """
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError("kava: pipeline parallelism is not supported; use tensor parallelism")
