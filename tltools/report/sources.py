"""Find the results to report: runs, exports, benches, evaluations and classification jobs."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice, takewhile
from pathlib import Path

import msgspec

from tltools.artifacts import (
    EXPORT_DIR,
    RUN_DIR,
    Artifact,
    current_and_earlier_exports,
    find_runs,
    newer_training,
    read_artifact,
    run_of,
)
from tltools.bench import BenchResult
from tltools.card import Card
from tltools.classify.output_formats import all_suffixes, known_suffixes, output_format
from tltools.classify.output_formats.csv_rows import CSV, read_columns
from tltools.classify.remembered import (
    Reference,
    remembered_inputs,
    remembered_model,
    remembered_reference,
    remembered_sorted,
)
from tltools.classify.unfinished import unfinished_path
from tltools.data.folders import is_run
from tltools.errors import ArtifactError, ConfigError, DataError, TltoolsError, cause_of
from tltools.regular import read_regular
from tltools.report.benches import bench_section, read_bench
from tltools.report.blocks import Section, Table, Text
from tltools.report.distances import reference_among
from tltools.report.jobs import (
    JobFacts,
    Locate,
    images_from,
    job_section,
    locate_in,
    locate_inputs,
    read_job,
)
from tltools.report.models import (
    EvaluationFacts,
    by_accuracy,
    evaluation_section,
    exports_section,
    read_evaluation,
    training_section,
)
from tltools.report.page import TITLE
from tltools.report.scored import (
    Scored,
    read_labeled,
    scored_section,
)
from tltools.report.summary import compared, summary_section
from tltools.run_folder import (
    CARD,
    EVALUATION,
    MAX_EVALUATION_BYTES,
    MISTAKES,
    PREDICTIONS,
    SPLIT,
    visible,
)
from tltools.runtime.model_formats import is_export_name, suffixes
from tltools.schema import classes_of
from tltools.wording import listed, similar_paths


@dataclass
class Sources:
    """Results to report, by kind."""

    runs: list[Artifact] = field(default_factory=list)
    exports: list[Artifact] = field(default_factory=list)
    benches: list[tuple[Path, BenchResult]] = field(default_factory=list)
    evaluations: list[tuple[Path, EvaluationFacts]] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    jobs: list[Path] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)
    """Results in the current folder that are not the newest of their kind, and why each is not
    on the page."""

    def paths(self) -> dict[str, list[str]]:
        """Return the paths of the results by kind, without empty kinds."""
        found = {
            "runs": [one.path for one in self.runs],
            "evaluations": [
                *(path for path, _ in self.evaluations),
                *(one.path for one in self.scored),
            ],
            "jobs": self.jobs,
            "benches": [path for path, _ in self.benches],
            "exports": [one.path for one in self.exports],
        }
        return {kind: [str(path) for path in paths] for kind, paths in found.items() if paths}

    def title(self) -> str:
        """Return the title of the page, with the names of the data sets, or of the jobs."""
        names = [
            *(run.card.data.name for run in by_accuracy(self.runs)),
            *(facts.data for _, facts in self.evaluations),
        ]
        files = *(one.data or str(one.path) for one in self.scored), *map(str, self.jobs)
        names = names or list(files)
        return f"{TITLE}: {listed(list(dict.fromkeys(names)))}" if names else TITLE

    def sections(self, images: Path | None) -> list[Section]:
        """Return the sections of the report.

        Args:
            images: The folder that was classified; None for what `classify` remembers.

        Raises:
            ArtifactError, DataError: If a result is damaged.
        """
        jobs = [(path, self._read_job(path)) for path in self.jobs]
        found: list[Section] = []
        with _describing(*(one.path for one in self.runs), *(path for path, _ in self.benches)):
            summary = summary_section(
                self.runs,
                self.exports,
                self.benches,
                jobs,
                self._known_evaluations(),
                list(self._other_runs()),
            )
        if summary is not None:
            found.append(summary)
        if self.runs:
            with _describing(*(one.path for one in self.runs)):
                found.append(training_section(self.runs, told=compared(self.runs)))
        for path, facts in self.evaluations:
            with _describing(path):
                found.append(evaluation_section(facts, name=str(path)))
        for scored in self.scored:
            with _describing(scored.path):
                place = None if images is None else locate_in(images)
                found.append(scored_section(scored, locate=place))
        for path, job in jobs:
            with _describing(path):
                where = _locate(path, images)
                found.append(
                    job_section(path, locate=where, facts=_known_of(path, images), job=job)
                )
        for path, report in self.benches:
            with _describing(path):
                found.append(bench_section(report))
        if self.exports:
            with _describing(*(one.path for one in self.exports)):
                found.append(exports_section(self.exports))
        if self.left_out:
            found.append(left_out_section(self.left_out))
        return found

    def _other_runs(self) -> Iterator[Artifact]:
        """Yield the runs that are left out; the page says what is wrong with damaged ones."""
        for path in self.left_out:
            if (path / CARD).is_file():
                with suppress(ArtifactError):
                    yield read_artifact(path)

    def _known_evaluations(self) -> list[EvaluationFacts]:
        """Return the evaluations whose model is known."""
        told = [facts for _, facts in self.evaluations]
        told += filter(None, (one.told for one in self.scored))
        return [one for one in told if one.model]

    def _read_job(self, path: Path) -> JobFacts:
        """Read a job, and find what its distances are compared with."""

        def find(classes: Sequence[str]) -> Reference | None:
            return remembered_reference(path) or reference_among(self.exports, classes)

        return read_job(path, find)


def left_out_section(left_out: Mapping[Path, str]) -> Section:
    """Return the section about results that are not on the page, and why."""
    rows = tuple((str(path), why) for path, why in left_out.items())
    title = "Results in the same folder that are not on this page"
    how = "To report them, name all that the page should have: tltools report PATH ..."
    return Section(
        "Left out",
        [Table(title, ("path", "why"), rows, numbers_from=2), Text((how,), tone="quiet")],
    )


def _known_of(job: Path, images: Path | None) -> Iterator[str]:
    """Yield the model and the images of a job, as far as they are known."""
    if model := remembered_model(job):
        yield f"Model {model}"
    inputs = remembered_inputs(job) if images is None else [images]
    if inputs:
        yield images_from(inputs)


def _locate(job: Path, images: Path | None) -> Locate | None:
    """Return a function that finds the images of a job, if it is known where they are."""
    if images is not None:
        return locate_in(images)
    inputs = remembered_inputs(job)
    if inputs is None:
        return None
    in_inputs, moved_to = locate_inputs(inputs), remembered_sorted(job)
    if moved_to is None:
        return in_inputs
    in_sorted = locate_in(moved_to)
    return lambda name: in_inputs(name) or in_sorted(name)  # they may have been brought back


@contextmanager
def _describing(*paths: Path) -> Iterator[None]:
    """Turn errors into one that names these results, which may come from a stranger.

    Their values have the right types, but any of them may be out of range, or contradict another:
    what a chart does then depends on the library that draws it.

    Raises:
        DataError: If they cannot be described.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of numbers out of range
            yield
    except TltoolsError:
        raise
    except (
        *(ArithmeticError, LookupError, TypeError, ValueError, RuntimeError),
        StopIteration,  # of a name that no row has
    ) as error:
        names = ", ".join(map(str, paths))
        raise DataError(
            f"{names} cannot be shown: some values are not what tltools writes "
            f"({cause_of(error)}); recreate the file"
        ) from error


