"""Hostile HTTP requests, each made from a number: the same number gives the same bytes.

`benchmarks/hostile.py` sends them to a service, beside what schemathesis makes of its schema.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

#: In place of a status: the service closed the connection without an answer; we did not wait.
CLOSED, LEFT = "closed", "left"
#: The service may be busy whatever it is asked: a full queue, too many connections, a time-out.
BUSY = {429, 503, 504}
#: An answer, or an error that says what is wrong.
TAKEN_OR_REFUSED = {200, 400, 404, *BUSY}


@dataclass(frozen=True)
class Target:
    """What the requests are about.

    questions: that the service answers.   body_bytes: the largest body that it reads.
    """

    model: str
    questions: Sequence[str]
    api_key: str | None = None
    body_bytes: int = 1_000_000


@dataclass(frozen=True)
class Attack:
    """Bytes for a connection of their own.

    parts: sent one after the other, with a pause of `pause` seconds between them.
    then: `read` the answer; `end`, if none comes soon, by saying that nothing more will be sent;
        or `leave` at once.
    allowed: statuses that may come back.
    method: of the request, where the answer depends on it.
    """

    kind: str
    parts: tuple[bytes, ...]
    allowed: frozenset[int | str]
    then: str = "read"
    pause: float = 0.0
    method: str = "POST"


def attack(number: int, target: Target, seed: int = 0) -> Attack:
    """The request of this number."""
    maker = _Maker(random.Random(f"{seed}-{number}"), target)
    kinds, weights = zip(*_KINDS.items(), strict=True)
    kind = maker.draw.choices(kinds, [weight for weight, _ in weights])[0]
    made = _KINDS[kind][1](maker)
    allowed = frozenset(made.pop("allowed"))
    parts = made.pop("parts")
    return Attack(kind, tuple(parts), allowed, **made)


@dataclass
class _Maker:
    draw: random.Random
    target: Target
    path: str = field(init=False)
    body: Any = field(init=False)
    message: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        chat = self.draw.random() < 0.5
        self.path = "/v1/chat/completions" if chat else "/v1/completions"
        question = self.draw.choice(self.target.questions)
        self.message = {"role": "user", "content": question}
        asked = {"messages": [self.message]} if chat else {"prompt": question}
        self.body = {"model": self.target.model, "max_tokens": 4, **asked}

    def put(self, question: Any) -> None:
        """Ask this instead."""
        if "prompt" in self.body:
            self.body["prompt"] = question
        else:
            self.message["content"] = question

    def head(
        self, length: int | str | None, headers: Sequence[bytes] = (), path: str | None = None,
        method: str = "POST", kind: str | None = "application/json",
    ) -> bytes:  # fmt: skip
        """Request line and headers; None leaves a header out."""
        lines = [f"{method} {path or self.path} HTTP/1.1".encode("latin-1"), b"Host: localhost"]
        if self.target.api_key is not None:
            lines.append(f"Authorization: Bearer {self.target.api_key}".encode())
        if kind is not None:
            lines.append(f"Content-Type: {kind}".encode("latin-1"))
        if length is not None:
            lines.append(f"Content-Length: {length}".encode())
        return b"\r\n".join([*lines, *headers, b"", b""])

    def post(self, body: bytes | None = None, **more: Any) -> bytes:
        """A whole request."""
        sent = self.written() if body is None else body
        return self.head(len(sent), **more) + sent

    def written(self) -> bytes:
        """The body as JSON, with the values that Python's own writer has no words for."""
        text = json.dumps(self.body, ensure_ascii=self.draw.random() < 0.5)
        for name, value in _RAW.items():
            text = text.replace(f'"{name}"', value)
        return text.encode("utf-8", "surrogatepass")


