"""Show the panels in the terminal, averaged over heads where there are too many for a screen."""

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from kava.inspect._numbers import Unavailable
from kava.inspect.attended import AnswerAttention
from kava.inspect.decoded import DecodedLatents
from kava.inspect.kept import KeptTokens
from kava.inspect.look import Inspection
from kava.inspect.movement import Movement
from kava.inspect.similarity import Similarity
from kava.inspect.trace import Trace

_BARS = " ▁▂▃▄▅▆▇█"
#: With more heads than this, a line for each head would fill the screen.
MANY_HEADS = 32


def show(inspection: Inspection, console: Console) -> None:
    """Print every panel to the console."""
    verdict = {None: "", True: "  right", False: f"  wrong, it is {inspection.gold}"}[
        inspection.right
    ]
    _print(console, inspection.question)
    _print(console, f"answered {inspection.answer or '(nothing)'}{verdict}", "bold")
    _print(console, _describe_run(inspection), "dim")
    _heading(console, "The chain of thought")
    _show_trace(inspection.trace, console)
    _heading(console, "What each latent decodes to")
    _show_decoded(inspection.decoded, console)
    for title, content, draw in (
        ("How far latents move, |X' - X| / |X|", inspection.movement, _show_movement),
        ("Cosine of student and teacher, slot by slot", inspection.similarity, _show_similarity),
        ("Which reasoning tokens each head keeps", inspection.kept, _show_kept),
        ("Where the answer looks", inspection.attended, _show_attended),
    ):
        _heading(console, title)
        if isinstance(content, Unavailable):
            _print(console, f"not here: {content.reason}", "dim")
        else:
            draw(content, console)


def _describe_run(look: Inspection) -> str:
    about = look.about
    iterations = "" if about.iterations is None else f", {about.iterations} iterations"
    return (
        f"{about.method}, {about.latents} latents{iterations}, {about.forward_passes} forward "
        f"passes; {about.layers} layers of {about.heads} key/value heads"
    )


def _show_trace(trace: Trace, console: Console) -> None:
    for number, step in enumerate(trace.steps, start=1):
        dropped = "" if number <= trace.read else "  (dropped)"
        _print(console, f"{number:3d}  {step}{dropped}")
    _print(console, f"  =  {trace.answer or '(none)'}")
    _print(console, trace.origin, "dim")


def _show_decoded(decoded: DecodedLatents, console: Console) -> None:
    """Print the likeliest token after each iteration, and the five likeliest after the last one."""
    last = decoded.passes[-1]
    words = [[_word(top[0]) for top in latents] for latents in decoded.passes[:-1]]
    widths = [max(map(len, column)) for column in words]
    names = [f"{t:<{max(width, 1)}}" for t, width in enumerate(widths)]
    if words:
        _print(console, f"after   {'  '.join(names)}  {len(widths)}: top 5", "dim")
    for i, top in enumerate(last):
        before = [f"{column[i]:<{width}}" for column, width in zip(words, widths, strict=True)]
        _print(console, "  ".join([f"latent {i + 1:2d}" if not words else f"{i + 1:5d} ", *before,
                                 *map(_word, top)]))  # fmt: skip


def _word(token: tuple[str, float]) -> str:
    return f"{token[0]!r} {token[1]:.2f}"


def _show_movement(movement: Movement, console: Console) -> None:
    top = max(map(max, movement.distance))
    for t, (row, mean) in enumerate(zip(movement.distance, movement.mean_distance, strict=True)):
        _print(console, f"{t} -> {t + 1}   {_bars(row, top)}  mean {mean:.3f}")
    _print(console, f"a column for each latent; a full one is {top:.3g}", "dim")


def _show_similarity(similar: Similarity, console: Console) -> None:
    for name, part in (("keys", similar.keys), ("values", similar.values)):
        for layer, row in enumerate(part.layers, start=1):
            _print(console, f"{name:6} layer {layer:2d}  {_bars(row, 1)}  mean {_mean(row):.3f}")
        passes = ", ".join(f"{mean:.3f}" for mean in part.passes)
        _print(console, f"{name:6} mean      {_bars(part.slots, 1)}  by pass: {passes}")
    legend = "a column for each slot, mean over heads; full is 1, empty 0 or below, - no token. "
    _print(console, legend + " ".join(similar.notes), "dim")


def _show_kept(kept: KeptTokens, console: Console) -> None:
    """Print each head's kept tokens; with many heads, those that most heads of a layer keep."""
    kept_columns = [[set(head) - {None} for head in layer] for layer in kept.columns]
    many = sum(map(len, kept_columns)) > MANY_HEADS
    for number, heads in enumerate(kept_columns, start=1):
        if many:
            votes = [sum(column in head for head in heads) for column in range(len(kept.tokens))]
            most = [column for column, count in enumerate(votes) if 2 * count > len(heads)]
            console.print(_line(f"layer {number:2d}  ", kept, most))
            continue
        for head, columns in enumerate(heads, start=1):
            console.print(_line(f"layer {number:2d} head {head:2d}  ", kept, columns))
    full = all(len(head) == len(kept.tokens) for layer in kept_columns for head in layer)
    slots = f"{kept.blocks} x {kept.budget}" if kept.blocks > 1 else str(kept.budget)
    _print(
        console,
        f"{len(kept.tokens)} tokens, {slots} slots, eviction {kept.eviction}; "
        + ("all fit, nothing is evicted. " if full else "evicted tokens stand in [brackets]. ")
        + ("A line holds what most heads of the layer keep. " if many else "")
        + " ".join(kept.notes),
        "dim",
    )


def _line(name: str, kept: KeptTokens, columns: Collection[int]) -> Text:
    """Return the chain of thought; tokens not in `columns` are in brackets as well as dimmed.

    The brackets are for readers who see no colour.
    """
    line = Text(name, "dim")
    for here, run in groupby(range(len(kept.tokens)), lambda column: column in columns):
        words = "".join(kept.tokens[column][0] for column in run).replace("\n", "⏎")
        line.append(words if here else f"[{words}]", "green" if here else "dim")
    return line


def _show_attended(paid: AnswerAttention, console: Console) -> None:
    width = max(len(repr(token)) for token in paid.tokens)
    for token, shares, latents in zip(paid.tokens, paid.shares, paid.latents, strict=True):
        named = zip(paid.parts, shares, strict=True)
        parts = ", ".join(f"{name} {100 * share:.1f}" for name, share in named)
        _print(console, f"{token!r:{width}}  {parts} (percent)")
        top = max(latents)
        most = f"most to latent {1 + latents.index(top)}: {100 * top:.1f}"
        _print(console, f"{'':{width}}  {_bars(latents, top)}  {most}")
    _print(console, "mean over layers and heads; a column for each latent", "dim")


def _bars(values: Sequence[float | None], top: float) -> str:
    """Return a bar for each value; a full bar is `top`, a dash stands for no value."""
    return "".join("-" if value is None else _bar(value, top) for value in values)


def _bar(value: float, top: float) -> str:
    share = 0.0 if top <= 0 else min(max(value / top, 0.0), 1.0)
    return _BARS[round(share * (len(_BARS) - 1))]


def _mean(values: Sequence[float | None]) -> float:
    found = [value for value in values if value is not None]
    return sum(found) / len(found)


def _heading(console: Console, text: str) -> None:
    _print(console, f"\n{text}", "bold")


def _print(console: Console, text: Any, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False)
