"""Sequences: every way in, every refusal, every file; what selection and fingerprint promise."""

import copy
import lzma
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rntk_dist.sequences import Sequences

UCR = Path(__file__).parents[1].parent / "shared" / "ucr" / "ucr.tar.xz"
RAGGED = [[1.0, 2.0, 3.0], [4.0], [5.0, 6.0]]
PINNED = "122d128dcf98041729061dac4ed4fc3bd0726442d9d988659bc927e75ffee508"


def ragged(dtype: Any = np.float64) -> Sequences:
    return Sequences.from_arrays([np.array(x, dtype=dtype) for x in RAGGED], labels=[7, 8, 9])


def listed(x: Sequences) -> list[list[list[float]]]:
    return [sequence.tolist() for sequence in x]


def assert_same(left: Sequences, right: Sequences) -> None:
    assert left.values.dtype == right.values.dtype
    np.testing.assert_array_equal(left.values, right.values)
    np.testing.assert_array_equal(left.offsets, right.offsets)
    assert (left.labels is None) == (right.labels is None)
    if left.labels is not None and right.labels is not None:
        np.testing.assert_array_equal(left.labels, right.labels)
        assert left.labels.dtype == right.labels.dtype


few = settings(max_examples=30, deadline=None)


@st.composite
def ragged_lists(draw: st.DrawFn, dtype: Any = np.float64) -> list[np.ndarray]:
    """1 to 6 arrays (T_i, m) with T_i in 1..5 and one m in 1..3."""
    m = draw(st.integers(1, 3))
    elements = st.floats(-1e6, 1e6, width=32)
    shapes = draw(st.lists(st.tuples(st.integers(1, 5), st.just(m)), min_size=1, max_size=6))
    return [draw(hnp.arrays(dtype, shape, elements=elements)) for shape in shapes]


# -- ways in ---------------------------------------------------------------------------------------


class TestFromArrays:
    @pytest.mark.parametrize(
        "X",
        [
            RAGGED,
            tuple(RAGGED),
            [np.array(x) for x in RAGGED],
            [np.array(x)[:, None] for x in RAGGED],
            [np.array(RAGGED[0]), np.array(RAGGED[1])[:, None], RAGGED[2]],
            np.array([np.array(x) for x in RAGGED], dtype=object),
            np.array(RAGGED, dtype=object),
            [np.array(x, dtype=object) for x in RAGGED],
        ],
        ids=["lists", "tuple", "1-D", "2-D", "mixed", "objects", "lists in objects", "boxed"],
    )
    def test_ragged_forms_are_one(self, X: Any) -> None:
        x = Sequences.from_arrays(X)
        assert listed(x) == [[[v] for v in sequence] for sequence in RAGGED]
        assert x.offsets.tolist() == [0, 3, 4, 6]
        assert x.values.dtype == np.float64

    def test_rectangles(self) -> None:
        X = np.arange(24.0).reshape(2, 3, 4)
        for form in (X, list(X), X.tolist(), np.asfortranarray(X), X.astype(object)):
            x = Sequences.from_arrays(form)
            assert (len(x), x.n_features, x.lengths.tolist()) == (2, 4, [3, 3])
            np.testing.assert_array_equal(np.stack(list(x)), X)
        flat = Sequences.from_arrays(X[:, :, 0])
        assert flat.n_features == 1
        np.testing.assert_array_equal(np.stack(list(flat))[:, :, 0], X[:, :, 0])

    @pytest.mark.parametrize(
        ("dtypes", "stored"),
        [
            (["float64"], "float64"),
            (["float32"], "float32"),
            (["float16"], "float32"),
            ([">f4"], "float32"),
            ([">f8"], "float64"),
            (["longdouble"], "float64"),
            (["int8"], "float64"),
            (["uint64"], "float64"),
            (["bool"], "float64"),
            (["float32", "float16"], "float32"),
            (["float32", "float64"], "float64"),
            (["float32", "int8"], "float64"),
            (["float32", "longdouble"], "float64"),
        ],
    )
    def test_dtypes(self, dtypes: list[str], stored: str) -> None:
        X = [np.array([0, 1], dtype=dtype) for dtype in dtypes]
        forms = [X, np.stack(X)] if len(set(dtypes)) == 1 else [X]
        for form in forms:
            x = Sequences.from_arrays(form)
            assert x.values.dtype == stored
            assert x.values.dtype.isnative
            assert listed(x) == [[[0.0], [1.0]]] * len(dtypes)

    def test_sequences_pass_unchanged(self) -> None:
        x = ragged()
        assert Sequences.from_arrays(x) is x
        assert Sequences.from_nan_padded(x) is x
        relabelled = Sequences.from_arrays(x, labels=["a", "b", "c"])
        assert relabelled.labels is not None
        assert relabelled.labels.tolist() == ["a", "b", "c"]
        assert np.shares_memory(relabelled.values, x.values)

    def test_never_shares_with_a_writable_array(self) -> None:
        X = np.ones((2, 3))
        labels = np.array([1, 2])
        x = Sequences.from_arrays(X, labels)
        view = X.view()
        view.flags.writeable = False
        y = Sequences(view.reshape(6, 1), np.array([0, 3, 6]))
        X[:] = 5
        labels[:] = 5
        assert x.values.max() == y.values.max() == 1
        assert x.labels is not None
        assert x.labels.tolist() == [1, 2]

    def test_is_read_only(self) -> None:
        x = ragged()
        assert x.labels is not None
        for array in (x.values, x.offsets, x.labels, x.lengths, x[0], x[1:].values, x[[0]].values):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
        with pytest.raises(AttributeError):
            x.values = np.ones((6, 1))  # type: ignore[misc]

    @few
    @given(ragged_lists())
    def test_round_trip(self, arrays: list[np.ndarray]) -> None:
        x = Sequences.from_arrays(arrays)
        assert len(x) == len(arrays)
        assert x.lengths.tolist() == [len(a) for a in arrays]
        for sequence, array in zip(x, arrays, strict=True):
            np.testing.assert_array_equal(sequence, array)
        direct = Sequences(x.values, x.offsets)
        assert np.shares_memory(direct.values, x.values)
        assert_same(direct, x)


