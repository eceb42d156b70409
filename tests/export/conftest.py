"""Exports of the tiny runs in tests/runs_v1, each made once."""

import functools
from pathlib import Path

import pytest

from ..test_first_round_runs import input_of

RUNS = Path(__file__).parents[1] / "runs_v1"


@pytest.fixture(scope="session")
def exported(tmp_path_factory, quick_exporter):
    """A function that exports a run by its name and the manifest's word for its precision, and returns the folder."""
    pytest.importorskip("onnxruntime")
    from megabert.export.onnx_export import OnnxOptions, export_onnx

    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def export(name, precision="32"):
        target = folder / f"{name}-{precision}"
        calibration = input_of(name) if precision == "int8 static" else None
        assert list(export_onnx(RUNS / name / "run", target, OnnxOptions(precision != "32", calibration)))
        return target

    return export
