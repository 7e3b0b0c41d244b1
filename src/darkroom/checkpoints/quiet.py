"""transformers, one at a time and without its reports."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["building", "quiet_transformers"]

# transformers swaps the default dtype and torch.nn.init of the whole process while it builds: networks are built one at a time
building = threading.RLock()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold `building`; until the end transformers logs errors only and shows no progress bars."""
    from transformers.utils import logging

    with building:
        before = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging._tqdm_active = False  # disable_progress_bar() would also switch the hub's bars, which are the user's
        try:
            yield
        finally:
            logging.set_verbosity(before[0])
            logging._tqdm_active = before[1]
