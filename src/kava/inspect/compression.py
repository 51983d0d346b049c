"""Compare the teacher's cache, compressed as the recipe says, with the student's cache."""

from kava.errors import KavaError
from kava.inspect._numbers import Unavailable
from kava.inspect.kept import KeptTokens, kept_tokens
from kava.inspect.similarity import Similarity, similarity
from kava.reasoning.methods import Batch, TeacherOutput
from kava.reasoning.methods._kv import KvDistillation
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.states import LatentState


def compression(
    reasoner: Reasoner, batch: Batch, teacher: TeacherOutput, state: LatentState
) -> tuple[Similarity | Unavailable, KeptTokens | Unavailable]:
    """Return the two panels about the compressed cache of one question.

    A method without L_KV is compared all the same, by the `kv` section of its recipe; a note says
    so. If the eviction cannot handle this chain of thought, both panels are absent.
    """
    kv, trained = _distillation(reasoner)
    notes = [] if trained else [_untrained_note(reasoner)]
    try:
        kv.check(reasoner)
        chosen = kv.choose(batch, teacher)
    except KavaError as error:
        return Unavailable(str(error)), Unavailable(str(error))
    written = kv.keys_for_loss(reasoner, teacher.steps, batch["question_mask"], batch["steps_mask"])
    target = [
        tuple(kv.gather_kept(states, kept) for states in pair)
        for pair, kept in zip(written, chosen, strict=True)
    ]
    before, start = state.cache.attention_mask, batch["question"].shape[1] + 1
    latents = state.latents.shape[1]  # may be fewer than the recipe's
    target = [tuple(states[:, :, :latents] for states in pair) for pair in target]
    real = before[:, start : start + latents]
    projected = "kv_projection" in reasoner.method_modules
    maps = kv.student_kv_for_loss if projected else kv.keys_for_loss
    student = [maps(reasoner, one, before[:, :start], real) for one in state.key_values]
    slot_masks = [kept.slot_mask[:, :, :latents] for kept in chosen]
    how = [*notes, *_comparison_notes(reasoner, kv)]
    return (
        similarity(student, target, slot_masks, how),
        kept_tokens(reasoner, kv, batch, teacher, chosen, notes),
    )


def _distillation(reasoner: Reasoner) -> tuple[KvDistillation, bool]:
    """Return how the cache is compressed, and whether the method was trained to match it."""
    own = getattr(reasoner.method, "kv", None)
    if own is None:
        return KvDistillation(reasoner.recipe), False
    return own, reasoner.recipe.kv.weight > 0


def _untrained_note(reasoner: Reasoner) -> str:
    return (
        f"This {reasoner.recipe.method} was not trained to match this cache; the compression is "
        "that of the recipe's kv section (its defaults where it has none)."
    )


def _comparison_notes(reasoner: Reasoner, kv: KvDistillation) -> list[str]:
    notes = []
    if kv.kv.keys == "post_rope":
        notes.append("Keys are compared as the cache holds them (kv.keys: post_rope).")
    elif getattr(reasoner.lm.base_model, "rotary_emb", None) is not None:
        notes.append(
            "Keys are compared before their rotation, as the loss does (kv.keys: pre_rope)."
        )
    if "kv_projection" in reasoner.method_modules:
        notes.append(
            "The student's keys and values go through kv.projection first, as in the loss."
        )
    return notes
