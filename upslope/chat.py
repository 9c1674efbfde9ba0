"""A conversation in the terminal: the same renderer and sampler as training, so what you talk to is what was
trained."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.text import Text

from upslope.errors import InputError
from upslope.models import loading
from upslope.recipes.conversations import check_tools, conversations, offered, open_tools
from upslope.recipes.episode_section import EpisodeSection
from upslope.recipes.reward_section import RewardSection
from upslope.rollout.sampler import InProcessSampler
from upslope.seeds import derive
from upslope.text.rendering import Renderer
from upslope.types import Message, Sampling
from upslope.views.safe_text import clean

LONGEST = 100_000
LONGEST_RESULT = 300


def converse(
    model: str, system_prompt: str | None, temperature: float, top_p: float, max_new_tokens: int, device: str,
    seed: int, tools: Sequence[str] = (), max_turns: int = 4, sandbox: bool = False,
) -> None:  # fmt: skip
    """Read a line, answer it, until an empty line or the end of input.

    With ``tools`` (``path/to/file.py:function``) an answer may take up to ``max_turns`` messages of the model, as in a
    recipe's ``episode``: calls and their results are shown, and stay in the conversation. ``sandbox``: for tools that
    run what the model writes. Other limits of the tools are a recipe's defaults.
    """
    console = Console(emoji=False, highlight=False)
    section = EpisodeSection(tools=tuple(tools), max_turns=max_turns, sandbox=sandbox) if tools else None
    check_tools(section)
    place = loading.choose_device(device)
    card = loading.read_card(model, notice=lambda text: console.print(Text(clean(text, 2000))))
    with ExitStack() as stack:
        toolbox = open_tools(section, None, RewardSection().memory_mb, stack)
        told = offered(section, toolbox)
        renderer = Renderer(card.tokenizer, card.stop_ids, "auto", system_prompt, *told)
        talks = conversations(section, max_new_tokens, renderer, toolbox)
        loaded = loading.load(card, place, loading.choose_dtype("auto", place))
        sampler = InProcessSampler(loaded.model, card.context, decode=renderer.text)
        sampling = Sampling(max_new_tokens, renderer.stop_ids, temperature, top_p=top_p)
        head = f"{clean(card.name, 200)} on {place}, {loaded.dtype}. An empty line ends."
        console.print(Text(head, style="dim"))
        messages: list[Message] = []
        while text := _line(console):
            messages.append({"role": "user", "content": text})
            ids = renderer.prompt(tuple(messages) if renderer.wraps else text)
            if len(ids) >= card.context:
                problem = f"the conversation has {len(ids)} tokens, the model's context {card.context}"
                raise InputError("chat", problem, "start a new one")
            seeds = [derive(seed, "chat", len(messages))]
            if talks is None:
                found = sampler.sample([ids], 1, sampling, seeds)[0][0]
                said: Sequence[Message] = [{"role": "assistant", "content": renderer.text(found.token_ids)}]
            else:
                fitting = replace(talks, budget=min(talks.budget, card.context - len(ids)))
                said = fitting.play(sampler, sampling, [ids], 1, seeds)[0][0].messages
            for message in said:
                _show(console, message)
            messages += said
            if said[-1].get("tool_calls"):  # kept as text: there are templates that refuse a call without a result
                limits = f"{max_turns} messages and {fitting.budget} tokens (--max-turns, --max-new-tokens)"
                console.print(Text(f"  no result reached the model: an answer has at most {limits}", style="yellow"))
                messages[-1] = {"role": "assistant", "content": said[-1]["content"]}


def _line(console: Console) -> str:
    """What was typed, empty at the end of input."""
    while True:
        try:
            text = console.input("[bold]you[/bold]  ").strip()
        except EOFError:
            return ""
        except UnicodeDecodeError:
            console.print(Text("that line is not UTF-8 text", style="yellow"))
            continue
        return text.encode(errors="replace").decode()  # half a character, which a terminal may hand on


def _show(console: Console, message: Message) -> None:
    """An answer, or a call with its arguments, or a call's result."""
    content = str(message.get("content") or "")
    if message["role"] == "tool":
        console.print(Text("  = " + clean(content, LONGEST_RESULT), style="dim"))
        return
    calls: Any = message.get("tool_calls") or ()
    if content or not calls:
        console.print(Text(clean(content, LONGEST, keep_breaks=True), style="cyan"))
    for call in calls:
        function = call["function"]
        given = ", ".join(f"{name}={value!r}" for name, value in function["arguments"].items())
        console.print(Text("  " + clean(f"{function['name']}({given})", LONGEST_RESULT), style="dim"))
