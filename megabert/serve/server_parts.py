"""What a server consists of: settings, loaded runs, the queue of their networks, the application of one process."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..annotate.entity_linker import EntityLinker
from ..inference import Predictor, Session
from .admission import Admission, ServerLimits
from .embedding_routes import embedding_endpoints
from .hosted_linkers import HostedLinker, linker_lanes
from .hosted_models import HostedModel, ModelCatalog
from .http_application import HttpApplication
from .inference_routes import inference_endpoints
from .model_queue import DEFAULT_BATCH_TOKENS, ComputeQueue, Lane, Mix, ModelQueue
from .page_routes import page_endpoints
from .queued_session import MEAN, STATES, WITH_HEAD, lane_name
from .ranking_routes import ranking_endpoints
from .request_guard import LOOPBACK, RequestGuard
from .server_metrics import ServerMetrics
from .task_routes import task_endpoints

MAX_MODEL_THREADS = 4


@dataclass(frozen=True)
class ServeSettings:
    """Settings of a server."""

    host: str = "127.0.0.1"
    port: int = 8000
    processes: int = 0
    """Front ends in processes of their own; 0: one, in the process of the networks."""
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    host_threads: int = 2
    model_threads: int | None = None
    """Batches that are computed at once; None: as many as suit the machine."""
    key_digest: bytes | None = None
    hosts: Collection[str] | None = LOOPBACK
    access_log: str = "-"
    limits: ServerLimits = field(default_factory=ServerLimits)
    linkers: Sequence[EntityLinker] = ()
    """Dictionaries, each of one type of entities."""


@dataclass(frozen=True)
class LoadedRun:
    """A run under its name."""

    name: str
    predictor: Predictor


def make_queue(runs: Sequence[LoadedRun], settings: ServeSettings, metrics: ServerMetrics) -> ModelQueue:
    """Start the queue of the networks: lanes for each with its head, and without."""
    lanes = linker_lanes(settings.linkers)
    for run in runs:
        predictor = run.predictor
        sessions: dict[str, Session] = {WITH_HEAD: predictor.session, MEAN: predictor.session.without_head()}
        if hasattr(predictor.session, "token_states"):
            sessions[STATES] = predictor.session.token_states()
        for kind, session in sessions.items():
            lane = Lane(session, predictor.task.row_length, predictor.tokenizer.pad_id)
            if kind != STATES and hasattr(session, "with_small_batches"):
                lane.session = session.with_small_batches(lane.max_length, lane.pad_id)
            lanes[lane_name(run.name, kind)] = lane
    return ModelQueue(
        lanes,
        mixes=_mixes(lanes) if any(map(_is_torch, runs)) else {},
        batch_tokens=settings.batch_tokens,
        threads=settings.model_threads or 1,
        observe=metrics.observe_batch,
        divide=_divide_cores(runs, settings),
    )


def _is_torch(run: LoadedRun) -> bool:
    return hasattr(run.predictor.session, "model")


def _mixes(lanes: Mapping[str, Lane]) -> Mapping[str, Mix]:
    from .adapter_mix import adapter_mixes  # front ends, and servers of exported networks, import no torch

    return adapter_mixes({name: lane.session for name, lane in lanes.items()})


def with_model_threads(settings: ServeSettings, runs: Sequence[LoadedRun]) -> ServeSettings:
    """Decide how many batches are computed at once, and divide the cores among them.

    On a CPU as many as cores, up to four: no thread waits for others at the end of each operation, or when tokenizing
    takes its core. One that is alone has all cores. On a GPU one is packed while the other is computed.
    """
    if settings.model_threads is not None:
        return settings
    if any(compute_type(run.predictor) == "gpu" for run in runs):
        return replace(settings, model_threads=2)
    if not all(map(_is_torch, runs)):  # onnxruntime has threads of its own
        return settings
    import torch

    return replace(settings, model_threads=min(torch.get_num_threads(), MAX_MODEL_THREADS))


def _divide_cores(runs: Sequence[LoadedRun], settings: ServeSettings) -> Callable[[int], None]:
    """Return what gives each of several batches on a CPU its part of the cores."""
    is_gpu = any(compute_type(run.predictor) == "gpu" for run in runs)
    if is_gpu or (settings.model_threads or 1) == 1 or not all(map(_is_torch, runs)):
        return lambda _: None
    import torch

    cores = torch.get_num_threads()
    return lambda count: torch.set_num_threads(max(cores // count, 1))


def compute_type(predictor: Predictor) -> str:
    """Return gpu or cpu."""
    return "gpu" if "cuda" in str(getattr(predictor.session, "device", "cpu")) else "cpu"


def make_application(
    runs: Sequence[LoadedRun], settings: ServeSettings, queue: ComputeQueue, metrics: ServerMetrics, kind: str
) -> HttpApplication:
    """Build the application of one process."""
    part = max(settings.batch_tokens // 2, max(run.predictor.task.row_length for run in runs))
    models = [HostedModel(run.name, run.predictor, queue, part) for run in runs]
    linkers = [HostedLinker(item, queue, part) for item in settings.linkers]
    catalog = ModelCatalog(models, linkers, host_threads=settings.host_threads)
    admission = Admission(settings.limits, catalog, metrics)
    guard = RequestGuard(settings.hosts, settings.key_digest)
    routes = [*task_endpoints(), *embedding_endpoints(), *ranking_endpoints(), *inference_endpoints()]
    return HttpApplication(page_endpoints(routes), admission, guard, compute_type=kind, access_log=settings.access_log)


def warm_up(application: HttpApplication) -> None:
    """Compute a text with each model: the first batch allocates memory and compiles kernels."""
    catalog = application.admission.catalog
    for model in catalog.models.values():
        catalog.perform(partial(model.embed, ["Warm-up."]), catalog.work())
    for linker in catalog.linkers.values():
        catalog.perform(partial(linker.link, [{"text": "Warm-up"}], 1), catalog.work())
