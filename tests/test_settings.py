"""Settings: what is possible is stored plainly, what is not is refused by name with the nearest that is."""

import dataclasses
import pathlib
import re

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from shmbus import limits
from shmbus.errors import Refused
from shmbus.settings import (
    CODEC_NAMES,
    Backing,
    ChannelSettings,
    Visibility,
    check_bus_name,
    check_channel_name,
    check_group_name,
    format_bytes,
    parse_capacity,
)

#: A busy machine is no failure.
by_examples = profile(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
PAGE = limits.PAGE_BYTES
NAME_CHECKS = [
    (check_channel_name, limits.CHANNEL_NAME_BYTES),
    (check_group_name, limits.GROUP_NAME_BYTES),
    (check_bus_name, limits.BUS_NAME_BYTES),
]


def refusal(call, *args, **kwargs):
    with pytest.raises(Refused) as caught:
        call(*args, **kwargs)
    return caught.value


# Capacities


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64 MiB", 64 << 20),
        ("64MiB", 64 << 20),
        ("  1 GiB ", 1 << 30),
        (f"{PAGE // 1024} KiB", PAGE),
        ("1 TiB", 1 << 40),
        ("65536", 65536),
        ("65536 B", 65536),
        (65536, 65536),
        (limits.MIN_CAPACITY_BYTES, limits.MIN_CAPACITY_BYTES),
        (limits.MAX_CAPACITY_BYTES, limits.MAX_CAPACITY_BYTES),
    ],
)
def test_a_capacity_is_read_from_a_number_or_from_words(text, size):
    assert parse_capacity(text) == size


@pytest.mark.parametrize("value", [100_000, "100000", 100_000 << 10])
def test_a_capacity_that_is_no_power_of_two_is_refused_with_its_neighbours(value):
    size = int(value)
    error = refusal(parse_capacity, value)
    named = [int(number) for number in re.findall(r"(\d+) \(", str(error))]
    assert error.setting == "capacity"
    assert named == [1 << size.bit_length() - 1, 1 << size.bit_length()]


@pytest.mark.parametrize("value", [0, -1, 1, PAGE // 2, "1 B"])
def test_a_capacity_below_a_page_is_refused_with_the_page(value):
    assert f"the nearest: {PAGE} (" in str(refusal(parse_capacity, value))


@pytest.mark.parametrize("value", [limits.MAX_CAPACITY_BYTES + 1, 1 << 41, "99999999999999999999 TiB"])
def test_a_capacity_above_the_limit_is_refused_with_the_limit(value):
    assert f"{limits.MAX_CAPACITY_BYTES} (1 TiB)" in str(refusal(parse_capacity, value))


@pytest.mark.parametrize(
    "value", ["", "64 MB", "64M", "1.5 GiB", "-1 KiB", "many", "0x10", "٤ KiB", "1 2 KiB", "9" * 99]
)
def test_words_that_are_no_size_are_refused_with_an_example(value):
    error = refusal(parse_capacity, value)
    assert '"64 MiB"' in str(error)
    assert len(str(error)) < 300


@pytest.mark.parametrize("value", [True, None, 65536.0, b"64 MiB", [1]])
def test_a_capacity_of_another_type_is_refused(value):
    assert "is not a size" in str(refusal(parse_capacity, value))


@by_examples
@given(st.integers(min_value=-(1 << 70), max_value=1 << 70))
@example(2 * PAGE)
def test_any_number_is_a_possible_capacity_or_names_one(size):
    try:
        good = parse_capacity(size)
    except Refused as error:
        for named in re.findall(r"(\d+) \(", str(error).split("the nearest:")[1]):
            assert parse_capacity(int(named)) == int(named)
    else:
        assert good == size
        assert size.bit_count() == 1
        assert size % PAGE == 0


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (1000, "1000 B"), (1024, "1 KiB"), (1 << 26, "64 MiB"), (3 << 30, "3 GiB")],
)
def test_sizes_are_shown_in_the_largest_whole_unit(size, words):
    assert format_bytes(size) == words


# Names


@pytest.mark.parametrize(("check", "limit"), NAME_CHECKS)
@pytest.mark.parametrize("name", ["a", "camera-1", "two words", "a..b", "größe", "任务", "x" * 48])
def test_a_printable_name_is_taken_as_it_is(check, limit, name):
    assert check(name) == name


@pytest.mark.parametrize(("check", "limit"), NAME_CHECKS)
@pytest.mark.parametrize(
    "name",
    ["", "a/b", "/", ".", "..", ".hidden", "a\0b", "a\nb", "\x1b[31m", "\ud800", "\u202eevil", None, 3, b"a"],
)
def test_a_name_that_would_hurt_somewhere_is_refused(check, limit, name):
    error = refusal(check, name)
    assert str(error).isprintable()


