"""GSM-Hard: GSM8K test with large numbers, 1,319 rows (Gao et al., PAL, arXiv:2211.10435).

The answers were computed by programs: some are negative, some are not whole numbers, some are tiny.
They are compared as they are, to the last digit (rule `numeric`). About a hundred questions are
still identical, word for word, to those of GSM8K test.
"""

from kava.data.tasks._rows import Source

VERSION = 1
# The Hub has a single split, which is called train; nothing is trained on it.
SOURCE = Source(
    "GSM-Hard", "gsm-hard", 1_319, "reasoning-machines/gsm-hard", ("train",), by_program=True
)
load = SOURCE.loader("gsm_hard", VERSION)
