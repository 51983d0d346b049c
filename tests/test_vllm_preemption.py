"""The plugin in vLLM with too few blocks: requests are preempted and computed again."""

import pytest
from vllm_here import CHECKPOINT, kava_ids, serving, vllm

from kava import Reasoner
from kava.data.synthetic import generate
from kava.reasoning.export import export

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = 150


def preemptions(engine):
    (found,) = [one for one in engine.get_metrics() if one.name == "vllm:num_preemptions"]
    return found.value


def test_preempted_requests_have_the_ids_of_kava(tmp_path):
    folder = export(Reasoner.from_pretrained(CHECKPOINT), tmp_path / "exported")
    reasoner = Reasoner.from_pretrained(folder)
    questions = [example.question for example in generate("test", 16)]
    expected = kava_ids(reasoner, questions, tokens=TOKENS, min_new_tokens=TOKENS)
    long = vllm.SamplingParams(temperature=0, min_tokens=TOKENS, max_tokens=TOKENS)
    settings = {"num_gpu_blocks_override": 24, "max_num_seqs": 16, "disable_log_stats": False}
    with serving(folder, **settings) as engine:
        found = engine.generate(questions, long, use_tqdm=False)
        assert preemptions(engine) > 0
    assert [list(one.outputs[0].token_ids) for one in found] == expected
