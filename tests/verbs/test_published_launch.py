"""What the published commands read from their launcher, and what two processes agree on."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from lrc.verbs.published_launch import Launch, agree_on_run, read_launch

ROOT = Path(__file__).parents[2]


def test_the_environment_says_what_the_launcher_wants() -> None:
    environment = {
        "ACCELERATE_USE_CPU": "True",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_GRADIENT_CLIPPING": "auto",
        "WORLD_SIZE": "2",
        "RANK": "1",
    }
    launch = read_launch(environment)
    assert (launch.wants_cpu, launch.has_cuda) == (True, False)
    assert (launch.gradient_accumulation_steps, launch.max_grad_norm) == (4, None)
    assert (launch.num_processes, launch.rank) == (2, 1)


def test_without_a_launcher_there_is_one_process() -> None:
    launch = read_launch({})
    assert (launch.num_processes, launch.rank, launch.wants_cpu) == (1, 0, False)
    assert (launch.gradient_accumulation_steps, launch.max_grad_norm) == (None, None)


def test_settings_of_deepspeed_count_only_where_it_is_used() -> None:
    launch = read_launch({"ACCELERATE_USE_CPU": "1", "ACCELERATE_GRADIENT_CLIPPING": "0.5"})
    assert launch.max_grad_norm is None


def test_the_time_is_fit_for_a_folder() -> None:
    launch = read_launch({"ACCELERATE_USE_CPU": "1"})
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", launch.time)


def test_one_process_keeps_its_run_folder() -> None:
    assert agree_on_run("run", Launch(time="t")) == "run"


def test_two_processes_agree_on_the_run_folder_of_the_first() -> None:
    code = (
        "import os; from lrc.verbs.published_launch import Launch, agree_on_run; rank = int(os.environ['RANK']); "
        "print(agree_on_run(f'run-{rank}', Launch(time='t', wants_cpu=True, num_processes=2, rank=rank)))"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)},
        )
        for rank in ("0", "1")
    ]
    assert [process.communicate(timeout=120)[0].split()[-1] for process in processes] == ["run-0", "run-0"]
