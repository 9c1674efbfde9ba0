"""The learners' losses against the exact gradient and the exact values, by enumeration, in float64.

No sampling: the whole support of states and moves, weighted by how often the policy visits it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.recipes.grid_support import TINY
from upslope.maths import bellman, distributions, losses
from upslope.models.small import PolicyMlp, ValueMlp
from upslope.recipes import grid_grpo, grid_lab, grid_policy, grid_ppo, grid_values
from upslope.recipes.grid_config import GridRecipe
from upslope.recipes.grid_lab import Lab, Targets, prepare
from upslope.worlds.gridworld import SIX_BY_SIX, parse
from upslope.worlds.walks import Transitions, episodes

WORLDS = {"tiny": parse(TINY), "six": parse(SIX_BY_SIX), "slip": parse(SIX_BY_SIX, slip=0.2, blocked="bump")}


def wide(lab: Lab) -> Lab:
    return replace(lab, inputs=lab.inputs.to(torch.float64))


def linear_policy(lab: Lab, seed: int = 0) -> PolicyMlp:
    """One-hot inputs and no hidden layer: one free logit for each state and action."""
    network = PolicyMlp(lab.states, 4, (), seed).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return network


def support(lab: Lab, policy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """State, action [n, 1] of every move that exists, and its expected number of visits d(s) pi(a | s) [n, 1]."""
    visits = bellman.occupancy(lab.exact.mdp, policy, lab.start, lab.recipe.discount)
    available = lab.mdp.available & ~lab.mdp.terminal.unsqueeze(1)
    state, action = available.nonzero(as_tuple=True)
    return state[:, None], action[:, None], (visits[state] * policy[state, action])[:, None]


def exact_gradient(lab: Lab, network: PolicyMlp) -> list[Tensor]:
    """Autograd of J(pi) through the linear solve."""
    table = network(lab.inputs, lab.available).exp() * (~lab.mdp.terminal).unsqueeze(1)
    values = bellman.policy_values(lab.exact.mdp, table, lab.recipe.discount)
    return list(torch.autograd.grad((lab.start * values).sum(), list(network.parameters())))


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("first", [True, False])
def test_gradient_of_the_policy_loss_is_that_of_the_exact_return(name: str, clip: float | None, first: bool) -> None:
    """-grad sum d(s) pi(a|s) loss(s, a) = grad J, with gains Q - V at the departing state and no discount."""
    lab = wide(prepare(WORLDS[name], GridRecipe(discount=1.0)))
    network = linear_policy(lab)
    log_table = lab.log_table(network)
    policy = lab.policy_table(log_table)
    values = lab.exact.policy_values(policy)
    gains = bellman.action_values(lab.exact.mdp, values, 1.0) - values[:, None]
    state, action, weights = support(lab, policy)
    found = Targets(
        torch.ones_like(state, dtype=torch.bool), state, action, log_table[state, action], gains[state, action]
    )
    loss = grid_lab.policy_loss(lab.log_probs(network, state), found, clip, 0.0, first)
    ours = torch.autograd.grad((weights * loss).sum(), list(network.parameters()))
    for one, other in zip(ours, exact_gradient(lab, network), strict=True):
        torch.testing.assert_close(-one, other, rtol=0, atol=1e-8)


def average(lab: Lab, batch: Transitions, gain: Tensor, state: int, action: int) -> tuple[float, float]:
    """Mean gain of a move and its standard error."""
    here = batch.mask & (batch.state == state) & (batch.action == action)
    return float(gain[here].mean()), float(gain[here].std() / int(here.sum()) ** 0.5)


LINE = ". . . +9"
"""States 0, 1, 2 and the end; V = 0, 1, 4 under a policy that goes left as often as right: gains of 2 and -2 in 1."""
LINE_POLICY = torch.tensor([[0, 1, 0, 0], [0, 0.5, 0, 0.5], [0, 0.5, 0, 0.5], [0, 0, 0, 0]], dtype=torch.float64)


def test_the_gain_is_taken_at_the_departing_state() -> None:
    """Mean gain of a move = Q(s, a) - V(s) of the policy that walked, for every move of every state."""
    lab = prepare(parse(LINE), GridRecipe(learn="policy"))
    batch = episodes(lab.mdp, LINE_POLICY, lab.starts(20_000, 0), 500, seed=0)
    gain, study = grid_policy.against_exact_values(lab, batch, LINE_POLICY)
    values = lab.exact.policy_values(LINE_POLICY)
    advantages = bellman.action_values(lab.exact.mdp, values, 1.0) - values[:, None]
    for state, action in (LINE_POLICY > 0).nonzero().tolist():
        mean, error = average(lab, batch, gain, state, action)
        assert abs(mean - float(advantages[state, action])) <= 5 * error + 1e-9
    assert study.value is not None
    torch.testing.assert_close(study.value[batch.mask], values[batch.state[batch.mask]])
    torch.testing.assert_close(gain[batch.mask], (study.outcome - study.value)[batch.mask])


def test_with_the_prediction_at_the_state_arrived_at_a_good_and_a_bad_move_look_alike() -> None:
    """What the usual telling does: what followed from s', minus V(s'). The same walks, and the signal is gone."""
    lab = prepare(parse(LINE), GridRecipe(learn="policy"))
    batch = episodes(lab.mdp, LINE_POLICY, lab.starts(20_000, 0), 500, seed=0)
    gain, study = grid_policy.against_exact_values(lab, batch, LINE_POLICY)
    values = lab.exact.policy_values(LINE_POLICY)
    arrived = study.outcome - batch.reward - values[batch.next_state]
    for action in (1, 3):
        mean, error = average(lab, batch, arrived, 1, action)
        assert abs(mean) < 5 * error
        departed, error = average(lab, batch, gain, 1, action)
        assert abs(departed) > 20 * error


def test_gae_with_the_exact_values_is_the_advantage_for_every_trace() -> None:
    """E[gain | s, a] = Q - V: PPO's ``learn_from`` with a critic that happens to be right."""
    world = parse("S . +9")
    policy = torch.tensor([[0, 1, 0, 0], [0, 0.5, 0, 0.5], [0, 0, 0, 0]], dtype=torch.float64)
    for trace in (0.0, 0.95, 1.0):
        lab = wide(prepare(world, GridRecipe(trace=trace, walkers=500, horizon=5)))
        critic = ValueMlp(3, (), 0).double()
        with torch.no_grad():
            critic.body[0].weight.copy_(lab.exact.policy_values(policy)[None])
        batch = lab.walks().collect(policy, 40, 5)
        assert batch.truncated.any()  # cut walks bootstrap: without it, these means would be wrong
        _, predictions, study = grid_ppo.learn_from(lab, batch, critic)
        assert study.gain is not None
        for action, wanted in ((1, 2.0), (3, -2.0)):
            mean, error = average(lab, batch, study.gain, 1, action)
            assert abs(mean - wanted) < max(5 * error, 1e-9)
        torch.testing.assert_close(
            predictions.returns, (study.gain + lab.exact.policy_values(policy)[batch.state]).reshape(-1, 1)
        )