class TestFromNanPadded:
    def test_tails_are_cut(self) -> None:
        nan = np.nan
        x = Sequences.from_nan_padded([[1, 2, 3], [4, nan, nan], [5, 6, nan]], labels=[7, 8, 9])
        assert_same(x, ragged())

    def test_only_steps_without_any_feature_are_cut(self) -> None:
        X = np.ones((2, 3, 2))
        X[1, 1:] = np.nan
        assert Sequences.from_nan_padded(X).lengths.tolist() == [3, 1]
        X[1, 2, 1] = 0
        with pytest.raises(
            ValueError, match=r"sequence 1 holds NaN at time step 1, feature 0: fill"
        ):
            Sequences.from_nan_padded(X)

    def test_nothing_to_cut(self) -> None:
        assert Sequences.from_nan_padded(np.ones((2, 3), dtype=int)).equal_length

    def test_ragged_and_float32(self) -> None:
        X = [np.array([1, np.nan], dtype=np.float32), np.array([2, 3, np.nan], dtype=np.float32)]
        x = Sequences.from_nan_padded(X)
        assert listed(x) == [[[1.0]], [[2.0], [3.0]]]
        assert x.values.dtype == np.float32

    @few
    @given(ragged_lists())
    def test_undoes_padding(self, arrays: list[np.ndarray]) -> None:
        longest = max(map(len, arrays)) + 1
        X = np.full((len(arrays), longest, arrays[0].shape[1]), np.nan)
        for row, array in zip(X, arrays, strict=True):
            row[: len(array)] = array
        assert_same(Sequences.from_nan_padded(X), Sequences.from_arrays(arrays))

    def test_interior_and_all_nan(self) -> None:
        nan = np.nan
        with pytest.raises(ValueError, match=r"sequence 1 holds NaN at time step 0: fill"):
            Sequences.from_nan_padded([[1, 2], [nan, 2]])
        with pytest.raises(ValueError, match=r"sequence 2 is empty \(every step is NaN\): drop"):
            Sequences.from_nan_padded([[1, 2], [1, nan], [nan, nan]])


class TestFromChannelsFirst:
    def test_axes(self) -> None:
        X = np.arange(24.0).reshape(2, 3, 4)
        expected = Sequences.from_arrays(X.transpose(0, 2, 1), labels=[1, 2])
        for form in (X, list(X), X.tolist(), np.array([*X, None], dtype=object)[:2]):
            assert_same(Sequences.from_channels_first(form, labels=[1, 2]), expected)
        assert expected.n_features == 3

    def test_ragged(self) -> None:
        x = Sequences.from_channels_first([np.ones((2, 5)), np.ones((2, 3))])
        assert (x.n_features, x.lengths.tolist()) == (2, [5, 3])

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match=r"X has shape \(2, 3\), not \(case, channel, time\)"):
            Sequences.from_channels_first(np.ones((2, 3)))
        with pytest.raises(ValueError, match=r"sequence 1 has shape \(3,\), not \(channel, time\)"):
            Sequences.from_channels_first([np.ones((1, 3)), np.ones(3)])
        with pytest.raises(ValueError, match="sequence 1 has 2 features but sequence 0 has 1"):
            Sequences.from_channels_first([np.ones((1, 3)), np.ones((2, 3))])
        with pytest.raises(TypeError, match="already"):
            Sequences.from_channels_first(ragged())


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "kind"),
        [
            ([1, 2, 3], "i"),
            ([1.5, 2, 3], "f"),
            (["a", "b", "cc"], "U"),
            ([True, False, True], "b"),
            (np.array(["a", "b", "cc"], dtype=object), "U"),
            (np.array(["a", "b", "cc"], dtype=np.dtypes.StringDType()), "U"),
        ],
    )
    def test_kinds(self, labels: Any, kind: str) -> None:
        x = Sequences.from_arrays(RAGGED, labels=labels)
        assert x.labels is not None
        assert x.labels.dtype.kind == kind
        assert x.labels.tolist() == list(labels)

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match=r"labels have shape \(2,\) for 3 sequences"):
            Sequences.from_arrays(RAGGED, labels=[1, 2])
        with pytest.raises(TypeError, match="labels have dtype object"):
            Sequences.from_arrays(RAGGED, labels=np.array([1, None, "a"], dtype=object))
        with pytest.raises(TypeError, match="labels have dtype complex128"):
            Sequences.from_arrays(RAGGED, labels=[1j, 2j, 3j])


