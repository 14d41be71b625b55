from __future__ import annotations

import json

import pytest

from unimo_ds import doctor


def test_this_machine_is_examined() -> None:
    findings = doctor.examine()
    names = [finding.name for finding in findings]
    assert {"Python", "torch", "deepspeed", "NVIDIA apex", "ninja", "mpirun", "OMP_NUM_THREADS"} <= set(names)
    assert doctor.is_fit(findings), [finding for finding in findings if finding.state == "bad"]
    assert all(finding.cost for finding in findings if finding.state != "good"), "what is missing states its cost"
    assert json.loads(json.dumps(doctor.to_dict(findings)))["fit"] is True
    assert "Python" in doctor.to_text(findings)


def test_a_missing_requirement_is_bad_and_says_how_to_get_it() -> None:
    (missing,) = doctor._pinned_packages(["surely-not-installed==1.2", "pytest; extra == 'test'"])
    assert (missing.state, missing.cost) == ("bad", "pip install 'surely-not-installed==1.2'")
    assert not doctor.is_fit([missing])


def test_another_version_than_the_tested_one_is_said() -> None:
    (finding,) = doctor._pinned_packages(["torch==0.1"])
    assert (finding.state, finding.cost) == ("good", "tested with 0.1")


@pytest.mark.parametrize(
    ("capability", "architectures", "state", "precision"),
    [
        ((7, 0), ["sm_70", "sm_80"], "good", "fp16"),
        ((7, 0), ["sm_80", "sm_90"], "bad", "fp16"),
        ((9, 0), ["sm_90a"], "good", "bf16"),
        ((8, 6), ["sm_80", "sm_90"], "good", "bf16"),
        ((8, 0), ["sm_86"], "bad", "bf16"),
        ((12, 0), ["sm_90", "compute_90"], "good", "bf16"),
    ],
)
def test_precision_follows_the_capability(
    capability: tuple[int, int], architectures: list[str], state: str, precision: str
) -> None:
    finding = doctor.gpu_finding(0, "some GPU", capability, 32.0, architectures)
    assert finding.state == state
    assert f"use {precision}" in finding.found


def test_another_projects_apex_is_told_from_nvidias(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    package = tmp_path / "apex"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor._apex().state == "bad"
    (package / "optimizers").mkdir()
    (package / "optimizers" / "fused_adam.py").write_text("")
    assert doctor._apex().state == "absent"
    (tmp_path / "amp_C.py").write_text("")
    assert doctor._apex().state == "good"
