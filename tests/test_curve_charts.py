"""Charts of precision and recall, checked as text; and which curves a report shows."""

from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from test_charts import HOSTILE
from test_curves import choose, many_classes, two_classes

from tltools.artifacts import read_artifact
from tltools.curves import class_curve, confidence_curve
from tltools.metrics import confusion_matrix, score
from tltools.report.blocks import Charts, Section, Text
from tltools.report.curve_charts import MAX_PANELS, Panel, precision_recall_chart
from tltools.report.models import training_section
from tltools.report.svg import LETTER
from tltools.run_folder import CARD, RunPredictions, write_predictions


def text_of(chart) -> str:
    return " ".join(ElementTree.fromstring(chart.svg).itertext())  # noqa: S314


def test_the_point_is_where_the_threshold_lies_on_the_curve():
    probs, targets = two_classes()
    found = choose(probs, targets, 0.9)
    chart = precision_recall_chart([Panel(class_curve(probs, targets, 1), "wanted", found.value)])
    assert f"threshold {found.value!r}" in text_of(chart)
    assert (
        f"At the threshold {found.value!r}: precision {100 * found.precision.value:.1f}%, "
        f"recall {100 * found.recall.value:.1f}%."
    ) in chart.description


def test_a_threshold_that_no_image_reaches_has_no_point():
    probs, targets = two_classes()
    panel = Panel(class_curve(probs, targets, 1), "wanted", 1.0)
    chart = precision_recall_chart([panel])
    assert "threshold 1.0" not in text_of(chart).replace(chart.description, "")
    assert "No image reaches the threshold 1.0." in chart.description


def test_the_name_of_an_axis_is_apart_from_the_title_of_the_next_curve():
    probs, targets = many_classes()
    panels = [Panel(confidence_curve(probs, targets), None)]
    panels += [Panel(class_curve(probs, targets, index), f"c{index}") for index in range(3)]
    heights = {
        one.text: float(one.attrib["y"])
        for one in ElementTree.fromstring(precision_recall_chart(panels).svg).iter()  # noqa: S314
        if one.tag.endswith("text")
    }
    assert heights["c1"] - heights["images that keep a label"] > 2 * LETTER


def test_names_of_classes_are_drawn_as_they_are():
    probs, targets = many_classes()
    curves = [confidence_curve(probs, targets), *(class_curve(probs, targets, i) for i in range(5))]
    for start in range(0, len(HOSTILE), 5):
        names = [None, *HOSTILE[start : start + 5]]
        panels = [Panel(*pair) for pair in zip(curves, names, strict=False)]
        chart = precision_recall_chart(panels)
        assert "all classes" in text_of(chart)
        assert "<script>" not in chart.svg


def test_a_curve_of_many_images_stays_small():
    probs, targets = two_classes(20_000)
    chart = precision_recall_chart([Panel(class_curve(probs, targets, 1), "wanted")])
    assert len(chart.svg) < 60_000


def test_no_panel_or_too_many_are_refused():
    probs, targets = two_classes()
    panel = Panel(class_curve(probs, targets, 1), "wanted")
    for panels in ([], [panel] * (MAX_PANELS + 1)):
        with pytest.raises(ValueError, match="not between 1 and"):
            precision_recall_chart(panels)


# ------------------------------------------------------------------------------- in the report


@pytest.fixture
def section(make_card, tmp_path):
    """Return a function that describes a run with these predictions."""

    def describe(probs, targets, classes, threshold=None) -> tuple[list, list[str]]:
        preds = probs.argmax(axis=1)
        card = make_card(
            classes=classes, export=None, metrics={"val": score(preds, targets)},
            threshold=threshold,
        )  # fmt: skip
        (tmp_path / CARD).write_text(card.to_json())
        names = tuple(map(str, range(len(targets))))
        write_predictions(tmp_path, classes, {"val": RunPredictions(names, targets, probs)})
        run = next(
            block
            for block in training_section([read_artifact(tmp_path)]).blocks
            if isinstance(block, Section) and block.title.startswith("Run ")
        )
        (charts,) = (block.charts for block in run.blocks if isinstance(block, Charts))
        lines = [line for block in run.blocks if isinstance(block, Text) for line in block.lines]
        return [one for one in charts if one.title.startswith("Precision")], lines

    return describe


def test_two_classes_have_the_curve_of_the_second_or_of_the_threshold(section):
    probs, targets = two_classes()
    (chart,), lines = section(probs, targets, ("other", "wanted"))
    assert chart.description.startswith("wanted: average precision")
    assert not any("threshold" in line for line in lines)
    found = choose(probs, targets, 0.9, class_name="other")
    (chart,), lines = section(probs, targets, ("other", "wanted"), found)
    assert chart.description.startswith("other: average precision")
    assert any(line.startswith(f"The threshold for other is {found.value!r}. ") for line in lines)


def test_many_classes_have_that_of_confidence_and_those_with_the_most_mistakes(section):
    probs, targets = many_classes(2000, 9)
    names = tuple("abcdefghi")
    found = choose(probs, targets, 0.9, classes=names, class_name=None)
    (chart,), lines = section(probs, targets, names, found)
    assert chart.description.startswith("All classes: accuracy")
    assert f"At the threshold {found.value!r}: accuracy" in chart.description
    assert "Of 9 classes, those with the most mistakes." in chart.description
    assert chart.description.count("average precision") == MAX_PANELS - 1
    matrix = confusion_matrix(probs.argmax(axis=1), targets, num_classes=9)
    best = names[int((matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()).argmin())]
    assert f"{best}: average precision" not in chart.description
    of_best = choose(probs, targets, 0.9, classes=names, class_name=best)
    (chart,), _ = section(probs, targets, names, of_best)
    assert f"{best}: average precision" in chart.description
    assert any(f"minimum confidence is {found.value!r}: labels below" in line for line in lines)


def test_images_of_one_class_have_no_curve(section):
    probs, targets = two_classes()
    charts, _ = section(probs, np.ones_like(targets), ("other", "wanted"))
    assert charts == []


def test_a_threshold_chosen_on_other_images_is_marked_where_it_lies_here(section):
    probs, targets = two_classes()
    elsewhere = msgspec.structs.replace(choose(probs, targets, 0.9), value=0.5)
    (chart,), _ = section(probs, targets, ("other", "wanted"), elsewhere)
    above = probs[:, 1] >= 0.5
    assert f"precision {100 * targets[above].mean():.1f}%" in chart.description
