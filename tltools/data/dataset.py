"""Load, check and split labeled images: the single entry point to data."""

import hashlib
import os
import shlex
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict, Unpack

import numpy as np

from tltools.card import Preprocessing
from tltools.data.copies import local_data
from tltools.data.findings import Finding, Severity, shorten
from tltools.data.images import image_sha256, load_image
from tltools.data.labels import Labels, read_labels
from tltools.data.location import Location
from tltools.data.near import SIDE, find_near_duplicates, thumbnail
from tltools.data.reasons import refuse_failing
from tltools.data.split import ARTICLE_VAL_FRACTION, split_article, split_default
from tltools.data.text import word_key
from tltools.errors import ConfigError, DataError, TltoolsError
from tltools.parallel import num_cores, ordered_map
from tltools.progress import SILENT, Progress
from tltools.wording import counted, grouped, plural, together

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

Purpose = Literal["train", "evaluate", "inspect"]
MadeSplit = Literal["default", "article"]
SplitChoice = Literal["auto", "default", "article"]
SplitRule = Literal["default", "article", "given", "none"]

_CHECK = Preprocessing(size=32)
"""Small: the check needs to know whether an image can be decoded, and a thumbnail to compare."""
_IMBALANCE = 10
"""Ratio of the largest to the smallest class above which a note is added."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labeled images, checked and split."""

    name: str
    """Name of the CSV, folder or archive."""
    frame: "pd.DataFrame"
    """The rows that were kept, in source order; columns `path`, `class`, `split`, `sha256`
    and, unless it is an evaluation, `group`: the SHA-256 of an image that stands for the image and
    its near-duplicates, its own if it has none."""
    classes: tuple[str, ...]
    """Class names in index order."""
    split_rule: SplitRule
    """How the split was made; `given` if it came with the data. In an evaluation of data without a
    split it is `none`, and all images are `test`."""
    findings: tuple[Finding, ...]
    """Findings of the audit, most severe first."""
    fingerprint: str
    """SHA-256 over the sorted (image SHA-256, class, split) of all rows; it does not depend on the
    location or the order of the images."""
    reading: str = ""
    """Which columns or folders were read as images, labels and split, in one line; empty for the
    images of a run."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of files without an image suffix in class folders, by suffix."""

    def part(self, split: str) -> "pd.DataFrame":
        """Return the rows of one split, `train`, `val` or `test`, in source order."""
        rows = np.flatnonzero(self.frame["split"] == split)
        return self.frame.iloc[rows].reset_index(drop=True)

    def targets(self, split: str) -> "NDArray[np.int64]":
        """Return the class index of each row of `part(split)`, (N,)."""
        return _targets(self.part(split)["class"], self.classes)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How labels are read, checked and split: the arguments of `load_dataset`."""

    images: Path | None = None
    """See `read_labels`."""
    image_column: str | None = None
    """See `read_labels`."""
    label_column: str | None = None
    """See `read_labels`."""
    class_level: int | None = None
    """See `read_labels`."""
    class_names: Sequence[str] = ()
    """Names for the classes, in the sorted order of the labels (numeric order if all are
    numbers)."""
    split: SplitChoice = "auto"
    """`auto` keeps the data's own split, or makes `auto_split` if there is none; `default` is
    `split_default`; `article` is `split_article`."""
    auto_split: MadeSplit = "default"
    """The split that `auto` makes if there is none: `default` or `article`."""
    val_fraction: float = ARTICLE_VAL_FRACTION
    """Fraction of the validation set in a split that is made here, in (0, 1)."""
    seed: int = 13
    """Random seed of the default split."""
    skip_bad: bool = False
    """Skip missing and unreadable images instead of raising an error."""
    purpose: Purpose = "train"
    """`train` requires two classes with images in train. `evaluate` makes no split: if the data has
    none, all images are `test`. `inspect` raises an error only if there is nothing to show, and
    reports what would prevent training as findings."""


class DataArguments(TypedDict, total=False):
    """The fields of `DataSettings` as keyword arguments."""

    images: Path | None
    image_column: str | None
    label_column: str | None
    class_level: int | None
    class_names: Sequence[str]
    split: SplitChoice
    auto_split: MadeSplit
    val_fraction: float
    seed: int
    skip_bad: bool
    purpose: Purpose


def load_dataset(
    data: Location, *, progress: Progress = SILENT, **settings: Unpack[DataArguments]
) -> Dataset:
    """Read labels, check every image and split the data set.

    A missing or unreadable image is an error, unless `skip_bad` skips it. Duplicate rows are
    dropped. Byte-identical images with contradictory labels are skipped, except with the article's
    split, which is reproduced exactly, and in an evaluation, which uses the data as it is. All
    problems are listed in `findings`.

    Args:
        data: See `read_labels`; or a URL or an archive of such data (see `local_data`).
        progress: Where to report progress.
        settings: The fields of `DataSettings`.

    Raises:
        ConfigError: If an argument does not fit the data.
        DataError: If the labels cannot be read, or the data is unsuitable for the purpose.
    """
    chosen = DataSettings(**settings)
    _check_split_choice(chosen)
    local = local_data(data, progress=progress)
    if local == data:
        return _load(local, chosen, progress)
    try:
        found = _load(local, chosen, progress)
    except TltoolsError as error:
        raise type(error)(str(error).replace(str(local), str(data))) from error
    return replace(
        found,
        name=data.name,
        reading=found.reading.replace(str(local), str(data)),
        findings=tuple(
            replace(one, message=one.message.replace(str(local), str(data)))
            for one in found.findings
        ),
    )


def _load(data: Path, chosen: DataSettings, progress: Progress) -> Dataset:
    """Load a data set on this machine as `load_dataset` does, which names copies by their source.

    Raises:
        ConfigError, DataError: As for `load_dataset`.
    """
    labels = read_labels(
        data,
        images=chosen.images,
        image_column=chosen.image_column,
        label_column=chosen.label_column,
        class_level=chosen.class_level,
    )
    audit = _Audit(purpose=chosen.purpose, labels=labels)
    rows, classes = _name_classes(_rows_of(labels), chosen.class_names)
    rule = _split_rule(data, rows, chosen)
    rows, thumbnails = _check_images(rows, audit, skip_bad=chosen.skip_bad, progress=progress)
    rows = _without_duplicates(rows, audit, rule)
    near = _find_near(rows, thumbnails, chosen.purpose, progress)
    rows = _divide(rows, near.groups, classes, audit, rule, chosen)
    audit.note_near(rows, near, kept_together=rule == "default")
    return Dataset(
        name=data.resolve().name,
        frame=_frame(rows, near.groups),
        classes=classes,
        split_rule=rule,
        findings=audit.findings(),
        fingerprint=_fingerprint(rows),
        reading=labels.reading,
        left_out=labels.left_out,
    )


def _rows_of(labels: Labels) -> "list[_Row]":
    frame = labels.frame
    columns = zip(frame["path"], frame["class"], frame["split"], strict=True)
    return [_Row(path, label, part, sha256="") for path, label, part in columns]


def _split_rule(data: Path, rows: "Sequence[_Row]", settings: DataSettings) -> SplitRule:
    """Return how the split is made."""
    given = any(row.split for row in rows)
    if given and settings.split != "auto":
        raise ConfigError(f"{data} has its own split: leave out `split={settings.split}`")
    if given:
        return "given"
    if settings.purpose == "evaluate":
        return "none"
    if settings.split == "auto":
        return settings.auto_split
    return settings.split


def _check_split_choice(settings: DataSettings) -> None:
    split, val_fraction = settings.split, settings.val_fraction
    if split == "auto":
        split = settings.auto_split
    if not 0 < val_fraction < 1:
        raise ConfigError(f"`val_fraction=` must be between 0 and 1, got {val_fraction}")
    if split == "article" and val_fraction != ARTICLE_VAL_FRACTION:
        raise ConfigError(
            f"the article's validation set is {ARTICLE_VAL_FRACTION:.0%} of the data, not "
            f"{val_fraction:.0%}: leave out `val_fraction=` or use `split=default`"
        )
    if settings.split != "auto" and settings.purpose == "evaluate":
        raise ConfigError(f"an evaluation makes no split: leave out `split={split}`")


class _Row(NamedTuple):
    path: str
    label: str
    """The class name."""
    split: str
    sha256: str


def _frame(rows: Sequence[_Row], groups: Mapping[str, str]) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame(rows, columns=["path", "class", "split", "sha256"], dtype=object)
    if not groups:
        return frame
    return frame.assign(group=pd.Series([groups[row.sha256] for row in rows], dtype=object))


def _name_classes(
    rows: Sequence[_Row], class_names: Sequence[str]
) -> tuple[list[_Row], tuple[str, ...]]:
    """Return the rows with their classes renamed, and the classes in index order."""
    labels = sorted({row.label for row in rows})
    with suppress(ValueError):
        labels.sort(key=float)  # so that 10 comes after 9
    names = [name.strip() for name in class_names] or labels
    if len(names) != len(labels):
        raise ConfigError(
            f"`class_names=` has {counted(len(names), 'name')} for "
            f"{counted(len(labels), 'class', 'classes')} ({shorten(labels)}): give "
            "one name per class, in this order"
        )
    if "" in names or len(set(names)) != len(names):
        raise ConfigError(f"`class_names=` must be unique and not empty, got {', '.join(names)}")
    name_of = dict(zip(labels, names, strict=True))
    return [row._replace(label=name_of[row.label]) for row in rows], tuple(names)


def _targets(labels: Iterable[str], classes: Sequence[str]) -> "NDArray[np.int64]":
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[label] for label in labels], dtype=np.int64)


def _by_image(rows: Iterable[_Row]) -> dict[str, list[_Row]]:
    """Group rows by the bytes of their image, in order of first appearance."""
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.sha256, []).append(row)
    return groups


def _fingerprint(rows: Iterable[_Row]) -> str:
    digest = hashlib.sha256()
    for row in sorted((row.sha256, row.label, row.split) for row in rows):
        digest.update("\0".join(row).encode())
        digest.update(b"\n")
    return digest.hexdigest()


# --- Checks ---------------------------------------------------------------------------------------


class _Checked(NamedTuple):
    sha256: str = ""
    """Empty if the image is missing or unreadable."""
    problem: str = ""
    """Why it is unreadable; empty if it is missing."""
    thumbnail: bytes = b""
    """See `tltools.data.near`."""


def _check_image(path: str, *, with_thumbnail: bool) -> _Checked:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - called for each image
            return _Checked()
    except (OSError, ValueError) as error:
        refuse_failing(path, error)
        return _Checked()
    try:
        image = load_image(path, _CHECK)
        small = thumbnail(image).tobytes() if with_thumbnail else b""
        return _Checked(sha256=image_sha256(path), thumbnail=small)
    except DataError as error:
        reason = str(error).removeprefix(f"cannot read image {Path(path).name}: ")
        return _Checked(problem=f"{path}: {reason}")


def _check_images(
    rows: Sequence[_Row], audit: "_Audit", *, skip_bad: bool, progress: Progress
) -> tuple[list[_Row], dict[str, bytes]]:
    """Return the rows with readable images, with their SHA-256, and thumbnails by SHA-256."""
    paths = list(dict.fromkeys(row.path for row in rows))
    checked: dict[str, _Checked] = {}
    workers = num_cores()
    check = partial(_check_image, with_thumbnail=_looks_for_near(audit.purpose))
    with progress.bar("Checking images", len(paths)) as bar:
        results = ordered_map(check, paths, workers=workers, ahead=16 * workers)
        for path, result in zip(paths, results, strict=True):
            checked[path] = result
            bar.advance()
    problems = {path: result.problem for path, result in checked.items() if not result.sha256}
    audit.note_bad(problems, num_images=len(paths), skip_bad=skip_bad)
    rows = [row._replace(sha256=checked[row.path].sha256) for row in rows]
    thumbnails = {one.sha256: one.thumbnail for one in checked.values()}
    return [row for row in rows if row.sha256], thumbnails


class _Near(NamedTuple):
    groups: Mapping[str, str]
    """The SHA-256 of the image that stands for each image's group, by SHA-256."""
    pairs: tuple[tuple[str, str], ...]
    """Near-duplicates, the most similar first."""