# -- refusals --------------------------------------------------------------------------------------

INF, NAN = np.inf, np.nan


class TestRefusals:
    @pytest.mark.parametrize(
        ("X", "message"),
        [
            (
                [[1, 2], [3, NAN, 4]],
                r"^sequence 1 holds NaN at time step 1: fill it in, .*nan_padded$",
            ),
            ([[1, 2], [3, INF]], r"^sequence 1 holds inf at time step 1: replace it by a finite"),
            ([[-INF, 2], [3]], r"^sequence 0 holds -inf at time step 0: replace"),
            ([[[1, 2]], [[1, 2], [3, NAN]]], r"^sequence 1 holds NaN at time step 1, feature 1: "),
            (np.array([[1, 2], [3, NAN]]), r"^sequence 1 holds NaN at time step 1: "),
            ([[1], [], [2]], r"^sequence 1 is empty \(0 time steps\): drop it"),
            ([[[1, 2]], []], r"^sequence 1 is empty \(0 time steps\): drop it"),
            (np.ones((2, 0)), r"^sequence 0 is empty \(0 time steps\): drop it"),
            (np.ones((2, 3, 0)), r"^sequence 0 has 0 features: give every step at least one"),
            ([[[]]], r"^sequence 0 has 0 features: give"),
            (
                [[[1, 2]], [[1, 2]], [[1, 2, 3]]],
                r"^sequence 2 has 3 features but sequence 0 has 2:",
            ),
            ([[1, 2], [[1, 2]]], r"^sequence 1 has 2 features but sequence 0 has 1: give"),
            ([], r"^there is no sequence at all: give at least one$"),
            (np.ones((0, 5)), r"^there is no sequence at all"),
            (np.array([], dtype=object), r"^there is no sequence at all"),
            (np.ones(4), r"^X has 1 dimensions, shape \(4,\): wrap it in a list"),
            ([1.0, 2.0], r"^X is a list of numbers: wrap it in a list if it is one sequence"),
            (np.float64(3), r"^X has 0 dimensions, shape \(\): give \(n, T\), \(n, T, m\)"),
            (np.ones((1, 2, 3, 4)), r"^X has 4 dimensions, shape \(1, 2, 3, 4\): give \(n, T\)"),
            ([np.ones(2), np.ones((1, 2, 3))], r"^sequence 1 has 3 dimensions, shape \(1, 2, 3\)"),
            ([np.ones(2), 3.0], r"^sequence 1 has 0 dimensions, shape \(\): give it the shape"),
            (
                [[[1, 2], [3, 4]], [[1, 2], [3]]],
                r"^sequence 1 has steps of differing feature counts",
            ),
        ],
    )
    def test_value_errors(self, X: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Sequences.from_arrays(X)

    @pytest.mark.parametrize(
        ("X", "message"),
        [
            ([[1, 2], ["a", "b"]], r"^sequence 1 has dtype <U1, not real numbers: convert it"),
            (["abc", "de"], r"^sequence 0 has dtype <U3"),
            ([[1, 2], [3, None]], r"^sequence 1 has dtype object, not real numbers"),
            (np.array([[1, 2], [3, None]], dtype=object), r"^sequence 1 has dtype object"),
            (np.array(["a", None], dtype=object), r"^sequence 0 has dtype <U1"),
            ([np.ones(2), np.ones(2) * 1j], r"^sequence 1 has dtype complex128, not real numbers"),
            (np.ones((2, 3)) * 1j, r"^X has dtype complex128, not real numbers"),
            (np.array([["a", "b"]]), r"^X has dtype <U1"),
            (np.zeros((2, 2), dtype="M8[s]"), r"^X has dtype datetime64"),
            ({"a": 1}, r"^X has dtype object"),
            ((x for x in RAGGED), r"^X has dtype object"),
            ([[1], [10**30]], r"^sequence 1 has dtype object"),
            (np.ma.masked_invalid([[1.0, NAN]]), r"^X is masked: use .filled"),
            ([[1], np.ma.masked_invalid([1.0, NAN])], r"^sequence 1 is masked: use .filled"),
        ],
    )
    def test_type_errors(self, X: Any, message: str) -> None:
        with pytest.raises(TypeError, match=message):
            Sequences.from_arrays(X)

    def test_arrays_in_arrays_are_not_guessed(self) -> None:
        # One row of sktime's nested frames: (channel,) objects, each (time,).
        nested = np.empty((2, 3), dtype=object)
        for index in np.ndindex(nested.shape):
            nested[index] = np.ones(5)
        with pytest.raises(TypeError, match=r"sequence 0 has dtype object"):
            Sequences.from_arrays(nested)

    def test_a_fault_behind_the_first_block_is_found(self) -> None:
        X = np.ones((1000, 300))
        X[999, 298] = NAN
        with pytest.raises(ValueError, match=r"sequence 999 holds NaN at time step 298:"):
            Sequences.from_arrays(X)
        with pytest.raises(
            ValueError, match=r"sequence 499 holds NaN at time step 299, feature 0:"
        ):
            Sequences.from_arrays(X.reshape(500, 300, 2))


class TestDirectConstruction:
    @pytest.mark.parametrize(
        ("values", "offsets", "error", "message"),
        [
            (np.ones((3, 1), int), np.array([0, 3]), TypeError, "values are int64, not float32"),
            ([[1.0]], np.array([0, 1]), TypeError, "values are list, not float32 or float64"),
            (np.ones(3), np.array([0, 3]), ValueError, r"values have shape \(3,\), not"),
            (np.ones((3, 0)), np.array([0, 3]), ValueError, r"values have shape \(3, 0\)"),
            (np.ones((3, 1)), [0, 3], TypeError, "offsets are list, not an integer array"),
            (np.ones((3, 1)), np.array([0.0, 3]), TypeError, "offsets are float64, not an integer"),
            (np.ones((3, 1)), np.array([[0, 3]]), ValueError, r"offsets have shape \(1, 2\)"),
            (np.ones((3, 1)), np.array([0]), ValueError, "there is no sequence at all"),
            (np.ones((3, 1)), np.array([1, 3]), ValueError, "run from 1 to 3: .* 0 to the 3 steps"),
            (np.ones((3, 1)), np.array([0, 2]), ValueError, "run from 0 to 2: .* 0 to the 3 steps"),
            (np.ones((3, 1)), np.array([0, 2, 1, 3]), ValueError, "sequence 1 has offsets 2 to 1:"),
            (np.ones((3, 1)), np.array([0, 2, 2, 3]), ValueError, "sequence 1 is empty"),
            (np.full((3, 1), NAN), np.array([0, 3]), ValueError, "sequence 0 holds NaN at time st"),
        ],
    )
    def test_refusals(self, values: Any, offsets: Any, error: Any, message: str) -> None:
        with pytest.raises(error, match=message):
            Sequences(values, offsets)

    def test_canonical_form(self) -> None:
        values = np.asfortranarray(np.arange(6, dtype=">f4").reshape(3, 2))
        x = Sequences(values, np.array([0, 1, 3], dtype=np.uint8))
        assert x.values.dtype == np.float32
        assert x.values.flags.c_contiguous
        assert x.offsets.dtype == np.int64
        assert listed(x) == [[[0.0, 1.0]], [[2.0, 3.0], [4.0, 5.0]]]


# -- size and identity -----------------------------------------------------------------------------


class TestDescription:
    def test_repr(self) -> None:
        assert repr(ragged()) == "Sequences(n=3, length=1..3, features=1, float64)"
        square = Sequences.from_arrays(np.ones((200, 150), dtype=np.float32))
        assert repr(square) == "Sequences(n=200, length=150, features=1, float32)"

    def test_sizes(self) -> None:
        x = ragged(np.float32)
        assert (len(x), x.n_features, x.equal_length) == (3, 1, False)
        assert x.nbytes == 6 * 4 + 4 * 8 + 3 * 8
        assert x[[0, 0]].equal_length
        assert x.lengths.dtype == np.int64


class TestFingerprint:
    def test_is_pinned(self) -> None:
        # Stores carry it: if it changes, every stored Gram matrix seems to be of other data.
        assert ragged().fingerprint == PINNED

    def test_dtype_zero_sign_and_labels_do_not_count(self) -> None:
        x = Sequences.from_arrays(np.array([[0.0, 0.5]]))
        y = Sequences.from_arrays(np.array([[-0.0, 0.5]], dtype=np.float32), labels=["a"])
        assert x.fingerprint == y.fingerprint

    def test_shape_counts(self) -> None:
        v = np.arange(4.0)
        forms = [v.reshape(1, 4, 1), v.reshape(1, 2, 2), v.reshape(2, 2, 1), v.reshape(4, 1, 1)]
        forms = [*forms, [v[:1], v[1:]], [v[:3], v[3:]]]
        assert len({Sequences.from_arrays(X).fingerprint for X in forms}) == len(forms)

    def test_chunks_do_not_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        X = np.arange(1000.0).reshape(10, 100)
        whole = Sequences.from_arrays(X).fingerprint
        monkeypatch.setattr("rntk_dist.packed.CHUNK_BYTES", 64)
        assert Sequences.from_arrays(X).fingerprint == whole

    @few
    @given(ragged_lists(), ragged_lists())
    def test_equal_iff_values_and_lengths_are(
        self, a: list[np.ndarray], b: list[np.ndarray]
    ) -> None:
        x, y = Sequences.from_arrays(a), Sequences.from_arrays(b)
        assert (x.fingerprint == y.fingerprint) == (listed(x) == listed(y))

    @few
    @given(ragged_lists(np.float32), st.data())
    def test_one_changed_value_changes_it(self, a: list[np.ndarray], data: st.DataObject) -> None:
        x = Sequences.from_arrays(a)
        values = x.values.astype(np.float64)
        assert Sequences(values.copy(), x.offsets).fingerprint == x.fingerprint
        row = data.draw(st.integers(0, len(values) - 1))
        values[row, 0] = np.nextafter(values[row, 0], np.inf)
        assert Sequences(values, x.offsets).fingerprint != x.fingerprint


class TestPickle:
    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_stays_the_same_and_read_only(self, clone: Any) -> None:
        x = ragged()
        assert len(x.fingerprint) == 64
        y = clone(x[1:])
        assert_same(y, x[1:])
        assert y.fingerprint == x[1:].fingerprint
        assert not y.values.flags.writeable
        assert not y.lengths.flags.writeable


# -- selection -------------------------------------------------------------------------------------


class TestSelection:
    def test_int_is_a_view(self) -> None:
        x = ragged()
        assert x[-1].tolist() == x[2].tolist() == x[np.int32(2)].tolist() == [[5.0], [6.0]]
        assert np.shares_memory(x[1], x.values)
        for index in (3, -4):
            with pytest.raises(IndexError, match=rf"sequence {index} is asked for but there are 3"):
                x[index]

    def test_slices(self) -> None:
        x = ragged()
        tail = x[1:]
        assert_same(tail, Sequences.from_arrays(RAGGED[1:], labels=[8, 9]))
        assert np.shares_memory(tail.values, x.values)
        assert np.shares_memory(x[:].values, x.values)
        assert_same(x[::-1], Sequences.from_arrays(RAGGED[::-1], labels=[9, 8, 7]))
        assert_same(x[::2], x[[0, 2]])

    def test_arrays_and_masks(self) -> None:
        x = ragged()
        picked = Sequences.from_arrays([RAGGED[2], RAGGED[0], RAGGED[2]], labels=[9, 7, 9])
        assert_same(x[[2, 0, -1]], picked)
        assert_same(x[np.array([2, 0, 2], dtype=np.uint8)], picked)
        assert_same(x[np.array([True, False, True])], x[[0, 2]])
        assert_same(x[[True, False, True]], x[[0, 2]])

    @pytest.mark.parametrize(
        ("key", "error", "message"),
        [
            ([0, 3], IndexError, "3"),
            ([True, False], IndexError, "bool"),
            ([0.5], TypeError, "dtype float64: use integers, a mask or a slice"),
            (["a"], TypeError, "dtype <U1"),
            ((0, 1), TypeError, r"\(0, 1\) for one axis"),
            ([[0]], IndexError, r"shape \(1, 1\)"),
            ([], ValueError, "the selection is empty"),
            (slice(2, 1), ValueError, "the selection is empty"),
            ([False] * 3, ValueError, "the selection is empty"),
        ],
    )
    def test_refusals(self, key: Any, error: Any, message: str) -> None:
        with pytest.raises(error, match=message):
            ragged()[key]

    @few
    @given(ragged_lists(), st.data())
    def test_permutation(self, arrays: list[np.ndarray], data: st.DataObject) -> None:
        x = Sequences.from_arrays(arrays, labels=range(len(arrays)))
        order = data.draw(st.permutations(range(len(x))))
        permuted = x[order]
        assert listed(permuted) == [arrays[i].tolist() for i in order]
        assert permuted.labels is not None
        assert permuted.labels.tolist() == list(order)
        back = permuted[np.argsort(order)]
        assert back.fingerprint == x.fingerprint

    @few
    @given(ragged_lists())
    def test_reversed(self, arrays: list[np.ndarray]) -> None:
        x = Sequences.from_arrays(arrays, labels=range(len(arrays)))
        assert listed(x.reversed()) == [a[::-1].tolist() for a in arrays]
        assert_same(x.reversed().reversed(), x)


class TestConcatenate:
    @few
    @given(ragged_lists(), st.data())
    def test_undoes_slicing(self, arrays: list[np.ndarray], data: st.DataObject) -> None:
        x = Sequences.from_arrays(arrays, labels=range(len(arrays)))
        cut = data.draw(st.integers(0, len(x)))
        parts = [x[a:b] for a, b in ((0, cut), (cut, len(x))) if a < b]
        assert_same(Sequences.concatenate(parts), x)

    def test_labels_and_dtypes(self) -> None:
        x = ragged()
        bare = Sequences(x.values, x.offsets)
        assert Sequences.concatenate([x, bare]).labels is None
        assert Sequences.concatenate(iter([x, ragged(np.float32)])).values.dtype == np.float64
        assert len(Sequences.concatenate([x, x, x])) == 9

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="no batch to concatenate"):
            Sequences.concatenate([])
        with pytest.raises(ValueError, match="batch 1 has 2 features but batch 0 has 1"):
            Sequences.concatenate([ragged(), Sequences.from_arrays(np.ones((1, 2, 2)))])