def find_sources(paths: Sequence[Path]) -> Sources:
    """Read the results that the user named, or find the newest ones.

    Args:
        paths: Runs, exports, folders of them, bench results, evaluations and predictions files;
            empty for the newest of each kind in the current folder.

    Raises:
        ConfigError: If a path cannot be reported, or there is nothing to report.
        ArtifactError, DataError: If a result is damaged.
    """
    sources = Sources()
    if paths:
        for path in dict.fromkeys(paths):
            _add(sources, path)
    else:
        _add_newest(sources)
    if not sources.paths():
        raise DataError(
            "nothing to report here: no run in runs/, no export or bench-*.json in exports/, no "
            "predictions; train a run with tltools train, or name the results to report"
        )
    return sources


def _add(sources: Sources, path: Path) -> None:
    suffix = path.suffix.lower()
    if not path.exists():
        if unfinished_path(path).exists():
            raise DataError(
                f"{path} is not complete; to finish it, run tltools classify with its inputs again"
            )
        raise DataError(
            f"{path} does not exist{similar_paths(path, RUN_DIR)}: name runs, exports, or files "
            "that tltools wrote"
        )
    if path.is_dir():
        _add_folder(sources, path)
    elif is_export_name(path):
        sources.exports.append(read_artifact(path))
    elif suffix == ".json":
        _add_json(sources, path)
    elif suffix in all_suffixes():
        _add_predictions(sources, path)
    else:
        raise ConfigError(
            f"{path} cannot be reported: name a run's folder, an export "
            f"({suffixes()}), a bench-*.json, an evaluation.json, or predictions "
            f"({known_suffixes()})"
        )