def _looks_for_near(purpose: Purpose) -> bool:
    """Return whether near-duplicates matter: an evaluation keeps all of its images."""
    return purpose != "evaluate"


def _find_near(
    rows: Sequence[_Row], thumbnails: Mapping[str, bytes], purpose: Purpose, progress: Progress
) -> _Near:
    """Find near-duplicates, by SHA-256; the order of the rows does not matter."""
    if not _looks_for_near(purpose):
        return _Near({}, ())
    hashes = sorted({row.sha256 for row in rows})
    pixels = np.frombuffer(b"".join(thumbnails[one] for one in hashes), dtype=np.uint8)
    found = find_near_duplicates(pixels.reshape(-1, SIDE, SIDE), progress=progress)
    leaders = zip(hashes, found.leaders.tolist(), strict=True)
    return _Near(
        groups={sha256: hashes[leader] for sha256, leader in leaders},
        pairs=tuple((hashes[one], hashes[other]) for one, other in found.pairs.tolist()),
    )


def _drop_repeated_rows(rows: Sequence[_Row], audit: "_Audit") -> list[_Row]:
    # The same image in train and in val is not a duplicate row: it is reported as a leak.
    kept = list(dict.fromkeys(rows))
    audit.note_repeated([row.path for row, count in Counter(rows).items() if count > 1])
    return kept


