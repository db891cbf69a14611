"""``--model all``: what can run here runs, and what cannot is named with the reason."""

from __future__ import annotations

from typer.testing import CliRunner

from brushbench import registry
from brushbench.cli import app
from brushbench.inventory import all_methods


def test_everything_that_can_run_here_runs_and_the_rest_is_named(monkeypatch, tmp_path):
    shown = {
        "model": {name: registry.BUILTIN["model"][name] for name in ("copy", "powerpaint-v2", "telea", "flux-fill")}
    }
    monkeypatch.setattr(registry, "BUILTIN", {**registry.BUILTIN, **shown})
    specs, reasons = all_methods("tiny", {"device": "cpu"})
    assert [spec.name for spec in specs] == ["copy", "telea"]
    assert "Pass checkpoint=FOLDER" in reasons["powerpaint-v2"]
    assert "--model flux-fill,model=FOLDER" in reasons["flux-fill"]

    command = ["eval", "-m", "all", "--preset", "tiny", "--bench", "shapes", "--split", "inside", "--limit", "1"]
    done = CliRunner().invoke(app, [*command, "--metrics", "mse", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert {folder.name for folder in tmp_path.iterdir() if (folder / "run.json").is_file()} == {"copy", "telea"}
    assert "Left out: powerpaint-v2: No weights of powerpaint-v2" in done.output
