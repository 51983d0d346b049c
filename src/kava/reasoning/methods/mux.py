"""MUX (arXiv:2607.18264): each latent predicts a weighted mixture of a span of the reasoning.

teacher   Q | C | "The answer is:" a EOS
student   Q <bot> z_1 -> z_2 -> ... -> z_M <eot> "The answer is:" a EOS

L = CE_student + w_t CE_teacher + beta mean_i KL(q_i || softmax(W x_i / tau)) + gamma L_CODI
"""

from kava.reasoning.methods.codi import CODI


class MUX(CODI):
    """MUX (Suleymanzade et al., arXiv:2607.18264), on the latents and the teacher of CODI.

    beta is `multiplex.weight`, tau is `multiplex.tau`, gamma is `codi.weight`. The authors have not
    published these three. The defaults are ours (1, 1 and the 20 of CODI) and are not tuned yet.
    """

    label = "MUX"
    paper = "2607.18264"
    losses = ("codi", "multiplex")
    defaults = {
        "num_latents": 6,
        "codi": {"weight": 20.0, "loss": "smooth_l1", "include_embeddings": True},
        "multiplex": {"weight": 1.0},
    }


IMPLEMENTATION = MUX
