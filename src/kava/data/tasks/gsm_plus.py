"""GSM-Plus: variations of GSM8K test, 10,552 rows (Li et al., arXiv:2402.19255).

The questions of one kind of variation have no answer, which is written `None`. The rule `numeric`
reads all others; `kava eval` says how many there are.
"""

from kava.data.tasks._rows import Source

VERSION = 1
SOURCE = Source("GSM-Plus", "gsm-plus", 10_552, "qintongli/GSM-Plus")
load = SOURCE.loader("gsm_plus", VERSION)
