"""Chat rendering, once: from text to token ids and a mask of what is trained on.

SFT, PPO and GRPO share this path, so the prompt that a policy is trained to answer is, id for id, the prompt that it
meets. Positions, never token ids, decide what is masked: a padding token that equals the end token changes nothing. The
stop token belongs to the completion and is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jinja2.exceptions import TemplateError

from upslope.errors import InputError
from upslope.text.tool_rendering import MARK, Dialect, call_messages, prepared, result_message, study
from upslope.types import Content, Encoded, Example, Message


class Renderer:
    """Turns prompts, answers and conversations into ids with one tokenizer, chat template and set of end tokens.

    Args:
        tokenizer: a Hugging Face tokenizer.
        stop_ids: the end tokens of the model's generation config.
        chat: ``auto`` renders a plain prompt as a user's message where there is a chat template; ``always`` demands
            one; ``never`` takes plain prompts as they are.
        system_prompt: put before conversations that have no system message of their own.
        tools: JSON schemas of functions that the model may call; they are part of every rendered conversation.
        call_format: how calls are written, a name of ``tool_calls.FORMATS``; auto: as the template does.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop_ids: Sequence[int],
        chat: Literal["auto", "always", "never"] = "auto",
        system_prompt: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        call_format: str = "auto",
    ) -> None:
        self.tokenizer, self.chat, self.system_prompt = tokenizer, chat, system_prompt
        if chat == "always" and not self.has_template:
            raise _no_template("data.chat: always")
        self.wraps = self.has_template and chat != "never"
        """Whether plain prompts become a user's message."""
        if tools and not self.wraps:
            raise _no_template("tools") if not self.has_template else InputError(
                "data.chat", "never, but tools are offered in a chat", "leave data.chat out"
            )  # fmt: skip
        self.dialect: Dialect | None = study(self._apply, tools, call_format) if tools else None
        """How the template speaks of tools; None: there are none."""
        self._studied: Dialect | None = None
        if not stop_ids and not self.wraps:
            raise _no_end()
        self.stop_id = self._turn_end(stop_ids) if self.wraps else stop_ids[0]
        """The token that ends a completion that is trained on."""
        self.stop_ids = tuple(dict.fromkeys([self.stop_id, *stop_ids]))

    @property
    def has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    # ------------------------------------------------------------------------------------------------ text to ids
    def prompt(self, content: Content) -> list[int]:
        """Ids of a prompt, ending where the completion begins."""
        if not isinstance(content, str):
            if content and isinstance(content[0], int):
                return [int(token) for token in content]  # type: ignore[call-overload]
            return self._ids(self._render(self._with_system(content), generation=True))  # type: ignore[arg-type]
        if self.wraps:
            return self.prompt(({"role": "user", "content": content},))
        if self.system_prompt is not None:
            raise InputError("data.system_prompt", "a plain prompt that is not rendered as chat cannot show it",
                             "leave it out, or set model.chat_template and data.chat: auto")  # fmt: skip
        return [*self._bos(), *self._ids(content)]

    def completion(self, text: str) -> list[int]:
        """Ids of an answer that is trained on, its stop token included."""
        return [*self._ids(text), self.stop_id]

    def example(self, row: Example) -> Encoded:
        """A supervised row. Of a conversation every assistant turn is trained on, each with its stop token."""
        if row.completion is None:
            return self._conversation(row)
        prompt, answer = self.prompt(row.prompt), self.completion(row.completion)
        return Encoded(row.id, tuple(prompt + answer), (False,) * len(prompt) + (True,) * len(answer))

    def text(self, token_ids: Sequence[int]) -> str:
        """A completion's text: end tokens and other special tokens left out."""
        kept = [token for token in token_ids if token not in self.stop_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))

    # ------------------------------------------------------------------------------------------------------ tools
    def written(self, token_ids: Sequence[int]) -> str:
        """A completion's text with its special tokens, in which calls may be marked; end tokens are left out."""
        kept = [token for token in token_ids if token not in self.stop_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))

    def observation(self, results: Sequence[tuple[str, str]], stopped: bool = True) -> list[int]:
        """Ids that follow a message with calls: what the template writes after its stop token, the results by (tool,
        text), and the beginning of the next message.

        They are found by rendering a made-up conversation with and without the results, so what the model wrote is
        not touched. ``stopped``: its last token was an end token; where not, these ids begin with one. The texts of
        special tokens in a result are broken up, so that no result can end a message.

        Raises:
            InputError: the template shows no results behind a message, or rewrites that message.
        """
        if self.dialect is None:
            raise ValueError("this renderer has no tools")
        names = [name for name, _ in results]
        said: list[Message] = [{"role": "assistant", "content": MARK}]
        said = call_messages(names) if self.dialect.calls else said
        talk: list[Message] = [{"role": "user", "content": "?"}, *said]
        told = [result_message(name, self._harmless(text), place) for place, (name, text) in enumerate(results)]
        before, after = self._render(talk, generation=False), self._render([*talk, *told], generation=True)
        tails = [text.partition(MARK) for text in (before, after)]
        ids = self._ids(tails[1][2])
        end = next((place for place, token in enumerate(ids) if token in self.stop_ids), None)
        if not (tails[0][1] and tails[1][1] and tails[1][2].startswith(tails[0][2])) or end is None:
            problem = "the template rewrites a message when a tool's result follows it, so results cannot be appended"
            raise InputError("model.chat_template", problem, "give another template, such as chatml")
        return [*(() if stopped else (self.stop_id,)), *ids[end + 1 :]]

    def _harmless(self, text: str) -> str:
        for token in self.tokenizer.all_special_tokens:
            if len(token) > 1:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    # ---------------------------------------------------------------------------------------------- conversations
    def _conversation(self, row: Example) -> Encoded:
        messages = list(self._with_system(row.prompt))  # type: ignore[arg-type]
        ids: list[int] = []
        trainable: list[bool] = []
        done = ""
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:turn], generation=True)
            after = self._render(messages[: turn + 1], generation=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise InputError(
                    f"row {row.id}",
                    f"the chat template rewrites earlier turns (at message {turn + 1}), so the turns of one "
                    "conversation cannot be trained on together",
                    "give one prompt/completion row for each assistant turn",
                )
            context = self._ids(before[len(done) :])
            answer = self._ids(after[len(before) :])
            # What the template writes after the stop token (a newline, say) is context of the next turn.
            end = next((place + 1 for place, token in enumerate(answer) if token in self.stop_ids), len(answer))
            ids += [*context, *answer]
            trainable += [False] * len(context) + [place < end for place in range(len(answer))]
            done = after
        last = max((place for place, wanted in enumerate(trainable) if wanted), default=-1)
        if last < 0:
            problem = "the conversation has no assistant message to train on"
            raise InputError(f"row {row.id}", problem, "add one, or drop the row")
        ids, trainable = ids[: last + 1], trainable[: last + 1]
        if ids[-1] not in self.stop_ids:  # a template that writes none: sampling ends with one all the same
            ids, trainable = [*ids, self.stop_id], [*trainable, True]
        return Encoded(row.id, tuple(ids), tuple(trainable))

    def _with_system(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        if self.system_prompt is None or (messages and messages[0]["role"] == "system"):
            return tuple(messages)
        return ({"role": "system", "content": self.system_prompt}, *messages)

    def _render(self, messages: Sequence[Message], generation: bool) -> str:
        if not self.has_template:
            raise _no_template("conversational rows")
        dialect = self.dialect
        if dialect is None and any(message.get("tool_calls") for message in messages):
            # A template that ignores calls would teach empty answers.
            dialect = self._studied = self._studied or study(self._apply, ())
        tools = None
        if dialect is not None:
            messages, tools = prepared(messages, dialect), dialect.schemas if dialect.offered else None
        try:
            return self._template(messages, tools, generation)
        except TemplateError as error:
            raise InputError("model.chat_template", f"the template refuses a conversation: {error}",
                             "check the roles and their order in your rows") from error  # fmt: skip

    def _template(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, generation: bool
    ) -> str:
        listed = [dict(tool) for tool in tools] if tools else None
        found = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tools=listed, tokenize=False, add_generation_prompt=generation
        )
        return str(found)

    def _apply(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, generation: bool
    ) -> str | None:
        """What the template makes of it; None where it refuses."""
        try:
            return self._template(messages, tools, generation)
        except (TemplateError, TypeError, KeyError, ValueError):
            return None

    def _turn_end(self, stop_ids: Sequence[int]) -> int:
        """The token that this template puts after an assistant's message, if it ends text; else the first end token."""
        question = ({"role": "user", "content": "?"},)
        full = self._render(self._with_system((*question, {"role": "assistant", "content": MARK})), generation=False)
        after = self._ids(full[full.rfind(MARK) + len(MARK) :])
        if after and (after[0] in stop_ids or after[0] in set(self.tokenizer.all_special_ids)):
            return int(after[0])
        if not stop_ids:
            raise _no_end()
        return stop_ids[0]

    # ----------------------------------------------------------------------------------------------------- tokens
    def _ids(self, text: str) -> list[int]:
        # A rendered template has written its own BOS; plain text gets one in ``prompt``. Never two.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _bos(self) -> list[int]:
        with_special = list(self.tokenizer("a")["input_ids"])
        bos = getattr(self.tokenizer, "bos_token_id", None)
        return [bos] if bos is not None and with_special[:1] == [bos] else []


def _no_end() -> InputError:
    return InputError(
        "model.name",
        "neither the tokenizer nor the generation config names an end token: every completion would run on",
        "set eos_token in the model's tokenizer_config.json",
    )


def _no_template(what: str) -> InputError:
    return InputError(
        "model.chat_template", f"{what} need a chat template, and the model has none",
        "set model.chat_template: chatml or a Jinja file, or give plain prompts",
    )  # fmt: skip
