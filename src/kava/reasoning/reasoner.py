"""The reasoner: backbone, adapter, trained embeddings of special tokens, and latent projection."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kava.backbones import loading, lora, masks, structure
from kava.errors import KavaError
from kava.reasoning import batching, checkpoint, context_window
from kava.reasoning.answers import Answer, GenerateOutput, ReasoningResult
from kava.reasoning.generate import Continuation, check_whole_number, generate_tokens
from kava.reasoning.interface import SPECIAL_TOKENS, ReasonerBase
from kava.reasoning.methods import LatentMethod, Method, latent_embeds
from kava.reasoning.projection import Projection
from kava.reasoning.resolve import resolve
from kava.recipe import registry
from kava.recipe.schema import Data, Recipe, Train
from kava.system import hub
from kava.system.text import check_text
from kava.types import Example


class Reasoner(ReasonerBase):
    """A causal language model that can reason in latent tokens.

    Args:
        model: the backbone without an adapter; one is added here if the recipe requests it.
        tokenizer: the backbone's tokenizer; the three special tokens are added here.
        recipe: the recipe to build the reasoner from.
        identity: identity of the backbone, from `kava.backbones.loading.identity`.
    """

    unreadable_ids: Tensor | None

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, recipe: Recipe, identity: dict[str, Any]
    ):
        super().__init__()
        recipe = lora.resolve(model, resolve(recipe))
        self.recipe, self.tokenizer, self.identity = recipe, tokenizer, identity
        #: Name and commit of what was loaded from the Hub; None for a local folder.
        self.source: dict[str, str] | None = None
        self.record, self.merged = None, False
        #: Whether answers use autocast if training by the recipe does (`autocast`).
        self.follows_training = True
        tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS.values())})
        self.encoder = batching.Encoder(tokenizer, recipe.drop_last_step)
        ids = structure.unreadable_ids(model, tokenizer, SPECIAL_TOKENS.values())
        #: Mask [vocabulary] of token ids that are never generated, for they have no text, or None.
        self.register_buffer("unreadable_ids", _mask_of(ids, model), persistent=False)
        self.windows = structure.windows(model)
        self._tied = structure.head(model).weight is structure.table(model).weight
        self.method: Method = registry.find("methods", recipe.method)(recipe)
        self.backbone = lora.add(model, recipe)
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
        #: Modules of the loss alone; empty except during a training (`prepare_training`).
        self.training_modules = nn.ModuleDict()
        # DDP waits for the gradient of every trained weight, so none may be unused.
        for name, row in self.special_tokens.items():
            row.requires_grad_(name in self.method.trained_tokens)
        self.projection.requires_grad_(not self.method.iterates or recipe.num_iterations > 0)
        self.to(self.lm.device)

    @classmethod
    def build(cls, recipe: Recipe, device: str | torch.device = "cpu") -> Reasoner:
        """Build a new reasoner from the recipe's backbone.

        New weights are drawn from the recipe's seed.

        Raises:
            KavaError: the backbone is not available, or does not fit the recipe.
        """
        return cls._on(recipe, device, loading.choose_dtype(recipe, device))

    @classmethod
    def _on(cls, recipe: Recipe, device: str | torch.device, dtype: torch.dtype) -> Reasoner:
        torch.manual_seed(recipe.seed)
        model, tokenizer, identity = load_backbone(recipe.backbone, recipe.revision, dtype)
        return cls(_to_device(model, device), tokenizer, recipe, identity)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: str | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Reasoner:
        """Load a checkpoint strictly: missing, unexpected or mismatched weights are an error.

        Args:
            folder: a checkpoint folder, a run folder (its `checkpoint` is loaded), or the name of a
                checkpoint on the Hub.
            backbone: where the backbone of an adapter is now, if it has moved. It is an error to
                give one if the checkpoint contains all weights.
            device: device to load the weights to, such as "cuda".
            revision: revision of a checkpoint on the Hub.
            dtype: dtype of the backbone's weights: `torch.bfloat16`, `torch.float32`, or one of
                these by name. By default, or with "auto", it is bf16 for the backbone of an adapter
                on a GPU (`train.precision`), and fp32 otherwise. Answers are computed in autocast
                as in training, unless it is `torch.float32`. The adapter, the embeddings of the
                three special tokens and the projection stay in fp32, as in peft. Prefer `dtype` to
                a later `.to(torch.bfloat16)`, which rounds these too, and the frequencies of rotary
                positions. To train a backbone that is not frozen, leave it in fp32: small updates
                are lost in bf16.

        Raises:
            KavaError: the error names the file and the mismatch; or the dtype is not supported.
        """
        wanted, saved = loading.read_dtype(dtype), checkpoint.read(folder, revision)
        if saved.recipe.adapter == "full":
            if backbone:
                raise KavaError(
                    f"{saved.folder}: contains all weights of the model, not an adapter; omit "
                    f"{backbone}",
                    code="reasoning.backbone-unwanted",
                    key=str(backbone),
                )
            model = loading.load_model(saved.backbone, wanted or torch.float32)
        else:
            dtype = wanted or loading.choose_dtype(saved.recipe, device)
            model = _load_backbone_of(saved, backbone, dtype)
        reasoner = cls(_to_device(model, device), saved.tokenizer, saved.recipe, saved.identity)
        checkpoint.load_added(reasoner, saved.folder, saved.exported)
        reasoner.record, reasoner.merged = saved.record, saved.merged
        reasoner.follows_training = wanted is not torch.float32
        if reasoner.follows_training:
            loading.allow_tf32(saved.recipe, device)
        if saved.commit:
            reasoner.source = {"name": str(folder), "revision": saved.commit}
        return reasoner.eval()

    @classmethod
    def from_backbone(
        cls,
        backbone: str,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
    ) -> Reasoner:
        """Load a plain causal language model as a reasoner with the method `cot`.

        Args:
            backbone: a folder, or a name on the Hub.
            revision: revision on the Hub.
            device: device to load the weights to.
            dtype: dtype of the weights, as in `from_pretrained`; fp32 by default.

        Raises:
            KavaError: the backbone is not available, or the dtype is not supported.
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
        reasoner = cls._on(recipe, device, wanted)
        reasoner.follows_training = loading.read_dtype(dtype) is not torch.float32
        if commit := reasoner.identity["revision"]:
            reasoner.source = {"name": backbone, "revision": commit}
        return reasoner.eval()

    def merge(self) -> Reasoner:
        """Merge the LoRA adapter into the backbone in place; without an adapter, do nothing.

        Further training then updates all weights of the backbone. The backbone keeps its precision,
        and answers stay the same up to rounding in it. A checkpoint saved afterwards is loaded in
        fp32.
        """
        if self.recipe.adapter == "lora":
            self.backbone = self.backbone.merge_and_unload().requires_grad_(True)
            self.recipe = self.recipe.model_copy(update={"adapter": "full"})
            self.merged = True
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Save a checkpoint, which `from_pretrained` can load from any working directory."""
        checkpoint.save(self, folder)

    def push_to_hub(
        self,
        name: str,
        private: bool | None = None,
        message: str = "Upload of a checkpoint of kava",
        token: str | None = None,
    ) -> str:
        """Upload the checkpoint with its model card to the Hub, and return the URL of the commit.

        Args:
            name: `owner/name`; the repository is created if it does not exist.
            private: whether a new repository is private; the Hub's default if not given.
            message: commit message.
            token: access token; by default that of `hf auth login`.

        Raises:
            KavaError: the checkpoint is an adapter on a backbone that only exists on this machine,
                or the Hub rejects the upload.
        """
        if self.recipe.adapter == "lora" and self.identity["revision"] is None:
            raise KavaError(
                f"push_to_hub: this adapter needs the backbone {self.identity['name']}, a local "
                "folder that only exists on this machine; call merge() first to include it",
                code="reasoning.local-backbone",
                key=self.identity["name"],
            )
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "checkpoint"
            self.save_pretrained(folder)
            return hub.push(folder, name, message, private, token)

    # -- training --------------------------------------------------------------------------------

    def prepare_training(self) -> None:
        """Build the modules that only the loss of the method needs, unless they exist already."""
        if not self.training_modules:
            for name, module in self.method.training_modules(self).items():
                # Tensors without values (`kava bench memory`) cannot be moved, not even in place.
                elsewhere = any(p.device != self.device for p in module.parameters())
                self.training_modules[name] = module.to(self.device) if elsewhere else module

    def forward(self, counts: dict[str, Tensor] | None = None, **batch: Any) -> dict[str, Tensor]:
        """Run a training step of the recipe's method; return `loss` and its terms as scalars.

        Args:
            counts: denominators of the losses (`Method.counts`), for a batch to which `apply_stage`
                was applied. If not given, the batch is a whole batch by itself, and is used as
                after the last stage of the method's curriculum.
            batch: see `kava.reasoning.batching.collate`.
        """
        self.prepare_training()
        if counts is None:
            batch = self.apply_stage(batch)
            counts = self.method.counts(batch)
        return self.method.loss(self, batch, counts)

    def apply_stage(
        self, batch: dict[str, Any], epoch: float = math.inf, draw: int = 0
    ) -> dict[str, Any]:
        """Return the batch as the method's curriculum uses it at a point of the training.

        Args:
            batch: see `kava.reasoning.batching.collate`.
            epoch: epochs since the start of the training; by default after the last stage.
            draw: index of the batch's first example in the training. Together with the recipe's
                seed it seeds the random numbers, separately for each example.
        """
        places = range(draw, draw + batch["question"].shape[0])
        rows: list[torch.Generator] = []  # most methods draw nothing

        def uniform() -> Tensor:
            if not rows:
                # Unlike the hash of a text, that of whole numbers is the same in every process.
                seeds = (hash((self.recipe.seed, place)) for place in places)
                rows.extend(torch.Generator().manual_seed(seed) for seed in seeds)
            return torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in rows])

        return self.method.apply_stage(batch, epoch, uniform)

    @property
    def _no_split_modules(self) -> list[str]:
        """Names of the modules that FSDP shards as units, as transformers lists them."""
        return sorted(self.lm._no_split_modules or [])

    def tie_weights(self) -> None:
        """Tie the language-model head to the input embeddings again, if they were tied at first.

        FSDP2 separates them when it moves the weights, and then calls this method.
        """
        if self._tied:
            structure.head(self.lm).weight = structure.table(self.lm).weight

    def train_on(
        self,
        rows: Sequence[Example | Mapping[str, Any]],
        recipe: Recipe | str | Path | None = None,
        validation: Sequence[Example | Mapping[str, Any]] = (),
        output: str | Path | None = None,
        resume: bool = False,
        quiet: bool = False,
    ) -> dict[str, Any]:
        """Train on the given examples, as `kava train` does on those of a file.

        Args:
            rows: examples, each with `question`, `steps` (or `cot`), `answer`, and optionally `id`.
            recipe: training recipe; by default that of this reasoner. Its `data` is ignored. It may
                change the training and the losses, but not the structure of the weights.
            validation: examples for scoring during and after the training.
            output: run folder to write (recipe, metrics, checkpoint, result). If not given, nothing
                is written and the training cannot be resumed.
            resume: continue the run in `output`.
            quiet: do not show a progress bar.

        Returns:
            The content of a run's `result.json`: `steps`, `rows`, `validation_accuracy` and so on.

        Raises:
            KavaError: an example is invalid (the error gives its position), the recipe is for other
                weights, or `output` exists already.
        """
        # `kava.training` imports this module, so it is only imported when it is needed.
        return import_module("kava").train_on(self, rows, recipe, validation, output, resume, quiet)

    # -- inference -------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which answers are computed: autocast as in training, or none.

        By default, this is bf16 autocast on a GPU (`train.precision`). There is none for a
        checkpoint that was loaded with `dtype=torch.float32`.
        """
        enabled = self.follows_training and self.recipe.train.autocasts(self.device.type)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def generate(
        self,
        questions: str | Sequence[str],
        max_new_tokens: int = 256,
        num_iterations: int | Literal["auto"] | None = None,
        return_reasoning: bool = False,
        **options: Any,
    ) -> str | list[str] | list[list[str]] | GenerateOutput:
        """Answer one question, or several as a batch.

        Args:
            questions: a question, or a list of questions.
            max_new_tokens: maximum number of tokens of an answer; it ends earlier if the backbone
                has no more positions (see `continue_from`).
            num_iterations: T; by default that of the recipe. With "auto", each question iterates
                until its latents no longer change: `tolerance` and `max_iterations` of the recipe.
            return_reasoning: also return the result of the reasoning, see `GenerateOutput`.
            options: see `continue_from`.

        Returns:
            The text of the answer for one question, a list of texts for a list of questions. With
            `num_return_sequences` above 1, there is a list of texts in place of each text.

        Raises:
            KavaError: see `think` and `continue_from`.
        """
        reasoning = self.think(questions, num_iterations)
        texts = [one.text for one in self.answer(reasoning, max_new_tokens, **options)]
        copies = options.get("num_return_sequences") or 1
        if copies > 1:
            texts = [texts[at : at + copies] for at in range(0, len(texts), copies)]
        text = texts[0] if isinstance(questions, str) else texts
        return GenerateOutput(text, reasoning) if return_reasoning else text

    def think(
        self, questions: str | Sequence[str], num_iterations: int | Literal["auto"] | None = None
    ) -> ReasoningResult:
        """Prefill questions and reason about them, without answering yet.

        Args:
            questions: a question, or a list of questions.
            num_iterations: T; by default that of the recipe.

        Returns:
            The KV cache, and the prompt with which an answer continues from it.

        Raises:
            KavaError: no question is given; a question is empty, not valid Unicode, or too long for
                the backbone's positions (`kava.reasoning.context_window`); or `num_iterations` is
                not a whole number, or is given for a method that does not iterate.
        """
        return self.think_about(self.encoder.questions(_check_questions(questions)), num_iterations)

    @torch.no_grad()
    def think_about(
        self, encoded: Sequence[Sequence[int]], num_iterations: int | Literal["auto"] | None = None
    ) -> ReasoningResult:
        """Reason about questions that are already token ids (see `Encoder.questions`).

        Raises:
            KavaError: see `think`.
        """
        if num_iterations is not None:
            self.check_iterations(num_iterations)
        context_window.check(self, encoded)
        ids, mask = masks.pad(encoded, "left", self.tokenizer.pad_token_id)
        ids, mask = (part.to(self.device, non_blocking=True) for part in (ids, mask))
        with self.autocast():
            return self.method.think(self, ids, mask, num_iterations)

    def with_settings(self, **settings: Any) -> Reasoner:
        """Return a reasoner with the same weights and other values of its recipe.

        Args:
            settings: recipe keys that no weight depends on, such as `num_latents` and
                `max_iterations`, and their values. They are not checked again.
        """
        changed = copy.copy(self)
        changed.recipe = self.recipe.model_copy(update=settings)
        changed.method = type(self.method)(changed.recipe)
        return changed

    def check_iterations(self, num_iterations: int | Literal["auto"] = 0) -> None:
        """Check that the method iterates and that the number of iterations is valid.

        Raises:
            KavaError: the method does not iterate, or the number is neither "auto" nor a whole
                number from 0 on.
        """
        if num_iterations != "auto":
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
        """Return a question, its latents and the answer prompt as input embeddings.

        The backbone itself (`lm`, with its adapter), or any engine that accepts embeddings as
        input, continues them in the same way as `answer` does: the inputs of the latents in the
        last pass yield the keys and values of that pass.

        Args:
            question: a single question.
            num_iterations: T; by default that of the recipe.

        Returns:
            [1, columns, hidden], the embeddings of question, <bot>, latents, <eot> and "The answer
            is:"; for a method without latents, those of question and prompt.

        Raises:
            KavaError: see `think`; or several questions are given.
        """
        if not isinstance(question, str):
            raise KavaError(
                "prompt_embeds takes a single question: several have different lengths, and "
                "embeddings have no mask; call it once per question",
                code="reasoning.one-question",
                key="question",
            )
        if num_iterations is not None:
            self.check_iterations(num_iterations)
        (ids,) = self.encoder.questions(_check_questions(question))
        context_window.check(self, [ids])
        tokens = torch.tensor([ids], device=self.device)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        if isinstance(self.method, LatentMethod):
            iterations = self.recipe.num_iterations if num_iterations is None else num_iterations
            state = self.method.think_in_latents(self, tokens, mask, iterations)
            reasoning = self.method.finish_thinking(self, state, iterations)
            parts = [self.embed(tokens), latent_embeds(self, state)]
        else:
            reasoning = self.method.think(self, tokens, mask)
            parts = [self.embed(tokens[:, : reasoning.cache.columns])]
        return torch.cat([*parts, self.embed(reasoning.prompt)], dim=1)

    def answer(
        self, reasoning: ReasoningResult, max_new_tokens: int = 256, **options: Any
    ) -> list[Answer]:
        """Generate the answers after a reasoning result; see `continue_from`.

        With `num_return_sequences`, the answers to the same question are consecutive.
        """
        found = self._generate_tokens(reasoning, max_new_tokens, options)
        parts = (found.ids.tolist(), found.lengths.tolist(), found.finished.tolist())
        copies = len(found.lengths) // len(reasoning.prompt)
        return [
            Answer(
                text=reasoning.text(self.tokenizer, i // copies, row[:length]),
                # The paper does not define this number. Here it is T, and one for each generated
                # token, EOS included.
                forward_passes=reasoning.passes(i // copies) + length,
                prefill_passes=reasoning.prefill_passes,
                generated_tokens=length,
                finished=finished,
            )
            for i, (row, length, finished) in enumerate(zip(*parts, strict=True))
        ]

    def continue_from(
        self, reasoning: ReasoningResult, max_new_tokens: int = 256, **options: Any
    ) -> Tensor:
        """Generate the answer with transformers' `generate`; greedy decoding by default.

        Token ids for which the tokenizer has no text are never generated.

        Args:
            reasoning: the result of `think`, from which the answer continues.
            max_new_tokens: an upper bound. A row also ends, unfinished, where the backbone has no
                more positions. A small backbone therefore needs no other bound, and the tokens of a
                row do not depend on the other rows of the batch, but for rounding.
            options: fields of `GenerationConfig` (`do_sample`, `temperature`, `eos_token_id`, ...)
                and arguments of `generate` itself (`streamer`, `stopping_criteria`,
                `logits_processor`, ...). `stop_strings` use the reasoner's tokenizer;
                `repetition_penalty` and similar options take the answer prompt and the new tokens
                into account, but not the question.

        Returns:
            New token ids, [batch, columns], padded after the end of each row.

        Raises:
            KavaError: there is no room for one new token or for `min_new_tokens`; `max_new_tokens`
                is not a whole number above 0; or an option is not possible here, such as
                `use_cache`.
        """
        return self._generate_tokens(reasoning, max_new_tokens, options).ids

    @torch.no_grad()
    def _generate_tokens(
        self, reasoning: ReasoningResult, max_new_tokens: int, options: dict[str, Any]
    ) -> Continuation:
        with self.autocast():
            return generate_tokens(self, reasoning, max_new_tokens, options)

    def generated_lengths(self, ids: Tensor) -> Tensor:
        """Return the number of generated tokens of each row, [batch]; with EOS, without padding."""
        ended = (ids == self.tokenizer.eos_token_id).long().cumsum(1)
        return ((ended - (ids == self.tokenizer.eos_token_id).long()) == 0).sum(1)


def _check_questions(questions: str | Sequence[str]) -> list[str]:
    """Return the questions as a list, after checking that each is a valid text.

    Raises:
        KavaError: no question is given, or one is empty, not a text, or not valid Unicode.
    """
    if isinstance(questions, Mapping):
        raise KavaError(
            f"a question must be a string, not a {type(questions).__name__}; for chat messages, "
            "use kava.pipeline",
            code="reasoning.not-a-question",
            key=type(questions).__name__,
        )
    texts = [questions] if isinstance(questions, str) else list(questions)
    if not texts:
        raise KavaError("no question was given", code="reasoning.no-question")
    for place, text in enumerate(texts):
        where = "the question" if isinstance(questions, str) else f"question {place + 1}"
        if not isinstance(text, str) or not text.strip():
            raise KavaError(
                f"{where} must be a non-empty string, not {text!r}",
                code="reasoning.empty-question",
                key=where,
            )
        check_text(text, where)
    return texts


def _to_device(model: PreTrainedModel, device: str | torch.device) -> PreTrainedModel:
    """Return `model.to(device)`; the cast is needed because a decorator hides its type."""
    return cast(Any, model).to(device)


def _mask_of(ids: list[int], model: PreTrainedModel) -> Tensor | None:
    """Return a mask [vocabulary], true at the given token ids; None without ids."""
    if not ids:
        return None
    mask = torch.zeros(structure.table(model).weight.shape[0], dtype=torch.bool)
    mask[ids] = True
    return mask


def _new_row(weight: Tensor, scale: float) -> Tensor:
    """Return the initial embedding [hidden] of a new token.

    It is the mean of all embeddings plus noise of their scale (our choice).

    Args:
        weight: [vocabulary, hidden], the backbone's embeddings.
        scale: root mean square of these embeddings.
    """
    return weight.mean(0) + torch.randn_like(weight[0]) * scale * 0.5


def load_backbone(
    name: str, revision: str | None, dtype: torch.dtype
) -> tuple[PreTrainedModel, Any, dict[str, Any]]:
    """Load a backbone, its tokenizer and its identity from a folder, a finished run or the Hub.

    A run can serve as a backbone if its method generates text only. LOTUS, for example, starts from
    a run of `cot`. An adapter is merged into the weights.

    Raises:
        KavaError: the backbone is not available; its weights do not fit its architecture; or it is
            a run of a latent method, of which the language model is only a part.
    """
    folder, commit = loading.locate(name, revision)
    if not checkpoint.is_checkpoint(folder):
        return loading.load(name, revision, dtype)
    reasoner = Reasoner.from_pretrained(folder)
    if reasoner.method.uses_latents:
        raise KavaError(
            f"backbone {folder}: is a run of '{reasoner.recipe.method}', which reasons in latents; "
            "a run can only be a backbone if its method reasons in text, such as cot",
            code="reasoning.latent-backbone",
            key=str(folder),
        )
    lora = reasoner.recipe.adapter == "lora"
    model = reasoner.backbone.merge_and_unload() if lora else reasoner.lm
    # peft froze these weights; now they are the whole model and trainable again.
    model = loading.cast(model, dtype).requires_grad_(True)
    lasting = loading.portable_name(name, folder, commit)
    place = checkpoint.locate(folder)
    return model, reasoner.tokenizer, loading.identity(model, lasting, commit, place)


def _load_backbone_of(
    saved: checkpoint.CheckpointContent, given: str | None, dtype: torch.dtype
) -> PreTrainedModel:
    """Load the backbone of an adapter checkpoint from its original or from a given location.

    Raises:
        KavaError: the backbone is not available, or is another backbone than that of the
            checkpoint.
    """
    name = given or saved.identity["name"]
    revision = saved.identity["revision"] if name == saved.identity["name"] else None
    try:
        model, _, found = load_backbone(name, revision, dtype)
    except hub.NotAvailable as error:
        raise KavaError(
            f"{saved.folder}: cannot load the backbone of this adapter: {error.reason}; give its "
            "location with --backbone FOLDER, or backbone=FOLDER in Python",
            code="reasoning.backbone-not-had",
            key=name,
        ) from None
    if difference := loading.describe_difference(saved.identity, found):
        raise KavaError(
            f"{saved.folder}: {name} is a different backbone: {difference}",
            code="reasoning.other-backbone",
            key=name,
        )
    return model
