"""GSM8K-Platinum: GSM8K test without its mistakes, 1,209 rows (Vendrow et al., arXiv:2502.03461).

The rule `numeric` reads every answer. Like GSM8K test, it must not be trained on.
"""

from kava.data.tasks._rows import Source

VERSION = 1
SOURCE = Source("GSM8K-Platinum", "gsm8k-platinum", 1_209, "madrylab/gsm8k-platinum", config="main")
load = SOURCE.loader("gsm8k_platinum", VERSION)
