"""The reasoner: backbone, adapter, three trained token rows and the latent projection."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kava.backbones import cache, loading, lora, masks, structure
from kava.backbones.structure import Output
from kava.backbones.thought import Thought
from kava.errors import KavaError
from kava.reasoning import batching, checkpoint, context_window
from kava.reasoning.answers import Answer, Generated, ReasoningResult
from kava.reasoning.generate import Continuation, check_whole_number, continue_thought
from kava.reasoning.methods import LatentMethod, Method, prefill_question
from kava.reasoning.projection import Projection
from kava.reasoning.resolve import resolve
from kava.reasoning.states import Suffix
from kava.recipe import registry
from kava.recipe.schema import Data, Recipe, Train
from kava.system import hub
from kava.system.text import check_text
from kava.types import ANSWER_PROMPT, Example

SPECIAL_TOKENS = {"bot": "<bot>", "latent": "<latent>", "eot": "<eot>"}


class Reasoner(nn.Module):
    """A causal language model that can think in latent tokens.

    Args:
        model: the bare backbone; an adapter is added here if the recipe asks for one.
        tokenizer: the backbone's own; the three special tokens are added here.
        recipe: what to build.
        identity: of the backbone (`kava.backbones.loading.identity`).
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, recipe: Recipe, identity: dict[str, Any]
    ):
        super().__init__()
        recipe = lora.resolve(model, resolve(recipe))
        self.recipe, self.tokenizer, self.identity = recipe, tokenizer, identity
        #: What was measured of it (`result.json`), for its description; None before.
        self.record: dict[str, Any] | None = None
        #: Whether its weights are a backbone with a LoRA adapter folded in, and nothing since.
        self.merged = False
        tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS.values())})
        self.encoder = batching.Encoder(tokenizer, recipe.drop_last_step)
        self.unreadable_ids = structure.unreadable_ids(model, tokenizer, SPECIAL_TOKENS.values())
        self.windows = structure.windows(model)
        self.method: Method = registry.find("methods", recipe.method)(recipe)
        #: The language model, or peft's around it.
        self.backbone: Any = lora.add(model, recipe)
        weight = structure.embeddings(self.lm)
        scale = float(weight.square().mean().sqrt())
        self.special_tokens = nn.ParameterDict(
            {name: nn.Parameter(_new_row(weight, scale)) for name in SPECIAL_TOKENS}
        )
        kind = recipe.projection if self.method.uses_latents else "none"
        size = weight.shape[1]
        self.projection = Projection(kind, size, recipe.projection_dim, scale)
        self.method.check(self)
        self.method_modules = self.method.modules(self)
        self.to(self.lm.device)

    @classmethod
    def build(cls, recipe: Recipe, device: str | torch.device = "cpu") -> Reasoner:
        """A new reasoner from the recipe's backbone; weights drawn from the recipe's seed.

        Raises:
            KavaError: the backbone cannot be had, or does not fit the recipe.
        """
        return cls._on(recipe, device, loading.choose_dtype(recipe, device))

    @classmethod
    def _on(cls, recipe: Recipe, device: str | torch.device, dtype: torch.dtype) -> Reasoner:
        torch.manual_seed(recipe.seed)
        model, tokenizer, identity = load_backbone(recipe.backbone, recipe.revision, dtype)
        return cls(_moved(model, device), tokenizer, recipe, identity)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: str | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Reasoner:
        """Load a checkpoint, strictly: anything missing, left over or foreign is an error.

        Args:
            folder: a checkpoint folder, a run folder (its `checkpoint` is taken), or the name of a
                checkpoint on the Hub.
            backbone: where the backbone of an adapter lies now, if not where it was; an error where
                all weights are in the checkpoint.
            device: where the weights go, such as "cuda".
            revision: of a checkpoint on the Hub.
            dtype: of the backbone's weights, `torch.bfloat16`, `torch.float32`, or one of these by
                name; if not given, or "auto", bf16 for an adapter's backbone on a GPU
                (`train.precision`), else fp32. The adapter, the rows of the three tokens and the
                projection stay fp32, as peft has it. `.to(torch.bfloat16)` afterwards rounds these
                too, and the frequencies of rotary positions: prefer `dtype`. To train a backbone
                that is not frozen, leave it in fp32: small steps vanish in bf16.

        Raises:
            KavaError: names the file and what does not fit; another dtype.
        """
        wanted, saved = loading.read_dtype(dtype), checkpoint.read(folder, revision)
        if saved.recipe.adapter == "full":
            if backbone:
                raise KavaError(
                    f"{saved.folder}: holds all its weights, no adapter; leave out {backbone}",
                    code="reasoning.backbone-unwanted",
                    key=str(backbone),
                )
            model = loading.load_model(saved.folder / "backbone", wanted or torch.float32)
        else:
            dtype = wanted or loading.choose_dtype(saved.recipe, device)
            model = _load_backbone_of(saved, backbone, dtype)
        reasoner = cls(_moved(model, device), saved.tokenizer, saved.recipe, saved.identity)
        checkpoint.load_added(reasoner, saved.folder)
        reasoner.record, reasoner.merged = saved.record, saved.merged
        return reasoner.eval()

    @classmethod
    def from_backbone(
        cls,
        backbone: str,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
    ) -> Reasoner:
        """A plain causal language model as a reasoner that writes its steps out (`cot`).

        Args:
            dtype: of its weights, as `from_pretrained` takes it; fp32 if not given.

        Raises:
            KavaError: the backbone cannot be had; another dtype.
        """
        wanted = loading.read_dtype(dtype) or torch.float32
        recipe = Recipe(
            method="cot",
            backbone=backbone,
            revision=revision,
            adapter="full",
            data=Data(train="none"),
            train=Train(steps=1, learning_rate=1e-4),
        )
        return cls._on(recipe, device, wanted).eval()

    def merge(self) -> Reasoner:
        """Fold the adapter into the backbone, which further training changes as a whole.

        Answers stay the same up to rounding in the backbone's precision, which it keeps; a saved
        checkpoint of it is opened in fp32. In place; without an adapter nothing changes.
        """
        if self.recipe.adapter == "lora":
            self.backbone = self.backbone.merge_and_unload().requires_grad_(True)
            self.recipe = self.recipe.model_copy(update={"adapter": "full"})
            self.merged = True
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a checkpoint that `from_pretrained` loads from any working directory."""
        checkpoint.save(self, folder)

    def push_to_hub(
        self,
        name: str,
        private: bool | None = None,
        message: str = "Upload of a checkpoint of kava",
        token: str | None = None,
    ) -> str:
        """Upload the checkpoint with its model card to the Hub; returns the commit's address.

        Args:
            name: `owner/name`; made if it is not there.
            private: of a new repository; the Hub's default if not given.
            token: the one of `hf auth login` if not given.

        Raises:
            KavaError: an adapter on a backbone that only this machine has; the Hub refuses.
        """
        if self.recipe.adapter == "lora" and self.identity["revision"] is None:
            raise KavaError(
                f"push_to_hub: this adapter needs the backbone {self.identity['name']}, a local "
                "folder that nobody else has; merge() folds it in",
                code="reasoning.local-backbone",
                key=self.identity["name"],
            )
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "checkpoint"
            self.save_pretrained(folder)
            return hub.push(folder, name, message, private, token)

    # -- pieces that methods and latent rules are made of --------------------------------------

    @property
    def lm(self) -> PreTrainedModel:
        """The causal language model itself, adapter layers inside."""
        peft = hasattr(self.backbone, "get_base_model")
        return self.backbone.get_base_model() if peft else self.backbone

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.special_tokens["bot"].device

    @property
    def has_sliding_window(self) -> bool:
        """Whether some layer sees only the last positions."""
        by_kind = self.windows.values() if isinstance(self.windows, dict) else [self.windows]
        return any(window is not None for window in by_kind)

    @property
    def prompt_text(self) -> str:
        """The answer prompt, which methods that think feed and do not generate."""
        return ANSWER_PROMPT

    def special(self, name: str) -> Tensor:
        """Embedding [d] of `bot`, `latent` or `eot`, in the backbone's dtype."""
        return self.special_tokens[name].to(self.lm.dtype)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [B, n] to input embeddings [B, n, d]."""
        return self.lm.get_input_embeddings()(ids)

    def project(self, hidden: Tensor) -> Tensor:
        """P(...): states [B, n, d] to latent inputs, in the backbone's dtype."""
        return self.projection(hidden).to(self.lm.dtype)

    @torch.no_grad()
    def cache_shapes(self) -> list[tuple[int, int]]:
        """(H, D) of each layer's cache."""
        one = torch.zeros((1, 1), dtype=torch.long, device=self.lm.device)
        start = Thought.empty(1, one.device)
        _, thought = self.extend(start, self.embed(one), torch.ones_like(one, dtype=torch.bool))
        return [(k.shape[1], k.shape[3]) for k, _ in cache.key_values(thought.past_key_values)]

    def logits(self, hidden: Tensor) -> Tensor:
        """Language-model head: [..., d] to [..., vocabulary]."""
        return structure.logits(self.lm, hidden)

    def extend(
        self, thought: Thought, embeds: Tensor, mask: Tensor, hidden_states: bool = False
    ) -> tuple[Output, Thought]:
        """Run new columns after a thought, which stays as it is.

        Args:
            embeds: [B, n, d].
            mask: [B, n], true at real columns.
            hidden_states: whether all layers' outputs are wanted.

        Returns:
            the output over the n columns, and the thought with them appended.
        """
        return structure.extend(self.lm, self.windows, thought, embeds, mask, hidden_states)

    def extend_latents(
        self, thought: Thought, embeds: Tensor, suffix: Suffix | None
    ) -> tuple[Output, Thought]:
        """Run columns that are real in every row, and the suffix after them if there is one."""
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        return self.extend_with(thought, embeds, mask, suffix)

    def extend_with(
        self, thought: Thought, embeds: Tensor, mask: Tensor, suffix: Suffix | None
    ) -> tuple[Output, Thought]:
        """Run columns [B, n, d] with their mask [B, n], and the suffix after them if any."""
        if suffix is None:
            return self.extend(thought, embeds, mask)
        embeds = torch.cat((embeds, suffix.embeds), dim=1)
        return self.extend(thought, embeds, torch.cat((mask, suffix.mask), 1), suffix.hidden_states)

    def colon_states(self, output: Output, start: int) -> Tensor:
        """All layers at the last token of the answer prompt, [L, B, d].

        Args:
            start: the column at which the answer segment begins.
        """
        states = output.hidden_states[0 if self.recipe.codi.include_embeddings else 1 :]
        column = start + len(self.encoder.prompt) - 1
        return torch.stack([state[:, column] for state in states])

    # -- training --------------------------------------------------------------------------------

    def forward(self, counts: dict[str, Tensor] | None = None, **batch: Any) -> dict[str, Tensor]:
        """One training step of the recipe's method: `loss` and each of its terms, scalars.

        Args:
            counts: denominators (`Method.counts`) of a batch that is staged already. Without it
                the batch stands alone, at the end of the method's curriculum.
            batch: see `kava.reasoning.batching.collate`.
        """
        if counts is None:
            batch = self.apply_stage(batch)
            counts = self.method.counts(batch)
        return self.method.loss(self, batch, counts)

    def apply_stage(
        self, batch: dict[str, Any], epoch: float = math.inf, draw: int = 0
    ) -> dict[str, Any]:
        """A batch as the method's curriculum has it at a point of the training.

        Args:
            draw: the place of the batch's first row in the training. With the recipe's seed it
                seeds whatever is drawn for the rows, for each of them by itself.
        """
        places = range(draw, draw + batch["question"].shape[0])
        rows = [torch.Generator().manual_seed(hash((self.recipe.seed, place))) for place in places]

        def uniform() -> Tensor:
            return torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in rows])

        return self.method.apply_stage(batch, epoch, uniform)

    @property
    def _no_split_modules(self) -> list[str]:
        """Blocks that FSDP splits one by one, as transformers names them for the backbone."""
        return sorted(self.lm._no_split_modules or [])

    def train_on(
        self,
        rows: Sequence[Example | Mapping[str, Any]],
        recipe: Recipe | str | Path | None = None,
        validation: Sequence[Example | Mapping[str, Any]] = (),
        output: str | Path | None = None,
        resume: bool = False,
        quiet: bool = False,
    ) -> dict[str, Any]:
        """Train on rows given here, as `kava train` does on those of a file.

        Args:
            rows: each with `question`, `steps` (or `cot`), `answer`, and perhaps `id`.
            recipe: how; this reasoner's own if not given. Its `data` is not read. It may change
                the training and the losses, and not what the weights are made of.
            validation: rows to be scored on during and after the training.
            output: run folder to write (recipe, metrics, checkpoint, result); none if not given,
                and then nothing can be resumed.
            quiet: without a progress bar.

        Returns:
            what a run's `result.json` holds: `steps`, `rows`, `validation_accuracy` and so on.

        Raises:
            KavaError: a broken row, by its place; a recipe for other weights; `output` is taken.
        """
        # Training lies above this module, and is imported where it is asked for.
        return import_module("kava").train_on(self, rows, recipe, validation, output, resume, quiet)

    # -- inference -------------------------------------------------------------------------------

    def generate(
        self,
        questions: str | Sequence[str],
        max_new_tokens: int = 256,
        num_iterations: int | None = None,
        return_thoughts: bool = False,
        **options: Any,
    ) -> str | list[str] | list[list[str]] | Generated:
        """Answer a question, or several together.

        Args:
            max_new_tokens: an answer ends there at the latest, or where the backbone's positions
                do (`continue_from`).
            num_iterations: T, the recipe's if not given.
            return_thoughts: also what was thought.
            options: as `continue_from` takes them.

        Returns:
            the text of the answer, or a list of them, as the questions were given. With
            `num_return_sequences` above 1, a list of texts in the place of each.

        Raises:
            KavaError: as `think` and `continue_from`.
        """
        thinking = self.think(questions, num_iterations)
        texts = [one.text for one in self.answer(thinking, max_new_tokens, **options)]
        copies = options.get("num_return_sequences") or 1
        if copies > 1:
            texts = [texts[at : at + copies] for at in range(0, len(texts), copies)]
        text = texts[0] if isinstance(questions, str) else texts
        return Generated(text, thinking) if return_thoughts else text

    def think(
        self, questions: str | Sequence[str], num_iterations: int | None = None
    ) -> ReasoningResult:
        """Think about questions; the answer has not begun.

        Args:
            num_iterations: T, the recipe's if not given.

        Returns:
            the `Thought`, and the prompt that an answer continues it with.

        Raises:
            KavaError: no question; one that is empty, no valid Unicode, or too long for the
                backbone's positions (`kava.reasoning.context_window`); `num_iterations` that is no
                whole number, or for a method that does not iterate.
        """
        return self.think_about(self.encoder.questions(_checked(questions)), num_iterations)

    @torch.no_grad()
    def think_about(
        self, encoded: Sequence[Sequence[int]], num_iterations: int | None = None
    ) -> ReasoningResult:
        """Think about questions that are token ids (`Encoder.questions`) already.

        Raises:
            KavaError: as `think`.
        """
        if num_iterations is not None:
            self.check_iterations(num_iterations)
        context_window.check(self, encoded)
        ids, mask = masks.pad(encoded, "left", self.tokenizer.pad_token_id)
        return self.method.think(self, ids.to(self.device), mask.to(self.device), num_iterations)

    def check_iterations(self, num_iterations: int = 0) -> None:
        """Raise a KavaError where the number of iterations cannot be chosen, or not this one."""
        check_whole_number("num_iterations", num_iterations, 0)
        if not self.method.iterates:
            raise KavaError(
                f"method '{self.recipe.method}' does not iterate; the number of iterations cannot "
                "be chosen",
                code="reasoning.no-iterations",
                key=self.recipe.method,
            )

    @torch.no_grad()
    def prompt_embeds(self, question: str, num_iterations: int | None = None) -> Tensor:
        """A question, the latents thought about it and the answer prompt as input embeddings.

        The backbone itself (`lm`, with its adapter), or any engine that serves it from embeddings,
        continues them as `answer` continues the thought: the latents' inputs of the last pass give
        the keys and values of that pass.

        Returns:
            [1, n, d]: question, <bot>, latents, <eot>, "The answer is:"; without latents question
            and prompt.

        Raises:
            KavaError: as `think`; several questions.
        """
        if not isinstance(question, str):
            raise KavaError(
                "prompt_embeds takes one question, a text: several have different lengths, and "
                "embeddings no mask; call it for each",
                code="reasoning.one-question",
                key="question",
            )
        if num_iterations is not None:
            self.check_iterations(num_iterations)
        (ids,) = self.encoder.questions(_checked(question))
        context_window.check(self, [ids])
        tokens = torch.tensor([ids], device=self.device)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        if isinstance(self.method, LatentMethod):
            iterations = self.recipe.num_iterations if num_iterations is None else num_iterations
            context, _ = prefill_question(self, {"question": tokens, "question_mask": mask})
            state = self.method.think_on(self, context, iterations)
            thinking = self.method.finish_thinking(self, state, iterations)
            bot, eot = (self.special(name).expand(1, 1, -1) for name in ("bot", "eot"))
            parts = [self.embed(tokens), bot, state.inputs[-1], eot]
        else:
            thinking = self.method.think(self, tokens, mask)
            parts = [self.embed(tokens[:, : thinking.thought.columns])]
        return torch.cat([*parts, self.embed(thinking.prompt)], dim=1)

    def answer(
        self, thinking: ReasoningResult, max_new_tokens: int = 256, **options: Any
    ) -> list[Answer]:
        """Answer what was thought about; see `continue_from`.

        With `num_return_sequences`, the answers to a question follow one another.
        """
        found = self._continued(thinking, max_new_tokens, options)
        parts = (found.ids.tolist(), found.lengths.tolist(), found.finished.tolist())
        return [
            Answer(
                text=thinking.prompt_text
                + self.tokenizer.decode(row[:length], skip_special_tokens=True),
                forward_passes=thinking.forward_passes + length,
                prefill_passes=thinking.prefill_passes,
                generated_tokens=length,
                finished=finished,
            )
            for row, length, finished in zip(*parts, strict=True)
        ]

    def continue_from(
        self, thinking: ReasoningResult, max_new_tokens: int = 256, **options: Any
    ) -> Tensor:
        """Continue a thought with transformers' `generate`; greedy unless options say otherwise.

        Embedding rows that the tokenizer has no text for are never generated.

        Args:
            max_new_tokens: an upper bound. Each row ends where the positions that the backbone
                states do, if that is earlier, and is not finished then; so a small backbone needs
                no other bound, and what a row writes does not depend on its batch mates.
            options: fields of `GenerationConfig` (`do_sample`, `temperature`, `eos_token_id`, ...),
                and arguments of `generate` itself (`streamer`, `stopping_criteria`,
                `logits_processor`, ...). `stop_strings` use the reasoner's tokenizer;
                `repetition_penalty` and its like read the answer prompt and what is new, not the
                question.

        Returns:
            new token ids [B, n], padded after what ended the row.

        Raises:
            KavaError: no room for one new token, or for `min_new_tokens`; `max_new_tokens` that is
                no whole number above 0; an option that a thought leaves no choice of, such as
                `use_cache`.
        """
        return self._continued(thinking, max_new_tokens, options).ids

    @torch.no_grad()
    def _continued(
        self, thinking: ReasoningResult, max_new_tokens: int, options: dict[str, Any]
    ) -> Continuation:
        return continue_thought(self, thinking, max_new_tokens, options)

    def generated_lengths(self, ids: Tensor) -> Tensor:
        """Tokens generated in each row, EOS included, pads after it not: [B]."""
        ended = (ids == self.tokenizer.eos_token_id).long().cumsum(1)
        return ((ended - (ids == self.tokenizer.eos_token_id).long()) == 0).sum(1)