# -- files -----------------------------------------------------------------------------------------


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


class TestWrite:
    @pytest.mark.parametrize("suffix", [".npz", ".zarr"])
    @pytest.mark.parametrize("labels", [None, [1, 2, 3], [0.5, 1, 2], ["a", "bb", "c"]])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_round_trip(self, tmp_path: Path, suffix: str, labels: Any, dtype: Any) -> None:
        x = Sequences.from_arrays([np.array(a, dtype=dtype) for a in RAGGED], labels)
        x.write(tmp_path / f"x{suffix}")
        assert_same(Sequences.read(tmp_path / f"x{suffix}"), x)
        assert_same(Sequences.read(str(tmp_path / f"x{suffix}")), x)
        with pytest.raises(FileExistsError, match="exists already: remove it"):
            x.write(tmp_path / f"x{suffix}")

    def test_refuses_other_suffixes(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"suffix '.csv' cannot be written: use .npz or .zarr"):
            ragged().write(tmp_path / "x.csv")


class TestNumpyFiles:
    def test_npy(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.array([[1, 2, 3], [4, NAN, NAN], [5, 6, NAN]]))
        assert listed(Sequences.read(tmp_path / "x.npy")) == listed(ragged())

    def test_npz_forms(self, tmp_path: Path) -> None:
        X = np.ones((2, 3, 4))
        for name, arrays in (("one", {"data": X}), ("X", {"X": X}), ("Xy", {"X": X, "y": [1, 2]})):
            np.savez(tmp_path / f"{name}.npz", **arrays)
            x = Sequences.read(tmp_path / f"{name}.npz")
            assert (len(x), x.n_features) == (2, 4)
            assert (x.labels is not None) == (name == "Xy")

    @pytest.mark.parametrize(
        ("arrays", "error", "message"),
        [
            ({"a": [1], "b": [2]}, ValueError, r"found the arrays \['a', 'b'\]: save `values`"),
            ({"X": np.ones(3)}, ValueError, r"X has 1 dimensions, shape \(3,\): wrap"),
            ({"X": np.array([None])}, ValueError, "Python objects, which are never unpickled"),
            ({"X": np.array([["a"]])}, TypeError, "X has dtype <U1"),
            ({"X": np.ones((2, 2)), "y": [1]}, ValueError, r"labels have shape \(1,\) for 2"),
        ],
    )
    def test_npz_refusals(self, tmp_path: Path, arrays: Any, error: Any, message: str) -> None:
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(error, match=rf"x\.npz: .*{message}"):
            Sequences.read(tmp_path / "x.npz")

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04nonsense", b"\x80\x04."])
    def test_damaged(self, tmp_path: Path, content: bytes) -> None:
        for name in ("x.npy", "x.npz"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=rf"{name}: found no intact NumPy file"):
                Sequences.read(tmp_path / name)

    def test_objects_are_never_unpickled(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.array([[1], [1, 2]], dtype=object))
        with pytest.raises(ValueError, match="never unpickled: write ragged sequences with"):
            Sequences.read(tmp_path / "x.npy")


