"""Regularisers on problems whose regularised solution is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from leadline.interventions.base import Intervention
from leadline.priors import normal
from leadline.solvers.base import Row, begin, train
from leadline.solvers.gradient import Gradient
from leadline.solvers.robust import Dropout, Noise, VocabularyPull, adversarial
from leadline.solvers.variational import Variational
from leadline.spec import UserError


class Plain(Intervention):
    """Latents of a shape that write nothing: solvers need no model."""

    family, size, tokens, prior = "plain", 1, 1, "N(0, I)"

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def edit(self, latents):
        raise AssertionError("a solver asks for no edit")


def trained(solver, start, loss, steps=300, draws=64, wrap=lambda loss: loss):
    """The trained latent and the state; `loss` is (draws, *shape) -> (draws,)."""
    row = Row("row", Plain(*start.shape), solver, 0, draws)
    closure = wrap(lambda step, latents: torch.stack([loss(latents[0]).mean()]))
    state = train([row], closure, steps, begin([row], [{"mean": start}], torch.device("cpu")))
    return state.parameters[0]["mean"], state


def wells(latents):
    """A well of depth 1 and width 0.1 at 1, and one of depth 0.8 and width 0.8 at -1."""
    deep = torch.exp(-((latents - 1) ** 2) / (2 * 0.1**2))
    return -(deep + 0.8 * torch.exp(-((latents + 1) ** 2) / (2 * 0.8**2))).sum(-1)


def test_noise_leaves_the_narrow_well_for_the_wide_one():
    start = torch.tensor([1.0])
    stays, _ = trained(Gradient(0.1), start, wells, draws=1)
    assert float(stays) == pytest.approx(1, abs=0.01)
    # a Gaussian well under Gaussian noise is a Gaussian well: at scale 1 the narrow one is 0.1 deep, the wide one 0.5
    leaves, _ = trained(Noise(Gradient(0.1), 1.0), start, wells, draws=256)
    assert float(leaves) == pytest.approx(-1, abs=0.2)


def product(latents):
    """Zero wherever the two coordinates multiply to 1."""
    return (latents[:, 0] * latents[:, 1] - 1) ** 2


def test_noise_moves_along_a_valley_to_its_flattest_point():
    """E[(z1 z2 - 1)^2] under noise s is (z1^2 + s^2)(z2^2 + s^2) - 2 z1 z2 + 1, least at z1 = z2 = sqrt(1 - s^2)."""
    start = torch.tensor([2.0, 0.5])
    stays, _ = trained(Gradient(0.05), start, product, draws=1)
    torch.testing.assert_close(stays, start)
    moved, _ = trained(Noise(Gradient(0.05), 0.3), start, product, steps=600, draws=256)
    torch.testing.assert_close(moved, torch.full((2,), math.sqrt(1 - 0.09)), rtol=0, atol=0.05)


def test_noise_costs_half_the_trace_and_is_added_to_a_draw_of_its_own_kind():
    """On draws: their variance is that of q plus the noise's, and the two are independent."""
    noise = normal((20000, 3), "noise")
    parameters = {"mean": torch.ones(3), "log_scale": torch.full((3,), math.log(0.5))}
    plain = Variational(1.0, 1.0, 0.1, 0.1)
    given, noisy = plain.draw(parameters, noise), Noise(plain, 0.2).draw(parameters, noise)
    torch.testing.assert_close((noisy - given).var(0), torch.full((3,), 0.04), rtol=0.05, atol=0)
    torch.testing.assert_close(noisy.var(0), torch.full((3,), 0.25 + 0.04), rtol=0.05, atol=0)
    both = torch.corrcoef(torch.stack([(noisy - given)[:, 0], noise[:, 0]]))
    assert abs(float(both[0, 1])) < 0.03


@pytest.mark.parametrize("solver", [Noise(Gradient(0.1), 0.3), Dropout(Gradient(0.1), 0.5)])
def test_what_is_added_is_a_function_of_the_noise_and_of_nothing_else(solver):
    parameters = {"mean": torch.ones(4, 5)}
    first, second = normal((8, 4, 5), "row", 0), normal((8, 4, 5), "row", 1)
    before = torch.get_rng_state()
    drawn = solver.draw(parameters, first)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(drawn, solver.draw(parameters, first.clone()))
    assert not torch.equal(drawn, solver.draw(parameters, second))


