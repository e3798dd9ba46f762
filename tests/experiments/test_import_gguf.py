"""The script that makes a folder of a GGUF file, the packaged one's unless another is named."""

import pytest

from jaxrl_align.runtime.huggingface import load_model
from tests.experiments.loading import load
from tests.runtime.gguf_files import write_gguf


def test_the_file_of_the_installed_package_becomes_a_folder(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gguf")
    pytest.importorskip("safetensors")
    script = load("import_gguf")
    monkeypatch.setattr(script, "PACKAGE", "jaxrl-align-tiny-gguf")
    with pytest.raises(ImportError, match="tiny-gguf is not installed; make model, or name a --file"):
        script.main(script.Config(folder=str(tmp_path / "none")))
    info = tmp_path / "site" / "jaxrl_align_tiny_gguf-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jaxrl-align-tiny-gguf\nVersion: 1.0\n")
    (info / "RECORD").write_text("tiny/__init__.py,,\ntiny/m.Q4_1.gguf,,\n")
    (tmp_path / "site" / "tiny").mkdir()
    (tmp_path / "site" / "tiny" / "__init__.py").write_text("raise AssertionError")  # is not run
    write_gguf(tmp_path / "site" / "tiny" / "m.Q4_1.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")
    script.main(script.Config(folder=str(tmp_path / "models" / "m"), dtype="float32"))
    assert capsys.readouterr().out.startswith(f"m.Q4_1.gguf -> {tmp_path / 'models' / 'm'}: 0 MB, float32, ")
    assert load_model(tmp_path / "models" / "m").config.width == 32
    assert '"dtype": "float32"' in (tmp_path / "models" / "m" / "config.json").read_text(encoding="utf-8")
    (info / "RECORD").write_text("tiny/__init__.py,,\n")
    with pytest.raises(ValueError, match="must hold a GGUF file; install version 0.1.2"):
        script.packaged()
