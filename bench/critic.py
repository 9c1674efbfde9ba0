"""Does PPO's critic earn its place? Its values against the truth that 32 continuations of each prefix show.

    python bench/critic.py --frozen
    python bench/critic.py --model runs/ladder/seed-{seed}/sft/model --digits 2

The ladder on sums of numbers with 1, 2 or 3 digits: SFT, and from that model (or from ``--model``) PPO, both with the
demo's settings; ``--digits 2`` is the demo's own task. Then takes 100 held-out prompts with a part of an answer each,
lets the final policy continue each 32 times, and prints the explained variance of the mean reward by the critic's
value, 1 - Var(mean - V) / Var(mean), with a 95 % bootstrap interval over the prefixes. The mean of 32 has noise of its
own, so even the true value would stay below 1; that ceiling is printed beside it. ``accuracy`` is greedy on 512
held-out prompts, of the SFT model (``accuracy_before``) and of PPO; ``--frozen`` trains again with the critic kept at
zero, for its accuracy alone. ``gained`` and ``lost`` count prompts against the SFT model, ``p`` is McNemar's.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

import torch
from ladder import MODEL, SFT, mcnemar

from upslope import api
from upslope.demo import ANSWER_TOKENS, DATA, Plan, ppo_settings
from upslope.recipes import ppo
from upslope.recipes.configs import PpoRecipe, SftRecipe
from upslope.recipes.judge import finish
from upslope.recipes.loop import Loop
from upslope.recipes.rollouts import answer_text
from upslope.recipes.setup import Workshop, prepare
from upslope.run.folder import RunFolder
from upslope.run.recipe import build
from upslope.run.session import Run
from upslope.seeds import derive, generator
from upslope.types import Batch, Completion, Prompt
from upslope.views.terminal import TerminalView
from upslope.worlds.rewards import Group, score_groups

PREFIXES, CONTINUATIONS, HELDOUT, ROWS = 100, 32, 512, 8192


def truth(shop: Workshop, networks: ppo.Networks, seed: int) -> dict[str, float]:
    """Explained variance of the continuations' mean reward at held-out prefixes, by the critic."""
    prompts = list(shop.heldout[:PREFIXES])
    ids = [shop.renderer.prompt(prompt.content) for prompt in prompts]
    begun = shop.sampler.sample(ids, 1, shop.sampling, [derive(seed, "prefix", index) for index in range(len(ids))])
    draw = generator(seed, "cut")
    prefixes = [
        [*head, *found[0].token_ids[: int(draw.integers(len(found[0].token_ids)))]]
        for head, found in zip(ids, begun, strict=True)
    ]
    rewards = continued(shop, prompts, prefixes, [len(head) for head in ids], seed)
    means = [fmean(row) for row in rewards]
    noise = [pvariance(row) / (CONTINUATIONS - 1) for row in rewards]
    longest = max(map(len, prefixes))
    tokens = torch.tensor([[*prefix, *([0] * (longest - len(prefix)))] for prefix in prefixes])
    lengths = torch.tensor([len(prefix) for prefix in prefixes])
    batch = Batch(
        tokens, lengths, torch.zeros(len(prefixes), longest - 1, dtype=torch.bool), torch.arange(len(prefixes))
    )
    values = networks.critic.evaluate(batch).last_value.double()
    target = torch.tensor(means, dtype=torch.float64)
    variance = float(target.var(correction=0))
    again = torch.randint(len(values), (2000, len(values)), generator=torch.Generator().manual_seed(seed))
    spread = torch.tensor([ppo.explained_variance(values[rows], target[rows]) for rows in again]).sort().values
    return {
        "explained_variance": ppo.explained_variance(values, target),
        "low": float(spread[49]), "high": float(spread[1949]),
        "ceiling": 1 - fmean(noise) / variance,
        "correlation": float(torch.corrcoef(torch.stack([values, target]))[0, 1]),
        "mean_value": float(values.mean()), "mean_reward": float(target.mean()), "variance": variance,
    }  # fmt: skip


def continued(
    shop: Workshop, prompts: list[Prompt], prefixes: list[list[int]], heads: list[int], seed: int
) -> list[list[float]]:
    """Rewards of each prefix's continuations. Prefixes of equal length left are sampled together."""
    rewards: list[list[float]] = [[] for _ in prefixes]
    for done in sorted({len(prefix) - head for prefix, head in zip(prefixes, heads, strict=True)}):
        chosen = [index for index, prefix in enumerate(prefixes) if len(prefix) - heads[index] == done]
        left = replace(shop.sampling, max_new_tokens=shop.sampling.max_new_tokens - done)
        seeds = [derive(seed, "continue", index) for index in chosen]
        found = shop.sampler.sample([prefixes[index] for index in chosen], CONTINUATIONS, left, seeds)
        groups = []
        for index, completions in zip(chosen, found, strict=True):
            part = tuple(prefixes[index][heads[index] :])
            whole = [Completion(part + c.token_ids, (), c.stopped, 0) for c in completions]
            groups.append(Group(prompts[index], tuple(answer_text(shop, completion) for completion in whole)))
        scored, _ = score_groups(shop.reward, groups, "stop")  # type: ignore[arg-type]
        for index, scores in zip(chosen, scored, strict=True):
            rewards[index] = [float(score.value or 0.0) for score in scores or ()]
    return rewards


