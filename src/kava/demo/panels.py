"""Render an `AnswerProgress` as HTML; texts written by models are always escaped."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from kava.demo.progress import AnswerProgress
from kava.evaluation.answers import numeric_match, split_at_marker
from kava.inspect.decoded import Top
from kava.inspect.trace import split_steps

_LATENTS = "What each latent decodes to"
PLACEHOLDER = "Nothing yet."


@dataclass(frozen=True)
class Description:
    """What is known about a model before it answers.

    name: a folder, or a name on the Hub.
    size: a description such as `kava, 35 latents, 4 iterations`.
    """

    name: str
    size: str


def answer_card(
    title: str,
    model: Description,
    progress: AnswerProgress | None = None,
    gold: str | None = None,
    before: str = PLACEHOLDER,
) -> str:
    """Return the card with a model's answer so far, what it wrote before the answer, and the cost.

    Args:
        gold: the correct answer, if it is known.
        before: text shown while there is no progress yet.
    """
    about = _note(f"{model.name}: {model.size}")
    if progress is None:
        return _card(title, about + _note(before))
    written, answer = split_at_marker(progress.text)
    shown = text(answer or "") or ("…" if progress.answer is None else "no answer")
    return _card(
        title,
        f'{about}<p class="answer">{shown}{_verdict(progress, gold)}</p>'
        f"{_cost_line(progress)}{_cut_off_note(progress)}{_steps(written)}{_reading_note(progress)}",
    )


def comparison(latent: AnswerProgress, cot: AnswerProgress) -> str:
    """Return a line that compares the cost of both models' answers.

    Args:
        latent: the answer of the model whose latents are shown.
        cot: the answer of the model that writes its chain of thought.
    """
    return (
        f'<p class="costs" role="status"><b>{latent.forward_passes}</b> forward passes and '
        f"<b>{_time(latent.seconds)}</b>, compared with <b>{cot.forward_passes}</b> and "
        f"<b>{_time(cot.seconds)}</b> for the chain of thought.</p>"
    )


def decoded_card(passes: Sequence[Sequence[Top]], iterates: bool) -> str:
    """Return a table of the most likely token of each latent (columns) after each pass (rows).

    Each token is shown with its probability. The five most likely ones are in a tooltip, and those
    of the last pass are also in a table. Latents that the last pass does not have are left out: a
    model that ends its latents itself has begun some of them before.
    """
    if not passes:
        return _card(_LATENTS, _note(PLACEHOLDER))
    count = len(passes[-1])
    numbers = "".join(f'<th scope="col">{i + 1}</th>' for i in range(count))
    rows = []
    for t, tops in enumerate(passes):
        before = passes[t - 1] if t else None
        cells = "".join(
            _token_cell(top, before[i] if before else None) for i, top in enumerate(tops[:count])
        )
        name = (f"iteration {t}" if t else "pass 0") if iterates else "latents"
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    return _card(
        _LATENTS,
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_LATENTS}">'
        '<table class="latents"><thead><tr><th scope="col">latent</th>'
        f"{numbers}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"{_legend(iterates)}{_most_likely(passes[-1])}",
    )


def no_latents(method: str) -> str:
    """Return the latents card of a model that has no latents."""
    return _card(_LATENTS, _note(f"The method {method} has no latent tokens."))


def problem(message: str) -> str:
    """Return an error message of one line as HTML."""
    return f'<p class="problem" role="alert">{text(message)}</p>'


def text(value: str) -> str:
    """Escape a text, so that it is shown as text and never as markup."""
    return html.escape(value)


def token(value: str) -> str:
    """Return a token with its whitespace made visible."""
    core = value.strip(" ").replace("\n", "⏎").replace("\t", "⇥")
    left = len(value) - len(value.lstrip(" "))
    right = len(value.rstrip(" ")) and len(value) - len(value.rstrip(" "))
    return text("␣" * left + core + "␣" * right) or "∅"


def _card(title: str, inside: str) -> str:
    return (
        f'<section class="card" aria-label="{text(title)}"><h2>{text(title)}</h2>{inside}</section>'
    )


def _note(value: str) -> str:
    return f'<p class="soft">{text(value)}</p>'


def _verdict(progress: AnswerProgress, gold: str | None) -> str:
    if progress.answer is None or gold is None:
        return ""
    if numeric_match(progress.text, gold):
        return ' <span class="right">✓ correct</span>'
    return f' <span class="wrong">✗ incorrect, the answer is {text(gold)}</span>'


def _cost_line(progress: AnswerProgress) -> str:
    facts = {"forward passes": f"{progress.forward_passes}", "time": _time(progress.seconds)}
    if progress.answer is not None:
        facts["generated tokens"] = f"{progress.answer.generated_tokens}"
    parts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{parts}</dl>'


def _cut_off_note(progress: AnswerProgress) -> str:
    if progress.answer is None or progress.answer.finished:
        return ""
    return _note("The answer was cut off at the maximum number of tokens.")


def _steps(written: str) -> str:
    steps = "".join(f"<li>{text(step)}</li>" for step in split_steps(written))
    return f"{_note('chain of thought')}<ol>{steps}</ol>" if steps else ""


def _reading_note(progress: AnswerProgress) -> str:
    if not progress.passes:
        return ""
    read = "".join(top[0][0] for top in progress.passes[-1])
    return f"{_note('what the latents decode to')}<p class='reading'>{text(read)}</p>"


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _token_cell(top: Top, before: Top | None) -> str:
    word, chance = top[0]
    if not chance:  # the latent has not begun in this pass
        return "<td></td>"
    changed = before is not None and before[0][1] > 0 and before[0][0] != word
    title = ", ".join(f"{token(other)} {100 * p:.0f} %" for other, p in top)
    return (
        f'<td class="{"moved" if changed else "same"}" style="--p:{chance:.2f}" title="{title}">'
        f"{token(word)}<small>{100 * chance:.0f}</small></td>"
    )


def _legend(iterates: bool) -> str:
    changed = " Bold and underlined: the token changed in this iteration." if iterates else ""
    return _note(
        "The most likely token of each latent, decoded with the language-model head, and its "
        f"probability in percent. A stronger color means a higher probability.{changed}"
    )


def _most_likely(tops: Sequence[Top]) -> str:
    head = "".join(f'<th scope="col">{rank}</th>' for rank in range(1, len(tops[0]) + 1))
    rows = "".join(
        f'<tr><th scope="row">{i}</th>'
        + "".join(f"<td>{token(word)}<small>{100 * p:.1f}</small></td>" for word, p in top)
        + "</tr>"
        for i, top in enumerate(tops, start=1)
    )
    return (
        "<details><summary>The five most likely tokens of each latent after the last pass</summary>"
        '<table class="most-likely"><thead><tr><th scope="col">latent</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></details>"
    )