@pytest.mark.parametrize(("check", "limit"), NAME_CHECKS)
def test_the_length_of_a_name_is_counted_in_bytes_of_utf8(check, limit):
    assert check("x" * limit)
    assert check("ö" * (limit // 2))
    assert f"at most {limit} bytes" in str(refusal(check, "x" * (limit + 1)))
    assert f"has {limit + 2}" in str(refusal(check, "ö" * (limit // 2 + 1)))


# Settings


def some_settings():
    return st.builds(
        ChannelSettings,
        capacity_bytes=st.integers(12, 40).map(lambda power: max(1 << power, PAGE)),
        groups=st.lists(st.sampled_from("abcdefgh"), unique=True).map(tuple),
        hold=st.booleans(),
        end=st.sampled_from(["producers", "closed"]),
        producers=st.sampled_from(["many", "one"]),
        on_consumer_death=st.sampled_from(["redeliver", "drop"]),
        backing=st.sampled_from([Backing.MEMFD, Backing.SHM, Backing.ANONYMOUS]),
        visibility=st.sampled_from(Visibility),
        codec=st.sampled_from(CODEC_NAMES),
    )


def test_the_defaults_are_those_of_the_documentation():
    settings = ChannelSettings()
    assert settings.capacity_bytes == 64 << 20
    assert settings.backing is Backing.MEMFD
    assert settings.visibility is Visibility.SHARED
    assert (settings.groups, settings.hold, settings.end) == ((), True, "producers")
    assert (settings.producers, settings.on_consumer_death) == ("many", "redeliver")
    assert (settings.codec, settings.directory) == ("msgpack", None)


@by_examples
@given(some_settings())
def test_settings_come_back_from_the_wire_equal(settings):
    wire = settings.to_wire()
    assert all(type(value) in (int, bool, str, list, type(None)) for value in wire.values())
    assert ChannelSettings.from_wire(wire) == settings


@by_examples
@given(some_settings(), some_settings())
def test_differences_name_exactly_the_fields_that_differ(one, other):
    names = one.differences(other)
    assert (names == []) == (one == other)
    assert dataclasses.replace(one, **{name: getattr(other, name) for name in names}) == other
    assert (one.describe_differences(other) == "") == (one == other)


def test_differences_are_described_in_the_words_of_the_caller():
    one = ChannelSettings(groups=("a",), backing=Backing.SHM)
    other = ChannelSettings(capacity_bytes=PAGE)
    assert one.describe_differences(other) == (
        f"capacity is 64 MiB, not {format_bytes(PAGE)}; "
        "groups is ['a'], not []; backing is 'shm', not 'memfd'"
    )


def test_words_are_stored_as_what_they_mean():
    settings = ChannelSettings(capacity_bytes="1 MiB", groups=["a", "b"], backing="shm", visibility="private")
    assert settings.capacity_bytes == 1 << 20
    assert settings.groups == ("a", "b")
    assert settings.backing is Backing.SHM
    assert settings.visibility is Visibility.PRIVATE


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("groups", "abc"),
        ("groups", None),
        ("groups", ["a", "a"]),
        ("groups", [1]),
        ("groups", ["a/b"]),
        ("groups", [str(number) for number in range(limits.MAX_GROUPS + 1)]),
        ("hold", 1),
        ("hold", None),
        ("end", "never"),
        ("end", True),
        ("producers", "two"),
        ("producers", 1),
        ("on_consumer_death", "weep"),
        ("backing", "disk"),
        ("backing", ["memfd"]),
        ("visibility", "public"),
        ("visibility", None),
        ("codec", "json"),
        ("codec", None),
        ("directory", "/tmp"),
    ],
)
def test_an_impossible_value_is_refused_by_its_keyword(setting, value):
    error = refusal(ChannelSettings, **{setting: value})
    assert error.setting == setting
    assert setting in str(error)


def test_an_impossible_choice_names_the_possible_ones():
    error = refusal(ChannelSettings, codec="json")
    assert (
        str(error) == "codec='json' is not possible; the choices: 'msgpack' or 'raw' or 'pickle' or 'msgspec'"
    )


def test_files_need_a_folder_and_it_is_stored_whole(tmp_path, monkeypatch):
    assert 'directory="/path' in str(refusal(ChannelSettings, backing="file"))
    monkeypatch.chdir(tmp_path)
    for directory in ("here", pathlib.Path("here")):
        settings = ChannelSettings(backing="file", directory=directory)
        assert settings.directory == str(tmp_path / "here")
        assert ChannelSettings.from_wire(settings.to_wire()) == settings


@pytest.mark.parametrize(
    "directory", ["", b"/tmp", 3, "a\0b", "/\ud800", "/" + "x" * limits.DIRECTORY_PATH_BYTES]
)
def test_what_is_no_folder_is_refused(directory):
    assert refusal(ChannelSettings, backing="file", directory=directory).setting == "directory"


@pytest.mark.parametrize(
    "wire",
    [
        None,
        [],
        "settings",
        {"capacity_bytes": "64 MiB"},
        {"capacity_bytes": None},
        {"capacity_bytes": True},
        {"colour": "red"},
        {1: 2},
        {(): 2},
        {"backing": "file", "directory": "relative"},
        {"groups": {"a": 1}},
        {"visibility": {}},
        {"directory": "/tmp"},
    ],
)
def test_settings_from_the_wire_are_checked_like_any_other(wire):
    refusal(ChannelSettings.from_wire, wire)


def test_what_the_wire_leaves_out_has_its_default():
    assert ChannelSettings.from_wire({"hold": False}) == ChannelSettings(hold=False)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@by_examples
@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(ChannelSettings)]), anything))
def test_nothing_from_the_wire_raises_anything_but_refused(wire):
    try:
        settings = ChannelSettings.from_wire(wire)
    except Refused:
        return
    assert ChannelSettings.from_wire(settings.to_wire()) == settings


def test_settings_are_frozen_and_hashable():
    settings = ChannelSettings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.hold = False
    assert len({settings, ChannelSettings()}) == 1
