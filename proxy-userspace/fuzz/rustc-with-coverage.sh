#!/bin/sh
# A `build.rustc-workspace-wrapper` of cargo: compiles the project's own crates so that libFuzzer sees where a run has been. Its
# dependencies, in which nobody looks for mistakes, stay as they are for everything else, and are not compiled anew.
# Checks of arithmetic are on without being asked for; those of memory would take time, for code without `unsafe`.
exec "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
