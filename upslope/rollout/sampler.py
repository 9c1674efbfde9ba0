"""The in-process sampler: continuous batching over slot KV buffers, on the weights that are being trained.

- A prompt is run once for its whole group, and what all prompts begin with once for all of them; keys and values go to
  the slots of the completions.
- Running completions lie in slots 0..n-1. One that ends gives its slot to the last one, and waiting prompts take the
  slots that became free: no work is done for finished rows.
- The log-probability comes from the very pass that the token was drawn from.
- Random numbers belong to (seed, sample, position), so a completion does not depend on its neighbours' number or order
  (beyond rounding: a matrix product may round differently for another number of rows).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from upslope.models.attention import SlotCache, SlotStep
from upslope.models.decode import DecodeStep
from upslope.models.exact import chosen_in_tiles, is_exact, tiles
from upslope.models.shared import SharedRows
from upslope.rollout.drawing import allowed_ids, draw, listed, randomness, room
from upslope.rollout.reference import holds_stop_string
from upslope.types import Completion, Sampling

PREFILL_TOKENS = 16_384
"""Prompt tokens that go through the network at once: it bounds memory, and changes no number beyond rounding."""


@dataclass(eq=False)
class _Row:
    """A running completion."""

    prompt: int
    sample: int
    prompt_ids: Sequence[int]
    random: Tensor
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    support: list[tuple[int, ...]] = field(default_factory=list)
    stopped: bool = False

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are in the slot: all but the newest."""
        return len(self.prompt_ids) + len(self.token_ids) - 1


