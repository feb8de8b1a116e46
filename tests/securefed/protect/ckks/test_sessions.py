"""One round of CKKS: what is summed, what is refused and in whose name, and what each party can be made to do."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from securefed.crypto.entropy import SystemEntropy
from securefed.errors import PrivacyError, ProtocolError
from securefed.protect.ckks import CKKS, KEY_HOLDER, CKKSClient, OpenCKKS
from securefed.protect.ckks.keys import Context, HolderParty, context_digest
from securefed.protect.ckks.messages import Step, read_ids, write, write_ids
from securefed.protect.ckks.residues import pack
from securefed.protect.ckks.scheme import Scheme
from securefed.types import SERVER, Message, Output
from tests.securefed.protect.ckks.playing import D, Played, opened, parameters, true_sum, updates

pytest.importorskip("tenseal", reason="the extra ckks is not installed")

TRUSTS = ("key_holder", "verified", "shared_key")


def resigned(played: Played, client: int, **parts: bytes | slice) -> Message:
    """The client's own submission with another body, signed by the client as a faulty one would."""
    message = submission(played, client)
    header, body = message.payload[:116], message.payload[116:-64]
    changed = body[parts["keep"]] if "keep" in parts else parts["body"]  # type: ignore[index]  # a slice
    payload = sign(played.protection, client, header, changed)  # type: ignore[arg-type]  # bytes
    return replace(message, payload=payload)


def sign(protection: OpenCKKS, client: int, header: bytes, body: bytes) -> bytes:
    signed = b"securefed ckks" + header + hashlib.sha256(body).digest()
    return header + body + protection.parties[client].identity.sign(signed)


def submission(played: Played, client: int) -> Message:
    return next(m for m in played.sent if m.sender == client and m.receiver == SERVER)


# ------------------------------------------------------------------------------------------------ sums


@pytest.mark.parametrize("trust", TRUSTS)
def test_the_sum_is_right_under_every_trust_model(trust: str) -> None:
    given = updates()
    played = Played(opened(trust=trust), parameters()).play(given)
    assert played.result.survivors == (0, 1, 2, 3)
    assert played.result.weight == 4
    np.testing.assert_allclose(played.result.total, true_sum(given, range(4)), atol=1e-6)


@pytest.mark.parametrize("d", [1, 4095, 4096, 4097, 9000])
def test_every_size_around_a_ciphertexts_fits(d: int) -> None:
    given = updates(2, d=d)
    played = Played(opened(2), parameters(2, d=d)).play(given)
    np.testing.assert_allclose(played.result.total, true_sum(given, range(2)), atol=1e-6)


def test_secret_weights_travel_as_one_more_coordinate_and_public_ones_do_not() -> None:
    given = {k: replace(u, weight=float(k + 1)) for k, u in updates().items()}
    secret = Played(opened(max_weight=8.0), parameters(weights=None)).play(given)
    assert secret.result.weight == pytest.approx(10, abs=1e-5)
    np.testing.assert_allclose(secret.result.total, true_sum(given, range(4)), atol=1e-5)
    public = Played(opened(), parameters(weights=(1.0, 2.0, 3.0, 4.0))).play(given)
    assert public.result.weight == 10
    np.testing.assert_allclose(public.result.total, true_sum(given, range(4)), atol=1e-5)


def test_a_drop_only_lowers_the_sum_and_is_reported() -> None:
    given = updates()
    played = Played(opened(), parameters()).play({k: given[k] for k in (0, 2, 3)})
    assert played.result.survivors == (0, 2, 3)
    assert played.result.dropped == {1: "submit"}
    np.testing.assert_allclose(played.result.total, true_sum(given, (0, 2, 3)), atol=1e-6)


def test_keys_are_made_once_a_run_and_fetched_once() -> None:
    protection = opened()
    first = Played(protection, parameters()).play(updates())
    second = Played(protection, parameters(round=1)).play(updates(round=1))
    assert sum(m.sender == KEY_HOLDER for m in first.sent) == 6
    assert [m.receiver for m in second.sent if m.sender == KEY_HOLDER] == [SERVER]
    assert second.result.survivors == (0, 1, 2, 3)


def test_the_clients_of_one_process_hold_one_public_key_together() -> None:
    protection = opened()
    Played(protection, parameters()).play(updates())
    schemes = {id(protection.parties[k].contexts["compact"].scheme) for k in range(4)}
    assert len(schemes) == 1
    assert protection.holder.keys["compact"][0] is not protection.parties[0].contexts["compact"].scheme


