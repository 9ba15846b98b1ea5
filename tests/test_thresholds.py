"""A threshold from its choice on validation images to the labels of a job."""

import json
import re
import shutil

import msgspec
import numpy as np
import pandas as pd
import pytest
from conftest import CLASSES, run_tltools, set_card

from tltools.api import load_model
from tltools.artifacts import read_artifact
from tltools.card import card_from_json
from tltools.classify import Job, Shard, merge_shards, run_job
from tltools.data.dataset import load_dataset
from tltools.decisions import ClassThreshold, decide
from tltools.errors import ArtifactError, ConfigError, DataError
from tltools.metrics import score
from tltools.run_folder import CARD, RunPredictions, load_card, write_predictions, write_split
from tltools.runs import list_runs
from tltools.runtime import read_card
from tltools.thresholds import Target, check_unseen, choose, keep_in_card, unseen_split

NUM = 120


def labels_of(path):
    return pd.read_csv(path)["label"].tolist()


def green_probs(path):
    frame = pd.read_csv(path)
    return frame[[f"prob_{name}" for name in CLASSES]].to_numpy()


@pytest.fixture
def middle(onnx_path, images, tmp_path):
    """A threshold that half of the green images reach."""
    run_job(Job(onnx_path, [images], tmp_path / "plain.csv", device="cpu"))
    frame = pd.read_csv(tmp_path / "plain.csv")
    value = float(np.median(frame.loc[frame["label"] == "green", "prob_green"]).round(7))
    return ClassThreshold("green", value)


@pytest.fixture
def place(make_card, make_onnx, images, tmp_path):
    """A run without a checkpoint, which choosing needs none of, and its export beside it."""
    dataset = load_dataset(images, val_fraction=0.4)
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=NUM)
    logits = rng.normal(size=(NUM, 3)) + 2 * np.eye(3)[targets]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    card = make_card(run="tiny", export=None, metrics={"val": score(probs.argmax(axis=1), targets)})
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    (run / CARD).write_text(card.to_json())
    names = tuple(f"{number}.png" for number in range(NUM))
    write_predictions(run, card.classes, {"val": RunPredictions(names, targets, probs)})
    write_split(run, dataset.frame)
    (tmp_path / "exports" / "tiny").mkdir(parents=True)
    export = tmp_path / "exports" / "tiny" / "tiny.fp32.onnx"
    make_onnx(export, make_card(metrics=card.metrics).to_json())
    return tmp_path


def evaluate(place, *args):
    return run_tltools("evaluate", *args, cwd=place)


# ------------------------------------------------------------------------------------ choosing


