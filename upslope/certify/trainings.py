"""Certificates of trainings: the recipes' settings, then the exact distance of what they learned from the optimum.

For networks that learn from samples nothing is proved in advance. What a certificate says is measured exactly at the
end: the largest J* - J over all prompts, the critic against V^pi, and under a KL penalty beta KL(pi || pi*).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.certify.lines import Line
from upslope.models import loading
from upslope.models.networks import PolicyNetwork
from upslope.models.tree import tree_logprobs, tree_values
from upslope.recipes import grpo, ppo, sft
from upslope.recipes.configs import RECIPES, GrpoRecipe, PpoRecipe, SftRecipe
from upslope.recipes.grid import train
from upslope.recipes.grid_config import GridRecipe
from upslope.recipes.loop import Loop
from upslope.recipes.setup import prepare
from upslope.run.folder import RunFolder
from upslope.run.recipe import build
from upslope.run.session import Run
from upslope.text.rendering import Renderer
from upslope.worlds.grid_maps import generate
from upslope.worlds.grid_truth import solve
from upslope.worlds.gridworld import SIX_BY_SIX, Gridworld, parse
from upslope.worlds.prefix_tree import PrefixTree, exact, sequence_kl, soft_optimum
from upslope.worlds.text_gridworld import TextGrid

GAP, CLOSE, RMSE = 0.05, 0.02, 0.1
"""Largest J* - J of a prompt in points, largest mean of beta KL(pi || pi*), largest error of a grid's critic."""
MAP_ENDS = (8.0, 2.0, -1.0)
MARGIN, LUCK = 2.0, 1 / 8
COMMON: dict[str, Any] = {
    "model": {"name": "text-grid-tiny", "dtype": "float32"},
    "sampling": {"max_new_tokens": 6},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {
        **COMMON, "data": {"task": "text-grid", "options": {"horizon": 5}}, "optim": {"lr": 3e-3, "decay": "linear"},
        "train": {"steps": 90, "prompts": 264, "epochs": 2, "minibatches": 2},
        "ppo": {
            "critic_lr": 3e-3, "critic_head_lr": 9e-3, "kl_coef": 0, "target_kl": None, "entropy_coef": 0.4,
            "entropy_decay": "linear",
        },
    },
    "grpo": {
        **COMMON, "data": {"task": "text-grid", "options": {"horizon": 5}}, "optim": {"lr": 5e-3, "decay": "linear"},
        "train": {"steps": 150, "prompts": 22, "epochs": 1, "minibatches": 2},
        "grpo": {"group": 16, "scale": "std", "entropy_coef": 0.5, "entropy_decay": "linear"},
    },
}  # fmt: skip
"""The recipes ppo-text-grid and grpo-text-grid; a test compares them with the files."""
PENALISED: dict[str, dict[str, dict[str, Any]]] = {
    "ppo": {"train": {"steps": 200, "minibatches": 4}, "ppo": {"entropy_coef": 0.0}},
    "grpo": {
        "optim": {"lr": 3e-3}, "train": {"steps": 240, "prompts": 88, "minibatches": 4},
        "grpo": {"scale": "none", "weighting": "constant_length", "entropy_coef": 0.0},
    },
}  # fmt: skip
"""What a certificate with beta > 0 changes, besides ``kl_coef``.

The policy stays random, so what stands between it and the optimum is the noise of its samples: more steps, and for
GRPO, which has no critic to take noise away, more walks in each update. What moves the optimum itself is off: the
entropy bonus; the division by a group's standard deviation, which weighs points against the penalty differently from
group to group; the token mean, whose divisor depends on what was sampled.
"""


