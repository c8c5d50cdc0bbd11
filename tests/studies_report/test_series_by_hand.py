"""What is plotted of small made runs, against values worked out by hand: distance fits, cosines, KL of the answers."""

from __future__ import annotations

import pytest

from services.evaluation.plots.runs import Run, run_of_report
from services.evaluation.plots.series import distance_fits, distance_points, response_kl_series, similarity_samples
from tests.studies_report.made_records import answers, made_report


def made_run(means=(), *, arm="arm-0", order="order-0", seed=1, own=(("p",), ("q",), ("r",)), setup=(), replayed=(), **parts) -> Run:
    """Stages of 10 steps that are named like the letters of their domains."""
    stages = [{"name": "+".join(names), "domains": list(names), "steps": 10, "replayed": list(replayed)} for names in own]
    return run_of_report(made_report(stages, ["p", "q", "r", "suite"], list(means), **parts), arm=arm, order=order, seed=seed, setup=setup)


# -- forgetting against distance -----------------------------------------------------------------------------------------

DISTANCES = {"p": {"q": 0.1, "r": 0.3}, "q": {"r": 0.2}}
FIRST = [[0.2, 0.3, 0.1, 0.5], [0.8, 0.4, 0.1, 0.5], [0.7, 0.9, 0.3, 0.5], [0.3, 0.8, 0.9, 0.5]]
SECOND = [[0.2, 0.3, 0.1, 0.5], [0.8, 0.4, 0.1, 0.5], [0.9, 0.6, 0.3, 0.5], [0.9, 0.5, 0.9, 0.5]]


def points(arm: str, order: str, *places: tuple[float, float]) -> list[dict]:
    """(distance, change); a pair of domains for every two of them."""
    return [{"arm": arm, "order": order, "seed": i % 2, "domain": f"d{i // 2}", "stage": "s", "mmd_squared": x, "change": y} for i, (x, y) in enumerate(places)]


def test_a_line_and_a_rank_correlation_per_order_and_arm():
    """x 0 1 2 5 about 2: -2 -1 0 3, squares 14. y 0 -.1 -.4 -.3 about -.2: .2 .1 -.2 -.1, squares .1; products -.4 -.1 0 -.3 = -.8.
    Slope -.8/14 (x on y: -8), intercept -.2 + 2 * .8/14. Ranks 1 2 3 4 and 4 3 1 2: squares of differences 9 + 1 + 4 + 4 = 18,
    rho = 1 - 6 * 18 / (4 * 15) = -.8 (Pearson's is -.8 / sqrt(1.4) = -.68).
    The same arm in another order: x 1 2 3, y 0 .2 .1: slope .1/2, intercept .1 - 2 * .05, rho 1 - 6 * 2 / (3 * 8). Another arm: y = x / 10."""
    one = points("arm-0", "order-0", (0.0, 0.0), (1.0, -0.1), (2.0, -0.4), (5.0, -0.3))
    turned = points("arm-0", "order-1", (1.0, 0.0), (2.0, 0.2), (3.0, 0.1))
    other = points("arm-1", "order-0", (0.0, 0.0), (1.0, 0.1), (2.0, 0.2), (5.0, 0.5))
    mixed = [point for at in range(4) for group in (one, turned, other) for point in group[at : at + 1]]
    assert distance_fits(mixed) == [
        {"arm": "arm-0", "order": "order-0", "n": 4, "num_pairs": 2, "low": 0.0, "high": 5.0}
        | {"slope": pytest.approx(-0.8 / 14), "intercept": pytest.approx(-0.2 + 1.6 / 14), "spearman": pytest.approx(-0.8)},
        {"arm": "arm-0", "order": "order-1", "n": 3, "num_pairs": 2, "low": 1.0, "high": 3.0}
        | {"slope": pytest.approx(0.05), "intercept": pytest.approx(0.0, abs=1e-12), "spearman": pytest.approx(0.5)},
        {"arm": "arm-1", "order": "order-0", "n": 4, "num_pairs": 2, "low": 0.0, "high": 5.0}
        | {"slope": pytest.approx(0.1), "intercept": pytest.approx(0.0, abs=1e-12), "spearman": pytest.approx(1.0)},
    ]