def _handle_contradictions(rows: Sequence[_Row], audit: "_Audit", *, leave_out: bool) -> list[_Row]:
    groups = _by_image(rows).items()
    bad = {sha256: group for sha256, group in groups if len({row.label for row in group}) > 1}
    audit.note_contradictions(list(bad.values()), left_out=leave_out)
    return [row for row in rows if row.sha256 not in bad] if leave_out else list(rows)


def _without_duplicates(rows: Sequence[_Row], audit: "_Audit", rule: SplitRule) -> list[_Row]:
    """Return the rows without repetitions and, for training, without contradictions."""
    rows = _drop_repeated_rows(rows, audit)
    audit.note_copies(rows, kept_together=rule == "default")
    leave_out = audit.purpose != "evaluate" and rule != "article"
    return _handle_contradictions(rows, audit, leave_out=leave_out)


# --- Split ----------------------------------------------------------------------------------------


def _divide(
    rows: Sequence[_Row],
    groups: Mapping[str, str],
    classes: Sequence[str],
    audit: "_Audit",
    rule: SplitRule,
    settings: DataSettings,
) -> list[_Row]:
    """Return the rows with a split, which is checked for the purpose."""
    if settings.purpose == "evaluate":
        divided = [row if row.split else row._replace(split="test") for row in rows]
    else:
        audit.check_classes(rows, classes)
        divided = _assign_missing(rows, groups, classes, audit, rule, settings)
        audit.check_splits(divided, classes)
    audit.note_leaks(divided)
    return divided


