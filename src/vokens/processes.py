"""Worker processes that end with the process that started them, also when it is killed."""

import multiprocessing
import os
import threading


def follow_parent() -> None:
    """In a worker: end with its parent, whatever it is doing then. Its queue alone would keep it waiting forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