def test_a_batch_that_is_stopped_and_goes_on_ends_in_the_same_numbers():
    solver = Noise(Dropout(Variational(0.1, 1.0, 0.05, 0.05), 0.3), 0.2)
    rows = [Row("a", Plain(2, 3), solver, 0, 4)]

    def loss(step, latents):
        return torch.stack([(latents[0] - 1).square().sum((-1, -2)).mean()])

    whole = train(rows, loss, 30, begin(rows, [None], torch.device("cpu")))
    part = begin(rows, [None], torch.device("cpu"))

    def stop(state):
        if state.step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(rows, loss, 30, part, stop)
    for row in part.parameters:
        row.update({name: value.detach().clone() for name, value in row.items()})
    again = train(rows, loss, 30, part)
    assert all(torch.equal(again.parameters[0][name], value) for name, value in whole.parameters[0].items())


def test_dropout_makes_tokens_redundant():
    """(t1 + t2 - 1)^2 with tokens kept at rate r: r (1 - r)(t1^2 + t2^2) + (r (t1 + t2) - 1)^2 + ..., least at
    t1 = t2 = 1 / (1 + r)."""

    def loss(latents):
        return (latents.sum((-1, -2)) - 1) ** 2

    start = torch.tensor([[1.0], [0.0]])
    stays, _ = trained(Gradient(0.05), start, loss, draws=1)
    torch.testing.assert_close(stays, start)
    for share in (0.5, 0.2):
        shared, _ = trained(Dropout(Gradient(0.05), share), start, loss, steps=500, draws=512)
        torch.testing.assert_close(shared, torch.full((2, 1), 1 / (2 - share)), rtol=0, atol=0.03)


def test_dropout_drops_whole_tokens_at_its_rate():
    drawn = Dropout(Gradient(0.1), 0.3).draw({"mean": torch.ones(4, 6)}, normal((5000, 4, 6), "noise"))
    kept = drawn[..., 0]
    assert torch.equal(drawn, kept[..., None].expand_as(drawn))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    # four standard errors of 20000 coins
    assert float(kept.mean()) == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / 20000))
    assert float(torch.corrcoef(kept.T)[0, 1]) == pytest.approx(0, abs=0.06)


TABLE = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, -2.0]])


def test_the_pull_ends_where_loss_and_vocabulary_balance():
    """norm(z - a)^2 / 2 bits against strength norm(z - e)^2 / (2 ln 2): a weighted mean; strong enough, a token."""
    aim = torch.tensor([[1.2, 0.4], [-1.0, -1.5]])

    def loss(latents):
        return 0.5 * (latents - aim).square().sum((-1, -2))

    for strength in (0.0, 0.5, 100.0):
        solver = VocabularyPull(Gradient(0.05), strength, TABLE)
        found, _ = trained(solver, torch.zeros(2, 2), loss, steps=400, draws=1)
        weight = strength / math.log(2)
        truth = (aim + weight * TABLE[[0, 2]]) / (1 + weight)
        torch.testing.assert_close(found, truth, rtol=0, atol=0.02)


def test_the_pull_is_in_bits_of_a_gaussian_at_the_nearest_token_and_adds_to_the_inner_price():
    parameters = {"mean": torch.tensor([[1.5, 0.0], [2.0, 0.0]]), "log_scale": torch.zeros(2, 2)}
    inner = Variational(1.0, 1.0, 0.1, 0.1)
    solver = VocabularyPull(inner, 3.0, TABLE)
    added = solver.penalty_bits(parameters, 1.0) - inner.penalty_bits(parameters, 1.0)
    assert float(added) == pytest.approx(3 * 0.25 / (2 * math.log(2)), rel=1e-5)
    for progress in (0.0, 0.5):
        assert float(solver.penalty_bits(parameters, progress)) == float(inner.penalty_bits(parameters, progress))
    # a token on top of a vocabulary embedding has a gradient, and it is zero
    mean = torch.tensor([[2.0, 0.0]], requires_grad=True)
    VocabularyPull(Gradient(0.1), 1.0, TABLE).penalty_bits({"mean": mean}, 1.0).backward()
    assert mean.grad is not None
    assert mean.grad.tolist() == [[0, 0]]


