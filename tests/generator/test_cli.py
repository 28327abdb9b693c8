"""The command line as users meet it: exit codes, words, and what is written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from codegen import cli as verbs
from codegen import explain, toolkit
from codegen.hf import ANSWERS
from codegen.manifest import load_manifest
from codegen.plan import make_plan
from codegen.spec import load_spec

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests" / "data" / "configs"
BAD = """\
name: small
sources: ["a test"]
hidden_size: 63
num_experts: 16
dtypes: {activation: bfloat16, gate_weight: bfloat16}
norm: {order: B, eps: 1.0e-6}
gate_bias: maybe
routing: {top_k: 2, e_score_correction_bias: false}
"""


def files(folder: Path) -> dict[str, int]:
    """Every file and its time stamp."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_generate_elsewhere_and_again(cli, small_spec, tmp_path):
    out = tmp_path / "elsewhere"
    done = cli("generate", "--spec", small_spec, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"elsewhere/normgate: \d+ files written, 0 removed, 0 unchanged\n", done.stdout)
    package = out / "normgate"
    assert json.loads((package / "manifest.json").read_text())["models"] == {
        "small": "norm_b_gate_64x16_bf16_bf16_fp32"
    }
    before = files(package)
    assert cli("generate", "--spec", small_spec, "--out", out).stdout == "elsewhere/normgate: up to date\n"
    assert files(package) == before
    (out / "build" / "generated.json").unlink()  # so that everything is rendered, and still nothing written
    assert cli("generate", "--spec", small_spec, "--out", out).stdout == "elsewhere/normgate: up to date\n"
    assert files(package) == before


def test_generate_mends_what_was_changed(cli, small_spec, tmp_path):
    cli("generate", "--spec", small_spec, "--out", tmp_path)
    (tmp_path / "normgate" / "layer.py").write_text("changed\n")
    assert "1 files written" in cli("generate", "--spec", small_spec, "--out", tmp_path).stdout
    small_spec.write_text(small_spec.read_text().replace("num_experts: 16", "num_experts: 17"))
    assert "files written, 2 removed" in cli("generate", "--spec", small_spec, "--out", tmp_path).stdout


def test_check_names_every_file(cli, small_spec, tmp_path):
    cli("generate", "--spec", small_spec, "--out", tmp_path)
    done = cli("check", "--spec", small_spec, "--out", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "normgate is fresh\n", "")
    package = tmp_path / "normgate"
    (package / "ops.py").unlink()
    (package / "csrc" / "stray.cu").write_text("")
    (package / "layer.py").write_text("")
    (package / "csrc" / "kernels" / "norm_b_gate_64x16_bf16_bf16_fp32.sm80.cu").write_text("")
    done = cli("check", "--spec", small_spec, "--out", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "missing: ops.py",
        "unknown: csrc/stray.cu",
        "changed: csrc/kernels/norm_b_gate_64x16_bf16_bf16_fp32.sm80.cu",
        "changed: layer.py",
        "normgate is not what the specs give: python build.py generate",
    ]


def test_check_sees_a_changed_spec(cli, small_spec, tmp_path):
    cli("generate", "--spec", small_spec, "--out", tmp_path)
    small_spec.write_text(small_spec.read_text().replace("a test", "another test"))
    done = cli("check", "--spec", small_spec, "--out", tmp_path)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "changed: manifest.json")


