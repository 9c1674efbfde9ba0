"""A tokenizer with braces, chat templates of several kinds, and a sampler that says what it is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests import tiny
from upslope.models.loading import CHATML
from upslope.types import Completion, Sampling

MORE = '{}#%^&@`~$\\"'
ADD = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
"""A call that is one token of ``caller``'s vocabulary."""
ADD_MORE = '<tool_call>{"name": "add", "arguments": {"a": 4}}</tool_call>'
BROKEN = '<tool_call>{"name": </tool_call>'
CALLS = (ADD, ADD_MORE, BROKEN)
SCHEMA: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add", "description": "Add.", "return": {"type": "integer"},
        "parameters": {
            "type": "object", "properties": {"a": {"type": "integer", "description": "x"}}, "required": ["a"],
        },
    },
}  # fmt: skip

# What well-known templates do, in a few words each; written here for the tests.
QWEN = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<tool_call>\n"
    '{"name": <name>, "arguments": <arguments>}\n</tool_call><|im_end|>\n{% endif %}'
    "{% set ns = namespace(last=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% else %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last and loop.index0 > ns.last and thinks %}"
    "<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{% if m.content or not loop.first %}\n{% endif %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}<|im_start|>{{ 'ipython' if m.role == 'tool' else m.role }}\n"
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls') }}{% endif %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{% elif m.role == 'tool' %}{{ m.content | tojson }}{% elif m.role == 'user' and tools and loop.first %}"
    "{% for t in tools %}{{ t | tojson }}{% endfor %}{{ m.content }}{% else %}{{ m.content }}{% endif %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and loop.first %}[AVAILABLE_TOOLS] {{ tools | tojson }}{% endif %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}"
    "{% if m.tool_call_id | length != 9 %}{{ raise_exception('ids have 9 letters') }}{% endif %}"
    '[TOOL_RESULTS] {"content": {{ m.content }}}[/TOOL_RESULTS]'
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, '
    '"id": "{{ c.id }}"}{{ ", " if not loop.last }}'
    "{% endfor %}]<|im_end|>{% elif m.role == 'system' %}{{ m.content }}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
NO_TOOL_ROLE = (
    "{% for m in messages %}"
    "{% if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('unknown role') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMES_ONLY = (
    "{% if tools %}<|im_start|>tools\n{% for t in tools %}{{ t.function.name }} {% endfor %}<|im_end|>\n{% endif %}"
    + CHATML
)
"""Short, for models with a small context; calls are not known to it."""


def tokenizer(template: str = CHATML) -> Any:
    """One token a character, as ``tiny.tokenizer``, with what JSON needs."""
    found = tiny.tokenizer()
    found.add_tokens([letter for letter in MORE if letter not in tiny.CHARACTERS])
    found.chat_template = template
    return found


def caller(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A directory of a tiny random model that often calls: a vocabulary of few tokens, calls among them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {token: index for index, token in enumerate([*tiny.SPECIAL, "\n", "5"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    fast.add_tokens([*CALLS, "assistant", "tool", "add"])
    fast.chat_template = NAMES_ONLY
    tiny.model(
        "llama", seed, vocab_size=len(fast), **{"initializer_range": 0.05, "max_position_embeddings": 512, **changes}
    ).save_pretrained(path)
    fast.save_pretrained(path)
    return path


def stock(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a directory as plain transformers opens it."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


class Scripted:
    """A sampler that says, for each conversation so far, the text that ``script`` gives; "" ends nothing (the length).

    It notes what it was asked. A completion's log-probabilities are -1, -2, ... so that each can be told from the next.
    """

    def __init__(self, tokens: Any, script: Any, stop: int = 2) -> None:
        self.tokens, self.script, self.stop, self.version = tokens, script, stop, 7
        self.asked: list[tuple[list[list[int]], int, Sampling, list[int]]] = []

    def load(self, weights: Iterable[Any], version: int) -> None:
        self.version = version

    def sample(
        self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        self.asked.append(([list(prompt) for prompt in prompts], samples, sampling, list(seeds)))
        return [[self._one(prompt, sample, sampling) for sample in range(samples)] for prompt in prompts]

    def _one(self, prompt: Sequence[int], sample: int, sampling: Sampling) -> Completion:
        text = self.script(self.tokens.decode(list(prompt), skip_special_tokens=False), sample)
        ids = list(self.tokens(text, add_special_tokens=False)["input_ids"])
        ids = (ids if text.endswith("...") else [*ids, self.stop])[: sampling.max_new_tokens]
        logprobs = tuple(-1.0 - place for place in range(len(ids)))
        return Completion(tuple(ids), logprobs, ids[-1] == self.stop, self.version)
