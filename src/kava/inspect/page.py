"""Write the measurements as one HTML file that contains its style, script and data.

The page loads nothing else.
"""

import base64
import hashlib
import html
import json
from pathlib import Path

from kava.inspect.look import Inspection

_HERE = Path(__file__).parent
#: A tag that is on every page of kava inspect, and on no page of another tool.
MARK = '<meta name="generator" content="kava inspect">'


def page(inspection: Inspection) -> str:
    """Return the HTML page; texts of the question and of the model are data in it, never markup.

    The page's content security policy allows only its own script, by its hash, and forbids all
    connections.
    """
    style, script = (_read(name) for name in ("page.css", "page.js"))
    values = {
        "title": html.escape(f"kava inspect: {inspection.question}"),
        "style-hash": _hash(style),
        "script-hash": _hash(script),
        "style": style,
        "script": script,
        "data": as_script(inspection),
    }
    parts = _read("page.html").split("@")
    # Every second part is a name; inserted text is not searched for further names.
    return "".join(values[part] if i % 2 else part for i, part in enumerate(parts))


def as_script(inspection: Inspection) -> str:
    """Return JSON that is safe inside a script element: `<`, `>` and `&` are escaped."""
    text = json.dumps(inspection.tree(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def is_page(file: Path) -> bool:
    """Whether a file is a page written by `kava inspect`."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        return MARK in opened.read(2000)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
