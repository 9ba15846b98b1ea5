"""Training curves, confusion matrices and contact sheets as PNG files."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from tltools.atomic import atomic_path
from tltools.card import Preprocessing, Resize
from tltools.data.folders import SHEET_MARK
from tltools.data.images import load_image
from tltools.metrics import most_mistaken
from tltools.wording import percent, plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.text import Text

SOFTWARE = "tltools"
MARK = b"Software\0" + SOFTWARE.encode()
"""In the first bytes of every plot, to tell it from other PNG files."""
_DPI = 120
_MAX_NAME = 24
"""Maximum characters of a class name in a plot."""
MAX_MATRIX = 50
"""Maximum classes in a drawing of a confusion matrix; of more, those with the most mistakes."""
_MIN_STRENGTH = 0.15
_MAX_ROWS = 50
"""Maximum classes on a contact sheet."""
_MAX_STRENGTH = 0.55
"""Maximum opacity of a cell, so that its text has the contrast of 4.5 required by WCAG 2.2."""


def plot_history(
    history: "pd.DataFrame", path: Path, *, title: str, kept: int | None = None
) -> None:
    """Plot loss and accuracy over the epochs.

    Args:
        history: Columns `epoch`, `train_loss`, `val_loss`, `train_accuracy`, `val_accuracy`
            (in [0, 1]); one row per epoch.
        path: PNG to write.
        title: Above the panels.
        kept: The epoch whose weights were kept, which is marked; None for none.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    literal(figure.suptitle(title))
    loss, accuracy = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
    draw_history(loss, accuracy, history, kept=kept)
    _save(figure, path)


