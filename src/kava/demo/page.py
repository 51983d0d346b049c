"""The web page: a question, M and T, two answers, and what the latents decode to."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from kava.demo import panels, questions, sizes
from kava.demo.progress import AnswerProgress, stream_answer
from kava.demo.questions import PageLimits, Questions
from kava.errors import KavaError
from kava.reasoning.context_window import max_question_tokens
from kava.reasoning.reasoner import Reasoner

CSS = Path(__file__).with_name("page.css")
TITLE = "kava demo: latent reasoning and chain of thought"
INTRODUCTION = (
    "One model generates a chain of thought and then the answer. {other} They run one after the "
    "other, so that neither slows the other down. Forward passes are counted from the end of the "
    "question to the end of the answer. The time includes the question."
)
IN_PARALLEL = (
    "The other refines all of its latent tokens together in a few iterations and then generates "
    "only the answer."
)
SEQUENTIAL = "The other computes latent tokens one at a time and then generates only the answer."
NO_LATENTS = "The other has no latent tokens."

#: T, "auto" to iterate until the latents no longer change, or None for the recipe's value.
Iterations = int | Literal["auto"] | None


@dataclass(frozen=True)
class PageModel:
    """A reasoner, and the folder or the name on the Hub that it was loaded from."""

    reasoner: Reasoner
    name: str

    @property
    def label(self) -> str:
        """The name for visitors of the page: of a folder only the last part of its path."""
        folder = Path(self.name)
        return folder.resolve().name if folder.is_dir() else self.name

    def describe(
        self, num_latents: int | None = None, num_iterations: Iterations = None
    ) -> panels.Description:
        """Return the model's description with this M and T; None stands for the recipe's value."""
        reasoner, method = self.reasoner, self.reasoner.recipe.method
        if not reasoner.method.uses_latents:
            return panels.Description(self.label, f"{method}, no latents")
        latents = num_latents or reasoner.recipe.num_latents
        size = f"{method}, {_count(latents, 'latent')}"
        if num_iterations == "auto":
            size += f", at most {_count(reasoner.recipe.max_iterations, 'iteration')}"
        elif reasoner.method.iterates:
            chosen = reasoner.recipe.num_iterations if num_iterations is None else num_iterations
            size += f", {_count(chosen, 'iteration')}"
        return panels.Description(self.label, size)


class Demo:
    """Two models, and the functions behind the page.

    Args:
        latent_model: the model whose latents are shown.
        cot_model: the model that writes its chain of thought.
        pick: the questions to choose from.

    Raises:
        KavaError: a question does not fit into a backbone's context window.
    """

    def __init__(
        self, latent_model: PageModel, cot_model: PageModel, pick: Questions, limits: PageLimits
    ):
        self.latent_model, self.cot_model, self.pick, self.limits = (
            latent_model,
            cot_model,
            pick,
            limits,
        )
        self.max_question_tokens = min(
            max_question_tokens(model.reasoner, "demo", limits.new_tokens, limits.question_tokens)
            for model in (latent_model, cot_model)
        )
        self.latents = sizes.latents(latent_model.reasoner)
        self.iterations = sizes.iterations(latent_model.reasoner)

    def ask(
        self,
        question: str,
        num_latents: int | None,
        num_iterations: int | None,
        until_converged: bool | None = False,
    ) -> Iterator[tuple[str, str, str, str]]:
        """Yield the four parts of the page as they change: costs, both answers, and the latents.

        With `until_converged`, T is found ("auto") and `num_iterations` is not used. For invalid
        input, the first part is an error message of one line.
        """
        try:
            chosen = "auto" if until_converged and self.iterations else num_iterations
            yield from self._ask(question or "", num_latents, chosen)
        except KavaError as error:
            yield (
                panels.problem(str(error)),
                self.cot_answer_card(),
                self.latent_answer_card(),
                self.decoded_card(),
            )

    def _ask(
        self, question: str, num_latents: int | None, num_iterations: Iterations
    ) -> Iterator[tuple[str, str, str, str]]:
        for model in (self.latent_model, self.cot_model):
            questions.check(model.reasoner, question, self.max_question_tokens)
        if isinstance(num_iterations, int) and self.iterations is not None:
            self.iterations.check(num_iterations, "number of iterations")
        thinker = sizes.resize_latents(self.latent_model.reasoner, num_latents)
        question, gold = question.strip(), self.pick.gold(question)
        costs, tokens = "", self.limits.new_tokens
        written = self.cot_answer_card(before="Waiting for the other model …")
        thought = self.latent_answer_card(
            None, None, num_latents, num_iterations, "Processing the question …"
        )
        yield costs, written, thought, self.decoded_card()
        for progress in stream_answer(thinker, question, num_iterations, tokens):
            thought = self.latent_answer_card(progress, gold, num_latents, num_iterations)
            latents = self.decoded_card(progress)
            yield costs, written, thought, latents
        reasoning = progress
        for progress in stream_answer(self.cot_model.reasoner, question, None, tokens):
            written = self.cot_answer_card(progress, gold)
            if progress.answer is not None:
                costs = panels.comparison(reasoning, progress)
            yield costs, written, thought, latents

    def cot_answer_card(
        self,
        progress: AnswerProgress | None = None,
        gold: str | None = None,
        before: str = panels.PLACEHOLDER,
    ) -> str:
        """Return the card of the model that writes its chain of thought."""
        return panels.answer_card(
            "Chain of thought", self.cot_model.describe(), progress, gold, before
        )

    def latent_answer_card(
        self,
        progress: AnswerProgress | None = None,
        gold: str | None = None,
        num_latents: int | None = None,
        num_iterations: Iterations = None,
        before: str = panels.PLACEHOLDER,
    ) -> str:
        """Return the card of the model that reasons in latents, with this M and T."""
        title = "Latent tokens" if self.latents else "The other model"
        model = self.latent_model.describe(num_latents, num_iterations)
        return panels.answer_card(title, model, progress, gold, before)

    @property
    def introduction(self) -> str:
        """The introduction of the page, in a few sentences."""
        other = NO_LATENTS
        if self.latents:
            other = IN_PARALLEL if self.iterations else SEQUENTIAL
        return INTRODUCTION.format(other=other)

    def decoded_card(self, progress: AnswerProgress | None = None) -> str:
        """Return the card that shows what the latents decode to so far."""
        reasoner = self.latent_model.reasoner
        if not reasoner.method.uses_latents:
            return panels.no_latents(reasoner.recipe.method)
        return panels.decoded_card(progress.passes if progress else [], reasoner.method.iterates)

    def warm_up(self) -> None:
        """Answer one question that is not displayed, because a model's first answer is slower."""
        for model in (self.latent_model, self.cot_model):
            for _ in stream_answer(model.reasoner, self.pick.default or "1 + 1 = ?", None, 2):
                pass