@pytest.mark.parametrize("verb", [(), ("generate",), ("check",), ("bench", "--build-only", "--sm", "90")])
def test_bad_spec_is_exit_2_and_writes_nothing(cli, tmp_path, verb):
    spec = tmp_path / "small.yaml"
    spec.write_text(BAD)
    done = cli(*verb, "--spec", spec, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"{spec}:3: hidden_size: 63 given, a multiple of 8 from 8 to 65536 would be right",
        f"{spec}:7: gate_bias: 'maybe' given, true or false would be right",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--bogus"], "--bogus"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["--sm", "90", "check"], "options go behind the verb: check --sm"),
        (["--spec", "a.yaml", "check"], "options go behind the verb: check --spec"),
        (["--sm", "99"], "--sm 99: '99' is no target here"),
        (["--sm", ""], "is no target here"),
        (["--jobs", "0"], "--jobs"),
        (["generate", "--spec", "nowhere.yaml"], "nowhere.yaml: cannot be read: No such file or directory"),
        (["plan"], "Missing argument 'SPEC_OR_MODEL'"),
        (["plan", "glm"], "unknown model 'glm', one of glm-5, glm-4.5 would be right"),
        (["plan", "glm-5", "--sm", "x"], "--sm"),
        (["explain", "--model", "glm-5", "--tokens", "-1", "--sm", "90"], "--tokens"),
        (
            ["explain", "--model", "glm", "--tokens", "1", "--sm", "90"],
            "unknown model 'glm', one of glm-5, glm-4.5 would be",
        ),
        (["add", "nowhere.json"], "nowhere.json: cannot be read: No such file or directory"),
        (["add", str(CONFIGS / "glm-5.json")], "answer with --name NAME"),
        (["add", str(CONFIGS / "glm-5.json"), "--name", "x", "--norm-order", "Z"], "--norm-order: 'Z' given, A, B, G"),
        (["bench", "--tokens", "1,x"], "'x' given, whole numbers from 1 to 1048576"),
        (["bench", "--build-only"], "--build-only needs --sm N"),
        (["bench", "--build-only", "--sm", "91"], "--sm 91: one of 80, 86"),
        (["bench", "--build-only", "--no-build"], "one of them"),
        (["bench", "--build-only", "--sm", "90", "--candidates", "foo"], "no such candidate: foo"),
    ],
)
def test_bad_flags_are_exit_2(cli, tmp_path, arguments, says):
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_unwritable_out(cli, small_spec, tmp_path):
    (tmp_path / "file").write_text("")
    done = cli("generate", "--spec", small_spec, "--out", tmp_path / "file")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("free the path or name another folder: --out DIR")


def test_foreign_folder_is_left_alone(cli, small_spec, tmp_path):
    (tmp_path / "normgate").mkdir()
    (tmp_path / "normgate" / "thesis.tex").write_text("mine")
    done = cli("generate", "--spec", small_spec, "--out", tmp_path)
    assert done.returncode == 2
    assert "holds files (such as thesis.tex) but no normgate manifest.json" in done.stderr


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_add_gives_the_shipped_specs(config, tmp_path, capsys):
    arguments = ["add", str(config), "--name", config.stem, "--out", str(tmp_path)]
    assert verbs.main(arguments, "build.py") == 0
    shipped = ROOT / "specs" / f"{config.stem}.yaml"
    written = tmp_path / shipped.name
    assert written.read_text() == shipped.read_text()
    assert capsys.readouterr().out == f"{written} written; next: python build.py --spec {written} --out DIR\n"


def test_add_replaces_nothing_unless_forced(tmp_path, capsys):
    arguments = ["add", str(CONFIGS / "glm-5.json"), "--name", "glm-5", "--out", str(tmp_path)]
    assert verbs.main(arguments, "build.py") == 0
    path = tmp_path / "glm-5.yaml"
    written = path.read_text()
    path.write_text("# a comment of my own\n" + written)
    assert verbs.main(arguments, "build.py") == 0
    assert capsys.readouterr().out.endswith("glm-5.yaml says so already\n")
    path.write_text(written.replace("256", "128"))
    assert verbs.main(arguments, "build.py") == 2
    assert "is there and says something else; --force replaces it" in capsys.readouterr().err
    assert path.read_text() != written
    assert verbs.main([*arguments, "--force"], "build.py") == 0
    assert path.read_text() == written


def test_add_gives_no_name_that_a_spec_has(capsys):
    arguments = ["add", str(CONFIGS / "glm-5.json"), "--name", "mixtral-8x7b", "--force"]
    assert verbs.main(arguments, "build.py") == 2
    said = capsys.readouterr().err
    assert "mixtral-8x7b.yaml: is a spec of the name mixtral-8x7b already" in said
    assert "--out DIR builds that one, --name NAME writes another" in said
    assert not (ROOT / "specs" / "mixtral-8x7b.yaml").exists()


def test_add_names_what_it_has_not_read(tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads((CONFIGS / "glm-5.json").read_text()), "moe_use_logits_norm": True}))
    assert verbs.main(["add", str(config), "--name", "m", "--out", str(tmp_path)], "build.py") == 0
    said = capsys.readouterr().out
    assert said.startswith("not read: moe_use_logits_norm; where one says something of the router, edit the spec\n")


def test_add_offers_every_answer(cli):
    said = cli("add", "--help").stdout
    assert all(f"--{flag} " in said for flag in ANSWERS)


