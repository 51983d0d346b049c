"""Shape annotations for signatures, such as `Float[Tensor, "batch kv_heads steps head_dim"]`.

Within one call, a name stands for the same size everywhere. `""` is a scalar, `...` any shape,
`*name` any number of axes, and `{argument}` the value of that argument. The annotations document
what a tensor contains and have no cost at runtime. They are only checked in the tests, with
jaxtyping, which is not needed otherwise.
"""

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
