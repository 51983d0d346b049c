"""CODI (arXiv:2502.21074): sequential latents, distilled from the teacher's hidden states.

teacher   Q | C | "The answer is:" a EOS
student   Q <bot> z_1 -> z_2 -> ... -> z_M <eot> "The answer is:" a EOS

L = CE_student + w_t CE_teacher + a1 L_CODI
"""

from kava.reasoning.methods._sequential import SequentialMethod
from kava.reasoning.methods.pccot import PCCoT


class CODI(SequentialMethod, PCCoT):
    """CODI (Shen et al., arXiv:2502.21074), with question and teacher computed once per step.

    Six latents and a weight of 20 for L_CODI, as theirs on Llama-1B. In their code, the mean over
    layers includes the embeddings (`codi.include_embeddings`), and the recipes set this. It is off
    by default, and the same weight is then (L + 1) / L times as large for each of the L layers.
    Their code also runs the teacher twice per step.
    """

    label = "CODI"
    paper = "2502.21074"
    iterates = False
    jacobi = False
    losses = ("codi",)
    defaults = {"num_latents": 6, "codi": {"weight": 20.0, "loss": "smooth_l1"}}


IMPLEMENTATION = CODI
