"""What holds for every test: one thread, no display, no network beyond this machine."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.least_recipe import LEAST

# Set before torch and transformers are imported, and inherited by the processes that tests start. One thread makes
# sums come out the same on every machine and lets pytest-xdist use the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname()}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that connects to another machine; gloo's ranks may talk to each other on this one."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOCAL_HOSTS:
            pytest.fail(f"a test must not use the network, but one connects to {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A YAML file that holds the shortest recipe that loads."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(LEAST))
    return path