LONGER: dict[str, dict[str, Any]] = {"ppo": {"steps": 150}, "grpo": {"steps": 200}}
"""Training steps where the prompt is a drawn map or every token may be said."""
WALKING_ABOUT: dict[str, Any] = {
    **COMMON, "optim": {"lr": 5e-3}, "train": {"steps": 40, "prompts": 88, "eval_every": 0, "eval_prompts": 0},
}  # fmt: skip
"""Supervised steps on random walks before every token may be said: 36 of 40 would end the walk of a net of random
weights at once, and what it never reaches it cannot learn from."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A finished training, measured exactly, in points.

    ``worst`` is max over prompts of J* - J (under beta: of J*_beta - J_beta = beta KL(pi || pi*)), ``mean`` its mean.
    ``critic_rmse`` is the root mean square of the critic's error against so_far + V^pi over all texts, weighted by how
    often the policy passes there (None: no critic; under beta V^pi pays the penalty). ``kl`` is beta KL(pi || pi*) and
    ``own_kl`` beta KL to GRPO's own fixed point, means over the prompts, as J is one; None without beta.
    """

    kind: str
    seed: int
    map: str
    beta: float
    worst: float
    mean: float
    critic_rmse: float | None
    kl: float | None
    own_kl: float | None
    seconds: float

    @property
    def passed(self) -> bool:
        """PPO and GRPO without beta: ``worst`` < 0.05; PPO with beta: ``kl`` < 0.02; GRPO with beta: ``own_kl``."""
        if self.beta == 0:
            return self.worst < GAP
        reached = self.own_kl if self.kind == "grpo" else self.kl
        return reached is not None and reached < CLOSE


