"""Request fields of OpenAI, vLLM and llama.cpp that a reasoner has no use for.

Clients send many of them with values that ask for nothing, often their defaults. Such a request is
answered. One that asks for something is refused.
"""

from typing import Any

#: Accepted with any value: they say who asks or where data is stored, or only matter together with
#: another field that asks for nothing.
IGNORED_FIELDS = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prompt_cache_options", "parallel_tool_calls",
    # vLLM
    "request_id", "session_id", "cache_salt", "truncation_side",
    # llama.cpp
    "cache_prompt", "id_slot", "dynatemp_exponent", "xtc_threshold", "dry_base",
    "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "repeat_last_n",
    "mirostat_tau", "mirostat_eta", "min_keep", "grammar_lazy", "grammar_triggers",
}  # fmt: skip
#: Accepted only with these values (or null), with which they request nothing.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logprobs": (False,), "best_of": (1,),
    "echo": (False,), "logit_bias": ({}, []), "suffix": ("",),
    "response_format": ({"type": "text"},), "tools": ([],), "tool_choice": ("none", "auto"),
    "top_logprobs": (0,), "modalities": (["text"],), "functions": ([],),
    "function_call": ("none", "auto"), "reasoning_effort": ("none",), "verbosity": ("medium",),
    "audio": (), "prediction": (), "web_search_options": (), "moderation": (),
    # vLLM
    "top_k": (-1, 0), "min_p": (0,), "repetition_penalty": (1,), "length_penalty": (1,),
    "use_beam_search": (False,), "stop_token_ids": ([],), "include_stop_str_in_output": (False,),
    "ignore_eos": (False,), "min_tokens": (0,), "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,), "truncate_prompt_tokens": (), "prompt_logprobs": (),
    "logprob_token_ids": (), "allowed_token_ids": (), "bad_words": ([],), "watermarking": (False,),
    "add_generation_prompt": (True,), "continue_final_message": (False,), "documents": ([],),
    "chat_template": (), "chat_template_kwargs": ({}, {"enable_thinking": False}),
    "media_io_kwargs": ({},), "mm_processor_kwargs": ({},), "structured_outputs": (),
    "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (),
    "priority": (0,), "include_reasoning": (True, False), "thinking_token_budget": (),
    "return_tokens_as_token_ids": (False,), "return_token_ids": (False,),
    "return_prompt_text": (False,), "kv_transfer_params": (), "ec_transfer_params": (),
    "vllm_xargs": ({},), "logits_processors": ([],), "repetition_detection": (),
    # llama.cpp
    "n_predict": (-1,), "typical_p": (1,), "top_n_sigma": (-1,), "repeat_penalty": (1,),
    "xtc_probability": (0,), "dry_multiplier": (0,), "dynatemp_range": (0,), "mirostat": (0,),
    "n_probs": (0,), "n_keep": (0,), "n_discard": (0,), "t_max_predict_ms": (0,), "grammar": ("",),
    "json_schema": (), "lora": ([],), "response_fields": ([],), "return_tokens": (False,),
    "return_progress": (False,), "timings_per_token": (False,), "post_sampling_probs": (False,),
    "backend_sampling": (False,), "reasoning_format": ("none", "auto"),
}  # fmt: skip
#: How vLLM encodes a prompt by default; the default differs between its two APIs.
CHAT_NEUTRAL = {**NEUTRAL_VALUES, "add_special_tokens": (False,)}
COMPLETION_NEUTRAL = {**NEUTRAL_VALUES, "add_special_tokens": (True,)}


def is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether a field has one of its neutral values, or null, and so requests nothing."""
    truth = isinstance(value, bool)  # in Python, True == 1 and False == 0
    return value is None or any(value == v and truth == isinstance(v, bool) for v in neutral)
