"""What outlines and labels say of each tile: the class that a group names, background, or nothing."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from tests.cohort import PATCH_PX, textured_slide
from wsi_ips.annotations import Area
from wsi_ips.errors import AnnotationClassError
from wsi_ips.labels import Target, Task
from wsi_ips.training.tile_truth import Kind, TileTruth, is_unknown, kinds_of, tile_truth

LABEL = Task("label", ("normal", "tumor"))
SUBTYPE = Task("label", ("luad", "lusc"))  # no class for tissue that shows neither
GRADE = Task("label", ("benign", "g1", "g2"))
SIGNS = Task("signs", ("necrosis", "mitosis"), "multi")
INDEX = textured_slide("s", label=0, seed=0).index  # 7 x 4 tiles, each as wide as a patch
TUMOUR, NOTHING = Kind(0, 1), Kind(0, None)
NAN = np.nan


def area(group: str, left: float, top: float, right: float, bottom: float) -> Area:
    """A rectangle, in tiles."""
    return Area(group, shapely.box(*(side * PATCH_PX for side in (left, top, right, bottom))))


def truth_of(
    areas: list[Area] | None, *targets: Target, tasks: tuple[Task, ...] = (LABEL,), complete: bool = True
) -> TileTruth | None:
    return tile_truth(INDEX, targets, tasks, areas, complete=complete)


def row(x: int, y: int) -> int:
    return y * 7 + x


def test_a_border_tile_counts_by_its_share_and_the_outside_is_background():
    truth = truth_of([area("_0", 1, 1, 2.25, 2)], 1)
    assert truth.tiles.tolist() == [row(1, 1), row(2, 1)]
    expected = [[0, 1], [0.75, 0.25], [1, 0], [1, 0]]
    np.testing.assert_allclose(truth.of(np.array([row(1, 1), row(2, 1), row(3, 1), 0])), expected, atol=1e-6)
    assert (truth.candidates(TUMOUR), truth.candidates(NOTHING)) == (2, 26)


def test_outside_partial_outlines_nothing_is_known():
    truth = truth_of([area("tumor", 1, 1, 2.5, 2)], 1, complete=False)
    np.testing.assert_allclose(truth.of(np.array([row(1, 1), row(2, 1), 0])), [[0, 1], [0.5, 0.5], [NAN, NAN]])
    assert (truth.candidates(TUMOUR), truth.candidates(NOTHING)) == (2, 0)


def test_an_area_of_the_background_class_is_known_background_also_on_a_partial_slide():
    areas = [area("tumor", 0, 0, 2, 1), area("normal", 4, 0, 6, 2)]
    truth = truth_of(areas, 1, complete=False)
    assert truth.candidates(NOTHING) == 4
    assert set(truth.draw(NOTHING, 9, np.random.default_rng(0)).tolist()) == {row(x, y) for x in (4, 5) for y in (0, 1)}
    np.testing.assert_allclose(truth.of(np.array([row(4, 0), row(6, 0)])), [[1, 0], [NAN, NAN]])


def test_a_hole_is_cut_out_of_the_lesion():
    truth = truth_of([area("tumor", 0, 0, 3, 1), area("exclusion", 1, 0, 2, 1)], 1)
    np.testing.assert_allclose(truth.of(np.arange(3)), [[0, 1], [1, 0], [0, 1]])


def test_a_slide_without_a_finding_is_background_throughout_and_others_without_outlines_are_unknown():
    truth = truth_of(None, 0)
    assert truth.candidates(NOTHING) == truth.count == 28
    assert truth.of(np.array([3])).tolist() == [[1, 0]]
    assert truth_of(None, 1) is None
    assert truth_of(None, None) is None


def test_outlines_outside_all_tiles_leave_the_slide_weak():
    assert truth_of([area("tumor", 40, 40, 50, 50)], 1) is None


def test_outlines_that_contradict_the_label_teach_nothing_inside():
    truth = truth_of([area("tumor", 0, 0, 2, 1)], 0)
    np.testing.assert_allclose(truth.of(np.array([0, 2])), [[NAN, NAN], [1, 0]])
    assert truth.candidates(TUMOUR) == 0


def test_a_group_that_names_a_class_means_it_and_tumour_means_the_class_of_the_slide():
    named = truth_of([area("g1", 0, 0, 1, 1), area("g2", 1, 0, 1.5, 1)], 2, tasks=(GRADE,))
    np.testing.assert_allclose(named.of(np.arange(3)), [[0, 1, 0], [0.5, 0, 0.5], [1, 0, 0]])
    general = truth_of([area("tumour", 0, 0, 1, 1)], 1, tasks=(GRADE,))
    np.testing.assert_allclose(general.of(np.arange(2)), [[0, 1, 0], [1, 0, 0]])


def test_subtypes_have_no_background_so_tissue_outside_is_unknown():
    truth = truth_of([area("tumor", 0, 0, 1.75, 1), area("tumor", 3, 0, 3.25, 1)], 0, tasks=(SUBTYPE,))
    np.testing.assert_allclose(truth.of(np.arange(3)), [[1, 0], [1, 0], [NAN, NAN]])
    assert np.isnan(truth.of(np.array([3]))).all()  # a quarter of a tile is too little where the rest has no class
    assert kinds_of((SUBTYPE,)) == [Kind(0, 0), Kind(0, 1)]


def test_outlines_speak_only_for_the_tasks_whose_classes_they_name():
    truth = truth_of([area("Necrosis".lower(), 0, 0, 1, 1)], 1, (True, False), tasks=(LABEL, SIGNS))
    np.testing.assert_allclose(truth.of(np.arange(2)), [[NAN, NAN, 1, NAN], [NAN, NAN, 0, NAN]])
    assert truth.candidates(Kind(1, 0)) == 1
    assert truth_of([area("tumor", 0, 0, 1, 1)], 1, None, tasks=(LABEL, SIGNS)).candidates(Kind(1, None)) == 0


def test_classes_that_fit_neither_the_recipe_nor_tumour_are_named():
    follicle = area("lymph follicle", 0, 0, 1, 1)
    assert is_unknown(follicle, (LABEL,))
    assert truth_of([follicle], 1) is None  # the slide stays weak
    with pytest.raises(AnnotationClassError, match=r"slide s: .* may be any of g1, g2"):
        truth_of([area("tumor", 0, 0, 1, 1)], None, tasks=(GRADE,))


def test_inside_outlines_that_may_be_tumour_nothing_is_known():
    areas = [area("tumor: positive", 0, 0, 1, 1), area("dcis", 1, 0, 2, 1), area("stroma", 3, 0, 4, 1)]
    truth = truth_of(areas, 1)
    np.testing.assert_allclose(truth.of(np.arange(4)), [[0, 1], [NAN, NAN], [1, 0], [1, 0]])
    healthy = truth_of(areas[1:], 0)
    np.testing.assert_allclose(healthy.of(np.arange(3)), [[1, 0], [NAN, NAN], [1, 0]])


def test_tiles_with_more_of_a_lesion_are_drawn_more_often_and_each_once():
    truth = truth_of([area("tumor", 0, 0, 2.1, 1)], 1)
    drawn = [truth.draw(TUMOUR, 1, np.random.default_rng(seed))[0] for seed in range(400)]
    counts = np.bincount(drawn, minlength=3)
    assert counts[:2].min() > 4 * counts[2] > 0
    assert sorted(truth.draw(TUMOUR, 9, np.random.default_rng(0)).tolist()) == [0, 1, 2]
    assert len(set(truth.draw(NOTHING, 99, np.random.default_rng(0)).tolist())) == 25


def test_partial_outlines_of_one_task_leave_the_other_unknown():
    sites = Task("site", ("none", "cortex"))
    areas = [area("tumor", 0, 0, 1, 1), area("cortex", 3, 0, 4, 1)]
    truth = truth_of(areas, 1, 1, tasks=(LABEL, sites), complete=False)
    np.testing.assert_allclose(truth.of(np.array([0, 3, 5])), [[0, 1, NAN, NAN], [NAN, NAN, 0, 1], [NAN] * 4])
    negative = truth_of(areas[:1], 1, 0, tasks=(LABEL, sites), complete=False)
    np.testing.assert_allclose(negative.of(np.array([0, 5])), [[0, 1, 1, 0], [NAN, NAN, 1, 0]])


def test_the_truth_moves_with_the_grid():
    truth = truth_of([area("tumor", 1, 1, 2, 2)], 1)
    moved = truth.at(INDEX.moved((PATCH_PX // 4, 0)))  # a quarter of a tile to the right
    np.testing.assert_allclose(moved.of(np.array([row(0, 1), row(1, 1), row(2, 1)]))[:, 1], [0.25, 0.75, 0])
    assert moved.at(INDEX).of(np.arange(28)).tolist() == truth.of(np.arange(28)).tolist()