@pytest.mark.parametrize("name", WORLDS)
def test_the_fixed_point_of_the_value_network_is_v_pi_and_not_v_star(name: str) -> None:
    """Expected squared error over the support, minimised exactly (it is quadratic): the table is V^pi to 1e-8."""
    lab = wide(prepare(WORLDS[name], GridRecipe(learn="values", discount=1.0)))
    policy = grid_values.fixed_policy(lab)
    exact = lab.exact.policy_values(policy)
    state, action, weights = support(lab, policy)
    actual = bellman.action_values(lab.exact.mdp, exact, 1.0)[state, action]  # mean outcome of each move
    free = (~lab.mdp.terminal).nonzero().flatten()
    values = torch.zeros(lab.states, dtype=torch.float64, requires_grad=True)
    found = grid_lab.CriticTargets(torch.ones_like(state, dtype=torch.bool), state, torch.zeros_like(actual), actual)
    for _ in range(2):  # Newton's method ends in one step; the second shows that it has
        loss = (weights * grid_lab.value_loss(values[state], found)).sum()
        (gradient,) = torch.autograd.grad(loss, values)
        curvature = 2 * torch.zeros_like(exact).index_put((state[:, 0],), weights[:, 0], accumulate=True)
        with torch.no_grad():
            values[free] -= gradient[free] / curvature[free]
    torch.testing.assert_close(values.detach()[free], exact[free], rtol=0, atol=1e-8)
    assert float((lab.exact.optimal_values - values.detach())[free].max()) > 1.0