class TestAnyPath:
    def test_unknown_suffix(self, tmp_path: Path) -> None:
        path = written(tmp_path / "x.csv", "1,2")
        with pytest.raises(ValueError, match=r"x\.csv: suffix '\.csv' is none of \.npy, .*convert"):
            Sequences.read(path)

    def test_missing(self, tmp_path: Path) -> None:
        for suffix in (".npy", ".npz", ".tsv", ".ts", ".zarr"):
            with pytest.raises(FileNotFoundError, match=rf"x\{suffix}: no such file, seen from /"):
                Sequences.read(tmp_path / f"x{suffix}")


class TestTsv:
    @pytest.mark.parametrize(
        "text",
        [
            "1\t1.0\t2\t3e0\n2\t4\tNaN\tNaN\n1\t5\t6\tnan\n",
            "1,1,2,3\r\n2,4,,\r\n1,5,6,?\r\n",
            "  1   1 2 3\n\n2 4\n 1 5 6\n",
            "\ufeff1\t1\t2\t3\n2\t4\t\t\n1\t5\t6\t\n",
        ],
        ids=["UCR", "commas", "spaces, ragged", "blank tails"],
    )
    def test_forms(self, tmp_path: Path, text: str) -> None:
        x = Sequences.read(written(tmp_path / "x.tsv", text))
        assert_same(x, Sequences.from_arrays(RAGGED, labels=[1, 2, 1]))

    @pytest.mark.parametrize(
        ("labels", "kind"),
        [
            (["-1", "1"], "i"),
            (["1.0000e+00", "2"], "f"),
            (["1", "walk"], "U"),
            (["1_0", "2_0"], "U"),
            (["99999999999999999999", "1"], "f"),
        ],
    )
    def test_labels(self, tmp_path: Path, labels: list[str], kind: str) -> None:
        text = "".join(f"{label}\t1\t2\n" for label in labels)
        x = Sequences.read(written(tmp_path / "x.tsv", text))
        assert x.labels is not None
        assert x.labels.dtype.kind == kind

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("1\t2\t3\n\n1\t2\tx3\n", "line 3: found 'x3': write a number, or NaN"),
            ("1\t2\t3\n1\n", "line 2: found '1': write the label, then the values"),
            ("1\t2\t3\n\n1\tNaN\t3\n", "line 3: sequence 1 holds NaN at time step 0: fill"),
            ("1\t2\t\t3\n", "line 1: sequence 0 holds NaN at time step 1: fill"),
            ("1\t2\t3\n1\t2\tinf\n", "line 2: sequence 1 holds inf at time step 1: replace"),
            ("1\t2\n1\tNaN\tNaN\n", r"line 2: sequence 1 is empty \(every step is NaN\)"),
            ("\n\n", "there is no sequence at all"),
        ],
    )
    def test_refusals(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=rf"x\.tsv: {message}"):
            Sequences.read(written(tmp_path / "x.tsv", text))


