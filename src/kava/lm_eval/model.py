"""A checkpoint of kava as a model of lm-evaluation-harness."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from kava.backbones import masks
from kava.backbones.encode import encode
from kava.errors import KavaError, unknown_name
from kava.lm_eval.rows import to_int
from kava.reasoning.methods import prompt_ids
from kava.reasoning.open import open_reasoner

T = TypeVar("T")


@register_model("kava")
class KavaLM(LM):
    """A run, a checkpoint or a plain backbone as a model of the harness; loaded as by `kava eval`.

    A context is treated as a question. Generated text begins with "The answer is:", with which
    methods that use latents are prompted instead of generating it. There are no chat templates.

    Args:
        checkpoint: run or checkpoint folder.
        backbone: the present path of its backbone.
        num_iterations: T; the recipe's value if not given.
        max_gen_toks: maximum length of an answer in tasks that do not set one; the recipe's if not
            given.
        batch_size: number of questions answered together; the recipe's if `auto`, or not given from
            Python. The harness's command line passes 1 if it is not given, so use `--batch_size
            auto` there. No larger batch size is searched for: `auto:4` is the same as `auto`.
        device: such as `cpu`. `cuda:0`, the harness's default, is ignored if there is no GPU.
        revision: branch, tag or commit of a checkpoint on the Hub.

    Raises:
        KavaError: an unknown argument, an invalid number, no such device, no checkpoint, or
            iterations for a method that does not iterate.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        backbone: str | None = None,
        num_iterations: int | None = None,
        max_gen_toks: int | None = None,
        batch_size: int | str | None = None,
        device: str | None = None,
        revision: str | None = None,
        **others: Any,
    ):
        super().__init__()
        known = list(inspect.signature(KavaLM).parameters)[:-1]
        for name in others:
            raise unknown_name(
                "argument of model kava:", name, known, code="lm_eval.unknown-argument"
            )
        if checkpoint is None:
            raise KavaError(
                "model kava: no checkpoint; give --model_args checkpoint=FOLDER",
                code="lm_eval.no-checkpoint",
                key="checkpoint",
            )
        if num_iterations is not None:
            num_iterations = to_int(num_iterations, "model kava: num_iterations", 0)
        if max_gen_toks is not None:
            max_gen_toks = to_int(max_gen_toks, "model kava: max_gen_toks", 1)
        if batch_size is not None:
            automatic = str(batch_size).partition(":")[0] == "auto"
            batch_size = None if automatic else to_int(batch_size, "model kava: batch_size", 1)
        place = _device(device)
        self.reasoner = open_reasoner(str(checkpoint), backbone, revision=revision)
        if place:
            self.reasoner.to(place)
        if num_iterations is not None and not self.reasoner.method.iterates:
            raise KavaError(
                f"model kava: method '{self.reasoner.recipe.method}' does not iterate; omit "
                "num_iterations",
                code="reasoning.no-iterations",
                key=self.reasoner.recipe.method,
            )
        settings = self.reasoner.recipe.eval
        self.num_iterations = num_iterations
        self.max_gen_toks = max_gen_toks or settings.max_new_tokens
        self.batch_size = batch_size or settings.batch_size

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the answer to each context, up to the first of its stop sequences.

        Stop sequences are searched in the generated text only, not in the prompt.

        Raises:
            KavaError: the task uses sampling.
        """

        def answer(group: list[Instance], longest: int) -> list[str]:
            contexts = [request.args[0] for request in group]
            reasoning = self.reasoner.think(contexts, self.num_iterations)
            answers = self.reasoner.answer(reasoning, longest)
            prompt_length = len(reasoning.prompt_text or "")
            return [
                _truncate_at_stop(found.text, request.args[1].get("until"), prompt_length)
                for request, found in zip(group, answers, strict=True)
            ]

        return self._in_batches(requests, self._max_new_tokens, answer, disable_tqdm)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return log P(continuation | latents of the context, "The answer is:"), in nats.

        The second value of each pair is whether `generate_until` would generate the continuation.
        """

        def likelihoods(group: list[Instance], _: None) -> list[tuple[float, bool]]:
            return self._likelihoods([request.args for request in group])

        return self._in_batches(requests, lambda _: None, likelihoods, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """Raise a KavaError: a model that answers questions has no likelihood of a whole text."""
        raise KavaError(
            "model kava answers questions; it does not support the likelihood of a whole text "
            "(loglikelihood_rolling), so perplexity tasks cannot be run",
            code="lm_eval.no-likelihood",
            key="loglikelihood_rolling",
        )

    def _max_new_tokens(self, request: Instance) -> int:
        """Return the maximum number of new tokens of an answer."""
        settings = request.args[1]
        if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
            raise KavaError(
                "model kava decodes greedily, but the task samples; set do_sample=False with "
                "--gen_kwargs",
                code="lm_eval.samples",
                key="do_sample",
            )
        longest = settings.get("max_gen_toks")
        return self.max_gen_toks if longest is None else to_int(longest, "max_gen_toks", 1)

    def _in_batches(
        self,
        requests: Sequence[Instance],
        kind: Callable[[Instance], Any],
        answer: Callable[[list[Instance], Any], list[T]],
        quiet: bool,
    ) -> list[T]:
        """Return the results in the order of the requests.

        Requests with the same `kind` and similar lengths share a batch.
        """
        found: dict[int, T] = {}
        with tqdm(total=len(requests), disable=quiet, desc="kava") as bar:
            for which, chosen in self._batches(requests, kind):
                group = [requests[i] for i in chosen]
                for i, request, value in zip(chosen, group, answer(group, which), strict=True):
                    found[i] = value
                    self.cache_hook.add_partial(request.request_type, request.args, value)
                bar.update(len(chosen))
        return [found[i] for i in range(len(requests))]

    def _batches(
        self, requests: Sequence[Instance], kind: Callable[[Instance], Any]
    ) -> Iterator[tuple[Any, list[int]]]:
        kinds: dict[Any, list[int]] = {}
        for i, request in enumerate(requests):
            kinds.setdefault(kind(request), []).append(i)
        for which, members in kinds.items():
            members.sort(key=lambda i: len(requests[i].args[0]))
            for at in range(0, len(members), self.batch_size):
                yield which, members[at : at + self.batch_size]

    @torch.no_grad()
    def _likelihoods(self, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
        reasoner = self.reasoner
        reasoning = reasoner.think([context for context, _ in pairs], self.num_iterations)
        encoded = encode(reasoner.tokenizer, [text for _, text in pairs])
        ids, mask = (t.to(reasoner.device) for t in masks.pad(encoded, "right"))
        prompt = reasoning.prompt
        if reasoning.prompt_text is None:  # a continuation is scored after "The answer is:"
            prompt = prompt_ids(reasoner, len(ids), ids.device)
        with reasoner.autocast():
            output, _ = reasoner.extend(
                reasoning.cache,
                reasoner.embed(torch.cat((prompt, ids), dim=1)),
                torch.cat((torch.ones_like(prompt, dtype=torch.bool), mask), dim=1),
            )
        # Each hidden state predicts the next token; the prompt's last one predicts the first token.
        states = output.last_hidden_state[:, prompt.shape[1] - 1 : -1]
        scores = reasoner.logits(states).float()
        if reasoner.unreadable_ids is not None:  # never generated
            scores = scores.masked_fill(reasoner.unreadable_ids, -torch.inf)
        chosen = scores.log_softmax(-1).gather(2, ids[..., None])[..., 0]
        greedy = (scores.argmax(-1) == ids) | ~mask
        total = chosen.masked_fill(~mask, 0).sum(1)
        return list(zip(total.tolist(), greedy.all(1).tolist(), strict=True))


def _device(name: str | None) -> torch.device | None:
    """Return the device to use; None if none is given, or if it is CUDA and there is none."""
    if not name or (name.startswith("cuda") and not torch.cuda.is_available()):
        return None
    try:
        return torch.device(name)
    except RuntimeError:
        raise KavaError(
            f"model kava: device '{name}' is not a torch device; give one such as cpu or cuda:0",
            code="lm_eval.unknown-device",
            key=name,
        ) from None


def _truncate_at_stop(text: str, until: str | list[str] | None, start: int) -> str:
    """Return `text` up to the first stop sequence that begins at `start` or later."""
    stops = [until] if isinstance(until, str) else until or []
    found = (text.find(stop, start) for stop in stops if stop)
    return text[: min((at for at in found if at >= 0), default=None)]