def _assign_missing(
    rows: Sequence[_Row],
    groups: Mapping[str, str],
    classes: Sequence[str],
    audit: "_Audit",
    rule: SplitRule,
    settings: DataSettings,
) -> list[_Row]:
    """Return the rows, with a split assigned where the data has none."""
    if rule == "article":
        try:
            val = split_article(_targets((row.label for row in rows), classes))
        except DataError as error:
            audit.stop("article-split", str(error))
            return list(rows)
        return _assign(rows, val)
    fixed = [row for row in rows if row.split in ("val", "test")]
    free = [row for row in rows if row.split in ("", "train")]
    if any(row.split == "val" for row in fixed):
        return list(rows)
    val = split_default(
        [row.label for row in free],
        [row.sha256 for row in free],
        [groups[row.sha256] for row in free],
        val_fraction=settings.val_fraction,
        seed=settings.seed,
    )
    if rule == "given" and val.any():
        audit.add(
            "note",
            "val-from-train",
            f"the data has no validation set: {val.sum():,} of its {len(free):,} train images "
            "became val by the default split",
        )
    divided = iter(_assign(free, val))
    return [row if row.split == "test" else next(divided) for row in rows]


def _assign(rows: Sequence[_Row], val: "NDArray[np.bool_]") -> list[_Row]:
    return [
        row._replace(split="val" if is_val else "train")
        for row, is_val in zip(rows, val, strict=True)
    ]


# --- Findings -------------------------------------------------------------------------------------


