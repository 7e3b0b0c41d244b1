"""One thread per process, no network, no progress bars; tiny checkpoints, written once per run."""

from __future__ import annotations
import os
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion checkpoint: read it, do not write to it."""
    from families import tiny

    return tiny.sd(tmp_path_factory.mktemp("checkpoints") / "tiny-sd")


@pytest.fixture(scope="session")
def tiny_ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny unconditional checkpoint: read it, do not write to it."""
    from families import tiny

    return tiny.ddpm(tmp_path_factory.mktemp("checkpoints") / "tiny-ddpm")