HEADER = "# a comment\n@problemName Toy\n@timeStamps false\n"
LABELLED = HEADER + "@univariate true\n@classLabel true a b\n@data\n"
PAIRED = HEADER + "@univariate false\n@dimensions 2\n@classLabel true a b\n@DATA\n"


class TestTs:
    def test_univariate(self, tmp_path: Path) -> None:
        x = Sequences.read(
            written(tmp_path / "x.ts", LABELLED + "\n% no\n1,2, 3:a\n4,?:b\n5,6:a\n")
        )
        assert_same(x, Sequences.from_arrays(RAGGED, labels=["a", "b", "a"]))

    def test_multivariate(self, tmp_path: Path) -> None:
        x = Sequences.read(written(tmp_path / "x.ts", PAIRED + "1,2:3,4:1\n5,?:6,NaN:2\n"))
        assert_same(x, Sequences.from_arrays([[[1, 3], [2, 4]], [[5, 6]]], labels=[1, 2]))

    def test_targets_and_none(self, tmp_path: Path) -> None:
        target = HEADER.lower() + "@univariate true\n@targetlabel true\n@data\n1,2:0.5\n3:7\n"
        x = Sequences.read(written(tmp_path / "x.ts", target))
        assert_same(x, Sequences.from_arrays([[1, 2], [3]], labels=[0.5, 7]))
        bare = Sequences.read(written(tmp_path / "y.ts", "@classLabel false\n@data\n1,2:3,4\n"))
        assert_same(bare, Sequences.from_arrays([[[1, 3], [2, 4]]]))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (HEADER + "1,2:a\n", "found no line @data: put one"),
            ("oops\n@data\n1:a\n", "line 1: found 'oops': put sequences behind @data"),
            ("@timeStamps true\n@data\n", "line 1: found '@timeStamps true': time stamps are not"),
            ("@dimensions two\n@data\n", "line 1: found '@dimensions two': give the number"),
            (LABELLED + "1,2:3,4:a\n", "line 7: found '2 dimensions': the header asks for 1 dim"),
            (PAIRED + "1,2:3,4:a\n1,2:a\n", "line 9: found '1 dimensions': .*2 dimensions and a"),
            (PAIRED + "1,2:3:a\n", r"line 8: found 'dimensions of lengths \[2, 1\]': give all"),
            (PAIRED + "1,2:3,x:a\n", "line 8: found 'x': write a number"),
            (LABELLED + "1:a\n1,?,3:a\n", "line 8: sequence 1 holds NaN at time step 1: fill"),
            (PAIRED + "1,2:3,?:a\n", "line 8: sequence 0 holds NaN at time step 1, feature 1:"),
            (LABELLED + "1,2,3\n", "line 7: found '0 dimensions': the header asks for 1 dim"),
            ("@classLabel true\n@data\n1,2\n", "line 3: found '0 dimensions': .* some dimensions"),
            ("@data\n1:2\n1:2:3\n", "line 3: sequence 1 has 3 features but sequence 0 has 2:"),
            (LABELLED, "there is no sequence at all"),
        ],
    )
    def test_refusals(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=rf"x\.ts: {message}"):
            Sequences.read(written(tmp_path / "x.ts", text))


