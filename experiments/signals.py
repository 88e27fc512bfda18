"""Imported by every script before anything else: from then on Ctrl-C and SIGTERM end it at once, in one line.

The other imports take seconds, and a KeyboardInterrupt, Python's own answer to Ctrl-C, is lost where a library's import
or callback catches it. The trainer puts its own handlers in the place of these as long as it has something to save.
Nothing is imported here that takes time itself.
"""

import os
import signal
import sys
import threading

SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM"}
_ending = threading.Lock()


def end(number: int, frame=None) -> None:
    """Ends this process and its workers with one line and status 128 + number; nothing can catch it."""
    if not _ending.acquire(blocking=False):
        return
    if (processes := sys.modules.get("multiprocessing")) is not None:
        for worker in processes.active_children():
            worker.kill()
    if sys.stdout is not None and sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h")  # progress bars hide the cursor
    os.write(2, f"{os.path.basename(sys.argv[0])}: {SAID[number]}\n".encode(errors="backslashreplace"))
    os._exit(128 + number)


def listen() -> None:
    """Sets the handlers; a thread sees to it that they answer while the main thread is outside Python."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SAID:
        signal.signal(number, end)

    def watch():
        while came := os.read(reader, 1):
            if signal.getsignal(came[0]) is end:
                end(came[0])

    threading.Thread(target=watch, name="signals", daemon=True).start()


def is_worker() -> bool:
    """Whether this process is one that `multiprocessing` started: it imports its parent's script."""
    processes = sys.modules.get("multiprocessing")
    return processes is not None and processes.current_process().name != "MainProcess"


def is_of_a_script(path: str | None) -> bool:
    return path is not None and os.path.dirname(os.path.realpath(path)) == os.path.dirname(os.path.realpath(__file__))


if is_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches it too: its parent ends it
elif is_of_a_script(getattr(sys.modules["__main__"], "__file__", None)):  # not where a test imports one
    listen()