def test_the_points_of_runs_and_their_fit():
    """A change is over the later stage alone: row after it less row before it. x .1 .3 .2 in both; y -.1 -.4 -.1 and .1 0 -.1, mean -.1.
    About .2 x is -.1 .1 0 twice, squares 4 * .01; products .01 - .04 + 0 - .01 + 0 + 0 = -.04: slope -1, intercept -.1 + .2 (with the
    first seed twice the slope is -.07 / .06). Ranks of x 1.5 5.5 3.5 twice, of y 3 1 3 and 6 5 3 (-.1 three times); about 3.5 the
    squares are 16 and 15.5, the products 1 - 5 + 0 - 5 + 3 + 0 = -6."""
    runs = [made_run(FIRST, seed=1, distances=DISTANCES), made_run(SECOND, seed=2, distances=DISTANCES)]
    found = distance_points(runs)
    assert [(point["seed"], point["domain"], point["stage"], point["mmd_squared"], point["change"]) for point in found] == [
        (1, "p", "q", 0.1, pytest.approx(-0.1)),
        (1, "p", "r", 0.3, pytest.approx(-0.4)),
        (1, "q", "r", 0.2, pytest.approx(-0.1)),
        (2, "p", "q", 0.1, pytest.approx(0.1)),
        (2, "p", "r", 0.3, pytest.approx(0.0)),
        (2, "q", "r", 0.2, pytest.approx(-0.1)),
    ]
    (fit,) = distance_fits(found)
    assert (fit["n"], fit["num_pairs"], fit["low"], fit["high"]) == (6, 3, 0.1, 0.3)
    assert (fit["slope"], fit["intercept"], fit["spearman"]) == (pytest.approx(-1.0), pytest.approx(0.1), pytest.approx(-6 / (16 * 15.5) ** 0.5))


def test_what_differs_by_rounding_alone_is_the_same_rank():
    """x .3 twice, y -.1 twice. Ranks 1.5 1.5 3 4 and 2.5 4 1 2.5; about 2.5 the squares are 4.5 each, the products 0 - 1.5 - .75 + 0."""
    (fit,) = distance_fits(points("a", "o", (0.3, 0.7 - 0.8), (0.1 + 0.2, 0.0), (0.4, -0.2), (0.5, 0.8 - 0.9)))
    assert fit["spearman"] == pytest.approx(-2.25 / 4.5)
    (fit,) = distance_fits(points("a", "o", (0.3, 0.0), (0.1 + 0.2, 0.1), (0.4, 0.2)))  # two distances
    assert (fit["slope"], fit["intercept"], fit["spearman"], fit["n"]) == (None, None, None, 3)
    (fit,) = distance_fits(points("a", "o", (0.3, 0.7 - 0.8), (0.4, 0.8 - 0.9), (0.5, -0.1)))  # one change
    assert (fit["slope"], fit["spearman"]) == (None, None)


def test_a_stage_of_several_domains_is_at_their_mean_distance():
    """p against q and r: (.1 + .3) / 2; a domain that the stage trains on again is not forgotten, nor is one set against an unknown distance."""
    run = made_run(FIRST[:3], own=(("p",), ("q", "r")), distances=DISTANCES)
    assert [(point["domain"], point["stage"], point["mmd_squared"]) for point in distance_points([run])] == [("p", "q+r", pytest.approx(0.2))]
    again = made_run(FIRST, own=(("p",), ("q",), ("r", "p")), distances=DISTANCES)
    assert [(point["domain"], point["stage"], point["mmd_squared"]) for point in distance_points([again])] == [("p", "q", 0.1), ("q", "r+p", pytest.approx(0.15))]
    assert [point["domain"] for point in distance_points([made_run(FIRST, distances={"p": {"q": 0.1}})])] == ["p"]


def test_a_stage_that_prepares_has_no_distance():
    """Neither as what was learned earlier (p of the first) nor as what is trained now (q, where p has been learned)."""
    run = made_run(FIRST, setup=("p",), distances=DISTANCES)
    assert [(point["domain"], point["stage"]) for point in distance_points([run])] == [("q", "r")]
    run = made_run(FIRST, setup=("q",), distances=DISTANCES)
    assert [(point["domain"], point["stage"], point["change"]) for point in distance_points([run])] == [("p", "r", pytest.approx(-0.4))]


