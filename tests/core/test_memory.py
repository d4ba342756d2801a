"""Freed memory stays with the process once that is asked for."""

import os
import subprocess
import sys
import textwrap

import pytest

import keras_lightnets


def faults(code, **environment):
    """Pages that the kernel hands out while 64 MiB are taken and freed ten times."""
    program = f"""
        import resource
        import numpy as np
        from keras_lightnets import keep_memory
        {code}

        def use():
            np.empty(2**26, np.uint8).fill(1)

        use()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            use()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_pages_are_handed_out_once():
    plain, kept = faults(""), faults("assert keep_memory()")
    assert plain > 100
    assert kept < plain / 10


def test_left_to_the_user(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keras_lightnets.keep_memory()


def test_other_systems(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keras_lightnets.keep_memory()
