"""What other clients send by default is answered; what asks for something is refused by name."""

import json

import pytest

pytest.importorskip("fastapi", reason="kava[serve] is not installed")
import httpx
import openai
from pydantic import ValidationError

from kava.serve.fields import CHAT_NEUTRAL, COMPLETION_NEUTRAL, IGNORED_FIELDS
from kava.serve.protocol import ChatRequest, CompletionRequest, RequestError

CHAT = {"model": "m", "messages": [{"role": "user", "content": "w1"}]}
TEXT = {"model": "m", "prompt": "w1"}

#: vLLM's requests with the defaults of all their fields, as its own classes write them.
VLLM = {
    "frequency_penalty": 0.0, "logit_bias": None, "logprobs": None, "max_tokens": None, "n": 1,
    "presence_penalty": 0.0, "seed": None, "stop": [], "stream": False, "stream_options": None,
    "temperature": None, "top_p": None, "user": None, "use_beam_search": False, "top_k": None,
    "min_p": None, "repetition_penalty": None, "length_penalty": 1.0, "stop_token_ids": [],
    "include_stop_str_in_output": False, "ignore_eos": False, "min_tokens": 0,
    "skip_special_tokens": True, "spaces_between_special_tokens": True,
    "truncate_prompt_tokens": None, "truncation_side": None, "prompt_logprobs": None,
    "logprob_token_ids": None, "allowed_token_ids": None, "bad_words": [], "watermarking": None,
    "response_format": None, "structured_outputs": None, "priority": 0, "request_id": "4f",
    "session_id": None, "return_tokens_as_token_ids": None, "return_token_ids": None,
    "cache_salt": None, "kv_transfer_params": None, "vllm_xargs": None, "echo": False,
}  # fmt: skip
VLLM_CHAT = {
    "top_logprobs": 0, "max_completion_tokens": None, "tools": None, "tool_choice": "none",
    "reasoning_effort": None, "thinking_token_budget": None, "include_reasoning": True,
    "parallel_tool_calls": True, "add_generation_prompt": True, "continue_final_message": False,
    "add_special_tokens": False, "documents": None, "chat_template": None,
    "chat_template_kwargs": None, "media_io_kwargs": None, "mm_processor_kwargs": None,
}  # fmt: skip
VLLM_TEXT = {"best_of": None, "suffix": None, "add_special_tokens": True}
#: Its sampling parameters, which its guides write into extra_body with these neutral values.
VLLM_SAMPLING = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "chat_template_kwargs": {}}
VLLM_BENCH = {"max_tokens": 16, "repetition_penalty": 1.0, "logprobs": None, "stream": True,
              "stream_options": {"include_usage": True}}  # fmt: skip
#: The samplers of llama.cpp's server, each switched off.
LLAMA = {
    "max_tokens": -1, "n_predict": -1, "cache_prompt": True, "id_slot": -1, "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0, "top_k": 0, "min_p": 0, "typical_p": 1.0, "xtc_probability": 0.0,
    "xtc_threshold": 0.1, "repeat_last_n": 64, "repeat_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2,
    "dry_penalty_last_n": -1, "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1,
    "grammar": "", "n_probs": 0, "n_keep": 0, "ignore_eos": False, "logit_bias": [],
    "timings_per_token": False, "reasoning_format": "auto", "lora": [], "seed": None,
}  # fmt: skip
LM_EVAL = {"max_tokens": 256, "temperature": 0, "stop": ["Question:", "</s>"], "seed": 1234}
BODIES = {
    "vllm chat": CHAT | VLLM | VLLM_CHAT, "vllm completion": TEXT | VLLM | VLLM_TEXT,
    "vllm sampling": CHAT | VLLM_SAMPLING, "vllm bench": TEXT | VLLM_BENCH,
    "vllm no thinking": CHAT | {"chat_template_kwargs": {"enable_thinking": False}},
    "llama.cpp chat": CHAT | LLAMA, "llama.cpp completion": TEXT | LLAMA,
    "lm-eval completion": TEXT | LM_EVAL | {"prompt": ["w1", "w2"]},
    "lm-eval chat": CHAT | LM_EVAL | {
        "messages": [{"role": "user", "content": "w1", "type": "text"}]
    },
}  # fmt: skip


def read(body):
    """The request as the service reads it from its JSON."""
    request_of = ChatRequest if "messages" in body else CompletionRequest
    request = request_of.model_validate(json.loads(json.dumps(body)))
    request.check()
    return request