def percent_axis(axis: "Axis") -> None:
    """Label an axis of shares as settings are written, with as many decimals as a tick needs."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda share, _: percent(share)))


def draw_history(
    loss: "Axes", accuracy: "Axes", history: "pd.DataFrame", *, kept: int | None = None
) -> None:
    """Draw loss and accuracy over the epochs in a panel each; see `plot_history`."""
    from matplotlib.ticker import MaxNLocator

    splits = (("train", "training", "--s"), ("val", "validation", "-o"))
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        for split, label, style in splits:
            values = history[f"{split}_{quantity}"]
            # Markers, because a run of one epoch has no line.
            axes.plot(history["epoch"], values, style, markersize=3, label=label)
        if kept is not None:
            color = axes.xaxis.label.get_color()  # of the page, in a report
            axes.axvline(kept, color=color, linewidth=1, linestyle=":", label="kept epoch")
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(history):  # there is no epoch 0
            epochs = history["epoch"].to_numpy(dtype=np.float64)
            axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
        axes.grid(linewidth=0.5)
        axes.legend()
    percent_axis(accuracy.yaxis)


def plot_confusion(
    matrix: NDArray[np.int64], classes: Sequence[str], path: Path, *, title: str
) -> None:
    """Plot a confusion matrix: counts, with each row's shares as percentages and color.

    Of more than `MAX_MATRIX` classes, those with the most mistakes are drawn, as the title says.

    Args:
        matrix: Counts, (C, C); row is the true class, column the predicted class.
        classes: Names of the C classes.
        path: PNG to write.
        title: Above the matrix.

    Raises:
        ValueError: If the matrix is not (C, C).
    """
    from matplotlib.figure import Figure

    num_classes = len(classes)
    if matrix.shape != (num_classes, num_classes):
        raise ValueError(f"a matrix {matrix.shape} does not match {num_classes} classes")
    names, support = [short_name(name) for name in classes], matrix.sum(axis=1)
    if num_classes > MAX_MATRIX:
        worst = most_mistaken(matrix, MAX_MATRIX)
        matrix, support = matrix[np.ix_(worst, worst)], support[worst]
        names = [names[index] for index in worst]
        title += f": the {MAX_MATRIX} of {num_classes:,} classes with the most mistakes"
        num_classes = MAX_MATRIX
    font = max(6.0, 11 - 0.4 * num_classes)  # points
    side = max(3.0, max(0.42, 1.1 - 0.05 * num_classes) * num_classes)  # inches
    # The axes fill the figure, and saving adds room for the labels around them: matplotlib's
    # layout engines cut off labels of axes with a fixed aspect.
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0, 0, 1, 1))
    style = MatrixStyle(
        font=font,
        name_font=max(7.0, font),
        flat=num_classes <= 4 and max(map(len, names)) <= 14,
    )
    draw_confusion(axes, matrix, names, support=support, style=style)
    literal(axes.set_title(title, pad=14))
    _save(figure, path)


@dataclass(frozen=True, kw_only=True)
class MatrixStyle:
    """How to draw a confusion matrix."""

    font: float
    """Font size in the cells, in points."""
    name_font: float
    """Font size of the names, in points."""
    flat: bool
    """Whether column names are horizontal."""
    shares: bool = True
    """Whether cells show their share below their count."""
    numbers: bool = True
    """Whether cells show numbers as well as their color."""


def draw_confusion(
    axes: "Axes",
    matrix: NDArray[np.int64],
    names: Sequence[str],
    *,
    support: NDArray[np.int64],
    style: MatrixStyle,
) -> None:
    """Draw a confusion matrix; the opacity of a cell is its share of the true class.

    Args:
        axes: Axes to draw into.
        matrix: Counts, (C, C); row is the true class, column the predicted class.
        names: Names of the C classes, short enough to show.
        support: Images of each true class, (C,).
        style: Sizes, and what the cells show.
    """
    shares = matrix / np.maximum(support[:, None], 1)  # (C, C)
    _draw_cells(axes, matrix, shares, style)
    _draw_names(axes, names, style)
    if style.numbers:
        _draw_numbers(axes, matrix, shares, style)


def _draw_cells(
    axes: "Axes", matrix: NDArray[np.int64], shares: NDArray[np.float64], style: MatrixStyle
) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    filled = np.argwhere(matrix > 0)
    cells = [Rectangle((column - 0.5, row - 0.5), 1, 1) for row, column in filled]
    alpha = shares[matrix > 0]
    # Without numbers, even the smallest share needs a visible color.
    alpha = _MAX_STRENGTH * alpha if style.numbers else _MIN_STRENGTH + (1 - _MIN_STRENGTH) * alpha
    axes.add_collection(PatchCollection(cells, facecolor="C0", edgecolor="none", alpha=alpha))
    end = len(matrix) - 0.5
    axes.set(xlim=(-0.5, end), ylim=(end, -0.5), aspect="equal")
    axes.spines[:].set_visible(True)


def _draw_names(axes: "Axes", names: Sequence[str], style: MatrixStyle) -> None:
    turned = {"rotation": 90, "rotation_mode": "anchor", "ha": "right", "va": "center"}
    ticks = range(len(names))
    axes.set_xticks(ticks, names, fontsize=style.name_font, **({} if style.flat else turned))
    if style.flat:  # on one line, whatever the height of their first letters is
        axes.tick_params(axis="x", pad=style.name_font + 3)
        for label in axes.get_xticklabels():
            label.set_verticalalignment("baseline")
    axes.set_yticks(ticks, names, fontsize=style.name_font)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        literal(label)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")


def _draw_numbers(
    axes: "Axes", matrix: NDArray[np.int64], shares: NDArray[np.float64], style: MatrixStyle
) -> None:
    num_classes = len(matrix)
    decimals = 1 if num_classes <= 10 else 0
    aligns = ("bottom", "top") if style.shares else ("center",)
    for row, column in np.ndindex(matrix.shape):
        count, share = int(matrix[row, column]), shares[row, column]
        if not count and num_classes > 10:
            continue  # zeros would clutter a large matrix
        lines = (f"{count:,}", f"{share:.{decimals}%}")[: len(aligns)]
        for line, align in zip(lines, aligns, strict=True):
            axes.text(column, row, line, ha="center", va=align, fontsize=style.font)


_HEAT = "plasma"
"""Color map of evidence; it holds no black and no gray, which could be the image's own."""
_MOST_OPAQUE = 0.7
"""Opacity of the largest evidence, through which the image can still be seen."""


