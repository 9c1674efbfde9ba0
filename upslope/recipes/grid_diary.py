"""The record of a training run on a grid: snapshots with exact errors, and one walk of the batch move by move.

Keeping it changes nothing: it draws no random number and leaves no trace in the networks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.maths import distributions, losses
from upslope.models.small import PolicyMlp, ValueMlp, activations
from upslope.recipes.grid_lab import Lab
from upslope.types import GridMove, GridPortrait, GridSnapshot, GridTraining
from upslope.worlds.walks import Transitions

LONGEST_WALK = 100
"""Moves of a recorded walk at most."""
DOTS = 256
"""Ratios and gains kept of a batch."""

Watch = Callable[[GridSnapshot], None]


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """A batch as its learner saw it. ``value``, ``gain``: None where the learner has no such number."""

    batch: Transitions
    value: Float[Tensor, "batch time"] | None
    outcome: Float[Tensor, "batch time"]
    gain: Float[Tensor, "batch time"] | None


class Diary:
    """Writes the snapshots of one run. ``training`` is the whole record."""

    def __init__(self, lab: Lab, watch: Watch | None = None) -> None:
        self.lab, self.watch = lab, watch
        self.snapshots: list[GridSnapshot] = []
        self.visits = torch.zeros(lab.states, dtype=torch.long)
        self.moves = 0
        self._portrait: GridPortrait | None = None
        self._begun, self._measuring = time.perf_counter(), 0.0
        last, points = lab.recipe.iterations, min(lab.recipe.snapshots, lab.recipe.iterations)
        self._due = {round(last * point / points) for point in range(points + 1)}

    def count(self, batch: Transitions) -> None:
        """Add the batch's moves and visits."""
        self.moves += batch.moves
        self.visits += batch.visits(self.lab.states)

    def write(
        self,
        iteration: int,
        policy: Float[Tensor, "states actions"],
        values: Float[Tensor, " states"] | None,
        study: Study,
        new: Float[Tensor, "states actions"] | None = None,
        target: Float[Tensor, " states"] | None = None,
    ) -> None:
        """A snapshot after ``iteration`` updates, if one is due.

        ``policy``, ``values`` and ``target`` are measured (``Exact.measure``); ``study`` is the batch of that
        iteration, and ``new`` log pi after its update, None where no policy learns. Iteration 0 shows the first batch
        before it is learned from.
        """
        if iteration not in self._due:
            return
        begun = time.perf_counter()
        truth = self.lab.exact.measure(policy, values, target)
        ratio, clipped = self._ratios(study, new)
        ratios, gains = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        if ratio is not None and study.gain is not None:
            ratios, gains = _spread(ratio[study.batch.mask]), _spread(study.gain[study.batch.mask])
        walk = _walk(study, ratio, clipped)
        moves = 0 if iteration == 0 else self.moves
        snapshot = GridSnapshot(iteration, moves, policy, values, truth, walk, ratios, gains)
        self.snapshots.append(snapshot)
        if self.watch is not None:
            self.watch(snapshot)
        self._measuring += time.perf_counter() - begun

    def portray(self, policy: PolicyMlp, critic: ValueMlp) -> None:
        """Keep one state's way through both networks: the start at which the policy is least decided."""
        lab = self.lab
        probabilities = lab.policy_table(lab.log_table(policy))
        doubt = torch.special.entr(probabilities).sum(dim=1).masked_fill(lab.start == 0, -1.0)
        state = int(doubt.argmax())
        inputs = lab.inputs[state]
        self._portrait = GridPortrait(
            state, inputs, activations(critic, inputs), float(lab.value_table(critic)[state]),
            activations(policy, inputs), probabilities[state],
        )  # fmt: skip

    def training(self) -> GridTraining:
        recipe = self.lab.recipe
        return GridTraining(
            algorithm=recipe.learn,
            seed=recipe.seed,
            discount=recipe.discount,
            clip=recipe.clip,
            settings=recipe.model_dump(),
            snapshots=tuple(self.snapshots),
            visits=self.visits,
            seconds=time.perf_counter() - self._begun - self._measuring,
            portrait=self._portrait,
        )

    def _ratios(self, study: Study, new: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if new is None or study.gain is None:
            return None, None
        batch, clip = study.batch, self.lab.recipe.clip
        logprobs = distributions.chosen(new.to(torch.float64)[batch.state], batch.action)
        _, clipped = losses.clipped_surrogate(logprobs, batch.logprob, study.gain, clip, clip)
        return (logprobs - batch.logprob).exp(), clipped


def _spread(numbers: Tensor) -> Tensor:
    """At most ``DOTS`` of the numbers, evenly spaced."""
    if len(numbers) <= DOTS:
        return numbers.clone()
    return numbers[torch.linspace(0, len(numbers) - 1, DOTS, dtype=torch.float64).long()]


def _place(batch: Transitions) -> tuple[int, int, int]:
    """Row, first and last column + 1 of the walk to show: the first that ends well within its row, from its first move
    on; else the first row's beginning."""
    for row in range(len(batch.state)):
        ends = batch.terminated[row].nonzero().flatten().tolist()
        cuts = (batch.terminated[row] | batch.truncated[row]).nonzero().flatten().tolist()
        for end in ends:
            first = max((cut + 1 for cut in cuts if cut < end), default=0)
            if end - first >= 2:
                return row, first, end + 1
    return 0, 0, int(batch.mask[0].sum())


def _walk(study: Study, ratio: Tensor | None, clipped: Tensor | None) -> tuple[GridMove, ...]:
    batch = study.batch
    row, first, last = _place(batch)
    columns = range(first, min(last, first + LONGEST_WALK))
    moves = []
    for column in columns:
        place = (row, column)
        move = GridMove(
            state=int(batch.state[place]),
            action=int(batch.action[place]),
            reward=float(batch.reward[place]),
            next_state=int(batch.next_state[place]),
            value=None if study.value is None else float(study.value[place]),
            outcome=float(study.outcome[place]),
            gain=None if study.gain is None else float(study.gain[place]),
            ratio=None if ratio is None else float(ratio[place]),
            clipped=None if clipped is None else bool(clipped[place]),
        )
        moves.append(move)
    return tuple(moves)