@pytest.mark.parametrize("name", BODIES)
def test_the_defaults_of_other_clients_are_answered(name):
    request = read(BODIES[name])
    assert request.questions()[0] == "w1" and request.sampling.temperature == 0
    assert request.limit() == (BODIES[name].get("max_tokens") if "llama" not in name else None)


@pytest.mark.parametrize("chat", [False, True])
def test_what_openais_client_sends_is_answered(chat):
    bodies = []

    def answer(request):
        bodies.append(json.loads(request.content))
        return httpx.Response(418)

    http = httpx.Client(transport=httpx.MockTransport(answer))
    with openai.OpenAI(base_url="http://x/v1", api_key="x", max_retries=0, http_client=http) as one:
        create = one.chat.completions.create if chat else one.completions.create
        with pytest.raises(openai.APIStatusError):
            create(**(CHAT if chat else TEXT))
        with pytest.raises(openai.APIStatusError):
            create(**(CHAT if chat else TEXT), stream=True, user="u", n=2, seed=1, top_p=1)
    for body in bodies:
        assert read(body).questions() == ["w1"]
    assert bodies[1]["stream"] is True


ASKING = {
    "top_k": [40, -2, True], "min_p": [0.05], "repetition_penalty": [1.1, 0], "min_tokens": [1],
    "skip_special_tokens": [False], "ignore_eos": [True], "chat_template_kwargs": [{"a": 1}, []],
    "n_predict": [5], "mirostat": [2], "grammar": ["root"], "bad_words": [["a"]],
    "allowed_token_ids": [[1]], "structured_outputs": [{"json": {}}], "reasoning_effort": ["high"],
    "chat_template": ["x"], "priority": [1], "logit_bias": [{"5": 1}], "documents": [[{}]],
}  # fmt: skip


@pytest.mark.parametrize("field", ASKING)
@pytest.mark.parametrize("body", [CHAT, TEXT], ids=["chat", "completion"])
def test_what_asks_for_something_is_refused_by_name(body, field):
    for value in ASKING[field]:
        with pytest.raises(RequestError) as refusal:
            read(body | {field: value})
        assert (refusal.value.status, refusal.value.param) == (400, field)


def test_special_tokens_are_added_as_either_api_does_by_default():
    for body, default in ((CHAT, False), (TEXT, True)):
        read(body | {"add_special_tokens": default})
        with pytest.raises(RequestError) as refusal:
            read(body | {"add_special_tokens": not default})
        assert refusal.value.param == "add_special_tokens"


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("empty", ["", " \n", [], [{"type": "text", "text": ""}]])
def test_an_empty_system_message_asks_for_nothing(role, empty):
    messages = [{"role": role, "content": empty}, *CHAT["messages"]]
    assert read(CHAT | {"messages": messages}).questions() == ["w1"]
    for wrong in (messages[:1], [{"role": role, "content": "be brief"}, *CHAT["messages"]]):
        with pytest.raises(RequestError) as refusal:
            read(CHAT | {"messages": wrong}).questions()
        assert refusal.value.param == "messages"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_minus_one_is_no_limit_and_nothing_else_is(field):
    assert read(CHAT | {field: -1}).limit() is None
    assert read(CHAT | {field: 5}).limit() == 5
    for wrong in (0, -2, -1.0, True, "-1", 2_000_000):
        with pytest.raises(ValidationError) as refusal:
            read(CHAT | {field: wrong})
        assert refusal.value.errors()[0]["loc"] == (field,)


@pytest.mark.parametrize("prompt", [[5, 6, 7], [[5, 6, 7]], [[5], [6]], [[]]])
def test_token_ids_are_refused_with_what_to_do(prompt):
    with pytest.raises(ValidationError) as refusal:
        read(TEXT | {"prompt": prompt})
    (error,) = refusal.value.errors()
    assert (error["type"], error["loc"]) == ("token_ids", ("prompt",))
    assert "tokenized_requests=False" in error["msg"]


@pytest.mark.parametrize("request_of", [ChatRequest, CompletionRequest])
def test_the_schema_has_every_field_that_is_accepted(request_of):
    schema = request_of.model_json_schema()
    neutral = CHAT_NEUTRAL if request_of is ChatRequest else COMPLETION_NEUTRAL
    assert schema["additionalProperties"] is False
    assert {*IGNORED_FIELDS, *neutral, *request_of.model_fields} == set(schema["properties"])
    assert schema["properties"]["top_k"]["enum"] == [-1, 0, None]
    assert not {*IGNORED_FIELDS} & {*neutral} and not {*IGNORED_FIELDS, *neutral} & {
        *request_of.model_fields
    }
    assert {"const": -1} in [
        {"const": one.get("const")} for one in schema["properties"]["max_tokens"]["anyOf"]
    ]