def test_a_threshold_is_written_into_the_runs_card_and_nothing_else_changes(place):
    run = place / "runs" / "tiny"
    before = load_card(run)
    ran = evaluate(place, "runs/tiny", "--target-precision", 0.9, "--class", "green", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    found = load_card(run)
    assert msgspec.to_builtins(found.threshold) == told["threshold"]
    assert msgspec.structs.replace(found, threshold=None) == before
    assert found.threshold.images == "validation images of colors"
    assert found.threshold.precision.value >= 0.9
    assert "Written: runs/tiny/card.json" in ran.err
    assert {path.name for path in run.iterdir()} == {CARD, "predictions.csv", "split.csv"}
    (listed,) = list_runs(place / "runs")
    assert (len(listed.exports), listed.older_exports) == (1, ())
    assert "threshold" in run_tltools("inspect", "runs/tiny", cwd=place).out


def test_many_classes_get_a_smallest_confidence(place):
    ran = evaluate(place, "runs/tiny", "--target-precision", 0.9)
    shown = " ".join(run_tltools("inspect", "runs/tiny", cwd=place).out.split())
    assert re.search(r" minimum confidence [\d.e-]+: precision ", shown)
    assert ran.code == 0, ran.err
    assert "Minimum confidence for a precision of at least 90%" in ran.out
    assert load_card(place / "runs" / "tiny").threshold.class_name is None


def test_a_smallest_confidence_that_all_images_reach_is_not_proposed(place):
    ran = evaluate(place, "runs/tiny", "--target-precision", 0.01)
    assert (ran.code, "Next: " in ran.err) == (0, False), ran
    assert "Every image keeps its label: the precision is reached without a minimum" in ran.err
    assert "labeled images: tltools evaluate runs/tiny DATA --target-precision 0.01" in ran.err


def test_the_hint_after_a_choice_names_the_export_and_run_that_there_are(place):
    (place / "runs" / "tiny").rename(place / "runs" / "best")
    run = evaluate(place, "runs/best", "--target-precision", 0.9)
    told = " ".join(run.err.split())
    assert (
        "Next: tltools export runs/best, then tltools classify FOLDER --model "
        "exports/tiny/tiny.fp32.onnx --threshold auto"
    ) in told
    args = ("images", "--device", "cpu", "--target-precision", 0.9)
    export = evaluate(place, "exports/tiny/tiny.fp32.onnx", *args)
    assert "threshold of their run, tiny: tltools evaluate RUN with" in " ".join(export.err.split())
    (place / "runs" / "best").rename(place / "runs" / "tiny")
    export = evaluate(place, "exports/tiny/tiny.fp32.onnx", *args, "--exclude-train")
    assert "tltools evaluate runs/tiny with the same" in " ".join(export.err.split())


def test_the_hint_after_a_choice_can_be_typed(place):
    run = evaluate(place, "runs/tiny", "--target-precision", 0.9)
    told = "confirm it on other images: tltools evaluate runs/tiny DATA --threshold auto"
    assert told in run.err
    export = evaluate(
        place, "exports/tiny/tiny.fp32.onnx", "images", "--device", "cpu", "--exclude-train",
        "--target-precision", 0.9,
    )  # fmt: skip
    value = re.search(r"threshold +([\d.]+)", export.out)[1]
    told = f"evaluate exports/tiny/tiny.fp32.onnx DATA --min-confidence {value}"
    assert told in export.err


def test_the_remedy_for_a_missing_threshold_is_of_the_class_that_was_asked_for(place):
    words = ("classify", "images", "--model", "exports/tiny/tiny.fp32.onnx", "--output", "p.csv")
    ran = run_tltools(*words, "--threshold", "auto", "--class", "green", cwd=place)
    right = "tltools evaluate runs/tiny --class green --target-precision 0.95"
    assert (ran.code, right in ran.err) == (2, True)


def test_scoring_on_the_images_that_chose_the_threshold_is_told(place):
    evaluate(place, "runs/tiny", "--target-recall", 0.5, "--class", "green")
    card = load_card(place / "runs" / "tiny")
    threshold = msgspec.structs.replace(card.threshold, images="images of images")
    export = place / "exports" / "tiny" / "tiny.fp32.onnx"
    set_card(export, msgspec.structs.replace(read_artifact(export).card, threshold=threshold))
    words = ("exports/tiny/tiny.fp32.onnx", "--device", "cpu")
    told = "the threshold was chosen on the images of images, so it looks better on these"
    assert told in evaluate(place, *words, "images", "--threshold", "auto").err
    value = ("--threshold", repr(threshold.value), "--class", "green")
    assert told in evaluate(place, *words, "images", *value).err
    assert "was chosen on" not in evaluate(place, *words, "images").err
    shutil.copytree(place / "images", place / "other")
    assert "was chosen on" not in evaluate(place, *words, "other", *value).err


@pytest.mark.parametrize(
    ("figure", "class_name"), [("recall", "green"), ("precision", "green"), ("precision", None)]
)
def test_a_threshold_that_misses_its_target_on_other_images_is_told(place, figure, class_name):
    """Among these a red image is labeled green, and a green one red."""
    shutil.copytree(place / "images", place / "mixed")
    red, green = (sorted((place / "mixed" / name).iterdir())[0] for name in ("red", "green"))
    red.rename(green.with_name(f"r{red.name}"))
    green.rename(red.with_name(f"g{green.name}"))
    words = (f"--target-{figure}", 0.5, *(("--class", class_name) if class_name else ()))
    assert evaluate(place, "runs/tiny", *words).code == 0
    threshold = load_card(place / "runs" / "tiny").threshold
    export = place / "exports" / "tiny" / "tiny.fp32.onnx"
    told = f"the threshold was chosen for a {figure} of at least "
    for at_least, is_missed in ((0.01, False), (1.0, True)):
        changed = msgspec.structs.replace(threshold, at_least=at_least)
        set_card(export, msgspec.structs.replace(read_artifact(export).card, threshold=changed))
        ran = evaluate(
            place, "exports/tiny/tiny.fp32.onnx", "mixed", "--device", "cpu", "--threshold", "auto"
        )
        assert ran.code == 0, ran.err
        assert (told + "100%, but reaches " in " ".join(ran.err.split())) == is_missed
        assert (told in " ".join(ran.err.split())) == is_missed


def test_a_threshold_that_replaces_another_says_which(place):
    first = evaluate(place, "runs/tiny", "--target-precision", 0.9)
    assert "replaces" not in first.err
    again = evaluate(place, "runs/tiny", "--target-precision", 0.9)
    assert "replaces" not in again.err  # it is the same
    other = evaluate(place, "runs/tiny", "--target-precision", 0.8, "--class", "green")
    assert "It replaces the minimum confidence 0." in other.err
    assert "on 120 validation images of colors" in other.err


def test_a_recall_without_a_class_is_refused_before_images_are_scored(place):
    words = ("exports/tiny/tiny.fp32.onnx", "images", "--device", "cpu", "--exclude-train")
    ran = evaluate(place, *words, "--target-recall", 0.9)
    assert (ran.code, "Evaluating" in ran.err) == (2, False)
    assert "--target-recall applies to a single class" in ran.err


def test_tables_of_an_evaluation_say_which_images_they_count(place):
    words = ("exports/tiny/tiny.fp32.onnx", "images", "--device", "cpu")
    plain = evaluate(place, *words)
    assert "reach the confidence" not in plain.out
    assert "macro), all images" not in plain.out
    ran = evaluate(place, *words, "--min-confidence", 0.4)
    text = " ".join(ran.out.split())
    assert "By class, of the" in text
    assert text.count("of 30 images that reach the confidence") == 2
    for row in (
        "their top-1 accuracy",
        "ROC AUC (one-vs-rest, macro), all images",
        "calibration error, all images",
    ):
        assert row in text


def test_an_exports_threshold_is_chosen_by_its_own_outputs_and_printed_only(place):
    before = (place / "exports/tiny/tiny.fp32.onnx").read_bytes()
    for path in (place / "images").rglob("*.png"):  # more of the validation images
        assert path.exists()
    words = ("exports/tiny/tiny.fp32.onnx", "--device", "cpu", "--target-precision", 0.9)
    ran = evaluate(place, *words, "--class", "green")
    assert ran.code == 1  # twelve validation images
    assert "are of class green, too few to choose" in ran.err
    ran = evaluate(place, *words)
    assert ran.code == 0, ran.err
    assert "chosen on 12 validation images of colors" in " ".join(ran.out.split())
    # All twelve are right, whatever their confidence.
    assert "Every image keeps its label" in ran.err
    assert "tltools evaluate runs/tiny with the same options" in ran.err
    assert (place / "exports/tiny/tiny.fp32.onnx").read_bytes() == before
    shutil.rmtree(place / "runs")
    ran = evaluate(place, *words)
    assert ran.code == 1
    assert "the run of exports/tiny/tiny.fp32.onnx is not found" in ran.err


def test_images_that_the_model_was_trained_on_are_refused(place):
    words = ("exports/tiny/tiny.fp32.onnx", "images", "--device", "cpu", "--target-precision", 0.9)
    ran = evaluate(place, *words)
    assert ran.code == 1
    assert "the model was trained on 18 of these 30 images, so no threshold is chosen" in ran.err
    assert "--exclude-train" in ran.err
    ran = evaluate(place, *words, "--exclude-train", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert (told["threshold"]["num_images"], told["written"]) == (12, None)


def test_test_images_and_training_images_are_never_chosen_on(place, card, images):
    run, dataset = place / "runs" / "tiny", load_dataset(images, val_fraction=0.4)
    assert unseen_split(dataset, None) == unseen_split(dataset, "val") == "val"
    assert unseen_split(load_dataset(images, purpose="evaluate"), None) == "all"
    for split in ("test", "train", "all"):
        with pytest.raises(ConfigError, match=f"is not chosen on `split={split}`"):
            unseen_split(dataset, split)
    assert check_unseen(run, card, dataset, "val")
    dataset.frame.loc[dataset.frame["split"] == "val", "split"] = "test"
    with pytest.raises(DataError, match="has no validation images"):
        unseen_split(dataset, None)
    write_split(run, dataset.frame)
    rest = load_dataset(images, val_fraction=0.4)
    with pytest.raises(DataError, match=r"the test split of .*tiny has 12 of these 12 images"):
        check_unseen(run, card, rest, "val")


def test_predictions_of_other_weights_are_refused(place):
    run = place / "runs" / "tiny"
    path = run / "predictions.csv"
    frame = pd.read_csv(path)
    frame.iloc[:-1].to_csv(path, index=False)
    ran = evaluate(place, "runs/tiny", "--target-precision", 0.9)
    assert ran.code == 1
    assert "predictions.csv does not match the accuracy in card.json" in ran.err
    frame.loc[0, "prob_red"] = float("nan")
    frame.to_csv(path, index=False, na_rep="nan")
    assert "does not match" in evaluate(place, "runs/tiny", "--target-precision", 0.9).err
    path.unlink()
    ran = evaluate(place, "runs/tiny", "--target-precision", 0.9)
    assert "has no predictions for its validation images" in ran.err


def test_a_card_that_changed_in_the_meantime_keeps_what_it_has(place):
    run = place / "runs" / "tiny"
    card = load_card(run)
    found = choose(
        card,
        Target(figure="precision", at_least=0.5),
        RunPredictions(("a",) * 20, np.zeros(20, np.int64), np.tile([0.8, 0.1, 0.1], (20, 1))),
        images="images of a.csv",
    )
    trained_again = msgspec.structs.replace(card, created="2026-03-03T00:00:00Z").to_json()
    (run / CARD).write_text(trained_again)
    with pytest.raises(ArtifactError, match="has changed in the meantime"):
        keep_in_card(run, card, found)
    assert (run / CARD).read_text() == trained_again


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "missing argument DATA"),
        (("--threshold", "auto"), "missing argument DATA"),
        (("--target-precision", 0.9, "--target-recall", 0.9), "not both"),
        (("--target-precision", 0), "must be above 0"),
        (("--target-recall", 0.9), "--target-recall applies to a single class"),
        (("--target-precision", 0.9, "--threshold", 0.5), "--threshold is for scoring"),
        (("--target-precision", 0.9, "--report", "a.html"), "--report is for scoring"),
        (("--target-precision", 0.9, "--split", "val"), "--split is about DATA"),
        (("--target-precision", 0.9, "--class", "gren"), "did you mean green"),
        (("images", "--threshold", "high"), "neither auto nor a number"),
        (("images", "--threshold", "nan"), "neither auto nor a number"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_options_without_a_meaning_are_refused(place, args, message):
    ran = evaluate(place, "runs/tiny", *args)
    assert ran.code == 2
    assert message in ran.err
    assert load_card(place / "runs" / "tiny").threshold is None


# ------------------------------------------------------------------------------------ applying


def test_classify_applies_a_threshold_and_its_confidence_is_that_of_the_label(
    middle, onnx_path, images, tmp_path
):
    run_job(Job(onnx_path, [images], tmp_path / "out.csv", device="cpu", threshold=middle))
    probs = green_probs(tmp_path / "out.csv")
    decided = decide(probs, CLASSES, threshold=middle)
    labels = labels_of(tmp_path / "out.csv")
    assert labels.count("green") == 5
    assert labels == [CLASSES[pred] for pred in decided.preds]
    confidence = pd.read_csv(tmp_path / "out.csv")["confidence"].to_numpy()
    np.testing.assert_array_equal(confidence, probs[np.arange(30), decided.preds])


def test_a_threshold_in_the_card_changes_nothing_unless_it_is_requested(
    place, make_onnx, make_card, tmp_path
):
    evaluate(place, "runs/tiny", "--target-precision", 0.999, "--class", "green")
    chosen = load_card(place / "runs" / "tiny").threshold
    chosen = msgspec.structs.replace(chosen, value=1.0)
    model = make_onnx(tmp_path / "with.onnx", make_card(threshold=chosen).to_json())
    assert read_card(model).threshold == chosen
    plain = place / "exports" / "tiny" / "tiny.fp32.onnx"
    for name, path, options in (
        ("plain", plain, ()),
        ("with", model, ()),
        ("auto", model, ("--threshold", "auto")),
        ("number", plain, ("--threshold", chosen.value, "--class", "green")),
    ):
        words = ("classify", "images", "--model", path, "--device", "cpu", "-o", f"{name}.csv")
        ran = run_tltools(*words, *options, cwd=place)
        assert ran.code == 0, ran.err
    files = {name: (place / f"{name}.csv").read_bytes() for name in ("plain", "with", "auto")}
    assert files["plain"] == files["with"]
    assert files["auto"] == (place / "number.csv").read_bytes()
    assert files["auto"] != files["plain"]


def test_a_smallest_confidence_in_the_card_is_applied_by_auto(place, make_onnx, make_card):
    evaluate(place, "runs/tiny", "--target-precision", 0.98)
    chosen = load_card(place / "runs" / "tiny").threshold
    model = make_onnx(
        place / "with.onnx",
        make_card(threshold=msgspec.structs.replace(chosen, value=1.0)).to_json(),
    )
    words = ("classify", "images", "--model", model, "--device", "cpu", "-o", "auto.csv")
    ran = run_tltools(*words, "--threshold", "auto", "--json", cwd=place)
    assert json.loads(ran.out)["num_uncertain"] == 30
    assert "Threshold: uncertain below a confidence of 1.0" in ran.err


def test_only_the_same_threshold_is_the_same_job(middle, onnx_path, images, tmp_path):
    def stop(_summary):
        raise KeyboardInterrupt

    def job(**changes):
        return Job(onnx_path, [images], tmp_path / "out.csv", device="cpu", **changes)

    with pytest.raises(KeyboardInterrupt):
        run_job(job(threshold=middle), on_summary=stop)
    for changes in ({}, {"threshold": ClassThreshold("green", 0.5)}):
        with pytest.raises(ConfigError, match="exists"):
            run_job(job(**changes))
    assert run_job(job(threshold=middle)).num_kept == 30


def test_shards_and_images_that_were_known_before_get_the_labels_of_one_job(
    middle, onnx_path, images, tmp_path
):
    def run(name, **changes):
        settings = {"device": "cpu", "threshold": middle} | changes
        return run_job(Job(onnx_path, [images], tmp_path / name, **settings))

    run("whole.csv")
    shards = [tmp_path / f"{index}.csv" for index in (1, 2)]
    for index, shard in enumerate(shards, 1):
        run(shard.name, shard=Shard(index, 2), threads=1)
    merge_shards(shards, tmp_path / "merged.csv")
    assert labels_of(tmp_path / "merged.csv") == labels_of(tmp_path / "whole.csv")
    run("first.csv", ledger_dir=tmp_path / "ledger", threshold=None)
    again = run("again.csv", ledger_dir=tmp_path / "ledger")
    assert again.num_known == 30
    assert labels_of(tmp_path / "again.csv") == labels_of(tmp_path / "whole.csv")
    run("2.csv", shard=Shard(2, 2), threads=1, threshold=None, overwrite=True)
    with pytest.raises(DataError, match="has a different `threshold=` than"):
        merge_shards(shards, tmp_path / "other.csv")


def test_images_are_sorted_by_the_label_that_a_threshold_gives(middle, onnx_path, images, tmp_path):
    words = ("classify", "images", "--model", onnx_path, "--device", "cpu", "-o", "out.csv")
    options = ("--threshold", middle.value, "--class", "green", "--sort-into", "sorted")
    ran = run_tltools(*words, *options, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert len(list((tmp_path / "sorted" / "green").iterdir())) == 5


def test_a_few_images_and_programs_get_the_same_label(onnx_path, images, tmp_path):
    path = sorted((images / "green").iterdir())[0]
    words = ("classify", path, "--model", onnx_path, "--device", "cpu", "--class", "green")
    never = run_tltools(*words, "--threshold", 1, cwd=tmp_path).out.splitlines()
    assert never[0] in ("red", "blue")
    assert never[1].startswith("green ")
    table = run_tltools("classify", path, *words[1:], "--threshold", 1, cwd=tmp_path).out
    row = next(line for line in table.splitlines() if "%" in line)
    assert row.rstrip().rsplit(maxsplit=2)[-2] == "green"  # the next one after the label
    predictor = load_model(onnx_path, device="cpu")
    (found,) = predictor.predict([path], threshold=1.0, class_name="green")
    assert found.label == never[0]
    assert found.confidence == found.probabilities[CLASSES.index(found.label)]
    with pytest.raises(ConfigError, match="this export of tiny has no threshold"):
        predictor.predict([path], threshold="auto")


# ------------------------------------------------------------------------------------- scoring


def test_evaluate_scores_the_labels_that_classify_gives(middle, onnx_path, images, tmp_path):
    words = ("evaluate", onnx_path, "images", "--device", "cpu", "--output", "scores", "--json")
    ran = run_tltools(*words, "--threshold", middle.value, "--class", "green", cwd=tmp_path)
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["threshold"] == {"class_name": "green", "value": middle.value}
    assert told["accuracy"]["correct"] == 25
    by_name = {row["name"]: row for row in told["per_class"]}
    assert (by_name["green"]["precision"], by_name["green"]["recall"]) == (1.0, 0.5)
    run_job(Job(onnx_path, [images], tmp_path / "out.csv", device="cpu", threshold=middle))
    scored = pd.read_csv(tmp_path / "scores" / "predictions.csv")
    job = pd.read_csv(tmp_path / "out.csv")
    assert sorted(scored["label"]) == sorted(job["label"])
    assert sorted(scored["confidence"]) == pytest.approx(sorted(job["confidence"]), abs=1e-6)


def test_evaluate_scores_the_images_that_reach_a_smallest_confidence(
    middle, onnx_path, images, tmp_path
):
    words = ("evaluate", onnx_path, "images", "--device", "cpu", "--output", "scores", "--json")
    values = np.sort(green_probs(tmp_path / "plain.csv").max(axis=1))
    told = json.loads(run_tltools(*words, "--min-confidence", values[12], cwd=tmp_path).out)
    assert told["coverage"]["total"] == 30
    assert told["accuracy"]["total"] == told["coverage"]["count"] in (17, 18)
    assert told["num_images"] == 30
    labels = labels_of(tmp_path / "scores" / "predictions.csv")
    assert labels.count("uncertain") == 30 - told["coverage"]["count"]
    ran = run_tltools(*words, "--min-confidence", 1, cwd=tmp_path)
    assert ran.code == 1
    assert "none of the 30 images of images reaches the confidence 1.0" in ran.err


def test_uncertain_images_are_no_mistakes(onnx_path, images, tmp_path, middle):
    values = np.sort(green_probs(tmp_path / "plain.csv").max(axis=1))
    words = ("evaluate", onnx_path, "images", "--device", "cpu", "--output", "scores")
    options = ("--min-confidence", values[12], "--mistakes", "--report", "a.html")
    ran = run_tltools(*words, *options, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert labels_of(tmp_path / "scores" / "mistakes.csv") == []
    assert "No mistakes, 1" in (tmp_path / "a.html").read_text()
    assert run_tltools("report", "scores/evaluation.json", cwd=tmp_path).code == 0
    assert card_from_json(read_card(onnx_path).to_json(), where="a").threshold is None
