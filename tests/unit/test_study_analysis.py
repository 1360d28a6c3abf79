"""What a study answers, against the truth that the example's cells were drawn from and against plain loops."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy import stats
from study_cells import (
    FLOAT,
    GRIDS,
    LAMBDAS,
    MODEL,
    PLAIN,
    QAT,
    SEEDS,
    SELECTING,
    TASKS,
    make_cell,
    make_cells,
    make_fine_tunes,
    mean_truth,
    row_key,
    truth,
)

from qvec_deploy.errors import IntegrityError, RecipeError
from qvec_deploy.research.study.analysis.costs import FineTune, break_even
from qvec_deploy.research.study.analysis.paper import VIT_B, W3
from qvec_deploy.research.study.analysis.row_key import RowKey
from qvec_deploy.research.study.analysis.study_statistics import holm
from qvec_deploy.research.study.analysis.study_summary import (
    PublishedFigure,
    StudyRow,
    StudySetting,
    StudySummary,
    plain_values,
)
from qvec_deploy.research.study.analysis.summarize import summarize
from qvec_deploy.research.study.cell_values import Cell, DonorFiles, Relation, TaskData, Trial, pack_right, unpack_right
from qvec_deploy.research.study.presets import PAPER_TASKS
from qvec_deploy.tensors import Scheme


@cache
def whole() -> StudySummary:
    return summarize(make_cells(), make_fine_tunes())


def row(setting: StudySetting, key: str) -> StudyRow:
    found = setting.row(row_key(key))
    assert found is not None, key
    return found


def right(cell: Cell, **values: object) -> np.ndarray:
    """Which test images the one trial of that description gets right."""
    (trial,) = [t for t in cell.trials if all(getattr(t, name) == value for name, value in values.items())]
    return unpack_right(trial.right, cell.images)


def top1(cell: Cell, **values: object) -> float:
    """Its accuracy, percent."""
    return 100 * right(cell, **values).mean()


def without(cell: Cell, *kinds: str) -> Cell:
    return replace(cell, trials=tuple(trial for trial in cell.trials if trial.kind not in kinds))


@pytest.mark.slow
def test_keys_are_spelled_and_read_back() -> None:
    for setting in whole().settings:
        for key in (*(one.key for one in setting.rows), *(one.key for one in setting.selection)):
            assert row_key(str(key)) == key
    assert str(RowKey("mean", "lambda_1", "gptq", "images")) == "mean+gptq/images/lambda_1"


def test_settings_and_what_they_are_of() -> None:
    first, second = whole().settings
    assert (first.grid, second.grid) == GRIDS
    assert (first.model, first.model_args, first.skip) == (MODEL, {"img_size": 32}, ("head",))
    assert (first.tasks, first.receivers, first.seeds) == (TASKS, TASKS, SEEDS)
    assert (first.selecting, first.missing) == (SELECTING, ())


@pytest.mark.parametrize("grid", [0, 1])
def test_rows_are_what_cells_were_drawn_from(grid: int) -> None:
    setting = whole().settings[grid]
    pairs = [(donor, receiver) for receiver in TASKS for donor in TASKS if donor != receiver]
    expected = {
        "float": np.mean(list(FLOAT.values())),
        "own_qat": np.mean(list(QAT[grid].values())),
        "plain": np.mean(list(PLAIN[grid].values())),
        "pair/lambda_1": np.mean([PLAIN[grid][r] + truth(grid, r, d, 1.0) for d, r in pairs]),
        "mean/lambda_1": np.mean(
            [min(PLAIN[grid][r] + mean_truth(grid, r, 1.0), QAT[grid][r]) for r in TASKS],
        ),
        "control/random": np.mean(list(PLAIN[grid].values())) - 0.5,
    }
    for key, value in expected.items():
        found = row(setting, key).top1
        assert abs(found.value - value) < 2.5 * (found.images.high - found.images.low) / 3.92 + 0.5, key
        assert found.images.contains(found.value)
        assert found.receivers is not None
        assert found.receivers.contains(found.value)


def test_rows_are_means_over_cells_and_candidates() -> None:
    setting = whole().settings[1]
    cells = make_cells((1,))
    donors = [[d.task for d in cell.request.donors] for cell in cells]
    expected = [
        np.mean([top1(cell, kind="pair", donor=d, lam=1.0) for d in mine])
        for cell, mine in zip(cells, donors, strict=True)
    ]
    found = row(setting, "pair/lambda_1")
    assert (found.cells, found.candidates) == (18, 90)
    assert found.top1.value == pytest.approx(np.mean(expected))
    by_seed = np.array(expected).reshape(len(SEEDS), len(TASKS)).mean(axis=1)
    assert found.top1.seed_error == pytest.approx(by_seed.std(ddof=1) / np.sqrt(3))
    plain = [top1(cell, kind="plain", method="grid") for cell in cells]
    assert found.gain is not None
    assert found.gain.value == pytest.approx(np.mean(np.array(expected) - plain))
    own = [top1(cell, kind="own_qat") for cell in cells]
    assert found.share_of_gap is not None
    assert found.share_of_gap.value == pytest.approx((np.sum(expected) - np.sum(plain)) / (np.sum(own) - np.sum(plain)))


def test_wins_are_counted_pair_by_pair() -> None:
    cells = make_cells((1,))
    found = {str(wins.baseline): wins for wins in row(whole().settings[1], "pair/lambda_1").wins}
    assert set(found) == {"plain", "mse", "awq/images", "gptq/images", "gptaq/images"}
    for baseline, described in (
        ("plain", {"kind": "plain", "method": "grid"}),
        ("gptq/images", {"kind": "plain", "method": "gptq", "inputs": "images"}),
    ):
        gains = [
            top1(cell, kind="pair", donor=donor.task, lam=1.0) - top1(cell, **described)
            for cell in cells
            for donor in cell.request.donors
        ]
        wins = found[baseline]
        assert (wins.wins, wins.ties, wins.count) == (
            sum(gain > 1e-9 for gain in gains),
            sum(abs(gain) < 1e-9 for gain in gains),
            90,
        )
        assert wins.share is not None
        assert wins.share.value == pytest.approx(wins.wins / 90)


def test_plain_gains_nothing_and_its_own_qat_closes_the_gap() -> None:
    for setting in whole().settings:
        plain = row(setting, "plain")
        assert plain.gain is None
        assert plain.share_of_gap is not None
        assert plain.share_of_gap.value == 0.0
        own = row(setting, "own_qat").share_of_gap
        assert own is not None
        assert (own.low, own.value, own.high) == pytest.approx((1.0, 1.0, 1.0))
        at_zero = [point for curve in setting.curves for point in curve.points if point.lam == 0.0]
        assert [(point.gain.value, point.win_share) for point in at_zero] == [(0.0, 0.0), (0.0, 0.0)]


def test_plain_by_another_name_is_no_row_and_no_baseline() -> None:
    on_mse, clipped = whole().settings
    assert on_mse.row(row_key("mse")) is None
    assert clipped.row(row_key("mse")) is not None
    assert "mse" not in {str(wins.baseline) for entry in on_mse.rows for wins in entry.wins}
    assert row(on_mse, "plain").label == "plain PTQ: MSE clipping"
    assert row(clipped, "plain").label == "plain PTQ: clip 0.65"
    absmax = [
        replace(
            cell,
            request=replace(cell.request, grid=Scheme(3, "tensor")),
            trials=tuple(t for t in cell.trials if (t.kind, t.method) != ("plain", "grid")),
        )
        for cell in make_cells((1,), TASKS[:2])
    ]
    setting = summarize(absmax).settings[0]
    assert setting.row(row_key("rtn")) is None
    assert setting.row(row_key("mse")) is not None
    assert row(setting, "plain").label == "plain PTQ: absmax"


def test_rows_say_what_they_need_and_stand_in_order() -> None:
    setting = whole().settings[1]
    keys = [str(entry.key) for entry in setting.rows]
    assert keys[:6] == ["float", "own_qat", "rtn", "mse", "plain", "awq/images"]
    assert keys.index("gptq/generated") < keys.index("gptaq/images") < keys.index("pair/lambda_1")
    assert keys.index("mix") < keys.index("mean+awq/images/lambda_1") < keys.index("control/random")
    needs = {str(entry.key): entry.needs for entry in setting.rows}
    assert (needs["own_qat"], needs["plain"], needs["gptq/generated"]) == ("training", "nothing", "nothing")
    assert (needs["mean/lambda_1"], needs["mix"], needs["donor/labelled"]) == ("donors", "images", "labels")
    assert needs["mean+gptq/images/lambda_1"] == "images"


def test_headroom_of_every_receiver() -> None:
    entry = next(h for h in whole().settings[1].headroom if h.receiver == "upper")
    cells = make_cells((1,), ("upper",))
    own = np.array([top1(cell, kind="own_qat") for cell in cells])
    gaps = own - [top1(cell, kind="plain", method="grid") for cell in cells]
    assert entry.own_qat_top1 == pytest.approx(own.mean())
    assert entry.gap == pytest.approx(gaps.mean())
    assert entry.gap_error == pytest.approx(gaps.std(ddof=1) / np.sqrt(3))
    assert entry.selecting == SELECTING - 3
    points = np.mean(
        [
            100.0 * (right(cell, kind="own_qat").astype(float) - right(cell, kind="plain", method="grid"))
            for cell in cells
        ],
        axis=0,
    )
    assert entry.gap_image_error == pytest.approx(points.std(ddof=1) / np.sqrt(len(points)))
    untrained = summarize([without(cell, "own_qat") for cell in cells]).settings[0]
    assert untrained.headroom[0].own_qat_top1 is None
    assert untrained.headroom[0].gap == pytest.approx(entry.float_top1 - entry.plain_top1)
    assert untrained.row(row_key("own_qat")) is None
    assert row(untrained, "pair/lambda_1").share_of_gap is None


def test_the_matrix_of_gains() -> None:
    setting = whole().settings[1]
    modes = ["lambda_1", "label_free", "labelled"]
    assert [(matrix.mode, str(matrix.baseline)) for matrix in setting.matrices[:3]] == [
        (mode, "plain") for mode in modes
    ]
    assert [len(matrix.pairs) for matrix in setting.matrices[:3]] == [30, 30, 30]
    assert setting.pairs("label_free") == setting.matrices[1].pairs
    pair = next(p for p in setting.matrices[0].pairs if (p.donor, p.receiver) == ("upper", "lower"))
    points = []
    for cell in make_cells((1,), ("lower",)):
        answers = [
            unpack_right(next(t.right for t in cell.trials if (t.kind, t.donor, t.lam) == wanted), cell.images)
            for wanted in (("pair", "upper", 1.0), ("plain", None, 0.0))
        ]
        grid = next(t for t in cell.trials if (t.kind, t.method) == ("plain", "grid"))
        points.append(100.0 * (answers[0].astype(float) - unpack_right(grid.right, cell.images)))
    gains = np.array(points).mean(axis=1)
    assert pair.gain == pytest.approx(gains.mean())
    assert pair.seed_error == pytest.approx(gains.std(ddof=1) / np.sqrt(3))
    assert pair.image_error == pytest.approx(np.mean(points, axis=0).std(ddof=1) / np.sqrt(len(points[0])))
    assert pair.lambdas == (1.0, 1.0, 1.0)
    assert abs(pair.gain - truth(1, "lower", "upper", 1.0)) < 8


def test_gains_of_pairs_over_other_methods() -> None:
    first, second = whole().settings
    modes = ("lambda_1", "label_free", "labelled")
    baselines = ("plain", "mse", "awq/images", "gptq/images", "gptaq/images")
    assert [(m.mode, str(m.baseline)) for m in second.matrices] == [(mode, key) for key in baselines for mode in modes]
    assert [(m.mode, str(m.baseline)) for m in first.matrices] == [  # MSE is what plain is on its grid
        (mode, key) for key in baselines if key != "mse" for mode in modes
    ]
    pair = next(
        p for p in second.pairs("lambda_1", row_key("gptq/images")) if (p.donor, p.receiver) == ("upper", "lower")
    )
    cells = make_cells((1,), ("lower",))
    tried = [right(cell, kind="pair", donor="upper", lam=1.0).astype(float) for cell in cells]
    points = 100 * (np.array(tried) - [right(c, kind="plain", method="gptq", inputs="images") for c in cells])
    assert pair.gain == pytest.approx(points.mean())
    assert pair.seed_error == pytest.approx(points.mean(axis=1).std(ddof=1) / np.sqrt(3))
    assert pair.image_error == pytest.approx(points.mean(axis=0).std(ddof=1) / np.sqrt(400))
    over_plain = {(p.donor, p.receiver): p.gain for p in second.pairs()}
    assert second.pairs("lambda_1", row_key("rtn")) == ()
    for entry in second.pairs("lambda_1", row_key("gptq/images")):
        cells = make_cells((1,), (entry.receiver,))
        gptq = np.mean([top1(c, kind="plain", method="gptq", inputs="images") for c in cells])
        plain = np.mean([top1(c, kind="plain", method="grid") for c in cells])
        assert entry.gain == pytest.approx(over_plain[entry.donor, entry.receiver] - (gptq - plain))


def test_lambda_and_donor_are_chosen_without_a_look_at_test_images() -> None:
    cells = make_cells((1,), TASKS[:3])
    draw = np.random.default_rng(1)

    def other_answers(trial: Trial) -> Trial:
        return replace(trial, right=pack_right(draw.random(400) < 0.5))

    other = [replace(cell, trials=tuple(map(other_answers, cell.trials))) for cell in cells]
    here, there = summarize(cells).settings[0], summarize(other).settings[0]
    for mode in (1, 2):
        assert [p.lambdas for p in here.matrices[mode].pairs] == [p.lambdas for p in there.matrices[mode].pairs]
    for chosen, same in zip(here.selection, there.selection, strict=True):
        if chosen.chosen_on != "hindsight":
            assert (chosen.median_lambda, chosen.at_zero, chosen.at_edge) == (
                same.median_lambda,
                same.at_zero,
                same.at_edge,
            )
    assert [p.gain for p in here.matrices[1].pairs] != [p.gain for p in there.matrices[1].pairs]


def test_label_free_takes_the_least_divergence_and_labelled_the_most_right_answers() -> None:
    cell = make_cell(1, "lower", 0)
    setting = summarize((cell,)).settings[0]
    for mode, score in ((1, lambda t: -t.divergence), (2, lambda t: t.selecting_right)):
        for pair in setting.matrices[mode].pairs:
            plain = next(t for t in cell.trials if (t.kind, t.method) == ("plain", "grid"))
            tried = [plain, *(t for t in cell.trials if (t.kind, t.donor) == ("pair", pair.donor))]
            best = max(score(trial) for trial in tried)
            assert pair.lambdas == (min((t.lam for t in tried if score(t) == best), key=abs),)


def test_a_choice_between_equals_falls_on_the_least_patch() -> None:
    cell = make_cell(1, "lower", 0)
    equal = replace(cell, trials=tuple(replace(t, divergence=0.1, selecting_right=7) for t in cell.trials))
    setting = summarize((equal,)).settings[0]
    for mode in (1, 2):
        assert {pair.lambdas for pair in setting.matrices[mode].pairs} == {(0.0,)}
        assert {pair.gain for pair in setting.matrices[mode].pairs} == {0.0}
    chosen = next(s for s in setting.selection if str(s.key) == "pair/label_free")
    assert (chosen.median_lambda, chosen.at_zero, chosen.at_edge) == (0.0, 1.0, 0.0)
    assert row(setting, "mean/label_free").top1 == row(setting, "plain").top1  # a finding, but nothing to test
    assert not [c for c in setting.comparisons if row_key("mean/label_free") in (c.better, c.worse)]


def test_what_was_not_looked_at_is_not_chosen() -> None:
    cell = make_cell(1, "lower", 0)
    blind = replace(cell, trials=tuple(replace(t, divergence=None, selecting_right=None) for t in cell.trials))
    setting = summarize((blind,)).settings[0]
    assert {matrix.mode for matrix in setting.matrices} == {"lambda_1"}
    assert {s.chosen_on for s in setting.selection} == {"nothing", "hindsight"}
    assert setting.prediction is None


def test_hindsight_is_never_beaten_and_says_its_name() -> None:
    for setting in whole().settings:
        by_key = {str(entry.key): entry for entry in setting.selection}
        assert len(by_key) == 11
        for key, entry in by_key.items():
            if entry.chosen_on == "hindsight":
                assert "hindsight" in entry.label or "test images" in entry.label
            if key.endswith("/hindsight"):
                assert entry.short_of_hindsight is None
            else:
                assert entry.short_of_hindsight is not None
                assert entry.short_of_hindsight >= -1e-9
        median = by_key["donor/median"].gain.value
        assert median < by_key["donor/label_free"].gain.value < by_key["donor/hindsight"].gain.value


def test_comparisons_average_seeds_and_then_test_receivers() -> None:
    cells = make_cells((1,))
    setting = whole().settings[1]
    found = next(
        c for c in setting.comparisons if (c.better, c.worse) == (row_key("mean/lambda_1"), row_key("gptq/images"))
    )
    first = [top1(cell, kind="mean", lam=1.0, inputs=None) for cell in cells]
    second = [top1(cell, kind="plain", method="gptq", inputs="images") for cell in cells]
    by_receiver = np.array([first, second]).reshape(2, len(SEEDS), len(TASKS)).mean(axis=1)
    expected = stats.ttest_rel(*by_receiver)
    assert (found.family, found.receivers) == ("methods", 6)
    assert found.t_p == pytest.approx(expected.pvalue)
    assert found.difference.value == pytest.approx(np.mean(by_receiver[0] - by_receiver[1]))
    assert found.wilcoxon_least == 1 / 32


def test_a_vector_is_tested_against_methods_on_images_and_on_generated_ones_alike() -> None:
    on_mse, clipped = whole().settings
    calibrated = [f"{method}/{inputs}" for method in ("awq", "gptq", "gptaq") for inputs in ("images", "generated")]
    for setting, methods in ((on_mse, calibrated), (clipped, ["mse", *calibrated])):
        for vector in ("pair/lambda_1", "mean/lambda_1", "mix"):
            asked = [str(c.worse) for c in setting.comparisons if c.family == "methods" and c.better == row_key(vector)]
            assert asked == methods
    by_name = {family.name: family.size for family in whole().families}
    assert by_name["methods"] == 3 * (6 + 7)
    cells = make_cells((1,), TASKS[:2])
    brought = [  # as if the generated images of GPTQ had been the donors' second moments
        replace(
            cell,
            trials=tuple(
                replace(t, inputs="moments") if (t.method, t.inputs) == ("gptq", "generated") else t
                for t in cell.trials
            ),
        )
        for cell in cells
    ]
    asked = [(str(c.better), str(c.worse)) for c in summarize(brought).settings[0].comparisons if c.family == "methods"]
    assert ("mean/lambda_1", "gptq/moments") in asked
    assert ("mean/lambda_1", "gptq/generated") not in asked


def test_families_are_adjusted_over_all_settings() -> None:
    summary = whole()
    comparisons = [c for setting in summary.settings for c in setting.comparisons]
    sizes = {family.name: family.size for family in summary.families}
    assert set(sizes) == {*(c.family for c in comparisons), "similarity"}
    one = summarize((make_cell(1, "lower", 0),))  # one receiver: nothing can be tested
    assert (len(one.settings[0].comparisons) > 0, one.families) == (True, ())
    for name in sizes.keys() - {"similarity"}:
        family = [c for c in comparisons if c.family == name]
        assert len(family) == sizes[name]
        assert [c.t_adjusted for c in family] == holm([c.t_p for c in family])
        assert [c.wilcoxon_adjusted for c in family] == holm([c.wilcoxon_p for c in family])
    correlations = [c for s in summary.settings for similarity in s.similarities for c in similarity.correlations]
    assert [c.qap_adjusted for c in correlations] == holm([c.qap_p for c in correlations])
    assert sizes["similarity"] == len(correlations) == 12


def test_every_row_is_tested_against_plain_and_a_vector_against_every_control() -> None:
    for setting in whole().settings:
        asked = {(str(c.better), str(c.worse)) for c in setting.comparisons}
        same = {"mse"} if setting.grid.method == "mse" else set()  # plain by another name
        tried = {str(entry.key) for entry in setting.rows} - {"float", "own_qat", "plain"} - same
        assert {better for better, worse in asked if worse == "plain"} == tried
        assert (("pair/lambda_1", "mse") in asked) == (not same)
        controls = {f"control/{name}" for name in ("random", "shuffle", "task_vector", "gptq_displacement")}
        assert {worse for better, worse in asked if better == "pair/lambda_1"} >= controls
        assert ("mean+gptaq/generated/lambda_1", "gptaq/generated") in asked
    shuffled = next(c for c in whole().settings[1].comparisons if c.worse == row_key("control/shuffle"))
    assert shuffled.t_adjusted is not None
    assert shuffled.t_adjusted < 0.05
    assert shuffled.difference.low > 0


def test_similar_tasks_gain_more_where_they_were_made_to() -> None:
    setting = whole().settings[1]
    by_measure = {entry.measure: entry for entry in setting.similarities}
    assert list(by_measure) == ["prototype_cosine", "task_vector_cosine", "vector_cosine"]
    built_in = by_measure["prototype_cosine"]
    assert len(built_in.points) == 30
    for correlation in built_in.correlations:
        assert correlation.spearman is not None
        assert correlation.spearman.value > 0.5
        assert correlation.qap_p is not None
        assert correlation.qap_p < 0.05
        assert (correlation.permutations, correlation.exact) == (720, True)
    assert [entry.pairs for entry in built_in.bins] == [10, 10, 10]
    assert built_in.bins[0].high <= built_in.bins[1].low
    low, _, high = (entry.gain for entry in built_in.bins)
    assert low < high
    ordered = sorted(built_in.points, key=lambda point: point.similarity)
    assert low == pytest.approx(np.mean([point.gain for point in ordered[:10]]))
    intervals = [entry.interval for entry in built_in.bins]
    assert all(interval is not None and interval.contains(interval.value) for interval in intervals)
    assert built_in.bins[0].win_share == np.mean([point.gain > 0 for point in ordered[:10]])


@pytest.mark.slow
def test_a_bin_counts_the_receivers_that_are_in_it() -> None:
    def related(cell: Cell, near: tuple[str, ...]) -> Cell:
        receiver = cell.request.receiver.name
        cosines = {donor: 0.1 * TASKS.index(donor) + (receiver in near) for donor in cell.relations}
        return replace(cell, relations={d: Relation(prototype_cosine=value) for d, value in cosines.items()})

    cells = [related(cell, ("lower", "upper")) for cell in make_cells((1,), seeds=(0,))]
    highest = summarize(cells).settings[0].similarities[0].bins[2]
    pairs = {r: [p.gain for p in summarize(cells).settings[0].pairs() if p.receiver == r] for r in ("lower", "upper")}
    by_receiver = [float(np.mean(gains)) for gains in pairs.values()]
    expected = stats.ttest_1samp(by_receiver, 0.0).confidence_interval(0.95)
    assert highest.gain == pytest.approx(np.mean(by_receiver))
    assert highest.interval is not None
    assert (highest.interval.low, highest.interval.high) == pytest.approx((expected.low, expected.high))

    cells = [related(cell, (TASKS[0],)) for cell in make_cells((1,), TASKS[:3], seeds=(0,))]
    few = [replace(c, trials=tuple(t for t in c.trials if t.donor is None or t.donor in TASKS[:3])) for c in cells]
    highest = summarize(few).settings[0].similarities[0].bins[2]
    assert (highest.pairs, highest.interval) == (2, None)  # both of one receiver
    assert highest.gain == pytest.approx(np.mean([p.gain for p in summarize(few).settings[0].pairs()[:2]]))


def test_prop_1_against_what_was_measured() -> None:
    setting = whole().settings[1]
    prediction = setting.prediction
    assert prediction is not None
    assert (prediction.mode, len(prediction.points), prediction.left_out) == ("labelled", 30, 0)
    point = prediction.points[0]
    gap = next(h.gap for h in setting.headroom if h.receiver == point.receiver)
    gain = next(p.gain for p in setting.matrices[2].pairs if (p.donor, p.receiver) == (point.donor, point.receiver))
    assert point.measured == pytest.approx(gain / gap)
    errors = np.array([p.predicted - p.measured for p in prediction.points])
    assert prediction.mean_error == pytest.approx(errors.mean())
    assert prediction.mean_absolute_error == pytest.approx(np.abs(errors).mean())
    assert prediction.mean_absolute_error < 0.2  # it was made to be right
    first = whole().settings[0].prediction
    assert first is not None
    assert first.left_out == 5  # of the receiver without headroom
    assert "plates" not in {p.receiver for p in first.points}


def test_without_relations_there_is_no_similarity_and_no_prediction() -> None:
    setting = summarize([replace(make_cell(1, "lower", 0), relations={})]).settings[0]
    assert (setting.similarities, setting.prediction) == ((), None)
    one_seed = replace(make_cell(1, "lower", 0), relations={"upper": Relation(predicted_share=0.5)})
    setting = summarize([one_seed, make_cell(1, "upper", 0)]).settings[0]
    assert setting.prediction is not None
    assert ("upper", "lower") in {(p.donor, p.receiver) for p in setting.prediction.points}


def test_curves_over_lambda() -> None:
    pair, mean = whole().settings[1].curves
    assert (pair.key, mean.key) == ("pair", "mean")
    assert [point.lam for point in pair.points] == sorted(LAMBDAS)
    at_one = next(point for point in pair.points if point.lam == 1.0)
    gain = row(whole().settings[1], "pair/lambda_1").gain
    assert at_one.gain == gain
    assert at_one.win_share == row(whole().settings[1], "pair/lambda_1").wins[0].wins / 90
    assert max(pair.points, key=lambda point: point.gain.value).lam in (0.5, 0.75, 1.0)


def test_break_even_by_hand() -> None:
    assert break_even(46.0, 1.0, 24.0) == 2
    assert break_even(46.1, 1.0, 24.0) == 3
    assert break_even(0.0, 1.0, 24.0) == 1
    assert break_even(46.0, 24.0, 24.0) is None


def test_costs_of_every_way() -> None:
    setting = whole().settings[0]
    by_key = {str(cost.key): cost for cost in setting.costs}
    one, mean = by_key["pair/lambda_1"], by_key["mean/lambda_1"]
    assert (one.donors, one.training_s, one.own_qat_s, one.break_even) == (1, 46.0, 26.0, 2)
    assert (mean.donors, mean.training_s, mean.break_even) == (5, 230.0, 9)
    assert mean.share_of_gap == row(setting, "mean/lambda_1").share_of_gap
    assert by_key["pair/label_free"].receiver_s > len(LAMBDAS) * one.receiver_s
    assert summarize(make_cells((0,), TASKS[:2])).settings[0].costs == ()
    assert list(by_key) == [
        "pair/lambda_1",
        "pair/label_free",
        "donor/label_free",
        "donor_lambda/label_free",
        "mean/lambda_1",
        "mean/label_free",
    ]


def test_what_a_candidate_takes() -> None:
    cell = make_cell(0, "lower", 0)
    seconds = {"patch": 3.0, "quantize": 9.0, "forward": 60.0, "mix": 5.0}
    setting = summarize([replace(cell, seconds=seconds)], make_fine_tunes()).settings[0]
    found = {str(cost.key): cost.receiver_s for cost in setting.costs}
    by_weights = [t for t in cell.trials if t.inputs is None or t.kind == "control"]
    make = 3.0 / sum(t.lam != 0 for t in by_weights) + 9.0 / len(by_weights)
    looked, blind = (sum((t.divergence is None) == blind for t in cell.trials) for blind in (False, True))
    # every trial runs 400 testing images, some 197 selecting ones too, and the float receiver runs those once more
    look = 60.0 * 197 / (looked * 597 + blind * 400 + 197)
    assert found["pair/lambda_1"] == found["mean/lambda_1"] == pytest.approx(make)
    assert found["pair/label_free"] == found["mean/label_free"] == pytest.approx(9 * (make + look))
    assert found["donor/label_free"] == pytest.approx(5 * (make + look))
    assert found["donor_lambda/label_free"] == pytest.approx(13 * (make + look))  # 5 at lambda 1, 8 others of one
    assert found["mix"] == pytest.approx(5 * (make + look) + 5.0 + make)
    mix = next(cost for cost in setting.costs if cost.key == row_key("mix"))
    assert (mix.donors, mix.training_s, mix.own_qat_s) == (5, 230.0, 26.0)
    assert mix.share_of_gap == row(setting, "mix").share_of_gap
    only_fp = [FineTune("fp", MODEL, "lower", None, 0, 20.0)]
    assert summarize(make_cells((0,), TASKS[:2]), only_fp).settings[0].costs == ()


def test_two_models_of_one_timm_name_are_two_settings() -> None:
    cells = make_cells((1,), TASKS[:2], seeds=(0,))
    again = [replace(cell, request=replace(cell.request, name="other base")) for cell in cells]
    first, second = summarize([*cells, *again]).settings
    assert (first.name, first.model, second.name, second.model) == (MODEL, MODEL, "other base", MODEL)
    assert second.rows == first.rows


def test_a_seed_without_its_own_qat_is_left_out_of_the_gap() -> None:
    whole_, second, third = make_cells((1,), ("upper",))
    entry = summarize([whole_, second, without(third, "own_qat")]).settings[0].headroom[0]
    gaps = np.array([top1(c, kind="own_qat") - top1(c, kind="plain", method="grid") for c in (whole_, second)])
    assert entry.gap == pytest.approx(gaps.mean())
    assert entry.gap_error == pytest.approx(gaps.std(ddof=1) / np.sqrt(2))


def test_how_many_images_chose_is_not_known_of_old_cells() -> None:
    cell = make_cell(1, "lower", 0)
    assert summarize([replace(cell, selecting=None)]).settings[0].headroom[0].selecting is None
    assert summarize([replace(cell, selecting=0)]).settings[0].headroom[0].selecting == 0


def test_a_cell_that_is_missing_is_named_and_the_rest_used() -> None:
    gone = ("upper", 2)
    cells = [c for c in make_cells((1,), TASKS[:3]) if (c.request.receiver.name, c.request.seed) != gone]
    setting = summarize(cells).settings[0]
    assert setting.missing == ("upper, seed 2",)
    assert row(setting, "plain").cells == 8
    assert row(setting, "plain").top1.seed_error is not None
    gain = row(setting, "pair/lambda_1").gain
    assert gain is not None
    assert gain.receivers is not None


def test_one_receiver_and_one_seed_have_no_bars_that_cannot_be_had() -> None:
    summary = summarize((make_cell(1, "lower", 0),))
    setting = summary.settings[0]
    found = row(setting, "pair/lambda_1")
    assert (found.top1.seed_error, found.top1.receivers, found.wins[0].share) == (None, None, None)
    assert all(c.t_p is None and c.wilcoxon_p is None for c in setting.comparisons)
    assert all(c.qap_p is None for similarity in setting.similarities for c in similarity.correlations)


@pytest.mark.parametrize(
    ("cells", "error", "message"),
    [
        ((), RecipeError, "no cell to summarize"),
        ((make_cell(0, "lower", 0), make_cell(0, "lower", 0)), IntegrityError, "two cells of lower, seed 0"),
        ((make_cell(0, "lower", 0), make_cell(0, "lower", 1, 200)), IntegrityError, "400 and 200 test images"),
        ((without(make_cell(0, "lower", 0), "plain"),), IntegrityError, "has no plain PTQ"),
        ((without(make_cell(0, "lower", 0), "float"),), IntegrityError, "has no float receiver"),
    ],
)
def test_cells_that_do_not_go_together_are_refused(
    cells: tuple[Cell, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        summarize(cells)


@pytest.mark.slow
def test_a_summary_is_plain_json_and_the_same_every_time() -> None:
    text = json.dumps(plain_values(whole()), allow_nan=False)
    adapter = TypeAdapter(StudySummary)
    assert adapter.validate_json(adapter.dump_json(whole())) == whole()
    assert len(text) < 2_000_000
    assert summarize(make_cells(), make_fine_tunes()) == whole()


def paper_cell(receiver: str, donors: list[str], shift: float) -> Cell:
    """A cell in the paper's setting whose donors all gain `shift` points over plain PTQ's 20 %."""
    request = replace(
        make_cell(0, "lower", 0).request,
        model=VIT_B,
        model_args={},
        grid=W3,
        receiver=TaskData(receiver, "x"),
        donors=tuple(DonorFiles(donor, "v", "f") for donor in donors),
    )

    def trial(percent: float, **values: object) -> Trial:
        right = np.arange(200) < 2 * percent
        return Trial(right=pack_right(right), **values)  # type: ignore[arg-type]

    trials = (
        trial(80, kind="float", method="float", lam=0.0),
        trial(65, kind="own_qat", method="rtn", lam=0.0),
        trial(20, kind="plain", method="rtn", lam=0.0),
        *(trial(20 + shift, kind="pair", method="rtn", lam=1.0, donor=donor) for donor in donors),
        trial(79, kind="plain", method="gptq", lam=0.0, inputs="images"),
    )
    return Cell(request, 200, trials)


def published(cells: list[Cell], what: str) -> PublishedFigure:
    return next(entry for entry in summarize(cells).published if entry.what == what)


@pytest.mark.slow
def test_the_papers_figures_stand_beside_the_same_setting() -> None:
    others = {task: [donor for donor in PAPER_TASKS if donor != task] for task in PAPER_TASKS}
    cells = [paper_cell(task, donors, -5.0 if task == "Cars" else 10.0) for task, donors in others.items()]
    gap = published(cells, "gap: own QAT over round to nearest")
    assert (gap.published, gap.study) == (45.26, pytest.approx(45.0))
    assert (gap.low, gap.high) == (None, None)  # all receivers have the same
    assert gap.reason.startswith("same setting")
    assert "trained here" not in gap.reason
    gain = published(cells, "mean gain of a pair at lambda 1")
    assert gain.low is not None
    assert gain.low < 205 / 22 < (gain.high or 0)
    wins = published(cells, "pairs that gain at lambda 1")
    assert (wins.published, wins.study, wins.unit) == (76.6, pytest.approx(100 * 21 / 22), "%")
    assert published(cells, "median gain of a pair at lambda 1").study == pytest.approx(10.0)
    assert published(cells, "GPTQ over round to nearest").study == pytest.approx(59.0)
    assert published(cells, "round to nearest, MNIST").study == pytest.approx(20.0)
    fewer = [*cells[1:], paper_cell("Cars", others["Cars"][1:], -5.0)]
    assert "published over 462 pairs; the study has 461" in published(fewer, "pairs that gain at lambda 1").reason


def test_fine_tunes_that_were_trained_here_are_said_to_be() -> None:
    cell = paper_cell("mnist", ["cars"], 10.0)
    for kind, said in (("fp", True), ("qat", True), ("base", False)):
        trained = [FineTune(kind, VIT_B, "mnist", None, 0, 9.0)]  # type: ignore[arg-type]
        found = next(p for p in summarize([cell], trained).published if p.what == "round to nearest, MNIST")
        assert found.study == pytest.approx(20.0)
        assert ("trained here" in found.reason) == said
    other = summarize([cell], [FineTune("fp", MODEL, "mnist", None, 0, 9.0)]).published
    assert not any("trained here" in entry.reason for entry in other)


def test_where_published_figures_stand() -> None:
    sources = {(entry.what, entry.setting): entry.source for entry in summarize([make_cell(0, "lower", 0)]).published}
    vit = f"{VIT_B}, {W3}, test split"
    note, log, journal = "authors' research note", "authors' quant-steering log", "authors' journal"
    assert sources["gain from STL10 at lambda 1, CIFAR10", vit] == note
    assert sources["gain from CIFAR10 at lambda 1, STL10", vit] == note
    for task in ("CIFAR10", "Flowers102", "Cars", "GTSRB", "EMNIST"):
        assert sources[f"float top-1, {task}", vit] == log
    for what in ("float top-1, EuroSAT", "float top-1, ImageNet", "own QAT, CIFAR10", "round to nearest, GTSRB"):
        assert sources[what, vit] == journal


def test_other_settings_are_not_comparable_and_say_why() -> None:
    cell = paper_cell("mnist", ["cars"], 10.0)
    assert published([cell], "round to nearest, MNIST").study == pytest.approx(20.0)
    alone = published([cell], "gap: own QAT over round to nearest")
    assert alone.study is None
    assert alone.reason == "not comparable: published over 22 tasks; the study has 1 of them as receivers"
    assert "GTSRB is not among" in published([cell], "round to nearest, GTSRB").reason
    assert "not comparable: the study has no 3 bits per channel, rtn" in _reason(cell, grid=Scheme(3, "tensor"))
    assert "that skips only the head" in _reason(cell, skip=("head", "fc1"))
    assert "for this model without model_args" in _reason(cell, model_args={"img_size": 32})
    assert "the study has no vit_base_patch16_224.orig_in21k" in _reason(cell, model="vit_tiny")
    entries = summarize([cell]).published
    assert any("validation split" in entry.reason for entry in entries)
    assert any("does not compute it" in entry.reason for entry in entries)
    tried = published([paper_cell("CIFAR10", ["cars"], 1.0)], "gain from STL10 at lambda 1, CIFAR10")
    assert tried.reason == "not comparable: the study did not try it"


def _reason(cell: Cell, **request: object) -> str:
    changed = replace(cell, request=replace(cell.request, **request))  # type: ignore[arg-type]
    return published([changed], "round to nearest, MNIST").reason
