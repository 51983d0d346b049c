"""What a refusal is matched by: the code and the key of its error, not its words."""

from contextlib import contextmanager

import pytest

from kava.errors import KavaError


class Said(str):
    """What a command printed, with the code and the key of its error.

    `out`: what it printed for the next program, without its messages.
    """

    def __new__(cls, out, messages, error):
        said = super().__new__(cls, out + messages)
        said.out = out
        said.code, said.key = (error.code, error.key) if error else (None, None)
        return said


@contextmanager
def refused(code, key=None):
    """Inside, a KavaError of this code is raised, about this key if one is given."""
    with pytest.raises(KavaError) as caught:
        yield caught
    assert caught.value.code == code, caught.value
    assert key is None or caught.value.key == key, caught.value
