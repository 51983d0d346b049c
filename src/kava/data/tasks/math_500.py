"""MATH-500: 500 problems of MATH (Hendrycks et al., arXiv:2103.03874; Lightman et al., 2305.20050).

Most answers are LaTeX. The rule `math_verify` reads them; the headline `numeric` reads those that
are plain numbers, and `kava eval` says how many are not.
"""

from kava.data.tasks._rows import Source

VERSION = 1
SOURCE = Source("MATH-500", "math-500", 500, "HuggingFaceH4/MATH-500")
load = SOURCE.loader("math_500", VERSION)
