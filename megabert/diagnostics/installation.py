"""Describe an installation for `megabert doctor`: versions, GPUs, cache, disk, and what each missing extra is for."""

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from .. import __version__
from ..checkpoints.catalog import describe

# Extra -> what it is for
EXTRAS = {
    "track": "curves (TensorBoard, plots)",
    "documents": "Parquet tables",
    "hf": "parity tests with transformers",
    "ray": "annotation by Ray",
    "approximate": "approximate search of embeddings",
    "zstd": "data files compressed by Zstandard",
    "onnx": "exported models (ONNX)",
    "serve": "the server",
    "notebooks": "executing the tutorials",
    "docs": "building the site",
    "dev": "tests",
}
# A fine-tuned 345M model with its optimizer takes 4 GB, a published checkpoint 0.7 GB.
SCARCE_BYTES, NONE_BYTES = 5_000_000_000, 100_000_000


@dataclass(frozen=True)
class Finding:
    """A problem: what, its remedy, and the exit code of one that prevents any work, else 0."""

    what: str
    remedy: str
    exit_code: int = 0


@dataclass
class Installation:
    """What `megabert doctor` prints."""

    versions: dict[str, str | None] = field(default_factory=dict)
    gpus: list[dict[str, Any]] = field(default_factory=list)
    cuda: dict[str, Any] = field(default_factory=dict)
    cpu: dict[str, Any] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)
    disks: dict[str, dict[str, Any]] = field(default_factory=dict)
    extras: dict[str, dict[str, Any]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def to_document(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"is_usable": self.exit_code == 0}

    @property
    def exit_code(self) -> int:
        """Exit code of the first finding that prevents any work; 0 without one."""
        return next((finding.exit_code for finding in self.findings if finding.exit_code), 0)


def examine(cache: Path, work: Path, requirements: Iterable[str] | None = None) -> Installation:
    """Examine this Python, the GPUs, the cache folder and the disk of the working folder.

    `requirements` are megabert's, in the words of its metadata; by default those of the installed package.
    """
    found = Installation()
    wanted = _own_requirements() if requirements is None else list(requirements)
    _examine_packages(found, wanted)
    found.cpu = {"cores": os.cpu_count(), "machine": platform.machine(), "system": platform.platform(terse=True)}
    _examine_torch(found)
    _examine_folder(found, "cache", cache)
    _examine_folder(found, "working folder", work)
    found.cache = {"folder": str(cache), "checkpoints": [item["name"] for item in describe(cache) if item["in_cache"]]}
    return found


def _own_requirements() -> list[str]:
    try:
        return importlib.metadata.requires("megabert") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return []


def _examine_packages(found: Installation, requirements: Iterable[str]) -> None:
    """Compare what is installed with the requirements: those without an extra are needed, others for one thing."""
    found.versions = {"megabert": __version__, "python": platform.python_version()}
    for line in requirements:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        extra = match[1] if (match := re.search(r"extra == ['\"]([\w-]+)", str(wanted.marker or ""))) else ""
        if wanted.name == "megabert" or (wanted.marker and not wanted.marker.evaluate({"extra": extra})):
            continue
        version = _version(wanted.name)
        fits = version is not None and wanted.specifier.contains(version, prereleases=True)
        if extra:
            entry = found.extras.setdefault(extra, {"for": EXTRAS.get(extra, ""), "missing": []})
            entry["missing"] += [] if fits else [f"{wanted.name}{wanted.specifier}"]
            continue
        found.versions[wanted.name] = version
        if not fits:
            found.findings.append(_missing(wanted, version))


def _missing(wanted: Requirement, version: str | None) -> Finding:
    state = "is not installed" if version is None else f"{version} is installed"
    remedy = f'pip install "{wanted.name}{wanted.specifier}"'
    return Finding(f"{wanted.name}{wanted.specifier} is needed and {state}.", remedy, 64)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _examine_torch(found: Installation) -> None:
    """List the GPUs that torch can use, and report why it finds none where the machine has one."""
    try:
        import torch
    except ImportError as error:
        found.findings.append(Finding(f"torch cannot be imported: {error}", "pip install torch", 64))
        return
    build = torch.version.cuda
    found.cuda = {"torch_build": build, "is_available": torch.cuda.is_available(), "triton": _version("triton")}
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        gpu = {"name": facts.name, "memory_gb": round(facts.total_memory / 1e9, 1)}
        gpu |= {"capability": f"{facts.major}.{facts.minor}", "bf16": facts.major >= 8}
        found.gpus.append(gpu | {"fp8": (facts.major, facts.minor) >= (8, 9)})
    has_driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if has_driver and not found.gpus:
        why = "torch is built without CUDA" if build is None else "torch cannot use it"
        remedy = "Install the build for your driver from pytorch.org; see nvidia-smi for the driver's version."
        found.findings.append(Finding(f"There is an NVIDIA driver, but {why}.", remedy))


def _examine_folder(found: Installation, name: str, folder: Path) -> None:
    """Measure the free space of a folder, or of the nearest one above it that exists, and whether it is writable."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    is_writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    found.disks[name] = {"folder": str(folder), "free_gb": round(free / 1e9, 1), "is_writable": is_writable}
    remedy = "Set MEGABERT_HOME to another folder." if name == "cache" else "Change to another folder."
    if not is_writable:
        found.findings.append(Finding(f"The {name}, {folder}, cannot be written.", remedy, 73))
    elif free < SCARCE_BYTES:
        code = 74 if free < NONE_BYTES else 0
        found.findings.append(Finding(f"The disk of the {name}, {folder}, has {free / 1e9:.1f} GB left.", remedy, code))


def _lines_of_gpus(found: Installation) -> Iterator[str]:
    for gpu in found.gpus:
        kinds = "".join(f", {name}" for name in ("bf16", "fp8") if gpu[name])
        yield f"gpu        {gpu['name']}, {gpu['memory_gb']} GB, compute capability {gpu['capability']}{kinds}"
    if not found.gpus:
        yield "gpu        none that torch can use: trainings run on the CPU"
    if found.cuda:
        build, triton = found.cuda["torch_build"], found.cuda["triton"] or "none"
        yield f"cuda       torch built {f'for CUDA {build}' if build else 'for the CPU only'}, triton {triton}"


def to_text(found: Installation) -> str:
    """Format the examination, a line for each fact, the problems last."""
    versions = ", ".join(f"{name} {version or 'MISSING'}" for name, version in found.versions.items())
    lines = [f"versions   {versions}"]
    lines.append(f"cpu        {found.cpu['cores']} cores, {found.cpu['machine']}, {found.cpu['system']}")
    lines += _lines_of_gpus(found)
    lines.append(f"cache      {found.cache['folder']}: {', '.join(found.cache['checkpoints']) or 'no checkpoints'}")
    lines += [f"disk       {disk['free_gb']} GB free for the {name}" for name, disk in found.disks.items()]
    for name, extra in found.extras.items():
        missing = ", ".join(extra["missing"])
        state = f'missing {missing}: pip install "megabert[{name}]"' if missing else "installed"
        lines.append(f"extra      {name} ({extra['for']}): {state}")
    lines += [f"PROBLEM    {finding.what} {finding.remedy}" for finding in found.findings]
    return "\n".join([*lines, "" if found.findings else "No problem found."]).rstrip()