def test_the_servers_memory_does_not_grow_with_the_cohort() -> None:
    def peak(n: int) -> int:
        d = 100_000
        played = Played(opened(n), parameters(n, d=d))
        sent: list[Message] = []
        played.change = lambda m: (sent.append(m), ())[1] if m.receiver == SERVER and m.sender >= 0 else (m,)
        played.play(updates(n, d=d))
        server = played.protection.server(replace(played.base))
        server.start()
        tracemalloc.start()
        for message in sent:
            server.receive(message.sender, message.payload)
        _, top = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(sent) == n
        return top

    assert peak(8) < 1.2 * peak(3)


# --------------------------------------------------------------------------------- clients that send nonsense


@pytest.mark.parametrize(
    ("bad", "words"),
    [(np.nan, "non-finite"), (-np.inf, "non-finite"), (1.5, "value_range=1")],
)
def test_what_cannot_be_encrypted_is_signed_off_by_its_client(bad: float, words: str) -> None:
    given = updates()
    given[2].vector[3] = bad
    played = Played(opened(), parameters()).play(given)
    assert played.result.survivors == (0, 1, 3)
    assert "client 2, submit" in played.result.refused[2]
    assert words in played.result.refused[2]
    np.testing.assert_allclose(played.result.total, true_sum(given, (0, 1, 3)), atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, -1.0, 9.0, float("nan")])
def test_a_weight_beyond_its_bound_is_signed_off(weight: float) -> None:
    given = updates()
    given[1] = replace(given[1], weight=weight)
    played = Played(opened(max_weight=8.0), parameters(weights=None)).play(given)
    assert "max_weight=8" in played.result.refused[1]
    assert played.result.survivors == (0, 2, 3)


def test_another_weight_than_the_public_one_is_signed_off() -> None:
    given = updates()
    given[1] = replace(given[1], weight=0.5)
    played = Played(opened(), parameters()).play(given)
    assert "not the public 1" in played.result.refused[1]


def playing_with(protection: OpenCKKS, client: int, make: object) -> Played:
    """A round in which one client's submission is replaced by what `make` makes of the round."""
    played = Played(protection, parameters())

    def change(message: Message) -> Iterable[Message]:
        return (make(played),) if message.sender == client and message.receiver == SERVER else (message,)  # type: ignore[operator]  # a function

    played.change = change
    return played.play(updates())


@pytest.mark.parametrize("trust", ["key_holder", "verified"])
def test_a_truncated_ciphertext_is_refused_in_its_clients_name(trust: str) -> None:
    played = playing_with(opened(trust=trust), 1, lambda p: resigned(p, 1, keep=slice(0, -100)))
    assert played.result.survivors == (0, 2, 3)
    assert "client 1, submit" in played.result.refused[1]
    assert "truncated" in played.result.refused[1]


def test_a_ciphertext_of_another_parameter_set_is_refused() -> None:
    """A client that encrypts with `precise` where `compact` was agreed: eight times the bytes for D = 10."""
    other = opened(parameters="precise")
    theirs = Played(other, parameters()).play(updates())
    body = submission(theirs, 1).payload[116:-64]

    def make(played: Played) -> Message:
        mine = submission(played, 1).payload[116:-64]
        return resigned(played, 1, body=mine[:32] + body[32:])

    played = playing_with(opened(parameters="compact"), 1, make)
    assert "another set" in played.result.refused[1]
    whole = playing_with(opened(parameters="compact"), 1, lambda p: submission(theirs, 1))
    assert "another set of round parameters" in whole.result.refused[1]


def test_a_residue_that_is_none_is_refused() -> None:
    played = playing_with(
        opened(), 1, lambda p: resigned(p, 1, body=submission(p, 1).payload[116:148] + b"\xff" * 50176)
    )
    assert "not below its prime" in played.result.refused[1]


def test_a_ciphertext_under_another_context_is_refused() -> None:
    """The client holds a key of another run: what it sends could not be decrypted."""
    protection = opened()
    stray = Scheme(CKKS().round(parameters()).plan.set)
    key = pack(stray.generate(), stray.parameters.key_primes)
    digest = context_digest("other run", stray.parameters, "key_holder", key)
    protection.parties[3].contexts["compact"] = Context(digest, stray)
    played = Played(protection, parameters()).play(updates())
    assert "client 3, submit: encrypted under another context" in played.result.refused[3]
    assert played.result.survivors == (0, 1, 2)