class _Audit:
    """Collects findings; raises those that make the data unusable for the purpose."""

    def __init__(self, *, purpose: Purpose, labels: Labels) -> None:
        self.purpose: Purpose = purpose
        self._findings = list(labels.findings)
        self._labels = labels
        self._contradictions: Sequence[Sequence[_Row]] = ()
        """The groups of byte-identical images that were skipped for their labels."""
        self._is_empty = False
        """Whether no image is left, of which one finding is enough."""
        for one in labels.findings:
            if one.severity == "error" and purpose != "inspect":
                raise DataError(one.message)

    def findings(self) -> tuple[Finding, ...]:
        """Return all findings, most severe first."""
        grades: list[Severity] = ["error", "warning", "note"]
        return tuple(sorted(self._findings, key=lambda finding: grades.index(finding.severity)))

    def add(self, severity: Severity, kind: str, message: str, paths: Iterable[str] = ()) -> None:
        self._findings.append(Finding(severity, kind, message, tuple(paths)))

    def stop(self, kind: str, message: str, paths: Iterable[str] = ()) -> None:
        """Raise an error that makes the data unusable; an inspection lists it instead."""
        if self.purpose != "inspect":
            raise DataError(message)
        self.add("error", kind, message, paths)

    def note_bad(self, problems: dict[str, str], *, num_images: int, skip_bad: bool) -> None:
        """Report missing and unreadable images together, since they are fixed together."""
        missing = [path for path, problem in problems.items() if not problem]
        unreadable = [path for path, problem in problems.items() if problem]
        found: list[tuple[str, str, list[str]]] = []
        if missing:
            text = f"{_are(missing, 'image')} missing ({shorten(map(self._hinted, missing))})"
            found.append(("missing", text, missing))
        if unreadable:
            reasons = shorten((problems[path] for path in unreadable), separator="; ")
            all_ = "all " if len(unreadable) == num_images > 1 else ""
            text = f"{all_}{_are(unreadable, 'image')} unreadable ({reasons})"
            found.append(("unreadable", text, unreadable))
        remedy = "fix the data, or skip them with `skip_bad=True`"
        if self.purpose == "inspect":
            remedy = "fix the data, or train with `skip_bad=True`"
        if len(problems) == num_images:
            skip_bad = False
            self._is_empty = True
            remedy = self._remedy_of_none(has_missing=bool(missing))
        if found and not skip_bad and self.purpose != "inspect":
            raise DataError(f"{'; '.join(text for _, text, _ in found)}: {remedy}")
        for kind, text, paths in found:
            if skip_bad:
                self.add("warning", kind, f"{text}: skipped", paths)
            else:
                self.add("error", kind, f"{text}: {remedy}", paths)

    def _remedy_of_none(self, *, has_missing: bool) -> str:
        """Return what to do if no image can be read."""
        if not has_missing:
            return "no image is left; replace them, or name other data"
        if (folder := self._labels.elsewhere) is not None:
            return f"all of them are in {folder}; add `images=` {shlex.quote(str(folder))}"
        if self._labels.of_csv:
            return "no image is left; check `images=` (their folder) and `image_column=`"
        return "no image is left; restore them, or name other data"

    def _hinted(self, path: str) -> str:
        """Return a missing path, and what may be meant instead."""
        hint = self._labels.hints.get(path)
        return f"{path}; {hint}" if hint else path

    def note_repeated(self, paths: Sequence[str]) -> None:
        if paths:
            text = (
                f"{_are(paths, 'image')} listed more than once with the same label and grouped "
                f"once: {_names(paths)}"
            )
            self.add("warning", "duplicate-row", text, paths)

    def note_copies(self, rows: Sequence[_Row], *, kept_together: bool) -> None:
        groups = [list({row.path: row for row in group}) for group in _by_image(rows).values()]
        copies = [group for group in groups if len(group) > 1]
        if copies:
            paths = [path for group in copies for path in group]
            text = (
                f"{grouped(len(copies), 'image')} {plural(len(copies), 'occurs', 'occur')} more "
                f"than once ({grouped(len(paths) - len(copies), 'surplus copy', 'surplus copies')})"
            )
            text += "; copies stay on one side of the split" if kept_together else ""
            self.add("note", "copies", text, paths)

    def note_near(self, rows: Sequence[_Row], near: _Near, *, kept_together: bool) -> None:
        """Report near-duplicates: how many, those across splits, and those with other labels."""
        by_hash = _by_image(rows)
        pairs = [(by_hash[one], by_hash[other]) for one, other in near.pairs]
        if not pairs:
            return
        sizes = Counter(near.groups[sha256] for sha256 in by_hash)
        num_groups = sum(size > 1 for size in sizes.values())
        text = (
            f"{grouped(num_groups, 'group')} of near-duplicates (resized, recompressed, mirrored "
            f"or slightly cropped copies, or photographs of one scene): {_near_pairs(pairs)}"
        )
        text += "; each group stays on one side of the split" if kept_together else ""
        self.add("note", "near-duplicates", text, _paths_of(pairs))
        other = [(a, b) for a, b in pairs if _labels(a) != _labels(b)]
        if other:
            text = (
                f"{grouped(len(other), 'pair')} of near-duplicates "
                f"{plural(len(other), 'has', 'have')} different labels; look at "
                f"{plural(len(other), 'it', 'them')}: {_near_pairs(other, with_labels=True)}"
            )
            self.add("warning", "near-contradiction", text, _paths_of(other))
        self._note_near_leaks(rows, pairs)

    def _note_near_leaks(self, rows: Sequence[_Row], pairs: "Sequence[_Pair]") -> None:
        for here, there in (("val", "train"), ("test", "train"), ("test", "val")):
            across = [
                (a, b)
                for pair in pairs
                for a, b in (pair, pair[::-1])
                if here in {row.split for row in a} and there in {row.split for row in b}
            ]
            leaks = {row.sha256: row.path for a, _ in across for row in a if row.split == here}
            if leaks:
                total = sum(row.split == here for row in rows)
                text = (
                    f"{len(leaks):,} of the {total:,} {here} images "
                    f"{plural(len(leaks), 'has', 'have')} a near-duplicate in {there}, which "
                    f"inflates the accuracy on {here}: {_near_pairs(across)}"
                )
                self.add("warning", "near-duplicates-across-splits", text, leaks.values())

    def note_contradictions(self, groups: Sequence[Sequence[_Row]], *, left_out: bool) -> None:
        if left_out:
            self._contradictions = groups
        if groups:
            paths = [row.path for group in groups for row in group]
            text = (
                f"{len(paths):,} rows give different labels to byte-identical images and are "
                f"{'skipped' if left_out else 'kept'}: "
                f"{shorten(map(_contradiction, groups), separator='; ', limit=3)}"
            )
            self.add("warning", "contradiction", text, paths)

    def note_leaks(self, rows: Sequence[_Row]) -> None:
        images: dict[str, set[str]] = {"train": set(), "val": set(), "test": set(), "": set()}
        for row in rows:
            images[row.split].add(row.sha256)
        for here, there in (("val", "train"), ("test", "train"), ("test", "val")):
            part = [row for row in rows if row.split == here]
            leaks = [row.path for row in part if row.sha256 in images[there]]
            if leaks:
                text = (
                    f"{len(leaks):,} of the {len(part):,} {here} images "
                    f"{plural(len(leaks), 'has', 'have')} a byte-identical duplicate in "
                    f"{there}, which inflates the accuracy on {here}: {_names(leaks)}"
                )
                self.add("warning", "copies-across-splits", text, leaks)

    def check_classes(self, rows: Sequence[_Row], classes: Sequence[str]) -> None:
        """Check the number of classes and of images per class."""
        if self._is_empty:
            return
        if len(classes) < 2:
            self.stop(
                "single-class",
                f"the data has only one class ({shorten(classes)}): a classifier needs two or more",
            )
        counts = Counter(dict.fromkeys(classes, 0))
        counts.update(row.label for row in rows)
        empty = [name for name, count in counts.items() if not count]
        if empty:
            self.stop("empty-class", self._why_empty(empty))
        tiny = _classes_with_one_image(rows)
        if tiny:
            self.add(
                "warning",
                "tiny-class",
                f"{_classes(tiny)} {plural(len(tiny), 'has only one image', 'have one image each')}"
                f", too few for training and validation: add images of {together(tiny)}",
                [row.path for row in rows if row.label in tiny],
            )
        (large, many), (small, few) = counts.most_common()[0], counts.most_common()[-1]
        if 0 < few * _IMBALANCE < many:
            text = (
                f"class {large} has {many:,} images and class {small} {few:,}: look at the metrics "
                "per class, not only at the accuracy"
            )
            self.add("note", "imbalance", text)

    def _why_empty(self, empty: Sequence[str]) -> str:
        """Say why classes have no image, and what to do: the labels contradict, or images lack."""
        shared = _in_other_classes(self._contradictions, empty)
        rest = [name for name in empty if not any(name in one.classes for one in shared)]
        texts = [f"{one}: keep each in one class" for one in shared]
        if rest:
            where = "" if self.purpose == "inspect" else " (tltools inspect shows why)"
            texts.append(f"no images are left of {_classes(rest)}{where}: add images")
        return "; ".join(texts)

    def check_splits(self, rows: Sequence[_Row], classes: Sequence[str]) -> None:
        """Check which classes train and val contain."""
        if self._is_empty or not rows:  # which has been reported
            return
        train = {row.label for row in rows if row.split == "train"}
        val = {row.label for row in rows if row.split == "val"}
        tiny = _classes_with_one_image(rows)
        if not train or not val:
            text = f"no images are left for {'val' if train else 'train'}"
            if train and train.issubset(tiny):
                text += ", since each class has only one image, which training needs"
            self.stop("no-split", f"{text}: add images")
            return
        lost = [name for name in classes if name not in train]
        if lost:
            text = (
                f"{_classes(lost)} {plural(len(lost), 'has', 'have')} no image in train: add "
                f"images, or remove {plural(len(lost), 'the class', 'the classes')}"
            )
            alike = {word_key(name) for name in lost} & {word_key(name) for name in train}
            if alike:
                text += ", or give classes that differ only in case or blanks one spelling"
            self.stop("class-not-in-train", text)
        unmeasured = [name for name in classes if name in train - val and name not in tiny]
        if unmeasured:
            text = (
                f"{_classes(unmeasured)} {plural(len(unmeasured), 'has', 'have')} no image in val, "
                f"so {plural(len(unmeasured), 'it is', 'they are')} not evaluated"
            )
            self.add("warning", "class-not-in-val", text)


