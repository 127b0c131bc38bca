"""Keeps Mesa's LLVM to Mesa, so that libraries with an LLVM of their own can be loaded after it has drawn.

Mesa 22, for one, opens its driver with RTLD_GLOBAL, and with it the LLVM that llvmpipe compiles with. From then on the linker
binds the LLVM calls of every library loaded later to that LLVM. Triton brings another version: to import it, as PyTorch's
optimizers do, then crashes the process. The driver works with RTLD_LOCAL too, but Mesa has no setting for it. So the address
through which `libEGL_mesa` calls `dlopen` is replaced by that of a function that leaves RTLD_GLOBAL out.

Invariant: only an address that the library's own relocation table gives to `dlopen` is written. Where tables are not laid out
as glibc lays them out on x86-64 and aarch64, nothing is changed. Knows ELF, not EGL.
"""

import ctypes
import logging
import os
import platform
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

_LIBRARY = "libEGL_mesa.so"
_RTLD_DI_LINKMAP = 2
_DT_NULL, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_PLTRELSZ, _DT_JMPREL = 0, 5, 6, 7, 8, 2, 23
_SYMBOL_BYTES, _RELOCATION_BYTES = 24, 24
_ADDRESS_RELOCATIONS = {"x86_64": (6, 7), "aarch64": (1025, 1026)}
"""Machine -> types of relocations (GLOB_DAT, JUMP_SLOT) whose place holds nothing but a symbol's address."""
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4


class _LinkMap(ctypes.Structure):
    """A loaded library, as `<link.h>` declares it."""


_LinkMap._fields_ = [
    ("base", ctypes.c_size_t),
    ("name", ctypes.c_char_p),
    ("dynamic", ctypes.c_size_t),
    ("next", ctypes.POINTER(_LinkMap)),
]


@cache
def keep_driver_local() -> None:
    """Have Mesa open its drivers with RTLD_LOCAL. Call it once EGL is loaded, before a display is initialised."""
    try:
        libraries = [library for library in _loaded_libraries() if _LIBRARY in os.path.basename(library.name or b"").decode()]
        for library in libraries:
            for place in _places_of(library, b"dlopen"):
                _write_address(place, ctypes.cast(_open_locally(), ctypes.c_void_p).value or 0)
    except (OSError, AttributeError) as error:
        logger.debug("Mesa's driver stays as Mesa opens it: %r", error)


@cache
def _open_locally() -> "ctypes._FuncPointer":
    """A C function that is `dlopen` without RTLD_GLOBAL; kept for as long as the process lives."""
    open_library = ctypes.CDLL(None).dlopen
    open_library.argtypes, open_library.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)
    def open_locally(path: bytes | None, mode: int) -> int:
        return open_library(path, mode & ~os.RTLD_GLOBAL) or 0

    return open_locally


def _loaded_libraries() -> Iterator[_LinkMap]:
    if platform.machine() not in _ADDRESS_RELOCATIONS or platform.libc_ver()[0] != "glibc":
        return
    ask = ctypes.CDLL(None).dlinfo
    ask.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    entry = ctypes.POINTER(_LinkMap)()
    if ask(ctypes.CDLL(None)._handle, _RTLD_DI_LINKMAP, ctypes.byref(entry)) != 0:
        raise OSError("the list of loaded libraries cannot be read")
    while entry:
        yield entry.contents
        entry = entry.contents.next


def _places_of(library: _LinkMap, function: bytes) -> Iterator[int]:
    """Where the library keeps the address through which it calls this function."""
    tables = dict(_dynamic_entries(library.dynamic))
    for start, num_bytes in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
        if start not in tables:
            continue
        for relocation in range(tables[start], tables[start] + tables[num_bytes], _RELOCATION_BYTES):
            offset, info = _word(relocation), _word(relocation + 8)
            symbol, kind = info >> 32, info & 0xFFFFFFFF
            if symbol and kind in _ADDRESS_RELOCATIONS[platform.machine()]:
                name = ctypes.c_uint32.from_address(tables[_DT_SYMTAB] + symbol * _SYMBOL_BYTES).value
                if ctypes.string_at(tables[_DT_STRTAB] + name) == function:
                    yield library.base + offset


def _dynamic_entries(address: int) -> Iterator[tuple[int, int]]:
    while (tag := _word(address)) != _DT_NULL:
        yield tag, _word(address + 8)
        address += 16


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def _write_address(place: int, value: int) -> None:
    """Write a word whose page may be read-only, and leave the page as it was."""
    page_bytes = os.sysconf("SC_PAGESIZE")
    page, protection = place - place % page_bytes, _protection(place)
    _protect(page, page_bytes, protection | _PROT_WRITE)
    ctypes.c_uint64.from_address(place).value = value
    _protect(page, page_bytes, protection)


def _protect(page: int, num_bytes: int, protection: int) -> None:
    change = ctypes.CDLL(None, use_errno=True).mprotect
    change.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if change(page, num_bytes, protection) != 0:
        raise OSError(ctypes.get_errno(), "the protection of a page cannot be changed")


def _protection(address: int) -> int:
    """Of the page at this address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) (.)(.)(.)", line)
        if found and int(found[1], 16) <= address < int(found[2], 16):
            rights = ((found[3] == "r", _PROT_READ), (found[4] == "w", _PROT_WRITE), (found[5] == "x", _PROT_EXEC))
            return sum(right for granted, right in rights if granted)
    raise OSError(f"no page is mapped at {address:#x}")