def test_epsilon_greedy_walks_are_between_the_best_and_the_uniform_ones() -> None:
    uniform, half, best = (
        prepare(WORLDS["six"], GridRecipe(learn="values", epsilon=epsilon)) for epsilon in (None, 0.5, 0.0)
    )
    returns = [lab.exact.measure(grid_values.fixed_policy(lab)).expected_return for lab in (uniform, half, best)]
    assert returns[0] < returns[1] < returns[2] == pytest.approx(uniform.exact.optimal_return)
    table = grid_values.fixed_policy(half)
    torch.testing.assert_close(
        table, (grid_values.fixed_policy(uniform) + grid_values.fixed_policy(best)) / 2, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_grpo_s_gain_is_the_walk_s_return_against_its_group_on_each_of_its_moves(baseline: str) -> None:
    lab = prepare(WORLDS["tiny"], GridRecipe(learn="grpo", group=4, baseline=baseline))
    starts = torch.tensor([0, 4]).repeat_interleave(4)
    batch = lab.episodes(grid_lab.look_up(lab.log_table(lab.policy())), starts, 0)
    targets, study = grid_grpo.learn_from(lab, batch)
    assert study.gain is not None and study.value is None
    scores = [sum(batch.reward[row][batch.mask[row]].tolist()) for row in range(8)]
    for row in range(8):
        group = scores[row // 4 * 4 : row // 4 * 4 + 4]
        mean = sum(group) / 4
        std = (sum((score - mean) ** 2 for score in group) / 4) ** 0.5
        wanted = (scores[row] - mean) / std * (4 / 3 if baseline == "leave_one_out" else 1.0)
        gains = study.gain[row][batch.mask[row]]
        torch.testing.assert_close(gains, torch.full_like(gains, wanted))
        assert not study.gain[row][~batch.mask[row]].any()
    assert len(targets.gain) == batch.moves and targets.mask.all()


def test_reinforce_s_baseline_is_the_mean_outcome_of_the_batch() -> None:
    outcomes = {}
    for baseline in ("none", "mean", "leave_one_out"):
        lab = prepare(WORLDS["tiny"], GridRecipe(learn="reinforce", baseline=baseline))
        table = lab.log_table(lab.policy())
        batch = lab.episodes(grid_lab.look_up(table), lab.starts(32, 0), 0)
        outcomes[baseline] = grid_policy.against_the_mean(lab, batch, lab.policy_table(table))[0][batch.mask]
    plain = outcomes["none"]
    torch.testing.assert_close(outcomes["mean"], plain - plain.mean())
    others = (plain.sum() - plain) / (len(plain) - 1)
    torch.testing.assert_close(outcomes["leave_one_out"], plain - others)


def test_the_ratio_of_a_batch_s_first_step_is_one_and_nothing_is_clipped() -> None:
    lab = prepare(WORLDS["six"], GridRecipe())
    policy, critic = lab.policy(), lab.critic()
    table = lab.log_table(policy)
    batch = lab.walks().collect(grid_lab.look_up(table), 32, 100)
    moves, _, study = grid_ppo.learn_from(lab, batch, critic)
    chosen = distributions.chosen(lab.log_probs(policy, moves.state), moves.action)
    loss = grid_lab.policy_loss(lab.log_probs(policy, moves.state), moves, 0.2, 0.0, first=True)
    assert torch.equal(loss, -moves.gain.to(loss.dtype))  # ratio exactly 1
    assert float((chosen - moves.old_logprobs).abs().max()) < 1e-6  # and what was recorded says the same
    _, clipped = losses.clipped_surrogate(chosen, moves.old_logprobs.to(chosen.dtype), moves.gain, 0.2, 0.2)
    assert not clipped.any()
    assert study.gain is not None and torch.equal(moves.gain > 0, study.gain.reshape(-1, 1) > 0)  # scaling keeps signs


def test_entropy_is_rewarded() -> None:
    lab = wide(prepare(WORLDS["tiny"], GridRecipe()))
    network = linear_policy(lab)
    state = torch.arange(lab.states)[:, None]
    zero = torch.zeros_like(state, dtype=torch.float64)
    found = Targets(torch.ones_like(state, dtype=torch.bool), state, lab.available.int().argmax(1)[:, None], zero, zero)
    logprobs = lab.log_probs(network, state)
    loss = grid_lab.policy_loss(logprobs, found, None, 0.25, first=True)
    torch.testing.assert_close(loss, -0.25 * distributions.entropy(logprobs))