# -- cosines -------------------------------------------------------------------------------------------------------------


def test_cosines_are_pooled_over_seeds_and_trained_domains():
    """.1 .2 .5 .7 .9 of the first stage: quartiles are the second, third and fourth (medians of the seeds: .5 and .45). The seed without
    cosines is not in n. Of the second stage 0 .1 .3 .7: a quarter of three steps is .75, so 0 + .75 * .1, .2 and .3 + .25 * .4."""
    runs = [
        made_run(seed=1, responses=[
            answers(0, 5, "p", 0.0, [-0.9]) | {"at": "during"},
            answers(0, 10, "p", 0.0, [0.9, 0.5]), answers(0, 10, "q", 0.0, [0.1]), answers(0, 10, "suite", 0.0, [-1.0, -1.0]),
            answers(1, 10, "p", 0.0, [0.7, 0.0]), answers(1, 10, "q", 0.0, [0.3]),
        ]),
        made_run(seed=2, responses=[answers(0, 10, "p", 0.0, [0.7]), answers(0, 10, "q", 0.0, [0.2]), answers(1, 10, "r", 0.0, [0.1])]),
        made_run(seed=3, responses=[answers(0, 10, "p", 0.0, None) | {"at": "stage_end"}]),
        made_run(seed=1, arm="arm-1", responses=[answers(0, 10, "p", 0.0, [-0.5])]),
        made_run(seed=1, order="order-1", responses=[answers(0, 10, "p", 0.0, [-0.25])]),
    ]  # fmt: skip
    found = {(item["order"], item["arm"], item["stage_index"]): item for item in similarity_samples(runs)}
    assert {place: (item["n"], item["num_prompts"], item["sample"]) for place, item in found.items()} == {
        ("order-0", "arm-0", 0): (2, 5, [0.1, 0.2, 0.5, 0.7, 0.9]),
        ("order-0", "arm-0", 1): (2, 4, [0.0, 0.1, 0.3, 0.7]),
        ("order-0", "arm-1", 0): (1, 1, [-0.5]),
        ("order-1", "arm-0", 0): (1, 1, [-0.25]),
    }
    quartiles = {place: [item[key] for key in ("q25", "median", "q75")] for place, item in found.items()}
    assert quartiles["order-0", "arm-0", 0] == pytest.approx([0.2, 0.5, 0.7])
    assert quartiles["order-0", "arm-0", 1] == pytest.approx([0.075, 0.2, 0.4])


def test_a_large_pool_is_thinned_after_its_quartiles():
    """Of .000 .001 .. .301 the k-th of 300 is at k * 301 / 299 = k + 2k / 299, which rounds to k below k = 74.75, to k + 1 below 224.25 and
    to k + 2 from there: the 75th and the 226th are left out. The lower quartile is at 301 / 4 = 75.25; of what is left it would be at
    299 / 4 = 74.75, between .074 and .076: .0755."""
    values = [step / 1000 for step in range(302)]
    one, other = (made_run(seed=seed, responses=[answers(0, 10, "p", 0.0, values[::-1][seed - 1 :: 2])]) for seed in (1, 2))
    (found,) = similarity_samples([one, other])
    assert (found["n"], found["num_prompts"], len(found["sample"])) == (2, 302, 300)
    assert found["sample"] == [value for value in values if value not in (0.075, 0.226)]
    assert [found[key] for key in ("q25", "median", "q75")] == pytest.approx([0.07525, 0.1505, 0.22575], abs=1e-9)
    (whole,) = similarity_samples([made_run(responses=[answers(0, 10, "p", 0.0, values[299::-1])])])
    assert whole["sample"] == values[:300]


# -- KL of the answers ---------------------------------------------------------------------------------------------------


def kl(stage: int, step: int, domain: str, value: float | None) -> dict:
    """The other direction, and the KL to the stage's start, are large."""
    entry = answers(stage, step, domain, value, None)
    return entry | {"base": {**entry["base"], "kl_base_policy": 50.0}, "start": {"kl_policy_base": 60.0, "kl_policy_start": 70.0}}