def _classes_with_one_image(rows: Iterable[_Row]) -> list[str]:
    images: dict[str, set[str]] = {}
    for row in rows:
        images.setdefault(row.label, set()).add(row.sha256)
    return sorted(name for name, members in images.items() if len(members) == 1)


@dataclass(frozen=True)
class _Shared:
    """A class all of whose images are in other classes, too."""

    classes: tuple[str, ...]
    """The class, and others without an image whose images are the same ones."""
    others: tuple[str, ...]
    """Other classes of the images; at least one."""
    num_images: int

    def __str__(self) -> str:
        are = plural(self.num_images, "image", f"{self.num_images:,} images")
        subject = f"the only {are}" if self.num_images == 1 else f"all {are}"
        verb = plural(self.num_images, "is", "are")
        return f"{subject} of {self.classes[0]} {verb} also in {together(self.others)}"


def _in_other_classes(groups: Sequence[Sequence[_Row]], empty: Sequence[str]) -> list[_Shared]:
    """Return which classes without images lost them to contradicting labels.

    Args:
        groups: Byte-identical images with different labels.
        empty: Names of the classes without images.
    """
    images: dict[tuple[int, ...], list[str]] = {}
    for name in empty:
        mine = tuple(i for i, group in enumerate(groups) if name in _labels(group))
        if mine:
            images.setdefault(mine, []).append(name)
    return [
        _Shared(
            classes=tuple(names),
            others=tuple(sorted(set().union(*(_labels(groups[i]) for i in mine)) - {names[0]})),
            num_images=len(mine),
        )
        for mine, names in images.items()
    ]