def _add_folder(sources: Sources, folder: Path) -> None:
    if (folder / CARD).is_file() or is_run(folder):  # of an unfinished one, the error says so
        sources.runs.append(read_artifact(folder))
        return
    runs = sorted(path.parent for path in visible(folder.glob(f"*/{CARD}")))
    exports = sorted(
        path
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        # A run has a .pt too, its training state, and always a split.csv.
        if _may_be_export(path) and not (path.parent / SPLIT).exists()
    )
    scores = _scores_in(folder)
    if not runs and not exports and not scores:
        raise ConfigError(
            f"{folder} holds neither runs nor exports, nor results of tltools evaluate: name a "
            "run's folder, or files that tltools wrote"
        )
    sources.runs += map(read_artifact, runs)
    sources.exports += map(read_artifact, exports)
    for path in scores:
        _add(sources, path)


def _scores_in(folder: Path) -> list[Path]:
    """Return the results that `evaluate` wrote into a folder: its predictions, or what it has."""
    if not (folder / EVALUATION).is_file():
        return []
    names = [PREDICTIONS] if (folder / PREDICTIONS).is_file() else [EVALUATION, MISTAKES]
    return [folder / name for name in names if (folder / name).is_file()]


def _add_json(sources: Sources, path: Path) -> None:
    try:
        data = read_regular(path, max_bytes=MAX_EVALUATION_BYTES)
        keys = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except OSError as error:
        raise DataError(f"{path} cannot be read: {cause_of(error)}") from error
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DataError(f"{path} is not a JSON file that tltools wrote: {error}") from error
    if "rows" in keys:
        sources.benches.append((path, read_bench(data, where=path)))
    else:
        sources.evaluations.append((path, read_evaluation(data, where=path)))


def _add_predictions(sources: Sources, path: Path) -> None:
    """Add a file of predictions, scored if it has true labels."""
    with _describing(path):
        scored = read_labeled(path)
    if scored is None:
        sources.jobs.append(path)
        return
    sources.scored.append(scored)
    if scored.told is not None:  # whose scores are shown with the predictions
        beside = path.with_name(EVALUATION)
        sources.evaluations = [one for one in sources.evaluations if one[0] != beside]


def _add_newest(sources: Sources) -> None:
    """Add the newest results in the current folder, and say what is left out."""
    if any(_run_folders()):
        sources.runs += find_runs(key=_is_about)  # the page says what is wrong with the others
    sources.exports, left_out = _newest_exports()
    benches = sorted(
        [*EXPORT_DIR.glob("bench-*.json"), *Path().glob("bench-*.json")],
        key=lambda path: path.name,
        reverse=True,
    )
    for path in benches[:1]:
        _add_json(sources, path)
    left_out |= _older(benches)
    predictions = _predictions_here()
    empty = _without_labels(predictions)
    left_out |= dict.fromkeys(empty, "none of its images could be classified")
    predictions = [path for path in predictions if path not in empty]
    for path in predictions[:1]:
        _add_predictions(sources, path)
    left_out |= _older(predictions)
    evaluations, older = _newest_evaluations()
    for path in (one for folder in evaluations for one in _scores_in(folder)):
        _add(sources, path)
    left_out |= older
    sources.runs += _runs_behind(sources)
    sources.left_out = _runs_left_out(sources.runs) | left_out


def _older(files: Sequence[Path]) -> dict[Path, str]:
    """Return why all files but the first, the newest, are left out, by path."""
    return dict.fromkeys(files[1:], f"{files[0]} is newer") if files else {}


def _run_folders() -> list[Path]:
    return sorted(path.parent for path in visible(RUN_DIR.glob(f"*/{CARD}")))


def _is_about(one: Artifact) -> tuple[object, ...]:
    """Return the kind and the data set of a run or an export: the newest of each is shown."""
    return *one.kind, one.card.data.name


def _newest_exports() -> tuple[list[Artifact], dict[Path, str]]:
    """Return the exports of the newest training of each model on each data set, and the others.

    Returns:
        The exports, and why others are left out, by path.

    Raises:
        ArtifactError: If one is damaged.
    """
    if not any(map(_may_be_export, EXPORT_DIR.glob("*/*"))):
        return [], {}
    shown, earlier = current_and_earlier_exports(key=_is_about)
    newest = {_is_about(one): one.card for one in shown}
    left_out = {one.path: f"it {why}" for one in shown if (why := newer_training(one))}
    for one in earlier:
        card = newest[_is_about(one)]
        left_out[one.path] = (
            f"an earlier training of {card.run} made it"
            if card.run == one.card.run
            else _newer(f"the export of {card.run}", card)
        )
    return [one for one in shown if one.path not in left_out], left_out


def _newer(name: str, card: Card) -> str:
    return f"{name} is newer, and of the same model and data ({card.model} on {card.data.name})"