def theme() -> Any:
    """Return the theme, with the fonts of the reader's system: nothing is loaded from elsewhere."""
    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")
    mono = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=[gr.themes.Font(name) for name in sans],
        font_mono=[gr.themes.Font(name) for name in mono],
    ).set(
        # The theme's own colours have a contrast below 3, which not everybody can read.
        body_text_color_subdued="#55616d",
        body_text_color_subdued_dark="#a3afbb",
        block_info_text_color="#55616d",
        block_info_text_color_dark="#a3afbb",
        button_primary_background_fill="#0067a3",
        button_primary_background_fill_hover="#005484",
        slider_color="#0072b2",
    )


def build(demo: Demo) -> gr.Blocks:
    """Build the page, not yet served."""
    with gr.Blocks(analytics_enabled=False, title=TITLE) as page:
        _html(f'<div class="intro"><h1>{TITLE}</h1><p>{demo.introduction}</p></div>')
        question = gr.Textbox(
            demo.pick.default, label="Question", lines=1, max_lines=6, elem_id="question"
        )
        with gr.Row(equal_height=True):
            picked = _picker(demo.pick)
            latents = _slider(demo.latents, "Latents (M)", "latents")
            iterations = _slider(demo.iterations, "Iterations (T)", "iterations")
            until_converged = _checkbox(demo)
            button = gr.Button("Ask", variant="primary", elem_id="ask", min_width=120, scale=0)
        costs = _html("", "costs")
        with gr.Row(equal_height=True):
            written = _html(demo.cot_answer_card(), "written")
            thought = _html(demo.latent_answer_card(), "thought")
        decoded = _html(demo.decoded_card(), "decoded")
        gr.on(
            [button.click, question.submit],
            demo.ask,
            [question, latents, iterations, until_converged],
            [costs, written, thought, decoded],
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=1,
        )
        gr.on(
            [picked.input, picked.select],  # chosen by keyboard; the same question chosen again
            lambda chosen: chosen,
            picked,
            question,
            show_progress="hidden",
            api_visibility="private",
        )
    page.queue(max_size=32)
    return page


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _html(value: str, name: str | None = None) -> gr.HTML:
    return gr.HTML(value, elem_id=name, apply_default_css=False, js_on_load=None, min_width=320)


def _picker(pick: Questions) -> gr.Dropdown:
    choices = [
        (label, example.question) for label, example in zip(pick.labels, pick.examples, strict=True)
    ]
    return gr.Dropdown(
        choices,
        value=pick.default or None,
        label="Example questions",
        visible=bool(choices),
        elem_id="pick",
        scale=3,
    )


def _checkbox(demo: Demo) -> gr.Checkbox | gr.State:
    """Return the choice to iterate until the latents no longer change, if the method iterates."""
    if demo.iterations is None:
        return gr.State(False)
    most = demo.latent_model.reasoner.recipe.max_iterations
    return gr.Checkbox(
        False,
        label="Iterate until convergence",
        info=f"in place of T, at most {most}",
        elem_id="until_converged",
        scale=2,
        min_width=200,
    )


def _slider(span: sizes.Range | None, label: str, name: str) -> gr.Slider | gr.State:
    """Return a slider for M or T; if there is no choice, a state of None, the recipe's value."""
    if span is None or span.minimum == span.maximum:
        return gr.State(None)
    return gr.Slider(
        span.minimum,
        span.maximum,
        value=span.default,
        step=span.step,
        precision=0,
        label=label,
        info=f"trained with {span.default}",
        elem_id=name,
        scale=2,
        min_width=200,
    )