def test_plan_prints_what_follows(cli, small_spec):
    done = cli("plan", small_spec, "--sm", "90")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^norm_b_gate_64x16_bf16_bf16_fp32 \(small\)", done.stdout, re.MULTILINE)
    heads = [line.split() for line in done.stdout.splitlines() if line.startswith("name")]
    assert heads and all(head == ["name", "formula", "value", "meaning"] for head in heads)
    assert re.search(r"^gate_weight_bytes +.* 2,048 ", done.stdout, re.MULTILINE)
    ranges = make_plan([load_spec(small_spec)]).kernels[0].group_of(90).ranges
    for served in ranges:
        assert f": {served.name} on sm_90" in done.stdout
    assert "on sm_80" not in done.stdout
    assert "on sm_80" in cli("plan", small_spec).stdout
    assert cli("plan", small_spec, "--sm", "75").returncode == 2


def test_explain_is_the_packages_own_text(cli, small_spec, tmp_path):
    """The same calls in the generated package, in a process that knows nothing of the generator."""
    cli("generate", "--spec", small_spec, "--out", tmp_path)
    plan = make_plan([load_spec(small_spec)])
    asked = [(count, sm) for sm in (75, 80, 90, 130) for count in (0, 1, 17, 4096)]
    code = f"import normgate\nfor n, sm in {asked}: print(normgate.explain('small', n, sm))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    said = "".join(f"{one}\n" for count, sm in asked for one in explain.explained(plan, "small", count, sm))
    assert done.stdout == said, done.stderr


def test_explain_prints_it(capsys):
    """For a shipped model, whose kernel is planned without the others': the text is that of the whole package."""
    assert verbs.main(["explain", "--model", "kimi-k2", "--tokens", "17", "--sm", "103"], "build.py") == 0
    assert capsys.readouterr().out.startswith("kimi-k2, 17 tokens, sm_103\n  kernel    norm_a_gate_7168x384_")


def test_explain_without_a_gpu_asks_for_sm(monkeypatch, capsys):
    def no_gpu() -> tuple[int, ...]:
        raise toolkit.ToolError("no GPU")

    monkeypatch.setattr(toolkit, "native_sms", no_gpu)
    assert verbs.main(["explain", "--model", "glm-5", "--tokens", "1"], "build.py") == 2
    assert capsys.readouterr().err == "--sm: not given, and this machine has no GPU to ask; --sm 90 would be right\n"


def test_interrupt_is_quiet(monkeypatch, capsys, small_spec, tmp_path):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("codegen.package.generate", interrupt)
    arguments = ["generate", "--spec", str(small_spec), "--out", str(tmp_path)]
    assert verbs.main(arguments, "build.py") == 130
    assert capsys.readouterr().err.strip() == ""


def test_second_build_is_quick_and_imports_no_torch(cli, small_spec, tmp_path):
    arguments = ("--spec", small_spec, "--out", tmp_path, "--sm", "90")
    first = cli(*arguments, "--json")
    assert first.returncode == 0, first.stderr
    said = json.loads(first.stdout)  # alone there: progress is on stderr
    assert "[1/" in first.stderr and str(tmp_path) not in first.stdout
    assert (said["library"], said["sms"], said["compiled"] > 0) == ("normgate/libnormgate.so", [90], True)
    rows = {row["function"]: row for row in said["rows"]}
    sources = [source for source in load_manifest(tmp_path / "normgate").sources if 90 in source.sm_targets]
    assert set(rows) == {name for source in sources for name in source.functions}
    before = files(tmp_path / "normgate")
    second = cli(*arguments, PYTHONPROFILEIMPORTTIME="1")
    assert second.returncode == 0
    assert "nothing to compile" in second.stdout
    assert files(tmp_path / "normgate") == before
    assert not re.search(r"\| +torch$", second.stderr, re.MULTILINE)
    listed = [line.split() for line in cli(*arguments, "--table").stdout.splitlines()[2:-1]]
    assert {line[-1] for line in listed} == set(rows)
    assert all(line[:2] == [str(rows[line[-1]][key]) for key in ("registers", "smem")] for line in listed)


def test_plan_counts_the_products_that_kernels_do(cli):
    """Three terms of a weight times two of a row, less the one pair below fp32's last bit."""
    done = cli("plan", ROOT / "tests" / "specs" / "fp16-a.yaml", "--json")
    quantities = {one["name"]: one["value"] for one in json.loads(done.stdout)["kernels"][0]["quantities"]}
    assert (quantities["gate_terms"], quantities["row_terms"]) == (3, 2)
    assert quantities["mma_flops_per_token"] == 5 * quantities["flops_per_token"]
