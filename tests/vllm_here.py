"""vLLM for the tests of our plugin, which are skipped where it is not installed.

vLLM is large and has its own versions of torch and transformers, so that these tests have an
environment of their own: `make test-vllm`.
"""

import gc
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

vllm = pytest.importorskip(
    "vllm", reason="needs vLLM, in an environment of its own: make test-vllm"
)
# The engine runs in the process of the test, on little memory.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}

CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoints" / "quickstart" / "kava"
GREEDY = vllm.SamplingParams(temperature=0, max_tokens=8)


@contextmanager
def serving(folder, **settings):
    """An engine that ends before the next begins: they share what vLLM keeps in globals."""
    settings = {"dtype": "float32", "enforce_eager": True, "block_size": 32, **settings}
    engine = vllm.LLM(str(folder), **settings)
    try:
        yield engine
    finally:
        engine.llm_engine.engine_core.shutdown()
        del engine
        gc.collect()


def kava_ids(reasoner, questions, iterations=None, tokens=8, **options):
    """Token ids of the answers by kava itself, as vLLM counts them."""
    thinking = reasoner.think(questions, iterations)
    found = reasoner.continue_from(thinking, max_new_tokens=tokens, **options)
    if thinking.prompt_text is None:  # the first token is generated as well
        found = torch.cat((thinking.prompt, found), dim=1)[:, :tokens]
    lengths = reasoner.generated_lengths(found).tolist()
    return [row[:length] for row, length in zip(found.tolist(), lengths, strict=True)]
