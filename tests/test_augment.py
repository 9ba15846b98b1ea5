"""Augmentation of whole batches against torchvision's operations on single images."""

import math

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from tltools.training.augment import apply_changes, draw_changes

SIZE = 48
WHOLE = (0, 0, SIZE, SIZE)


@pytest.fixture(scope="module")
def images():
    """Smooth and noisy images, uint8 (20, 48, 48, 3)."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.linspace(0, 160, SIZE)[None, :, None, None]
    noise = torch.randint(0, 96, (20, SIZE, SIZE, 3), generator=generator)
    return (rows + noise).to(torch.uint8)


def changes(*, flip=0.0, box=WHOLE, factors=(1.0, 1.0, 1.0), order=(0, 1, 2)):
    return torch.tensor([[flip, *box, *factors, *order]])


def reference(image, change):
    """Return torchvision's result for one image, without rounding between the operations."""
    flip, left, top, width, height, *factors = change[:8].tolist()
    pixels = image.permute(2, 0, 1).double() / 255
    if flip:
        pixels = TF.horizontal_flip(pixels)
    box = [int(value) for value in (top, left, height, width)]
    pixels = TF.resized_crop(pixels, *box, [SIZE, SIZE], antialias=True)
    adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)
    for operation in change[8:].int().tolist():
        pixels = adjust[operation](pixels, factors[operation])
    return (pixels * 255).permute(1, 2, 0)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(changes(flip=1.0), id="flip"),
        pytest.param(changes(box=(0, 0, 40, 37)), id="corner"),
        pytest.param(changes(flip=1.0, box=(3, 7, 45, 41)), id="flip-and-crop"),
        pytest.param(changes(factors=(1.2, 1.0, 1.0)), id="brighter"),
        pytest.param(changes(factors=(0.8, 1.0, 1.0)), id="darker"),
        pytest.param(changes(factors=(1.0, 1.2, 1.0)), id="contrast"),
        pytest.param(changes(factors=(1.0, 1.0, 0.8)), id="saturation"),
        pytest.param(changes(factors=(1.2, 0.8, 1.2), order=(2, 0, 1)), id="order"),
    ],
)
def test_every_transform_equals_torchvisions(images, change):
    changed = apply_changes(images[:1], change)[0]
    assert not torch.equal(changed, images[0])
    torch.testing.assert_close(changed.double(), reference(images[0], change[0]), atol=0.52, rtol=0)


def test_every_image_gets_its_own_transform(images):
    drawn = draw_changes(len(images), SIZE, "color", torch.Generator().manual_seed(3))
    for image, change, changed in zip(images, drawn, apply_changes(images, drawn), strict=True):
        expected = reference(image, change)
        torch.testing.assert_close(changed.double(), expected, atol=0.52, rtol=0)


def test_no_transform_leaves_the_image_unchanged(images):
    assert torch.equal(apply_changes(images, changes().expand(len(images), -1)), images)


def test_an_augmented_image_does_not_depend_on_its_batch(images):
    drawn = draw_changes(len(images), SIZE, "color", torch.Generator().manual_seed(4))
    whole = apply_changes(images, drawn)
    assert torch.equal(apply_changes(images[5:16], drawn[5:16]), whole[5:16])


def test_the_same_seed_repeats_and_another_differs():
    first, again, other = (
        draw_changes(50, SIZE, "color", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_crops_are_distributed_like_torchvisions():
    num, size = 20_000, 224
    drawn = draw_changes(num, size, "color", torch.Generator().manual_seed(5)).double()
    left, top, width, height = drawn[:, 1:5].unbind(1)
    assert ((left >= 0) & (left + width <= size) & (top >= 0) & (top + height <= size)).all()
    crop = v2.RandomResizedCrop(size, scale=(0.6, 1.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        image = torch.empty((3, size, size), dtype=torch.uint8)
        params = [crop.make_params([image]) for _ in range(num // 4)]
    for values, name in ((left, "left"), (top, "top"), (width, "width"), (height, "height")):
        theirs = torch.tensor([float(one[name]) for one in params]).double()
        # Five standard errors of the difference of two means.
        tolerance = 5 * theirs.std().item() * math.sqrt(5 / num)
        assert values.mean().item() == pytest.approx(theirs.mean().item(), abs=tolerance), name
        assert values.std().item() == pytest.approx(theirs.std().item(), rel=0.1), name


def test_flips_factors_and_orders_are_uniform():
    num = 20_000
    drawn = draw_changes(num, SIZE, "color", torch.Generator().manual_seed(7))
    assert drawn[:, 0].mean().item() == pytest.approx(0.5, abs=0.02)
    factors = drawn[:, 5:8]
    assert factors.min() >= 0.8
    assert factors.max() <= 1.2
    torch.testing.assert_close(factors.mean(0), torch.ones(3), atol=0.005, rtol=0)
    orders, counts = drawn[:, 8:].unique(dim=0, return_counts=True)
    assert len(orders) == 6
    torch.testing.assert_close(counts / num, torch.full((6,), 1 / 6), atol=0.02, rtol=0)


def test_transforms_run_on_one_device_without_waiting_for_it():
    with torch.device("meta"):  # reading a value there fails
        images = torch.empty((4, SIZE, SIZE, 3), dtype=torch.uint8)
        drawn = torch.empty((4, 11))
    changed = apply_changes(images, drawn)
    assert (changed.device.type, changed.shape, changed.dtype) == (
        "meta",
        images.shape,
        torch.uint8,
    )
