"""Shapes in signatures: `Float[Tensor, "batch kv_heads steps head_dim"]` and its like.

A name means the same size everywhere in one call; `""` is a scalar, `...` any shape, `*name` any
number of axes, `{argument}` the number given there. They say what a tensor holds and cost nothing:
only the tests check them, with jaxtyping, which nothing else needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Int
    from typing import Annotated as Num
else:
    try:
        from jaxtyping import Bool, Float, Int, Num
    except ImportError:
        Bool = Float = Int = Num = Annotated

__all__ = ["Bool", "Float", "Int", "Num"]