class TestZarr:
    def test_array(self, tmp_path: Path) -> None:
        array = zarr.create_array(tmp_path / "x.zarr", shape=(2, 3), dtype="float32")
        array[:] = np.array([[1, 2, 3], [4, NAN, NAN]])
        assert listed(Sequences.read(tmp_path / "x.zarr")) == listed(ragged()[:2])

    def test_a_store_is_read_by_its_sequences(self, tmp_path: Path) -> None:
        group = zarr.create_group(tmp_path / "store.zarr")
        group.create_array("gram", shape=(3, 3), dtype="float64")
        ragged().write_to(group.create_group("sequences"))
        assert_same(Sequences.read(tmp_path / "store.zarr"), ragged())

    def test_refusals(self, tmp_path: Path) -> None:
        (tmp_path / "empty.zarr").mkdir()
        with pytest.raises(ValueError, match=r"empty\.zarr: found no Zarr group or array"):
            Sequences.read(tmp_path / "empty.zarr")
        group = zarr.create_group(tmp_path / "x.zarr")
        group.create_array("gram", shape=(3, 3), dtype="float64")
        with pytest.raises(ValueError, match=r"found \['gram'\] but no array 'offsets': write"):
            Sequences.read(tmp_path / "x.zarr")

    def test_checksums_and_chunks(self) -> None:
        group = zarr.create_group({})
        Sequences.from_arrays(np.ones((100, 3000)), labels=["a"] * 100).write_to(group)
        for name in ("values", "offsets", "labels"):
            array = group[name]
            assert isinstance(array, zarr.Array)
            assert type(array.compressors[-1]).__name__ == "Crc32cCodec"
        values = group["values"]
        assert isinstance(values, zarr.Array)
        assert values.chunks == (2**17, 1)

    @few
    @given(ragged_lists(), st.data())
    def test_slab_is_the_slice(self, arrays: list[np.ndarray], data: st.DataObject) -> None:
        x = Sequences.from_arrays(arrays, labels=range(len(arrays)))
        group = zarr.create_group({})
        x.write_to(group)
        start = data.draw(st.integers(0, len(x) - 1))
        stop = data.draw(st.integers(start + 1, len(x)))
        assert_same(Sequences.read_slab(group, start, stop), x[start:stop])
        assert_same(Sequences.from_group(group), x)

    @pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 4), (2, 2), (2, 1)])
    def test_slab_out_of_range(self, start: int, stop: int) -> None:
        group = zarr.create_group({})
        ragged().write_to(group)
        with pytest.raises(IndexError, match=rf"sequences {start}:{stop} are asked .* there are 3"):
            Sequences.read_slab(group, start, stop)

    def test_a_slab_needs_no_other_chunk(self, tmp_path: Path) -> None:
        x = Sequences.from_arrays(np.random.default_rng(0).standard_normal((40, 10_000)))
        group = zarr.create_group(tmp_path / "x.zarr")
        x.write_to(group)
        chunks = sorted((tmp_path / "x.zarr" / "values" / "c").glob("*/0"))
        assert len(chunks) == 4
        for chunk in chunks:
            if chunk.parent.name != "1":  # steps 131072 .. 262143: sequences 14 .. 25 whole
                chunk.unlink()
        assert_same(Sequences.read_slab(group, 14, 26), x[14:26])
        with pytest.raises(ValueError, match="sequences 0:40 lack a chunk or are damaged: sequ"):
            Sequences.from_group(group)

    @pytest.mark.parametrize("name", ["values", "offsets"])
    def test_a_flipped_bit_is_refused(self, tmp_path: Path, name: str) -> None:
        group = zarr.create_group(tmp_path / "x.zarr")
        ragged().write_to(group)
        chunk = next(p for p in (tmp_path / "x.zarr" / name / "c").rglob("*") if p.is_file())
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 1
        chunk.write_bytes(content)
        with pytest.raises(ValueError, match=r"0:3 lack a chunk or are damaged: .*hecksum"):
            Sequences.from_group(group)

    def test_a_lost_chunk_of_offsets_is_refused(self, tmp_path: Path) -> None:
        group = zarr.create_group(tmp_path / "x.zarr")
        ragged().write_to(group)
        (tmp_path / "x.zarr" / "offsets" / "c" / "0").unlink()
        with pytest.raises(ValueError, match="lack a chunk or are damaged"):
            Sequences.from_group(group)


