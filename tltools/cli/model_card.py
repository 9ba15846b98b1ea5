"""Show a model's card on the terminal: what it is, what to feed it, and how good it is."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tltools.cli.thresholds import kind_of, threshold_text
from tltools.wording import (
    grouped,
    in_percent,
    in_percent_down,
    listed,
    minute,
    ordinal,
    percent,
    score_text,
)

if TYPE_CHECKING:
    from tltools.artifacts import Artifact
    from tltools.card import Card, Distances, ExportFacts, Preprocessing


def print_card(path: Path, card: "Card") -> None:
    """Print a card in about ten lines; `--json` has all of it.

    Args:
        path: The run or export.
        card: Its card.

    Raises:
        ArtifactError: If the cross-validation of a run cannot be read.
    """
    from tltools.console import print_table

    lines = [*_lines(card), *(_run_lines(path, card) if path.is_dir() else ())]
    print_table(f"{path} (--json shows the whole card)", ("", ""), lines)


def _run_lines(folder: Path, card: "Card") -> Iterator[tuple[str, str]]:
    """Say how far a run was trained, and how good it is in cross-validation."""
    from tltools.runs import cross_validated, state_of

    done, kept = (card.training.get(name) for name in ("epochs_done", "kept_epoch"))
    most = card.training.get("epochs")
    epochs = "" if done is None else f": {done} of at most {most} epochs, weights of epoch {kept}"
    yield "state", f"{state_of(folder, card)}{epochs}"
    if crossed := cross_validated(folder, card.classes):
        yield "cross-validated accuracy", crossed


def print_exports(folder: Path, exports: "Sequence[Artifact]") -> None:
    """Print a line for each export in a folder."""
    from tltools.console import print_table
    from tltools.runs import model_title

    print_table(
        f"{grouped(len(exports), 'export')} in {folder}/",
        ("export", "model", "data", "validation accuracy", "trained (UTC)", "MB"),
        [
            (
                str(one.path),
                model_title(one.card),
                one.card.data.name,
                score_text(one.card.metrics.get("val")),
                minute(one.card.created),
                f"{one.path.stat().st_size / 1e6:.1f}",
            )
            for one in exports
        ],
    )


def _lines(card: "Card") -> Iterator[tuple[str, str]]:
    facts, data = card.export, card.data
    tuned = card.training.get("fine_tune", "none")
    weights = f", weights {card.weights.source}" if card.weights.sha256 else ""
    yield (
        "model",
        f"{card.model}, head {card.head}{weights}"
        + ("" if tuned == "none" else f", fine-tuned: {tuned}"),
    )
    yield "classes", f"{len(card.classes):,}: {listed(card.classes)}"
    yield (
        "data",
        f"{data.name}: {grouped(data.num_train, 'image')} for training, {data.num_val:,} for "
        f"validation, split {data.split}",
    )
    for split, name in (("val", "validation"), ("test", "test")):
        if split in card.metrics:
            yield f"{name} accuracy", score_text(card.metrics[split])
    note = card.confidence.note if card.confidence else ""
    yield "temperature", f"{card.temperature:.2f}"
    if note:
        yield "not calibrated", note
    if (limit := card.threshold) is not None:
        yield kind_of(limit), threshold_text(limit)
    yield "input", _input(card.preprocessing)
    yield "preparation", preparation(card.preprocessing)
    yield (
        "output",
        f"logits, float32 (N, {len(card.classes)})"
        + ("" if facts is None else f", and their {'' if note else 'calibrated '}probabilities")
        + ("; distance, float32, one per image" if facts and facts.distances else ""),
    )
    if facts is not None:
        yield from _export_lines(facts)
    yield "trained", f"{minute(card.created)} UTC with tltools {card.versions.get('tltools', '?')}"


def _input(rules: "Preprocessing") -> str:
    return (
        f"images, uint8 (N, {rules.size}, {rules.size}, 3): RGB, 0 to 255; the model itself scales "
        "and normalizes"
    )


def preparation(rules: "Preprocessing") -> str:
    """Say how an image file becomes the model's input."""
    how = f"{rules.interpolation}, antialiased"
    if rules.resize == "squash":
        scale = f"resize to {rules.size} x {rules.size} ({how})"
    else:
        scale = (
            f"resize the short side to {rules.scaled_side} ({how}) and crop the central "
            f"{rules.size} x {rules.size}, unless the image has that size"
        )
    return f"apply the EXIF orientation, composite transparency on white, convert to RGB, {scale}"


def _export_lines(facts: "ExportFacts") -> Iterator[tuple[str, str]]:
    opset = "" if facts.opset is None else f", opset {facts.opset}"
    kept = len(facts.float_layers)
    yield (
        "export",
        f"{facts.format} {facts.precision}{opset}"
        + (f", {grouped(kept, 'layer')} in fp32" if kept else ""),
    )
    if facts.calibration is not None:
        asked, num = facts.calibration.requested, facts.calibration.num_images
        of = f" of the {asked:,} asked for" if asked is not None and asked > num else ""
        yield "calibrated on", f"{grouped(num, 'training image')}{of}"
    if facts.distances is not None:
        yield from _distance_lines(facts.distances)
    checks = facts.verified or ()
    for one in checks:
        parity, own = one.parity, one.parity.rounding
        yield (
            f"verified on {one.device}",
            f"{in_percent_down(parity.top1_agreement)} of {parity.images} get PyTorch's "
            f"label; logits differ by at most {parity.max_abs_logit_diff:.1e}"
            + ("" if own is None else f" (PyTorch's own rounding error: {own:.1e})"),
        )


def _distance_lines(one: "Distances") -> Iterator[tuple[str, str]]:
    """Say what the distances of an export were measured on, and how far off they are."""
    yield "distance", f"to {grouped(one.num_images, 'training image')}"
    yield "99th percentile", f"{one.at(99):.2f}, the limit of tltools classify --unknown 99"
    for level in one.beyond:
        found = level.validation
        yield (
            f"beyond the {ordinal(level.level)} percentile",
            f"{in_percent(found.value)} of {grouped(found.total, 'validation image')}",
        )
    if one.max_diff is not None and one.rtol is not None:
        off = in_percent(one.max_diff)
        how = f"less than {off[1:]}" if off.startswith("<") else f"at most {off}"
        yield "verified distance", f"{how} off PyTorch's (limit: {percent(one.rtol)})"
