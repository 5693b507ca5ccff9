"""A region against a bytearray: any sequence of writes, protections and calls on the memory."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmbus.limits import PAGE_BYTES as PAGE
from shmbus.region import Advice, Prot, Region, Visibility

LENGTHS = st.sampled_from([1, 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE])
PLACES = st.integers(0, 1 << 16)
READABLE = st.sampled_from([Prot.READ, Prot.READ | Prot.WRITE, Prot.READ | Prot.WRITE | Prot.EXEC])


@dataclass(frozen=True)
class Write:
    place: int
    data: bytes


@dataclass(frozen=True)
class Protect:
    prot: Prot


@dataclass(frozen=True)
class Call:
    name: str
    place: int
    length: int


STEPS = st.lists(
    st.one_of(
        st.builds(Write, PLACES, st.binary(min_size=1, max_size=40)),
        st.builds(Protect, READABLE),
        st.builds(Call, st.sampled_from(["flush", "populate", "advise", "resident"]), PLACES, PLACES),
    ),
    max_size=25,
)


def apply(region: Region, model: bytearray, step: Write | Protect | Call) -> None:
    """One step on the region and on the model, whose length is the region's own."""
    length = len(model)
    if isinstance(step, Write):
        start = step.place % len(region)
        data = step.data[: len(region) - start]
        if Prot.WRITE not in region.prot:
            with pytest.raises(TypeError, match="read-only"):
                region[start : start + len(data)] = data
            return
        region[start : start + len(data)] = data
        for index, byte in enumerate(data, start):
            model[index % length] = byte
    elif isinstance(step, Protect):
        region.protect(step.prot)
    else:
        offset = step.place % (length + 1)
        count = step.length % (length - offset + 1)
        if step.name == "advise":
            region.advise(Advice.WILLNEED, offset, count)
        else:
            getattr(region, step.name)(offset, count)


@settings(database=None, deadline=None, max_examples=120)
@given(length=LENGTHS, steps=STEPS)
def test_a_shared_region_is_a_bytearray_that_another_mapping_sees(length: int, steps: list[object]) -> None:
    model = bytearray(length)
    with Region.memfd("model", length) as region, Region.map(region) as other:
        for step in steps:
            apply(region, model, step)  # type: ignore[arg-type]
            assert region[:] == model
            assert other[:] == model


@settings(database=None, deadline=None, max_examples=60)
@given(length=st.sampled_from([PAGE, 3 * PAGE]), steps=STEPS, anonymous=st.booleans())
def test_a_mirrored_region_is_a_bytearray_twice(length: int, steps: list[object], anonymous: bool) -> None:
    model = bytearray(length)
    made = Region.anonymous(length, mirrored=True) if anonymous else Region.memfd("m", length, mirrored=True)
    with made as region:
        for step in steps:
            apply(region, model, step)  # type: ignore[arg-type]
        assert region[:] == model + model


@settings(database=None, deadline=None, max_examples=60)
@given(length=LENGTHS, steps=STEPS)
def test_a_private_region_is_a_bytearray_of_its_own(length: int, steps: list[object]) -> None:
    model = bytearray(length)
    with Region.memfd("model", length) as below:
        with Region.map(below, visibility=Visibility.PRIVATE) as region:
            for step in steps:
                apply(region, model, step)  # type: ignore[arg-type]
            assert region[:] == model
        assert below[:] == bytes(length)