def _faded() -> "ListedColormap":
    """Return the color map as it appears over an image: the less evidence, the less color."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    steps = np.linspace(0, 1, 256)
    colors = colormaps[_HEAT](steps)
    colors[:, 3] = _MOST_OPAQUE * steps
    return ListedColormap(colors)


def plot_heat(
    image: NDArray[np.uint8],
    heat: NDArray[np.float32],
    path: Path,
    *,
    title: str,
    image_title: str,
    heat_title: str,
) -> None:
    """Plot an image beside a heat map over the same image in gray.

    Args:
        image: Square, RGB, (H, H, 3).
        heat: Values in [0, 1], (S, S); the same view at any resolution.
        path: PNG to write.
        title: Above both.
        image_title: Above the image.
        heat_title: Above the heat map.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5), layout="constrained")
    literal(figure.suptitle(short_name(title, 60)))
    left, right = figure.subplots(1, 2)
    frame = (0, 1, 1, 0)  # left, right, bottom, top: aligns both resolutions
    left.imshow(image, extent=frame)
    gray = image @ np.array([0.299, 0.587, 0.114])  # luma, ITU-R BT.601
    right.imshow(gray, extent=frame, cmap="gray", vmin=0, vmax=255)
    # As opaque as the evidence is large: where there is none, the image is as it was.
    right.imshow(heat, extent=frame, cmap=_HEAT, vmin=0, vmax=1, alpha=_MOST_OPAQUE * heat)
    scale = ScalarMappable(Normalize(0, 1), cmap=_faded())
    bar = figure.colorbar(scale, ax=right, fraction=0.046, pad=0.03)
    percent_axis(bar.ax.yaxis)
    bar.ax.set_facecolor("gray")  # as the image is where there is no evidence
    bar.set_label("share of the largest value")
    for axes, text in ((left, image_title), (right, heat_title)):
        axes.set_axis_off()
        literal(axes.set_title(short_name(text, 48), fontsize=11))
    _save(figure, path)


def contact_sheet(
    frame: "pd.DataFrame",
    classes: Sequence[str],
    path: Path,
    *,
    per_class: int = 6,
    resize: Resize = "squash",
) -> None:
    """Draw a few images of each class, evenly spaced through its rows.

    Args:
        frame: Columns `path` and `class`.
        classes: Classes in the order of the sheet's rows; only the first 50 are drawn.
        path: PNG to write.
        per_class: Images per row.
        resize: Resize rule, so that the sheet shows what the model sees.

    Raises:
        DataError: If an image cannot be read.
    """
    size, gap, caption = 128, 6, 24  # pixels
    shown = list(classes)[:_MAX_ROWS]
    paths_of: dict[str, list[str]] = {name: [] for name in classes}
    for file, name in zip(frame["path"], frame["class"], strict=True):
        paths_of[name].append(file)
    rules = Preprocessing(size=size, resize=resize)
    row_height = caption + size + gap
    footer = caption if len(shown) < len(classes) else 0
    width = gap + max(per_class, 3) * (size + gap)
    sheet = Image.new("RGB", (width, gap + len(shown) * row_height + footer), "white")
    draw, font = ImageDraw.Draw(sheet), _font(15)
    for row, name in enumerate(shown):
        paths, top = paths_of[name], gap + row * row_height
        unit = plural(len(paths), "image")
        draw.text((gap, top), f"{short_name(name)}: {len(paths):,} {unit}", "black", font)
        chosen = np.linspace(0, len(paths) - 1, min(per_class, len(paths))).round().astype(int)
        for column, index in enumerate(chosen):
            image = Image.fromarray(load_image(paths[index], rules))
            sheet.paste(image, (gap + column * (size + gap), top + caption))
    if footer:
        num_rest = len(classes) - len(shown)
        rest = f"and {num_rest:,} more {plural(num_rest, 'class', 'classes')}"
        draw.text((gap, sheet.height - footer), rest, "black", font)
    with atomic_path(path) as temporary:
        mark = PngImagePlugin.PngInfo()
        mark.add_text("Title", SHEET_MARK)
        sheet.save(temporary, format="PNG", pnginfo=mark)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's own font, which has more glyphs than Pillow's."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def short_name(name: str, longest: int = _MAX_NAME) -> str:
    """Shorten a long name in its middle, since similar names often differ at the end.

    Wide characters, such as Korean ones, count as two. Unprintable characters become a replacement
    character.
    """
    name = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)
    if num_columns(name) <= longest:
        return name
    head, tail, half = name, name, longest // 2
    while num_columns(head) > half:
        head = head[:-1]
    while num_columns(tail) > half - 1:
        tail = tail[1:]
    return f"{head}…{tail}"


def num_columns(name: str) -> int:
    """Return the width of a name in narrow characters."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in name)


def literal(text: "Text") -> None:
    """Show dollar signs literally: names of classes and folders may contain them."""
    text.set_parse_math(False)


def _save(figure: "Figure", path: Path) -> None:
    """Write a reproducible PNG, with our name in it and without matplotlib's version."""
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # A glyph that the font lacks is drawn as a box, which is warning enough.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(
            temporary,
            format="png",
            dpi=_DPI,
            bbox_inches="tight",
            pad_inches=0.1,
            metadata={"Software": SOFTWARE},
        )
