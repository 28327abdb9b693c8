"""What the plugins take for granted of vLLM and SGLang, as recorded from the engines' source, and anew where that is here."""

import importlib
import json

import contract
import pytest


def plugin(engine):
    return importlib.import_module(f"normgate.integrations.{engine}")


def recorded(engine):
    return json.loads(contract.RECORD.read_text())[engine]


@pytest.mark.parametrize("engine", contract.ARCHIVES)
def test_the_record_is_of_the_versions_that_the_plugin_supports(engine):
    archive, entry = contract.ARCHIVES[engine], recorded(engine)
    assert [entry[name] for name in ("version", "file", "sha256")] == [archive.version, archive.file, archive.sha256]
    version = tuple(map(int, archive.version.split(".")))
    for bound in (plugin(engine).FIRST_VERSION, plugin(engine).LAST_VERSION):
        assert version[: len(bound)] == bound


@pytest.mark.parametrize("engine", contract.ARCHIVES)
def test_everything_recorded_holds_and_every_family_is_in_it(engine):
    claims = recorded(engine)["claims"]
    assert claims and all(claims.values())
    for family in plugin(engine).FAMILIES:
        assert f"{family.layer_class}.{family.block} is a {family.block_class}" in claims


@pytest.mark.parametrize("engine", contract.ARCHIVES)
def test_the_engines_source_holds_what_was_recorded(engine):
    read = contract.source_of(engine)
    if read is None:
        pytest.skip(f"no source of {engine} here; python -m tests.integrations.contract downloads it")
    assert contract.claims(engine, read) == recorded(engine)["claims"]


def test_a_claim_fails_where_the_source_says_otherwise():
    layer = "class A:\n def forward(self, h):\n  h, r = self.norm(h, r)\n  hidden_states = f(h)\n  h = self.mlp(h)\n"
    text = contract._text(layer, "A.forward")
    assert contract._in_order(text, "self.norm(h, r)", "self.mlp(") and not contract._in_order(
        text, "self.mlp(", "self.norm("
    )
    assert not contract._straight(text, "self.norm(h, r)", "self.mlp(")
    assert contract._straight(text.replace("hidden_states = f(h)", "pass"), "self.norm(h, r)", "self.mlp(")
    assert contract._rebound(text, "h") == {"mlp"} and contract._rebound("x = x.view(-1, 2)", "x") == {"view"}
    assert contract._text(layer, "A.other") == "" and contract._arguments(layer, "A.forward") == ["self", "h"]
    assert not contract._assigned(layer, "A", "mlp", "B")


def test_another_archive_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "CACHE", tmp_path)
    archive = contract.ARCHIVES["sglang"]
    (tmp_path / "other").write_bytes(b"other")
    index = tmp_path / "index"
    index.write_text(json.dumps({"files": [{"filename": archive.file, "url": (tmp_path / "other").as_uri()}]}))
    monkeypatch.setattr(contract, "_index", lambda engine: index.as_uri())
    with pytest.raises(ValueError, match="sha256 is .*, expected 8d257a"):
        contract.download(archive)
    assert not (tmp_path / archive.file).exists()
