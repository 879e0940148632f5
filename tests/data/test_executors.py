"""Every executor gets the stages in order, and gives the same bytes; what can't run here is faked at its border."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lrc.data.executors import count_unfinished, run_here, run_on_ray, submit_to_slurm
from lrc.data.prepare_task import PrepareTask
from lrc.data.stages import all_stages
from lrc.data_config import ClusterConfig, PrepareConfig, SourceConfig
from lrc.errors import ConfigError, DataError
from tests.data.fake_slurm import install_fake_slurm
from tests.data.raw_sources import byte_tokenizer, make_task, texts, write_source

CLUSTER = ClusterConfig(partition="cpu", hours=3, qos="long", memory_per_cpu_gigabytes=6)


def task_in(root: Path, name: str) -> PrepareTask:
    if not (root / "0.jsonl").exists():
        for number in range(2):
            write_source(root / f"{number}.jsonl", texts(20, 10 * number))  # half of each is in the other
    settings = PrepareConfig(sources=[SourceConfig(path=str(root / "*.jsonl"))], exact_dedupe=True)
    return make_task(root / name, settings, byte_tokenizer(root / "tokenizer"))


def shards_of(task: PrepareTask) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(task.folder).glob("0000[01].*")}


def test_slurm_jobs_give_the_same_shards_as_processes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = install_fake_slurm(tmp_path / "slurm", monkeypatch)
    local, remote = task_in(tmp_path, "local"), task_in(tmp_path, "remote")
    for stage in all_stages(local):
        run_here(stage, Path(local.folder), workers=1)
    assert submit_to_slurm(all_stages(remote), Path(remote.folder), workers=5, cluster=CLUSTER) is None
    assert len(shards_of(remote)) == 6, (slurm / "output").read_text()
    assert shards_of(remote) == shards_of(local)
    jobs = [line for line in (slurm / "calls").read_text().splitlines() if "merge_stats" not in line]
    arrays = [job for job in jobs if "--export=ALL" in job]
    assert [job.split("--job-name=")[1].split()[0] for job in arrays] == [
        "lrc-exact-sign",
        "lrc-exact-find",
        "lrc-tokenise",
    ]
    assert [job.split("--array=")[1].split()[0] for job in arrays] == ["0-1%5", "0-0%5", "0-1%5"]
    assert "--dependency" not in arrays[0]
    assert all("--dependency=afterok:" in job for job in arrays[1:])
    for asked in ("--partition=cpu", "--time=3:00:00", "--qos=long", "--cpus-per-task=1", "--mem-per-cpu=6G"):
        assert all(asked in job for job in arrays)


def test_jobs_that_wait_are_not_submitted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = install_fake_slurm(tmp_path / "slurm", monkeypatch, waits=True)
    task = task_in(tmp_path, "remote")
    stages, folder = all_stages(task), Path(task.folder)
    job = submit_to_slurm(stages, folder, workers=None, cluster=CLUSTER)
    assert job is not None
    assert count_unfinished(stages[-1], folder) == 2
    calls = (slurm / "calls").read_text()
    with pytest.raises(DataError, match=rf"the last is {job}\), but 2 of 2 files are not done"):
        submit_to_slurm(stages, folder, workers=None, cluster=CLUSTER)
    assert (slurm / "calls").read_text() == calls
    monkeypatch.setenv("FAKE_SLURM_WAITS", "")
    (folder / "submitted_job").unlink()
    assert submit_to_slurm(stages, folder, workers=None, cluster=CLUSTER) is None
    assert submit_to_slurm(stages, folder, workers=None, cluster=CLUSTER) is None  # nothing is left


@pytest.mark.parametrize("command", [None, "source /opt/lrc/activate"], ids=["of its own", "given"])
def test_a_job_first_makes_this_installation_usable(
    tmp_path: Path, command: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake_slurm(tmp_path / "slurm", monkeypatch, waits=True)
    task = task_in(tmp_path, "remote")
    stages, folder = all_stages(task), Path(task.folder)
    cluster = replace(CLUSTER, environment_command=command)
    assert submit_to_slurm(stages, folder, workers=None, cluster=cluster) is not None
    expected = command or f'export PATH="{Path(sys.executable).parent}:$PATH"'
    for stage in stages:
        script = (folder / "logs" / stage.name / "launch_script.slurm").read_text()
        lines = [line.strip() for line in script.splitlines()]
        (work,) = (number for number, line in enumerate(lines) if "launch_pickled_pipeline" in line)
        assert expected in lines[:work]


def test_slurm_is_needed_for_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    task = task_in(tmp_path, "remote")
    with pytest.raises(ConfigError, match="must find sbatch"):
        submit_to_slurm(all_stages(task), Path(task.folder), workers=None, cluster=CLUSTER)


def test_a_refusal_of_sbatch_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = install_fake_slurm(tmp_path / "slurm", monkeypatch)
    (slurm / "bin" / "sbatch").write_text("#!/bin/bash\nexit 1\n")
    task = task_in(tmp_path, "remote")
    with pytest.raises(ConfigError, match="sbatch must take the jobs, but it refused"):
        submit_to_slurm(all_stages(task), Path(task.folder), workers=None, cluster=CLUSTER)


def test_ray_gets_each_stage_and_what_a_task_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datatrove.executor

    started, asked = [], {}

    class Recorded(datatrove.executor.RayPipelineExecutor):  # type: ignore[misc]
        def run(self) -> None:
            asked.update(vars(self))
            for rank in range(self.tasks):
                self._run_for_rank(rank)

    ray = ModuleType("ray")
    ray.init = lambda **settings: started.append(settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(datatrove.executor, "RayPipelineExecutor", Recorded)
    local, remote = task_in(tmp_path, "local"), task_in(tmp_path, "remote")
    for one, other in zip(all_stages(local), all_stages(remote), strict=True):
        run_here(one, Path(local.folder), workers=1)
        run_on_ray(other, Path(remote.folder), workers=3, cluster=CLUSTER)
        wanted: dict[str, Any] = {"tasks": other.tasks, "workers": 3, "cpus_per_task": 1, "mem_per_cpu_gb": 6}
        assert {name: asked[name] for name in wanted} == wanted
    assert len(started) == 3
    assert shards_of(remote) == shards_of(local)


def test_a_ray_task_that_fails_is_an_error_that_names_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datatrove.executor

    ray = ModuleType("ray")
    ray.init = lambda **settings: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(datatrove.executor.RayPipelineExecutor, "run", lambda self: None)
    task = task_in(tmp_path, "remote")
    with pytest.raises(DataError, match=r"2 of 2 tasks of exact-sign failed; .*logs/exact-sign says why"):
        run_on_ray(all_stages(task)[0], Path(task.folder), workers=None, cluster=CLUSTER)


def test_without_ray_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    task = task_in(tmp_path, "remote")
    with pytest.raises(ConfigError, match="pip install ray"):
        run_on_ray(all_stages(task)[-1], Path(task.folder), workers=None, cluster=CLUSTER)


def test_more_tasks_than_an_array_takes_share_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = install_fake_slurm(tmp_path / "slurm", monkeypatch)
    monkeypatch.setattr("lrc.data.executors.MAX_ARRAY_SIZE", 2)
    for number in range(5):
        write_source(tmp_path / f"{number}.jsonl", texts(3, 3 * number))
    task = task_in(tmp_path, "remote")
    assert submit_to_slurm(all_stages(task), Path(task.folder), workers=None, cluster=CLUSTER) is None
    jobs = [line for line in (slurm / "calls").read_text().splitlines() if "--export=ALL" in line]
    assert [job.split("--array=")[1].split()[0] for job in jobs] == ["0-1", "0-0", "0-1"]
    assert all(count_unfinished(stage, Path(task.folder)) == 0 for stage in all_stages(task))


def test_what_was_tokenised_before_all_files_were_signed_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake_slurm(tmp_path / "slurm", monkeypatch)
    task = task_in(tmp_path, "remote")
    for stage in all_stages(task):
        run_here(stage, Path(task.folder), workers=1)
    (Path(task.folder) / "logs" / "exact-sign" / "completions" / "00001").unlink()
    with pytest.raises(DataError, match=r"exact-sign must be done before exact-find .* 1 of its 2 .*--overwrite"):
        submit_to_slurm(all_stages(task), Path(task.folder), workers=None, cluster=CLUSTER)
