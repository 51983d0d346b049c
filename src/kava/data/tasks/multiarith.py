"""MultiArith test: 180 problems with several operations (Roy and Roth, arXiv:1608.01413).

The set has 600 rows. CODI and KaVa evaluate on the 180 rows of the Hub's test split.
"""

from kava.data.tasks._rows import Source

VERSION = 1
SOURCE = Source("MultiArith test", "multiarith", 180, "ChilleD/MultiArith", by_program=True)
# A file may have the rows of another split as well.
load = SOURCE.loader(
    "multiarith", VERSION, lambda row: row if row.get("split", "test") == "test" else None
)