def _checked(questions: str | Sequence[str]) -> list[str]:
    if isinstance(questions, Mapping):
        raise KavaError(
            f"a question is a text, not a {type(questions).__name__}; kava.pipeline takes messages "
            "of a chat",
            code="reasoning.not-a-question",
            key=type(questions).__name__,
        )
    texts = [questions] if isinstance(questions, str) else list(questions)
    if not texts:
        raise KavaError("no question is given", code="reasoning.no-question")
    for place, text in enumerate(texts):
        where = "the question" if isinstance(questions, str) else f"question {place + 1}"
        if not isinstance(text, str) or not text.strip():
            raise KavaError(
                f"{where} must be a text that is not empty, not {text!r}",
                code="reasoning.empty-question",
                key=where,
            )
        check_text(text, where)
    return texts


def _moved(model: PreTrainedModel, device: str | torch.device) -> PreTrainedModel:
    """`model.to(device)`, whose type transformers' decorator hides."""
    return cast(Any, model).to(device)


def _new_row(weight: Tensor, scale: float) -> Tensor:
    """A new token's embedding: the mean of the old ones and noise on their scale (ours)."""
    return weight.mean(0) + torch.randn_like(weight[0]) * scale * 0.5


def load_backbone(
    name: str, revision: str | None, dtype: torch.dtype
) -> tuple[PreTrainedModel, Any, dict[str, Any]]:
    """A backbone, its tokenizer and its identity, from a folder, a finished run or the Hub.

    LOTUS, for one, starts from a run of `cot`, a model that writes its steps out. An adapter is
    merged into its weights.

    Raises:
        KavaError: it cannot be had; its weights do not fit its architecture; it is a run of a
            method that thinks in latents, so that the language model is only a part of it.
    """
    folder, commit = loading.locate(name, revision)
    if not checkpoint.is_checkpoint(folder):
        return loading.load(name, revision, dtype)
    reasoner = Reasoner.from_pretrained(folder)
    if reasoner.method.uses_latents:
        raise KavaError(
            f"backbone {folder}: a run of '{reasoner.recipe.method}', which thinks in latents; "
            "a run can be a backbone if its method writes, such as cot",
            code="reasoning.latent-backbone",
            key=str(folder),
        )
    lora = reasoner.recipe.adapter == "lora"
    model = reasoner.backbone.merge_and_unload() if lora else reasoner.lm
    # peft had frozen what is the whole model now.
    model = loading.cast(model, dtype).requires_grad_(True)
    lasting = loading.portable_name(name, folder, commit)
    return model, reasoner.tokenizer, loading.identity(model, lasting, commit)


def _load_backbone_of(
    saved: checkpoint.Saved, given: str | None, dtype: torch.dtype
) -> PreTrainedModel:
    """The backbone of a checkpoint that holds an adapter, where it was or where it lies now.

    Raises:
        KavaError: there is none, or it is another one.
    """
    name = given or saved.identity["name"]
    revision = saved.identity["revision"] if name == saved.identity["name"] else None
    try:
        model, _, found = load_backbone(name, revision, dtype)
    except hub.NotAvailable as error:
        raise KavaError(
            f"{saved.folder}: an adapter, and its backbone {error.told}; say where that lies with "
            "--backbone FOLDER, in Python backbone=FOLDER",
            code="reasoning.backbone-not-had",
            key=name,
        ) from None
    if difference := loading.describe_difference(saved.identity, found):
        raise KavaError(
            f"{saved.folder}: {name} is another backbone: {difference}",
            code="reasoning.other-backbone",
            key=name,
        )
    return model
