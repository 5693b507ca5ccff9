"""The sanitizers do see: a program with the mistake that a flavour is for does not end well under it."""

from pathlib import Path

import pytest
from toolchain import Flavour, UnavailableError, do_without

RACE = """
#include <pthread.h>
static int shared;
static void *write_it(void *unused) { (void)unused; shared++; return 0; }
int main(void)
{
    pthread_t first, second;
    pthread_create(&first, 0, write_it, 0);
    pthread_create(&second, 0, write_it, 0);
    pthread_join(first, 0);
    pthread_join(second, 0);
    return 0;
}
"""
FREED = """
#include <stdlib.h>
int main(void)
{
    volatile char *bytes = malloc(8);
    free((void *)bytes);
    return bytes[0] & 0;
}
"""
OVERFLOW = """
#include <limits.h>
int main(void) { volatile int most = INT_MAX; most = most + 1; return 0; }
"""


@pytest.mark.parametrize(
    ("flavour", "text", "said"),
    [
        ("thread", RACE, "ThreadSanitizer: data race"),
        ("address", FREED, "heap-use-after-free"),
        ("address", OVERFLOW, "signed integer overflow"),
    ],
    ids=["race", "freed", "overflow"],
)
def test_a_planted_mistake_is_found(flavour: str, text: str, said: str, tmp_path: Path) -> None:
    source = tmp_path / "planted.c"
    source.write_text(text)
    built = Flavour(flavour, tmp_path)
    try:
        built.prepare()
        done = built.run(built.program(source, core=False))
    except UnavailableError as error:
        do_without(str(error))
    assert done.returncode != 0
    assert said in done.stderr
