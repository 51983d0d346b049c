"""GSM8K test: 1,319 grade-school word problems (Cobbe et al., arXiv:2110.14168)."""

from kava.data.tasks._rows import Source

VERSION = 1
SOURCE = Source("GSM8K test", "gsm8k-test", 1_319, "openai/gsm8k", config="main")
load = SOURCE.loader("gsm8k", VERSION)
