"""Write a short program that runs an export with Pillow and onnxruntime, without tltools."""

from importlib.resources import files
from pathlib import Path
from string import Template

from tltools.card import Card

_REQUIREMENTS = "numpy\nonnxruntime>=1.20\npillow>=10.1\n"
_SQUASH = "box = None  # both sides are scaled to $size"
_CROP = """\
box = None  # an image of $size x $size is taken as it is
    if image.size != ($size, $size):  # else: short side to $scaled, then the center of $size
        side = min(image.size) * $size / $scaled
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)"""


def program_files(export: Path, card: Card) -> dict[str, str | bytes | Path]:
    """Return the program, its requirements and the model, by name."""
    return {
        "predict.py": program(card),
        "requirements.txt": _REQUIREMENTS,
        "model.onnx": export,
    }


def program(card: Card) -> str:
    """Return the source code of a program that classifies images as `classify` does.

    Pillow decodes a large JPEG at its full size, and `classify` at a fraction of it, so pixels
    differ slightly.
    """
    rules = card.preprocessing
    text = (files("tltools.layouts") / "program" / "predict.py.txt").read_text(encoding="utf-8")
    values = {
        "classes": f"[{', '.join(map(ascii, card.classes))}]",
        "size": rules.size,
        "scaled": rules.scaled_side,
        "filter": rules.interpolation.upper(),
    }
    box = Template(_CROP if rules.resize == "crop" else _SQUASH).substitute(values)
    return Template(text).substitute(values, box=box)
