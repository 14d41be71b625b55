"""Each launcher's way of numbering processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from deepspeed.runtime.engine import DeepSpeedEngine

from unimo_ds.utils.launchers import device_environment, host_names, local_rank, rank_environment, slurm_port


@pytest.mark.parametrize(
    ("node_list", "names"),
    [
        ("gpu[03-05,7],login", ["gpu03", "gpu04", "gpu05", "gpu7", "login"]),
        ("gpu[098-101]", ["gpu098", "gpu099", "gpu100", "gpu101"]),
        ("node1", ["node1"]),
        ("node1,node2", ["node1", "node2"]),
        ("rack[1-2]-gpu[3,5]", ["rack1-gpu3", "rack1-gpu5", "rack2-gpu3", "rack2-gpu5"]),
        ("rack[1-2]-ib", ["rack1-ib", "rack2-ib"]),
        ("", []),
    ],
)
def test_host_names(node_list: str, names: list[str]) -> None:
    assert host_names(node_list) == names


def test_launchers_that_speak_for_themselves_are_left_alone() -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    assert rank_environment(dict.fromkeys(names, "1")) == {}
    helper = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    for mpi in ({"OMPI_COMM_WORLD_SIZE": "2"}, {"PMI_SIZE": "2"}):
        assert rank_environment(mpi) == {}
        assert rank_environment(mpi | helper) == {}


def test_mpirun_on_one_machine_needs_no_mpi() -> None:
    place = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "PMIX_NAMESPACE": "prterun-gpu03-77@1"}
    here = place | {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    found = rank_environment(here)
    port = found.pop("MASTER_PORT")
    assert found == {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    assert 20000 <= int(port) < 32000
    assert rank_environment(here | {"OMPI_COMM_WORLD_RANK": "2"})["MASTER_PORT"] == port
    assert rank_environment(here | {"PMIX_NAMESPACE": "prterun-gpu03-78@1"})["MASTER_PORT"] != port
    assert "MASTER_PORT" not in rank_environment(here | {"MASTER_PORT": "777"})
    assert rank_environment(here | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}) == {}, "two machines ask MPI"


@pytest.mark.parametrize("names", [("LOCAL_RANK",), ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")])
def test_deepspeed_takes_the_one_gpu_that_a_process_sees(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process of a machine, started by torchrun or by mpirun."""
    seen = SimpleNamespace()
    for name, number in device_environment(dict.fromkeys(names, "1"), 0).items():
        monkeypatch.setenv(name, number)
    DeepSpeedEngine._configure_with_arguments(seen, None, None)
    assert seen.local_rank == 0


def test_srun() -> None:
    found = rank_environment(
        {
            "SLURM_STEP_NUM_TASKS": "8",
            "PMI_SIZE": "8",
            "SLURM_PROCID": "5",
            "SLURM_LOCALID": "1",
            "SLURM_STEP_NODELIST": "gpu[03-04]",
            "SLURM_JOB_ID": "123456",
            "MASTER_PORT": "777",
        }
    )
    assert found == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu03"}


def test_jobs_steps_and_restarts_have_ports_of_their_own() -> None:
    starts = [
        {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), "SLURM_RESTART_COUNT": str(restarts)}
        for job in (9_999_999, 10_000_000, 10_000_001)
        for step in (0, 1, 2)
        for restarts in (0, 1, 2)
    ]
    ports = [slurm_port(start) for start in starts]
    assert len(set(ports)) == len(starts)
    assert 20000 <= min(ports) <= max(ports) < 32000
    assert slurm_port({"SLURM_JOB_ID": "7"}) == slurm_port({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"})


def test_a_batch_script_without_srun_is_one_process() -> None:
    found = rank_environment({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"})
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")
    assert 1024 < int(found["MASTER_PORT"]) < 65536


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({"LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, 3),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1"}, 1),
        ({"MV2_COMM_WORLD_LOCAL_RANK": "2"}, 2),
        ({}, 0),
    ],
)
def test_each_process_of_a_machine_has_its_own_device(environment: dict[str, str], rank: int) -> None:
    assert local_rank(environment) == rank
