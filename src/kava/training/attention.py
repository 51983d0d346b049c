"""Check before a training that the attention of its longest micro-batch fits into memory.

A forward pass has a mask with a cell for each new column and each column that it attends to. So
what a row needs grows with the square of its length: 120,000 tokens need more than 70 GB for the
mask alone. The operating system would end the process without a word.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from kava.errors import KavaError
from kava.reasoning import batching
from kava.reasoning.reasoner import Reasoner
from kava.system.text import format_bytes

_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup/memory.max")


def check_attention(reasoner: Reasoner, rows: Sequence[batching.Row], together: int) -> None:
    """Raise an error if the mask of the longest micro-batch is larger than the memory.

    The longest examples are counted as one micro-batch, which a training draws sooner or later
    (with `train.group_by_length`, in each epoch).

    Args:
        together: number of examples in a process's micro-batch.

    Raises:
        KavaError: names the example, its length and the memory.
    """
    there = free_memory(reasoner.device)
    longest = max(rows, key=lambda row: row.columns)
    needed = mask_bytes(longest, together, reasoner)
    if there is None or needed <= there:
        return
    raise KavaError(
        f"data.train: row {longest.id} has {longest.columns:,} tokens; a micro-batch of {together} "
        f"rows of this length needs an attention mask of {format_bytes(needed)}, but only "
        f"{format_bytes(there)} of memory are available; lower train.micro_batch_size, or remove "
        "such rows",
        code="training.no-memory-for-row",
        key=longest.id,
    )


def mask_bytes(row: batching.Row, batch_size: int, reasoner: Reasoner) -> int:
    """Return the size in bytes of the masks of the largest forward pass, for equal rows.

    There are two masks: a boolean one, and the additive one in the dtype of the attention.

    Args:
        row: an example.
        batch_size: number of such examples in a micro-batch.
    """
    rest = len(row.steps) + len(row.answer)
    cells = max(len(row.question) ** 2, rest * row.columns)
    precision, on_gpu = reasoner.recipe.train.precision, reasoner.device.type == "cuda"
    halved = precision == "bf16" or (precision == "auto" and on_gpu)
    return batch_size * cells * (3 if halved else 5)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes of memory that are free; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not _MEMORY.is_file():
        return None
    fields = dict(line.split(":", 1) for line in _MEMORY.read_text("ascii").splitlines())
    if "MemAvailable" not in fields:
        return None
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = _GROUP.read_text("ascii").strip() if _GROUP.is_file() else "max"
    return min(free, int(limit)) if limit.isdecimal() else free
