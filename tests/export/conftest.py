"""Exports of the tiny runs in tests/runs_v1, each made once."""

import functools
from pathlib import Path

import pytest

RUNS = Path(__file__).parents[1] / "runs_v1"


@pytest.fixture(scope="session")
def exported(tmp_path_factory, quick_exporter):
    """A function that exports a run by its name, in float32 or in 8 bits, and returns the folder."""
    pytest.importorskip("onnxruntime")
    from megabert.export.onnx_export import OnnxOptions, export_onnx

    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def export(name, is_int8=False):
        target = folder / f"{name}-{'int8' if is_int8 else 'float'}"
        assert list(export_onnx(RUNS / name / "run", target, OnnxOptions(is_int8)))
        return target

    return export