def certify_training(
    kind: str, seed: int, map: str = "4x4", beta: float = 0.0, folder: Path | None = None, prompt: str = "coordinate",
    vocabulary: str = "moves",
) -> Certificate:  # fmt: skip
    """Train by the text grid's recipe from the net of that seed, then measure. Runs lie in ``folder`` (none: deleted).

    ``beta`` is the weight of the KL to the starting net: k1 in PPO's reward, k2 in GRPO's loss; see ``PENALISED``.
    ``prompt`` and ``vocabulary`` are options of ``TextGrid``. A drawn map (``map``) and every token (``full``) take
    more steps, see ``LONGER``, and the latter a start that has seen random walks, see ``WALKING_ABOUT``.

    Raises:
        ValueError: ``beta`` beside a drawn map or every token, for which there is no setting.
    """
    if beta > 0 and (prompt, vocabulary) != ("coordinate", "moves"):
        raise ValueError(f"beta {beta:g} with prompt {prompt!r}, vocabulary {vocabulary!r}: only coordinate and moves")
    task = TextGrid(map, horizon=5, prompt=prompt, vocabulary=vocabulary)
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        path = (folder or Path(scratch)) / f"{kind}-{seed}-{beta:g}-{prompt}-{vocabulary}"
        model, critic = _train(kind, seed, task, map, beta, path)
        seconds = time.perf_counter() - begun
    card = loading.read_card(f"text-grid-tiny-{seed}")
    words = Renderer(card.tokenizer, card.stop_ids)
    start = loading.load(card, torch.device("cpu"), torch.float32).model
    gaps, squares, far, own = [], [], [], []
    with torch.no_grad():
        for cell in task.starts:
            tree = task.tree(words, cell)
            logprobs = tree_logprobs(model, tree)
            known = exact(tree, logprobs)
            gaps.append(float(tree.best[0] - known.expected_return))
            values = known.values
            if beta > 0:
                reference = tree_logprobs(start, tree)
                # Every move pays for its own KL: rewards r - beta (log pi - log ref), which is what the critic learns.
                paid = torch.where(tree.legal, tree.reward - beta * (logprobs - reference), 0.0)
                values = exact(replace(tree, reward=paid), logprobs).values
                best = soft_optimum(tree, reference, beta)
                far.append(beta * float(sequence_kl(tree, logprobs, best.logprobs)))
                fixed = choice_optimum(tree, reference, beta)
                own.append(beta * float(sequence_kl(tree, logprobs, fixed)))
            if critic is not None:
                error = tree_values(critic, tree).to(torch.float64) - tree.so_far - values
                squares.append(float((known.occupancy * error.square()).sum() / known.occupancy.sum()))
    if beta > 0:
        gaps = far
    return Certificate(
        kind, seed, map, beta, max(gaps), sum(gaps) / len(gaps),
        (sum(squares) / len(squares)) ** 0.5 if squares else None,
        _mean(far), _mean(own) if kind == "grpo" else None, seconds,
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def choice_optimum(
    tree: PrefixTree, reference: Float[Tensor, "nodes choices"], beta: float
) -> Float[Tensor, "nodes choices"]:
    """log-probabilities of the fixed point of a policy gradient with k2 in the loss: its gradient is that of each
    choice's KL, blind to where the choice leads, so pi(a|h) = ref(a|h) exp(Q^pi(h, a) / beta) / Z with the plain
    Q^pi, by backward recursion. (pi*, what k1 in the reward leads to, has the penalised Q.)"""
    logprobs = torch.zeros_like(reference)
    end = len(tree)
    for size in reversed(tree.levels):
        at = slice(end - size, end)
        q = exact(tree, logprobs).action_values[at]  # of this level: its children are settled already
        logprobs[at] = (reference[at] + q / beta).masked_fill(~tree.legal[at], -torch.inf).log_softmax(1)
        end -= size
    return logprobs


def _train(kind: str, seed: int, task: TextGrid, map: str, beta: float, path: Path) -> tuple[Any, Any]:
    """(policy model, critic network or None) after the recipe."""
    keys: dict[str, Any] = {name: dict(value) for name, value in SETTINGS[kind].items()}
    options = {"horizon": 5, "map": map, "prompt": task.prompt_kind, "vocabulary": task.vocabulary}
    keys["seed"], keys["model"]["name"] = seed, f"text-grid-tiny-{seed}"
    keys["data"] = {"task": "text-grid", "options": options}
    keys["train"] |= {"eval_every": 0, "eval_prompts": 0}
    if task.prompt_kind == "map" or task.vocabulary == "full":
        keys["train"] |= LONGER[kind]
    if task.vocabulary == "full":
        keys["model"]["name"] = str(_walking_about(keys, path.with_name(f"{path.name}-start")))
    if beta > 0:
        for section, changed in PENALISED[kind].items():
            keys[section] |= changed
        keys[kind] |= {"kl_coef": beta}
    loaded = build(keys, RECIPES[kind], "upslope certify")
    recipe = loaded.recipe
    folder = RunFolder.open(path, loaded.text, {"recipe": kind}, "overwrite")
    with Run(folder, save_every=0, listeners=[]) as run:
        if isinstance(recipe, GrpoRecipe):
            grpo.start(recipe, run)
            card = loading.read_card(str(path / "model"))
            return loading.load(card, torch.device("cpu"), torch.float32).model, None
        if not isinstance(recipe, PpoRecipe):
            raise ValueError(f"no certificate for {kind}: ppo or grpo")
        return _ppo(recipe, run)


def _walking_about(keys: dict[str, Any], path: Path) -> Path:
    """The model directory of the start of ``keys``, a run's, after imitating random walks."""
    data = {"task": "text-grid", "options": {**keys["data"]["options"], "examples": "random"}}
    loaded = build({**WALKING_ABOUT, "model": keys["model"], "seed": keys["seed"], "data": data}, SftRecipe)
    folder = RunFolder.open(path, loaded.text, {"recipe": "sft"}, "overwrite")
    with Run(folder, save_every=0, listeners=[]) as run:
        sft.start(loaded.recipe, run)
    return path / "model"


def _ppo(recipe: PpoRecipe, run: Run) -> tuple[Any, Any]:
    """``ppo.start``, but for saving: the critic, which a run does not save as a model, is measured too."""
    with ExitStack() as stack:
        shop = prepare(recipe, run, None, stack)
        networks = ppo.build(recipe, shop)
        loop = Loop(ppo.PpoTargets)
        run.attach(policy=networks.policy, critic=networks.critic, loop=loop)
        shop.sampler.load(networks.policy.weights(), networks.policy.version)
        ppo.train(recipe, shop, networks, loop)
        run.finish({"steps": loop.step})
    if not isinstance(networks.policy.network, PolicyNetwork):
        raise TypeError("a policy's network is a PolicyNetwork")
    return networks.policy.network.model, networks.critic.network


def generated_maps(count: int, first: int = 0) -> Iterator[str]:
    """4x4 maps with ends worth +8, +2 and -1 and a fifth of the cells walls: ``grid_maps.generate`` by seed ``first``,
    ``first`` + 1, ... The certificates are for those from 0 on; the settings were chosen on those from 1000 on.

    Taken are those that keep the rule of the built-in map (``text_gridworld.FOUR_BY_FOUR``) within 5 moves: from each
    start the best end beats the next, and walking about till the cap, by ``MARGIN`` points or more, and a walk of
    random moves ends there at least once in 8.
    """
    seed = first
    while count > 0:
        text = generate(4, 4, seed, terminals=MAP_ENDS)
        if fair(TextGrid(text, horizon=5)):
            count -= 1
            yield text
        seed += 1


def fair(task: TextGrid) -> bool:
    """Whether the map keeps the rule of ``generated_maps``."""
    rules = task.rules
    for cell in task.starts:
        start = task.grid.index[cell]
        # For each state: the most points of a walk that is there, and the chance that random moves are.
        points, chance = {start: 0.0}, {start: 1.0}
        ends: dict[int, float] = {}
        found: dict[int, float] = {}
        for _ in range(rules.horizon):
            later: dict[int, float] = {}
            likely: dict[int, float] = {}
            for state, so_far in points.items():
                moves = rules.legal(state)
                for move in moves:
                    there = rules.following[state][move]
                    if there is None:
                        continue
                    total, share = so_far + rules.rewards[state][move], chance[state] / len(moves)
                    best, sums = (ends, found) if rules.terminal[there] else (later, likely)
                    best[there] = max(total, best.get(there, total))
                    sums[there] = sums.get(there, 0.0) + share
            points, chance = later, likely
        ranked = sorted([*ends.values(), *points.values()], reverse=True)
        best_end = max(ends, key=lambda state: ends[state], default=None)
        if best_end is None or ends[best_end] < ranked[0] or found[best_end] < LUCK:
            return False
        if len(ranked) > 1 and ranked[0] - ranked[1] < MARGIN:
            return False
    return True


# -------------------------------------------------------------------------------------------------------- table's lines
def grid_lines(seed: int = 0, trained: bool = True) -> Iterator[Line]:
    """Values of the built-in 6x6 world against a search, and PPO trained on it if ``trained``."""
    world = parse(SIX_BY_SIX)
    known = solve(world, 1.0)
    searched = searched_values(world)
    gap = float((known.optimal_values - searched).abs().max())
    yield Line("grid", "6x6: value iteration against a search from the ends", known.optimal_return,
               float(searched[[world.index[cell] for cell in world.starts]].mean()), gap, 0.0)  # fmt: skip
    if not trained:
        return
    done = train(world, GridRecipe(learn="ppo", seed=seed))
    truth = done.last.truth
    yield Line("grid", f"6x6: PPO trained, seed {seed}: J* - J", truth.optimal_return, truth.expected_return,
               truth.gap, GAP)  # fmt: skip
    rmse = truth.critic_rmse if truth.critic_rmse is not None else float("nan")
    yield Line("grid", f"6x6: its critic against V^pi, seed {seed}: rmse", 0.0, rmse, rmse, RMSE)


def searched_values(world: Gridworld) -> Float[Tensor, " states"]:
    """V* without a Bellman equation: max over ends of points less the cheapest way there, by label correcting from
    each end backwards; a way may not pass through another end."""
    values = torch.full((len(world.cells),), -torch.inf, dtype=torch.float64)
    for end, points in world.terminals.items():
        cheapest: dict[Any, float] = {end: 0.0}
        waiting = [end]
        while waiting:
            there = waiting.pop(0)
            for cell in world.cells:
                if cell in world.terminals or there not in [world.neighbour(cell, move) for move in range(4)]:
                    continue
                cost = cheapest[there] + world.cost(cell)
                if cost < cheapest.get(cell, float("inf")):
                    cheapest[cell] = cost
                    waiting.append(cell)
        for cell, cost in cheapest.items():
            if cell not in world.terminals:
                state = world.index[cell]
                values[state] = max(float(values[state]), points - cost)
    for cell in world.terminals:
        values[world.index[cell]] = 0.0
    return values


def training_lines(kinds: Sequence[str] = ("ppo", "grpo"), seed: int = 0) -> Iterator[Line]:
    """PPO and GRPO trained on the text grid by their recipes: max over prompts of J* - J."""
    for kind in kinds:
        found = certify_training(kind, seed)
        told = f"text grid: trained, seed {seed}, {found.seconds:.0f} s: largest J* - J of 11 prompts"
        yield Line(kind.upper(), told, 0.0, found.worst, found.worst, GAP)
