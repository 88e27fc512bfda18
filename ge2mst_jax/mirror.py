"""Files that grow, in a folder that may lie in a bucket, where nothing can be appended to."""

import contextlib
import tempfile
import threading
from pathlib import Path

from ge2mst_jax.folders import files_in, in_bucket, put

#: Seconds after which what has grown is uploaded: with TensorBoard's own 20, less than a minute is lost.
UPLOAD_SECONDS = 30.0


@contextlib.contextmanager
def repeated(seconds: float, do):
    """Calls `do` in a thread, again and again after so many seconds, while the block runs."""
    ended = threading.Event()

    def work():
        while not ended.wait(seconds):
            do()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Mirror:
    """A folder whose files grow: `here` it is written to. On a disk it is the folder itself.

    Of a bucket it is a temporary one, whose files are uploaded whole by `upload`, and every `UPLOAD_SECONDS` besides,
    each where it has grown. A context manager, which uploads at its end.

    Args:
        path: of the folder.
        may_write: raises where the folder is not ours any more; nothing is uploaded then.
    """

    def __init__(self, path, may_write=lambda: None):
        self.path, self._may_write = path, may_write
        self._sizes, self._lock, self._held = {}, threading.Lock(), contextlib.ExitStack()
        temporary = in_bucket(path)
        self.here = Path(self._held.enter_context(tempfile.TemporaryDirectory()) if temporary else path)
        if temporary:
            self._held.enter_context(repeated(UPLOAD_SECONDS, self._upload_or_wait))

    def upload(self) -> None:
        """Until what was written is where it can be found."""
        if not in_bucket(self.path):
            return
        with self._lock:
            for file in files_in(self.here):
                name, size = str(file.relative_to(self.here)), file.stat().st_size
                if self._sizes.get(name) != size:
                    self._may_write()
                    put(self.path / name, file.read_bytes())
                    self._sizes[name] = size

    def _upload_or_wait(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the next time, or the run is told by its next save
            self.upload()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            with contextlib.suppress(*([] if kind is None else [OSError, ValueError])):
                self.upload()
        finally:
            self._held.close()
