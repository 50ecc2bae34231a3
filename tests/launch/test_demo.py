from internvideo_jax.launch import demo


def test_folders_with_other_files_are_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path / "home"))
    (tmp_path / "mine/clips").mkdir(parents=True)
    (tmp_path / "mine/clips/holiday.mp4").write_text("dear")
    assert demo.main([f"--output={tmp_path / 'mine'}", "--fast"]) == 2
    assert "exists and is not empty; name a new folder" in capsys.readouterr().err
    assert (tmp_path / "mine/clips/holiday.mp4").read_text() == "dear"
    assert not (tmp_path / "home").exists()


def test_an_earlier_demo_may_be_replaced(tmp_path):
    home = tmp_path / "home"
    assert demo._output_dir(tmp_path / "new", home) == tmp_path / "new"
    (tmp_path / "new/report.json").touch()
    assert demo._output_dir(tmp_path / "new", home) == tmp_path / "new"
    assert demo._output_dir(None, home) == home
    assert demo._output_dir(home, home) == home