def _runs_behind(sources: Sources) -> Iterator[Artifact]:
    """Yield the runs of the exports, benches and predictions that are shown, if they are older."""
    shown = {one.path.resolve() for one in sources.runs}
    folders = [run_of(export.path, export.card) for export in sources.exports]
    folders += (RUN_DIR / row.run for _, bench in sources.benches for row in bench.rows)
    models = filter(None, map(remembered_model, sources.jobs))
    folders += map(_folder_of, models)
    for folder in filter(None, folders):
        # The names of runs in a file may be anything.
        if folder.resolve() in shown or not (folder / CARD).is_file() or ".." in folder.parts:
            continue
        shown.add(folder.resolve())
        try:
            yield read_artifact(folder)
        except ArtifactError:
            continue  # the page says what is wrong with it


def _runs_left_out(shown: Sequence[Artifact]) -> dict[Path, str]:
    """Return why the other runs of the current folder are not shown, by path."""
    paths = {one.path for one in shown}
    left_out: dict[Path, str] = {}
    for folder in (folder for folder in _run_folders() if folder not in paths):
        try:
            one = read_artifact(folder)
        except ArtifactError as error:
            left_out[folder] = str(error)
            continue
        same = (run for run in shown if _is_about(run) == _is_about(one))
        newer = max(same, key=lambda run: run.card.created, default=None)
        if newer is not None:  # else it was finished while the others were read
            left_out[folder] = _newer(newer.path.name, newer.card)
    return left_out


def _newest_evaluations() -> tuple[list[Path], dict[Path, str]]:
    """Return the folders of the newest evaluation of each model on each data set, and the others.

    Returns:
        The folders, and why others are left out, by path.
    """
    found = list(islice(visible(Path().glob(f"*/{EVALUATION}")), MAX_LOOKED_AT))
    newest: dict[tuple[str, ...], Path] = {}
    left_out: dict[Path, str] = {}
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            facts = read_evaluation(read_regular(path, max_bytes=MAX_EVALUATION_BYTES), where=path)
        except (OSError, DataError) as error:
            left_out[path.parent] = cause_of(error)
            continue
        newer = newest.setdefault((facts.model, facts.data, facts.split), path.parent)
        if newer != path.parent:
            left_out[path.parent] = f"{newer}, of the same model and data, is newer"
        elif _is_trained_since(facts.model, path):
            del newest[facts.model, facts.data, facts.split]
            left_out[path.parent] = f"{facts.model} was trained after this evaluation"
    return list(newest.values()), left_out


def _folder_of(model: str) -> Path:
    """Return where the run of a run's or an export's name would be: of `cnn onnx fp32`, `cnn`."""
    return RUN_DIR / model.rsplit(" ", 2)[0]


def _is_trained_since(model: str, evaluation: Path) -> bool:
    """Return whether the run of a model was trained after the file of its evaluation."""
    try:
        created = datetime.fromisoformat(read_artifact(_folder_of(model)).card.created)
    except (ArtifactError, ValueError):
        return False
    return created.timestamp() > evaluation.stat().st_mtime


MAX_LOOKED_AT = 200
"""Most files of the current folder that are opened to see whether they hold predictions."""


def _predictions_here() -> list[Path]:
    """Return the files of predictions in the current folder, the newest first."""
    found = [
        (path.stat().st_mtime_ns, _is_default(path), path)
        for path in sorted(Path().iterdir())
        if path.suffix.lower() in all_suffixes() and path.is_file()
    ]
    newest = (path for *_, path in sorted(found, key=lambda one: one[:2], reverse=True))
    # A damaged file that has the name of an output is an error, which names it.
    return [
        path
        for path in islice(newest, MAX_LOOKED_AT)
        if _is_default(path) or _holds_predictions(path)
    ]


def _without_labels(files: Sequence[Path]) -> list[Path]:
    """Return the newest files in which no image has a label, if an older one has some."""
    empty = list(takewhile(lambda path: not _has_label(path), files))
    return empty if len(empty) < len(files) else []


def _has_label(path: Path) -> bool:
    """Return whether an image has a label; True of a file that cannot be read, for its error."""
    try:
        _, rows = output_format(path).read(path)
        return any(row.label is not None for row in rows)
    except (OSError, TltoolsError, ImportError):
        return True


def _is_default(path: Path) -> bool:
    """Return whether a file has the name that `classify` gives its output."""
    return path.stem == "predictions"


def _holds_predictions(path: Path) -> bool:
    """Return whether a file holds predictions, by its first rows; False if it cannot be read."""
    try:
        if path.suffix.lower() in CSV.suffixes:  # those of evaluate have more columns
            return classes_of(read_columns(path)) is not None
        classes, _ = output_format(path).read(path)
    except (OSError, DataError, ImportError):
        return False
    return bool(classes)


def _may_be_export(path: Path) -> bool:
    return is_export_name(path) and not path.name.startswith(".")
