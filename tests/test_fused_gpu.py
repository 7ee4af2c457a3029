"""The CUDA kernel equals the array loops: in Numba's simulator, and on a GPU where there is one.

The simulator is chosen before Numba is loaded, so its tests run in a process of their own: this
file again, with the environment variable set.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from digit_cases import GROUPS, sequences
from digit_cases import cases as digit_cases
from golden_cases import kernel_of, read_cases
from test_digits import figure, pair_error, pair_values

from rntk_dist import RNTK, Sequences
from rntk_dist.kernel import fused_gpu
from rntk_dist.kernel.arrays import tile_values
from rntk_dist.kernel.fused_gpu import Block, device_tile_values, find_device, gpu_tile_values
from rntk_dist.kernel.packed import make_shape
from rntk_dist.kernel.variances import Slab, make_slab

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
GOLDEN = read_cases("short")
BOUNDS = {"float64": 1e-13, "float32": 1e-5}
TINY = Block(2, 2, 2, 1)


def ragged(
    rng: np.random.Generator, n: int, m: int, longest: int = 6, amplitude: float = 1.0
) -> Sequences:
    lengths = rng.integers(1, longest + 1, n)
    return Sequences.from_arrays([amplitude * rng.normal(size=(length, m)) for length in lengths])


def slab_of(kernel: RNTK, X: Sequences, dtype: str = "float64", kind: str = "ntk") -> Slab:
    return make_slab(kernel, X, kind).transfer(lambda array: array.astype(dtype))


def check(
    kernel: RNTK,
    X: Sequences,
    Y: Sequences | None,
    dtype: str = "float64",
    kind: Any = "ntk",
    **options: Any,
) -> Any:
    """Compare with the array loops in float64; the values."""
    recursion = kernel.recursion(kind)
    columns = None if Y is None else slab_of(kernel, Y, dtype, kind)
    values = gpu_tile_values(recursion, slab_of(kernel, X, dtype, kind), columns, **options)
    assert values.dtype == dtype
    exact_columns = None if Y is None else make_slab(kernel, Y, kind)
    exact = tile_values(recursion, make_slab(kernel, X, kind), exact_columns, edge=1000)
    bound = BOUNDS[dtype]
    np.testing.assert_allclose(values, exact, rtol=10 * bound, atol=bound * abs(exact).max())
    if Y is None:
        assert np.array_equal(values, values.T)
    return values


KERNELS = [
    RNTK(),
    RNTK(sigma_w=1.3, sigma_b=0.2, sigma_h=0.4, readout="per_step", bidirectional=True),
    RNTK(depth=2, activation="erf", sigma_h=0.5, initial_state="independent", readout="mean"),
    RNTK(depth=3, frozen_layers=1, sigma_b=0.1, readout="mean"),
    RNTK(activation="linear", sigma_w=0.9, sigma_h=0.3, initial_state="independent"),
    RNTK(depth=3, frozen_layers=2, activation="erf", sigma_b=0.3, bidirectional=True),
    RNTK(activation="erf", sigma_w=2.0),
    RNTK(activation="erf", sigma_w=3.0, sigma_b=0.4, sigma_h=0.3, readout="per_step"),
    RNTK(depth=2, activation="erf", sigma_w=2.0, sigma_b=0.3, readout="mean"),
]
ERF = [kernel for kernel in KERNELS if kernel.activation == "erf"]
BY_PIECES = [
    *itertools.product(KERNELS[1:4:2], (5, 13)),
    *itertools.product((KERNELS[2], KERNELS[5], KERNELS[8]), (10, 13)),
]
"""Kernels, and how many numbers of a sequence are staged at once; erf needs a whole layer."""


class TestInTheSimulator:
    __test__ = SIMULATED

    @pytest.mark.parametrize("kernel", KERNELS, ids=repr)
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    @pytest.mark.parametrize("m", [1, 3])
    def test_blocks_of_a_ragged_tile(self, kernel: RNTK, dtype: str, m: int) -> None:
        rng = np.random.default_rng(m)
        X, Y = ragged(rng, 5, m), ragged(rng, 3, m)
        check(kernel, X, None, dtype, block=TINY)
        check(kernel, X, Y, dtype, "nngp", block=TINY)

    @pytest.mark.parametrize("kernel", ERF, ids=repr)
    @pytest.mark.parametrize("amplitude", [1e-9, 1e6, 1e150])
    @pytest.mark.parametrize("m", [1, 2])
    def test_amplitudes_of_erf(self, kernel: RNTK, amplitude: float, m: int) -> None:
        rng = np.random.default_rng(6)
        X, Y = (ragged(rng, n, m, amplitude=amplitude) for n in (5, 3))
        check(kernel, X, None, block=TINY)
        check(kernel, X, Y, kind="nngp", block=TINY)

    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_digits_of_short_sequences(self, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """The cases of digit_cases.py that the simulator can run in seconds."""
        monkeypatch.setattr(fused_gpu, "block_for", lambda *_: Block(1, 1, 1, 1))
        errors = []
        for case in (case for group in GROUPS for case in digit_cases(group)):
            if max(map(len, sequences(case))) <= 9:
                (value,) = pair_values([case], ("cupy", dtype))
                errors.append(figure(case, "k(a, b)", pair_error(case, value, dtype), dtype))
        assert len(errors) > 50
        assert [str(error) for error in errors if not error.error <= error.bound] == []

    @pytest.mark.parametrize(("kernel", "places"), BY_PIECES, ids=repr)
    def test_features_staged_by_pieces_and_in_short_chunks(self, kernel: RNTK, places: int) -> None:
        block = Block(2, 2, 1, 2, stage_bytes=places * 8 * (3 + 5))
        rng = np.random.default_rng(0)
        assert block.places(8) == places
        check(kernel, ragged(rng, 4, 11, 3), None, block=block)
        check(kernel, ragged(rng, 3, 1), ragged(rng, 3, 1), block=block)

    @pytest.mark.parametrize("number", range(len(KERNELS)))
    def test_items(self, number: int) -> None:
        kernel, dtype = KERNELS[number], ("float64", "float32")[number % 2]
        rng = np.random.default_rng(5)
        lists = [rng.integers(0, 4, length) for length in rng.integers(1, 7, 8)]
        X = Sequences.from_items(lists, 4)
        check(kernel, X[:5], None, dtype, block=TINY)
        check(kernel, X[:5], X[5:], dtype, "nngp", block=TINY)

    @pytest.mark.parametrize("kernel", [KERNELS[1], KERNELS[3], KERNELS[8]], ids=repr)
    def test_items_staged_by_pieces(self, kernel: RNTK) -> None:
        places = 10 if kernel.activation == "erf" else 3
        block = Block(2, 2, 1, 2, stage_bytes=places * 8 * (3 + 5))
        X = Sequences.from_items([[0, 1, 2], [1], [2, 1], [0, 0, 1, 2]], 3)
        assert block.places(8) == places
        check(kernel, X, None, block=block)

    def test_diagonal_of_the_authors(self) -> None:
        rng = np.random.default_rng(0)
        X = Sequences.from_arrays(rng.normal(size=(5, 6)))
        check(RNTK(readout="diagonal_authors"), X, None, block=TINY)

    @pytest.mark.parametrize("number", range(len(GOLDEN)))
    def test_golden_values(self, number: int) -> None:
        case = GOLDEN[number]
        dtype, kind = ("float64", "float32")[number % 2], ("ntk", "ntk", "nngp")[number % 3]
        kernel = kernel_of(case)
        X, Y = Sequences.from_arrays(case["a"]), Sequences.from_arrays(case["b"])
        rows, columns = slab_of(kernel, X, dtype, kind), slab_of(kernel, Y, dtype, kind)
        values = gpu_tile_values(kernel.recursion(kind), rows, columns, block=TINY)
        values = values * rows.scale[:, None] * columns.scale
        exact = np.array(case[kind])
        floor = np.maximum(np.abs(exact), 1e-3 * np.abs(exact).max())
        assert (np.abs(values - exact) / floor).max() < BOUNDS[dtype]

    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_square_root(self, dtype: str) -> None:
        number = np.dtype(dtype).type
        root = fused_gpu._operations(dtype).sqrt
        values = np.random.default_rng(4).uniform(size=1000) ** 8
        for x in map(number, [*values, 0, 1, 2.0**-60]):
            assert abs(root(x) - np.sqrt(x)) <= np.spacing(np.sqrt(x))
            assert type(root(x)) is number

    @pytest.mark.parametrize(("dtype", "least"), [("float64", -305), ("float32", -34)])
    def test_square_root_of_what_erf_has(self, dtype: str, least: int) -> None:
        number = np.dtype(dtype).type
        root = fused_gpu._root_for_erf(dtype)
        for x in map(number, 10 ** np.random.default_rng(4).uniform(least, 0.5, size=1000)):
            assert abs(root(x) - np.sqrt(x)) <= np.spacing(np.sqrt(x))
        assert np.isfinite(1 / root(number(0)) ** 2)

    def test_stripes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fused_gpu, "STRIPE_BYTES", 1)
        rng = np.random.default_rng(1)
        X, Y = ragged(rng, 11, 1), ragged(rng, 3, 1)
        bidirectional = RNTK(bidirectional=True, readout="per_step")
        for rows, columns in ((X, None), (X, Y), (Y, X)):
            check(bidirectional, rows, columns, block=TINY)

    @pytest.mark.parametrize(("failures", "heights"), [(1, [20, 8, 8]), (2, [20, 8, 4, 4])])
    def test_memory_that_does_not_suffice_halves_the_stripes(
        self, failures: int, heights: list[int]
    ) -> None:
        device = Scarce(failures)
        X = ragged(np.random.default_rng(2), 20, 1)
        check(RNTK(), X, None, block=TINY, device=device)
        assert [size // 20 for size in device.asked] == heights

    def test_memory_for_nothing_is_a_clear_error(self) -> None:
        X = ragged(np.random.default_rng(2), 12, 1)
        with pytest.raises(MemoryError, match=r"4 rows of 12 float64 values.*bytes are free"):
            check(RNTK(), X, None, block=TINY, device=Scarce(100))

    def test_from_the_device_to_the_device(self) -> None:
        rng = np.random.default_rng(3)
        X, Y = ragged(rng, 7, 2), ragged(rng, 4, 2)
        for kernel, other in itertools.product(KERNELS[:2], (None, Y)):
            recursion, rows = kernel.recursion("ntk"), slab_of(kernel, X)
            columns = None if other is None else slab_of(kernel, other)
            values = device_tile_values(recursion, rows, columns, block=TINY)
            exact = gpu_tile_values(recursion, rows, columns, block=TINY)
            assert np.array_equal(values, exact)

    def test_the_simulator_is_no_gpu(self) -> None:
        assert not fused_gpu.gpu_is_seen()


class Scarce(fused_gpu._SimulatedDevice):
    """A device whose first allocations fail."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked: list[int] = []

    def empty(self, size: int, dtype: np.dtype[Any]) -> Any:
        self.asked.append(size)
        if len(self.asked) <= self.failures:
            raise self.out_of_memory
        return super().empty(size, dtype)


