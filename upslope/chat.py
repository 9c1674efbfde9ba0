"""A conversation in the terminal: the same renderer and sampler as training, so what you talk to is what was
trained."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from upslope.errors import InputError
from upslope.models import loading
from upslope.rollout.sampler import InProcessSampler
from upslope.seeds import derive
from upslope.text.rendering import Renderer
from upslope.types import Message, Sampling
from upslope.views.safe_text import clean

LONGEST = 100_000


def converse(
    model: str, system_prompt: str | None, temperature: float, top_p: float, max_new_tokens: int, device: str, seed: int
) -> None:
    """Read a line, answer it, until an empty line or the end of input."""
    console = Console(emoji=False, highlight=False)
    place = loading.choose_device(device)
    card = loading.read_card(model, notice=lambda text: console.print(Text(clean(text, 2000))))
    renderer = Renderer(card.tokenizer, card.stop_ids, system_prompt=system_prompt)
    loaded = loading.load(card, place, loading.choose_dtype("auto", place))
    sampler = InProcessSampler(loaded.model, card.context, decode=renderer.text)
    sampling = Sampling(max_new_tokens, renderer.stop_ids, temperature, top_p=top_p)
    head = f"{clean(card.name, 200)} on {place}, {loaded.dtype}. An empty line ends."
    console.print(Text(head, style="dim"))
    messages: list[Message] = []
    while True:
        try:
            text = console.input("[bold]you[/bold]  ").strip()
        except EOFError:
            return
        except UnicodeDecodeError:
            console.print(Text("that line is not UTF-8 text", style="yellow"))
            continue
        text = text.encode(errors="replace").decode()  # half a character, which a terminal may hand on
        if not text:
            return
        messages.append({"role": "user", "content": text})
        ids = renderer.prompt(tuple(messages) if renderer.wraps else text)
        if len(ids) >= card.context:
            raise InputError(
                "chat", f"the conversation has {len(ids)} tokens, the model's context {card.context}", "start a new one"
            )
        found = sampler.sample([ids], 1, sampling, [derive(seed, "chat", len(messages))])[0][0]
        answer = renderer.text(found.token_ids)
        console.print(Text(clean(answer, LONGEST, keep_breaks=True), style="cyan"))
        messages.append({"role": "assistant", "content": answer})