def test_tokens_are_needed_where_tokens_are_meant():
    for solver in (Dropout(Gradient(0.1), 0.5), VocabularyPull(Gradient(0.1), 1.0, TABLE)):
        with pytest.raises(UserError, match="tokens"):
            solver.start(Plain(7), 0)


def test_wrappers_start_and_learn_as_what_they_wrap():
    inner, plain = Variational(0.1, 1.0, 0.05, 0.07), Plain(3, 2)
    for solver in (Noise(inner, 0.1), Dropout(inner, 0.1), VocabularyPull(inner, 1.0, TABLE)):
        assert all(torch.equal(value, inner.start(plain, 5)[name]) for name, value in solver.start(plain, 5).items())
        assert solver.learning_rates(0.4) == inner.learning_rates(0.4)
    for solver in (Noise(inner, 0.1), Dropout(inner, 0.1)):
        assert solver.penalty_bits(inner.start(plain, 5), 0.4) == inner.penalty_bits(inner.start(plain, 5), 0.4)


def mean_of(loss):
    """A batch's closure: each row's mean loss over its draws."""
    return lambda step, latents: torch.stack([loss(latent).mean() for latent in latents])


def test_the_adversary_adds_radius_times_slope_to_a_linear_loss_and_at_least_that_to_a_convex_one():
    slope = torch.tensor([3.0, -4.0])
    latents = [normal((6, 2), "a"), normal((3, 2), "b")]
    linear = mean_of(lambda z: z @ slope)
    torch.testing.assert_close(adversarial(linear, 0.2)(0, latents), linear(0, latents) + 0.2 * 5)
    # norm(z)^2 / 2 becomes (norm(z) + radius)^2 / 2, draw by draw
    bowl = mean_of(lambda z: 0.5 * z.square().sum(-1))
    moved = torch.stack([(0.5 * (z.norm(dim=1) + 0.2) ** 2).mean() for z in latents])
    torch.testing.assert_close(adversarial(bowl, 0.2)(0, latents), moved)
    # hence the slope of a convex loss is at most what the adversary gains over the radius
    convex = mean_of(lambda z: torch.logsumexp(3 * z, -1))
    single = [normal((1, 2), "c", place) for place in range(20)]
    points = [z.clone().requires_grad_() for z in single]
    slopes = torch.stack([g.norm() for g in torch.autograd.grad(convex(0, points).sum(), points)])
    gained = (adversarial(convex, 0.5)(0, single) - convex(0, single)) / 0.5
    assert bool((slopes <= gained + 1e-5).all())


def test_the_adversary_finds_a_flatter_point_of_a_valley():
    """On z1 z2 = 1 the trace of the Hessian is 2 (z1^2 + z2^2), least at 1, 1."""
    start = torch.tensor([2.0, 0.45])
    plain, _ = trained(Gradient(0.02), start, product, steps=1000, draws=1)
    robust, _ = trained(Gradient(0.02), start, product, steps=1000, draws=1, wrap=lambda loss: adversarial(loss, 0.1))
    sharp, flat = (2 * float(z.square().sum()) for z in (plain, robust))
    assert float(product(plain[None])) < 1e-6
    assert float(product(robust[None])) < 0.02
    assert sharp > 7
    assert flat < 4.5


def test_a_draw_without_a_slope_stays_and_one_that_is_lost_does_not_move_the_others():
    bowl = mean_of(lambda z: 0.5 * z.square().sum(-1))
    assert float(adversarial(bowl, 0.3)(0, [torch.zeros(1, 2)])) == 0
    broken = mean_of(lambda z: (z / z.detach().norm() * 0.5 * z.norm()).sum(-1))
    good, bad = torch.ones(1, 2), torch.zeros(1, 2)
    found = adversarial(broken, 0.3)(0, [good, bad])
    torch.testing.assert_close(found[0], adversarial(broken, 0.3)(0, [good])[0])
    assert not bool(torch.isfinite(found[1]))
