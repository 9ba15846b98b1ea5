"""How far images are from the training images: the distance, its percentiles, every file of it."""

import numpy as np
import pytest

from tltools.card import DISTANCE_LEVELS, Distances
from tltools.distance import (
    FAR_RANGES,
    NUM_DIRECTIONS,
    Distance,
    far_out,
    fit_distance,
    load_distance,
    measure_distances,
    save_distance,
)
from tltools.errors import ArtifactError


def features(num, size, *, seed=0, shift=0.0):
    """Positive features whose first few directions vary most."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(num, size)) * np.linspace(2, 0.1, size)
    return (5 + values + shift * rng.normal(size=size)).astype(np.float32)


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def slow_distance(training, values):
    """Mahalanobis with the covariance that scikit-learn's Ledoit-Wolf estimator gives."""
    from sklearn.covariance import LedoitWolf

    found = LedoitWolf().fit(unit(training.astype(np.float64)))
    centered = unit(values.astype(np.float64)) - found.location_
    squares = np.einsum("ij,jk,ik->i", centered, np.linalg.inv(found.covariance_), centered)
    return np.sqrt(squares / training.shape[1])


@pytest.mark.parametrize(("num", "size"), [(200, 12), (10, 30), (500, NUM_DIRECTIONS)])
def test_the_distance_is_that_of_a_shrunk_gaussian_of_unit_features(num, size):
    training, others = features(num, size), features(20, size, seed=1, shift=1.0)
    found = fit_distance(training)
    for values in (training, others):
        np.testing.assert_allclose(found(values), slow_distance(training, values), rtol=2e-3)
    assert np.median(found(others)) > np.median(found(training))


def test_of_many_features_the_largest_directions_are_kept_and_the_rest_is_one_variance():
    training = features(300, 200)
    found = fit_distance(training)
    assert found.directions.shape == (200, NUM_DIRECTIONS)
    # The same mean square as with all directions: total variance is kept.
    everything = slow_distance(training, training)
    assert np.sqrt((found(training) ** 2).mean()) == pytest.approx(
        np.sqrt((everything**2).mean()), rel=0.1
    )


def test_brighter_or_flattened_features_are_as_far():
    training = features(50, 8)
    found = fit_distance(training)
    maps = np.repeat(training, 9, axis=1)  # 8 channels of 3 x 3 locations
    np.testing.assert_allclose(found(maps), found(training), rtol=1e-5)
    np.testing.assert_allclose(found(3 * training), found(training), rtol=1e-4)


def test_equal_images_and_features_of_zero_have_finite_distances():
    equal = np.ones((6, 5), np.float32)
    assert fit_distance(equal)(equal).max() < 0.1
    assert np.isfinite(fit_distance(np.zeros((6, 5), np.float32))(features(3, 5))).all()
    assert np.isfinite(fit_distance(features(6, 5))(np.zeros((1, 5), np.float32))).all()


def test_percentiles_are_of_images_that_the_distance_was_fitted_without():
    training, validation = features(400, 60), features(2000, 60, seed=1)
    found, facts, held_out = measure_distances(training, validation)
    assert held_out.shape == (400,)
    np.testing.assert_allclose(facts.percentiles, np.percentile(held_out, DISTANCE_LEVELS))
    assert facts.num_images == 400
    assert len(facts.percentiles) == len(DISTANCE_LEVELS)
    # On training images themselves, distances are smaller: they would call more images unlike.
    assert np.percentile(found(training), 95) < facts.at(95)
    for one in facts.beyond:
        share = (found(validation) > facts.at(one.level)).mean()
        assert one.validation.value == share
        assert share == pytest.approx(1 - one.level / 100, abs=0.03)


def test_a_percentile_is_interpolated_linearly_as_numpy_does():
    training = features(300, 10)
    facts = measure_distances(training, training).facts
    # numpy between the levels that are kept
    for level in (0.5, 1.0, 42.0, 42.25, 99.7, 99.95):
        expected = np.interp(level, DISTANCE_LEVELS, facts.percentiles)
        assert facts.at(level) == pytest.approx(expected, rel=1e-12)
        assert facts.percentile_of(facts.at(level)) == pytest.approx(level, abs=1e-6)
    assert facts.percentile_of(-1) == 0
    assert facts.percentile_of(facts.percentiles[-1] + 1) == 100


def test_copies_count_once_and_too_few_images_have_no_distance():
    training = features(5, 4)
    copies = np.repeat(training, 3, axis=0)
    _, facts, held_out = measure_distances(copies, training)
    np.testing.assert_array_equal(held_out, np.repeat(held_out[::3], 3))
    assert facts.num_images == 5
    assert measure_distances(np.repeat(training[:3], 5, axis=0), training) is None
    facts = measure_distances(training, training[:0]).facts
    assert facts.beyond == ()


def test_an_odd_training_image_is_far_out_and_keeps_its_place():
    training = features(200, 20)
    training[17] += (60 * np.eye(20)[3]).astype(np.float32)
    _, facts, held_out = measure_distances(training, training[:10])
    limit = far_out(facts)
    assert np.flatnonzero(held_out > limit).tolist() == [17]
    low, high = facts.at(25), facts.at(75)
    fence = np.exp(np.log(high) + FAR_RANGES * (np.log(high) - np.log(low)))
    assert limit == pytest.approx(max(fence, 2 * facts.at(50)))
    assert far_out(measure_distances(training[:30], training[:2]).facts) == np.inf
    equal = Distances(percentiles=(0.0,) * 100 + (1.0, 1.0, 1.0), num_images=500)
    assert far_out(equal) == np.inf


def test_a_distance_is_saved_and_read(tmp_path):
    found, facts, _ = measure_distances(features(20, 6), features(5, 6, seed=1))
    save_distance(tmp_path / "d.safetensors", found, facts)
    again, same = load_distance(tmp_path / "d.safetensors")
    assert same == facts
    assert isinstance(again, Distance)
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert load_distance(tmp_path / "none.safetensors") is None
    (tmp_path / "d.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ArtifactError, match=r"d\.safetensors cannot be read.*delete it"):
        load_distance(tmp_path / "d.safetensors")
