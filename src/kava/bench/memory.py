"""Count the memory of a recipe's training step on any shape (`kava bench memory`)."""

from kava.backbones import loading
from kava.bench.shapes import Lengths, random_sizes, reasoner_of_sizes, rows_of_sizes
from kava.recipe.schema import Recipe
from kava.training import memory
from kava.training.memory import Memory
from kava.training.sampler import EpochOrder, widest
from kava.training.step import micro_batches

DRAWS = 1000  # micro-batches, of which the widest is counted


def count(recipe: Recipe, shape: str, lengths: Lengths, rows: int, device: str) -> Memory:
    """Return the peak memory of a training step with `rows` examples per micro-batch.

    It is that of the widest of `DRAWS` micro-batches, which a training comes upon sooner or later.

    Args:
        device: the device it would run on, `cpu` or `cuda`; it decides the precision and the
            attention kernel.

    Raises:
        KavaError: the shape, or the recipe on it, is not possible.
    """
    reasoner = reasoner_of_sizes(recipe, shape, loading.choose_dtype(recipe, device))
    sizes = random_sizes(reasoner, lengths, DRAWS * rows)
    train = recipe.train
    together = [sum(size) for size in sizes] if train.group_by_length else None
    order = EpochOrder(len(sizes), 0, rows, together, max(rows, train.batch_size))
    chosen = [sizes[i] for i in widest(sizes, order, rows)]
    # A second micro-batch runs while gradients are held.
    chosen *= 2 if train.batch_size > rows else 1
    batches = micro_batches(reasoner, rows_of_sizes(reasoner, chosen), rows)
    return memory.count(reasoner, batches, train.autocasts(device), device == "cuda")
