"""Records into TensorBoard's event files, in the folder of the run. Its values are float32."""

import struct
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hybridrl.observe.record import Record
from hybridrl.observe.sink import Sink, SinkRun, Status
from hybridrl.registry import register

FOLDER = "tensorboard"

_TEXTS = {".yaml", ".json", ".txt"}


@register("sink", "tensorboard")
class TensorBoardSink(Sink):
    """Scalars by the names of the metrics; files of the run as a text or a picture, by their own."""

    label, package, requirement = "TensorBoard", "tensorboard", "tensorboard>=2.18"

    def __init__(self) -> None:
        self._writer: Any = None
        self._step = 0

    def open(self, run: SinkRun) -> None:
        # The writer of the viewer's own package: torch.utils.tensorboard needs that package too, and torch
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = EventFileWriter(str(run.folder / FOLDER))
        if run.resume_step is not None:
            self._step = run.resume_step
            log = _protos("event").SessionLog
            start = log(status=log.START)  # TensorBoard forgets what it has from this step on
            writer.add_event(
                _protos("event").Event(wall_time=time.time(), step=run.resume_step + 1, session_log=start)
            )
        self._writer = writer

    def write(self, records: Sequence[Record]) -> None:
        for record in records:
            values = [
                _protos("summary").Summary.Value(tag=name, simple_value=value)
                for name, value in record.metrics.items()
            ]
            event = _protos("event").Event(
                wall_time=record.time, step=record.step, summary=_protos("summary").Summary(value=values)
            )
            self._writer.add_event(event)
            self._step = record.step
        self._writer.flush()

    def keep(self, path: Path) -> None:
        if path.suffix in _TEXTS:
            value = _text(path.name, path.read_text("utf-8"))
        elif path.suffix == ".png":
            value = _picture(path.name, path.read_bytes())
        else:
            return
        self._writer.add_event(
            _protos("event").Event(
                wall_time=time.time(), step=self._step, summary=_protos("summary").Summary(value=[value])
            )
        )

    def close(self, status: Status) -> None:
        self._writer.close()

    def view(self, folder: Path) -> str:
        return f"tensorboard --logdir {folder.parent}"


def _text(tag: str, text: str) -> Any:
    """A summary that the text plug-in shows as it stands."""
    from tensorboard.plugins.text.metadata import create_summary_metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    shown = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown: four spaces keep it as it is
    metadata = create_summary_metadata(display_name=tag, description="")
    return _protos("summary").Summary.Value(
        tag=tag, metadata=metadata, tensor=make_tensor_proto([shown.encode()])
    )


def _picture(tag: str, png: bytes) -> Any:
    width, height = struct.unpack(">II", png[16:24])  # a PNG begins with 16 bytes, then its size
    image = _protos("summary").Summary.Image(
        width=width, height=height, colorspace=4, encoded_image_string=png
    )
    return _protos("summary").Summary.Value(tag=tag, image=image)


def _protos(kind: str) -> Any:
    """The generated classes of a kind of message, which declare themselves only when they are imported."""
    return import_module(f"tensorboard.compat.proto.{kind}_pb2")
