"""A tensor of another shape or kind than its signature says is an error, in tests alone."""

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError
from transformers import DynamicCache

from kava.backbones.masked_cache import MaskedCache
from kava.reasoning.evictions import EvictionInputs, select_top_k
from kava.reasoning.latents._watch import report_pass
from kava.reasoning.losses.hidden_state import hidden_state_loss
from kava.reasoning.losses.kv_cache import kv_cache_loss
from kava.reasoning.states import Suffix

ROWS = torch.tensor(2)


def test_a_loss_refuses_states_of_another_shape():
    student, teacher = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    hidden_state_loss(student, teacher, "l1", True, ROWS)
    for wrong in (teacher[0], teacher[:, :1], teacher.long()):
        with pytest.raises(TypeCheckError):
            hidden_state_loss(student, wrong, "l1", True, ROWS)


def test_l_kv_refuses_a_mask_for_other_slots():
    pairs = [(torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4))]
    with pytest.raises(TypeCheckError):
        kv_cache_loss(pairs, pairs, [torch.ones(2, 1, 2, dtype=torch.bool)], "l1", True, ROWS)


def test_an_eviction_refuses_what_is_not_of_the_same_trace():
    keys, mask = torch.randn(2, 1, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    scored = EvictionInputs(keys, mask, None, mask[:, :2])
    with pytest.raises(TypeCheckError):
        EvictionInputs(keys, mask[:, :4], None, mask[:, :2])
    with pytest.raises(TypeCheckError):
        select_top_k(torch.randn(2, 5), scored, 3)


def test_a_thought_and_what_follows_it_hold_masks():
    ones = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(TypeCheckError):
        MaskedCache(DynamicCache(), ones.long())
    with pytest.raises(TypeCheckError):
        Suffix(torch.randn(2, 4, 8), ones)
    with pytest.raises(TypeCheckError):
        report_pass(torch.randn(2, 8))


@pytest.mark.processes
def test_the_package_needs_no_checker():
    code = (
        "import sys; sys.modules.update(jaxtyping=None, beartype=None)\n"
        "import torch\n"
        "from kava.reasoning.losses.hidden_state import hidden_state_loss\n"
        "from kava.reasoning.methods.kava import KaVa\n"
        "same = torch.randn(3, 2, 4)\n"
        "assert hidden_state_loss(same, same, 'l1', True, torch.tensor(2)) == 0"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
