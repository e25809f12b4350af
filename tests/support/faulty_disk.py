"""Disks that fail: a preloaded library that fails fsyncs on demand, and damage done to a file.

`build` compiles the library with the C compiler; a process that is started with it in LD_PRELOAD
gets EIO from every fsync, fdatasync and msync for as long as the file named in FAIL_WHEN exists.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/types.h>

static int failing(void) {
    const char *flag = getenv("FAIL_WHEN");
    return flag && access(flag, F_OK) == 0;
}
#define FAILS(name, args, call)                                            \\
    int name args {                                                        \\
        static int (*real) args;                                           \\
        if (failing()) { errno = EIO; return -1; }                         \\
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);              \\
        return real call;                                                  \\
    }
FAILS(fsync, (int fd), (fd))
FAILS(fdatasync, (int fd), (fd))
FAILS(msync, (void *at, size_t size, int flags), (at, size, flags))
"""


def build(folder: Path) -> Path:
    """Compile the library into a folder."""
    source, library = folder / "faulty_disk.c", folder / "faulty_disk.so"
    source.write_text(SOURCE)
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def environment(library: Path, flag: Path) -> dict[str, str]:
    """Environment of a process whose fsyncs fail while the flag file exists."""
    return {**os.environ, "LD_PRELOAD": str(library), "FAIL_WHEN": str(flag)}