#: What JSON text can hold beyond the values of Python: names that `written` replaces.
_RAW = {
    "@nan": "NaN", "@inf": "Infinity", "@-inf": "-Infinity", "@1e400": "1e400", "@-1e400": "-1e400",
    "@digits": "9" * 5000, "@-digits": "-" + "9" * 400, "@long-fraction": "0." + "1" * 5000,
    "@deep": "[" * 900 + "]" * 900, "@deep-objects": '{"a":' * 500 + "1" + "}" * 500,
}  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 16, 17, 64, 65, 10**6, 2**31, 2**63 - 1, 2**63, -(2**63) - 1,
    0.0, -0.0, 0.5, 1.0, 1.5, 2.0, 1e-300, 5e-324, 1e-7, 1e308, "", " ", "a", "1", "0.5", "true",
    "null", "\x00", "\ud800", "\udfff\ud800", "\ufffd", "é" * 300, "\U0001f600" * 90, "x" * 3000,
    "The answer is:", "</s>", "<latent>", [], {}, [[]], [None], [[[[]]]], {"a": {"b": []}},
    ["a"] * 4, ["a"] * 5, [""], [0] * 1000, {"type": "text"}, {"include_usage": True},
    [{"type": "text", "text": "a"}], [{"role": "user", "content": "a"}] * 70, *_RAW,
]  # fmt: skip
_FIELDS = [
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "n", "seed", "stop", "stream", "stream_options", "num_iterations", "frequency_penalty",
    "presence_penalty", "logprobs", "best_of", "echo", "logit_bias", "suffix", "response_format",
    "tools", "tool_choice", "top_logprobs", "modalities", "user", "metadata", "store", "prompt_",
    "questions", "model_config", "model_extra", "__class__", "__dict__", "check", "\x00", "\ud800",
    "a" * 500, "", "limit", "sampling",
]  # fmt: skip
_QUESTIONS = [
    "", " ", "\t\n", "\x00", "\x00" * 50, "\u200b", "\u2028\u2029", "\ufeff", "\ufffd", "\ud83d",
    "\ud800\udc00"[:1], "</s>", "<s></s><pad>", "<bot><latent><eot>", "The answer is: 42</s>",
    "<<1+1=2>>" * 20, "7 " * 5000, "a" * 30_000, "a" * 900_000, " " * 40_000, "\n" * 30_000 + "1",
    "\x1b[31mred\x1b[0m", "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "'; drop table answers; --",
    "{{7*7}}${7*7}%s%n", "../../etc/passwd", "\u202e\u0660\u0661", "Z\u0351\u036b" * 60,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 20, "٣ + ٤ = ?", "1" * 900, "<" * 900,
]  # fmt: skip


def _field(make: _Maker) -> dict[str, Any]:
    for _ in range(make.draw.choice((1, 1, 1, 2, 3))):
        name, value = make.draw.choice(_FIELDS), make.draw.choice(_VALUES)
        if "messages" in make.body and make.draw.random() < 0.3:
            make.message[make.draw.choice(["role", "content", "name", "tool_calls", name])] = value
        elif make.draw.random() < 0.15:
            make.body.pop(name, None)
        else:
            make.body[name] = value
    return {"parts": [make.post()], "allowed": TAKEN_OR_REFUSED}


def _stream(make: _Maker) -> dict[str, Any]:
    make.body["stream"] = True
    made = _field(make)
    then = make.draw.choice(("read", "read", "leave"))
    return {**made, "then": then, "allowed": {*TAKEN_OR_REFUSED, LEFT}}


def _shape(make: _Maker) -> dict[str, Any]:
    value = make.draw.choice([v for v in _VALUES if not isinstance(v, dict)])
    make.body = value if make.draw.random() < 0.5 else [make.body, value]
    return {"parts": [make.post()], "allowed": {400}}


def _syntax(make: _Maker) -> dict[str, Any]:
    text, draw = make.written(), make.draw
    at = draw.randrange(len(text))
    deep = draw.choice((b"[", b'{"a":', b'{"prompt":[')) * draw.choice((100, 5000, 100_000))
    texts = [
        text[:at],
        text[:at] + draw.randbytes(3) + text[at:],
        text[:at] + b"\xff\xfe" + text[at:],
        text[:at] + b"\xed\xa0\x80" + text[at:],  # a surrogate, as no UTF-8 may hold it
        text[:at] + b"\xc0\xaf" + text[at:],
        b"\xef\xbb\xbf" + text,
        text.decode("utf-8", "replace").encode(draw.choice(("utf-16", "utf-32", "utf-16-le"))),
        text + text,
        text[:-1] + b',"model":"other","model":null}',
        text[:-1] + b"," + b",".join(b'"k%d":%d' % (i, i) for i in range(20_000)) + b"}",
        text.replace(b'"', b"'"),
        text[:-1] + b",}",
        b"// c\n" + text,
        deep,
        draw.randbytes(draw.randrange(1, 400)),
        b"",
        b"\x00" * 64,
        text[:-1] + b',"messages":[{"role":"user","content":[' + b"0," * 300_000 + b"0]}]}",
        text[:-1] + b',"prompt":[' + b"{}," * 200_000 + b"{}]}",
        text[:-1] + b',"stop":[' + b"1," * 300_000 + b"1]}",
    ]
    return {"parts": [make.post(draw.choice(texts))], "allowed": {*TAKEN_OR_REFUSED, 413}}


