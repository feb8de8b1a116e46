"""What counts as the same record, and hashes that stay."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from securefed.data.text import content_key, hash_order, normalise, unit_hash


def test_case_punctuation_and_spacing_do_not_make_another_record() -> None:
    assert normalise("  Not BAD,\tat-all!!\n") == "not bad at all"
    assert content_key("Not bad.") == content_key("not BAD") != content_key("bad")


def test_a_text_without_a_word_is_empty_but_keeps_a_key_of_its_own() -> None:
    assert normalise(":-) !!") == ""
    assert content_key(":-)") != content_key(":-(")


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(), st.text())
def test_unit_hash_is_the_first_48_bits_of_sha_256(salt: str, key: str) -> None:
    digest = hashlib.sha256(f"{salt}|{key}".encode("utf-8", "surrogatepass")).hexdigest()
    assert unit_hash(salt, key) == int(digest[:12], 16) / 2**48
    assert 0 <= unit_hash(salt, key) < 1


@given(st.sets(st.text(max_size=5)), st.text(max_size=5))
def test_a_new_key_moves_no_other_key_in_the_hash_order(keys: set[str], new: str) -> None:
    assert [k for k in hash_order("s", keys | {new}) if k in keys - {new}] == hash_order("s", keys - {new})
