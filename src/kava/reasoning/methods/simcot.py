"""SIM-CoT (arXiv:2509.20317): CODI, and a decoder that writes step i from latent i.

teacher   Q | C | "The answer is:" a EOS
student   Q <bot> z_1 -> z_2 -> ... -> z_M <eot> "The answer is:" a EOS
decoder   z_i | step i EOS

L = CE_student + w_t CE_teacher + a1 L_CODI + w_s mean_i CE(step i | z_i)

The decoder is not needed to answer, and is dropped after the training.
"""

from dataclasses import replace
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from kava.backbones import lora, structure
from kava.backbones.masked_cache import MaskedCache
from kava.reasoning.losses.cross_entropy import cross_entropy
from kava.reasoning.methods._base import Batch, LossTerms, TeacherOutput, Uniform
from kava.reasoning.methods._work import ForwardPass, Work
from kava.reasoning.methods.codi import CODI
from kava.reasoning.states import LatentState
from kava.recipe.schema import Section


class Options(Section):
    """Options of SIM-CoT (Wei et al., arXiv:2509.20317).

    step_weight: w_s, the weight of the decoder's loss.
    """

    step_weight: float = Field(default=1.0, ge=0)


class SimCoT(CODI):
    """SIM-CoT (Wei et al., arXiv:2509.20317), on the latents and the recipe of CODI.

    The decoder is a copy of the backbone, without the adapter, of which all layers are trained. It
    reads the embeddings of the backbone and writes with the backbone's head. An example with more
    than M steps has the surplus steps in that of the last latent.
    """

    label = "SIM-CoT"
    paper = "2509.20317"
    Options = Options
    defaults = {
        "num_latents": 6,
        "codi": {"weight": 20.0, "loss": "smooth_l1", "include_embeddings": True},
    }

    def training_modules(self, reasoner) -> nn.ModuleDict:
        """Return the decoder."""
        return nn.ModuleDict({"decoder": lora.copy_of_layers(reasoner.backbone)})

    def apply_stage(self, batch: Batch, epoch: float, uniform: Uniform) -> Batch:
        """Return the batch with the step that the decoder writes for each latent that has one.

        The batch gains `decoder_rows` and `decoder_latents`, [pairs] each, and the tokens of the
        step and EOS, `decoder_ids` with `decoder_mask`, [pairs, tokens] each. `decoder_places` has
        the places of these tokens in `decoder_ids`, flattened, in the order of the latents, and
        `decoder_sizes` their number for each latent.
        """
        most = self.recipe.num_latents
        rows, columns = batch["steps_mask"].nonzero(as_tuple=True)
        # As in the authors' code, all surplus steps belong to the last latent.
        step = batch["step_of"].clamp(max=most - 1)[rows, columns]
        found, pair, sizes = (rows * most + step).unique_consecutive(
            return_inverse=True, return_counts=True
        )
        if not len(found):  # a pair without labels, so that the decoder always has a gradient
            found, sizes = found.new_zeros(1), sizes.new_zeros(1)
        width = torch.arange(int(sizes.max()) + 1, device=rows.device)
        ids = batch["steps"].new_full((len(found), len(width)), self.eos)
        place = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes)[pair]
        ids[pair, place] = batch["steps"][rows, columns]
        mask = (width <= sizes[:, None]) & (sizes > 0)[:, None]
        of_token = (found % most)[:, None].expand_as(mask)[mask]
        return {
            **batch,
            "decoder_rows": found // most,
            "decoder_latents": found % most,
            "decoder_ids": ids,
            "decoder_mask": mask,
            "decoder_places": mask.flatten().nonzero()[:, 0][of_token.argsort(stable=True)],
            "decoder_sizes": of_token.bincount(minlength=most).tolist(),
        }

    def check(self, reasoner) -> None:
        """Keep the token that ends a step."""
        super().check(reasoner)
        self.eos: int = reasoner.tokenizer.eos_token_id

    def counts(self, batch: Batch) -> LossTerms:
        """Return the denominators of CODI, and the number of tokens of each latent's step."""
        tokens = batch["decoder_mask"].sum(1)
        sums = tokens.new_zeros(self.recipe.num_latents)
        sums = sums.index_add(0, batch["decoder_latents"], tokens)
        return super().counts(batch) | {f"step_{i}": size for i, size in enumerate(sums)}

    def work(self, batch: Batch) -> Work:
        """Return the minimum work of CODI, and that of a decoder as large as the backbone."""
        least, tokens = super().work(batch), batch["decoder_mask"].sum(1)
        decoder = ForwardPass(tokens, torch.zeros_like(tokens))
        labels = least.labels + int(tokens.sum())
        return replace(least, forward_passes=[*least.forward_passes, decoder], labels=labels)

    def combine(
        self,
        reasoner,
        batch: Batch,
        counts: LossTerms,
        teacher: TeacherOutput,
        student: LatentState,
    ) -> LossTerms:
        """Return the terms of CODI and the cross-entropy of the decoder, `step_ce`."""
        terms = super().combine(reasoner, batch, counts, teacher, student)
        terms["step_ce"] = self.step_loss(reasoner, batch, counts, student.inputs[-1])
        terms["loss"] = terms["loss"] + self.options.step_weight * terms["step_ce"]
        return terms

    def step_loss(self, reasoner, batch: Batch, counts: LossTerms, latents: Tensor) -> Tensor:
        """Return the mean over latents of the mean cross-entropy of their steps.

        Args:
            latents: [batch, latents, hidden], the inputs z_i.
        """
        decoder = cast(PreTrainedModel, reasoner.training_modules["decoder"])
        rows, of, ids = (batch[f"decoder_{name}"] for name in ("rows", "latents", "ids"))
        places, sizes = batch["decoder_places"], batch["decoder_sizes"]
        mask = batch["decoder_mask"]
        embeds = torch.cat((latents[rows, of, None], reasoner.embed(ids[:, :-1])), dim=1)
        # A column is read where it predicts a token; the latent is read even if it predicts none.
        read = torch.cat((torch.ones_like(mask[:, :1]), mask[:, 1:]), dim=1)
        start = MaskedCache.empty(len(ids), ids.device)
        output, _ = structure.extend(
            decoder, reasoner.windows, start, embeds.to(decoder.dtype), read
        )
        hidden = output.last_hidden_state.to(latents.dtype).flatten(0, 1)[places].split(sizes)
        labels = ids.flatten()[places].split(sizes)
        # A mean for each latent, and then over latents, as in the authors' code: latents with long
        # steps count no more than others.
        losses = [
            cross_entropy(reasoner, states, tokens, counts[f"step_{i}"].clamp(min=1))
            for i, (states, tokens) in enumerate(zip(hidden, labels, strict=True))
        ]
        used = sum((counts[f"step_{i}"] > 0).long() for i in range(len(losses)))
        return torch.stack(losses).sum() / cast(Tensor, used).clamp(min=1)


IMPLEMENTATION = SimCoT
