"""What a recipe may say of its reward: one function, or several with weights, and what their processes may do."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from upslope.recipes.sections import Positive, Section


class RewardEntry(Section):
    """One function of a reward: a file's, or a built-in one whose options stand beside it."""

    function: str | None = None
    """`path/to/file.py:function`. Give either this, `builtin` or `model`."""
    builtin: str | None = None
    """exact, numeric, math, format, regex, json-schema, length or overlong; see docs/rewards.md for their options."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the built-in reward."""
    model: str | None = None
    """A reward model: the `model/` folder of an `upslope reward` run, or any sequence classifier with one label."""
    normalize: Annotated[int, Field(ge=0)] = 128
    """Answers of the starting policy on which a reward model's scores get mean 0 and standard deviation 1; 0: raw."""
    missing_eos_penalty: Annotated[float, Field(ge=0)] | None = None
    """Taken off a reward model's score where the length limit cut the completion; null: it is scored as it is."""
    weight: float = 1.0
    """Its factor in the sum. 0: only logged."""
    name: str | None = None
    """Logged as rewards/NAME/mean; null: the function's own name."""
    sandbox: bool = False
    """It runs what the model wrote (`exec`, `eval`): call it where nothing can be written, started or reached."""

    @model_validator(mode="before")
    @classmethod
    def _options_beside(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"function": value}
        if not isinstance(value, dict):
            if not isinstance(value, cls):
                raise ValueError(
                    f"found {value!r}. Fix: give path/to/file.py:function, or a mapping such as {{builtin: exact}}"
                )
            return value
        beside = {key: item for key, item in value.items() if key not in cls.model_fields}
        if value.get("builtin") is None and beside:
            unknown = next(iter(beside))
            near = difflib.get_close_matches(str(unknown), cls.model_fields, n=1)
            fix = f"did you mean {near[0]}?" if near else "remove it"
            raise ValueError(f"unknown key {unknown}. Keys here: {', '.join(cls.model_fields)}. Fix: {fix}")
        rest = {key: item for key, item in value.items() if key in cls.model_fields}
        return {**rest, "options": {**(value.get("options") or {}), **beside}} if beside else value

    @field_validator("name")
    @classmethod
    def _fit_for_a_metric(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.-]+", value):
            raise ValueError(f"{value!r} would be the name of a metric. Fix: use letters, digits, _, - and . only")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> RewardEntry:
        given = [name for name in ("function", "builtin", "model") if getattr(self, name) is not None]
        if len(given) != 1:
            found = {0: "neither is given", 2: "both are given"}.get(len(given), "all are given")
            what = "a function or builtin" if "model" not in given else "a function, builtin or a model"
            raise ValueError(f"a reward is either {what}, {found}")
        odd = {"normalize", "missing_eos_penalty"} & self.model_fields_set
        if self.model is None and odd:
            raise ValueError(f"{min(odd)} is for a reward model. Fix: remove it, or give model: DIRECTORY")
        if self.model is not None and self.sandbox:
            raise ValueError("sandbox is for a function; a reward model runs no text. Fix: remove it")
        return self


class RewardSection(Section):
    function: str | None = None
    """`path/to/file.py:function` with TRL's signature. A built-in task brings its own."""
    functions: tuple[RewardEntry, ...] = ()
    """Instead: several, e.g. `[rewards.py:correct, {builtin: format, weight: 0.5}]`, reward models (`{model: DIR}`)
    among them; the reward is the weighted sum."""
    timeout: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that one call may take; then it is killed, retried once, and the run stops."""
    on_error: Literal["stop", "drop_group"] = "stop"
    """A failing reward stops the run, or drops that prompt's group and counts it. It never becomes a 0."""
    memory_mb: Positive | None = 4096
    """MiB that each function's process may take (Linux); null: no limit."""
    network: bool = False
    """Let the functions use the network."""
    env: tuple[str, ...] = ()
    """Names of environment variables that they get. Keys and tokens are kept from them otherwise."""

    @model_validator(mode="before")
    @classmethod
    def _from_one(cls, value: Any) -> Any:
        """One function as text, several as a list, and one with its keys beside those of this section."""
        if isinstance(value, str):
            return {"function": value}
        if isinstance(value, list | tuple):
            return {"functions": value}
        if not isinstance(value, dict) or "functions" in value:
            return value
        own = {key: item for key, item in value.items() if key in cls.model_fields and key != "function"}
        one = {key: item for key, item in value.items() if key not in own}
        plain = set(one) <= {"function"} or not set(one) & {"builtin", *RewardEntry.model_fields} - {"function"}
        return value if plain else {**own, "functions": [one]}

    @field_validator("env")
    @classmethod
    def _names_only(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [name for name in value if not re.fullmatch(r"[A-Za-z_]\w*", name)]
        if wrong:
            raise ValueError(
                f"{wrong[0]!r} is no name of an environment variable. Fix: give names only, as in [API_KEY]"
            )
        return value

    @model_validator(mode="after")
    def _one_way(self) -> RewardSection:
        if self.function is not None and self.functions:
            raise ValueError("reward.function and reward.functions are both given. Fix: keep one")
        return self

    @property
    def models(self) -> tuple[tuple[int, RewardEntry], ...]:
        """The reward models, each with its place among the entries."""
        return tuple((place, entry) for place, entry in enumerate(self.entries) if entry.model is not None)

    @property
    def entries(self) -> tuple[RewardEntry, ...]:
        """All functions, in order."""
        return self.functions if self.function is None else (RewardEntry(function=self.function),)