def test_a_replay_of_the_last_round_is_refused() -> None:
    protection = opened()
    last = Played(protection, parameters()).play(updates())
    now = Played(protection, parameters(round=1))
    now.change = lambda m: (submission(last, 0),) if (m.sender, m.receiver) == (0, SERVER) else (m,)
    now.play(updates(round=1))
    assert "of another round; a replay" in now.result.refused[0]
    assert now.result.survivors == (1, 2, 3)


def test_a_ciphertext_of_another_model_or_run_is_refused() -> None:
    protection = opened()
    for other, words in (
        ({"model_digest": "11" * 32}, "global model"),
        ({"run": "yesterday"}, "run"),
    ):
        stray = Played(protection, parameters(**other)).play(updates())
        fresh = replace(protection, holder=replace(protection.holder, opened=set()))
        now = Played(fresh, parameters())
        now.change = lambda m, stray=stray: (
            (submission(stray, 0),) if (m.sender, m.receiver) == (0, SERVER) else (m,)
        )  # type: ignore[misc]  # bound now
        now.play(updates())
        assert f"of another {words}" in now.result.refused[0]


def test_a_client_that_encrypts_twice_counts_once() -> None:
    played = Played(opened(), parameters())
    played.change = lambda m: (m, m) if m.receiver == SERVER else (m,)
    given = updates()
    played.play(given)
    np.testing.assert_allclose(played.result.total, true_sum(given, range(4)), atol=1e-6)


# --------------------------------------------------------------------------------------- a lying server


def test_a_server_cannot_hand_out_a_key_of_its_own() -> None:
    """It could decrypt everything if a client took it."""
    protection = opened()
    played = Played(protection, parameters()).play({})
    own = Scheme(played.server._round.plan.set)
    key = pack(own.generate(), own.parameters.key_primes)
    digest = context_digest("run", own.parameters, "key_holder", key)
    body = digest + len(key).to_bytes(4, "little") + bytes(4) + key
    server = protection.parties[SERVER].identity
    forged = write(Step.CONTEXT, KEY_HOLDER, 0, played.server._round, server, [body])
    client = protection.client(parameters(), 0, SystemEntropy())
    client.start()
    with pytest.raises(
        ProtocolError, match="client 0, message of the key holder: step context: the signature"
    ):
        client.receive(forged)
    assert "compact" not in protection.parties[0].contexts


def test_a_context_made_for_another_client_is_refused() -> None:
    protection = opened()
    played = Played(protection, parameters()).play(updates())
    theirs = next(m for m in played.sent if m.sender == KEY_HOLDER and m.receiver == 1)
    client = protection.client(parameters(), 0, SystemEntropy())
    with pytest.raises(ProtocolError, match="of another party"):
        client.receive(theirs.payload)


def test_a_second_context_in_a_run_is_refused() -> None:
    protection = opened()
    Played(protection, parameters()).play(updates())
    amnesic = replace(protection, holder=replace(protection.holder, keys={}, opened=set()))
    holder = amnesic.helpers(parameters(round=1), SystemEntropy())[KEY_HOLDER]
    client = protection.client(parameters(round=1), 0, SystemEntropy())
    context = holder.receive(0, request(protection, 0)).send[0]
    with pytest.raises(ProtocolError, match="another context than this run's"):
        client.receive(context.payload)


def request(protection: OpenCKKS, client: int) -> bytes:
    round = protection._round(parameters(round=1))
    return write(Step.REQUEST, client, KEY_HOLDER, round, protection.parties[client].identity, [bytes(64)])


def asked(played: Played, survivors: tuple[int, ...], words: bytes) -> Output:
    """The holder's answer to a server that asks for this."""
    server = played.protection.parties[SERVER]
    parts = [server.contexts["compact"].digest, write_ids(survivors), words]
    return played.holder.receive(
        SERVER, write(Step.OPEN, SERVER, KEY_HOLDER, played.server._round, server.identity, parts)
    )


def denial(output: Output) -> str:
    (message,) = output.send
    assert message.payload[5] == Step.DENY
    return message.payload[116:-64].decode()


def collected_only(trust: str = "key_holder") -> Played:
    """A round whose server has its submissions and has opened nothing."""
    played = Played(opened(trust=trust), parameters())
    played.change = lambda m: () if m.payload[5] == Step.OPEN else (m,)
    return played.play(updates())