def kl_lines(runs: list[Run]) -> dict[tuple, list[tuple]]:
    return {(line["order"], line["arm"], line["role"]): [(point["x"], point["mean"], point["n"]) for point in line["points"]] for line in response_kl_series(runs)}


def test_the_kl_of_a_stages_own_domains_and_of_earlier_ones():
    """p, then q, then p again: in the third stage p is its own and only q is an earlier one. What only a later stage trains on has no line.
    Two values .1 and .3: mean .2, half of the interval 12.7062 * .1."""
    own = (("p",), ("q",), ("p", "r"), ("suite",))
    first = [kl(0, 5, "p", 0.1), kl(0, 5, "q", 9.0), kl(0, 5, "suite", 8.0), kl(0, 10, "p", 0.2), kl(1, 5, "q", 0.4), kl(1, 5, "p", 0.8), kl(1, 5, "r", 7.0)]
    second = [kl(0, 5, "p", 0.3), kl(1, 5, "q", 0.6), kl(1, 5, "p", None), kl(1, 5, "suite", 6.0), kl(2, 5, "p", 1.0), kl(2, 5, "q", 3.0), kl(2, 10, "suite", 5.0)]
    runs = [made_run(own=own, seed=1, responses=first), made_run(own=own, seed=2, responses=second)]
    runs += [made_run(own=own, seed=1, arm="arm-1", responses=[kl(0, 5, "p", 4.0)]), made_run(own=own, seed=1, order="order-1", responses=[kl(1, 10, "p", 2.0)])]
    assert kl_lines(runs) == {
        ("order-0", "arm-0", "own"): [(0.5, pytest.approx(0.2), 2), (1.0, 0.2, 1), (1.5, pytest.approx(0.5), 2), (2.5, 1.0, 1)],
        ("order-0", "arm-0", "earlier"): [(1.5, 0.8, 1), (2.5, 3.0, 1)],
        ("order-0", "arm-1", "own"): [(0.5, 4.0, 1)],
        ("order-1", "arm-0", "earlier"): [(2.0, 2.0, 1)],
    }
    point = response_kl_series(runs)[0]["points"][0]
    assert (point["low"], point["high"]) == (pytest.approx(0.2 - 1.27062, abs=1e-4), pytest.approx(0.2 + 1.27062, abs=1e-4))


def test_a_run_counts_once_however_many_domains_it_has():
    """Own of the first run: (.2 + .6) / 2 = .4, of the second .8: .6 (all three values: .533). Earlier: (1 + 2 + 3) / 3 of the only run."""
    own = (("p", "q"), ("r",), ("suite",))
    first = [kl(0, 10, "p", 0.2), kl(0, 10, "q", 0.6), kl(2, 10, "p", 1.0), kl(2, 10, "q", 2.0), kl(2, 10, "r", 3.0)]
    runs = [made_run(own=own, seed=1, responses=first), made_run(own=own, seed=2, responses=[kl(0, 10, "p", 0.8)])]
    assert kl_lines(runs) == {
        ("order-0", "arm-0", "own"): [(1.0, pytest.approx(0.6), 2)],
        ("order-0", "arm-0", "earlier"): [(3.0, pytest.approx(2.0), 1)],
    }


def test_a_replayed_domain_is_an_earlier_one_and_a_stage_that_prepares_has_no_line():
    """q's stage replays p; where p's only prepares, p is of neither role."""
    responses = [kl(0, 10, "p", 0.1), kl(1, 10, "p", 0.2), kl(1, 10, "q", 0.4)]
    assert kl_lines([made_run(replayed=("p",), responses=responses)]) == {
        ("order-0", "arm-0", "own"): [(1.0, 0.1, 1), (2.0, 0.4, 1)],
        ("order-0", "arm-0", "earlier"): [(2.0, 0.2, 1)],
    }
    assert kl_lines([made_run(setup=("p",), responses=responses)]) == {("order-0", "arm-0", "own"): [(2.0, 0.4, 1)]}