def _classes(names: Sequence[str]) -> str:
    """Write classes with their noun: `class a`, `classes a and b`."""
    return f"{plural(len(names), 'class', 'classes')} {together(names)}"


def _contradiction(rows: Sequence[_Row]) -> str:
    names: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: (row.label, row.path)):
        names.setdefault(row.label, []).append(Path(row.path).name)
    return " against ".join(
        f"{shorten(group, limit=3)} ({label})" for label, group in names.items()
    )


_Pair = tuple[list[_Row], list[_Row]]


def _labels(rows: Sequence[_Row]) -> set[str]:
    return {row.label for row in rows}


def _paths_of(pairs: Sequence[_Pair]) -> list[str]:
    return list(dict.fromkeys(row.path for pair in pairs for rows in pair for row in rows))


def _near_pairs(pairs: Sequence[_Pair], *, with_labels: bool = False) -> str:
    """Name one image of each side of the most similar pairs."""

    def name(row: _Row) -> str:
        return Path(row.path).name + (f" ({row.label})" if with_labels else "")

    return shorten((f"{name(a[0])} and {name(b[0])}" for a, b in pairs), separator="; ", limit=5)


def _are(items: Sequence[str], noun: str) -> str:
    return f"{grouped(len(items), noun)} {plural(len(items), 'is', 'are')}"


def _names(paths: Iterable[str]) -> str:
    return shorten(Path(path).name for path in paths)