def test_the_holder_opens_one_sum_a_round() -> None:
    played = Played(opened(), parameters()).play(updates())
    words = submission(played, 0).payload[148:-64]
    assert "one a round" in denial(asked(played, (0, 1), words))


def test_the_holder_opens_no_sum_below_its_floor() -> None:
    played = collected_only()
    words = submission(played, 0).payload[148:-64]
    assert "min_survivors=2" in denial(asked(played, (0,), words))


def test_under_key_holder_a_lying_server_can_open_one_clients_update() -> None:
    """The assumption of this trust model, shown by breaking it: the holder cannot tell a sum from one ciphertext."""
    played = collected_only()
    words = submission(played, 2).payload[148:-64]
    (message,) = asked(played, (0, 1, 2, 3), words).send
    assert message.payload[5] == Step.SUM
    _, rest = read_ids(memoryview(message.payload[116:-64]), range(4))
    np.testing.assert_allclose(np.frombuffer(rest, "<f8"), updates()[2].vector, atol=1e-5)


def test_under_key_holder_a_lying_server_can_even_ask_for_the_key() -> None:
    """(0, 2^k) decrypts to 2^k s: a holder that opens what it is given is an oracle, guard noise or not."""
    played = collected_only()
    plan = played.server._round.plan
    words = np.zeros((1, 2, 1, 4096), np.uint64)
    words[0, 1] = 2**plan.log2_scale  # a constant polynomial has the same residue everywhere
    (message,) = asked(played, (0, 1, 2, 3), pack(words, plan.set.primes)).send
    _, rest = read_ids(memoryview(message.payload[116:-64]), range(4))
    answered = np.frombuffer(rest, "<f8")
    holder = played.protection.holder.keys["compact"][0]
    secret = holder.decrypt(words, plan.log2_scale)[:D]  # the key in slots, without noise
    assert np.abs(secret).max() > 5  # far above what updates in [-1, 1] give
    np.testing.assert_allclose(answered, secret, atol=1e-5)


def test_under_verified_it_cannot() -> None:
    played = collected_only("verified")
    words = submission(played, 2).payload[148:-64]
    assert "signed ciphertexts came of [0, 1, 2, 3]" in denial(asked(played, (0, 1, 2, 3), words))
    assert "signed ciphertexts came of [0, 1, 2, 3]" in denial(asked(played, (2, 3), b""))


def test_under_verified_a_substituted_ciphertext_never_enters() -> None:
    """The server passes a forgery on in client 1's name, with client 1's real one held back."""
    played = Played(opened(trust="verified"), parameters())

    def change(message: Message) -> Iterable[Message]:
        forged = (
            message.sender == SERVER and int.from_bytes(message.payload[8:12], "little", signed=True) == 1
        )
        if not forged or message.payload[5] != Step.SUBMIT:
            return (message,)
        body = bytearray(message.payload)
        body[300] ^= 1
        return (replace(message, payload=bytes(body)),)

    played.change = change
    assert "signed ciphertexts came of [0, 2, 3]" in played.play(updates()).abort


def test_under_verified_ciphertexts_may_come_after_the_question() -> None:
    """A network may deliver them in any order; the sum is that of all of them."""
    played = Played(opened(trust="verified"), parameters())
    kept: list[Message] = []

    def change(message: Message) -> Iterable[Message]:
        late = message.sender == SERVER and message.payload[5] == Step.SUBMIT
        if late and len(kept) < 2:
            kept.append(message)
            return ()
        return (message, *kept) if message.payload[5] == Step.OPEN else (message,)

    played.change = change
    given = updates()
    np.testing.assert_allclose(played.play(given).result.total, true_sum(given, range(4)), atol=1e-6)


def test_an_opening_that_the_server_did_not_sign_is_ignored() -> None:
    played = collected_only()
    words = submission(played, 0).payload[148:-64]
    client = played.protection.parties[1].identity
    digest = played.protection.parties[SERVER].contexts["compact"].digest
    parts = [digest, write_ids((0, 1)), words]
    forged = write(Step.OPEN, SERVER, KEY_HOLDER, played.server._round, client, parts)
    assert played.holder.receive(SERVER, forged) == Output()
    signed = write(Step.OPEN, 1, KEY_HOLDER, played.server._round, client, parts)
    assert played.holder.receive(1, signed) == Output()


# ------------------------------------------------------------------------------------------ the key holder