class InProcessSampler:
    """Samples from a model loaded with upslope's attention (``models.loading``), sharing its weights with the learner.

    Args:
        model: the causal language model; it is only read.
        context: number of positions that the model has.
        slots: completions that run at once.
        decode: ids to text, needed for stop strings.
        progress: called with (finished, all) completions now and then.
    """

    def __init__(
        self,
        model: Any,
        context: int,
        slots: int = 128,
        decode: Callable[[Sequence[int]], str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model, self.context, self.slots, self.decode, self.progress = model, context, slots, decode, progress
        self.version = 0
        self.exact = is_exact(model.get_decoder())
        self.fast = None if self.exact else DecodeStep.of(model)
        """The packed decode step; None: the stock modules decode."""
        self._packed, self._copied = True, False

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take the weights of ``version``. Tensors that are shared with the learner are not copied, but for packing,
        which waits for the next ``sample``."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in weights:
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
                    self._copied = True
        self.version, self._packed = version, False

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """``samples`` completions of each prompt, in order. See ``types.Sampler``."""
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
        limits = [room(prompt, sampling, self.context) for prompt in prompts]
        waiting = deque(
            [_Row(index, number, prompts[index], randomness(seed, number, limits[index])) for number in range(samples)]
            for index, seed in enumerate(seeds)
        )
        total = len(prompts) * samples
        slots = min(self.slots, total)
        capacity = max((len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)), default=1)
        weight = self.model.get_output_embeddings().weight
        cache = SlotCache.allocate(self.model.config.get_text_config(), slots, capacity, weight.dtype, weight.device)
        finished: list[list[Completion | None]] = [[None] * samples for _ in prompts]
        running: list[_Row] = []
        training = self.model.training
        self.model.eval()
        if self.fast is not None and not self._packed:
            self.fast.pack(everything=self._copied)
            self._packed, self._copied = True, False
        try:
            while waiting or running:
                admitted = self._admit(waiting, slots - len(running))
                if admitted:
                    self._prefill(admitted, cache, len(running), sampling)
                    running += [row for rows in admitted for row in rows]
                else:
                    self._step(running, cache, sampling)
                self._retire(running, cache, finished)
                if self.progress is not None:
                    self.progress(total - len(running) - sum(map(len, waiting)), total)
        finally:
            self.model.train(training)
        return finished  # type: ignore[return-value]

    def _admit(self, waiting: deque[list[_Row]], free: int) -> list[list[_Row]]:
        """Whole groups that fit into the free slots, up to ``PREFILL_TOKENS`` of prompts at once.

        A group larger than all slots goes in pieces.
        """
        admitted: list[list[_Row]] = []
        tokens = 0
        while waiting and free >= min(len(waiting[0]), self.slots):
            tokens += len(waiting[0][0].prompt_ids)
            if admitted and tokens > PREFILL_TOKENS:
                break
            rows = waiting.popleft()
            if len(rows) > self.slots:
                waiting.appendleft(rows[self.slots :])
                rows = rows[: self.slots]
            admitted.append(rows)
            free -= len(rows)
        return admitted

    def _prefill(self, groups: list[list[_Row]], cache: SlotCache, first: int, sampling: Sampling) -> None:
        """One pass over the prompts, their common beginning run once, then the first token of every completion."""
        slots: list[list[int]] = []
        for rows in groups:
            slots.append(list(range(first, first + len(rows))))
            first += len(rows)
        prompts = [rows[0].prompt_ids for rows in groups]
        weight = self.model.get_output_embeddings().weight
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=weight.device)
        ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True).to(weight.device)
        everyone = torch.arange(len(prompts), device=weight.device)
        layout = SharedRows(ids, lengths, everyone, cache, slots, self.exact)
        hidden = self._decoder(input_ids=layout.token_ids, position_ids=layout.position_ids, layout=layout)[0]
        last = hidden[layout.source[everyone, lengths - 1]]
        repeats = torch.tensor([len(rows) for rows in groups], device=weight.device)
        every = [row for rows in groups for row in rows]
        self._append(every, last, self._logits(last), sampling, repeats)

    def _step(self, running: list[_Row], cache: SlotCache, sampling: Sampling) -> None:
        """One more token for every running completion."""
        weight = self.model.get_output_embeddings().weight
        layout = SlotStep(cache, torch.tensor([row.cached for row in running], device=weight.device), self.exact)
        ids = torch.tensor([row.token_ids[-1] for row in running], device=weight.device)
        if self.fast is not None:
            hidden = self.fast(ids, layout)
            logits = self.fast.logits(hidden)
        else:
            hidden = self._decoder(input_ids=ids[:, None], position_ids=layout.position_ids, layout=layout)[:, 0]
            logits = self._logits(hidden)
        self._append(running, hidden, logits, sampling)

    def _logits(self, hidden: Tensor) -> Tensor:
        weight = self.model.get_output_embeddings().weight
        return torch.cat([part @ weight.T for part in (tiles(hidden) if self.exact else [hidden])])[: len(hidden)]

    def _decoder(self, **inputs: Any) -> Tensor:
        return self.model.get_decoder()(use_cache=False, **inputs).last_hidden_state  # type: ignore[no-any-return]

    def _append(
        self, rows: list[_Row], hidden: Tensor, logits: Tensor, sampling: Sampling, repeats: Tensor | None = None
    ) -> None:
        """Draw a token for each row; ``repeats`` says how many rows in turn share a hidden state."""
        if repeats is not None:
            hidden, logits = hidden.repeat_interleave(repeats, 0), logits.repeat_interleave(repeats, 0)
        support = [allowed_ids(sampling, row.prompt_ids, row.token_ids) for row in rows]
        random = torch.stack([row.random[len(row.token_ids)] for row in rows])
        ids, logprobs = draw(logits, random, sampling, None if sampling.allowed is None else support)
        # The learner scores the whole distribution at a temperature: what is cut or greedy has no twin there.
        if self.exact and sampling.temperature > 0 and sampling.top_k == 0 and sampling.top_p == 1:
            weight = self.model.get_output_embeddings().weight
            logprobs, _ = chosen_in_tiles(hidden, weight, ids, listed(support, weight.device), sampling.temperature)
        for row, token, logprob, allowed in zip(rows, ids.tolist(), logprobs.tolist(), support, strict=True):
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            if allowed is not None:
                row.support.append(allowed)
            row.stopped = token in sampling.stop_ids or holds_stop_string(row.token_ids, sampling, self.decode)

    def _retire(self, running: list[_Row], cache: SlotCache, finished: list[list[Completion | None]]) -> None:
        """Take out what has ended; the last running row moves into each slot that became free."""
        slot = 0
        while slot < len(running):
            row = running[slot]
            if not row.stopped and len(row.token_ids) < len(row.random):
                slot += 1
                continue
            support = tuple(row.support) if row.support else None
            finished[row.prompt][row.sample] = Completion(
                tuple(row.token_ids), tuple(row.logprobs), row.stopped, self.version, support
            )
            last = running.pop()
            if last is not row:
                cache.move(len(running), slot, last.cached)
                running[slot] = last