# -- real data sets --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled() -> Path:
    sktime = pytest.importorskip("sktime", reason="needs the data sets bundled with sktime")
    return Path(sktime.__file__).parent / "datasets" / "data"


class TestRealData:
    def test_gunpoint(self, bundled: Path) -> None:
        x = Sequences.read(bundled / "GunPoint" / "GunPoint_TRAIN.ts")
        assert repr(x) == "Sequences(n=50, length=150, features=1, float64)"
        assert x.labels is not None
        assert sorted(set(x.labels.tolist())) == [1, 2]
        assert x[0][:2, 0].tolist() == [-0.6478854, -0.64199155]

    def test_japanese_vowels(self, bundled: Path) -> None:
        parts = [bundled / "JapaneseVowels" / f"JapaneseVowels_{s}.ts" for s in ("TRAIN", "TEST")]
        x = Sequences.concatenate(Sequences.read(part) for part in parts)
        assert repr(x) == "Sequences(n=640, length=7..29, features=12, float64)"
        assert x.labels is not None
        assert np.bincount(x.labels)[1:].sum() == 640
        assert x[0][0, :2].tolist() == [1.860936, -0.207383]
        assert x[0][1, 0] == 1.891651

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("ArrowHead", "n=36, length=251, features=1"),
            ("BasicMotions", "n=40, length=100, features=6"),
            ("Covid3Month", "n=140, length=84, features=1"),
            ("UnitTest", "n=20, length=24, features=1"),
        ],
    )
    def test_headers_as_they_are(self, bundled: Path, name: str, expected: str) -> None:
        x = Sequences.read(bundled / name / f"{name}_TRAIN.ts")
        assert repr(x) == f"Sequences({expected}, float64)"
        assert x.labels is not None

    def test_ucr(self, tmp_path: Path) -> None:
        if not UCR.exists():
            pytest.skip(f"needs {UCR}, which is not in the repository")
        wanted = ["AllGestureWiimoteX/AllGestureWiimoteX_TRAIN.tsv", "Adiac/Adiac_TRAIN.tsv"]
        with lzma.open(UCR) as raw, tarfile.open(fileobj=raw, mode="r|") as archive:
            # The archive is one stream: stop as soon as both are out of it.
            for member in archive:
                if member.name in wanted:
                    archive.extract(member, tmp_path, filter="data")
                    wanted.remove(member.name)
                if not wanted:
                    break
        x = Sequences.read(tmp_path / "AllGestureWiimoteX" / "AllGestureWiimoteX_TRAIN.tsv")
        assert repr(x) == "Sequences(n=300, length=11..385, features=1, float64)"
        assert x.labels is not None
        assert sorted(set(x.labels.tolist())) == list(range(1, 11))
        adiac = Sequences.read(tmp_path / "Adiac" / "Adiac_TRAIN.tsv")
        assert repr(adiac) == "Sequences(n=390, length=176, features=1, float64)"
