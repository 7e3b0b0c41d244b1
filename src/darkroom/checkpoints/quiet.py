"""Keep transformers from printing while a pipeline loads: its reports are of no use there."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["quiet_transformers"]

_lock = threading.Lock()
_depth = 0
_before = (0, False)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors only, no progress bars. The settings are global to the process: the first user changes them, the last restores them."""
    from transformers.utils import logging

    global _depth, _before
    with _lock:
        if _depth == 0:
            _before = logging.get_verbosity(), logging.is_progress_bar_enabled()
            logging.set_verbosity_error()
            _progress(False)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                logging.set_verbosity(_before[0])
                _progress(_before[1])


def _progress(on: bool) -> None:
    from transformers.utils import logging

    logging._tqdm_active = on  # enable_progress_bar() would also switch the hub's bars, which are the user's
