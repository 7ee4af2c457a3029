"""The kernel in the hands of sktime and aeon themselves."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rntk_dist as rd

KERNEL = rd.RNTK(sigma_w=1.3, sigma_b=0.2, readout="per_step")
RNG = np.random.default_rng(11)
CHANNELS_FIRST = [RNG.normal(size=(2, int(length))) for length in (4, 7, 5, 6, 4, 8)]
TIME_FIRST = [x.T for x in CHANNELS_FIRST]


def test_distance_is_that_of_features() -> None:
    distance = rd.to_aeon_metric(KERNEL)
    square = KERNEL(TIME_FIRST)
    for i, x in enumerate(CHANNELS_FIRST):
        for j, y in enumerate(CHANNELS_FIRST):
            squared = square[i, i] + square[j, j] - 2 * square[i, j]
            expected = np.sqrt(max(squared, 0.0))
            assert distance(x, y) == pytest.approx(expected, abs=1e-7)
    flat = distance(CHANNELS_FIRST[0][0], CHANNELS_FIRST[1][0])
    assert flat == distance(CHANNELS_FIRST[0][:1], CHANNELS_FIRST[1][:1])
    assert pickle.loads(pickle.dumps(distance)) == distance
    with pytest.raises(ValueError, match=r"series of shape \(1, 2, 3\)"):
        distance(np.ones((1, 2, 3)), np.ones((1, 2, 3)))


def test_without_sktime_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rntk_dist.estimators.sktime_kernel", raising=False)
    monkeypatch.setitem(sys.modules, "sktime.dists_kernels.base", None)
    monkeypatch.setitem(sys.modules, "sktime", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rntk_dist\[datasets\]'"):
        rd.to_sktime_kernel()


# -- sktime ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sktime_computes_the_kernel_of_panels() -> None:
    pd, _ = pytest.importorskip("pandas"), pytest.importorskip("sktime")
    frames = [pd.DataFrame(x) for x in TIME_FIRST]
    pairwise = rd.to_sktime_kernel(KERNEL, kind="nngp")
    np.testing.assert_allclose(pairwise(frames), KERNEL(TIME_FIRST, kind="nngp"))
    np.testing.assert_allclose(
        pairwise.transform(frames[:2], frames[2:]),
        KERNEL(TIME_FIRST[:2], TIME_FIRST[2:], kind="nngp"),
    )
    table = RNG.normal(size=(5, 3, 8))  # (case, channel, time), as sktime's numpy3D
    np.testing.assert_allclose(
        rd.to_sktime_kernel(KERNEL)(table), KERNEL(table.transpose(0, 2, 1)), rtol=1e-12
    )
    np.testing.assert_allclose(
        pairwise.transform_diag(frames), KERNEL.diag(TIME_FIRST, kind="nngp")
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The `probability` parameter was deprecated:FutureWarning")
def test_sktimes_classifier_takes_the_kernel() -> None:
    pytest.importorskip("sktime")
    from sktime.classification.kernel_based import TimeSeriesSVC

    panel = RNG.normal(size=(30, 1, 12))
    labels = np.where(panel[:, 0, 6:].mean(axis=1) > 0, "up", "down")
    theirs = TimeSeriesSVC(kernel=rd.to_sktime_kernel(KERNEL), C=5.0).fit(panel[:20], labels[:20])
    ours = rd.RNTKClassifier(KERNEL, C=5.0).fit(panel[:20, 0], labels[:20])
    assert (theirs.predict(panel[20:]) == ours.predict(panel[20:, 0])).all()


@pytest.mark.slow
def test_sktimes_own_checks() -> None:
    pytest.importorskip("sktime")
    from sktime.utils.estimator_checks import check_estimator

    check_estimator(rd.to_sktime_kernel(KERNEL), raise_exceptions=True, verbose=False)


# -- aeon ------------------------------------------------------------------------------------------


AEON = """
import numpy as np
from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier
from aeon.clustering import TimeSeriesKMedoids
from aeon.distances import pairwise_distance

import rntk_dist as rd

rng = np.random.default_rng(0)
kernel = rd.RNTK(sigma_w=1.3, sigma_b=0.2, readout="per_step")
metric = rd.to_aeon_metric(kernel)
panel = rng.normal(size=(24, 2, 9))
K = kernel(rd.Sequences.from_channels_first(panel))
expected = np.sqrt(np.maximum(K.diagonal()[:, None] + K.diagonal() - 2 * K, 0.0))
assert np.allclose(pairwise_distance(panel, method=metric), expected, atol=1e-6)

labels = np.where(panel[:, 0].mean(axis=1) > 0, "up", "down")
nearest = KNeighborsTimeSeriesClassifier(n_neighbors=1, distance=metric)
found = nearest.fit(panel[:18], labels[:18]).predict(panel[18:])
assert (found == labels[:18][expected[18:, :18].argmin(axis=1)]).all()

ragged = [rng.normal(size=(1, int(length))) for length in (5, 8, 6, 7)]
K = kernel([x.T for x in ragged])
expected = np.sqrt(np.maximum(K.diagonal()[:, None] + K.diagonal() - 2 * K, 0.0))
assert np.allclose(pairwise_distance(ragged, method=metric), expected, atol=1e-6)

clusters = TimeSeriesKMedoids(n_clusters=2, distance=metric, random_state=0).fit(panel)
assert set(clusters.labels_) == {0, 1}
print("aeon takes the metric")
"""


@pytest.fixture(scope="module")
def with_aeon(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """A Python that has aeon and rntk_dist, and its environment variables.

    RNTK_DIST_AEON_PYTHON may name one. Without it aeon alone is put before the packages of this
    Python: its pins hold NumPy and Numba at older releases, and a whole environment of those takes
    minutes to install.
    """
    root = str(Path(__file__).parent.parent)
    if "RNTK_DIST_AEON_PYTHON" in os.environ:
        return os.environ["RNTK_DIST_AEON_PYTHON"], os.environ | {"PYTHONPATH": root}
    folder = str(tmp_path_factory.mktemp("aeon"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries=1", "--timeout=9"]
    wanted = ["--quiet", "--no-deps", "--target", folder, "aeon>=1.6,<2", "deprecated", "wrapt"]
    done = subprocess.run(
        [*pip, "install", *wanted], capture_output=True, text=True, timeout=200, check=False
    )
    if done.returncode:
        pytest.skip(f"pip cannot install aeon: {done.stderr.strip().splitlines()[-1]}")
    return sys.executable, os.environ | {"PYTHONPATH": os.pathsep.join([root, folder])}


@pytest.mark.slow
def test_aeon_takes_the_metric(with_aeon: tuple[str, dict[str, str]]) -> None:
    python, environment = with_aeon
    done = subprocess.run(
        [python, "-c", AEON],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "aeon takes the metric" in done.stdout
