"""What is asked for reliability, point by point, and what shows each: tests of the suite, records of runs, commands.

`tests/reliability.py` draws it; tests/generator/test_reliability.py holds that each test named here exists.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """A claim and what shows it. Tests run with every CI, those of tests/gpu where there is a GPU; `measured` are records
    of docs/measured, whose figures stand in the page, and `command` is what makes them.
    """

    what: str
    tests: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    command: str = ""


_GENERATOR, _OP, _GPU = "tests/generator/", "tests/op/", "tests/gpu/"
_UNTRUSTED, _BUILDS, _OUTPUT = (f"{_GENERATOR}test_{name}.py" for name in ("untrusted", "hard_builds", "output"))
_NUMERICS, _PATH, _ROUTE, _OPS, _HARD, _HANDOVER, _DRAWN = (
    f"{_GPU}test_{name}.py" for name in ("numerics", "path", "route", "op", "hard_use", "handover", "drawn_rows")
)
_GPU_TESTS = (
    "h200-tests.json",
    "h200-tests-shapes.json",
    "h200-tests-models.json",
    "h200-tests-random.json",
)

POINTS: tuple[tuple[str, tuple[Shown, ...]], ...] = (
    (
        "Specs are untrusted input",
        (
            Shown(
                "Hostile YAML files: refused in a sentence or right; aliases, deep nesting, huge numbers, NaN, control characters",
                (
                    f"{_UNTRUSTED}::test_a_share_of_the_fuzzed_specs",
                    f"{_UNTRUSTED}::test_whatever_the_bytes_the_answer_is_a_message",
                ),
                ("fuzz-specs.json",),
                "python -m tests.fuzz specs --cases 10000 --record docs/measured/fuzz-specs.json",
            ),
            Shown(
                "Hostile config.json files likewise",
                (f"{_UNTRUSTED}::test_a_share_of_the_fuzzed_configs",),
                ("fuzz-configs.json",),
                "python -m tests.fuzz configs --cases 10000 --record docs/measured/fuzz-configs.json",
            ),
            Shown("100 MB", (f"{_UNTRUSTED}::test_a_hundred_megabytes",)),
            Shown(
                "No value of a spec in generated code, a path, a symbol or a flag, but as a comment or a literal",
                (f"{_UNTRUSTED}::test_a_spec_is_text_in_what_is_generated",),
            ),
            Shown(
                "Names that would break out of a C string, a comment, a Python literal, a path",
                (f"{_UNTRUSTED}::test_names_that_would_break_out",),
            ),
        ),
    ),
    (
        "Writes",
        (
            Shown(
                "Killed at any moment: the old package or the new one, whole",
                (
                    f"{_UNTRUSTED}::test_killed_at_a_random_moment",
                    f"{_BUILDS}::test_a_build_that_is_killed_takes_its_compilers_along",
                ),
                ("fuzz-kills.json",),
                "python -m tests.fuzz kills --cases 200 --record docs/measured/fuzz-kills.json",
            ),
            Shown(
                "Two builds at once wait for each other",
                (f"{_OUTPUT}::test_two_processes_wait_for_each_other", f"{_BUILDS}::test_two_generates_at_once"),
            ),
            Shown(
                "Disk full, and the next run recovers",
                (
                    f"{_OUTPUT}::test_a_full_disk_is_said_and_leaves_the_old_folder",
                    f"{_OUTPUT}::test_a_real_limit_on_file_sizes",
                    f"{_BUILDS}::test_a_full_disk",
                ),
            ),
            Shown("Read-only folder", (f"{_OUTPUT}::test_a_folder_that_may_not_be_written",)),
            Shown(
                "Missing compilers: no nvcc, no host compiler, no ninja",
                (f"{_BUILDS}::test_no_nvcc", f"{_BUILDS}::test_no_host_compiler", f"{_BUILDS}::test_no_ninja"),
            ),
            Shown(
                "A compiler that crashes, or writes half an object",
                (
                    f"{_BUILDS}::test_a_compiler_that_crashes",
                    f"{_BUILDS}::test_a_compiler_that_writes_half_an_object_and_says_all_is_well",
                ),
            ),
            Shown(
                "nvcc of another version, or none at all",
                (f"{_BUILDS}::test_an_nvcc_of_another_version", f"{_BUILDS}::test_an_nvcc_that_is_none"),
            ),
        ),
    ),
    (
        "Kernels",
        (
            Shown(
                "memcheck, synccheck, initcheck over every function",
                measured=("h200-sanitize.json",),
                command="python tests/gpu/sanitize.py --tools memcheck,synccheck,initcheck --operators",
            ),
            Shown(
                "racecheck over every way through the code of the shipped functions, by twins of smaller sizes",
                (f"{_GENERATOR}test_twins.py::test_each_function_has_twins_that_go_its_ways",),
                ("h200-racecheck.json",),
                "python tests/gpu/sanitize.py --tools racecheck --twins build/twins",
            ),
            Shown(
                "All four tools over whole paths that nothing shipped has: top-1 of sigmoid, a softcap, groups by their best, "
                "scaled adds, scales of experts, images; racecheck over twins, one of each family's ways",
                (f"{_GENERATOR}test_twins.py::test_one_of_a_family_stands_for_all_that_differ_in_constants_alone",),
                ("h200-sanitize-unshipped.json", "h200-racecheck-unshipped.json"),
                "tests/gpu/records.sh OUT paths",
            ),
            Shown(
                "All four tools over the awkward shapes: K = 2880, 2688, 8; N = 1, 7, 17, 60, 258, 768, 896, 1024; through the "
                "operators 0 and 1 tokens, both sides of each threshold, 65,537 where shapes are small; racecheck likewise",
                measured=("h200-sanitize-shapes.json", "h200-racecheck-shapes.json"),
                command="tests/gpu/records.sh OUT shapes",
            ),
            Shown(
                "Every element against float64; outputs poisoned, with guard rows before and after",
                (f"{_NUMERICS}::test_variants", f"{_PATH}::test_functions"),
                _GPU_TESTS,
                "python -m pytest tests/gpu",
            ),
            Shown(
                "Every model's layer through the operators of its package; no call falls back to the reference",
                (f"{_GPU}test_layers.py::test_every_models_layer",),
            ),
            Shown(
                "The choice of experts of every kind, lane by lane on the CPU: ids and weights against float64, the lower of "
                "equals, NaN and infinities",
                ("tests/warp/test_selection.py",),
            ),
            Shown("1,000 runs, the same bits", (f"{_HARD}::test_a_thousand_runs_give_the_same_bits",)),
            Shown("8 streams of 4 threads at once", (f"{_HARD}::test_eight_streams_of_four_threads",)),
            Shown(
                "Graphs: capture, replay with other inputs, replay after inputs moved",
                (
                    f"{_OPS}::test_cuda_graph_replays_follow_changed_inputs",
                    f"{_ROUTE}::test_cuda_graph_replays_follow_changed_inputs",
                    f"{_HARD}::test_graphs_of_inputs_that_moved",
                ),
            ),
            Shown(
                "100,000 replays of a graph of each shipped path with changing inputs",
                (f"{_HANDOVER}::test_graph_replays_follow_changing_inputs",),
                ("h200-soak.json",),
                "NORMGATE_SOAK=1 python -m pytest tests/gpu/test_handover.py",
            ),
            Shown(
                "Two streams at once for a minute",
                (f"{_HANDOVER}::test_two_streams_at_once",),
                ("h200-soak-streams.json",),
                "NORMGATE_SOAK_SECONDS=62 python -m pytest tests/gpu/test_handover.py -k test_two_streams_at_once",
            ),
            Shown(
                "CTAs that draw rows and hand numbers over: graphs, two streams at once, fewer multiprocessors than CTAs",
                (
                    f"{_DRAWN}::test_graph_replays_follow_changing_rows",
                    f"{_DRAWN}::test_two_streams_and_a_graph_at_once",
                    f"{_DRAWN}::test_few_multiprocessors",
                ),
            ),
            Shown(
                "Kernels of all models in turn, in one stream and so in one memory to hand over in",
                (f"{_GPU}test_in_turn.py::test_each_leaves_the_memory_as_it_was",),
            ),
            Shown(
                "The current device and stream stay what they were",
                (f"{_HARD}::test_the_device_and_the_stream_stay_what_they_were",),
            ),
            Shown(
                "Strided and misaligned rows",
                (
                    f"{_OPS}::test_rows_that_16_byte_loads_cannot_read",
                    f"{_ROUTE}::test_rows_with_strides",
                    f"{_NUMERICS}::test_same_bits_each_run_and_strided_rows",
                ),
            ),
            Shown(
                "65,537 rows; more elements than 2^31",
                (f"{_HARD}::test_every_row_of_65537", f"{_HARD}::test_more_elements_than_an_int32_counts"),
            ),
        ),
    ),
    (
        "Bad calls",
        (
            Shown(
                "Wrong dtype, device, shape, stride, layout, alignment, CPU tensors among CUDA ones: the message names argument, "
                "value and expectation, and the next call works",
                (
                    f"{_OPS}::test_wrong_calls_name_argument_value_and_expectation",
                    f"{_ROUTE}::test_wrong_calls_say_what_is_wrong_and_leave_the_process_well",
                ),
            ),
            Shown("What autograd would record is refused", (f"{_OPS}::test_what_autograd_would_record_is_refused",)),
        ),
    ),
    (
        "Old and new chips",
        (
            Shown(
                "Below the oldest target the reference runs, and the reason is said",
                (
                    f"{_OP}test_fallback.py::test_each_reason_names_its_cure",
                    f"{_OP}test_explain.py::test_unserved_sm_says_what_runs_and_what_to_do",
                ),
            ),
            Shown(
                "PTX alone, of sm_80 and of sm_90 without what only sm_90 has",
                (f"{_GENERATOR}test_compile.py::test_ptx_alone",),
                ("h200-tests-ptx80.json", "h200-tests-ptx90.json"),
                "tests/gpu/records.sh OUT ptx80 ptx90",
            ),
            Shown(
                "Machine code of each target: 16-byte loads, tensor cores, no local memory",
                (
                    f"{_GENERATOR}test_machine_code.py::test_the_machine_code_is_what_was_meant",
                    f"{_GENERATOR}test_machine_code.py::test_no_function_has_local_memory",
                ),
            ),
        ),
    ),
    (
        "Supply chain",
        (
            Shown("No network at build or run time", (f"{_GENERATOR}test_no_network.py",)),
            Shown("What is vendored can be verified", (f"{_OP}test_verify.py",)),
        ),
    ),
    (
        "What users see when it is slow or wrong",
        (
            Shown("`python -m normgate doctor`", (f"{_OP}test_doctor.py", f"{_OPS}::test_doctor_finds_nothing_wrong")),
            Shown("Calls that are checked", (f"{_OP}test_checking.py", f"{_OPS}::test_checked_calls_pass")),
        ),
    ),
)
