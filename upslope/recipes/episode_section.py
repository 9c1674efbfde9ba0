"""What a recipe may say of episodes: the tools that the model may call, and the limits of a conversation."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from upslope.recipes.sections import Positive, Section


class EpisodeSection(Section):
    tools: tuple[str, ...]
    """Functions that the model may call: `[path/to/file.py:function]`, with type hints and a docstring."""
    max_turns: Annotated[int, Field(ge=2)] = 4
    """Messages that the model may write; calls in the last of them are not made."""
    budget: Positive | None = None
    """Tokens after the prompt, results among them; null: `max_turns` times `sampling.max_new_tokens`."""
    call_format: Literal["auto", "hermes", "llama", "mistral"] = "auto"
    """How calls are written; auto: as the chat template writes them, else hermes."""
    result_chars: Positive = 2000
    """A longer result is cut here, and says so."""
    deadline: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that a call may take; then its process is killed and the model is told."""
    sandbox: bool = False
    """The tools run what the model wrote (`exec`, `eval`): call them where nothing can be written or reached."""
    tool_network: bool = False
    """Let the tools use the network."""
    tool_env: tuple[str, ...] = ()
    """Names of environment variables that they get. Keys and tokens are kept from them otherwise."""

    @model_validator(mode="before")
    @classmethod
    def _one_tool(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("tools"), str):
            return {**value, "tools": [value["tools"]]}
        return value

    @field_validator("tools")
    @classmethod
    def _some_tools(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("found no tools. Fix: give [path/to/file.py:function], or leave episode out")
        return value

    @field_validator("tool_env")
    @classmethod
    def _names_only(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [name for name in value if not re.fullmatch(r"[A-Za-z_]\w*", name)]
        if wrong:
            raise ValueError(
                f"{wrong[0]!r} is no name of an environment variable. Fix: give names only, as in [API_KEY]"
            )
        return value

    def room(self, max_new_tokens: int) -> int:
        """Tokens that an episode may have after its prompt."""
        return self.max_turns * max_new_tokens if self.budget is None else self.budget
