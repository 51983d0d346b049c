"""Shapes in signatures (`kava.shapes`) are checked by every test that runs in this process.

conftest.py switches that on before anything of kava is imported.
"""

import sys
from typing import Any

from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import install_import_hook

CHECKED = (
    "kava.backbones.masked_cache",
    "kava.reasoning.evictions",
    "kava.reasoning.latents",
    "kava.reasoning.losses",
    "kava.reasoning.states",
)


def checked(defined):
    """Check each call of a function. A `ReasonerBase` may be anything, as a stand-in is."""
    interface = sys.modules.get("kava.reasoning.interface")
    base = getattr(interface, "ReasonerBase", None)
    anything = FrozenDict({base: Any} if base else {})
    return beartype(conf=BeartypeConf(hint_overrides=anything))(defined)


def switch_on():
    """From here on, modules that are imported for the first time check what they are given."""
    already = [name for name in sys.modules if name.startswith(CHECKED)]
    assert not already, already
    install_import_hook(CHECKED, "shapes_checked.checked")
