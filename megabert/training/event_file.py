"""TensorBoard event files, written with TensorBoard's own record writer."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventFile:
    """A TensorBoard event file.

    torch.utils.tensorboard imports TensorFlow where that is installed, so it is not used.
    Raises ImportError if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads all files with "tfevents" in their name, in the order of names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._writer = RecordWriter((folder / name).open("xb"))
        self._add(file_version="brain.Event:2")
        # SessionLog.START at a step makes TensorBoard drop what older files hold from that step on.
        self._add(step=first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Append a scalar for each metric, tagged split/name."""
        values = [self._summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in metrics.items()]
        self._add(step=step, summary=self._summary(value=values))

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _add(self, **content: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._writer.flush()