def sums(digits: list[int], seed: int, path: Path) -> dict[str, Any]:
    """Recipe keys for rows of sums: how many digits a number has is drawn, then the number; no sum occurs twice."""
    draw = generator(seed, "sums")
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < ROWS:
        sizes = draw.choice(digits, 2)
        a, b = (int(draw.integers(10 ** (size - 1) if size > 1 else 0, 10**size)) for size in sizes)
        pairs[a, b] = None
    rows = [{"prompt": f"What is {a} + {b}?", "completion": str(a + b), "answer": str(a + b)} for a, b in pairs]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"data": {"path": str(path), "heldout": HELDOUT}, "reward": {"builtin": "exact"}}


def supervised(seed: int, out: Path, data: dict[str, Any]) -> str:
    """The demo's SFT on the rows that PPO will ask: the model's directory."""
    keys = {"seed": seed, "model": MODEL, "data": data, "sampling": {"max_new_tokens": ANSWER_TOKENS}, **SFT}
    keys["train"] = {"eval_every": 0, "eval_prompts": 64, **SFT["train"]}
    api.execute(build(keys, SftRecipe, "bench/critic.py"), "overwrite", path=out)
    return str(out / "model")


def run(model: str, seed: int, out: Path, rows: dict[str, Any], changes: dict[str, Any]) -> dict[str, float]:
    """Train PPO with the demo's settings and ``changes`` on ``rows`` and measure its critic."""
    settings = ppo_settings(Plan())
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values}
    keys = {"seed": seed, "model": model, **rows, "sampling": {"max_new_tokens": ANSWER_TOKENS}, **settings}
    keys["train"] = {"eval_every": 0, "eval_prompts": 64, **settings["train"]}
    loaded = build(keys, PpoRecipe, "bench/critic.py")
    folder = RunFolder.open(out, loaded.text, {"recipe": "ppo"}, "overwrite")
    with Run(folder, save_every=0, listeners=[TerminalView()]) as session, ExitStack() as stack:
        shop = prepare(loaded.recipe, session, None, stack)
        networks = ppo.build(loaded.recipe, shop)
        loop = Loop(ppo.PpoTargets)
        session.attach(policy=networks.policy, critic=networks.critic, loop=loop)
        shop.sampler.load(networks.policy.weights(), networks.policy.version)
        before = truth(shop, networks, seed)
        ppo.train(loaded.recipe, shop, networks, loop)
        found = truth(shop, networks, seed)
        finish(loaded.recipe, shop, loop)
    return {**found, "before_training": before["explained_variance"]}


def greedy(model: str, seed: int, rows: dict[str, Any]) -> tuple[float, ...]:
    """The greedy answers' rewards on the held-out prompts."""
    data, reward = rows["data"], rows.get("reward")
    given = {"task": data["task"]} if "task" in data else {"data": data["path"], "heldout": HELDOUT}
    found = api.evaluate(model, reward=reward, prompts=HELDOUT, max_new_tokens=ANSWER_TOKENS, seed=seed, **given)
    return tuple(float(value or 0.0) for value in found.greedy.rewards)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="the SFT model that PPO starts from; {seed} is filled in. Default: trained here"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 2, 3], choices=[1, 2, 3])
    parser.add_argument("--frozen", action="store_true", help="train beside it with the critic kept at zero")
    parser.add_argument("--out", type=Path, default=Path("runs/critic"))
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE")
    chosen = parser.parse_args()
    changes: dict[str, dict[str, Any]] = {}
    for item in chosen.set:
        key, _, value = item.partition("=")
        section, _, name = key.partition(".")
        changes.setdefault(section, {})[name] = json.loads(value)
    rows = []
    for seed in chosen.seeds:
        out = chosen.out / f"seed-{seed}"
        task = {"data": DATA} if chosen.digits == [2] else sums(chosen.digits, seed, chosen.out / f"sums-{seed}.jsonl")
        model = chosen.model.format(seed=seed) if chosen.model else supervised(seed, out / "sft", task["data"])
        before = greedy(model, seed, task)
        rows.append({"seed": seed, "accuracy_before": fmean(before), **run(model, seed, out / "ppo", task, changes)})
        arms = {"": "ppo"}
        if chosen.frozen:
            arms["_frozen"] = "frozen"
            frozen = {**changes, "ppo": {**changes.get("ppo", {}), "freeze_critic": True}}
            run(model, seed, out / "frozen", task, frozen)
        for name, arm in arms.items():
            after = greedy(str(out / arm / "model"), seed, task)
            gained, lost, p = mcnemar(before, after)
            found = {"accuracy": fmean(after), "gained": gained, "lost": lost, "p": p}
            rows[-1] |= {key + name: value for key, value in found.items()}
        print(json.dumps(rows[-1]), flush=True)
    (chosen.out / "critic.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
