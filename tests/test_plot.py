"""Pictures: what is drawn is the matrix, named, in the stated order, and read within the limits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matrices import filled, gaussian

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

import rntk_dist as rd
from rntk_dist.plan import Tile
from rntk_dist.sampling import Limits
from rntk_dist.store import GramStore

N, TILE = 24, 5
LABELS = np.array(["b", "a", "c"])[np.arange(N) % 3]


@pytest.fixture(autouse=True)
def _no_figure_is_left() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def points() -> np.ndarray:
    """Three clouds, one a class, interleaved."""
    centres = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])[np.arange(N) % 3]
    return centres + np.random.default_rng(3).normal(scale=0.3, size=(N, 2))


@pytest.fixture
def values(points: np.ndarray) -> np.ndarray:
    return gaussian(points)


@pytest.fixture
def gram(tmp_path: Path, values: np.ndarray) -> rd.Gram:
    return rd.open_gram(filled(tmp_path / "gram", values, TILE, labels=LABELS).location)


@pytest.fixture
def unlabelled(tmp_path: Path, values: np.ndarray) -> rd.Gram:
    return rd.open_gram(filled(tmp_path / "plain", values, TILE).location)


@pytest.fixture
def rectangular(tmp_path: Path, values: np.ndarray) -> rd.Gram:
    return rd.open_gram(filled(tmp_path / "oblong", values[:9], 4, symmetric=False).location)


def shown(axes: plt.Axes) -> np.ndarray:
    """The values of the picture in the axes."""
    (image,) = axes.get_images()
    return np.asarray(image.get_array())


def scale_name(axes: plt.Axes) -> str:
    """Of the scale of colours beside the axes."""
    others = [other for other in axes.get_figure().axes if other is not axes]
    return others[-1].get_ylabel()


def legend(axes: plt.Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


# -- heat map --------------------------------------------------------------------------------------


def test_a_heat_map_is_sorted_by_label(gram: rd.Gram, values: np.ndarray) -> None:
    axes = rd.plot.heat_map(gram)
    places = np.argsort(LABELS, kind="stable")
    assert np.array_equal(shown(axes), values[np.ix_(places, places)])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b", "c"]
    assert len(axes.lines) == 4, "two lines between three classes, down and across"
    assert axes.get_ylabel() == "sample, by class"
    assert scale_name(axes) == "tangent kernel"


def test_clustering_brings_like_beside_like(unlabelled: rd.Gram) -> None:
    axes = rd.plot.heat_map(unlabelled, order="cluster")
    block = shown(axes)[: N // 3, : N // 3]
    assert block.min() > 0.1, "one cloud stands in the corner"
    assert shown(axes)[: N // 3, N // 3 :].max() < 0.1
    assert axes.get_xlabel() == "sample, sorted by clustering"


def test_without_labels_the_stored_order_is_kept(
    gram: rd.Gram, unlabelled: rd.Gram, values: np.ndarray
) -> None:
    assert np.array_equal(shown(rd.plot.heat_map(unlabelled)), values)
    assert np.array_equal(shown(rd.plot.heat_map(gram, order="stored")), values)
    given = rd.plot.heat_map(unlabelled, labels=-np.arange(N))
    assert np.array_equal(shown(given), values[::-1, ::-1])


def test_a_large_heat_map_is_a_sample_that_says_so(
    unlabelled: rd.Gram, values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rntk_dist.plot.matrix.LIMITS", Limits(samples=6, tiles=3, bytes=10**6))
    read: list[Tile] = []
    real = GramStore.read_tile
    monkeypatch.setattr(
        GramStore, "read_tile", lambda self, tile: read.append(tile) or real(self, tile)
    )
    axes = rd.plot.heat_map(unlabelled)
    assert sorted(read) == [Tile(0, 0), Tile(0, 4), Tile(4, 4)]
    assert shown(axes).shape == (6, 6)
    assert shown(axes)[0, -1] == values[0, -1]
    assert axes.get_xlabel() == f"6 of {N} samples"


def test_a_picture_goes_where_it_is_told(gram: rd.Gram, tmp_path: Path) -> None:
    axes = Figure().subplots()
    assert rd.plot.heat_map(gram, ax=axes) is axes
    rd.plot.save_heat_map(gram, tmp_path / "map.png", "a title")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == [], "pyplot knows of neither"
    assert rd.plot.heat_map(gram).get_figure().number in plt.get_fignums()


def test_heat_maps_refuse_what_they_cannot_show(
    gram: rd.Gram, unlabelled: rd.Gram, rectangular: rd.Gram, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"a heat map needs the symmetric matrix.*9 x 24"):
        rd.plot.heat_map(rectangular)
    with pytest.raises(ValueError, match=r"labels have the shape \(3,\) for a matrix of 24"):
        rd.plot.heat_map(gram, labels=[1, 2, 3])
    with pytest.raises(ValueError, match="there are no labels to sort by"):
        rd.plot.heat_map(unlabelled, order="label")
    with pytest.raises(ValueError, match="order is 'size'"):
        rd.plot.heat_map(gram, order="size")  # type: ignore[arg-type]
    monkeypatch.setattr("rntk_dist.plot.matrix.LIMITS", Limits(samples=6, tiles=3, bytes=100))
    with pytest.raises(ValueError, match=r"one tile of the matrix has .* GiB"):
        rd.plot.heat_map(gram)
    assert plt.get_fignums() == [], "no empty figure is left"


def test_a_matrix_with_gaps_is_no_heat_map(tmp_path: Path, values: np.ndarray) -> None:
    store = filled(tmp_path / "gram", values, TILE, without={Tile(1, 2)})
    with pytest.raises(rd.IncompleteGramError, match="1 of 15 tiles"):
        rd.plot.heat_map(rd.open_gram(store.location))


# -- tiles -----------------------------------------------------------------------------------------


def test_a_map_of_tiles_shows_what_is_missing(
    tmp_path: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "gram", values, TILE, without={Tile(0, 1), Tile(4, 4)})
    monkeypatch.setattr(GramStore, "read_tile", None)  # none is read
    axes = rd.plot.tile_map(rd.open_gram(store.location))
    expected = np.triu(np.full((5, 5), 2))
    expected[0, 1] = expected[4, 4] = 1
    assert np.array_equal(shown(axes), expected)
    assert axes.get_title() == "13 of 15 tiles stored (87%)"
    assert legend(axes) == ["stored", "missing"]


def test_all_tiles_of_a_rectangular_matrix_are_on_the_map(rectangular: rd.Gram) -> None:
    axes = rd.plot.tile_map(rectangular)
    assert np.array_equal(shown(axes), np.full((3, 6), 2))
    assert axes.get_xlabel() == "block of 4 columns"


# -- eigenvalues -----------------------------------------------------------------------------------


def test_the_spectrum_is_that_of_the_matrix(gram: rd.Gram, values: np.ndarray) -> None:
    axes = rd.plot.spectrum(gram, label="all")
    rd.plot.spectrum(gram, ax=axes, samples=slice(0, 10), label="ten")
    expected = np.linalg.eigvalsh(values)[::-1]
    drawn = [line.get_ydata() for line in axes.lines]
    assert np.allclose(drawn[0], expected / expected.sum(), rtol=1e-9, atol=1e-15)
    assert np.allclose(drawn[1].sum(), 1.0)
    assert list(axes.lines[1].get_xdata()) == list(range(1, 11))
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert legend(axes) == ["all", "ten"]
    assert axes.lines[0].get_color() != axes.lines[1].get_color()


def test_what_rounding_leaves_of_zeros_is_not_drawn(tmp_path: Path) -> None:
    line = np.arange(1.0, 31.0)
    store = filled(tmp_path / "gram", np.outer(line, line), 10)
    axes = rd.plot.spectrum(rd.open_gram(store.location))
    assert np.allclose(axes.lines[0].get_ydata(), [1.0])


def test_too_many_samples_are_refused_before_any_is_read(
    gram: rd.Gram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rntk_dist.plot.eigen.MOST_SAMPLES", 10)
    monkeypatch.setattr(GramStore, "read_tile", None)
    match = r"of 24 samples is a dense .* and 10 samples are .*samples=slice\(None, None, 3\)"
    with pytest.raises(ValueError, match=f"the spectrum {match}"):
        rd.plot.spectrum(gram)
    with pytest.raises(ValueError, match=f"kernel PCA {match}"):
        rd.plot.kernel_pca(gram)


# -- kernel PCA ------------------------------------------------------------------------------------


def test_kernel_pca_finds_the_widest_directions_after_centring(
    gram: rd.Gram, values: np.ndarray
) -> None:
    axes = rd.plot.kernel_pca(gram)
    assert legend(axes) == ["a", "b", "c"]
    drawn = np.empty((N, 2))
    for cloud in axes.collections:
        drawn[cloud.get_label() == LABELS] = cloud.get_offsets()
    centring = np.eye(N) - 1 / N
    centred = centring @ values @ centring
    found, vectors = np.linalg.eigh(centred)
    best = (vectors * np.sqrt(np.abs(found)))[:, :-3:-1]
    assert np.allclose(np.abs(drawn), np.abs(best))
    share = found[-1] / found.sum()
    assert axes.get_xlabel() == f"component 1 ({share:.0%} of the variance)"


def test_numbers_are_coloured_by_scale_and_chosen_samples_alone_drawn(gram: rd.Gram) -> None:
    numbers = np.linspace(0.0, 1.0, N)
    axes = rd.plot.kernel_pca(gram, labels=numbers, samples=np.arange(N) % 2 == 0)
    (cloud,) = axes.collections
    assert np.array_equal(cloud.get_array(), numbers[::2])
    assert scale_name(axes) == "label"


def test_points_without_names_or_with_too_many_look_alike(
    unlabelled: rd.Gram, tmp_path: Path
) -> None:
    assert len(rd.plot.kernel_pca(unlabelled).collections) == 1
    points = np.random.default_rng(0).normal(size=(50, 2))
    many = filled(tmp_path / "many", gaussian(points), 50, labels=np.arange(50))
    axes = rd.plot.kernel_pca(rd.open_gram(many.location))
    assert len(axes.collections) == 1
    assert axes.get_legend() is None


def test_42_classes_have_42_signs(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(42, 2))
    store = filled(tmp_path / "gram", gaussian(points), 42, labels=np.arange(42))
    clouds = rd.plot.kernel_pca(rd.open_gram(store.location)).collections
    signs = {
        (cloud.get_facecolor().tobytes(), cloud.get_paths()[0].vertices.tobytes())
        for cloud in clouds
    }
    assert len(signs) == 42


def test_two_samples_have_no_plane(gram: rd.Gram) -> None:
    with pytest.raises(ValueError, match="found 2"):
        rd.plot.kernel_pca(gram, samples=[0, 1])


# -- sensitivity -----------------------------------------------------------------------------------

KERNEL = rd.RNTK(sigma_w=1.3, readout="per_step")


@pytest.fixture
def pairs() -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(7)
    return rng.normal(size=(2, 8)), [rng.normal(size=length) for length in (5, 9)]


def test_a_curve_is_the_median_over_all_pairs(pairs: tuple[np.ndarray, list[np.ndarray]]) -> None:
    X, Y = pairs
    axes = rd.plot.sensitivity(KERNEL, X, Y, label="both")
    every = np.array([KERNEL.sensitivity(x, y) for x in X for y in Y])
    assert np.allclose(axes.lines[0].get_ydata(), np.median(every, axis=0))
    assert list(axes.lines[0].get_xdata()) == list(range(1, 9))
    assert len(axes.collections) == 1, "a band of quartiles"
    assert axes.get_ylim()[0] == 0
    assert legend(axes) == ["both"]


def test_a_second_curve_finds_room_above_the_first(
    pairs: tuple[np.ndarray, list[np.ndarray]],
) -> None:
    X, Y = pairs
    axes = rd.plot.sensitivity(KERNEL, X[:1], Y[:1], kind="nngp")
    assert not axes.collections, "one pair has no quartiles"
    rd.plot.sensitivity(rd.RNTK(sigma_w=3.0), X[:1], Y[:1], ax=axes)
    assert axes.get_ylim()[1] > axes.lines[1].get_ydata().max() > axes.lines[0].get_ydata().max()
    assert axes.get_ylim()[0] == 0


def test_relative_curves_have_mean_one(pairs: tuple[np.ndarray, list[np.ndarray]]) -> None:
    X, Y = pairs
    axes = rd.plot.sensitivity(KERNEL, X[:1], Y[:1], relative=True)
    assert axes.lines[0].get_ydata().mean() == pytest.approx(1.0)
    assert axes.get_ylabel().endswith("relative to its mean")


def test_curves_of_several_lengths_are_refused(pairs: tuple[np.ndarray, list[np.ndarray]]) -> None:
    with pytest.raises(ValueError, match="have 5 to 9 steps"):
        rd.plot.sensitivity(KERNEL, pairs[1], pairs[0])
    with pytest.raises(ValueError, match="features"):
        rd.plot.sensitivity(KERNEL, pairs[0], np.ones((2, 4, 3)))
    assert plt.get_fignums() == []


# -- without matplotlib ----------------------------------------------------------------------------


def test_the_package_is_imported_without_matplotlib_and_says_what_is_missing() -> None:
    script = """
import sys
import rntk_dist as rd
assert not {"matplotlib", "sklearn", "IPython"} & set(sys.modules)
sys.modules["matplotlib"] = sys.modules["matplotlib.pyplot"] = None
try:
    rd.plot.sensitivity(rd.RNTK(), [[1.0, 2.0]], [[3.0]])
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "pictures need matplotlib: pip install 'rntk_dist[plot]'\n"
