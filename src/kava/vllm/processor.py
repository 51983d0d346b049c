"""The thought as a modality of vLLM: token ids and placeholders of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature
from vllm.inputs.engine import mm_input
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import (
    MultiModalFieldConfig,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
)

#: Name of the modality.
MODALITY = "thought"
#: A placeholder stands for <bot>, a latent or <eot>, whose ids may lie beyond the embeddings.
PLACEHOLDER = 0
#: Largest T of a request: each iteration is a pass over all latents.
MOST_ITERATIONS = 64


class _Parser(MultiModalDataParser):
    def _get_subparsers(self) -> Mapping[str, Any]:
        return {MODALITY: lambda data: ProcessorBatchItems(data, MODALITY)}


class Info(BaseProcessingInfo):
    """What vLLM asks about the modality."""

    @property
    def section(self) -> dict[str, Any]:
        """The section `kava` of the folder's config.json."""
        return self.get_hf_config().kava

    @property
    def width(self) -> int:
        """Number of placeholders, M + 2."""
        return self.section["num_latents"] + 2

    def get_data_parser(self) -> MultiModalDataParser:
        """Return the parser of the modality."""
        return _Parser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return the number of thoughts in a prompt."""
        return {MODALITY: 1}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Any) -> Mapping[str, int]:
        """Return the number of placeholders of a thought."""
        return {MODALITY: self.width}

    def iterations(self, given: Mapping[str, Any]) -> int:
        """Return T of a request: `num_iterations` of its `mm_processor_kwargs`, or the recipe's.

        Raises:
            ValueError: another key is given, T is not a whole number from 0 to 64, or the method
                does not iterate.
        """
        default = self.section["num_iterations"]
        if unknown := set(given) - {"num_iterations"}:
            raise ValueError(f"mm_processor_kwargs: unknown key {sorted(unknown)[0]!r}")
        wanted = given.get("num_iterations", default)
        if "num_iterations" in given and default is None:
            raise ValueError(
                f"method '{self.section['method']}' does not iterate; omit num_iterations"
            )
        if wanted is None:
            return 0
        if type(wanted) is not int or not 0 <= wanted <= MOST_ITERATIONS:
            raise ValueError(
                f"num_iterations must be a whole number from 0 to {MOST_ITERATIONS}, not {wanted!r}"
            )
        return wanted


class DummyInputs(BaseDummyInputsBuilder[Info]):
    """Nothing: `Processor.get_dummy_inputs` builds the longest question itself."""

    def get_dummy_text(self, mm_counts: Any) -> str:
        """Return an empty text."""
        return ""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Any, mm_options: Any) -> dict[str, Any]:
        """Return no data."""
        return {}


class Processor(BaseMultiModalProcessor[Info]):
    """Append the placeholders of the thought and the answer prompt to a question's token ids."""

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        return {
            name: MultiModalFieldConfig.batched(MODALITY) for name in ("question", "iterations")
        }

    def _get_prompt_updates(self, *_: Any, **__: Any) -> Sequence[Any]:
        return []

    def get_dummy_inputs(self, seq_len: int, mm_counts: Any, mm_options: Any) -> ProcessorInputs:
        """Return the longest question, with which vLLM measures the memory."""
        room = seq_len - self.info.width - len(self.info.section["prompt_ids"])
        return ProcessorInputs([PLACEHOLDER] * max(room, 1), MultiModalDataItems({}))

    def apply(self, inputs: ProcessorInputs, timing_ctx: Any) -> Any:
        """Return vLLM's input: question, placeholders and answer prompt."""
        question, width = list(inputs.prompt), self.info.width
        rows = self.info.get_hf_config().vocab_size
        if beyond := [token for token in question if token >= rows]:
            raise ValueError(f"token id {beyond[0]} has no embedding; the largest is {rows - 1}")
        iterations = self.info.iterations(inputs.hf_processor_mm_kwargs)
        data = BatchFeature(
            {"question": torch.tensor([question]), "iterations": torch.tensor([iterations])}
        )
        fields = self._get_mm_fields_config(data, {})
        name = MultiModalHasher.hash_kwargs(
            self.info.ctx.get_mm_config().mm_hasher_algorithm,
            model_id=self.info.model_id,
            question=question,
            iterations=iterations,
        )
        prompt = self.info.section["prompt_ids"]
        return mm_input(
            prompt_token_ids=[*question, *[PLACEHOLDER] * width, *prompt],
            mm_kwargs=MultiModalKwargsItems.from_hf_inputs(data, fields),
            mm_hashes={MODALITY: [name]},
            mm_placeholders={MODALITY: [PlaceholderRange(offset=len(question), length=width)]},
        )
