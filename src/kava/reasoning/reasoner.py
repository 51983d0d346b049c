"""The reasoner: backbone, adapter, trained embeddings of special tokens, and latent projection."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kava.backbones import loading, lora, structure
from kava.errors import KavaError
from kava.reasoning import batching, checkpoint
from kava.reasoning.answering import AnsweringReasoner
from kava.reasoning.interface import SPECIAL_TOKENS
from kava.reasoning.methods import Method
from kava.reasoning.projection import Projection
from kava.reasoning.resolve import resolve
from kava.recipe import registry
from kava.recipe.schema import Data, Recipe, Train
from kava.system import hub
from kava.types import Example


class Reasoner(AnsweringReasoner):
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
        mean = weight.mean(0)  # a new token begins at the mean of all plus noise (ours)
        self.special_tokens = nn.ParameterDict(
            {n: nn.Parameter(mean + torch.randn_like(mean) * scale * 0.5) for n in SPECIAL_TOKENS}
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
