"""MuJoCo's C functions for compiled code: called by address, without the GIL and without Python in between.

Numba code cannot be cached on disk if it refers to a ctypes function, so the addresses travel as arguments and
`call_c` jumps to them. `mj_step1` and `mj_step2` leave room between them for a control law; a callback (`mjcb_control`)
would be process-wide and also fire for other people's models.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mujoco
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


class CFunctions(NamedTuple):
    """Addresses of the C functions that a step loop calls."""

    mj_step1: int
    mj_step2: int
    mj_jac_site: int
    mj_mul_m: int


class ContactLayout(NamedTuple):
    """Where the contacts of an mjData lie, in bytes; the places differ between MuJoCo versions."""

    count_offset: int
    """Of `ncon` (int32) in mjData."""
    array_offset: int
    """Of the pointer to the first contact in mjData (the start of its arena)."""
    stride: int
    """Size of one mjContact."""
    geom_offset: int
    """Of the two geom ids (int32) in mjContact."""


@intrinsic
def call_c(typingctx, address, arguments):  # type: ignore[no-untyped-def]  # numba's own protocol
    """Call the C function at `address` with integers or addresses; what it returns is ignored."""
    if not isinstance(arguments, types.BaseTuple):
        return None

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        word = ir.IntType(64)
        words = [
            context.cast(builder, value, given, types.int64)
            for value, given in zip(cgutils.unpack_tuple(builder, values[1]), signature.args[1].types, strict=True)
        ]
        function_type = ir.FunctionType(ir.VoidType(), [word] * len(words))
        function = builder.inttoptr(
            context.cast(builder, values[0], signature.args[0], types.int64), function_type.as_pointer()
        )
        builder.call(function, words)
        return context.get_dummy_value()

    return types.void(address, arguments), generate


@intrinsic
def read_int32(typingctx, address):  # type: ignore[no-untyped-def]
    """The 32-bit integer at `address`."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(
            context.cast(builder, values[0], signature.args[0], types.int64), ir.IntType(32).as_pointer()
        )
        return builder.load(pointer)

    return types.int32(address), generate


@intrinsic
def read_int64(typingctx, address):  # type: ignore[no-untyped-def]
    """The 64-bit integer or pointer at `address`."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(
            context.cast(builder, values[0], signature.args[0], types.int64), ir.IntType(64).as_pointer()
        )
        return builder.load(pointer)

    return types.int64(address), generate


@cache
def c_functions() -> CFunctions:
    """Addresses in the MuJoCo library that the Python package has loaded."""
    folder = Path(mujoco.__file__).parent
    libraries = (
        sorted(folder.glob("libmujoco*.so*")) + sorted(folder.glob("libmujoco*.dylib")) + sorted(folder.glob("mujoco.dll"))
    )
    if not libraries:
        raise RuntimeError(f"MuJoCo's library is not in {folder}: reinstall mujoco")
    library = ctypes.CDLL(str(libraries[0]))

    def address(name: str) -> int:
        value = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        assert value is not None
        return value

    return CFunctions(
        mj_step1=address("mj_step1"),
        mj_step2=address("mj_step2"),
        mj_jac_site=address("mj_jacSite"),
        mj_mul_m=address("mj_mulM"),
    )


_PROBE = """<mujoco><worldbody><geom type="plane" size="9 9 1"/>{boxes}</worldbody></mujoco>"""
_PROBE_BOX = """<body pos="{x} 0 0.09"><freejoint/><geom type="box" size=".1 .1 .1"/></body>"""
_PROBE_CONTACTS = (7, 3, 5, 1, 6)


@cache
def contact_layout() -> ContactLayout:
    """Look where the contacts are: `ncon` is the one word of mjData that counts them, whatever is moved in a small world."""
    boxes = "".join(_PROBE_BOX.format(x=0.5 * box) for box in range(max(_PROBE_CONTACTS)))
    model = mujoco.MjModel.from_xml_string(_PROBE.format(boxes=boxes))
    data = mujoco.MjData(model)
    counts: set[int] | None = None
    arrays: set[int] | None = None
    for num_resting in _PROBE_CONTACTS:
        data.qpos[2::7] = np.where(np.arange(max(_PROBE_CONTACTS)) < num_resting, 0.09, 3.0)
        mujoco.mj_forward(model, data)
        words = np.ctypeslib.as_array((ctypes.c_int32 * _num_header_words(data)).from_address(data._address))
        found = set((4 * np.flatnonzero(words == data.ncon)).tolist())
        counts = found if counts is None else counts & found
        found = set((8 * np.flatnonzero(words.view(np.int64) == data.contact.dist.ctypes.data)).tolist())
        arrays = found if arrays is None else arrays & found
    assert counts is not None
    assert arrays is not None
    if len(counts) != 1 or len(arrays) != 1:
        raise RuntimeError(f"cannot find the contacts in mjData of MuJoCo {mujoco.__version__}: {counts}, {arrays}")
    geom, first = data.contact.geom, data.contact.dist.ctypes.data
    return ContactLayout(
        count_offset=counts.pop(), array_offset=arrays.pop(), stride=geom.strides[0], geom_offset=geom.ctypes.data - first
    )


def _num_header_words(data: mujoco.MjData) -> int:
    """How many 32-bit words of mjData hold its scalars and the pointers to its two memory blocks, buffer and arena.

    The buffer starts with qpos, and the pointer to it follows the scalars.
    """
    buffer = data.qpos.ctypes.data
    word = 0
    while ctypes.c_int64.from_address(data._address + 8 * word).value != buffer:
        word += 1
    return 2 * (word + 2)