def test_a_holder_that_lost_its_secret_key_says_so() -> None:
    protection = opened()
    Played(protection, parameters()).play(updates())
    scheme, key = protection.holder.keys["compact"]
    crippled = Scheme(scheme.parameters)
    crippled.take_public(np.array(scheme_public(key, scheme)))
    protection.holder.keys["compact"] = crippled, key
    abort = Played(protection, parameters(round=1)).play(updates(round=1)).abort
    assert "the key holder, open: the secret key is missing" in abort


def scheme_public(key: bytes, scheme: Scheme) -> np.ndarray:
    from securefed.protect.ckks.residues import unpack

    return unpack(key, 1, 2, scheme.parameters.degree, scheme.parameters.key_primes)


def test_a_holder_that_started_again_with_new_keys_is_noticed() -> None:
    protection = opened()
    Played(protection, parameters()).play(updates())
    protection.holder.keys.clear()
    abort = Played(protection, parameters(round=1)).play(updates(round=1)).abort
    assert "another context than this holder's" in abort


@pytest.mark.parametrize("step", [Step.CONTEXT, Step.SUM])
def test_a_holder_that_falls_silent_ends_the_round_with_its_name(step: Step) -> None:
    played = Played(opened(), parameters())
    played.change = lambda m: () if m.sender == KEY_HOLDER and m.payload[5] == step else (m,)
    assert "the key holder did not answer" in played.play(updates()).abort


def test_an_opened_sum_of_other_clients_is_refused() -> None:
    protection = opened()
    played = Played(protection, parameters())

    def change(message: Message) -> Iterable[Message]:
        if message.payload[5] != Step.SUM:
            return (message,)
        parts = [write_ids((0, 1, 2)), bytes(8 * D)]
        round = played.server._round
        return (
            replace(
                message, payload=write(Step.SUM, KEY_HOLDER, SERVER, round, protection.holder.identity, parts)
            ),
        )

    played.change = change
    assert "of other clients" in played.play(updates()).abort


# ------------------------------------------------------------------------------------------------ secrets


def test_a_client_with_a_public_context_cannot_decrypt() -> None:
    played = Played(opened(), parameters()).play(updates())
    scheme = played.protection.parties[0].contexts["compact"].scheme
    assert scheme is not None
    with pytest.raises(ProtocolError, match="secret key is missing"):
        scheme.decrypt(scheme.encrypt(np.zeros(3), 40), 40)
    with pytest.raises(PrivacyError):
        scheme.secret_words()


def test_with_a_shared_key_every_client_can_read_every_other() -> None:
    """What the trust model's name says, shown."""
    played = Played(opened(trust="shared_key"), parameters()).play(updates())
    scheme = played.protection.parties[0].contexts["compact"].scheme
    assert scheme is not None
    body = memoryview(submission(played, 3).payload[116:-64])
    from securefed.protect.ckks.submission import Sum

    context = played.protection.parties[0].contexts["compact"].digest
    one = Sum(played.server._round, context, None)
    one.take(3, body, add=True)
    assert one.words is not None
    opened_update = scheme.decrypt(one.words, played.server._round.plan.log2_scale)[:D]
    np.testing.assert_allclose(opened_update, updates()[3].vector, atol=1e-6)


def test_no_message_and_no_party_but_the_clients_holds_a_shared_key() -> None:
    played = Played(opened(trust="shared_key"), parameters()).play(updates())
    scheme, key = played.protection.holder.keys["compact"]
    seen = b"".join(m.payload for m in played.sent)
    assert key not in seen
    assert key[:64] not in seen
    assert scheme.secret_words().tobytes() not in seen
    assert played.protection.parties[SERVER].contexts["compact"].scheme is None


def test_a_key_sealed_to_one_client_opens_for_no_other() -> None:
    protection = opened(trust="shared_key")
    played = Played(protection, parameters()).play(updates())
    theirs = next(m for m in played.sent if m.sender == KEY_HOLDER and m.receiver == 1)
    body = memoryview(theirs.payload[116:-64])
    from securefed.crypto.keys import KeyPair
    from securefed.protect.ckks.context import read_context

    with pytest.raises(ProtocolError):
        read_context(body, played.server._round, None, KeyPair.generate(SystemEntropy()), {})