class TestOutsideTheSimulator:
    __test__ = not SIMULATED

    @pytest.mark.slow
    def test_in_the_simulator(self) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-o", "addopts="]
        command += ["-p", "no:cacheprovider", "-W", "ignore::DeprecationWarning", __file__]
        environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "passed" in result.stdout

    def test_without_cupy_nothing_is_loaded(self) -> None:
        code = (
            "import sys; from rntk_dist.kernel import fused_gpu as gpu;"
            "gpu.find_spec = lambda name: None; before = set(sys.modules);"
            "sys.exit(gpu.gpu_is_seen() or set(sys.modules) != before)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_a_gpu_without_numba_cuda_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one_gpu = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=lambda: 1))
        monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=one_gpu))
        monkeypatch.setattr(fused_gpu, "find_spec", lambda name: SimpleNamespace())
        assert fused_gpu.gpu_is_seen()
        missing = {"numba_cuda": None}
        monkeypatch.setattr(fused_gpu, "find_spec", lambda name: missing.get(name, name))
        assert not fused_gpu.gpu_is_seen()

    def test_what_is_missing_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fused_gpu, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r'cupy and numba_cuda: pip install "rntk_dist\[gpu'):
            find_device()
        monkeypatch.setattr(fused_gpu, "find_spec", lambda name: SimpleNamespace())
        monkeypatch.setattr(fused_gpu, "gpu_is_seen", lambda: False)
        with pytest.raises(RuntimeError, match="no GPU was seen"):
            find_device()

    @pytest.mark.skipif(not fused_gpu.gpu_is_seen(), reason="no GPU is seen")
    @pytest.mark.parametrize("kernel", KERNELS, ids=repr)
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    @pytest.mark.parametrize("m", [1, 3, 2000])
    def test_on_a_gpu(self, kernel: RNTK, dtype: str, m: int) -> None:
        rng = np.random.default_rng(m)
        longest = 12 if kernel.readout == "mean" or m > 100 else 60
        X, Y = ragged(rng, 300, m, longest), ragged(rng, 130, m, longest)
        check(kernel, X, None, dtype)
        check(kernel, X, Y, dtype)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize(
        ("activation", "dtype", "depth"),
        [
            ("relu", "float32", 1),
            ("relu", "float64", 1),
            ("erf", "float32", 2),
            ("erf", "float64", 1),
        ],
    )
    def test_compiled_for_a_gpu(
        self,
        activation: str,
        dtype: str,
        depth: int,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """No double precision in a float32 kernel; every state in a register."""
        code = compile_to_ptx(activation, dtype, depth, monkeypatch)
        assert (".f64" in code) == (dtype == "float64")
        ptxas = shutil.which("ptxas")
        if ptxas is None:
            pytest.skip("no ptxas")
        source = tmp_path / "kernel.ptx"
        source.write_text(re.sub(r"\.version .*", ".version 8.0", code, count=1))
        command = [ptxas, "-v", "-arch=sm_90", str(source), "-o", str(tmp_path / "kernel.cubin")]
        if depth == 1:
            command.append(f"-maxrregcount={fused_gpu.REGISTERS}")
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in said


def compile_to_ptx(activation: Any, dtype: str, depth: int, monkeypatch: pytest.MonkeyPatch) -> str:
    if find_spec("numba_cuda") is None or find_spec("cuda.pathfinder") is None:
        pytest.skip("no numba-cuda")
    if not hasattr(np, "row_stack"):
        pytest.skip(f"numba-cuda does not compile with NumPy {np.__version__}")
    from cuda import pathfinder

    try:
        for library in ("nvvm", "nvrtc"):
            pathfinder.load_nvidia_dynamic_lib(library)
    except pathfinder.DynamicLibNotFoundError:
        pytest.skip("no NVVM: it comes with numba-cuda[cu13]")
    from numba import cuda, types
    from numba.cuda import dispatcher

    # Device functions are compiled for the current device, and there may be none.
    card = SimpleNamespace(compute_capability=(9, 0))
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: card)
    network, X = RNTK(activation=activation, depth=depth), Sequences.from_arrays(np.ones((1, 1)))
    recursion = network.recursion("ntk")
    shape = make_shape(recursion, make_slab(network, X).directions[0])
    number = np.dtype(dtype)
    block = fused_gpu.block_for(shape, number.itemsize)
    variant = fused_gpu.make_variant(recursion, number, shape, block)
    real, index = getattr(types, dtype), types.int64
    side = (real[::1], real[::1], index[::1], index[::1])
    signature = (real[:, ::1], types.boolean, *side, *side, *[index] * 6, types.boolean)
    kernel = fused_gpu.make_kernel(variant)
    code: str = cuda.compile(kernel, signature, device=False, abi="numba", cc=(9, 0))[0]
    return code
