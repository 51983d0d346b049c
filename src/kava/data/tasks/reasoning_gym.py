"""Questions of any generator of the package reasoning-gym, which the extra `gym` installs.

    kava eval RUN --task reasoning_gym --option name=chain_sum --option max_terms=3

Answers are compared by the rules of every other task, not by the generator's own function: a
generator that accepts several answers to a question does not fit.
"""

from typing import Any

from kava.data import _gym, call, rows
from kava.data.tasks import Task
from kava.errors import KavaError

VERSION = 1


def load(
    file: str | None = None,
    limit: int | None = None,
    name: str = "chain_sum",
    count: int = 500,
    seed: int = 0,
    **options: Any,
) -> Task:
    """Generate `count` questions, or `limit` if that is fewer; scores are stored under their name.

    Args:
        name: a generator of reasoning-gym; the task is called `reasoning_gym-<name>`.
        options: fields of the generator's configuration, such as `max_terms`.

    Raises:
        KavaError: if reasoning-gym is not installed; a file is given; the generator or an option is
            unknown; a value is out of range; or a question has no answer of its own.
    """
    if file:
        raise KavaError(
            "task reasoning_gym generates its own questions; omit the file",
            code="data.file-unwanted",
            key="file",
        )
    what = f"reasoning_gym-{name}"
    wanted = {"name": name, "count": min(count, limit or count), "seed": seed, "options": options}
    made = call(_gym.rows, f"task {what}", wanted, {})
    told = ", ".join(f"{key}={value}" for key, value in {"seed": seed, **options}.items())
    source = f"reasoning-gym, {name} ({told})"
    read = (
        (f"{source}, row {n}", {key: entry[key] for key in ("question", "answer")})
        for n, entry in enumerate(made, 1)
    )
    return Task(what, VERSION, "test", rows.to_examples(read, source, what), source)