def test_keys_show_in_no_repr_and_are_never_pickled() -> None:
    protection = opened()
    played = Played(protection, parameters()).play(updates())
    scheme, key = protection.holder.keys["compact"]
    text = repr(
        (protection, protection.holder, protection.parties, played.holder, played.server, played.clients)
    )
    assert len(text) < 3000
    assert key.hex()[:16] not in text
    for secret in (protection.holder, scheme, protection.parties[0]):
        with pytest.raises(PrivacyError):
            pickle.dumps(secret)


def test_nothing_is_printed_by_a_round_not_even_by_the_library(capfd: pytest.CaptureFixture[str]) -> None:
    Played(opened(), parameters(d=9000)).play(updates(d=9000))
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------- selective encryption


def test_selective_encryption_hides_what_moved_most_and_shows_the_rest() -> None:
    protection = opened(encrypted_share=0.3)
    d = 40
    given = {k: replace(u, vector=u.vector / 10) for k, u in updates(d=d).items()}
    for u in given.values():
        u.vector[5:17] += 0.5  # twelve coordinates move, 30 % of 40
    first = Played(protection, parameters(d=d)).play(given)
    whole = [len(submission(first, k).payload) for k in range(4)]
    np.testing.assert_allclose(first.result.total, true_sum(given, range(4)), atol=1e-6)
    later = {k: replace(u, round=1) for k, u in given.items()}
    second = Played(protection, parameters(d=d, round=1)).play(later)
    np.testing.assert_allclose(second.result.total, true_sum(given, range(4)), atol=1e-6)
    assert second.protection.holder.sensitive[parameters(d=d).layout_digest].tolist() == list(range(5, 17))
    clear = submission(second, 0).payload[148 : 148 + 4 * 28]
    seen = np.delete(given[0].vector, range(5, 17))
    np.testing.assert_allclose(np.frombuffer(clear, "<f4"), seen, rtol=1e-6)
    assert [len(submission(second, k).payload) for k in range(4)] == [b + 4 * 28 for b in whole]


def test_selective_encryption_is_not_called_a_sum() -> None:
    assert CKKS(encrypted_share=0.3).reveals == "updates"
    assert CKKS().reveals == "sum"


def test_a_map_that_encrypts_less_than_agreed_is_refused() -> None:
    """A holder that was talked into hiding three coordinates of forty."""
    protection = opened(encrypted_share=0.3)
    protection.holder.sensitive[parameters(d=40).layout_digest] = np.arange(3)
    abort = Played(protection, parameters(d=40))
    abort.change = lambda m: (m,)
    assert "encrypted_share=0.3 asks for 12" in abort.play({}).abort


# ------------------------------------------------------------------------------------------------ the library


def test_where_tenseal_is_missing_the_error_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['tenseal'] = None\n"
        "from securefed.protect.ckks import CKKS\n"
        "from securefed.crypto.entropy import SystemEntropy\n"
        "try: CKKS().open('run', range(3), SystemEntropy())\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = {"PYTHONPATH": ":".join(p for p in sys.path if p), "PATH": ""}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert ran.stdout.startswith("ConfigError ckks: tenseal does not import")
    assert "securefed[ckks]" in ran.stdout


def test_a_session_of_an_unopened_component_says_what_to_do() -> None:
    with pytest.raises(ProtocolError, match=r"call open\(run, clients, entropy\)"):
        CKKS().server(parameters())
    with pytest.raises(ProtocolError, match=r"call open\(run, clients, entropy\)"):
        CKKS().client(parameters(), 0, SystemEntropy())


def test_a_cohort_below_the_floor_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ProtocolError, match="min_survivors=2"):
        opened(1).server(parameters(1))


def test_a_late_message_is_an_error_of_its_carrier() -> None:
    played = Played(opened(), parameters()).play(updates())
    with pytest.raises(ProtocolError, match="has ended"):
        played.server.receive(0, b"")
    with pytest.raises(ProtocolError, match="already ended"):
        played.server.advance()


def test_a_client_submits_its_own_update_once() -> None:
    client = opened().client(parameters(), 0, SystemEntropy())
    assert isinstance(client, CKKSClient)
    with pytest.raises(ProtocolError, match="was given an update of client 1"):
        client.submit(updates()[1])
    client.submit(updates()[0])
    with pytest.raises(ProtocolError, match="already submitted"):
        client.submit(updates()[0])


def test_the_holder_is_a_party_with_keys_and_a_client_is_not() -> None:
    protection = opened()
    assert isinstance(protection.holder, HolderParty)
    assert not any(isinstance(p, HolderParty) for p in protection.parties.values())