def _question(make: _Maker) -> dict[str, Any]:
    question = make.draw.choice(_QUESTIONS)
    if make.draw.random() < 0.3:
        letters = [chr(make.draw.randrange(1, 0xD800)) for _ in range(make.draw.randrange(1, 60))]
        question = "".join(letters)
    if "prompt" in make.body and make.draw.random() < 0.2:
        make.put([question] * make.draw.choice((1, 2, 255, 257)))
        make.body["n"] = make.draw.choice((1, 16))
    else:
        make.put(question)
    return {"parts": [make.post()], "allowed": {*TAKEN_OR_REFUSED, 413}}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _framing(make: _Maker) -> dict[str, Any]:
    body, draw = make.written(), make.draw
    size = len(body)
    chunked = b"Transfer-Encoding: chunked"
    lengths = ("-1", "+5", "1e3", "0x10", "abc", "", "9" * 400, "١", f"{size}, {size + 1}")
    length = draw.choice(lengths).encode()
    halves = [_chunk(body[: size // 2]), _chunk(body[size // 2 :])]
    old = draw.choice((b"HTTP/1.0", b"HTTP/9.9", b"HTTP"))
    requests = [
        make.head(None) + body,  # no length: no body, and then garbage
        make.head(size - 5) + body,
        make.head(size + 5) + body,  # five bytes that never come
        make.head(0) + body,
        make.head(None, [b"Content-Length: " + length]) + body,
        make.head(size, [b"Content-Length: %d" % (size + 1)]) + body,
        make.head(None, [chunked]) + b"".join(halves) + b"0\r\n\r\n",
        make.head(None, [chunked]) + b"".join(halves),
        make.head(None, [chunked]) + b"zz\r\n" + body,
        make.head(None, [chunked]) + b"f" * 100 + b"\r\n" + body,
        make.head(None, [chunked]) + b"-5\r\n" + body + b"\r\n0\r\n\r\n",
        make.head(None, [chunked]) + b"".join(_chunk(bytes([x])) for x in body) + b"0\r\n\r\n",
        make.head(None, [chunked]) + b"".join(halves) + b"0\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        make.head(size, [chunked]) + b"".join(halves) + b"0\r\n\r\n",
        make.head(size, [b"Transfer-Encoding: gzip, identity"]) + body,
        make.head(size, [b"Content-Encoding: gzip"]) + body,
        make.head(size, [b"Expect: 100-continue"]) + body,
        make.head(size).replace(b"HTTP/1.1", old) + body,
        make.head(size).replace(b"\r\n", b"\n") + body,
        make.head(size).replace(b"Host: localhost\r\n", b"") + body,
    ]  # fmt: skip
    allowed = {*TAKEN_OR_REFUSED, 408, 413, 415, 501, CLOSED}
    return {"parts": [draw.choice(requests)], "then": "end", "allowed": allowed}


def _header(make: _Maker) -> dict[str, Any]:
    draw = make.draw
    headers = [
        [b"X-Long: " + b"a" * draw.choice((1000, 20_000, 200_000))],
        [b"X-%d: y" % i for i in range(draw.choice((50, 500, 5000)))],
        [b"X-Bytes: " + draw.randbytes(40)],
        [b"X-Null: a\x00b"],
        [b" folded: a", b"\tand on"],
        [b"No colon here"],
        [b": no name"],
        [b"X Y: blank"],
        [b"Connection: upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: eA=="],
        [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"],
        [b"Connection: close, keep-alive, \xff"],
        [b"Cookie: " + b"a=b; " * 2000],
        [b"Range: bytes=0-0"],
        [b"Accept: text/html", b"Accept-Encoding: gzip;q=nan"],
        [b"X-Forwarded-For: 127.0.0.1", b"X-HTTP-Method-Override: DELETE"],
    ]
    kinds = (
        "application/json", "text/plain", "", "application/x-www-form-urlencoded", "a/b/c", ";",
        "multipart/form-data", "application/json; charset=utf-7", "application/xml", "x" * 3000,
        "application/vnd.api+json", 'application/json; charset="', "APPLICATION/JSON", "*/*", "é",
        None,
    )  # fmt: skip
    plain = draw.random() < 0.5
    request = make.post(
        headers=draw.choice(headers) if plain else (),
        kind="application/json" if plain else draw.choice(kinds),
    )
    return {"parts": [request], "then": "end", "allowed": {*TAKEN_OR_REFUSED, 415, 431, CLOSED}}


_PATHS = [
    "/", "//", "/v1", "/v1/", "/v1/completions/", "/v1//completions", "/V1/completions",
    "/v1/completions/x", "/v1/models/", "/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2f",
    "/v1/models/%00", "/v1/models/%ff%fe", "/v1/models/%ed%a0%80", "/v1/models/%0d%0aX:%20y",
    "/v1/models/" + "a" * 9000, "/v1/models/" + "%41" * 3000, "/health/", "/health?" + "a=b&" * 900,
    "/metrics/x", "/docs", "/redoc", "/.env", "/%2e%2e/%2e%2e/etc/passwd", "/\\..\\", "*",
    "http://localhost/health", "http://[::1", "/v1/models?limit=-1", "/?\x7f", "/a b", "/é", "",
    "/v1/models/é", "/v1/completions#x", "/v1/embeddings", "/v1/files", "/" + "a/" * 4000,
]  # fmt: skip
_METHODS = ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "QUERY", "get"]


def _address(make: _Maker) -> dict[str, Any]:
    draw = make.draw
    known = ["/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics"]
    path = draw.choice([*_PATHS, *known, make.path])
    method = draw.choice([*_METHODS, "POST", "", "P\x00ST", "X" * 5000])
    request = make.post(path=path, method=method)
    if not path:
        request = request.replace(f"{method} {make.path}".encode(), method.encode() + b" ", 1)
    allowed = {*TAKEN_OR_REFUSED, 405, CLOSED}
    return {"parts": [request], "then": "end", "method": method, "allowed": allowed}


def _size(make: _Maker) -> dict[str, Any]:
    draw, most = make.draw, make.target.body_bytes
    size = draw.choice((most - 1000, most + 1, 2 * most))
    make.put("a" * size)
    body = make.written()
    chunk = _chunk(body[: len(body) // 8])
    requests = [
        [make.post(body)],
        [make.head(10**18), body[:100_000]],
        [make.head(None, [b"Transfer-Encoding: chunked"]), *[chunk] * 9, b"0\r\n\r\n"],
        [make.head(len(body), [b"Expect: 100-continue"]), body],
    ]
    parts = draw.choice(requests)
    return {"parts": parts, "then": "end", "allowed": {400, 413, *BUSY, CLOSED}}


def _garbage(make: _Maker) -> dict[str, Any]:
    draw = make.draw
    whole = make.post()
    flipped = bytearray(whole)
    for _ in range(draw.randrange(1, 30)):
        flipped[draw.randrange(len(flipped))] = draw.randrange(256)
    texts = [
        draw.randbytes(draw.randrange(1, 2000)),
        bytes(flipped),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(300),
        b"\r\n" * 3000,
        b"GET " + b"a" * 100_000,
        "".join(draw.choices(string.printable, k=500)).encode(),
        whole * 20,  # pipelined
        whole[: draw.randrange(len(whole))],
        b"",
    ]
    allowed = {*TAKEN_OR_REFUSED, 401, 405, 408, 413, 415, CLOSED}
    return {"parts": [draw.choice(texts)], "then": "end", "allowed": allowed}


def _slow(make: _Maker) -> dict[str, Any]:
    """In small pieces; often without the end."""
    request = make.post()
    cuts = sorted(make.draw.sample(range(1, len(request)), 4))
    parts = [request[a:b] for a, b in zip([0, *cuts], [*cuts, len(request)], strict=True)]
    if make.draw.random() < 0.5:
        return {"parts": parts[:-1], "pause": 0.01, "then": "leave", "allowed": {LEFT, CLOSED}}
    return {"parts": parts, "pause": 0.01, "allowed": TAKEN_OR_REFUSED}


def _leave(make: _Maker) -> dict[str, Any]:
    make.body["max_tokens"] = 64
    make.body["stream"] = make.draw.random() < 0.5
    pause = make.draw.choice((0.0, 0.002, 0.01))
    return {"parts": [make.post(), b""], "pause": pause, "then": "leave", "allowed": {LEFT, CLOSED}}


def _key(make: _Maker) -> dict[str, Any]:
    """Without the key, or with another one."""
    right = make.target.api_key
    if right is None:
        return _field(make)
    keys: list[bytes] = [
        b"", b"Bearer", b"Bearer ", b"Bearer \xff\xfe", b"Basic " + right.encode(), right.encode(),
        f"Bearer {right}x".encode(), f"Bearer {right[:-1]}".encode(), b"Bearer " + b"a" * 9000,
        f"Bearer Bearer {right}".encode(), b"bearer null", f'Bearer "{right}"'.encode(),
    ]  # fmt: skip
    line = f"Authorization: Bearer {right}\r\n".encode()
    key = make.draw.choice(keys)
    path = make.draw.choice([make.path, "/v1/nothing", "/openapi.json", "/metrics"])
    given = make.post(path=path).replace(line, b"Authorization: " + key + b"\r\n")
    if make.draw.random() < 0.2:
        given = make.post(path=path).replace(line, b"")
    return {"parts": [given], "allowed": {400, 401, 503}}


#: Each kind with its share.
_KINDS: dict[str, tuple[int, Callable[[_Maker], dict[str, Any]]]] = {
    "field": (30, _field),
    "stream": (8, _stream),
    "shape": (4, _shape),
    "syntax": (12, _syntax),
    "question": (10, _question),
    "framing": (8, _framing),
    "header": (7, _header),
    "address": (8, _address),
    "size": (2, _size),
    "garbage": (6, _garbage),
    "slow": (3, _slow),
    "leave": (4, _leave),
    "key": (3, _key),
}
KINDS = tuple(_KINDS)
