"""`examples/sockets`: real processes over TLS on loopback; one is killed, some refuse, some must not get in."""

from __future__ import annotations

import importlib.util
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import securefed as sf
from securefed.privacy.ledger import Ledger
from securefed.sessions.messages import unseal

ROOT = Path(__file__).parents[1]
SOCKETS = ROOT / "examples" / "sockets"
SIBLINGS = ("keys", "learn", "frames")
PATIENT = ["--deadline", "90"]
"""Seconds that a step may last on a machine that does other things too; an honest run needs a few."""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The launcher as a module, and processes that find the library."""
    monkeypatch.syspath_prepend(str(SOCKETS))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec = importlib.util.spec_from_file_location("sockets_run", SOCKETS / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in SIBLINGS:
        sys.modules.pop(name, None)


def metrics(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "server" / "metrics.jsonl").read_text().splitlines()]


def sum_of(root: Path, survivors: list[int], round: int) -> Any:
    return np.sum([np.load(root / f"client-{k}" / f"sent-{round:04d}.npy") for k in survivors], axis=0)


def finish(party: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = party.communicate(timeout=200)
    return party.returncode, output


def test_a_client_killed_in_the_middle_leaves_the_survivors_sum_right_and_training_goes_on(
    example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example.main(tmp_path, clients=6, kill=3, server_args=["--rounds", "5", *PATIENT]) == 0
    printed, rounds = capsys.readouterr().out, metrics(tmp_path)
    assert "client 3 killed while the others wait" in printed
    assert [r["survivors"] for r in rounds] == [[0, 1, 2, 3, 4, 5]] + [[0, 1, 2, 4, 5]] * 4
    assert rounds[1]["dropped"] == {"3": "mask"}
    for r in rounds:
        with np.load(tmp_path / "server" / f"round-{r['round']:04d}.npz") as stored:
            np.testing.assert_allclose(
                stored["total"], sum_of(tmp_path, r["survivors"], r["round"]), atol=1e-4
            )
    assert rounds[-1]["accuracy"] > 0.5  # guessing gives 0.1; observed .70 to .85
    for k in range(6):
        with Ledger(tmp_path / f"client-{k}" / "state" / "ledger.sqlite") as ledger:
            ledger.check()
            assert len(ledger.events()) in ((1, 2) if k == 3 else (5,))  # killed before or after it reserved
    assert (tmp_path / "client-0" / "tls.key").stat().st_mode & 0o077 == 0


LIMITS = {
    4: ("max_epsilon = 2.0", "max_epsilon"),
    5: ("min_noise_multiplier = 3.5", "min_noise_multiplier"),
    6: ('allowed_protections = ["ckks"]', "allowed_protections"),
    7: ("min_cohort = 5", "min_cohort"),
    8: ("max_rounds = 1", "max_rounds"),
}


def test_refusals_are_signed_and_strangers_do_not_get_in(example: Any, tmp_path: Path) -> None:
    """Nine clients, of whom five have a policy that forbids the job; a false certificate; a key not on the roster."""
    authority = example.make_folders(tmp_path, 9)
    example.deal_digits(tmp_path, 9)
    for k, (line, _) in LIMITS.items():
        (tmp_path / f"client-{k}" / "policy.toml").write_text(f"# our limits\n{line}\n")
    forger, stranger = tmp_path / "forger", tmp_path / "stranger"
    sys.modules["keys"].Authority().enrol(forger, "client-0", secrets.token_bytes(32))
    authority.enrol(stranger, "client-9", secrets.token_bytes(32))
    for folder in (forger, stranger):
        for name in ("data.npz", "roster.json", "ca.crt"):  # the CA that the server's certificate is under
            shutil.copy(tmp_path / "client-0" / name, folder / name)

    server, port = example.start_server(tmp_path, ["--rounds", "2", "--epsilon", "4", *PATIENT])
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert [a for a in listening if int(a.split(":")[1], 16) == int(port)] == [f"0100007F:{int(port):04X}"]
    assert f":{int(port):04X}" not in Path("/proc/net/tcp6").read_text()
    intruders = [example.start("client.py", str(folder), port) for folder in (forger, stranger)]
    for intruder in intruders:
        code, told = finish(intruder)
        assert code != 0
        assert "connection to the server lost" in told
    parties = [example.start("client.py", str(tmp_path / f"client-{k}"), port) for k in range(9)]
    code, told = finish(server)
    assert code == 0, told
    assert "no key of the roster: turned away" in told
    outputs = [finish(party) for party in parties]
    assert [code for code, _ in outputs] == [0] * 9

    roster = sf.Roster.load(tmp_path / "server" / "roster.json")
    for r in metrics(tmp_path):
        assert r["survivors"] == [0, 1, 2, 3]
        for k, (line, key) in LIMITS.items():
            assert f"policy.toml:2: {line} (policy.toml:2, {key})" in r["refused"][str(k)]
            assert line in outputs[k][1]
            evidence = unseal((tmp_path / "server" / f"refusal-{r['round']:04d}-{k}.bin").read_bytes())
            assert evidence.sender == k
            evidence.check_signature(roster)
    for k in LIMITS:
        assert not list((tmp_path / f"client-{k}").glob("sent-*"))  # nothing was trained
        with Ledger(tmp_path / f"client-{k}" / "state" / "ledger.sqlite") as ledger:
            assert ledger.events() == ()  # nor spent


def test_the_server_ends_though_a_client_never_answers(example: Any, tmp_path: Path) -> None:
    """Client 4 is connected and silent: only the deadline ends the step."""
    example.prepare(tmp_path, 5)
    server, port = example.start_server(tmp_path, ["--rounds", "1", "--deadline", "6"])
    parties = [
        example.start("client.py", str(tmp_path / f"client-{k}"), port, *(["--hold", "0"] if k == 4 else []))
        for k in range(5)
    ]
    code, told = finish(server)
    assert code == 0, told
    parties[4].kill()
    for party in parties:
        finish(party)
    assert 4 not in metrics(tmp_path)[0]["survivors"]


def test_terms_that_claim_less_than_they_spend_are_stopped_by_the_clients_own_ledger(
    example: Any, tmp_path: Path, home: Path
) -> None:
    """What a server signs as its epsilon is its word only; the client's ledger counts what is really released."""
    import learn  # type: ignore[import-not-found]  # the example's own folder is on the path

    (tmp_path / "client-0").mkdir()
    np.savez(tmp_path / "client-0" / "data.npz", images=np.ones((5, 65), np.float32), labels=np.arange(5))
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        learner = learn.Learner(tmp_path / "client-0", ledger, "run")
        model = np.zeros(learn.SIZE, np.float32)
        liar = sf.Terms("masking", 10, 4, noise_multiplier=1.0, epsilon=2.0, delta=1e-3)
        with pytest.raises(sf.BudgetExceeded, match="of 2 at delta"):
            learner.update(model, 0, liar)
        assert ledger.events(run="run") == ()
        silent = sf.Terms("masking", 10, 4, noise_multiplier=1.0)
        assert learner.update(model, 0, silent).shape == (learn.SIZE,)
        (home / "policy.toml").write_text("max_epsilon = 5.0\n")
        with pytest.raises(sf.BudgetExceeded, match="of 5 at delta"):
            learner.update(model, 1, silent)
